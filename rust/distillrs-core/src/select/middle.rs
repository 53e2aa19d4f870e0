//! The mean of points, the same at any number of processes, and how far they reach from it.

use super::exact::{Exact, Unit};
use super::peers::Shard;
use super::points::{Points, squared_distance};
use super::reach::tasks;
use crate::{Result, parallel};

/// Mean of all processes' points, of which there is at least one, and the largest squared distance from it.
///
/// Sums are those of differences to the first point: a large offset costs no digits.
pub(super) fn middle<T>(points: &Points<'_, T>, shard: &mut Shard<'_>) -> Result<(Vec<f64>, f64)>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let reference = shard.rows(points, &[0])?;
    let widest = parallel::map(tasks(points.rows()), |rows| {
        let mut widest = 0.0f64;
        for row in rows {
            for (&value, reference) in points.row(row).iter().zip(&reference) {
                widest = widest.max((value.into() - reference).abs());
            }
        }
        widest
    });
    let widest = shard.largest(&[widest.into_iter().fold(0.0, f64::max)])?;
    let unit = Unit::of(widest[0]);
    let parts = parallel::map(tasks(points.rows()), |rows| {
        let mut sums = vec![Exact::default(); points.columns()];
        for row in rows {
            for ((sum, &value), reference) in sums.iter_mut().zip(points.row(row)).zip(&reference) {
                sum.add(value.into() - reference, unit);
            }
        }
        sums
    });
    let mut sums = vec![0i64; 3 * points.columns()];
    for part in parts {
        for (sums, part) in sums.as_chunks_mut::<3>().0.iter_mut().zip(part) {
            sums.iter_mut().zip(part.0).for_each(|(sum, part)| *sum += part);
        }
    }
    let sums = shard.sum_whole(&sums)?;
    let count = shard.total as f64;
    let sums = sums.as_chunks::<3>().0;
    let mean: Vec<f64> =
        reference.iter().zip(sums).map(|(reference, &sum)| reference + Exact(sum).value(unit) / count).collect();
    let far = parallel::map(tasks(points.rows()), |rows| {
        rows.map(|row| squared_distance(points.row(row), &mean)).fold(0.0, f64::max)
    });
    let far = shard.largest(&[far.into_iter().fold(0.0, f64::max)])?;
    Ok((mean, far[0]))
}
