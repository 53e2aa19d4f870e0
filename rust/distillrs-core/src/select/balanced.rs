//! Partition into parts of equal size.
//!
//! Points are halved again and again. For two centres the assignment of given sizes with the least sum of squared
//! distances is known: order the points by the difference of their squared distances to the two, and cut. Assignment and
//! means take turns, as in k-means, until the halves stay as they are; neither step raises the sum.

use super::points::{Points, add_differences, squared_distance};
use crate::{Result, parallel};

/// Points that one task takes.
const TASK: usize = 1024;

/// Labels of points in `k` parts whose sizes differ by at most 1, the larger ones first. Of equal points the lower goes
/// to the lower half. `check` is asked before every round of a halving whether to go on.
///
/// # Errors
/// [`crate::Error::Argument`] when `k` is 0 or above the number of points; whatever `check` returns.
pub fn balanced_partition<T>(
    points: &Points<'_, T>,
    k: usize,
    iterations: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<Vec<i64>>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let rows = points.rows();
    if k == 0 || k > rows {
        return Err(crate::Error::argument("k", k, format!("from 1 to the number of points, {rows}")));
    }
    let size = |part: usize| rows / k + usize::from(part < rows % k);
    let mut labels = vec![0; rows];
    let mut open = vec![(0..k, (0..rows as u32).collect::<Vec<u32>>())];
    while let Some((parts, ids)) = open.pop() {
        if parts.len() == 1 {
            ids.into_iter().for_each(|id| labels[id as usize] = parts.start as i64);
            continue;
        }
        let middle = parts.start + parts.len().div_ceil(2);
        let count = (parts.start..middle).map(size).sum();
        let (left, right) = halve(points, ids, count, iterations, check)?;
        open.push((middle..parts.end, right));
        open.push((parts.start..middle, left));
    }
    Ok(labels)
}

/// The points as `count` and the others, both in rising order.
fn halve<T>(
    points: &Points<'_, T>,
    ids: Vec<u32>,
    count: usize,
    iterations: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<(Vec<u32>, Vec<u32>)>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let first = wide(points, farthest(points, &ids, &mean(points, &ids)));
    let second = wide(points, farthest(points, &ids, &first));
    let found = settle(points, &ids, [&first, &second], count, iterations, check)?;
    if 2 * count == ids.len() {
        return Ok(found);
    }
    // Unequal sizes: the larger half may belong to either end.
    let turned = settle(points, &ids, [&second, &first], count, iterations, check)?;
    Ok(if spread(points, &turned) < spread(points, &found) { turned } else { found })
}

/// Halves around two centres, moved with their means until they stay.
fn settle<T>(
    points: &Points<'_, T>,
    ids: &[u32],
    centres: [&[f64]; 2],
    count: usize,
    iterations: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<(Vec<u32>, Vec<u32>)>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (mut left, mut right) = cut(points, ids, centres[0], centres[1], count);
    for _ in 0..iterations {
        check()?;
        let halves = cut(points, ids, &mean(points, &left), &mean(points, &right), count);
        if halves.0 == left {
            break;
        }
        (left, right) = halves;
    }
    Ok((left, right))
}

/// The sum of squared distances to the halves' means.
fn spread<T: Copy + Into<f64>>(points: &Points<'_, T>, halves: &(Vec<u32>, Vec<u32>)) -> f64 {
    let of_half = |half: &[u32]| {
        let mean = mean(points, half);
        half.iter().map(|&id| squared_distance(points.row(id as usize), &mean)).sum::<f64>()
    };
    of_half(&halves.0) + of_half(&halves.1)
}

/// The `count` points that are nearer to the first centre, and the others.
fn cut<T>(points: &Points<'_, T>, ids: &[u32], first: &[f64], second: &[f64], count: usize) -> (Vec<u32>, Vec<u32>)
where
    T: Copy + Into<f64> + Send + Sync,
{
    let score = |&id: &u32| {
        let row = points.row(id as usize);
        (squared_distance(row, first) - squared_distance(row, second), id)
    };
    let scores = parallel::map(ids.chunks(TASK).collect(), |ids| ids.iter().map(score).collect::<Vec<_>>());
    let mut order = scores.concat();
    if count < order.len() {
        order.select_nth_unstable_by(count, |left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
    }
    let ids_of = |part: &[(f64, u32)]| {
        let mut ids: Vec<u32> = part.iter().map(|pair| pair.1).collect();
        ids.sort_unstable();
        ids
    };
    (ids_of(&order[..count]), ids_of(&order[count..]))
}

fn mean<T: Copy + Into<f64>>(points: &Points<'_, T>, ids: &[u32]) -> Vec<f64> {
    let reference = points.row(ids[0] as usize);
    let mut sums = vec![0.0; points.columns()];
    add_differences(&mut sums, points.values(), ids, reference);
    for (sum, &value) in sums.iter_mut().zip(reference) {
        *sum = value.into() + *sum / ids.len() as f64;
    }
    sums
}

/// The point farthest from a place, the lowest of equals.
fn farthest<T: Copy + Into<f64>>(points: &Points<'_, T>, ids: &[u32], from: &[f64]) -> u32 {
    let mut most = (f64::NEG_INFINITY, ids[0]);
    for &id in ids {
        let squared = squared_distance(points.row(id as usize), from);
        if squared > most.0 {
            most = (squared, id);
        }
    }
    most.1
}

fn wide<T: Copy + Into<f64>>(points: &Points<'_, T>, id: u32) -> Vec<f64> {
    points.row(id as usize).iter().map(|&value| value.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_their_sizes_and_two_blobs_are_found() {
        let values: Vec<f64> = (0..11).map(|row| f64::from(row % 2) * 100.0 + f64::from(row)).collect();
        let points = Points::new("points", &values, 11, 1).unwrap();
        for k in 1..=11 {
            let labels = balanced_partition(&points, k, 20, &|| Ok(())).unwrap();
            let sizes: Vec<usize> =
                (0..k).map(|part| labels.iter().filter(|&&label| label == part as i64).count()).collect();
            assert_eq!(sizes, (0..k).map(|part| 11 / k + usize::from(part < 11 % k)).collect::<Vec<_>>());
        }
        let labels = balanced_partition(&points, 2, 20, &|| Ok(())).unwrap();
        // Six even rows in one part, five odd ones in the other.
        assert!(labels.iter().enumerate().all(|(row, &label)| (row % 2 == 0) == (label == labels[0])));
        assert!(balanced_partition(&points, 0, 20, &|| Ok(())).is_err());
        assert!(balanced_partition(&points, 12, 20, &|| Ok(())).is_err());
        assert!(balanced_partition(&points, 2, 20, &|| Err(crate::Error::Interrupted)).is_err());
    }
}
