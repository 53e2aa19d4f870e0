//! `delta-int8`.

/// Elements that share one scale.
pub const BLOCK: usize = 256;

/// Bytes of a delta's body: one `f32` for each block, one `int8` for each element.
pub(super) fn delta_bytes(elements: usize) -> Option<usize> {
    elements.div_ceil(BLOCK).checked_mul(4)?.checked_add(elements)
}
