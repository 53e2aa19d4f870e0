//! Facility location: picks near all points.
//!
//! The value of a set S is `sum over i of max over j in S of (M - |x_i - x_j|^2)`, M a constant at least as large as any
//! squared distance. Greedy picks reach 1 - 1/e of the best value (Nemhauser, Wolsey, Fisher 1978). A pick's gain only
//! falls as others are made, so a stale gain is an upper bound and only the tops are computed anew (Minoux 1978). With
//! a sample, each pick is the best of a random few (Mirzasoleiman and others, "Lazier than lazy greedy", 2015).
//!
//! Which gain is the largest is decided by sums of `f64` terms, rounded to a tiny unit so that their order does not
//! matter; tiles of `f32` products give
//! upper bounds. The points that a candidate saves anything for only become fewer: where the caller grants the memory
//! they are kept, and the next bound or gain looks at them alone. Nothing of size n x n is held.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use self::bounds::Moments;
use self::scale::Scale;
use super::Picks;
use super::exact::{Exact, Unit};
use super::middle::middle;
use super::peers::{Alone, Shard};
use super::points::{Points, ask_for, squared_distance};
use super::reach::{Reach, above, tasks};
use crate::random::{Kind, Stream, choose};
use crate::{Error, Result, parallel};

mod bounds;
mod scale;
mod sharded;

pub use sharded::facility_location_sharded;

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

/// Entries of a list that are asked for before their turn.
const SOON: usize = 128;

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
    let mut shard = Shard { first: 0, total: rows, peers: &mut Alone };
    let (mean, from_mean) = middle(points, &mut shard)?;
    let mut state = State::new(points, settings.kept, 4.0 * from_mean);
    let mut picks = Picks::default();
    let mut heap = BinaryHeap::new();
    if settings.sample.is_none() {
        // In closed form: the sum of squared distances to all points is smallest for the point nearest to their mean.
        let first = shard.nearest(points, &mean)?;
        let gain = state.first_gain(first);
        picks.ids.push(first as i64);
        picks.gains.push(gain);
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
        let Some(mut best) = state.best(&mut heap, check)? else { break };
        if state.refine(best.bound) {
            heap.push(best);
            heap = heap.into_iter().map(|candidate| state.candidate(candidate.id)).collect();
            best = state.best(&mut heap, check)?.unwrap_or(best);
        }
        picks.ids.push(best.id as i64);
        picks.gains.push(best.bound);
        state.pick(best.id);
    }
    Ok(picks)
}

/// Draws of a pick's candidates.
fn stream(settings: &Facility, picks: u32) -> Stream {
    let name = format!("facility location/{}", settings.run);
    Stream::new(settings.seed, &name, u64::from(picks), Kind::Permutation)
}

/// Adds what a point counts for in a first gain.
fn add_first(sum: &mut Exact, largest: f64, squared: f64, unit: Unit) {
    // By rounding alone a distance can be above the largest.
    sum.add((largest - squared).max(0.0), unit);
}

/// A point that may be picked, the one with the largest bound and then the lowest the greatest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub bound: f64,
    pub id: usize,
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
    scale: Scale,
    /// Squared distance that the first gain counts from.
    largest: f64,
    /// Most that a sum of scores over all points can be off.
    slack: f64,
}

impl<'a, T: Copy + Into<f64> + Send + Sync> State<'a, T> {
    fn new(points: &'a Points<'a, T>, kept: usize, largest: f64) -> Self {
        let rows = points.rows();
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
            scale: Scale::of(largest),
            largest,
            slack,
        }
    }

    fn candidate(&self, id: usize) -> Candidate {
        Candidate { bound: self.bounds[id], id }
    }

    /// The gain before any pick.
    fn first_gain(&self, id: usize) -> f64 {
        let (own, unit) = (self.points.wide(id), self.scale.unit);
        let parts = parallel::map(tasks(self.points.rows()), |range| {
            let mut sum = Exact::default();
            range.for_each(|row| {
                add_first(&mut sum, self.largest, squared_distance(self.points.row(row), &own), unit);
            });
            sum
        });
        let mut sum = Exact::default();
        for part in parts {
            sum.0.iter_mut().zip(part.0).for_each(|(sum, part)| *sum += part);
        }
        sum.value(unit)
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
        let mut sum = Exact::default();
        for (point, squared) in self.saved(id) {
            sum.add(self.reach.limit(point) - squared, self.scale.unit);
        }
        sum.value(self.scale.unit)
    }

    fn pick(&mut self, id: usize) {
        let changed = if self.picks == 0 {
            let own = self.points.wide(id);
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

    /// Takes a finer unit where the largest gain of all, computed in the present one, asks for it; whether it did.
    fn refine(&mut self, gain: f64) -> bool {
        if !self.scale.may_fall(gain) {
            return false;
        }
        let off = self.scale.fall(self.reach.largest_limit(), self.points.rows());
        if let Some(off) = off {
            self.bounds.iter_mut().for_each(|bound| *bound += off);
            self.known.fill((u32::MAX, Known::Bound));
        }
        off.is_some()
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
        // Four sums: one alone would wait for itself.
        let (mut sums, mut count) = ([0.0; 4], 0);
        for first in (0..list.len()).step_by(4) {
            // Lists lie in memory, and a processor does not look ahead from page to page.
            if let Some(soon) = list.get(first + SOON..first + SOON + 4) {
                ask_for(soon);
            }
            for (index, sum) in (first..list.len()).zip(&mut sums) {
                let saved = list[index];
                let half = saved.score + halves[saved.point as usize];
                list[count] = saved;
                count += usize::from(half > 0.0);
                *sum += f64::from(half.max(0.0));
            }
        }
        let sum = sums.iter().sum();
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
                let saved = |&point: &u32| {
                    let score = (scores[point as usize - range.start] + shift).next_up();
                    Saved { point, score }
                };
                let mut sums = [0.0; 4];
                for near in near.chunks(4) {
                    for (saved, sum) in near.iter().map(saved).zip(&mut sums) {
                        *sum += f64::from((saved.score + halves[saved.point as usize - range.start]).max(0.0));
                    }
                }
                let sum: f64 = sums.iter().sum();
                let list = if near.len() <= most { near.iter().map(saved).collect() } else { Vec::new() };
                (sum, near.len(), list)
            };
            ids.iter().zip(scores.chunks_exact(width)).map(one).collect::<Vec<_>>()
        });
        let mut found: Vec<(f64, usize, Vec<Saved>)> = vec![(0.0, 0, Vec::new()); ids.len()];
        for part in parts {
            for (found, (sum, count, list)) in found.iter_mut().zip(part) {
                found.0 += sum;
                found.1 += count;
                if found.1 > most {
                    continue;
                }
                if found.2.is_empty() {
                    found.2 = list;
                } else {
                    found.2.reserve_exact(list.len());
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

    /// Bounds for all points after the first pick, without a look at every pair.
    fn bound_all(&mut self, first: usize, check: &dyn Fn() -> Result<()>) -> Result<()> {
        // With many columns the tiles are as fast.
        if bounds::pay(self.points.rows(), self.points.columns()) {
            check()?;
            let (rows, frame) = (self.points.rows(), &self.reach.frame);
            let moments = Moments::of(self.points, frame);
            check()?;
            self.bounds = moments.bounds(self.points, frame, &self.points.wide(first), rows, self.slack);
        }
        Ok(())
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
        let drawn = choose(stream(settings, self.picks), left.len() as u64, sample.min(left.len()) as u64)?;
        Ok(drawn.into_iter().map(|place| left[place as usize]).collect())
    }
}

#[cfg(test)]
mod tests;
