//! Rows that hold every class: no ids, no tail, and any temperature follows from them.

use super::half::{from_half, to_half, to_half_above};
use super::layout::{LogProbCode, RowLayout};
use super::unpack::{BAD_LOG_PROB, BAD_SCALE, Defect, half_at};
use crate::parallel;
use crate::{Error, Result};

/// Code of a class without probability.
const NOTHING: u8 = 255;
/// Largest depth in units of the scale.
const LARGEST: f64 = 254.0;
/// Eight bits do not tell classes that are less likely than the likeliest by more than this factor's logarithm apart.
const DEEPEST: f64 = 104.0;
/// Rows of one task.
const PIECE: usize = 32;

const NO_LARGEST: &str = "a row without a likeliest class";

/// Packs logits, `[rows, classes]`: for each class how far its log-probability lies below the largest one. `first_row` is
/// the number of the first row in messages.
///
/// # Errors
/// [`Error::Argument`] names the row.
pub fn pack_dense(layout: &RowLayout, logits: &[f32], first_row: usize, out: &mut [u8]) -> Result<()> {
    let classes = layout.vocabulary as usize;
    let rows = out.len() / layout.row_bytes;
    if !layout.dense || logits.len() != rows * classes || out.len() != rows * layout.row_bytes {
        let got = format!("{} values and {} bytes", logits.len(), out.len());
        return Err(Error::argument("logits", got, format!("{classes} values for each row of a dense layout")));
    }
    let pieces: Vec<_> = logits.chunks(PIECE * classes).zip(out.chunks_mut(PIECE * layout.row_bytes)).collect();
    let done = parallel::map(pieces.into_iter().enumerate().collect(), |(piece, (logits, out))| {
        for (row, (logits, out)) in logits.chunks(classes).zip(out.chunks_mut(layout.row_bytes)).enumerate() {
            pack_row(layout, logits, out).map_err(|got| {
                let row = first_row + piece * PIECE + row;
                let allowed = "numbers, and -inf for classes without probability, but not for all";
                Error::argument("logits", format_args!("{got} in row {row}"), allowed)
            })?;
        }
        Ok(())
    });
    done.into_iter().collect()
}

fn pack_row(layout: &RowLayout, logits: &[f32], out: &mut [u8]) -> std::result::Result<(), &'static str> {
    if logits.iter().any(|value| value.is_nan()) {
        return Err("NaN");
    }
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if largest.is_infinite() {
        return Err(if largest > 0.0 { "inf" } else { "-inf throughout" });
    }
    let depth = |value: f32| largest - f64::from(value);
    match layout.code {
        LogProbCode::Half => {
            for (field, &value) in out.chunks_exact_mut(2).zip(logits) {
                let depth = depth(value);
                let depth = if depth == f64::INFINITY { depth } else { depth.min(65504.0) };
                field.copy_from_slice(&to_half(-depth).to_le_bytes());
            }
        }
        LogProbCode::Steps => {
            let depths = || logits.iter().map(|&value| depth(value));
            let range = depths().filter(|depth| depth.is_finite()).fold(0.0, f64::max).min(DEEPEST);
            let scale_code = to_half_above(range / LARGEST);
            let scale = f64::from(from_half(scale_code));
            for (code, depth) in out.iter_mut().zip(depths()) {
                *code = match depth {
                    f64::INFINITY => NOTHING,
                    _ if scale == 0.0 => 0,
                    depth => (depth / scale).round_ties_even().min(LARGEST) as u8,
                };
            }
            out[layout.head_at..].copy_from_slice(&scale_code.to_le_bytes());
        }
    }
    Ok(())
}

/// Unpacks rows that lie one after the other into `[rows, classes]`: log-probabilities less the largest of the row.
///
/// # Errors
/// The first row whose bytes no encoder writes. What lies in `out` then is undefined.
pub fn unpack_dense(layout: &RowLayout, bytes: &[u8], out: &mut [f32]) -> std::result::Result<(), Defect> {
    let rows = bytes.chunks_exact(layout.row_bytes).zip(out.chunks_exact_mut(layout.vocabulary as usize));
    for (row, (packed, out)) in rows.enumerate() {
        unpack_row(layout, packed, out).map_err(|(offset, reason)| Defect { row, offset, reason })?;
    }
    Ok(())
}

fn unpack_row(layout: &RowLayout, packed: &[u8], out: &mut [f32]) -> std::result::Result<(), (usize, &'static str)> {
    // Flags over the whole row and a second look at a bad one: branches in the loop would cost its vectorisation.
    let (mut sound, mut largest) = (true, false);
    match layout.code {
        LogProbCode::Half => {
            for (value, field) in out.iter_mut().zip(packed.chunks_exact(2)) {
                *value = from_half(u16::from_le_bytes([field[0], field[1]]));
                sound &= *value <= 0.0;
                largest |= *value == 0.0;
            }
            if !sound {
                let bad = out.iter().position(|&value| value.is_nan() || value > 0.0);
                return Err((2 * bad.unwrap_or_default(), BAD_LOG_PROB));
            }
        }
        LogProbCode::Steps => {
            let scale = half_at(packed, layout.head_at);
            if !(scale.is_finite() && scale >= 0.0) {
                return Err((layout.head_at, BAD_SCALE));
            }
            for (value, &code) in out.iter_mut().zip(packed) {
                *value = if code == NOTHING { f32::NEG_INFINITY } else { -scale * f32::from(code) };
                largest |= code == 0;
            }
        }
    }
    if largest { Ok(()) } else { Err((0, NO_LARGEST)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(code: LogProbCode, logits: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let layout = RowLayout::dense(logits.len() as u64, code).unwrap();
        let mut bytes = vec![0xAA; layout.row_bytes];
        pack_dense(&layout, logits, 0, &mut bytes).unwrap();
        let mut out = vec![f32::NAN; logits.len()];
        unpack_dense(&layout, &bytes, &mut out).unwrap();
        (bytes, out)
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![8 => -30.0f32..30.0, 2 => (-3i32..3).prop_map(|value| value as f32),
            1 => Just(f32::NEG_INFINITY), 1 => -500.0f32..500.0];
        (prop::collection::vec(value, 1..300), any::<prop::sample::Index>(), -5.0f32..5.0).prop_map(
            |(mut values, index, finite)| {
                let index = index.index(values.len());
                values[index] = values[index].max(finite);
                values
            },
        )
    }

    proptest! {
        #[test]
        fn every_class_is_within_the_stated_error(logits in logits()) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let depth = |value: f32| f64::from(value) - f64::from(largest);
            let range = logits.iter().map(|&value| -depth(value)).filter(|depth| depth.is_finite()).fold(0.0, f64::max);
            for code in [LogProbCode::Half, LogProbCode::Steps] {
                let (_, out) = round_trip(code, &logits);
                for (&value, &found) in logits.iter().zip(&out) {
                    let due = depth(value);
                    if due == f64::NEG_INFINITY {
                        prop_assert_eq!(found, f32::NEG_INFINITY);
                        continue;
                    }
                    let (due, bound) = match code {
                        LogProbCode::Half => (due, due.abs() / 2048.0 + 2.0f64.powi(-25)),
                        // The scale is an f16 rounded up, so at most 2^-10 above its due.
                        LogProbCode::Steps => (due.max(-104.0), range.min(104.0) / 508.0 * (1.0 + 2.0f64.powi(-10)) + 1e-6),
                    };
                    prop_assert!((f64::from(found) - due).abs() <= bound, "{found} {due} {bound}");
                }
                prop_assert_eq!(out.iter().copied().fold(f32::NEG_INFINITY, f32::max), 0.0);
            }
        }

        #[test]
        fn any_bytes_give_log_probabilities_or_are_refused(bytes: Vec<u8>, classes in 1u8..20, half: bool) {
            let code = if half { LogProbCode::Half } else { LogProbCode::Steps };
            super::super::hostile::dense(u64::from(classes), code, &bytes);
        }
    }

    #[test]
    fn what_is_no_distribution_is_refused_with_its_row() {
        let layout = RowLayout::dense(2, LogProbCode::Half).unwrap();
        let mut out = vec![0; 2 * layout.row_bytes];
        for (bad, reason) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf throughout")] {
            let error = pack_dense(&layout, &[0.0, 0.0, bad, f32::NEG_INFINITY], 7, &mut out).unwrap_err();
            assert!(error.to_string().contains(&format!("{reason} in row 8")), "{error}");
        }
        assert!(pack_dense(&layout, &[0.0; 3], 0, &mut out).is_err());
    }

    #[test]
    fn bytes_that_no_encoder_writes_are_named() {
        let half = RowLayout::dense(2, LogProbCode::Half).unwrap();
        let mut out = [0.0; 4];
        let sound = [0, 0, 0, 0xBC];
        let cases: [(&[u8], usize, &str); 3] = [
            (&[0, 0, 0, 0x3C], 2, BAD_LOG_PROB),
            (&[0, 0x7E, 0, 0], 0, BAD_LOG_PROB),
            (&[0, 0xBC, 0, 0xFC], 0, NO_LARGEST),
        ];
        for (bad, offset, reason) in cases {
            let bytes = [sound.as_slice(), bad].concat();
            assert_eq!(unpack_dense(&half, &bytes, &mut out), Err(Defect { row: 1, offset, reason }));
        }
        let steps = RowLayout::dense(2, LogProbCode::Steps).unwrap();
        assert_eq!(steps.row_bytes, 4);
        for (bytes, offset, reason) in
            [([0, 1, 0, 0x7C], 2, BAD_SCALE), ([0, 1, 0, 0xBC], 2, BAD_SCALE), ([1, 255, 0, 0], 0, NO_LARGEST)]
        {
            assert_eq!(unpack_dense(&steps, &bytes, &mut out[..2]), Err(Defect { row: 0, offset, reason }));
        }
    }
}
