//! Entries of a row, eight at a time.
//!
//! Eight ids of b bits take b bytes, so every group has the same shape: two loads of 16 bytes, at the first and at the fifth
//! id, one shuffle that brings each id's four bytes together, one shift by the bits before it, one mask. An id of 24 bits,
//! the most there are, lies within four bytes whatever bit it begins at. The steps of a group are added up by three shifted
//! sums.

use std::arch::x86_64::*;
use std::sync::atomic::{AtomicU8, Ordering};

use super::layout::{LogProbCode, RowLayout};
use super::pack::NOTHING;
use super::unpack::{Id, head};

/// Ids of a group.
const GROUP: usize = 8;

/// Whether this machine and layout take the fast way.
pub(super) fn serves(layout: &RowLayout) -> bool {
    static KNOWN: AtomicU8 = AtomicU8::new(0);
    let machine = match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
            KNOWN.store(1 + u8::from(found), Ordering::Relaxed);
            found
        }
        known => known == 2,
    };
    machine && layout.k >= GROUP && layout.id_bits <= 24 && reach(layout) <= layout.row_bytes
}

/// Where the last load of ids ends: at most at the row's end, or the row is too short for the fast way.
fn reach(layout: &RowLayout) -> usize {
    let groups = layout.k / GROUP;
    (groups - 1) * layout.id_bits + layout.id_bits / 2 + 16
}

/// Fills ids and log-probabilities. False if the row needs the plain way: it is damaged, or has entries without
/// probability.
///
/// # Panics
/// If `packed` is no row of the layout, or `ids` and `log_probs` do not have `k` elements; only after [`serves`].
#[inline(always)]
pub(super) fn entries<I: Id>(layout: &RowLayout, packed: &[u8], ids: &mut [I], log_probs: &mut [f32]) -> bool {
    assert!(packed.len() == layout.row_bytes && ids.len() == layout.k && log_probs.len() == layout.k);
    // SAFETY: `serves` detected the features and that every load of ids ends within the row; the lengths were just compared.
    unsafe { entries_avx2(layout, packed, ids, log_probs) }
}

/// # Safety
/// The machine has AVX2 and F16C; `packed` is a row of `layout`, which [`serves`]; `ids` and `log_probs` have `k` elements.
#[target_feature(enable = "avx2,f16c")]
unsafe fn entries_avx2<I: Id>(layout: &RowLayout, packed: &[u8], ids: &mut [I], log_probs: &mut [f32]) -> bool {
    let bits = layout.id_bits;
    let groups = layout.k / GROUP;
    let half = bits / 2;
    // Of an odd number of bits the fifth id begins in the middle of a byte.
    let start = |id: usize| if id < 4 { id * bits } else { (id - 4) * bits + (4 * bits) % 8 };
    let mut shuffle = [0i8; 32];
    let mut shifts = [0i32; 8];
    for id in 0..GROUP {
        let first = (start(id) / 8) as i8;
        for byte in 0..4 {
            shuffle[4 * id + byte as usize] = first + byte;
        }
        shifts[id] = (start(id) % 8) as i32;
    }
    // SAFETY: both arrays have 32 bytes.
    let (shuffle, shifts) =
        unsafe { (_mm256_loadu_si256(shuffle.as_ptr().cast()), _mm256_loadu_si256(shifts.as_ptr().cast())) };
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
    for index in groups * GROUP..layout.k {
        let bit = index * bits;
        let mut word = [0; 4];
        let field = &packed[bit / 8..layout.row_bytes.min(bit / 8 + 4)];
        word[..field.len()].copy_from_slice(field);
        let id = u32::from_le_bytes(word) >> (bit % 8) & ((1 << bits) - 1);
        sound &= id < layout.vocabulary;
        ids[index] = I::from_id(id);
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
fn all_at_most(values: __m256i, bound: u32) -> bool {
    // Ids are below 2^24, so the signed comparison is the unsigned one.
    let above = _mm256_cmpgt_epi32(values, _mm256_set1_epi32(bound as i32));
    _mm256_testz_si256(above, above) == 1
}

/// # Safety
/// As [`entries_avx2`].
#[target_feature(enable = "avx2,f16c")]
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
/// As [`entries_avx2`].
#[target_feature(enable = "avx2,f16c")]
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
