//! The points that lie within their own limits of one point.

use std::ops::Range;

use super::compact::{Compact, LANES, reaching};
use super::points::{Frame, Points, squared_distance};
use crate::parallel;

/// Points that one task covers.
const TASK: usize = 1 << 13;

/// Parts of the points, the same at any thread count: sums over parts go in their order.
pub(super) fn tasks(rows: usize) -> Vec<Range<usize>> {
    (0..rows).step_by(TASK).map(|first| first..rows.min(first + TASK)).collect()
}

/// Points with a limit each.
pub(super) struct Within<'a, T> {
    points: &'a Points<'a, T>,
    frame: Frame,
    compact: Compact,
    /// Squared distance below which another point lies within the limit.
    limits: Vec<f64>,
    /// Squared length of every point in the kernel's coordinates.
    squared_lengths: Vec<f64>,
}

impl<'a, T: Copy + Into<f64> + Send + Sync> Within<'a, T> {
    /// Points without limits; set them all before a search.
    pub(super) fn new(points: &'a Points<'a, T>) -> Self {
        let frame = Frame::of(points);
        let mut squared_lengths = Vec::with_capacity(points.rows());
        let compact = Compact::pack(points.rows(), points.columns(), |index, out| {
            frame.map(points.row(index), out);
            squared_lengths.push(out.iter().map(|&value| f64::from(value) * f64::from(value)).sum());
        });
        Self { points, frame, compact, limits: vec![f64::INFINITY; points.rows()], squared_lengths }
    }

    /// Sets the squared limit of a point, finite, and gives the score that is needed to be within it.
    pub(super) fn set_limit(&mut self, point: usize, squared: f64) -> f32 {
        self.limits[point] = squared;
        let floor = 0.5 * (self.squared_lengths[point] - squared * self.frame.squared_scale());
        self.compact.set_bias(point, -floor as f32);
        floor as f32
    }

    pub(super) fn limit(&self, point: usize) -> f64 {
        self.limits[point]
    }

    /// The points that lie nearer to one than their limits, in their order and in the parts of [`tasks`], with squared
    /// distances in `f64`.
    pub(super) fn search(&self, id: usize) -> Vec<Vec<(usize, f64)>> {
        let own: Vec<f64> = self.points.row(id).iter().map(|&value| value.into()).collect();
        let mut row = vec![0.0; own.len()];
        self.frame.map(self.points.row(id), &mut row);
        // Rounding down: a threshold too high would lose a point.
        let threshold = 0.5 * self.squared_lengths[id] - 2.0 * self.compact.error_bound(&row);
        let threshold = (threshold as f32).next_down();
        parallel::map(tasks(self.points.rows()), |range| {
            let first = range.start / LANES;
            let mut scores = vec![[0.0; LANES]; range.len().div_ceil(LANES)];
            self.compact.scores(first, &row, &mut scores);
            let mut found = Vec::new();
            reaching(&scores, first, threshold, |point, _| {
                if point < range.end {
                    let squared = squared_distance(self.points.row(point), &own);
                    if squared < self.limits[point] {
                        found.push((point, squared));
                    }
                }
            });
            found
        })
    }
}
