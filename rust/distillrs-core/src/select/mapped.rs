//! Points in the coordinates of the `f32` kernel.

use std::ops::Range;

use super::points::{Frame, Points, length};
use crate::parallel;

/// Points that one task maps.
const TASK: usize = 1024;

/// All points as the kernel takes them, with the lengths that its error bounds need.
pub(super) struct Mapped {
    pub frame: Frame,
    values: Vec<f32>,
    pub lengths: Vec<f64>,
    columns: usize,
}

impl Mapped {
    pub(super) fn of<T: Copy + Into<f64> + Send + Sync>(points: &Points<'_, T>) -> Self {
        Self::within(points, Frame::of(points))
    }

    /// In the coordinates of a frame that holds them.
    pub(super) fn within<T: Copy + Into<f64> + Send + Sync>(points: &Points<'_, T>, frame: Frame) -> Self {
        let (rows, columns) = (points.rows(), points.columns());
        let mut values = vec![0.0; rows * columns];
        let mut lengths = vec![0.0; rows];
        let tasks: Vec<_> = values.chunks_mut(TASK * columns).zip(lengths.chunks_mut(TASK)).enumerate().collect();
        parallel::for_each(tasks, |(task, (values, lengths))| {
            for (index, (out, long)) in values.chunks_exact_mut(columns).zip(lengths).enumerate() {
                frame.map(points.row(task * TASK + index), out);
                *long = length(out);
            }
        });
        Self { frame, values, lengths, columns }
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.columns..(index + 1) * self.columns]
    }

    /// Some points, one after the other.
    pub(super) fn rows(&self, rows: Range<usize>) -> &[f32] {
        &self.values[rows.start * self.columns..rows.end * self.columns]
    }

    /// Length of the longest point.
    pub(super) fn longest(&self) -> f64 {
        self.lengths.iter().copied().fold(0.0, f64::max)
    }
}
