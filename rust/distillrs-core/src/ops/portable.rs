//! Vectors for any processor: arrays that the compiler may or may not turn into vectors.

use super::element::{Bf16, Element, F16};
use super::vector::Vector;

const LANES: usize = 8;

#[derive(Clone, Copy)]
pub struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn with(self, other: Self, function: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| function(self.0[lane], other.0[lane])))
    }
}

impl Vector for Portable {
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| Bf16(bits).wide()))
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(self.0.map(|value| Bf16::narrow(value).0)) };
    }

    #[inline(always)]
    unsafe fn load_two_bf16(from: *const u16) -> [Self; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Self::load_bf16(from), Self::load_bf16(from.add(LANES))] }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| F16(bits).wide()))
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(self.0.map(|value| F16::narrow(value).0)) };
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.with(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn fma(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] * factor.0[lane] + term.0[lane]))
    }

    #[inline(always)]
    unsafe fn fma_unless_zero(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            let (value, factor, term) = (self.0[lane], factor.0[lane], term.0[lane]);
            if value == 0.0 { term } else { value * factor + term }
        }))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.with(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding and taking off 3 * 2^22 leaves the nearest integer, ties to even, for magnitudes up to 2^22.
        const SHIFT: f32 = 12_582_912.0;
        Self(self.0.map(|value| (value + SHIFT) - SHIFT))
    }

    #[inline(always)]
    unsafe fn scale(self, exponent: Self) -> Self {
        // The cast of not-a-number is 0, which leaves `self`, itself not a number then.
        self.with(exponent, |value, exponent| {
            f32::from_bits(value.to_bits().wrapping_add(((exponent as i32) << 23) as u32))
        })
    }

    #[inline(always)]
    unsafe fn zero_below(self, by: Self, bound: Self) -> Self {
        Self(std::array::from_fn(|lane| if by.0[lane] < bound.0[lane] { 0.0 } else { self.0[lane] }))
    }

    #[inline(always)]
    unsafe fn where_above(self, by: Self, bound: Self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| if by.0[lane] > bound.0[lane] { self.0[lane] } else { other.0[lane] }))
    }

    #[inline(always)]
    unsafe fn zero_without(self, weight: Self) -> Self {
        self.with(weight, |value, weight| if weight == 0.0 { 0.0 } else { value })
    }

    #[inline(always)]
    unsafe fn split(self) -> (Self, Self) {
        let exponents = self.0.map(exponent);
        let mantissa = std::array::from_fn(|lane| {
            f32::from_bits(self.0[lane].to_bits().wrapping_sub((exponents[lane] << 23) as u32))
        });
        (Self(mantissa), Self(exponents.map(|exponent| exponent as f32)))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn prefetch_far(_: *const u8) {}
}

/// Bits of 2/3.
pub const TWO_THIRDS: i32 = 0x3f2a_aaab;

/// k of a number `m 2^k` with m from 2/3 to 4/3. What is not a number keeps its bits.
#[inline(always)]
fn exponent(value: f32) -> i32 {
    if value.is_nan() { 0 } else { (value.to_bits() as i32).wrapping_sub(TWO_THIRDS) >> 23 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn functions_keep_their_errors() {
        // SAFETY: no special instructions.
        unsafe { super::super::vector::tests::check::<super::Portable>() };
    }
}
