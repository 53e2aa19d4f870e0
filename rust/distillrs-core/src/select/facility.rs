//! Facility location: picks near all points.
//!
//! The value of a set S is `sum over i of max over j in S of (M - |x_i - x_j|^2)`, M a constant at least as large as any
//! squared distance. Greedy picks reach 1 - 1/e of the best value (Nemhauser, Wolsey, Fisher 1978). A pick's gain only
//! falls as others are made, so a stale gain is an upper bound and only the tops are computed anew (Minoux 1978). With
//! a sample, each pick is the best of a random few (Mirzasoleiman and others, "Lazier than lazy greedy", 2015).
//!
//! Which gain is the largest is decided by sums of `f64` terms in the order of the points; tiles of `f32` products give
//! upper bounds, and leave out the points that a candidate is too far from. Nothing of size n x n is held.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::Picks;
use super::kernel::Targets;
use super::mapped::Mapped;
use super::points::{Points, squared_distance};
use super::within::{Within, tasks};
use crate::random::{Kind, Stream, choose};
use crate::simd::vectorised;
use crate::{Error, Result, parallel};

/// What [`facility_location`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Facility {
    /// Number of picks.
    pub k: usize,
    /// Candidates drawn for each pick; all points without.
    pub sample: Option<usize>,
    /// Seed of those draws.
    pub seed: u64,
    /// Tells the draws of several runs under one seed apart.
    pub run: u64,
}

/// Candidates that are bounded together.
const BATCH: usize = 32;

/// Candidates of one pick that are computed one by one before the rest is bounded by tiles.
const SINGLES: usize = 16;

/// Picks `k` points; deterministic at any thread count. Of equal gains the lowest point is taken. The first gain counts
/// from M = `(2 max |x - mean|)^2` for every point. `check` is asked now and then whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` exceeds the number of points or a sample is empty; whatever `check` returns.
pub fn facility_location<T>(
    points: &Points<'_, T>,
    settings: &Facility,
    check: &dyn Fn() -> Result<()>,
) -> Result<Picks>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (rows, k) = (points.rows(), settings.k);
    if k > rows {
        return Err(Error::argument("k", k, format!("at most the number of points, {rows}")));
    }
    if settings.sample == Some(0) {
        return Err(Error::argument("sample", 0, "at least 1"));
    }
    if k == 0 {
        return Ok(Picks::default());
    }
    let mut state = State::new(points);
    let mut picks = Picks::default();
    let mut heap = BinaryHeap::new();
    if settings.sample.is_none() {
        // In closed form: the sum of squared distances to all points is smallest for the point nearest to their mean.
        let first = state.nearest_to_mean();
        picks.ids.push(first as i64);
        picks.gains.push(state.first_gain(first));
        state.pick(first);
        if k > 1 {
            state.bound_all(first, check)?;
            heap = (0..rows).filter(|&id| id != first).map(|id| state.candidate(id)).collect();
        }
    }
    while picks.ids.len() < k {
        check()?;
        if let Some(sample) = settings.sample {
            heap = state.draw(settings, sample)?.into_iter().map(|id| state.candidate(id)).collect();
        }
        // There are points left: k was checked.
        let Some(best) = state.best(&mut heap, check)? else { break };
        picks.ids.push(best.id as i64);
        picks.gains.push(best.bound);
        state.pick(best.id);
    }
    Ok(picks)
}

/// A point that may be picked, the one with the largest bound and then the lowest the greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    bound: f64,
    id: usize,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bound.total_cmp(&other.bound).then(other.id.cmp(&self.id))
    }
}

/// How much a bound still has to do with the picks at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    /// It bounds the gain.
    Bound,
    /// It is the gain.
    Exactly,
}

struct State<'a, T> {
    points: &'a Points<'a, T>,
    mapped: Mapped,
    /// Every point's limit is its squared distance to the nearest pick.
    within: Within<'a, T>,
    /// The score that a candidate must exceed to come nearer, in the kernel's coordinates.
    floors: Vec<f32>,
    bounds: Vec<f64>,
    /// For which number of picks the bound was computed, and how.
    known: Vec<(u32, Known)>,
    is_picked: Vec<bool>,
    picks: u32,
    mean: Vec<f64>,
    /// Squared distance that the first gain counts from.
    largest: f64,
    /// Most that a sum of scores over all points can be off.
    slack: f64,
}

impl<'a, T: Copy + Into<f64> + Send + Sync> State<'a, T> {
    fn new(points: &'a Points<'a, T>) -> Self {
        let (rows, columns) = (points.rows(), points.columns());
        let mapped = Mapped::of(points);
        let mean = points.mean();
        let from_mean = (0..rows).map(|id| squared_distance(points.row(id), &mean)).fold(0.0, f64::max);
        let empty = Targets::with_room(0, columns, mapped.longest());
        let unit = f64::from(f32::EPSILON) / 2.0;
        // The score's error, that of the floor, and that of the single-precision sums of a tile.
        let slack =
            mapped.lengths.iter().map(|&length| empty.error_bound(length) + 16.0 * unit * length * length).sum();
        Self {
            points,
            mapped,
            within: Within::new(points),
            floors: vec![f32::NEG_INFINITY; rows],
            bounds: vec![f64::INFINITY; rows],
            known: vec![(u32::MAX, Known::Bound); rows],
            is_picked: vec![false; rows],
            picks: 0,
            mean,
            largest: 4.0 * from_mean,
            slack,
        }
    }

    fn candidate(&self, id: usize) -> Candidate {
        Candidate { bound: self.bounds[id], id }
    }

    fn nearest_to_mean(&self) -> usize {
        let mut best = (f64::INFINITY, 0);
        for id in 0..self.points.rows() {
            let squared = squared_distance(self.points.row(id), &self.mean);
            if squared < best.0 {
                best = (squared, id);
            }
        }
        best.1
    }

    /// The gain before any pick.
    fn first_gain(&self, id: usize) -> f64 {
        let own = self.own(id);
        let terms = |range: std::ops::Range<usize>| -> f64 {
            range.map(|row| self.largest - squared_distance(self.points.row(row), &own)).sum()
        };
        parallel::map(tasks(self.points.rows()), terms).into_iter().sum()
    }

    fn own(&self, id: usize) -> Vec<f64> {
        self.points.row(id).iter().map(|&value| value.into()).collect()
    }

    /// The gain of a candidate.
    fn gain(&self, id: usize) -> f64 {
        if self.picks == 0 {
            return self.first_gain(id);
        }
        let saved = |part: Vec<(usize, f64)>| -> f64 {
            part.into_iter().map(|(point, squared)| self.within.limit(point) - squared).sum()
        };
        self.within.search(id).into_iter().map(saved).sum()
    }

    fn pick(&mut self, id: usize) {
        let changed = if self.picks == 0 {
            let own = self.own(id);
            let points = self.points;
            let measure = |range: std::ops::Range<usize>| -> Vec<(usize, f64)> {
                range.map(|point| (point, squared_distance(points.row(point), &own))).collect()
            };
            parallel::map(tasks(points.rows()), measure)
        } else {
            self.within.search(id)
        };
        for (point, squared) in changed.into_iter().flatten() {
            self.floors[point] = self.within.set_limit(point, squared);
        }
        self.is_picked[id] = true;
        self.picks += 1;
    }

    /// Upper bounds of the candidates' gains.
    fn bounds_of(&self, ids: &[usize]) -> Vec<f64> {
        if self.picks == 0 {
            return vec![f64::INFINITY; ids.len()];
        }
        let columns = self.points.columns();
        let mut targets = Targets::with_room(ids.len(), columns, self.mapped.longest());
        ids.iter().for_each(|&id| targets.push(self.mapped.row(id)));
        let mut sums = vec![0.0; ids.len()];
        // Rows in parts that stay in the cache for all panels.
        for first in (0..self.points.rows()).step_by(1024) {
            let count = 1024.min(self.points.rows() - first);
            targets.add_excess(self.mapped.rows(first, count), &self.floors[first..first + count], &mut sums);
        }
        let scale = self.mapped.frame.squared_scale();
        sums.into_iter().map(|sum| 2.0 * (sum * (1.0 + 1e-5) + self.slack) / scale * (1.0 + 1e-12)).collect()
    }

    /// Bounds for all points after the first pick p, without a look at every pair.
    ///
    /// What point i saves by candidate j is `a = |x_i - p|^2 - |x_i - x_j|^2`, which is linear in x_i. So the moments of
    /// the points give the sum of a and that of a^2 over i, and with n points the sum of what is positive of a is at
    /// most `(sum a + sqrt(n sum a^2)) / 2`, by Cauchy and Schwarz.
    fn bound_all(&mut self, first: usize, check: &dyn Fn() -> Result<()>) -> Result<()> {
        let (rows, columns) = (self.points.rows(), self.points.columns());
        // Moments cost a column for each pair of columns: with many of them the tiles are as fast.
        if columns > 512 || 8 * columns > rows {
            return Ok(());
        }
        check()?;
        let (sums, products) = self.moments();
        check()?;
        let wide = |id: usize| self.mapped.row(id).iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
        let dot = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>();
        let pick = wide(first);
        let (n, scale) = (rows as f64, self.mapped.frame.squared_scale());
        let found = parallel::map(tasks(self.points.rows()), |range| {
            let mut product = vec![0.0; columns];
            let bound = |id: usize| {
                let row = wide(id);
                let constant = dot(&pick, &pick) - dot(&row, &row);
                let difference: Vec<f64> = row.iter().zip(&pick).map(|(row, pick)| row - pick).collect();
                product.fill(0.0);
                for (&value, products) in difference.iter().zip(products.chunks_exact(columns)) {
                    add_scaled(&mut product, products, value);
                }
                let mean = dot(&difference, &sums);
                let first = 2.0 * mean + n * constant;
                let second = 4.0 * dot(&difference, &product) + 4.0 * constant * mean + n * constant * constant;
                let most = 0.5 * (first + (n * second.max(0.0)).sqrt());
                (most * (1.0 + 1e-6) + 2.0 * self.slack) / scale
            };
            range.map(bound).collect::<Vec<f64>>()
        });
        self.bounds = found.into_iter().flatten().collect();
        Ok(())
    }

    /// Sums of the points' coordinates and of their products, in the kernel's coordinates.
    fn moments(&self) -> (Vec<f64>, Vec<f64>) {
        let columns = self.points.columns();
        let parts = parallel::map(tasks(self.points.rows()), |range| {
            let (mut sums, mut products) = (vec![0.0; columns], vec![0.0; columns * columns]);
            let mut wide = vec![0.0; columns];
            for id in range {
                wide.iter_mut().zip(self.mapped.row(id)).for_each(|(wide, &value)| *wide = f64::from(value));
                for (&value, products) in wide.iter().zip(products.chunks_exact_mut(columns)) {
                    add_scaled(products, &wide, value);
                }
                add_scaled(&mut sums, &wide, 1.0);
            }
            (sums, products)
        });
        let (mut sums, mut products) = (vec![0.0; columns], vec![0.0; columns * columns]);
        for (own_sums, own_products) in parts {
            add_scaled(&mut sums, &own_sums, 1.0);
            add_scaled(&mut products, &own_products, 1.0);
        }
        (sums, products)
    }

    /// The candidate with the largest gain, taken from the heap; others come back to it with what was learnt.
    fn best(&mut self, heap: &mut BinaryHeap<Candidate>, check: &dyn Fn() -> Result<()>) -> Result<Option<Candidate>> {
        let mut singles = 0;
        while let Some(top) = heap.pop() {
            match self.known[top.id] {
                (picks, Known::Exactly) if picks == self.picks => return Ok(Some(top)),
                (picks, _)
                    if picks != self.picks && self.picks > 0 && (singles >= SINGLES || top.bound == f64::INFINITY) =>
                {
                    let mut ids = vec![top.id];
                    while ids.len() < BATCH {
                        let Some(next) = heap.peek().filter(|next| self.known[next.id].0 != self.picks) else { break };
                        ids.push(next.id);
                        heap.pop();
                    }
                    self.renew(&ids, heap);
                    check()?;
                }
                _ => {
                    singles += 1;
                    self.bounds[top.id] = self.gain(top.id);
                    self.known[top.id] = (self.picks, Known::Exactly);
                    heap.push(self.candidate(top.id));
                }
            }
        }
        Ok(None)
    }

    fn renew(&mut self, ids: &[usize], heap: &mut BinaryHeap<Candidate>) {
        for (&id, bound) in ids.iter().zip(self.bounds_of(ids)) {
            self.bounds[id] = self.bounds[id].min(bound);
            self.known[id] = (self.picks, Known::Bound);
            heap.push(self.candidate(id));
        }
    }

    /// Candidates of the next pick, drawn from those that are left.
    fn draw(&self, settings: &Facility, sample: usize) -> Result<Vec<usize>> {
        let left: Vec<usize> = (0..self.points.rows()).filter(|&id| !self.is_picked[id]).collect();
        let name = format!("facility location/{}", settings.run);
        let stream = Stream::new(settings.seed, &name, u64::from(self.picks), Kind::Permutation);
        let drawn = choose(stream, left.len() as u64, sample.min(left.len()) as u64)?;
        Ok(drawn.into_iter().map(|place| left[place as usize]).collect())
    }
}

vectorised! {
    fn add_scaled(sums: &mut [f64], values: &[f64], factor: f64) = add_scaled_body;
}

#[inline(always)]
fn add_scaled_body(sums: &mut [f64], values: &[f64], factor: f64) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

#[cfg(test)]
mod tests;
