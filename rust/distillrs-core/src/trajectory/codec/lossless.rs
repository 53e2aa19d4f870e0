//! `lossless`.

/// Most bytes of a body.
pub(super) fn bound(bytes: usize) -> Option<usize> {
    bytes.checked_add(bytes / 255)?.checked_add(64)
}
