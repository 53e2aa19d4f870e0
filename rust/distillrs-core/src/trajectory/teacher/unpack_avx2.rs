//! Entries of a row, eight at a time.
//!
//! Eight ids of b bits take b bytes, so every group has the same shape: two loads of 16 bytes, at the first and at the fifth
//! id, one shuffle that brings each id's four bytes together, one shift by the bits before it, one mask. An id of 24 bits,
//! the most there are, lies within four bytes whatever bit it begins at. The steps of a group are added up by three shifted
//! sums.

use std::arch::x86_64::*;

use super::layout::{Groups, LogProbCode, RowLayout};
use super::pack::NOTHING;
use super::unpack::{Defect, Id, Target, half_at, partitions_at, reference_entries, rest};
use crate::host::Level;

/// Ids of a group.
const GROUP: usize = 8;

/// What the fast way needs; `None` if this machine or layout does not take it.
pub(super) fn groups(layout: &RowLayout) -> Option<Groups> {
    let bits = layout.id_bits;
    if Level::here() == Level::Portable || layout.k < GROUP || bits > 24 || reach(layout) > layout.row_bytes {
        return None;
    }
    let mut groups = Groups { shuffle: [0; 32], shifts: [0; 8] };
    for id in 0..GROUP {
        // The fifth id begins the second load; of an odd number of bits in the middle of its first byte.
        let start = if id < 4 { id * bits } else { (id - 4) * bits + (4 * bits) % 8 };
        for byte in 0..4 {
            groups.shuffle[4 * id + byte] = (start / 8 + byte) as i8;
        }
        groups.shifts[id] = (start % 8) as i32;
    }
    Some(groups)
}

/// Where the last load of ids ends: at most at the row's end, or the row is too short for the fast way.
fn reach(layout: &RowLayout) -> usize {
    (layout.k / GROUP - 1) * layout.id_bits + layout.id_bits / 2 + 16
}

/// As [`super::unpack::unpack_reference`].
///
/// # Panics
/// If `groups` is not the layout's own, or `target` has fewer rows than `bytes`.
pub(super) fn rows<I: Id>(
    layout: &RowLayout,
    groups: &Groups,
    bytes: &[u8],
    target: &mut Target<'_, I>,
) -> Result<(), Defect> {
    assert!(layout.groups.as_ref() == Some(groups), "groups of another layout");
    // SAFETY: the layout has groups only at a level with the features, and every load of ids ends within the row.
    unsafe { rows_avx2(layout, groups, bytes, target) }
}

/// # Safety
/// The machine has AVX2 and F16C, and `groups` are those of `layout`.
#[target_feature(enable = "avx2,f16c")]
unsafe fn rows_avx2<I: Id>(
    layout: &RowLayout,
    groups: &Groups,
    bytes: &[u8],
    target: &mut Target<'_, I>,
) -> Result<(), Defect> {
    // SAFETY: both arrays have 32 bytes.
    let (shuffle, shifts) = unsafe {
        (_mm256_loadu_si256(groups.shuffle.as_ptr().cast()), _mm256_loadu_si256(groups.shifts.as_ptr().cast()))
    };
    let count = layout.temperatures.len();
    let rows = bytes.chunks_exact(layout.row_bytes);
    let ids = target.ids.chunks_exact_mut(layout.k);
    let log_probs = target.log_probs.chunks_exact_mut(layout.k);
    let tails = target.tail.iter_mut().zip(target.partitions.chunks_exact_mut(count));
    for (row, (((packed, ids), log_probs), (tail, partitions))) in rows.zip(ids).zip(log_probs).zip(tails).enumerate() {
        // SAFETY: the caller's promises; `packed` is a row, and both slices have `k` elements.
        let fast = unsafe {
            let above = unpack_ids(layout, shuffle, shifts, packed, ids);
            match layout.code {
                LogProbCode::Half => halves(layout, packed, above, log_probs, tail),
                LogProbCode::Steps => steps(layout, packed, above, log_probs, tail),
            }
        };
        // What the fast way does not settle is told apart by the plain one.
        let settled = if fast {
            partitions_at(layout, packed, partitions)
        } else {
            reference_entries(layout, packed, ids, log_probs).and_then(|()| rest(layout, packed, tail, partitions))
        };
        settled.map_err(|(offset, reason)| Defect { row, offset, reason })?;
    }
    Ok(())
}

/// Fills the ids of a row. Not 0 in any lane if one is beyond the vocabulary.
///
/// # Safety
/// As [`rows_avx2`]; `packed` is a row of `layout`; `ids` has `k` elements.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn unpack_ids<I: Id>(
    layout: &RowLayout,
    shuffle: __m256i,
    shifts: __m256i,
    packed: &[u8],
    ids: &mut [I],
) -> __m256i {
    let bits = layout.id_bits;
    let half = bits / 2;
    let mask = _mm256_set1_epi32((1i32 << bits) - 1);
    let mut largest = _mm256_setzero_si256();
    let (wholes, rest) = ids.as_chunks_mut::<GROUP>();
    for (group, target) in wholes.iter_mut().enumerate() {
        let at = packed.as_ptr().wrapping_add(group * bits);
        // SAFETY: the last group's second load ends at `reach`, which lies within the row.
        let words = unsafe {
            _mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(_mm_loadu_si128(at.cast())),
                _mm_loadu_si128(at.wrapping_add(half).cast()),
            )
        };
        let found = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(words, shuffle), shifts), mask);
        largest = _mm256_max_epu32(largest, found);
        let target = target.as_mut_ptr();
        if I::BYTES == 4 {
            // SAFETY: eight elements of four bytes.
            unsafe { _mm256_storeu_si256(target.cast(), found) };
        } else {
            let low = _mm256_cvtepu32_epi64(_mm256_castsi256_si128(found));
            let high = _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<1>(found));
            // SAFETY: eight elements of eight bytes.
            unsafe {
                _mm256_storeu_si256(target.cast(), low);
                _mm256_storeu_si256(target.wrapping_add(4).cast(), high);
            }
        }
    }
    if !rest.is_empty() {
        let highest = rest_of_ids(layout, packed, rest);
        largest = _mm256_max_epu32(largest, _mm256_set1_epi32(highest as i32));
    }
    // Ids are below 2^24, so the signed comparison is the unsigned one.
    _mm256_cmpgt_epi32(largest, _mm256_set1_epi32((layout.vocabulary - 1) as i32))
}

/// Fills the ids behind the last group, and gives the largest of them; apart, because the registers that it takes would be
/// missing in the loop over rows.
#[inline(never)]
fn rest_of_ids<I: Id>(layout: &RowLayout, packed: &[u8], rest: &mut [I]) -> u32 {
    let (bits, done) = (layout.id_bits, layout.k - rest.len());
    let mut largest = 0;
    for (index, target) in rest.iter_mut().enumerate() {
        let bit = (done + index) * bits;
        let mut word = [0; 4];
        let field = &packed[bit / 8..layout.row_bytes.min(bit / 8 + 4)];
        word[..field.len()].copy_from_slice(field);
        let id = u32::from_le_bytes(word) >> (bit % 8) & ((1 << bits) - 1);
        largest = largest.max(id);
        *target = I::from_id(id);
    }
    largest
}

/// Fills log-probabilities and tail of a row. False if it needs the plain way: it is damaged.
///
/// # Safety
/// As [`rows_avx2`]; `packed` is a row of `layout`; `log_probs` has `k` elements.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn halves(layout: &RowLayout, packed: &[u8], above: __m256i, log_probs: &mut [f32], tail: &mut f32) -> bool {
    let mut sound = _mm256_testz_si256(above, above) == 1;
    let (wholes, rest) = log_probs.as_chunks_mut::<GROUP>();
    for (group, target) in wholes.iter_mut().enumerate() {
        let at = packed.as_ptr().wrapping_add(layout.codes_at + group * GROUP * 2);
        // SAFETY: 16 bytes of the codes, which are 2 k bytes of the row; eight elements.
        unsafe {
            let values = _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            let fits = _mm256_cmp_ps::<_CMP_LE_OQ>(values, _mm256_setzero_ps());
            sound &= _mm256_movemask_ps(fits) == 0xFF;
            _mm256_storeu_ps(target.as_mut_ptr(), values);
        }
    }
    let done = layout.k - rest.len();
    for (index, target) in rest.iter_mut().enumerate() {
        *target = half_at(packed, layout.codes_at + 2 * (done + index));
        sound &= *target <= 0.0;
    }
    *tail = half_at(packed, layout.tail_at);
    sound && *tail <= 0.0
}

/// Fills log-probabilities and tail of a row. False if it needs the plain way: it is damaged, or has entries without
/// probability.
///
/// # Safety
/// As [`rows_avx2`]; `packed` is a row of `layout`; `log_probs` has `k` elements.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn steps(layout: &RowLayout, packed: &[u8], above: __m256i, log_probs: &mut [f32], tail: &mut f32) -> bool {
    // The tail's log-mass lies behind the scale.
    let mut word = [0; 8];
    word.copy_from_slice(&packed[layout.head_at..layout.head_at + 8]);
    let word = u64::from_le_bytes(word);
    let top = f32::from_bits(word as u32);
    let pair = _mm_cvtph_ps(_mm_cvtsi64_si128((word >> 32) as i64));
    let scale = _mm_cvtss_f32(pair);
    *tail = _mm_cvtss_f32(_mm_movehdup_ps(pair));
    let sound = (top <= 0.0) & (*tail <= 0.0) & (0.0..f32::INFINITY).contains(&scale);
    let (tops, scales) = (_mm256_set1_ps(top), _mm256_set1_ps(scale));
    let last = _mm256_set1_epi32(7);
    let mut carry = _mm256_setzero_si256();
    let mut largest = _mm_setzero_si128();
    // The first entry has no step; in its place is the last byte of the ids.
    let mut present = _mm_set_epi16(-1, -1, -1, -1, -1, -1, -1, 0);
    let (wholes, rest) = log_probs.as_chunks_mut::<GROUP>();
    for (group, target) in wholes.iter_mut().enumerate() {
        let at = packed.as_ptr().wrapping_add(layout.codes_at + group * GROUP).wrapping_sub(1);
        // SAFETY: the ids have at least one byte, so eight bytes from the one before the codes end within the k - 1 codes.
        let codes = _mm_and_si128(_mm_cvtepu8_epi16(unsafe { _mm_loadl_epi64(at.cast()) }), present);
        present = _mm_set1_epi16(-1);
        largest = _mm_max_epi16(largest, codes);
        // Eight steps add up to less than 2^11.
        let sums = _mm_add_epi16(codes, _mm_slli_si128::<2>(codes));
        let sums = _mm_add_epi16(sums, _mm_slli_si128::<4>(sums));
        let sums = _mm_add_epi16(sums, _mm_slli_si128::<8>(sums));
        let sums = _mm256_add_epi32(_mm256_cvtepu16_epi32(sums), carry);
        carry = _mm256_permutevar8x32_epi32(sums, last);
        let values = _mm256_sub_ps(tops, _mm256_mul_ps(scales, _mm256_cvtepi32_ps(sums)));
        // SAFETY: eight elements.
        unsafe { _mm256_storeu_ps(target.as_mut_ptr(), values) };
    }
    let nothing = _mm_cmpeq_epi16(largest, _mm_set1_epi16(i16::from(NOTHING)));
    let odd = _mm256_or_si256(above, _mm256_zextsi128_si256(nothing));
    let mut whole = _mm256_testz_si256(odd, odd) == 1;
    if !rest.is_empty() {
        whole &= rest_of_steps(layout, packed, (top, scale), _mm256_cvtsi256_si32(carry) as u32, rest);
    }
    sound & whole
}

/// Fills the log-probabilities behind the last group; false if one is nothing.
#[inline(never)]
fn rest_of_steps(
    layout: &RowLayout,
    packed: &[u8],
    (top, scale): (f32, f32),
    mut total: u32,
    rest: &mut [f32],
) -> bool {
    let done = layout.k - rest.len();
    let mut whole = true;
    for (&code, target) in packed[layout.codes_at + done - 1..].iter().zip(rest) {
        whole &= code != NOTHING;
        total += u32::from(code);
        *target = top - scale * total as f32;
    }
    whole
}
