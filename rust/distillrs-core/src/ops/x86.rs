//! Vectors of AVX-512 and of AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::portable::TWO_THIRDS;
use super::vector::{SMALLEST, Vector};

/// Defines what differs in names only.
macro_rules! same_but_names {
    ($width:literal, $add:ident, $sub:ident, $mul:ident, $div:ident, $fma:ident, $max:ident, $load:ident, $store:ident, $spread:ident) => {
        const LANES: usize = $width;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $spread(value) })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $load(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { $store(to, self.0) };
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $add(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $sub(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $mul(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $div(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn fma(self, factor: Self, term: Self) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $fma(self.0, factor.0, term.0) })
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: the caller's promise.
            Self(unsafe { $max(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn prefetch(address: *const u8) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }

        #[inline(always)]
        unsafe fn prefetch_far(address: *const u8) {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
        }
    };
}

/// Bits of a number c near the inverse of each 32nd of [1, 2), so that `m c` is within 1/32 of 1; 1 for the first and 1/2
/// for the last, so that logarithms near 1 keep their digits.
const INVERSES: [i32; 32] = [
    0x3f80_0000,
    0x3f74_8ac4,
    0x3f6d_7493,
    0x3f66_c128,
    0x3f60_6eb0,
    0x3f5a_7598,
    0x3f54_c77a,
    0x3f4f_62e7,
    0x3f4a_4588,
    0x3f45_674c,
    0x3f40_bfe9,
    0x3f3c_50e1,
    0x3f38_1708,
    0x3f34_0c80,
    0x3f30_2d61,
    0x3f2c_7683,
    0x3f28_e71c,
    0x3f25_7db5,
    0x3f22_37d3,
    0x3f1f_10c5,
    0x3f1c_0889,
    0x3f19_1dae,
    0x3f16_5136,
    0x3f13_9b36,
    0x3f10_fec1,
    0x3f0e_7734,
    0x3f0c_0769,
    0x3f09_adda,
    0x3f07_68f6,
    0x3f05_351f,
    0x3f03_1371,
    0x3f00_0000,
];

/// Bits of `-log c`. Each c was chosen, among those near, for a logarithm that single precision has to 1e-11.
const LOGS: [i32; 32] = [
    0x0000_0000,
    0x3d3b_8e75,
    0x3d9a_0149,
    0x3dd4_a127,
    0x3e06_c2f1,
    0x3e22_6223,
    0x3e3d_5c4d,
    0x3e57_a5f6,
    0x3e71_383b,
    0x3e85_153a,
    0x3e91_4c4d,
    0x3e9d_367f,
    0x3ea8_d55e,
    0x3eb4_32b5,
    0x3ebf_53e0,
    0x3eca_3ccc,
    0x3ed4_ead8,
    0x3edf_5d85,
    0x3ee9_97c2,
    0x3ef3_a419,
    0x3efd_7ec3,
    0x3f03_9454,
    0x3f08_4d4d,
    0x3f0c_f604,
    0x3f11_87ba,
    0x3f16_091e,
    0x3f1a_73b9,
    0x3f1e_c8d2,
    0x3f23_09ed,
    0x3f27_3ca9,
    0x3f2b_5dd6,
    0x3f31_7218,
];

/// Whether the instructions of AVX-512 that round to bfloat16 are there too is in its type.
#[derive(Clone, Copy)]
pub struct Avx512<const ROUNDS: bool = false>(__m512);

impl<const ROUNDS: bool> Vector for Avx512<ROUNDS> {
    same_but_names!(
        16,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_div_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_set1_ps
    );

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves)))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        if ROUNDS {
            // SAFETY: the caller's promise, which this type extends to AVX512-BF16; both types are 32 bytes of bits.
            unsafe {
                _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self.0)))
            };
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let no_number = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let kept = _mm512_mask_mov_epi32(rounded, no_number, quiet);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept)));
        }
    }

    #[inline(always)]
    unsafe fn load_two_bf16(from: *const u16) -> [Self; 2] {
        // A bfloat16 is the upper half of its f32.
        // SAFETY: the caller's promise.
        unsafe {
            let both = _mm512_loadu_si512(from.cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(!0xffff));
            [Self(_mm512_castsi512_ps(odd)), Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) };
    }

    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        // 14 bits and one step of Newton's: a division would keep the port busy for 16 cycles.
        // SAFETY: the caller's promise.
        unsafe {
            let guess = _mm512_rcp14_ps(self.0);
            let error = _mm512_fnmadd_ps(self.0, guess, _mm512_set1_ps(1.0));
            Self(_mm512_fmadd_ps(guess, error, guess))
        }
    }

    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // The fraction is one instruction here, and scaling takes the floor by itself: the polynomial is that of [0, 1).
        // SAFETY: the caller's promise.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, _mm512_set1_ps(SMALLEST));
            let f = Self(_mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(self.0));
            let value = Self::splat(0.001877576)
                .fma(f, Self::splat(0.008989342))
                .fma(f, Self::splat(0.055826318))
                .fma(f, Self::splat(0.24015361))
                .fma(f, Self::splat(0.6931531))
                .fma(f, Self::splat(0.99999994));
            Self(_mm512_maskz_scalef_ps(keep, value.0, self.0))
        }
    }

    #[inline(always)]
    unsafe fn log(self) -> Self {
        // Two lookups in registers take the place of five terms: with x = m 2^k and c near 1 / m, log x is
        // k log 2 - log c + log(1 + y), y = m c - 1. The polynomial's error is 8e-9 of y.
        // SAFETY: the caller's promise; the tables hold two vectors each.
        unsafe {
            // No closures: they would be compiled without the instructions.
            let low = _mm512_castsi512_ps(_mm512_loadu_si512(INVERSES.as_ptr().cast()));
            let high = _mm512_castsi512_ps(_mm512_loadu_si512(INVERSES.as_ptr().add(16).cast()));
            let low_log = _mm512_castsi512_ps(_mm512_loadu_si512(LOGS.as_ptr().cast()));
            let high_log = _mm512_castsi512_ps(_mm512_loadu_si512(LOGS.as_ptr().add(16).cast()));
            // The first five bits of the mantissa; those above are not looked at.
            let index = _mm512_srli_epi32::<18>(_mm512_castps_si512(self.0));
            let mantissa = Self(_mm512_getmant_ps::<_MM_MANT_NORM_1_2, _MM_MANT_SIGN_SRC>(self.0));
            let exponent = Self(_mm512_getexp_ps(self.0));
            let inverse = Self(_mm512_permutex2var_ps(low, index, high));
            let known = Self(_mm512_permutex2var_ps(low_log, index, high_log));
            let y = mantissa.fma(inverse, Self::splat(-1.0));
            let slope = Self::splat(-0.243_980_41).fma(y, Self::splat(0.333_366_33)).fma(y, Self::splat(-0.500_001_2));
            let slope = slope.fma(y, Self::splat(1.0));
            slope.fma(y, exponent.fma(Self::splat(std::f32::consts::LN_2), known))
        }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    unsafe fn scale(self, exponent: Self) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm512_scalef_ps(self.0, exponent.0) })
    }

    #[inline(always)]
    unsafe fn zero_below(self, by: Self, bound: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(by.0, bound.0);
            Self(_mm512_maskz_mov_ps(keep, self.0))
        }
    }

    #[inline(always)]
    unsafe fn where_above(self, by: Self, bound: Self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(by.0, bound.0);
            Self(_mm512_mask_mov_ps(other.0, above, self.0))
        }
    }

    #[inline(always)]
    unsafe fn zero_without(self, weight: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(weight.0, _mm512_setzero_ps());
            Self(_mm512_maskz_mov_ps(keep, self.0))
        }
    }

    #[inline(always)]
    unsafe fn fma_unless_zero(self, factor: Self, term: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let counts = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, _mm512_setzero_ps());
            Self(_mm512_mask3_fmadd_ps(self.0, factor.0, term.0, counts))
        }
    }

    #[inline(always)]
    unsafe fn split(self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let exponent = _mm512_srai_epi32::<23>(_mm512_sub_epi32(bits, _mm512_set1_epi32(TWO_THIRDS)));
            let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(self.0, self.0);
            let exponent = _mm512_maskz_mov_epi32(number, exponent);
            let mantissa = _mm512_sub_epi32(bits, _mm512_slli_epi32::<23>(exponent));
            (Self(_mm512_castsi512_ps(mantissa)), Self(_mm512_cvtepi32_ps(exponent)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

#[derive(Clone, Copy)]
pub struct Avx2(__m256);

impl Avx2 {
    #[inline(always)]
    unsafe fn pick(mask: __m256, yes: __m256, no: __m256) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm256_blendv_ps(no, yes, mask) })
    }
}

impl Vector for Avx2 {
    same_but_names!(
        8,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_div_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_set1_ps
    );

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves)))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let no_number = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let kept = Self::pick(no_number, _mm256_castsi256_ps(quiet), _mm256_castsi256_ps(rounded));
            let high = _mm256_srli_epi32::<16>(_mm256_castps_si256(kept.0));
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline(always)]
    unsafe fn load_two_bf16(from: *const u16) -> [Self; 2] {
        // A bfloat16 is the upper half of its f32.
        // SAFETY: the caller's promise.
        unsafe {
            let both = _mm256_loadu_si256(from.cast());
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(!0xffff));
            [Self(_mm256_castsi256_ps(odd)), Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) };
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    unsafe fn scale(self, exponent: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            // Not-a-number converts to 2^31, of which the shift leaves nothing: `self`, itself not a number then, stays.
            let shift = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(exponent.0));
            let scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), shift));
            Self(scaled)
        }
    }

    #[inline(always)]
    unsafe fn zero_below(self, by: Self, bound: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(by.0, bound.0), self.0)) }
    }

    #[inline(always)]
    unsafe fn where_above(self, by: Self, bound: Self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::pick(_mm256_cmp_ps::<_CMP_GT_OQ>(by.0, bound.0), self.0, other.0) }
    }

    #[inline(always)]
    unsafe fn zero_without(self, weight: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_and_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(weight.0, _mm256_setzero_ps()), self.0)) }
    }

    #[inline(always)]
    unsafe fn fma_unless_zero(self, factor: Self, term: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { self.fma(factor.zero_without(self), term) }
    }

    #[inline(always)]
    unsafe fn split(self) -> (Self, Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let exponent = _mm256_srai_epi32::<23>(_mm256_sub_epi32(bits, _mm256_set1_epi32(TWO_THIRDS)));
            let number = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_ORD_Q>(self.0, self.0));
            let exponent = _mm256_and_si256(number, exponent);
            let mantissa = _mm256_sub_epi32(bits, _mm256_slli_epi32::<23>(exponent));
            (Self(_mm256_castsi256_ps(mantissa)), Self(_mm256_cvtepi32_ps(exponent)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let quarter = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let quarter = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vector::tests::check;
    use crate::host::{Level, rounds_to_bf16};

    #[test]
    fn functions_keep_their_errors() {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma,f16c")]
        fn avx512() {
            // SAFETY: the features are there.
            unsafe { check::<super::Avx512>() };
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16,avx2,fma,f16c")]
        fn avx512_rounding() {
            // SAFETY: the features are there.
            unsafe { check::<super::Avx512<true>>() };
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2() {
            // SAFETY: the features are there.
            unsafe { check::<super::Avx2>() };
        }

        if Level::all().contains(&Level::Avx512) {
            // SAFETY: the machine has it.
            unsafe { avx512() };
        }
        if Level::all().contains(&Level::Avx512) && rounds_to_bf16() {
            // SAFETY: the machine has it.
            unsafe { avx512_rounding() };
        }
        if Level::all().contains(&Level::Avx2) {
            // SAFETY: the machine has it.
            unsafe { avx2() };
        }
    }
}
