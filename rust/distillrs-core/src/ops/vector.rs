//! Vectors of `f32`, one trait for every instruction set, and the two functions that losses need: exp2 and log.

/// A vector of `f32`.
///
/// Comparisons are ordered, and `max` gives its second operand where either is not a number, so that not-a-number is
/// never lost on the way.
///
/// # Safety
/// Every method needs the instructions that the implementation was written for; those with pointers need memory for
/// `LANES` values behind them, of any alignment.
pub trait Vector: Copy {
    /// Values in a vector.
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn store_bf16(self, to: *mut u16);
    /// Two vectors' worth of values, in whatever order takes least.
    unsafe fn load_two_bf16(from: *const u16) -> [Self; 2];
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn store_f16(self, to: *mut u16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// 1 / x for normal numbers up to 2^125, with an error of 2e-7 of itself.
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::splat(1.0).div(self) }
    }
    /// `self * factor + term`.
    unsafe fn fma(self, factor: Self, term: Self) -> Self;
    /// `self * factor + term`; `term` where `self` is 0, whatever `factor` is there.
    unsafe fn fma_unless_zero(self, factor: Self, term: Self) -> Self;
    /// The larger; `other` where either is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^exponent` for integral exponents from -126 to 127 and a result that is no subnormal number.
    unsafe fn scale(self, exponent: Self) -> Self;
    /// The value, 0 where `by` is below `bound`.
    unsafe fn zero_below(self, by: Self, bound: Self) -> Self;
    /// The value where `by` is above `bound`, else `other`.
    unsafe fn where_above(self, by: Self, bound: Self, other: Self) -> Self;
    /// The value, 0 where `weight` is 0.
    unsafe fn zero_without(self, weight: Self) -> Self;
    /// A positive normal number as `m 2^k`, m from 2/3 to 4/3, k an integer.
    unsafe fn split(self) -> (Self, Self);
    /// The sum of all values, halves first.
    unsafe fn sum(self) -> f32;
    /// The largest value.
    unsafe fn largest(self) -> f32;
    /// 2^x for x up to 126 with a relative error of 3e-7; 0 below [`SMALLEST`]; anything above 127.
    ///
    /// The polynomial has the least maximal relative error, 7.5e-8, of its degree on [-1/2, 1/2].
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bounded = Self::splat(-120.0).max(self);
            let whole = bounded.round();
            let value = exp2_fraction(bounded.sub(whole)).scale(whole);
            value.zero_below(self, Self::splat(SMALLEST))
        }
    }

    /// The natural logarithm of a positive normal number, with an error of 3e-7 of itself near 1 and of one rounding far
    /// from it.
    ///
    /// `log(1 + y) = y + y^2 Q(y)` on [-1/3, 1/3]; Q has the least maximal error relative to y, 2e-7, of its degree.
    #[inline(always)]
    unsafe fn log(self) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let (mantissa, exponent) = self.split();
            let y = mantissa.sub(Self::splat(1.0));
            let q = Self::splat(-0.156_905_03)
                .fma(y, Self::splat(0.169_925_29))
                .fma(y, Self::splat(-0.163_606_69))
                .fma(y, Self::splat(0.198_178_44))
                .fma(y, Self::splat(-0.250_105_53))
                .fma(y, Self::splat(0.333_367_47))
                .fma(y, Self::splat(-0.499_999_08));
            let low = exponent.fma(Self::splat(1.428_606_8e-6), q.mul(y.mul(y)));
            // ln 2 in two parts, the first with so few digits that its products with exponents are exact.
            exponent.fma(Self::splat(0.693_145_75), y.add(low))
        }
    }

    /// Asks for the cache line at an address, which need not exist.
    unsafe fn prefetch(address: *const u8);

    /// Asks for it in the second cache only.
    unsafe fn prefetch_far(address: *const u8);
}

/// Exponentials below this power of two of the row's reference count as 0: what they would add is far below one
/// rounding of the result, and subnormal numbers would slow every loop down.
pub const SMALLEST: f32 = -100.0;

/// 2^x with a relative error of 3e-7 up to 2^126, infinite above; 0 below 2^-120.
///
/// # Safety
/// As for the vector's methods.
#[inline(always)]
pub unsafe fn exp2_wide<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let bounded = V::splat(-120.0).max(x);
        let top = V::splat(126.0);
        // The minimum by the maximum of the negatives, which keeps not-a-number.
        let zero = V::splat(0.0);
        let bounded = zero.sub(V::splat(-126.0).max(zero.sub(bounded)));
        let whole = bounded.round();
        let value = exp2_fraction(bounded.sub(whole)).scale(whole);
        V::splat(f32::INFINITY).where_above(x, top, value.zero_below(x, V::splat(-120.0)))
    }
}

#[inline(always)]
unsafe fn exp2_fraction<V: Vector>(f: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        V::splat(0.001_327_646_7)
            .fma(f, V::splat(0.009_675_541))
            .fma(f, V::splat(0.055_507_135))
            .fma(f, V::splat(0.240_221_2))
            .fma(f, V::splat(0.693_146_94))
            .fma(f, V::splat(1.000_000_1))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    unsafe fn map<V: Vector>(values: &[f32], function: unsafe fn(V) -> V) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        for start in (0..values.len() / V::LANES).map(|index| index * V::LANES) {
            // SAFETY: the caller's promise; the range is inside.
            unsafe { function(V::load(values.as_ptr().add(start))).store(out.as_mut_ptr().add(start)) };
        }
        out
    }

    /// The functions in one instruction set against `f64`.
    ///
    /// # Safety
    /// The processor has the instructions.
    pub unsafe fn check<V: Vector>() {
        let grid: Vec<f32> = (0..1 << 16).map(|index| 126.0 - (index as f32) / 65536.0 * 225.9).collect();
        // SAFETY: the caller's promise.
        let found = unsafe { map::<V>(&grid, V::exp2) };
        for (&x, &y) in grid.iter().zip(&found) {
            let exact = f64::from(x).exp2();
            assert!((f64::from(y) - exact).abs() <= 3e-7 * exact, "2^{x} came out as {y}");
        }
        let wide: Vec<f32> = grid.iter().map(|&x| x * 1.05 - 10.0).collect();
        // SAFETY: the caller's promise.
        for (&x, &y) in wide.iter().zip(&unsafe { map::<V>(&wide, exp2_wide) }) {
            let exact = f64::from(x).exp2();
            assert!((f64::from(y) - exact).abs() <= 3e-7 * exact, "2^{x} came out as {y}");
        }
        let special = [f32::NEG_INFINITY, -101.0, f32::NAN, 0.0, -100.5, -1e30, -99.0, -0.0];
        let special: Vec<f32> = special.iter().copied().cycle().take(32).collect();
        // SAFETY: the caller's promise.
        let found = unsafe { map::<V>(&special, V::exp2) };
        assert!(found[2].is_nan() && [0, 1, 4, 5].iter().all(|&index| found[index] == 0.0));
        assert!((found[3] - 1.0).abs() <= 3e-7 && (found[7] - 1.0).abs() <= 3e-7);
        // SAFETY: the caller's promise.
        let found =
            unsafe { map::<V>(&[f32::INFINITY, 127.0, 200.0, f32::NAN, 1e9, 0.0, -1e9, 126.0].repeat(4), exp2_wide) };
        assert!(
            [0, 1, 2, 4].iter().all(|&index| found[index] == f32::INFINITY) && found[3].is_nan() && found[6] == 0.0
        );

        let powers: Vec<f32> = (0..1 << 16).map(|index| (index as f32 / 65536.0 * 252.0 - 126.0).exp2()).collect();
        // SAFETY: the caller's promise.
        for (&x, &y) in powers.iter().zip(&unsafe { map::<V>(&powers, V::log) }) {
            let exact = f64::from(x).ln();
            assert!((f64::from(y) - exact).abs() <= 3e-7 * exact.abs(), "log {x} came out as {y}");
        }
        let near: Vec<f32> = (0..1 << 16).map(|index| 1.0 + (index as f32 - 32768.0) * 1e-5).collect();
        // SAFETY: the caller's promise.
        for (&x, &y) in near.iter().zip(&unsafe { map::<V>(&near, V::log) }) {
            let exact = f64::from(x).ln();
            assert!((f64::from(y) - exact).abs() <= 3e-7 * exact.abs(), "log {x} came out as {y}");
        }
        // SAFETY: the caller's promise.
        for (&x, &y) in powers.iter().zip(&unsafe { map::<V>(&powers, V::reciprocal) }) {
            let exact = 1.0 / f64::from(x);
            assert!(x > 4e37 || (f64::from(y) - exact).abs() <= 2e-7 * exact, "1 / {x} came out as {y}");
        }
        // SAFETY: the caller's promise.
        let sum = unsafe { V::load(grid.as_ptr()).sum() };
        assert!((sum - grid[..V::LANES].iter().sum::<f32>()).abs() <= 1e-6 * sum);
        // SAFETY: the caller's promise.
        assert_eq!(unsafe { V::load(grid.as_ptr()).largest() }, grid[0]);
        let weights: Vec<f32> = [0.0, -0.0, 2.0, f32::NAN].repeat(8);
        // SAFETY: the caller's promise.
        let found = unsafe {
            let mut out = vec![0.0; V::LANES];
            V::load(weights.as_ptr())
                .fma_unless_zero(V::splat(f32::NEG_INFINITY), V::splat(3.0))
                .store(out.as_mut_ptr());
            out
        };
        assert!(found[..2] == [3.0, 3.0] && found[2] == f32::NEG_INFINITY && found[3].is_nan());
        // SAFETY: the caller's promise.
        unsafe { check_halves::<V>() };
    }

    unsafe fn check_halves<V: Vector>() {
        use super::super::{Bf16, Element, F16};
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let mut values = vec![0.0; V::LANES];
        let mut back = vec![0u16; V::LANES];
        let same = |found: f32, exact: f32| found.to_bits() == exact.to_bits() || found.is_nan() && exact.is_nan();
        for chunk in bits.chunks_exact(V::LANES) {
            // SAFETY: the caller's promise; the slices hold a vector.
            unsafe {
                V::load_bf16(chunk.as_ptr()).store(values.as_mut_ptr());
                assert!(values.iter().zip(chunk).all(|(&value, &bits)| same(value, Bf16(bits).wide())));
                V::load_f16(chunk.as_ptr()).store(values.as_mut_ptr());
                assert!(values.iter().zip(chunk).all(|(&value, &bits)| same(value, F16(bits).wide())));
            }
        }
        for chunk in bits.chunks_exact(2 * V::LANES) {
            // SAFETY: the caller's promise; the slices hold what is read and written.
            unsafe {
                let mut found = vec![];
                for half in V::load_two_bf16(chunk.as_ptr()) {
                    half.store(values.as_mut_ptr());
                    found.extend(values.iter().map(|value| value.to_bits()));
                }
                let mut asked: Vec<u32> = chunk.iter().map(|&bits| Bf16(bits).wide().to_bits()).collect();
                found.sort_unstable();
                asked.sort_unstable();
                assert_eq!(found, asked);
            }
        }
        let mut pattern = 1u32;
        for _ in 0..20_000 {
            for value in &mut values {
                pattern = pattern.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Every other one in the range of halves.
                let bits = if pattern & 64 == 0 { pattern } else { pattern & 0x8fff_ffff | 0x3000_0000 };
                *value = f32::from_bits(bits);
            }
            // SAFETY: the caller's promise; the slices hold a vector.
            unsafe {
                V::load(values.as_ptr()).store_bf16(back.as_mut_ptr());
                let is_near = |v: f32, b: u16| {
                    // The instruction that rounds leaves 0 of what is subnormal.
                    same(Bf16(b).wide(), Bf16::narrow(v).wide()) || v.is_subnormal() && Bf16(b).wide() == 0.0
                };
                assert!(values.iter().zip(&back).all(|(&v, &b)| is_near(v, b)));
                V::load(values.as_ptr()).store_f16(back.as_mut_ptr());
                assert!(values.iter().zip(&back).all(|(&v, &b)| same(F16(b).wide(), F16::narrow(v).wide())));
            }
        }
    }
}
