//! The floating-point types that difference codecs take.

/// `f32` or `f64`, as little-endian bytes in records.
pub trait Real: Copy + Default + Send + Sync + 'static {
    /// Bytes of one value.
    const SIZE: usize;

    /// An unsigned integer of the same width.
    type Bits: Copy + Default + Ord;

    /// From its bytes, exactly [`Real::SIZE`] of them.
    fn load(bytes: &[u8]) -> Self;
    /// Into its bytes, exactly [`Real::SIZE`] of them.
    fn store(self, bytes: &mut [u8]);
    /// `self - other`.
    fn minus(self, other: Self) -> Self;
    /// `self + factor * scale`, the product rounded before the sum.
    fn plus_product(self, factor: f32, scale: f32) -> Self;
    /// `self * factor`, in `f32`.
    fn times(self, factor: f32) -> f32;
    /// As `f64`.
    fn wide(self) -> f64;
    /// A number that orders magnitudes; infinities and NaN come last.
    fn magnitude(self) -> Self::Bits;
    /// The magnitude as a value, rounded to `f32`; infinite or NaN if the value is.
    fn from_magnitude(magnitude: Self::Bits) -> f32;
}

impl Real for f32 {
    const SIZE: usize = 4;
    type Bits = u32;

    #[inline(always)]
    fn load(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self - other
    }

    #[inline(always)]
    fn plus_product(self, factor: f32, scale: f32) -> Self {
        self + factor * scale
    }

    #[inline(always)]
    fn times(self, factor: f32) -> f32 {
        self * factor
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    #[inline(always)]
    fn magnitude(self) -> u32 {
        self.to_bits() & 0x7FFF_FFFF
    }

    #[inline(always)]
    fn from_magnitude(magnitude: u32) -> f32 {
        f32::from_bits(magnitude)
    }
}

impl Real for f64 {
    const SIZE: usize = 8;
    type Bits = u64;

    #[inline(always)]
    fn load(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
    }

    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.to_le_bytes());
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self - other
    }

    #[inline(always)]
    fn plus_product(self, factor: f32, scale: f32) -> Self {
        self + f64::from(factor) * f64::from(scale)
    }

    #[inline(always)]
    fn times(self, factor: f32) -> f32 {
        (self * f64::from(factor)) as f32
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn magnitude(self) -> u64 {
        self.to_bits() & 0x7FFF_FFFF_FFFF_FFFF
    }

    #[inline(always)]
    fn from_magnitude(magnitude: u64) -> f32 {
        f64::from_bits(magnitude) as f32
    }
}
