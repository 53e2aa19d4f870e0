//! Unpacking, with every field held against its range: the bytes are a stranger's.

use super::half::from_half;
use super::layout::{LogProbCode, RowLayout};
use super::pack::NOTHING;

/// The integers that ids come as.
pub trait Id: Copy + Send + Sync + 'static {
    /// An id; those of a sound row fit.
    fn from_id(id: u32) -> Self;
    /// Bytes of one.
    const BYTES: usize;
}

impl Id for i32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn from_id(id: u32) -> Self {
        id as Self
    }
}

impl Id for i64 {
    const BYTES: usize = 8;

    #[inline(always)]
    fn from_id(id: u32) -> Self {
        Self::from(id)
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defect {
    /// Which row.
    pub row: usize,
    /// Its first bad byte.
    pub offset: usize,
    /// Why.
    pub reason: &'static str,
}

pub(super) const BAD_ID: &str = "an id beyond the vocabulary";
pub(super) const BAD_LOG_PROB: &str = "a log-probability that is not a number or above 0";
pub(super) const BAD_SCALE: &str = "a scale that is not a finite number from 0";
pub(super) const BAD_TAIL: &str = "a tail's log-mass that is not a number or above 0";
pub(super) const BAD_PARTITION: &str = "a log-partition that is not finite";

/// The bytes of a field, by one check and one load.
#[inline(always)]
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[inline(always)]
pub(super) fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes(field(bytes, at))
}

#[inline(always)]
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    from_half(u16::from_le_bytes(field(bytes, at)))
}

fn is_log_mass(value: f32) -> bool {
    value <= 0.0
}

/// Where rows are unpacked to; `k` entries, one tail and all temperatures for each.
#[derive(Debug)]
pub struct Target<'a, I> {
    /// `[rows, k]`.
    pub ids: &'a mut [I],
    /// `[rows, k]`.
    pub log_probs: &'a mut [f32],
    /// `[rows]`.
    pub tail: &'a mut [f32],
    /// `[rows, temperatures]`.
    pub partitions: &'a mut [f32],
}

/// Unpacks rows that lie one after the other; the plain form, which defines the meaning.
///
/// # Errors
/// The first row whose bytes no encoder writes. What lies in `target` then is undefined.
pub fn unpack_reference<I: Id>(layout: &RowLayout, bytes: &[u8], target: &mut Target<'_, I>) -> Result<(), Defect> {
    let count = layout.temperatures.len();
    for (row, packed) in bytes.chunks_exact(layout.row_bytes).enumerate() {
        let entries = row * layout.k..(row + 1) * layout.k;
        reference_entries(layout, packed, &mut target.ids[entries.clone()], &mut target.log_probs[entries])
            .and_then(|()| rest(layout, packed, &mut target.tail[row], &mut target.partitions[row * count..][..count]))
            .map_err(|(offset, reason)| Defect { row, offset, reason })?;
    }
    Ok(())
}

/// As [`unpack_reference`], by the widest way that this machine has; the same bits.
///
/// # Errors
/// As [`unpack_reference`].
pub fn unpack_rows<I: Id>(layout: &RowLayout, bytes: &[u8], target: &mut Target<'_, I>) -> Result<(), Defect> {
    #[cfg(target_arch = "x86_64")]
    if let Some(groups) = &layout.groups {
        return super::unpack_avx2::rows(layout, groups, bytes, target);
    }
    unpack_reference(layout, bytes, target)
}

/// Ids and log-probabilities of one row.
pub(super) fn reference_entries<I: Id>(
    layout: &RowLayout,
    packed: &[u8],
    ids: &mut [I],
    log_probs: &mut [f32],
) -> Result<(), (usize, &'static str)> {
    let mask = (1u64 << layout.id_bits) - 1;
    for (index, target) in ids.iter_mut().enumerate() {
        let bit = index * layout.id_bits;
        let mut word = [0; 8];
        let field = &packed[bit / 8..layout.codes_at.min(bit / 8 + 8)];
        word[..field.len()].copy_from_slice(field);
        let id = (u64::from_le_bytes(word) >> (bit % 8) & mask) as u32;
        if id >= layout.vocabulary {
            return Err((bit / 8, BAD_ID));
        }
        *target = I::from_id(id);
    }
    if layout.k == 0 {
        return Ok(());
    }
    if layout.code == LogProbCode::Half {
        for (index, target) in log_probs.iter_mut().enumerate() {
            *target = half_at(packed, layout.codes_at + 2 * index);
            if !is_log_mass(*target) {
                return Err((layout.codes_at + 2 * index, BAD_LOG_PROB));
            }
        }
        return Ok(());
    }
    let (top, scale) = head(layout, packed)?;
    let mut steps = 0u32;
    let mut present = true;
    for (index, target) in log_probs.iter_mut().enumerate() {
        let code = if index == 0 { 0 } else { packed[layout.codes_at + index - 1] };
        present &= code != NOTHING;
        steps += u32::from(code);
        *target = if present { top - scale * steps as f32 } else { f32::NEG_INFINITY };
    }
    Ok(())
}

/// The top's log-probability and the scale of the steps.
#[inline(always)]
pub(super) fn head(layout: &RowLayout, packed: &[u8]) -> Result<(f32, f32), (usize, &'static str)> {
    let (top, scale) = (f32_at(packed, layout.head_at), half_at(packed, layout.head_at + 4));
    if !is_log_mass(top) {
        return Err((layout.head_at, BAD_LOG_PROB));
    }
    if !(0.0..f32::INFINITY).contains(&scale) {
        return Err((layout.head_at + 4, BAD_SCALE));
    }
    Ok((top, scale))
}

/// Tail and log-partitions of one row.
#[inline(always)]
pub(super) fn rest(
    layout: &RowLayout,
    packed: &[u8],
    tail: &mut f32,
    partitions: &mut [f32],
) -> Result<(), (usize, &'static str)> {
    *tail = if layout.k == 0 { 0.0 } else { half_at(packed, layout.tail_at) };
    if !is_log_mass(*tail) {
        return Err((layout.tail_at, BAD_TAIL));
    }
    partitions_at(layout, packed, partitions)
}

/// Log-partitions of one row; the first is that of temperature 1, which is 0.
#[inline(always)]
pub(super) fn partitions_at(
    layout: &RowLayout,
    packed: &[u8],
    partitions: &mut [f32],
) -> Result<(), (usize, &'static str)> {
    partitions[0] = 0.0;
    for (index, target) in partitions[1..].iter_mut().enumerate() {
        let at = layout.partitions_at + 4 * index;
        *target = f32_at(packed, at);
        if !target.is_finite() {
            return Err((at, BAD_PARTITION));
        }
    }
    Ok(())
}

/// The sampled token of one row and its log-probability.
///
/// # Errors
/// First bad byte, and why.
pub(super) fn sampled(layout: &RowLayout, packed: &[u8]) -> Result<(u32, f32), (usize, &'static str)> {
    let mut word = [0; 4];
    word[..layout.sampled_id_bytes]
        .copy_from_slice(&packed[layout.sampled_at..layout.sampled_at + layout.sampled_id_bytes]);
    let id = u32::from_le_bytes(word);
    let at = layout.sampled_at + layout.sampled_id_bytes;
    let log_prob = f32_at(packed, at);
    if id >= layout.vocabulary {
        return Err((layout.sampled_at, BAD_ID));
    }
    if !is_log_mass(log_prob) {
        return Err((at, BAD_LOG_PROB));
    }
    Ok((id, log_prob))
}
