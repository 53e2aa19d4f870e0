//! What the fuzzer runs: bytes that may be anything, read as packed rows.

use super::dense::unpack_dense;
use super::layout::{LogProbCode, RowLayout};
use super::unpack::{Defect, Id, Target, sampled, unpack_reference, unpack_rows};

/// A result of unpacking, by bits, so that NaN would be seen.
type Unpacked = Result<(Vec<u32>, Vec<u32>), Defect>;

fn unpack<I: Id + Into<i64>>(
    layout: &RowLayout,
    bytes: &[u8],
    how: impl Fn(&RowLayout, &[u8], &mut Target<'_, I>) -> Result<(), Defect>,
) -> Unpacked {
    let rows = bytes.len() / layout.row_bytes;
    let mut ids = vec![I::from_id(7); rows * layout.k];
    let mut log_probs = vec![f32::NAN; rows * layout.k];
    let mut tail = vec![f32::NAN; rows];
    let mut partitions = vec![f32::NAN; rows * layout.temperatures.len()];
    let mut target = Target { ids: &mut ids, log_probs: &mut log_probs, tail: &mut tail, partitions: &mut partitions };
    how(layout, bytes, &mut target)?;
    let ids = ids.into_iter().map(|id| u32::try_from(id.into()).unwrap_or(u32::MAX)).collect();
    let values = log_probs.into_iter().chain(tail).chain(partitions).map(f32::to_bits).collect();
    Ok((ids, values))
}

/// Unpacks rows of every class.
///
/// # Panics
/// When what is no log-probability comes out, or a row without a largest one.
pub fn dense(classes: u64, code: LogProbCode, bytes: &[u8]) {
    let Ok(layout) = RowLayout::dense(classes, code) else { return };
    let rows = bytes.len() / layout.row_bytes;
    let mut out = vec![f32::NAN; rows * layout.vocabulary as usize];
    if unpack_dense(&layout, bytes, &mut out).is_ok() {
        assert!(out.iter().all(|&value| value <= 0.0));
        assert!(out.chunks(layout.vocabulary as usize).all(|row| row.contains(&0.0)));
    }
}

/// Unpacks rows whose layout leads the bytes: vocabulary (u32), `k` (u16), a byte of flags (`f16`, sampled, number of
/// temperatures, every class).
///
/// # Panics
/// When a wrong id or what is no log-probability comes out, or two ways of unpacking differ.
pub fn rows(bytes: &[u8]) {
    let Some((head, bytes)) = bytes.split_first_chunk::<7>() else { return };
    let vocabulary = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let k = u16::from_le_bytes([head[4], head[5]]);
    let code = if head[6] & 1 == 0 { LogProbCode::Steps } else { LogProbCode::Half };
    if head[6] & 16 != 0 {
        dense(u64::from(vocabulary & 0xFFFF), code, bytes);
        return;
    }
    let temperatures = (0..=head[6] >> 2 & 3).map(|index| 1.0 + f64::from(index)).collect();
    let layout = RowLayout::new(u64::from(vocabulary), u64::from(k), code, temperatures, head[6] & 2 != 0);
    let Ok(layout) = layout else { return };
    let reference = unpack::<i64>(&layout, bytes, unpack_reference);
    assert_eq!(reference, unpack::<i64>(&layout, bytes, unpack_rows));
    assert_eq!(reference, unpack::<i32>(&layout, bytes, unpack_rows));
    if let Ok((ids, values)) = reference {
        let masses = ids.len() + bytes.len() / layout.row_bytes;
        assert!(ids.iter().all(|&id| id < vocabulary));
        assert!(values[..masses].iter().all(|&bits| f32::from_bits(bits) <= 0.0));
        assert!(values[masses..].iter().all(|&bits| f32::from_bits(bits).is_finite()));
    }
    if layout.sampled {
        for packed in bytes.chunks_exact(layout.row_bytes) {
            assert!(
                sampled(&layout, packed).is_ok_and(|(id, log_prob)| id < vocabulary && log_prob <= 0.0)
                    || sampled(&layout, packed).is_err()
            );
        }
    }
}
