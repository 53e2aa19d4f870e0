//! Points as rows of a matrix, their exact distances, and their centred `f32` copy.

use std::ops::Range;

use super::peers::Shard;
use crate::simd::vectorised;
use crate::{Error, Result, parallel};

/// Beyond this a squared distance could overflow.
const LARGEST: f64 = 1e150;

/// `rows` finite points of `columns` coordinates each, one after the other; `T` is `f32` or `f64`.
#[derive(Debug, Clone, Copy)]
pub struct Points<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
}

impl<'a, T: Copy + Into<f64>> Points<'a, T> {
    /// Checks shape and values; `name` is the caller's name for the points.
    ///
    /// # Errors
    /// [`Error::Argument`] when the sizes disagree, when there are no columns or more than 2^20, or when a value is not
    /// finite or above 1e150: the message has its row.
    pub fn new(name: &str, values: &'a [T], rows: usize, columns: usize) -> Result<Self> {
        if columns == 0 || columns > 1 << 20 {
            return Err(Error::argument(name, format_args!("{columns} columns"), "1 to 2**20 columns"));
        }
        if rows > u32::MAX as usize || rows.checked_mul(columns) != Some(values.len()) {
            let allowed = format!("{rows} x {columns} values, at most 2**32 - 1 rows");
            return Err(Error::argument(name, format_args!("{} values", values.len()), allowed));
        }
        let is_bad = |value: T| {
            let value: f64 = value.into();
            value.is_nan() || value.abs() > LARGEST
        };
        let part = values.chunks(1 << 12).position(|part| !all_within(part));
        let first = part.map_or(values.len(), |part| part << 12);
        if let Some(index) = values[first..].iter().position(|&value| is_bad(value)).map(|index| first + index) {
            let value: f64 = values[index].into();
            let got = format!("{value} in row {}, column {}", index / columns, index % columns);
            return Err(Error::argument(name, got, "finite values, at most 1e150 in magnitude"));
        }
        Ok(Self { values, rows, columns })
    }

    /// Number of points.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of coordinates.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The coordinates of one point in `f64`.
    pub(super) fn wide(&self, index: usize) -> Vec<f64> {
        self.row(index).iter().map(|&value| value.into()).collect()
    }

    /// Some of the points.
    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.columns..rows.end * self.columns], rows: rows.len(), ..*self }
    }

    /// The coordinates of all points, one after the other.
    pub(super) fn values(&self) -> &'a [T] {
        self.values
    }

    /// One point.
    pub fn row(&self, index: usize) -> &'a [T] {
        &self.values[index * self.columns..(index + 1) * self.columns]
    }
}

impl<T: Copy + Into<f64>> Points<'_, T> {
    /// Mean of all points, of which there is at least one. By differences to the first: a large offset costs no digits.
    pub(super) fn mean(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for row in 0..self.rows {
            add_difference(&mut sums, self.row(row), self.row(0));
        }
        for (sum, &value) in sums.iter_mut().zip(self.row(0)) {
            *sum = value.into() + *sum / self.rows as f64;
        }
        sums
    }
}

vectorised! {
    /// Whether all values are finite and their squares do not overflow.
    fn all_within<T: Coordinate>(values: &[T]) -> bool = all_within_body;
}

#[inline(always)]
fn all_within_body<T: Coordinate>(values: &[T]) -> bool {
    // Without an early end: that would cost more than it saves.
    values.iter().fold(true, |all, &value| all & (value.into().abs() <= LARGEST))
}

vectorised! {
    /// Squared distance in `f64`: eight partial sums, then those in order.
    pub(super) fn squared_distance<T: Coordinate>(point: &[T], centre: &[f64]) -> f64 = squared_distance_body;
}

vectorised! {
    /// Adds `point - reference` to the sums.
    pub(super) fn add_difference<T: Coordinate>(sums: &mut [f64], point: &[T], reference: &[T]) = add_difference_body;
}

#[inline(always)]
fn add_difference_body<T: Coordinate>(sums: &mut [f64], point: &[T], reference: &[T]) {
    for ((sum, &value), &reference) in sums.iter_mut().zip(point).zip(reference) {
        *sum += value.into() - reference.into();
    }
}

vectorised! {
    /// Adds `point - reference` to the sums for each member, in their order; `points` are all rows.
    pub(super) fn add_differences<T: Coordinate>(
        sums: &mut [f64],
        points: &[T],
        members: &[u32],
        reference: &[T],
    ) = add_differences_body;
}

#[inline(always)]
fn add_differences_body<T: Coordinate>(sums: &mut [f64], points: &[T], members: &[u32], reference: &[T]) {
    for &member in members {
        let first = member as usize * sums.len();
        add_difference_body(sums, &points[first..first + sums.len()], reference);
    }
}

/// Rows that are asked for before their turn, where they come from memory.
pub(super) const AHEAD: usize = 8;

/// Asks memory for a row that is needed soon.
#[inline(always)]
pub(super) fn ask_for<T>(row: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for place in (0..size_of_val(row)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the place lies within the row; a prefetch has no effect but on the cache.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().cast::<i8>().add(place)) };
    }
}

vectorised! {
    /// Products of some rows, `ids` of `rows`, with their labels' centres, in the kernel's coordinates.
    pub(super) fn products(
        rows: &[f32],
        ids: &[u32],
        centres: &[f32],
        labels: &[u32],
        columns: usize,
        out: &mut [f32],
    ) = products_body;
}

#[inline(always)]
fn products_body(rows: &[f32], ids: &[u32], centres: &[f32], labels: &[u32], columns: usize, out: &mut [f32]) {
    for (place, &id) in ids.iter().enumerate() {
        if let Some(&soon) = ids.get(place + AHEAD) {
            ask_for(&rows[soon as usize * columns..][..columns]);
        }
        let (id, label) = (id as usize, labels[id as usize] as usize);
        out[id] = dot(&rows[id * columns..(id + 1) * columns], &centres[label * columns..(label + 1) * columns]);
    }
}

#[inline(always)]
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<16>(), right.as_chunks::<16>());
    for (left, right) in left.iter().zip(right) {
        let mut products = *left;
        for (product, right) in products.iter_mut().zip(right) {
            *product *= right;
        }
        for (sum, product) in sums.iter_mut().zip(products) {
            *sum += product;
        }
    }
    sums.iter().sum::<f32>() + left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum::<f32>()
}

/// What [`squared_distance`] takes.
pub(super) trait Coordinate: Copy + Into<f64> {}
impl<T: Copy + Into<f64>> Coordinate for T {}

#[inline(always)]
fn squared_distance_body<T: Coordinate>(point: &[T], centre: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (point, centre) in point.as_chunks::<8>().0.iter().zip(centre.as_chunks::<8>().0) {
        let mut differences = [0.0; 8];
        for (out, &value) in differences.iter_mut().zip(point) {
            *out = value.into();
        }
        for (out, centre) in differences.iter_mut().zip(centre) {
            *out -= centre;
        }
        for (sum, difference) in sums.iter_mut().zip(differences) {
            *sum += difference * difference;
        }
    }
    let tail = point.len() / 8 * 8;
    for (lane, (&value, centre)) in point[tail..].iter().zip(&centre[tail..]).enumerate() {
        let difference = value.into() - centre;
        sums[lane] += difference * difference;
    }
    sums.iter().sum()
}

/// Rows that one task takes.
const TASK: usize = 4096;

fn tasks(rows: usize) -> Vec<Range<usize>> {
    (0..rows).step_by(TASK).map(|first| first..rows.min(first + TASK)).collect()
}

/// How coordinates become those of the `f32` kernel: minus an origin, times a power of two that brings the largest to
/// at most 1, so that neither offset nor range costs precision.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    origin: Vec<f64>,
    scale: f64,
}

impl Frame {
    /// Origin at the points' mean.
    pub(super) fn of<T: Copy + Into<f64> + Send + Sync>(points: &Points<'_, T>) -> Self {
        let parts = parallel::map(tasks(points.rows), |rows| {
            let mut sums = vec![0.0; points.columns];
            add_rows(&mut sums, &points.values[rows.start * points.columns..rows.end * points.columns]);
            sums
        });
        let mut origin = vec![0.0; points.columns];
        for part in parts {
            origin.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        origin.iter_mut().for_each(|sum| *sum /= points.rows.max(1) as f64);
        Self { origin, scale: f64::INFINITY }.widened(points)
    }

    /// The same origin, wide enough for a second set.
    pub(super) fn widened<T: Copy + Into<f64> + Send + Sync>(mut self, points: &Points<'_, T>) -> Self {
        let largest = parallel::map(tasks(points.rows), |rows| {
            let mut largest = vec![0f64; points.columns];
            let values = &points.values[rows.start * points.columns..rows.end * points.columns];
            raise_to_distances(&mut largest, values, &self.origin);
            largest.into_iter().fold(0.0, f64::max)
        });
        self.scale = self.scale.min(Self::scale_for(largest.into_iter().fold(0.0, f64::max)));
        self
    }

    /// A frame that holds the points of all processes; with several in the middle of their range.
    pub(super) fn shared<T: Copy + Into<f64> + Send + Sync>(
        points: &Points<'_, T>,
        shard: &mut Shard<'_>,
    ) -> Result<Self> {
        if shard.peers.count() == 1 {
            return Ok(Self::of(points));
        }
        // The negated least is a largest, too.
        let mut ends = vec![f64::NEG_INFINITY; 2 * points.columns];
        for row in 0..points.rows {
            for (ends, &value) in ends.as_chunks_mut::<2>().0.iter_mut().zip(points.row(row)) {
                let value = value.into();
                *ends = [ends[0].max(value), ends[1].max(-value)];
            }
        }
        let ends = shard.largest(&ends)?;
        let ranges = ends.as_chunks::<2>().0;
        let origin = ranges.iter().map(|[high, low]| 0.5 * (high - low)).collect();
        let widest = ranges.iter().map(|[high, low]| 0.5 * (high + low)).fold(0.0, f64::max);
        // The middle is rounded.
        let scale = Self::scale_for(2.0 * widest);
        Ok(Self { origin, scale })
    }

    fn scale_for(largest: f64) -> f64 {
        // 2^-(e + 1) for largest in [2^e, 2^(e + 1)); the square of the scale stays in range.
        let exponent = ((largest.to_bits() >> 52) as i64 - 1023).clamp(-500, 500);
        f64::from_bits(((1023 - 1 - exponent) as u64) << 52)
    }

    /// One point in the kernel's coordinates.
    pub(super) fn map<T: Copy + Into<f64>>(&self, point: &[T], out: &mut [f32]) {
        map_row(point, &self.origin, self.scale, out);
    }

    /// The point that lies at zero.
    pub(super) fn origin(&self) -> &[f64] {
        &self.origin
    }

    /// What differences to the origin are multiplied by: a power of two that brings them below 1.
    pub(super) fn scale(&self) -> f64 {
        self.scale
    }

    /// Squared distances of the kernel in those of the points.
    pub(super) fn squared_scale(&self) -> f64 {
        self.scale * self.scale
    }
}

vectorised! {
    /// Adds every row to the sums.
    fn add_rows<T: Coordinate>(sums: &mut [f64], rows: &[T]) = add_rows_body;
}

#[inline(always)]
fn add_rows_body<T: Coordinate>(sums: &mut [f64], rows: &[T]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += value.into();
        }
    }
}

vectorised! {
    /// Raises each value to the largest distance of its coordinate from the origin's.
    fn raise_to_distances<T: Coordinate>(largest: &mut [f64], rows: &[T], origin: &[f64]) = raise_to_distances_body;
}

#[inline(always)]
fn raise_to_distances_body<T: Coordinate>(largest: &mut [f64], rows: &[T], origin: &[f64]) {
    for row in rows.chunks_exact(origin.len()) {
        for ((most, &value), origin) in largest.iter_mut().zip(row).zip(origin) {
            let distance = (value.into() - origin).abs();
            *most = if distance > *most { distance } else { *most };
        }
    }
}

vectorised! {
    fn map_row<T: Coordinate>(point: &[T], origin: &[f64], scale: f64, out: &mut [f32]) = map_row_body;
}

#[inline(always)]
fn map_row_body<T: Coordinate>(point: &[T], origin: &[f64], scale: f64, out: &mut [f32]) {
    for ((out, &value), origin) in out.iter_mut().zip(point).zip(origin) {
        *out = ((value.into() - origin) * scale) as f32;
    }
}

/// Length of a point in the kernel's coordinates, never below the true one.
pub(super) fn length(point: &[f32]) -> f64 {
    squared_length(point).sqrt() * (1.0 + 1e-7)
}

vectorised! {
    /// Squared length of a point in the kernel's coordinates.
    pub(super) fn squared_length(point: &[f32]) -> f64 = squared_length_body;
}

#[inline(always)]
fn squared_length_body(point: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for values in point.as_chunks::<8>().0 {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    let tail = point.as_chunks::<8>().1.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>();
    sums.iter().sum::<f64>() + tail
}
