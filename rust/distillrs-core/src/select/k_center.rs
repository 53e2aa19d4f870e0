//! k-center: farthest-first traversal.
//!
//! Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: each pick is the point farthest from all
//! picks before it; the largest distance left is at most twice the smallest possible one.

use super::Picks;
use super::farthest::{Farthest, Refresh, Stale};
use super::kernel::Targets;
use super::mapped::Mapped;
use super::points::{Points, squared_distance};
use crate::random::{Kind, Stream, Units, integers};
use crate::{Error, Result, parallel};

/// What [`k_center`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Centres<'a> {
    /// Number of picks.
    pub k: usize,
    /// Points that count as picked before: never picked, and others keep their distance from them.
    pub chosen: &'a [i64],
    /// The first pick; the farthest from those chosen without, or a drawn one where none are.
    pub start: Option<usize>,
    /// Seed of the drawn first pick.
    pub seed: u64,
    /// Tells the draws of several runs under one seed apart.
    pub run: u64,
}

/// Points below which one thread is faster than several.
const SHARD: usize = 1 << 14;

/// Picks `k` points; deterministic at any thread count. The gain of a pick is its distance to the nearest point picked
/// or chosen before; infinite where there is none. `check` is asked before every pick whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` exceeds the points that are not chosen, or a chosen or first one is no row or comes twice;
/// whatever `check` returns.
pub fn k_center<T>(points: &Points<'_, T>, settings: &Centres<'_>, check: &dyn Fn() -> Result<()>) -> Result<Picks>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (rows, k) = (points.rows(), settings.k);
    let mut is_chosen = vec![false; rows];
    for &id in settings.chosen {
        match usize::try_from(id).ok().and_then(|id| is_chosen.get_mut(id)) {
            Some(chosen) if !*chosen => *chosen = true,
            _ => return Err(Error::argument("chosen", id, format!("distinct rows from 0 to {rows} - 1"))),
        }
    }
    let free = rows - settings.chosen.len();
    if k > free {
        return Err(Error::argument("k", k, format!("at most the {free} points that are not chosen")));
    }
    if let Some(start) = settings.start.filter(|&start| is_chosen.get(start) != Some(&false)) {
        return Err(Error::argument("start", start, format!("a row from 0 to {rows} - 1 that is not chosen")));
    }
    if k == 0 {
        return Ok(Picks::default());
    }
    let mapped = Mapped::of(points);
    let mut field =
        Field { points, mapped: &mapped, targets: room(&mapped, settings, points.columns()), picked: Vec::new() };
    // Shards only share work out: what each one finds is exact, so the picks do not depend on their number.
    let shards = if rows < 2 * SHARD { 1 } else { parallel::threads().min(rows / SHARD) };
    let size = rows.div_ceil(shards);
    let mut shards: Vec<Farthest> =
        (0..shards).map(|shard| Farthest::new(shard * size, size.min(rows - (shard * size).min(rows)))).collect();
    for &id in settings.chosen {
        field.add(id as usize);
        shards[id as usize / size].remove(id as usize);
    }
    let mut picks = Picks::default();
    let first = match settings.start {
        None if settings.chosen.is_empty() => Some(draw(settings, rows)?),
        start => start,
    };
    if let Some(id) = first {
        let gain = field.distance(id);
        picks.ids.push(id as i64);
        picks.gains.push(gain);
        field.add(id);
        shards[id / size].remove(id);
    }
    while picks.ids.len() < k {
        check()?;
        let seen = field.targets.len();
        let found = parallel::map(shards.iter_mut().collect(), |shard| shard.next(seen, &mut Rows::new(&field)));
        let mut best: Option<Stale> = None;
        for found in found {
            if let Some(found) = found?.filter(|found| best.is_none_or(|best| found.bound > best.bound)) {
                best = Some(found);
            }
        }
        // There are points left: k was checked.
        let Some(best) = best else { break };
        picks.ids.push(best.id as i64);
        picks.gains.push(best.bound.sqrt());
        field.add(best.id);
        shards[best.id / size].remove(best.id);
    }
    Ok(picks)
}

fn room(mapped: &Mapped, settings: &Centres<'_>, columns: usize) -> Targets {
    Targets::with_room(settings.chosen.len() + settings.k, columns, mapped.longest())
}

fn draw(settings: &Centres<'_>, rows: usize) -> Result<usize> {
    let mut drawn = [0];
    let stream = Stream::new(settings.seed, "k-center start", 0, Kind::Integers);
    integers(stream, Units::Range { first: settings.run, count: 1 }, 1, rows as u64, &mut drawn)?;
    Ok(drawn[0] as usize)
}

/// The points and those picked so far.
struct Field<'a, T> {
    points: &'a Points<'a, T>,
    mapped: &'a Mapped,
    targets: Targets,
    /// The picks' own coordinates.
    picked: Vec<f64>,
}

impl<T: Copy + Into<f64>> Field<'_, T> {
    fn add(&mut self, id: usize) {
        self.targets.push(self.mapped.row(id));
        self.picked.extend(self.points.row(id).iter().map(|&value| value.into()));
    }

    fn squared(&self, id: usize, pick: usize) -> f64 {
        let columns = self.points.columns();
        squared_distance(self.points.row(id), &self.picked[pick * columns..(pick + 1) * columns])
    }

    /// Distance of a point to the nearest pick.
    fn distance(&self, id: usize) -> f64 {
        (0..self.targets.len()).map(|pick| self.squared(id, pick)).fold(f64::INFINITY, f64::min).sqrt()
    }
}

/// Refreshes points by tiles: the kernel passes over the picks that cannot lower a bound, the others are measured.
struct Rows<'a, T> {
    field: &'a Field<'a, T>,
    rows: Vec<f32>,
    thresholds: Vec<f32>,
}

/// Rows of the kernel's tile; points that share a tile see the picks from the most backward one's on.
const TILE: usize = 8;

impl<'a, T: Copy + Into<f64>> Rows<'a, T> {
    fn new(field: &'a Field<'a, T>) -> Self {
        Self { field, rows: Vec::new(), thresholds: Vec::new() }
    }
}

impl<T: Copy + Into<f64>> Refresh for Rows<'_, T> {
    fn refresh(&mut self, stale: &mut [Stale]) -> Result<()> {
        let field = self.field;
        let scale = field.mapped.frame.squared_scale();
        let lowest = |stale: &Stale| {
            let length = field.mapped.lengths[stale.id];
            // The score's error, and what rounding the coordinates does to the squared length.
            let bound = field.targets.error_bound(length) + 4.0 * f64::from(f32::EPSILON) * length * length;
            let score = 0.5 * (length * length - stale.bound * scale) - bound;
            (score as f32).next_down().max(f32::MIN)
        };
        stale.sort_unstable_by_key(|point| (point.seen, point.id));
        for tile in stale.chunks_mut(TILE) {
            self.rows.clear();
            self.thresholds.clear();
            for point in tile.iter() {
                self.rows.extend_from_slice(field.mapped.row(point.id));
                self.thresholds.push(lowest(point));
            }
            let first = tile[0].seen;
            field.targets.reaching_from(first, &self.rows, &mut self.thresholds, &mut |row, pick| {
                let point = &mut tile[row];
                let squared = field.squared(point.id, pick);
                if squared < point.bound {
                    point.bound = squared;
                }
                lowest(point)
            });
            tile.iter_mut().for_each(|point| point.seen = field.targets.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
