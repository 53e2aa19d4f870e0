//! Rows in memory that somebody else owns.

/// Where rows begin: row r at `(r / inner) * outer_stride + (r % inner) * inner_stride` elements. Two strides number the
/// rows of `logits[:, :-1]` without a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Rows that follow one another by `inner_stride`; at least 1.
    pub inner: usize,
    /// Elements between two runs of such rows.
    pub outer_stride: usize,
    /// Elements between two rows.
    pub inner_stride: usize,
}

/// Rows of a type, each contiguous.
#[derive(Debug)]
pub struct Matrix<T> {
    base: *mut T,
    layout: Layout,
    columns: usize,
}

impl<T> Clone for Matrix<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Matrix<T> {}

// SAFETY: whoever made it promised that rows may be used from any thread; every row is used by one thread at a time.
unsafe impl<T: Send> Send for Matrix<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Matrix<T> {}

impl<T> Matrix<T> {
    /// Rows of `columns` elements from `base` on.
    ///
    /// # Safety
    /// As many rows as will be asked for are there, aligned, for as long as the matrix is used; nobody else writes to
    /// them meanwhile, and if they are written to, they do not overlap and nobody else reads them.
    pub unsafe fn new(base: *mut T, layout: Layout, columns: usize) -> Self {
        Self { base, layout, columns }
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The first element of a row.
    pub(super) fn row(&self, row: usize) -> *mut T {
        let inner = self.layout.inner.max(1);
        let offset = row / inner * self.layout.outer_stride + row % inner * self.layout.inner_stride;
        // Not `add`: a row that does not exist may be computed, never used.
        self.base.wrapping_add(offset)
    }
}
