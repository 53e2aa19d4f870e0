//! Facility location over the nearest neighbours alone.
//!
//! A point's similarity to a pick that is not among its nearest neighbours counts as zero, as if it were as far as two
//! points can be. Candidates then have short lists of the points that they serve, and memory grows with the number of
//! neighbours, not with the number of pairs. With all points as neighbours the picks are those of the plain rule.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::Picks;
use super::nearest::squared_neighbours;
use super::points::{Points, squared_distance};
use crate::{Error, Result};

/// Queries whose neighbours are found together.
const BLOCK: usize = 1 << 13;

#[derive(PartialEq)]
struct Candidate {
    gain: f64,
    id: u32,
    /// Picks that the gain takes into account.
    picks: u32,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain.total_cmp(&other.gain).then(other.id.cmp(&self.id))
    }
}

/// Picks `k` points by the similarities of every point to its nearest `neighbours`, itself among them. Of equal gains
/// the lowest point is taken. `check` is asked now and then whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` exceeds the number of points, or `neighbours` is 0 or exceeds it; whatever `check` returns.
pub fn facility_location_sparse<T>(
    points: &Points<'_, T>,
    k: usize,
    neighbours: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<Picks>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let rows = points.rows();
    if k > rows {
        return Err(Error::argument("k", k, format!("at most the number of points, {rows}")));
    }
    if neighbours == 0 || neighbours > rows {
        return Err(Error::argument("neighbours", neighbours, format!("from 1 to the number of points, {rows}")));
    }
    let mean = points.mean();
    let largest = 4.0 * (0..rows).map(|id| squared_distance(points.row(id), &mean)).fold(0.0, f64::max);
    let (mut ids, mut similarities) = (vec![0u32; rows * neighbours], vec![0f64; rows * neighbours]);
    for first in (0..rows).step_by(BLOCK) {
        let part = points.part(first..rows.min(first + BLOCK));
        let mut place = first * neighbours;
        squared_neighbours(&part, points, neighbours, check, &mut |id, squared| {
            (ids[place], similarities[place]) = (id, largest - squared);
            place += 1;
        })?;
    }
    // Whom each point serves, in rising order.
    let mut starts = vec![0usize; rows + 1];
    ids.iter().for_each(|&id| starts[id as usize + 1] += 1);
    (0..rows).for_each(|id| starts[id + 1] += starts[id]);
    let mut next = starts.clone();
    let mut served = vec![(0u32, 0f64); ids.len()];
    for (place, (&id, &similarity)) in ids.iter().zip(&similarities).enumerate() {
        served[next[id as usize]] = ((place / neighbours) as u32, similarity);
        next[id as usize] += 1;
    }
    drop((ids, similarities));
    let mut best = vec![0f64; rows];
    let gain = |id: usize, best: &[f64]| -> f64 {
        let lists = &served[starts[id]..starts[id + 1]];
        lists.iter().map(|&(point, similarity)| (similarity - best[point as usize]).max(0.0)).sum()
    };
    let first = (0..rows).map(|id| Candidate { gain: gain(id, &best), id: id as u32, picks: 0 });
    let mut heap: BinaryHeap<Candidate> = first.collect();
    let mut picks = Picks::default();
    while picks.ids.len() < k {
        let Some(mut top) = heap.pop() else { break };
        let now = picks.ids.len() as u32;
        if top.picks != now {
            // Gains only fall, so one that is out of date is an upper bound.
            top = Candidate { gain: gain(top.id as usize, &best), picks: now, ..top };
            heap.push(top);
            continue;
        }
        if now.is_multiple_of(64) {
            check()?;
        }
        for &(point, similarity) in &served[starts[top.id as usize]..starts[top.id as usize + 1]] {
            best[point as usize] = best[point as usize].max(similarity);
        }
        picks.ids.push(i64::from(top.id));
        picks.gains.push(top.gain);
    }
    Ok(picks)
}
