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
    };
}

#[derive(Clone, Copy)]
pub struct Avx512(__m512);

impl Vector for Avx512 {
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

    #[test]
    fn functions_keep_their_errors() {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx2,fma,f16c")]
        fn avx512() {
            // SAFETY: the features are there.
            unsafe { check::<super::Avx512>() };
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2() {
            // SAFETY: the features are there.
            unsafe { check::<super::Avx2>() };
        }

        if super::super::Level::avx512() {
            // SAFETY: just detected.
            unsafe { avx512() };
        }
        if super::super::Level::avx2() {
            // SAFETY: just detected.
            unsafe { avx2() };
        }
    }
}
