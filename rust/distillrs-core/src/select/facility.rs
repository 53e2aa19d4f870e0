//! Facility location: picks near all points.
//!
//! The value of a set S is `sum over i of max over j in S of (M - |x_i - x_j|^2)`, M a constant at least as large as any
//! squared distance. Greedy picks reach 1 - 1/e of the best value (Nemhauser, Wolsey, Fisher 1978). A pick's gain only
//! falls as others are made, so a stale gain is an upper bound and only the tops are computed anew (Minoux 1978). With
//! a sample, each pick is the best of a random few (Mirzasoleiman and others, "Lazier than lazy greedy", 2015).
//!
//! Which gain is the largest is decided by sums of `f64` terms in the order of the points; tiles of `f32` products give
//! upper bounds. The points that a candidate saves anything for only become fewer: where the caller grants the memory
//! they are kept, and the next bound or gain looks at them alone. Nothing of size n x n is held.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::Picks;
use super::points::{Points, squared_distance};
use super::reach::{Reach, above, tasks};
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
    /// Bytes that lists of the points that candidates save something for may take.
    pub kept: usize,
}

/// Candidates that are bounded together: two tiles of the kernel.
const BATCH: usize = 16;

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
    let mut state = State::new(points, settings.kept);
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

/// A point that a candidate may save something for, and its score with the candidate, minus the candidate's half squared
/// length, rounded up: with half the point's limit added it is half of what is saved, at least.
#[derive(Debug, Clone, Copy)]
struct Saved {
    point: u32,
    score: f32,
}

struct State<'a, T> {
    points: &'a Points<'a, T>,
    /// Every point's limit is its squared distance to the nearest pick.
    reach: Reach<'a, T>,
    bounds: Vec<f64>,
    /// For which number of picks the bound was computed, and how.
    known: Vec<(u32, Known)>,
    /// What each candidate may save; nothing is known without.
    lists: Vec<Option<Vec<Saved>>>,
    /// Entries that further lists may have.
    room: usize,
    is_picked: Vec<bool>,
    picks: u32,
    mean: Vec<f64>,
    /// Squared distance that the first gain counts from.
    largest: f64,
    /// Most that a sum of scores over all points can be off.
    slack: f64,
}

impl<'a, T: Copy + Into<f64> + Send + Sync> State<'a, T> {
    fn new(points: &'a Points<'a, T>, kept: usize) -> Self {
        let rows = points.rows();
        let mean = points.mean();
        let from_mean = (0..rows).map(|id| squared_distance(points.row(id), &mean)).fold(0.0, f64::max);
        let reach = Reach::new(points);
        let slack = (0..rows).map(|id| reach.error(id)).sum();
        Self {
            points,
            reach,
            bounds: vec![f64::INFINITY; rows],
            known: vec![(u32::MAX, Known::Bound); rows],
            lists: vec![None; rows],
            room: kept / size_of::<Saved>(),
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

    /// The points nearer to a candidate than to every pick, with squared distances.
    fn saved(&self, id: usize) -> Vec<(usize, f64)> {
        match &self.lists[id] {
            Some(list) => self.reach.measure(id, &list.iter().map(|saved| saved.point).collect::<Vec<u32>>()),
            None => self.reach.search(id),
        }
    }

    /// The gain of a candidate.
    fn gain(&self, id: usize) -> f64 {
        if self.picks == 0 {
            return self.first_gain(id);
        }
        self.saved(id).into_iter().map(|(point, squared)| self.reach.limit(point) - squared).sum()
    }

    fn pick(&mut self, id: usize) {
        let changed = if self.picks == 0 {
            let own = self.own(id);
            let points = self.points;
            let measure = |range: std::ops::Range<usize>| -> Vec<(usize, f64)> {
                range.map(|point| (point, squared_distance(points.row(point), &own))).collect()
            };
            parallel::map(tasks(points.rows()), measure).into_iter().flatten().collect()
        } else {
            self.saved(id)
        };
        for (point, squared) in changed {
            self.reach.set_limit(point, squared);
        }
        self.drop_list(id);
        self.is_picked[id] = true;
        self.picks += 1;
    }

    fn drop_list(&mut self, id: usize) {
        self.room += self.lists[id].take().map_or(0, |list| list.capacity());
    }

    /// What the kernel's sum of halves is in the points' own coordinates, rounding of the sums included.
    fn bound(&self, halves: f64) -> f64 {
        2.0 * halves / self.reach.frame.squared_scale() * (1.0 + 1e-5)
    }

    /// Bounds a candidate's gain anew by its list, which loses the points that a pick came nearer to.
    fn shrink(&mut self, id: usize) {
        let Some(list) = &mut self.lists[id] else { return };
        let halves = self.reach.halves();
        let (mut sum, mut count) = (0.0, 0);
        for index in 0..list.len() {
            let saved = list[index];
            let half = saved.score + halves[saved.point as usize];
            list[count] = saved;
            count += usize::from(half > 0.0);
            sum += f64::from(half.max(0.0));
        }
        list.truncate(count);
        if 4 * count < list.capacity() {
            let before = list.capacity();
            list.shrink_to_fit();
            self.room += before - list.capacity();
        }
        self.bounds[id] = self.bounds[id].min(self.bound(sum));
        self.known[id] = (self.picks, Known::Bound);
    }

    /// Bounds the candidates' gains by tiles, and keeps what they may save as far as there is room.
    fn renew(&mut self, ids: &[usize]) {
        let reach = &self.reach;
        let most = self.room / ids.len();
        let parts = parallel::map(tasks(self.points.rows()), |range| {
            let width = reach.width().min(range.end.next_multiple_of(32)) - range.start;
            let mut scores = vec![0.0; ids.len() * width];
            reach.scores(ids, range.start, &mut scores);
            let halves = &reach.halves()[range.start..range.start + width];
            let mut near = Vec::new();
            let one = |(&id, scores): (&usize, &[f32])| {
                // Upwards: what is kept stands for a bound.
                let error = (reach.error(id) - reach.half_length(id)) as f32;
                let shift = error.next_up();
                near.clear();
                above(scores, halves, reach.threshold(id), range.start as u32, &mut near);
                let saved = near.iter().map(|&point| {
                    let score = (scores[point as usize - range.start] + shift).next_up();
                    Saved { point, score }
                });
                let mut sum = 0.0;
                let mut list = Vec::with_capacity(if near.len() <= most { near.len() } else { 0 });
                for saved in saved {
                    sum += f64::from((saved.score + reach.halves()[saved.point as usize]).max(0.0));
                    if near.len() <= most {
                        list.push(saved);
                    }
                }
                (sum, near.len(), list)
            };
            ids.iter().zip(scores.chunks_exact(width)).map(one).collect::<Vec<_>>()
        });
        let mut found: Vec<(f64, usize, Vec<Saved>)> = vec![(0.0, 0, Vec::new()); ids.len()];
        for part in parts {
            for (found, (sum, count, list)) in found.iter_mut().zip(part) {
                found.0 += sum;
                found.1 += count;
                if found.1 <= most {
                    found.2.extend(list);
                }
            }
        }
        for (&id, (sum, count, mut list)) in ids.iter().zip(found) {
            self.bounds[id] = self.bounds[id].min(self.bound(sum));
            self.known[id] = (self.picks, Known::Bound);
            if count <= most {
                list.shrink_to_fit();
                if list.capacity() <= self.room {
                    self.room -= list.capacity();
                    self.lists[id] = Some(list);
                }
            }
        }
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
        let wide = |id: usize| self.wide(id);
        let dot = |left: &[f64], right: &[f64]| left.iter().zip(right).map(|(left, right)| left * right).sum::<f64>();
        let pick = wide(first);
        let (n, scale) = (rows as f64, self.reach.frame.squared_scale());
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

    /// A point in the kernel's coordinates, as the kernel rounds them.
    fn wide(&self, id: usize) -> Vec<f64> {
        let mut row = vec![0.0; self.points.columns()];
        self.reach.frame.map(self.points.row(id), &mut row);
        row.into_iter().map(f64::from).collect()
    }

    /// Sums of the points' coordinates and of their products, in the kernel's coordinates.
    fn moments(&self) -> (Vec<f64>, Vec<f64>) {
        let columns = self.points.columns();
        let rows = self.points.rows();
        // A few parts, whatever the number of points: each has a product for every pair of columns.
        let part = rows.div_ceil(4).max(1);
        let ranges = (0..rows).step_by(part).map(|first| first..rows.min(first + part)).collect();
        let parts = parallel::map(ranges, |range: std::ops::Range<usize>| {
            let (mut sums, mut products) = (vec![0.0; columns], vec![0.0; columns * columns]);
            for id in range {
                let wide = self.wide(id);
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
        while let Some(top) = heap.pop() {
            let (picks, how) = self.known[top.id];
            if picks == self.picks && how == Known::Exactly {
                return Ok(Some(top));
            }
            if picks == self.picks || self.picks == 0 {
                self.bounds[top.id] = self.gain(top.id);
                self.known[top.id] = (self.picks, Known::Exactly);
            } else if self.lists[top.id].is_some() {
                self.shrink(top.id);
            } else {
                let mut ids = vec![top.id];
                while ids.len() < BATCH {
                    let is_stale = |next: &&Candidate| self.known[next.id].0 != self.picks;
                    let Some(id) = heap.peek().filter(is_stale).map(|next| next.id) else { break };
                    heap.pop();
                    if self.lists[id].is_some() {
                        self.shrink(id);
                        heap.push(self.candidate(id));
                    } else {
                        ids.push(id);
                    }
                }
                self.renew(&ids);
                heap.extend(ids[1..].iter().map(|&id| self.candidate(id)));
                check()?;
            }
            heap.push(self.candidate(top.id));
        }
        Ok(None)
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
