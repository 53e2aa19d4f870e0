//! Entries of a row, eight at a time.
//!
//! Eight ids of b bits take b bytes, so every group has the same shape: two loads of 16 bytes, at the first and at the fifth
//! id, one shuffle that brings each id's four bytes together, one shift by the bits before it, one mask. An id of 24 bits,
//! the most there are, lies within four bytes whatever bit it begins at. The steps of a group are added up by three shifted
//! sums.

use std::arch::x86_64::*;

use super::layout::{Groups, LogProbCode, RowLayout};
use super::pack::NOTHING;
use super::unpack::{Defect, Id, Target, head, reference_entries, rest};

/// Ids of a group.
const GROUP: usize = 8;

/// What the fast way needs; `None` if this machine or layout does not take it.
pub(super) fn groups(layout: &RowLayout) -> Option<Groups> {
    let bits = layout.id_bits;
    let machine = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
    if !machine || layout.k < GROUP || bits > 24 || reach(layout) > layout.row_bytes {
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
    // SAFETY: the layout has groups only if the features were detected and every load of ids ends within the row.
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
    for (row, packed) in bytes.chunks_exact(layout.row_bytes).enumerate() {
        let place = row * layout.k..(row + 1) * layout.k;
        let (ids, log_probs) = (&mut target.ids[place.clone()], &mut target.log_probs[place]);
        // SAFETY: the caller's promises; `packed` is a row, and both slices have `k` elements.
        let fast = unsafe { entries(layout, groups, packed, ids, log_probs) };
        // What the fast way does not settle is told apart by the plain one.
        let settled = if fast { Ok(()) } else { reference_entries(layout, packed, ids, log_probs) };
        settled
            .and_then(|()| rest(layout, packed, row, target.tail, target.partitions))
            .map_err(|(offset, reason)| Defect { row, offset, reason })?;
    }
    Ok(())
}

/// Fills ids and log-probabilities. False if the row needs the plain way: it is damaged, or has entries without
/// probability.
///
/// # Safety
/// As [`rows_avx2`]; `packed` is a row of `layout`; `ids` and `log_probs` have `k` elements.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn entries<I: Id>(
    layout: &RowLayout,
    plan: &Groups,
    packed: &[u8],
    ids: &mut [I],
    log_probs: &mut [f32],
) -> bool {
    let bits = layout.id_bits;
    let groups = layout.k / GROUP;
    let half = bits / 2;
    // SAFETY: both arrays have 32 bytes.
    let (shuffle, shifts) =
        unsafe { (_mm256_loadu_si256(plan.shuffle.as_ptr().cast()), _mm256_loadu_si256(plan.shifts.as_ptr().cast())) };
    let mask = _mm256_set1_epi32((1i32 << bits) - 1);
    let mut largest = _mm256_setzero_si256();
    for group in 0..groups {
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
        let target = ids.as_mut_ptr().wrapping_add(group * GROUP);
        if I::BYTES == 4 {
            // SAFETY: eight elements of four bytes; the group ends within `k`.
            unsafe { _mm256_storeu_si256(target.cast(), found) };
        } else {
            let low = _mm256_cvtepu32_epi64(_mm256_castsi256_si128(found));
            let high = _mm256_cvtepu32_epi64(_mm256_extracti128_si256::<1>(found));
            // SAFETY: eight elements of eight bytes; the group ends within `k`.
            unsafe {
                _mm256_storeu_si256(target.cast(), low);
                _mm256_storeu_si256(target.wrapping_add(4).cast(), high);
            }
        }
    }
    let mut sound = all_at_most(largest, layout.vocabulary - 1);
    for (index, target) in ids.iter_mut().enumerate().skip(groups * GROUP) {
        let bit = index * bits;
        let mut word = [0; 4];
        let field = &packed[bit / 8..layout.row_bytes.min(bit / 8 + 4)];
        word[..field.len()].copy_from_slice(field);
        let id = u32::from_le_bytes(word) >> (bit % 8) & ((1 << bits) - 1);
        sound &= id < layout.vocabulary;
        *target = I::from_id(id);
    }
    if !sound {
        return false;
    }
    match layout.code {
        // SAFETY: the caller's promises are those that these ask for.
        LogProbCode::Half => unsafe { halves(layout, packed, log_probs) },
        // SAFETY: as above.
        LogProbCode::Steps => unsafe { steps(layout, packed, log_probs) },
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn all_at_most(values: __m256i, bound: u32) -> bool {
    // Ids are below 2^24, so the signed comparison is the unsigned one.
    let above = _mm256_cmpgt_epi32(values, _mm256_set1_epi32(bound as i32));
    _mm256_testz_si256(above, above) == 1
}

/// # Safety
/// As [`entries`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn halves(layout: &RowLayout, packed: &[u8], log_probs: &mut [f32]) -> bool {
    let groups = layout.k / GROUP;
    let mut sound = true;
    for group in 0..groups {
        let at = packed.as_ptr().wrapping_add(layout.codes_at + group * GROUP * 2);
        // SAFETY: 16 bytes of the codes, which are 2 k bytes of the row; eight elements below `k`.
        unsafe {
            let values = _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            let fits = _mm256_cmp_ps::<_CMP_LE_OQ>(values, _mm256_setzero_ps());
            sound &= _mm256_movemask_ps(fits) == 0xFF;
            _mm256_storeu_ps(log_probs.as_mut_ptr().wrapping_add(group * GROUP), values);
        }
    }
    for (index, target) in log_probs.iter_mut().enumerate().skip(groups * GROUP) {
        *target = super::unpack::half_at(packed, layout.codes_at + 2 * index);
        sound &= *target <= 0.0;
    }
    sound
}

/// # Safety
/// As [`entries`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn steps(layout: &RowLayout, packed: &[u8], log_probs: &mut [f32]) -> bool {
    let Ok((top, scale)) = head(layout, packed) else { return false };
    let groups = layout.k / GROUP;
    let (tops, scales) = (_mm256_set1_ps(top), _mm256_set1_ps(scale));
    let (last, nothing) = (_mm256_set1_epi32(7), _mm256_set1_epi32(i32::from(NOTHING)));
    let mut carry = _mm256_setzero_si256();
    let mut gone = _mm256_setzero_si256();
    // The first entry has no step; in its place is the last byte of the ids.
    let mut present = _mm256_set_epi32(-1, -1, -1, -1, -1, -1, -1, 0);
    for group in 0..groups {
        let at = packed.as_ptr().wrapping_add(layout.codes_at + group * GROUP).wrapping_sub(1);
        // SAFETY: the ids have at least one byte, so eight bytes from the one before the codes end within the k - 1 codes.
        let codes = _mm256_and_si256(_mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }), present);
        present = _mm256_set1_epi32(-1);
        gone = _mm256_or_si256(gone, _mm256_cmpeq_epi32(codes, nothing));
        let sums = _mm256_add_epi32(codes, _mm256_slli_si256::<4>(codes));
        let sums = _mm256_add_epi32(sums, _mm256_slli_si256::<8>(sums));
        let lower = _mm256_shuffle_epi32::<0xFF>(_mm256_permute2x128_si256::<0x08>(sums, sums));
        let sums = _mm256_add_epi32(_mm256_add_epi32(sums, lower), carry);
        carry = _mm256_permutevar8x32_epi32(sums, last);
        let values = _mm256_sub_ps(tops, _mm256_mul_ps(scales, _mm256_cvtepi32_ps(sums)));
        // SAFETY: eight elements below `k`.
        unsafe { _mm256_storeu_ps(log_probs.as_mut_ptr().wrapping_add(group * GROUP), values) };
    }
    let mut total = _mm256_cvtsi256_si32(carry) as u32;
    let mut whole = _mm256_testz_si256(gone, gone) == 1;
    for (index, target) in log_probs.iter_mut().enumerate().skip(groups * GROUP) {
        let code = packed[layout.codes_at + index - 1];
        whole &= code != NOTHING;
        total += u32::from(code);
        *target = top - scale * total as f32;
    }
    whole
}
