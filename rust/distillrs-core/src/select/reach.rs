//! Points with a limit each, and those that lie within their limits of one point.
//!
//! A point o lies within its limit of c when `|o - c| < limit`, which the scores of the kernel tell up to their rounding
//! error: [`Reach::near`] gives the few points that can lie within it, and [`Reach::measure`] decides in `f64`.

use std::ops::Range;

use super::kernel::Targets;
use super::points::{Frame, Points, squared_distance, squared_length};
use crate::host::Level;
use crate::parallel;

/// Points that one task covers; a multiple of every number of lanes.
const TASK: usize = 1 << 12;

/// Parts of the points, the same at any thread count: sums over parts go in their order.
pub(super) fn tasks(rows: usize) -> Vec<Range<usize>> {
    (0..rows).step_by(TASK).map(|first| first..rows.min(first + TASK)).collect()
}

/// Points with a limit each.
pub(super) struct Reach<'a, T> {
    points: &'a Points<'a, T>,
    pub frame: Frame,
    targets: Targets,
    /// Squared distance below which another point lies within the limit.
    limits: Vec<f64>,
    /// Half of it in the kernel's coordinates; as many as there are scores.
    halves: Vec<f32>,
    /// Squared length of every point in the kernel's coordinates.
    squared_lengths: Vec<f64>,
    /// What the sum of a score and half a limit can be off beside the score's own error.
    slack: f64,
}

impl<'a, T: Copy + Into<f64> + Send + Sync> Reach<'a, T> {
    /// Points without limits; set them all before a search.
    pub(super) fn new(points: &'a Points<'a, T>) -> Self {
        Self::within(points, Frame::of(points))
    }

    /// In the coordinates of a frame that holds them.
    pub(super) fn within(points: &'a Points<'a, T>, frame: Frame) -> Self {
        let mut squared_lengths = Vec::with_capacity(points.rows());
        let targets = Targets::pack(points.rows(), points.columns(), |index, out| {
            frame.map(points.row(index), out);
            squared_lengths.push(squared_length(out));
        });
        let longest = squared_lengths.iter().copied().fold(0.0, f64::max);
        let halves = vec![0.0; targets.width()];
        // A limit is a distance between two points: at most twice the longest length, half its square twice its square.
        let slack = 16.0 * f64::from(f32::EPSILON) * longest + 1e-35;
        Self { points, frame, targets, limits: vec![f64::INFINITY; points.rows()], halves, squared_lengths, slack }
    }

    /// Length of the longest point in the kernel's coordinates.
    pub(super) fn longest(&self) -> f64 {
        self.squared_lengths.iter().copied().fold(0.0, f64::max).sqrt()
    }

    /// Allows for limits of points of up to this length.
    pub(super) fn widen(&mut self, longest: f64) {
        self.slack = self.slack.max(16.0 * f64::from(f32::EPSILON) * longest * longest * (1.0 + 1e-9) + 1e-35);
    }

    /// Sets the squared limit of a point; finite.
    pub(super) fn set_limit(&mut self, point: usize, squared: f64) {
        self.limits[point] = squared;
        self.halves[point] = (0.5 * squared * self.frame.squared_scale()) as f32;
    }

    pub(super) fn limit(&self, point: usize) -> f64 {
        self.limits[point]
    }

    /// The largest squared limit, 0 without points.
    pub(super) fn largest_limit(&self) -> f64 {
        self.limits.iter().copied().fold(0.0, f64::max)
    }

    /// Half of each squared limit in the kernel's coordinates.
    pub(super) fn halves(&self) -> &[f32] {
        &self.halves
    }

    /// Half the squared length of a point in the kernel's coordinates.
    pub(super) fn half_length(&self, point: usize) -> f64 {
        0.5 * self.squared_lengths[point]
    }

    /// Scores to a point: all points up to whole panels.
    pub(super) fn width(&self) -> usize {
        self.targets.width()
    }

    /// Scores of each of `ids` with the points from `first` on, a task's, as many as `out` has room for.
    pub(super) fn scores(&self, ids: &[usize], first: usize, out: &mut [f32]) {
        let columns = self.points.columns();
        let mut rows = vec![0.0; ids.len() * columns];
        for (&id, out) in ids.iter().zip(rows.chunks_exact_mut(columns)) {
            self.frame.map(self.points.row(id), out);
        }
        self.targets.scores(first, &rows, out);
    }

    /// Most that half the squared limit of any point, minus half its squared distance to this one as the scores have it,
    /// can be off.
    pub(super) fn error(&self, id: usize) -> f64 {
        self.error_of(self.squared_lengths[id])
    }

    fn error_of(&self, squared: f64) -> f64 {
        let length = squared.sqrt() * (1.0 + 1e-7);
        // The score's error, and what rounding the coordinates does to the squared length.
        self.targets.error_bound(length) + 4.0 * f64::from(f32::EPSILON) * squared + self.slack
    }

    /// Score plus half a limit that a point must exceed to lie within it.
    pub(super) fn threshold(&self, id: usize) -> f32 {
        self.threshold_of(self.squared_lengths[id])
    }

    fn threshold_of(&self, squared: f64) -> f32 {
        // Rounding down: a threshold too high would lose a point.
        ((0.5 * squared - self.error_of(squared)) as f32).next_down()
    }

    /// Points of a task, which begins at `first`, that can lie within their limits; `scores` are those of `id`.
    pub(super) fn near(&self, id: usize, first: usize, scores: &[f32], out: &mut Vec<u32>) {
        above(scores, &self.halves[first..first + scores.len()], self.threshold(id), first as u32, out);
    }

    /// Which of some points lie within their limits of one, with squared distances in `f64`.
    pub(super) fn measure(&self, id: usize, near: &[u32]) -> Vec<(usize, f64)> {
        self.measure_from(&self.points.wide(id), near)
    }

    fn measure_from(&self, own: &[f64], near: &[u32]) -> Vec<(usize, f64)> {
        let found = near.iter().map(|&point| (point as usize, squared_distance(self.points.row(point as usize), own)));
        found.filter(|&(point, squared)| squared < self.limits[point]).collect()
    }

    /// All points that lie within their limits of one, in their order.
    pub(super) fn search(&self, id: usize) -> Vec<(usize, f64)> {
        let found = parallel::map(tasks(self.points.rows()), |range| self.search_in(range, &self.points.wide(id)));
        found.into_iter().flatten().collect()
    }

    /// Points of a task that lie within their limits of a place, in their order.
    pub(super) fn search_in(&self, range: Range<usize>, place: &[f64]) -> Vec<(usize, f64)> {
        let mut row = vec![0.0; place.len()];
        self.frame.map(place, &mut row);
        let mut scores = vec![0.0; TASK.min(self.width() - range.start)];
        self.targets.scores(range.start, &row, &mut scores);
        let mut near = Vec::new();
        let halves = &self.halves[range.start..range.start + scores.len()];
        above(&scores, halves, self.threshold_of(squared_length(&row)), range.start as u32, &mut near);
        self.measure_from(place, &near)
    }
}

/// Adds `first` plus every index to `out` at which score and offset together exceed the threshold.
pub(super) fn above(scores: &[f32], offsets: &[f32], threshold: f32, first: u32, out: &mut Vec<u32>) {
    assert_eq!(scores.len(), offsets.len());
    #[cfg(target_arch = "x86_64")]
    {
        match Level::here() {
            // SAFETY: the level says that the processor has the instructions; the slices are equally long.
            Level::Avx512 => return unsafe { above_avx512(scores, offsets, threshold, first, out) },
            // SAFETY: the level says that the processor has the instructions; the slices are equally long.
            Level::Avx2 => return unsafe { above_avx2(scores, offsets, threshold, first, out) },
            Level::Portable => {}
        }
    }
    above_plain(scores, offsets, threshold, first, out);
}

#[inline(always)]
fn above_plain(scores: &[f32], offsets: &[f32], threshold: f32, first: u32, out: &mut Vec<u32>) {
    for (index, (score, offset)) in (first..).zip(scores.iter().zip(offsets)) {
        if score + offset > threshold {
            out.push(index);
        }
    }
}

/// Indices that room is made for at a time.
#[cfg(target_arch = "x86_64")]
const AT_ONCE: usize = 256;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn above_avx512(scores: &[f32], offsets: &[f32], threshold: f32, first: u32, out: &mut Vec<u32>) {
    use std::arch::x86_64::*;

    let whole = scores.len() / 16 * 16;
    let limit = _mm512_set1_ps(threshold);
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for start in (0..whole).step_by(16) {
        if start % AT_ONCE == 0 {
            out.reserve(AT_ONCE + 16);
        }
        // SAFETY: both slices have 16 values from here on.
        let sums = unsafe {
            _mm512_add_ps(_mm512_loadu_ps(scores.as_ptr().add(start)), _mm512_loadu_ps(offsets.as_ptr().add(start)))
        };
        let is_above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(sums, limit);
        let indices = _mm512_add_epi32(lanes, _mm512_set1_epi32((first + start as u32) as i32));
        // No branch on whether any are above: most vectors have one or two, which no processor foresees.
        // SAFETY: there is room for 16 more, of which the first ones are set.
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().add(out.len()).cast(), _mm512_maskz_compress_epi32(is_above, indices));
            out.set_len(out.len() + is_above.count_ones() as usize);
        }
    }
    above_plain(&scores[whole..], &offsets[whole..], threshold, first + whole as u32, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn above_avx2(scores: &[f32], offsets: &[f32], threshold: f32, first: u32, out: &mut Vec<u32>) {
    use std::arch::x86_64::*;

    let whole = scores.len() / 8 * 8;
    let limit = _mm256_set1_ps(threshold);
    for start in (0..whole).step_by(8) {
        // SAFETY: both slices have 8 values from here on.
        let sums = unsafe {
            _mm256_add_ps(_mm256_loadu_ps(scores.as_ptr().add(start)), _mm256_loadu_ps(offsets.as_ptr().add(start)))
        };
        let mut is_above = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(sums, limit)) as u32;
        while is_above != 0 {
            out.push(first + start as u32 + is_above.trailing_zeros());
            is_above &= is_above - 1;
        }
    }
    above_plain(&scores[whole..], &offsets[whole..], threshold, first + whole as u32, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, normal_f32};

    #[test]
    fn indices_above_a_threshold_are_the_same_in_every_vector() {
        for count in [0, 1, 7, 8, 16, 33, 200, 1000] {
            let mut values = vec![0f32; 2 * count];
            let units = Units::Range { first: 0, count: 1 };
            normal_f32(Stream::new(1, "above", 0, Kind::Normal), units, 2 * count, &mut values).unwrap();
            let (scores, offsets) = values.split_at_mut(count);
            if count > 1 {
                scores[1] = f32::NEG_INFINITY;
            }
            for threshold in [-1.0, 0.0, 1.0, f32::INFINITY] {
                let (mut plain, mut found) = (vec![9], vec![9]);
                above_plain(scores, offsets, threshold, 5, &mut plain);
                above(scores, offsets, threshold, 5, &mut found);
                assert_eq!(found, plain);
                #[cfg(target_arch = "x86_64")]
                if Level::here() >= Level::Avx2 {
                    let mut found = vec![9];
                    // SAFETY: the level says that the processor has the instructions; the slices are equally long.
                    unsafe { above_avx2(scores, offsets, threshold, 5, &mut found) };
                    assert_eq!(found, plain);
                }
            }
        }
    }

    #[test]
    fn a_search_finds_what_lies_within_the_limits() {
        let (rows, columns) = (9000, 3);
        let mut values = vec![0f32; rows * columns];
        let count = values.len();
        let units = Units::Range { first: 0, count: 1 };
        normal_f32(Stream::new(2, "reach", 0, Kind::Normal), units, count, &mut values).unwrap();
        for offset in [0.0, 1000.0] {
            let moved: Vec<f32> = values.iter().map(|value| value + offset).collect();
            let points = Points::new("points", &moved, rows, columns).unwrap();
            let mut reach = Reach::new(&points);
            (0..rows).for_each(|point| reach.set_limit(point, 0.01 * (point % 7) as f64));
            for id in [0, 17, rows - 1] {
                let own: Vec<f64> = points.row(id).iter().map(|&value| f64::from(value)).collect();
                let all = (0..rows).map(|point| (point, squared_distance(points.row(point), &own)));
                let expected: Vec<_> = all.filter(|&(point, squared)| squared < reach.limit(point)).collect();
                assert_eq!(reach.search(id), expected);
            }
        }
    }
}
