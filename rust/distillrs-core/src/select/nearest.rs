//! Exact nearest neighbours by brute force in tiles.

use std::collections::BinaryHeap;

use super::kernel::Targets;
use super::points::{Frame, Points, length, squared_distance};
use crate::{Error, Result, parallel};

/// The nearest points of each query, nearest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbours {
    /// `[queries, k]`: rows of the points.
    pub ids: Vec<i64>,
    /// `[queries, k]`: distances, not squared.
    pub distances: Vec<f64>,
}

/// Queries that one task takes, so that a panel of points serves all of them from the cache.
const TASK: usize = 64;

/// Points that are packed at a time; between those blocks the caller may stop the search.
const BLOCK: usize = 1 << 14;

/// A candidate; the worst one, farthest and then highest, is the greatest.
#[derive(PartialEq)]
struct Candidate {
    squared: f64,
    id: u32,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.squared.total_cmp(&other.squared).then(self.id.cmp(&other.id))
    }
}

/// One query on its way through the points.
struct Search {
    heap: BinaryHeap<Candidate>,
    squared_length: f64,
    bound: f64,
}

impl Search {
    /// The score that a point must reach to matter: `|q|^2 - 2 score` is its squared distance.
    fn threshold(&self, k: usize, squared_scale: f64) -> f32 {
        match self.heap.peek() {
            Some(worst) if self.heap.len() == k => {
                let score = 0.5 * (self.squared_length - worst.squared * squared_scale) - self.bound;
                // Rounding down: a threshold too high would lose a neighbour.
                (score as f32).next_down()
            }
            _ => f32::MIN,
        }
    }
}

/// The `k` nearest points of every query; ties go to the lowest row. `check` is asked now and then whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` exceeds the number of points or the columns differ; whatever `check` returns.
pub fn nearest<Q, P>(
    queries: &Points<'_, Q>,
    points: &Points<'_, P>,
    k: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<Neighbours>
where
    Q: Copy + Into<f64> + Send + Sync,
    P: Copy + Into<f64> + Send + Sync,
{
    if queries.columns() != points.columns() {
        let allowed = format!("{} columns, as points have", points.columns());
        return Err(Error::argument("queries", format_args!("{} columns", queries.columns()), allowed));
    }
    if k > points.rows() {
        return Err(Error::argument("k", k, format!("at most the {} points", points.rows())));
    }
    let mut neighbours = Neighbours { ids: Vec::new(), distances: Vec::new() };
    squared_neighbours(queries, points, k, check, &mut |id, squared| {
        neighbours.ids.push(i64::from(id));
        neighbours.distances.push(squared.sqrt());
    })?;
    Ok(neighbours)
}

/// Calls `found` for the `k` nearest points of every query with their squared distances, query by query; columns and `k`
/// are in order.
pub(super) fn squared_neighbours<Q, P>(
    queries: &Points<'_, Q>,
    points: &Points<'_, P>,
    k: usize,
    check: &dyn Fn() -> Result<()>,
    found: &mut dyn FnMut(u32, f64),
) -> Result<()>
where
    Q: Copy + Into<f64> + Send + Sync,
    P: Copy + Into<f64> + Send + Sync,
{
    if k == 0 {
        return Ok(());
    }
    let columns = points.columns();
    let frame = Frame::of(points).widened(queries);
    let mut searches: Vec<Search> =
        (0..queries.rows()).map(|_| Search { heap: BinaryHeap::new(), squared_length: 0.0, bound: 0.0 }).collect();
    for first in (0..points.rows()).step_by(BLOCK) {
        check()?;
        let count = BLOCK.min(points.rows() - first);
        let targets = Targets::pack(count, columns, |index, out| frame.map(points.row(first + index), out));
        let tasks: Vec<_> = searches.chunks_mut(TASK).enumerate().collect();
        parallel::for_each(tasks, |(task, searches)| {
            search(queries, points, k, task * TASK, searches, first, &targets, &frame);
        });
    }
    for search in searches {
        for candidate in search.heap.into_sorted_vec() {
            found(candidate.id, candidate.squared);
        }
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one loop body, taken out for the threads")]
fn search<Q: Copy + Into<f64>, P: Copy + Into<f64>>(
    queries: &Points<'_, Q>,
    points: &Points<'_, P>,
    k: usize,
    first_query: usize,
    searches: &mut [Search],
    first_point: usize,
    targets: &Targets,
    frame: &Frame,
) {
    let columns = points.columns();
    let squared_scale = frame.squared_scale();
    let mut rows = vec![0.0; searches.len() * columns];
    let mut exact = vec![0.0; searches.len() * columns];
    let mut thresholds = Vec::with_capacity(searches.len());
    for (index, search) in searches.iter_mut().enumerate() {
        let range = index * columns..(index + 1) * columns;
        let query = queries.row(first_query + index);
        frame.map(query, &mut rows[range.clone()]);
        exact[range.clone()].iter_mut().zip(query).for_each(|(out, &value)| *out = value.into());
        let row = &rows[range];
        let length = length(row);
        search.squared_length = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        // The score's error, and what rounding the query does to its squared length.
        search.bound = targets.error_bound(length) + 4.0 * f64::from(f32::EPSILON) * length * length;
        thresholds.push(search.threshold(k, squared_scale));
    }
    targets.reaching(&rows, &mut thresholds, &mut |index, target| {
        let id = first_point + target;
        let squared = squared_distance(points.row(id), &exact[index * columns..(index + 1) * columns]);
        let search = &mut searches[index];
        let candidate = Candidate { squared, id: id as u32 };
        if search.heap.len() < k {
            search.heap.push(candidate);
        } else if search.heap.peek().is_some_and(|worst| candidate < *worst) {
            search.heap.pop();
            search.heap.push(candidate);
        }
        search.threshold(k, squared_scale)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, integers, normal_f32};

    fn brute(queries: &Points<'_, f32>, points: &Points<'_, f32>, k: usize) -> Neighbours {
        let mut found = Neighbours { ids: Vec::new(), distances: Vec::new() };
        for row in 0..queries.rows() {
            let query: Vec<f64> = queries.row(row).iter().map(|&value| f64::from(value)).collect();
            let mut all: Vec<(f64, i64)> =
                (0..points.rows()).map(|id| (squared_distance(points.row(id), &query), id as i64)).collect();
            all.sort_by(|left, right| left.0.total_cmp(&right.0).then(left.1.cmp(&right.1)));
            found.ids.extend(all[..k].iter().map(|pair| pair.1));
            found.distances.extend(all[..k].iter().map(|pair| pair.0.sqrt()));
        }
        found
    }

    #[test]
    fn neighbours_are_those_of_brute_force_with_offsets_and_duplicates() {
        for (case, (rows, count, columns)) in
            [(1, 1, 1), (70, 300, 3), (130, 1000, 20), (3, 40_000, 2)].into_iter().enumerate()
        {
            let mut values = vec![0f32; (rows + count) * columns];
            let stream = Stream::new(case as u64, "n", 0, Kind::Normal);
            let units = Units::Range { first: 0, count: 1 };
            let length = values.len();
            normal_f32(stream, units, length, &mut values).unwrap();
            let mut coarse = vec![0i64; values.len()];
            integers(stream, units, length, 3, &mut coarse).unwrap();
            let coarse: Vec<f32> = coarse.iter().map(|&value| value as f32).collect();
            let far: Vec<f32> = values.iter().map(|value| value + 1000.0).collect();
            for values in [&values, &coarse, &far] {
                let queries = Points::new("queries", &values[..rows * columns], rows, columns).unwrap();
                let points = Points::new("points", &values[rows * columns..], count, columns).unwrap();
                for k in [1, 2, 7, count.min(50)] {
                    let k = k.min(count);
                    assert_eq!(nearest(&queries, &points, k, &|| Ok(())).unwrap(), brute(&queries, &points, k));
                }
            }
        }
    }

    #[test]
    fn wrong_sizes_are_refused_by_name() {
        let two = Points::new("points", &[0.0, 1.0], 1, 2).unwrap();
        let one = Points::new("points", &[0.0, 1.0], 2, 1).unwrap();
        assert!(nearest(&two, &one, 1, &|| Ok(())).unwrap_err().to_string().starts_with("queries"));
        assert!(nearest(&one, &one, 3, &|| Ok(())).unwrap_err().to_string().starts_with("k"));
        assert_eq!(nearest(&one, &one, 0, &|| Ok(())).unwrap().ids, Vec::<i64>::new());
        assert!(nearest(&one, &one, 1, &|| Err(Error::Interrupted)).is_err());
    }
}
