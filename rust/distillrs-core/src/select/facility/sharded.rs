//! Facility location of the points of several processes.
//!
//! Every process bounds the gains of its own candidates, as one alone does. The best of all are offered together with
//! their coordinates, each process sums what its points gain, and the sums of whole numbers make the gains, which are
//! those of one process to the last bit. A pick is final when no bound of any process is above its gain.

use std::collections::BinaryHeap;

use super::bounds::{self, Moments};
use super::scale::Scale;
use super::{Candidate, Facility};
use crate::random::choose;
use crate::select::Picks;
use crate::select::exact::Exact;
use crate::select::middle::middle;
use crate::select::peers::Shard;
use crate::select::points::{Frame, Points, squared_distance};
use crate::select::reach::{Reach, tasks};
use crate::{Error, Result, parallel};

/// Candidates that a process offers at a time.
const OFFERS: usize = 16;

/// [`super::facility_location`] of the points of several processes, with its picks; ids are rows of all points, and every
/// process gets all of them.
///
/// # Errors
/// As [`super::facility_location`]; whatever the processes' messages fail with.
pub fn facility_location_sharded<T>(
    points: &Points<'_, T>,
    settings: &Facility,
    shard: &mut Shard<'_>,
    check: &dyn Fn() -> Result<()>,
) -> Result<Picks>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (total, k) = (shard.total, settings.k);
    if k > total {
        return Err(Error::argument("k", k, format!("at most the number of points, {total}")));
    }
    if settings.sample == Some(0) {
        return Err(Error::argument("sample", 0, "at least 1"));
    }
    if k == 0 {
        return Ok(Picks::default());
    }
    let (mean, from_mean) = middle(points, shard)?;
    let frame = Frame::shared(points, shard)?;
    let mut reach = Reach::within(points, frame);
    let longest = shard.largest(&[reach.longest()])?;
    reach.widen(longest[0]);
    let mut run = Run {
        points,
        reach,
        shard,
        bounds: vec![f64::INFINITY; points.rows()],
        known: vec![u32::MAX; points.rows()],
        is_picked: vec![false; points.rows()],
        picked: Vec::new(),
        largest: 4.0 * from_mean,
        scale: Scale::of(4.0 * from_mean),
    };
    let mut picks = Picks::default();
    let mut heap = BinaryHeap::new();
    if settings.sample.is_none() {
        let first = run.shard.nearest(points, &mean)?;
        let place = run.shard.rows(points, &[first])?;
        let gain = run.gains(&[&place])?[0];
        run.pick(first, &place);
        picks.ids.push(first as i64);
        picks.gains.push(gain);
        if k > 1 {
            run.bound_all(&place)?;
            heap = run.candidates();
        }
    }
    while picks.ids.len() < k {
        check()?;
        if let Some(sample) = settings.sample {
            heap = run.draw(settings, sample)?;
        }
        // There are points left: k was checked.
        let Some(mut best) = run.best(&mut heap, check)? else { break };
        if run.refine(best.value)? {
            heap.extend(run.shard.own(best.row, points.rows()).map(|id| Candidate { bound: 0.0, id }));
            heap =
                heap.into_iter().map(|candidate| Candidate { bound: run.bounds[candidate.id], ..candidate }).collect();
            best = run.best(&mut heap, check)?.unwrap_or(best);
        }
        picks.ids.push(best.row as i64);
        picks.gains.push(best.value);
        run.pick(best.row, &best.place);
    }
    Ok(picks)
}

/// A candidate on its way to all processes.
struct Offer {
    /// Its gain, or a bound of it.
    value: f64,
    is_gain: bool,
    /// Row of all points.
    row: usize,
    place: Vec<f64>,
}

impl Offer {
    fn beats(&self, other: &Self) -> bool {
        self.value > other.value || (self.value == other.value && self.row < other.row)
    }
}

struct Run<'a, 's, T> {
    points: &'a Points<'a, T>,
    /// Every point's limit is its squared distance to the nearest pick.
    reach: Reach<'a, T>,
    shard: &'a mut Shard<'s>,
    bounds: Vec<f64>,
    /// For which number of picks a bound is the gain.
    known: Vec<u32>,
    is_picked: Vec<bool>,
    /// Rows of all points, rising.
    picked: Vec<usize>,
    /// Squared distance that the first gain counts from.
    largest: f64,
    scale: Scale,
}

impl<T: Copy + Into<f64> + Send + Sync> Run<'_, '_, T> {
    fn candidates(&self) -> BinaryHeap<Candidate> {
        let left = (0..self.points.rows()).filter(|&id| !self.is_picked[id]);
        left.map(|id| Candidate { bound: self.bounds[id], id }).collect()
    }

    fn picks(&self) -> u32 {
        self.picked.len() as u32
    }

    /// Gains of some places, which all processes ask for alike.
    fn gains(&mut self, places: &[&[f64]]) -> Result<Vec<f64>> {
        let unit = self.scale.unit;
        let mut own = Vec::with_capacity(3 * places.len());
        for place in places {
            let parts = parallel::map(tasks(self.points.rows()), |range| {
                let mut sum = Exact::default();
                if self.picked.is_empty() {
                    for row in range {
                        super::add_first(&mut sum, self.largest, squared_distance(self.points.row(row), place), unit);
                    }
                } else {
                    let saved = self.reach.search_in(range, place);
                    saved.into_iter().for_each(|(point, squared)| sum.add(self.reach.limit(point) - squared, unit));
                }
                sum.0
            });
            let mut sum = [0; 3];
            for part in parts {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            own.extend(sum);
        }
        let all = self.shard.sum_whole(&own)?;
        Ok(all.as_chunks::<3>().0.iter().map(|&sum| Exact(sum).value(unit)).collect())
    }

    fn pick(&mut self, row: usize, place: &[f64]) {
        let changed = parallel::map(tasks(self.points.rows()), |range| {
            if self.picked.is_empty() {
                range.map(|point| (point, squared_distance(self.points.row(point), place))).collect()
            } else {
                self.reach.search_in(range, place)
            }
        });
        for (point, squared) in changed.into_iter().flatten() {
            self.reach.set_limit(point, squared);
        }
        if let Some(own) = self.shard.own(row, self.points.rows()) {
            self.is_picked[own] = true;
        }
        let at = self.picked.partition_point(|&before| before < row);
        self.picked.insert(at, row);
    }

    /// Takes a finer unit where the largest gain of all, computed in the present one, asks for it; whether it did.
    fn refine(&mut self, gain: f64) -> Result<bool> {
        if !self.scale.may_fall(gain) {
            return Ok(false);
        }
        let largest = self.shard.largest(&[self.reach.largest_limit()])?;
        let off = self.scale.fall(largest[0], self.shard.total);
        if let Some(off) = off {
            self.bounds.iter_mut().for_each(|bound| *bound += off);
            self.known.fill(u32::MAX);
        }
        Ok(off.is_some())
    }

    fn bound_all(&mut self, first: &[f64]) -> Result<()> {
        let columns = self.points.columns();
        if !bounds::pay(self.shard.total, columns) {
            return Ok(());
        }
        let own = Moments::of(self.points, &self.reach.frame);
        let slack: f64 = (0..self.points.rows()).map(|id| self.reach.error(id)).sum();
        let all = self.shard.sum(&[&own.sums[..], &own.products, &[slack]].concat())?;
        let (sums, rest) = all.split_at(columns);
        let (products, slack) = rest.split_at(columns * columns);
        let moments = Moments { sums: sums.to_vec(), products: products.to_vec() };
        // The others' sums are rounded in another order.
        let slack = slack[0] * (1.0 + 1e-9);
        self.bounds = moments.bounds(self.points, &self.reach.frame, first, self.shard.total, slack);
        Ok(())
    }

    /// Candidates of the next pick, drawn from all that are left; this process's.
    fn draw(&self, settings: &Facility, sample: usize) -> Result<BinaryHeap<Candidate>> {
        let left = self.shard.total - self.picked.len();
        let drawn = choose(super::stream(settings, self.picks()), left as u64, sample.min(left) as u64)?;
        let mut heap = BinaryHeap::new();
        for place in drawn {
            // The row with so many rows before it that are not picked.
            let mut row = place as usize;
            for _ in self.picked.iter().take_while(|&&picked| {
                let is_before = picked <= row;
                row += usize::from(is_before);
                is_before
            }) {}
            if let Some(own) = self.shard.own(row, self.points.rows()) {
                heap.push(Candidate { bound: self.bounds[own], id: own });
            }
        }
        Ok(heap)
    }

    /// The candidate of all processes with the largest gain; others come back to their heaps with what was learnt.
    fn best(&mut self, heap: &mut BinaryHeap<Candidate>, check: &dyn Fn() -> Result<()>) -> Result<Option<Offer>> {
        let columns = self.points.columns();
        let now = self.picks();
        loop {
            let mut own = Vec::new();
            while own.len() < OFFERS {
                let Some(top) = heap.pop() else { break };
                if self.is_picked[top.id] {
                    continue;
                }
                own.push(top.id);
                if self.known[top.id] == now {
                    // All below are worth less.
                    break;
                }
            }
            let offers = self.offer(&own)?;
            let best = offers.iter().filter(|offer| offer.is_gain).reduce(|a, b| if b.beats(a) { b } else { a });
            let mut open: Vec<&Offer> =
                offers.iter().filter(|offer| !offer.is_gain && best.is_none_or(|best| offer.beats(best))).collect();
            if open.is_empty() {
                let best = best.map(|best| best.row);
                heap.extend(own.iter().map(|&id| Candidate { bound: self.bounds[id], id }));
                return Ok(offers.into_iter().find(|offer| Some(offer.row) == best));
            }
            check()?;
            open.sort_by_key(|offer| offer.row);
            let places: Vec<&[f64]> = open.iter().map(|offer| &offer.place[..columns]).collect();
            let gains = self.gains(&places)?;
            for (offer, gain) in open.iter().zip(gains) {
                if let Some(own) = self.shard.own(offer.row, self.points.rows()) {
                    (self.bounds[own], self.known[own]) = (gain, now);
                }
            }
            heap.extend(own.iter().map(|&id| Candidate { bound: self.bounds[id], id }));
        }
    }

    /// All processes' offers.
    fn offer(&mut self, own: &[usize]) -> Result<Vec<Offer>> {
        let width = self.points.columns() + 3;
        // An empty place has the kind 0, a bound 1, a gain 2.
        let mut message = vec![0.0; OFFERS * width];
        for (&id, out) in own.iter().zip(message.chunks_exact_mut(width)) {
            out[0] = if self.known[id] == self.picks() { 2.0 } else { 1.0 };
            (out[1], out[2]) = (self.bounds[id], (self.shard.first + id) as f64);
            out[3..].iter_mut().zip(self.points.row(id)).for_each(|(out, &value)| *out = value.into());
        }
        let all = self.shard.gather(&message)?;
        let offers = all.chunks_exact(width).filter(|offer| offer[0] > 0.0).map(|offer| Offer {
            value: offer[1],
            is_gain: offer[0] == 2.0,
            row: offer[2] as usize,
            place: offer[3..].to_vec(),
        });
        Ok(offers.collect())
    }
}
