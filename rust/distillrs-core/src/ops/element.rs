//! The numbers that logits come in. Arithmetic is always in `f32`.

use super::vector::Vector;

/// A type of logits.
pub trait Element: Copy + Send + Sync + 'static {
    /// As `f32`, exactly.
    fn wide(self) -> f32;
    /// The nearest value, ties to even.
    fn narrow(value: f32) -> Self;
    /// As many values as a vector holds.
    ///
    /// # Safety
    /// They are there, and the processor has the vector's instructions.
    unsafe fn load<V: Vector>(from: *const Self) -> V;
    /// The values of two vectors, in whatever order takes least.
    ///
    /// # Safety
    /// As for [`Element::load`], of twice as many.
    #[inline(always)]
    unsafe fn load_two<V: Vector>(from: *const Self) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Self::load(from), Self::load(from.add(V::LANES))] }
    }
    /// Writes a vector.
    ///
    /// # Safety
    /// There is room, and the processor has the vector's instructions.
    unsafe fn store<V: Vector>(values: V, to: *mut Self);
}

/// The bits of a bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// The bits of an IEEE half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

impl Element for f32 {
    fn wide(self) -> f32 {
        self
    }

    fn narrow(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { values.store(to) }
    }
}

impl Element for Bf16 {
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        if value.is_nan() {
            return Self((bits >> 16) as u16 | 0x40);
        }
        Self(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise; the type is transparent.
        unsafe { V::load_bf16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_two<V: Vector>(from: *const Self) -> [V; 2] {
        // SAFETY: the caller's promise; the type is transparent.
        unsafe { V::load_two_bf16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: V, to: *mut Self) {
        // SAFETY: the caller's promise; the type is transparent.
        unsafe { values.store_bf16(to.cast()) }
    }
}

impl Element for F16 {
    fn wide(self) -> f32 {
        let sign = u32::from(self.0 & 0x8000) << 16;
        let magnitude = u32::from(self.0 & 0x7fff);
        let bits = match magnitude {
            0x7c00.. => 0x7f80_0000 | (magnitude & 0x3ff) << 13,
            0x400.. => (magnitude << 13) + (112 << 23),
            _ => (magnitude as f32 * 2f32.powi(-24)).to_bits(),
        };
        f32::from_bits(sign | bits)
    }

    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let sign = (bits >> 16 & 0x8000) as u16;
        let magnitude = bits & 0x7fff_ffff;
        let rounded = match magnitude {
            0x7f80_0001.. => 0x7e00 | (magnitude >> 13 & 0x3ff) as u16,
            0x477f_f000.. => 0x7c00,
            // Normal: the bias falls by 112; adding half a unit, less one for an even number, rounds.
            0x3880_0000.. => ((magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13) as u16,
            // Subnormal: a sum with 1/2 leaves multiples of 2^-24 in the low bits, rounded by the addition itself.
            _ => (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits()) as u16,
        };
        Self(sign | rounded)
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const Self) -> V {
        // SAFETY: the caller's promise; the type is transparent.
        unsafe { V::load_f16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: V, to: *mut Self) {
        // SAFETY: the caller's promise; the type is transparent.
        unsafe { values.store_f16(to.cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (F16(bits), Bf16(bits));
            let nan = half.wide().is_nan();
            assert!(if nan { F16::narrow(half.wide()).wide().is_nan() } else { F16::narrow(half.wide()) == half });
            let nan = brain.wide().is_nan();
            assert!(if nan { Bf16::narrow(brain.wide()).wide().is_nan() } else { Bf16::narrow(brain.wide()) == brain });
        }
    }

    #[test]
    fn values_between_two_halves_go_to_the_nearest_and_ties_to_the_even_one() {
        for bits in 0..0x7bff_u16 {
            let (low, high) = (F16(bits).wide(), F16(bits + 1).wide());
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(F16::narrow((low + high) / 2.0), F16(even));
            assert_eq!(F16::narrow(low + (high - low) * 0.49), F16(bits));
            assert_eq!(F16::narrow(low + (high - low) * 0.51), F16(bits + 1));
        }
        assert_eq!(F16::narrow(65519.0), F16(0x7bff));
        assert_eq!(F16::narrow(65520.0), F16(0x7c00));
        assert_eq!(Bf16::narrow(f32::from_bits(0x3f80_8000)), Bf16(0x3f80));
        assert_eq!(Bf16::narrow(f32::from_bits(0x3f81_8000)), Bf16(0x3f82));
        assert_eq!(Bf16::narrow(f32::MAX), Bf16(0x7f80));
    }
}
