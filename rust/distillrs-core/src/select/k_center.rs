//! k-center: farthest-first traversal.
//!
//! Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: each pick is the point farthest from all
//! picks before it; the largest distance left is at most twice the smallest possible one.

use std::collections::HashSet;

use super::Picks;
use super::farthest::{Farthest, Refresh, Stale};
use super::kernel::{Best, Look, Targets};
use super::mapped::Mapped;
use super::peers::{Alone, Shard};
use super::points::{Frame, Points, ask_for, squared_distance};
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
const PART: usize = 1 << 14;

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
    let mut shard = Shard { first: 0, total: points.rows(), peers: &mut Alone };
    k_center_sharded(points, settings, &mut shard, check)
}

/// [`k_center`] of the points of several processes, with its picks; ids are rows of all points, and every process gets
/// all of them. One message of a point's size for each pick.
///
/// # Errors
/// As [`k_center`]; whatever the processes' messages fail with.
pub fn k_center_sharded<T>(
    points: &Points<'_, T>,
    settings: &Centres<'_>,
    shard: &mut Shard<'_>,
    check: &dyn Fn() -> Result<()>,
) -> Result<Picks>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (rows, total, k) = (points.rows(), shard.total, settings.k);
    let mut chosen = HashSet::with_capacity(settings.chosen.len());
    for &id in settings.chosen {
        match usize::try_from(id).ok().filter(|&id| id < total) {
            Some(id) if chosen.insert(id) => {}
            _ => return Err(Error::argument("chosen", id, format!("distinct rows from 0 to {total} - 1"))),
        }
    }
    let free = total - chosen.len();
    if k > free {
        return Err(Error::argument("k", k, format!("at most the {free} points that are not chosen")));
    }
    if let Some(start) = settings.start.filter(|start| *start >= total || chosen.contains(start)) {
        return Err(Error::argument("start", start, format!("a row from 0 to {total} - 1 that is not chosen")));
    }
    if k == 0 {
        return Ok(Picks::default());
    }
    let mapped = Mapped::within(points, Frame::shared(points, shard)?);
    let targets = Targets::with_room(settings.chosen.len() + k, points.columns(), mapped.longest());
    let mut field = Field { points, mapped: &mapped, targets, picked: Vec::new() };
    // Parts only share work out: what each one finds is exact, so the picks do not depend on their number.
    let parts = if rows < 2 * PART { 1 } else { parallel::threads().min(rows / PART) };
    let size = rows.div_ceil(parts).max(1);
    let mut parts: Vec<Farthest> =
        (0..parts).map(|part| Farthest::new(part * size, size.min(rows - (part * size).min(rows)))).collect();
    let before: Vec<usize> = settings.chosen.iter().map(|&id| id as usize).collect();
    let coordinates = shard.rows(points, &before)?;
    for (&id, place) in before.iter().zip(coordinates.chunks_exact(points.columns())) {
        field.add(place);
        remove(&mut parts, size, shard.own(id, rows));
    }
    let mut picks = Picks::default();
    let first = match settings.start {
        None if settings.chosen.is_empty() => Some(draw(settings, total)?),
        start => start,
    };
    if let Some(id) = first {
        let place = shard.rows(points, &[id])?;
        picks.ids.push(id as i64);
        picks.gains.push(field.distance(&place));
        field.add(&place);
        remove(&mut parts, size, shard.own(id, rows));
    }
    while picks.ids.len() < k {
        check()?;
        let seen = field.targets.len();
        let found = parallel::map(parts.iter_mut().collect(), |part| part.next(seen, &mut Rows::new(&field)));
        let mut best: Option<Stale> = None;
        for found in found {
            if let Some(found) = found?.filter(|found| best.is_none_or(|best| found.bound > best.bound)) {
                best = Some(found);
            }
        }
        // There are points left: k was checked.
        let Some((squared, id, place)) = meet(points, best, shard)? else { break };
        picks.ids.push(id as i64);
        picks.gains.push(squared.sqrt());
        field.add(&place);
        remove(&mut parts, size, shard.own(id, rows));
    }
    Ok(picks)
}

fn remove(parts: &mut [Farthest], size: usize, own: Option<usize>) {
    if let Some(own) = own {
        parts[own / size].remove(own);
    }
}

/// The farthest of all processes' points, the lowest of equals: squared distance, row of all, coordinates.
fn meet<T: Copy + Into<f64>>(
    points: &Points<'_, T>,
    own: Option<Stale>,
    shard: &mut Shard<'_>,
) -> Result<Option<(f64, usize, Vec<f64>)>> {
    let mut message = vec![-1.0; points.columns() + 2];
    if let Some(own) = own {
        (message[0], message[1]) = (own.bound, (shard.first + own.id) as f64);
        message[2..].iter_mut().zip(points.row(own.id)).for_each(|(out, &value)| *out = value.into());
    }
    let all = shard.gather(&message)?;
    let mut best: Option<&[f64]> = None;
    // Rows rise with the processes: the first of equals is the lowest.
    for offer in all.chunks_exact(message.len()).filter(|offer| offer[0] >= 0.0) {
        if best.is_none_or(|best| offer[0] > best[0]) {
            best = Some(offer);
        }
    }
    Ok(best.map(|best| (best[0], best[1] as usize, best[2..].to_vec())))
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
    fn add(&mut self, place: &[f64]) {
        let mut row = vec![0.0; place.len()];
        self.mapped.frame.map(place, &mut row);
        self.targets.push(&row);
        self.picked.extend(place);
    }

    fn squared(&self, id: usize, pick: usize) -> f64 {
        let columns = self.points.columns();
        squared_distance(self.points.row(id), &self.picked[pick * columns..(pick + 1) * columns])
    }

    /// Distance of a place to the nearest pick.
    fn distance(&self, place: &[f64]) -> f64 {
        let picked = self.picked.chunks_exact(place.len());
        picked.map(|pick| squared_distance(place, pick)).fold(f64::INFINITY, f64::min).sqrt()
    }
}

/// Refreshes points by tiles: the kernel finds each one's nearest new pick. Its score gives a bound; it is measured, and
/// alone, where the point may still be the farthest.
struct Rows<'a, T> {
    field: &'a Field<'a, T>,
    rows: Vec<f32>,
    thresholds: Vec<f32>,
    /// Points with several picks that may be the nearest.
    open: Vec<usize>,
}

/// Rows of the kernel's tile; points that share a tile see the picks from the most backward one's on.
const TILE: usize = 8;

impl<'a, T: Copy + Into<f64>> Rows<'a, T> {
    fn new(field: &'a Field<'a, T>) -> Self {
        Self { field, rows: Vec::new(), thresholds: Vec::new(), open: Vec::new() }
    }

    /// What half a squared distance by a score can be off, in the kernel's coordinates.
    fn error(&self, id: usize) -> f64 {
        let length = self.field.mapped.lengths[id];
        // The score's error, and what rounding the coordinates does to the squared length.
        self.field.targets.error_bound(length) + 4.0 * f64::from(f32::EPSILON) * length * length
    }

    /// The least score that a pick can have which is nearer to a point than its bound.
    fn lowest(&self, stale: &Stale) -> f32 {
        let length = self.field.mapped.lengths[stale.id];
        let score = 0.5 * (length * length - stale.bound * self.field.mapped.frame.squared_scale());
        ((score - self.error(stale.id)) as f32).next_down().max(f32::MIN)
    }

    /// Makes a bound the distance.
    fn settle(&self, point: &mut Stale) {
        if point.pick != Stale::EXACT {
            point.bound = self.field.squared(point.id, point.pick as usize);
            point.pick = Stale::EXACT;
        }
    }

    /// Brings a tile up to date with the picks from `first` on, up to points in `open`.
    fn look(&mut self, first: usize, tile: &mut [Stale]) {
        let targets = &self.field.targets;
        self.rows.clear();
        tile.iter().for_each(|point| self.rows.extend_from_slice(self.field.mapped.row(point.id)));
        let (ids, mut best) = (std::array::from_fn::<u32, TILE, _>(|index| index as u32), [Best::NONE; TILE]);
        let (mut largest, mut better) = ([f32::NEG_INFINITY; TILE], Vec::new());
        for part in first / Targets::part()..targets.len().div_ceil(Targets::part()) {
            let largest = &mut largest[..tile.len()];
            targets.look(
                part,
                &self.rows,
                &ids[..tile.len()],
                &mut Look { best: &mut best, largest, better: &mut better },
            );
        }
        self.open.clear();
        for (index, (point, best)) in tile.iter_mut().zip(best).enumerate() {
            if best.score < self.lowest(point) {
                continue;
            }
            let length = self.field.mapped.lengths[point.id];
            // Not "gap <= bound": a gap that is not a number is no decision either.
            let is_clear = f64::from(best.score) - f64::from(best.next) > 2.0 * targets.error_bound(length);
            if !is_clear {
                self.open.push(index);
                continue;
            }
            let (error, scale) = (2.0 * self.error(point.id), self.field.mapped.frame.squared_scale());
            let squared = (length * length - 2.0 * f64::from(best.score) + error) / scale;
            let before = if point.pick == Stale::EXACT { point.bound } else { point.bound - 2.0 * error / scale };
            if squared < before {
                (point.bound, point.pick) = (squared, best.target);
            } else {
                self.settle(point);
                point.bound = point.bound.min(self.field.squared(point.id, best.target as usize));
            }
        }
    }

    /// The same for those in `open`, by all picks that may lower their bounds.
    fn measure(&mut self, first: usize, tile: &mut [Stale]) {
        self.rows.clear();
        self.thresholds.clear();
        for &index in &self.open {
            self.settle(&mut tile[index]);
            self.rows.extend_from_slice(self.field.mapped.row(tile[index].id));
            self.thresholds.push(self.lowest(&tile[index]));
        }
        let mut thresholds = std::mem::take(&mut self.thresholds);
        self.field.targets.reaching_from(first, &self.rows, &mut thresholds, &mut |row, pick| {
            let point = &mut tile[self.open[row]];
            point.bound = point.bound.min(self.field.squared(point.id, pick));
            self.lowest(point)
        });
        self.thresholds = thresholds;
    }
}

impl<T: Copy + Into<f64>> Refresh for Rows<'_, T> {
    fn refresh(&mut self, stale: &mut [Stale], best: &Stale) -> Result<()> {
        let mut best = *best;
        stale.sort_unstable_by_key(|point| (point.seen, point.id));
        for start in (0..stale.len()).step_by(TILE) {
            let size = TILE.min(stale.len() - start);
            let (tile, later) = stale[start..].split_at_mut(size);
            later.iter().take(TILE).for_each(|point| ask_for(self.field.mapped.row(point.id)));
            let first = tile[0].seen;
            self.look(first, tile);
            self.measure(first, tile);
            for point in tile {
                point.seen = self.field.targets.len();
                if point.beats(&best) {
                    self.settle(point);
                    best = if point.beats(&best) { *point } else { best };
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
