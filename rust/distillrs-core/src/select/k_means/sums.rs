//! Sums of the points of every cluster, kept up as points move.
//!
//! Coordinates are added as integers of two limbs. Integer sums have no order: what points that come and go leave behind
//! is what a sum of all members would give, to the bit, and any split over threads gives the same. An outlier that
//! leaves takes all of its digits with it.

use super::NONE;
use crate::parallel;
use crate::select::points::{AHEAD, Coordinate, Frame, Points, ask_for};
use crate::simd::vectorised;

/// Most bits of a limb: `f64` rounds to whole numbers what lies below 2^51.
const BITS: u32 = 50;

/// Added to a number, leaves the nearest whole one in the low bits.
const WHOLE: f64 = 1.5 * (1u64 << 52) as f64;

/// A point that changes its cluster.
#[derive(Clone, Copy)]
struct Move {
    row: u32,
    from: u32,
    to: u32,
}

/// What turns a coordinate into limbs: its difference to the origin times `factor` is the first limb, and what is left
/// of that times `limb` the second.
#[derive(Clone, Copy)]
struct Grid<'a> {
    origin: &'a [f64],
    factor: f64,
    limb: f64,
}

/// Sums of the clusters' points.
pub(super) struct Sums<'a> {
    grid: Grid<'a>,
    /// For each cluster the first limbs of all columns, then the second ones.
    values: Vec<i64>,
    /// Points of each cluster.
    pub counts: Vec<usize>,
    /// The labels that the sums belong to.
    labels: Vec<u32>,
}

impl<'a> Sums<'a> {
    /// Without any points, of which there will be `rows` at most; `frame` holds them all.
    pub(super) fn new(frame: &'a Frame, clusters: usize, rows: usize) -> Self {
        // Coordinates are below 1 in the frame: a sum of `rows` limbs stays below 2^62.
        let bits = BITS.min(62 - (usize::BITS - rows.leading_zeros()).min(32));
        let limb = (1u64 << bits) as f64;
        Self {
            grid: Grid { origin: frame.origin(), factor: frame.scale() * limb, limb },
            values: vec![0; clusters * 2 * frame.origin().len()],
            counts: vec![0; clusters],
            labels: vec![NONE; rows],
        }
    }

    /// Follows the points to the clusters that they belong to now.
    pub(super) fn follow<T>(&mut self, points: &Points<'_, T>, labels: &[u32])
    where
        T: Copy + Into<f64> + Send + Sync,
    {
        let mut moves = Vec::new();
        for (row, (from, &to)) in self.labels.iter_mut().zip(labels).enumerate().filter(|(_, (from, to))| *from != *to)
        {
            moves.push(Move { row: row as u32, from: *from, to });
            if *from != NONE {
                self.counts[*from as usize] -= 1;
            }
            self.counts[to as usize] += 1;
            *from = to;
        }
        // Threads have sums of their own, which many moves for each cluster are worth.
        let threads = parallel::threads().min(moves.len() / (16 * self.counts.len())).max(1);
        let grid = self.grid;
        if threads == 1 {
            apply(&mut self.values, points.values(), &moves, grid);
            return;
        }
        let parts = moves.chunks(moves.len().div_ceil(threads)).collect();
        let parts = parallel::map(parts, |moves: &[Move]| {
            let mut values = vec![0; self.values.len()];
            apply(&mut values, points.values(), moves, grid);
            values
        });
        for part in parts {
            self.values.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }

    /// Sets the centres of clusters with points to their means.
    ///
    /// A mean is that of the differences to the cluster's first point: equal points have themselves as their mean.
    pub(super) fn means<T: Copy + Into<f64>>(&self, points: &Points<'_, T>, centres: &mut [f64]) {
        let columns = self.grid.origin.len();
        let mut limbs = vec![0; 2 * columns];
        for (cluster, first) in self.firsts() {
            let count = self.counts[cluster];
            split(points.row(first), self.grid, &mut limbs);
            let sums = &self.values[cluster * 2 * columns..][..2 * columns];
            sums.iter().zip(&mut limbs).for_each(|(sum, limb)| *limb = sum - count as i64 * *limb);
            let (high, low) = limbs.split_at(columns);
            let whole = count as f64 * self.grid.factor;
            let centre = &mut centres[cluster * columns..][..columns];
            for (((out, &value), &high), &low) in centre.iter_mut().zip(points.row(first)).zip(high).zip(low) {
                *out = value.into() + (high as f64 + low as f64 / self.grid.limb) / whole;
            }
        }
    }

    /// The first point of each cluster that has any.
    fn firsts(&self) -> Vec<(usize, usize)> {
        let mut is_left: Vec<bool> = self.counts.iter().map(|&count| count > 0).collect();
        let left = is_left.iter().filter(|left| **left).count();
        let labels = self.labels.iter().enumerate().map(|(row, &label)| (label as usize, row));
        labels.filter(|&(label, _)| std::mem::take(&mut is_left[label])).take(left).collect()
    }
}

vectorised! {
    /// Takes points away from the sums of the clusters that they leave, and adds them to those that they reach.
    fn apply<T: Coordinate>(sums: &mut [i64], points: &[T], moves: &[Move], grid: Grid<'_>) = apply_body;
}

#[inline(always)]
fn apply_body<T: Coordinate>(sums: &mut [i64], points: &[T], moves: &[Move], grid: Grid<'_>) {
    let columns = grid.origin.len();
    let mut limbs = vec![0; 2 * columns];
    let point_of = |at: &Move| &points[at.row as usize * columns..][..columns];
    for (place, own) in moves.iter().enumerate() {
        if let Some(soon) = moves.get(place + AHEAD) {
            ask_for(point_of(soon));
        }
        let (Move { from, to, .. }, point) = (*own, point_of(own));
        split(point, grid, &mut limbs);
        let sums_of = |cluster: u32| cluster as usize * 2 * columns..(cluster as usize + 1) * 2 * columns;
        sums[sums_of(to)].iter_mut().zip(&limbs).for_each(|(sum, limb)| *sum += limb);
        if from != NONE {
            sums[sums_of(from)].iter_mut().zip(&limbs).for_each(|(sum, limb)| *sum -= limb);
        }
    }
}

/// The limbs of a point: the first ones of all columns, then the second ones.
#[inline(always)]
fn split<T: Coordinate>(point: &[T], grid: Grid<'_>, limbs: &mut [i64]) {
    let (high, low) = limbs.split_at_mut(grid.origin.len());
    for (((high, low), &value), origin) in high.iter_mut().zip(low).zip(point).zip(grid.origin) {
        let scaled = (value.into() - origin) * grid.factor;
        let whole = scaled + WHOLE;
        let rest = (scaled - (whole - WHOLE)) * grid.limb + WHOLE;
        *high = whole.to_bits() as i64 - WHOLE.to_bits() as i64;
        *low = rest.to_bits() as i64 - WHOLE.to_bits() as i64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, normal_f64};

    #[test]
    fn what_is_left_after_moves_is_the_sum_of_the_members() {
        let (rows, columns, k) = (3000, 5, 7);
        let mut values = vec![0.0; rows * columns];
        let stream = Stream::new(1, "sums", 0, Kind::Normal);
        normal_f64(stream, Units::Range { first: 0, count: 1 }, values.len(), &mut values).unwrap();
        for outlier in [1.0, 1e9, 1e15] {
            values[42] = outlier;
            let points = Points::new("points", &values, rows, columns).unwrap();
            let frame = Frame::of(&points);
            let labels = |round: usize| (0..rows).map(move |row| ((row * (round + 3) / 2 + round) % k) as u32);
            parallel::set_threads(1).unwrap();
            let mut anew = Sums::new(&frame, k, rows);
            let last: Vec<u32> = labels(5).collect();
            anew.follow(&points, &last);
            for threads in [1, 2, 5] {
                parallel::set_threads(threads).unwrap();
                let mut kept = Sums::new(&frame, k, rows);
                (0..6).for_each(|round| kept.follow(&points, &labels(round).collect::<Vec<_>>()));
                assert_eq!((&kept.values, &kept.counts), (&anew.values, &anew.counts));
            }
            let mut means = vec![f64::NAN; k * columns];
            anew.means(&points, &mut means);
            let largest = outlier.max(10.0);
            for (place, mean) in means.iter().enumerate() {
                let own = (0..rows).filter(|&row| last[row] as usize == place / columns);
                let own: Vec<f64> = own.map(|row| values[row * columns + place % columns]).collect();
                let reference = own[0];
                let expected = reference + own.iter().map(|x| x - reference).sum::<f64>() / own.len() as f64;
                let is_beside_the_outlier = own.contains(&outlier);
                let allowed = 1e-15 * if is_beside_the_outlier { 100.0 * largest } else { largest.max(1e3) };
                assert!((mean - expected).abs() <= allowed, "{outlier} {mean} {expected}");
            }
        }
    }

    #[test]
    fn a_cluster_without_points_keeps_its_centre() {
        let points = Points::new("points", &[1.0, 2.0, 6.0], 3, 1).unwrap();
        let frame = Frame::of(&points);
        let mut sums = Sums::new(&frame, 2, 3);
        sums.follow(&points, &[0, 1, 0]);
        sums.follow(&points, &[0, 0, 0]);
        let mut centres = [9.0, 8.0];
        sums.means(&points, &mut centres);
        assert_eq!((centres, &sums.counts[..]), ([3.0, 8.0], &[3, 0][..]));
    }

    #[test]
    fn equal_points_are_their_mean() {
        let values: Vec<f64> = (0..60).map(|row| if row % 2 == 0 { 0.1 } else { f64::from(row).sqrt() }).collect();
        let points = Points::new("points", &values, 60, 1).unwrap();
        let frame = Frame::of(&points);
        let labels: Vec<u32> = (0..60).map(|row| if row % 2 == 0 { 0 } else { row }).collect();
        let mut sums = Sums::new(&frame, 60, 60);
        sums.follow(&points, &labels);
        let mut centres = vec![f64::NAN; 60];
        sums.means(&points, &mut centres);
        labels.iter().zip(&values).for_each(|(&label, value)| assert_eq!(centres[label as usize], *value));
    }
}
