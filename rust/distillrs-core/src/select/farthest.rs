//! Farthest-first picks from stale distances.
//!
//! A point's distance to the nearest pick only falls as picks are added, so a distance that is out of date is an upper
//! bound: a point is brought up to date only when its bound could still win. The picks are those of the plain rule.

use std::cmp::Ordering;

use crate::Result;

/// Points whose largest bound is kept; one look at it passes over all of them.
const BLOCK: usize = 64;

/// Points that are brought up to date together.
const BATCH: usize = 64;

/// Points that are brought up to date before all others.
const FIRST: usize = 8;

/// A point's distance to the nearest of the picks that it has seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stale {
    /// The point.
    pub id: usize,
    /// Picks that `bound` takes into account.
    pub seen: usize,
    /// The distance, or its square.
    pub bound: f64,
    /// The pick that `bound` is a little above the distance to; [`Stale::EXACT`] where it is the distance.
    pub pick: u32,
}

impl Stale {
    /// Whether this one comes before another: farther, or as far and lower.
    pub(super) fn beats(&self, other: &Self) -> bool {
        match self.bound.total_cmp(&other.bound) {
            Ordering::Greater => true,
            Ordering::Equal => self.id < other.id,
            Ordering::Less => false,
        }
    }

    /// No pick: the bound is the distance.
    pub(super) const EXACT: u32 = u32::MAX;

    pub(super) const NONE: Self = Self { id: usize::MAX, seen: 0, bound: f64::NEG_INFINITY, pick: Self::EXACT };
}

/// Bounds of the points from `first` on.
pub(super) struct Farthest {
    first: usize,
    bounds: Vec<f64>,
    seen: Vec<u32>,
    picks: Vec<u32>,
    /// The largest bound of each [`BLOCK`].
    largest: Vec<f64>,
}

/// Brings points up to date with all picks so far.
pub(super) trait Refresh {
    /// Lowers the points' bounds and sets what they have seen; may leave out those that another of them now beats. A
    /// bound that is not the distance is below that of `best`.
    fn refresh(&mut self, stale: &mut [Stale], best: &Stale) -> Result<()>;
}

impl Farthest {
    /// `count` points that have seen nothing.
    pub(super) fn new(first: usize, count: usize) -> Self {
        Self {
            first,
            bounds: vec![f64::INFINITY; count],
            seen: vec![0; count],
            picks: vec![Stale::EXACT; count],
            largest: vec![f64::INFINITY; count.div_ceil(BLOCK)],
        }
    }

    /// Takes a point out: it is never picked (again).
    pub(super) fn remove(&mut self, id: usize) {
        let index = id - self.first;
        self.bounds[index] = f64::NEG_INFINITY;
        self.measure(index / BLOCK);
    }

    /// The farthest point, the lowest of equals, after `picks` picks; `None` when all are removed. `refresh` is given
    /// those whose bounds do not decide yet.
    pub(super) fn next(&mut self, picks: usize, refresh: &mut dyn Refresh) -> Result<Option<Stale>> {
        let mut best = Stale::NONE;
        let mut batch = Vec::with_capacity(BATCH + BLOCK);
        // The most promising points first: a high mark to beat spares the others.
        for _ in 0..4 {
            let Some(top) = self.top_block() else { return Ok(None) };
            self.collect(top, picks, &mut best, &mut batch);
            if batch.len() > FIRST {
                batch.select_nth_unstable_by(FIRST, |left, right| right.bound.total_cmp(&left.bound));
                batch.truncate(FIRST);
            }
            self.settle(picks, &mut best, &mut batch, refresh)?;
        }
        for block in 0..self.largest.len() {
            if self.largest[block] >= best.bound {
                self.collect(block, picks, &mut best, &mut batch);
                if batch.len() >= BATCH {
                    self.settle(picks, &mut best, &mut batch, refresh)?;
                }
            }
        }
        self.settle(picks, &mut best, &mut batch, refresh)?;
        Ok(Some(best).filter(|best| best.id != usize::MAX))
    }

    /// The block of the largest bound.
    fn top_block(&self) -> Option<usize> {
        let largest = self.largest.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            return None;
        }
        self.largest.iter().position(|&bound| bound == largest)
    }

    /// Puts the block's points that may beat `best` into the batch; those that are up to date raise `best` at once.
    fn collect(&self, block: usize, picks: usize, best: &mut Stale, batch: &mut Vec<Stale>) {
        let start = block * BLOCK;
        let end = self.bounds.len().min(start + BLOCK);
        for index in start..end {
            if self.bounds[index] < best.bound || self.bounds[index] == f64::NEG_INFINITY {
                continue;
            }
            let (id, seen, pick) = (self.first + index, self.seen[index] as usize, self.picks[index]);
            let point = Stale { id, seen, bound: self.bounds[index], pick };
            if point.beats(best) {
                if point.seen == picks && point.pick == Stale::EXACT {
                    *best = point;
                } else {
                    batch.push(point);
                }
            }
        }
    }

    fn settle(
        &mut self,
        picks: usize,
        best: &mut Stale,
        batch: &mut Vec<Stale>,
        refresh: &mut dyn Refresh,
    ) -> Result<()> {
        batch.retain(|point| point.beats(best));
        if batch.is_empty() {
            return Ok(());
        }
        refresh.refresh(batch, best)?;
        for point in batch.iter() {
            let index = point.id - self.first;
            self.bounds[index] = point.bound;
            self.seen[index] = point.seen as u32;
            self.picks[index] = point.pick;
            if point.seen == picks && point.pick == Stale::EXACT && point.beats(best) {
                *best = *point;
            }
        }
        let mut measured = usize::MAX;
        for point in batch.drain(..) {
            let block = (point.id - self.first) / BLOCK;
            if block != measured {
                self.measure(block);
                measured = block;
            }
        }
        Ok(())
    }

    fn measure(&mut self, block: usize) {
        let end = self.bounds.len().min((block + 1) * BLOCK);
        let bounds = &self.bounds[block * BLOCK..end];
        self.largest[block] =
            bounds.iter().fold(f64::NEG_INFINITY, |most, &bound| if bound > most { bound } else { most });
    }
}
