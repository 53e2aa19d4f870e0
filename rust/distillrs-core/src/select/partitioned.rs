//! The second round of a partitioned facility location: candidates that stand for several points each.
//!
//! Mirzasoleiman and others, "Distributed submodular maximization: identifying representative elements in massive data",
//! 2013: every part of the points picks for itself, and greedy picks among those.

use std::collections::BinaryHeap;

use super::facility::Candidate;
use super::points::{Points, squared_distance};
use super::{Alone, Picks, Shard};
use crate::{Error, Result, parallel};

/// Picks `k` of the points, each of which counts `weights` times. Of equal gains the lowest point is taken; sums go in the
/// order of the points. `check` is asked now and then whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` exceeds the number of points, or weights are not one number of at least 0 for each; whatever
/// `check` returns.
pub fn facility_location_weighted<T>(
    points: &Points<'_, T>,
    weights: &[f64],
    k: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<Picks>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let rows = points.rows();
    if k > rows {
        return Err(Error::argument("k", k, format!("at most the number of points, {rows}")));
    }
    if weights.len() != rows || weights.iter().any(|weight| !weight.is_finite() || *weight < 0.0) {
        return Err(Error::argument(
            "weights",
            format_args!("{} values", weights.len()),
            "one for each point, at least 0",
        ));
    }
    if k == 0 {
        return Ok(Picks::default());
    }
    let mut shard = Shard { first: 0, total: rows, peers: &mut Alone };
    let (_, from_mean) = super::middle::middle(points, &mut shard)?;
    let mut limits = vec![4.0 * from_mean; rows];
    let gain = |id: usize, limits: &[f64]| -> f64 {
        let own = points.wide(id);
        let saved = limits.iter().enumerate().map(|(row, limit)| limit - squared_distance(points.row(row), &own));
        saved.zip(weights).map(|(saved, weight)| weight * saved.max(0.0)).sum()
    };
    let mut bounds = Vec::with_capacity(rows);
    for ids in (0..rows).collect::<Vec<_>>().chunks(256) {
        check()?;
        bounds.extend(parallel::map(ids.to_vec(), |id| gain(id, &limits)));
    }
    let mut heap: BinaryHeap<Candidate> =
        bounds.into_iter().enumerate().map(|(id, bound)| Candidate { bound, id }).collect();
    // For which number of picks a gain was computed.
    let mut known = vec![0; rows];
    let mut picks = Picks::default();
    while picks.ids.len() < k {
        let Some(top) = heap.pop() else { break };
        if known[top.id] != picks.ids.len() {
            check()?;
            known[top.id] = picks.ids.len();
            heap.push(Candidate { bound: gain(top.id, &limits), ..top });
            continue;
        }
        picks.ids.push(top.id as i64);
        picks.gains.push(top.bound);
        let own = points.wide(top.id);
        for (row, limit) in limits.iter_mut().enumerate() {
            *limit = limit.min(squared_distance(points.row(row), &own));
        }
    }
    Ok(picks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, integers};
    use crate::select::{Facility, facility_location};

    #[test]
    fn weights_count_as_copies_do() {
        let (rows, columns, k) = (40, 2, 12);
        let mut drawn = vec![0i64; rows * (columns + 1)];
        let (units, count) = (Units::Range { first: 0, count: 1 }, drawn.len());
        integers(Stream::new(1, "p", 0, Kind::Integers), units, count, 1000, &mut drawn).unwrap();
        let (coordinates, weights) = drawn.split_at(rows * columns);
        let values: Vec<f32> = coordinates.iter().map(|&value| value as f32).collect();
        let counts: Vec<usize> = weights.iter().map(|&weight| 1 + weight as usize % 4).collect();
        let owners: Vec<usize> = (0..rows).flat_map(|row| vec![row; counts[row]]).collect();
        let copies: Vec<f32> =
            owners.iter().flat_map(|&row| &values[row * columns..(row + 1) * columns]).copied().collect();
        let points = Points::new("points", &values, rows, columns).unwrap();
        let several = Points::new("points", &copies, owners.len(), columns).unwrap();
        let weights: Vec<f64> = counts.iter().map(|&count| count as f64).collect();
        let found = facility_location_weighted(&points, &weights, k, &|| Ok(())).unwrap();
        let plain = Facility { k, sample: None, seed: 0, run: 0, kept: 0 };
        let expected = facility_location(&several, &plain, &|| Ok(())).unwrap();
        let owned: Vec<i64> = expected.ids.iter().map(|&id| owners[id as usize] as i64).collect();
        assert_eq!(found.ids, owned);
        // The first gain counts from another constant.
        for (own, expected) in found.gains.iter().zip(&expected.gains).skip(1) {
            assert!((own - expected).abs() <= 1e-12 * expected);
        }
        assert!(facility_location_weighted(&points, &weights[1..], 1, &|| Ok(())).is_err());
        assert!(facility_location_weighted(&points, &weights, rows + 1, &|| Ok(())).is_err());
        assert!(facility_location_weighted(&points, &vec![-1.0; rows], 1, &|| Ok(())).is_err());
    }
}
