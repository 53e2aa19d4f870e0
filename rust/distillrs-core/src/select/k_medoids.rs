//! k-medoids: FasterPAM's eager swaps.
//!
//! Schubert and Rousseeuw, "Fast and eager k-medoids clustering", Information Systems 2021. A candidate c changes the
//! loss by what it saves for points that it is nearer to than their medoids, and for each medoid m by what the removal
//! of m then costs; the sums for all m come from one pass over the points. Only points that are nearer to c than to
//! their second medoid have a part in it.
//!
//! Products of `f32` tell which those are, and what c changes, up to a bound on their error; most candidates help so
//! little that this decides. The others are measured in `f64`, so the swaps are those of the plain rule. The products
//! are kept where the caller grants the memory, else they are made again in every pass.

use std::ops::Range;

use super::kernel::Targets;
use super::nearest::nearest;
use super::points::{Points, length, squared_distance};
use super::reach::{Reach, tasks};
use crate::random::{Kind, Stream, choose};
use crate::{Error, Result, parallel};

/// What [`k_medoids`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Swaps<'a> {
    /// Number of medoids.
    pub k: usize,
    /// Medoids to start from, in the order of the clusters; drawn without.
    pub start: Option<&'a [i64]>,
    /// Most passes over the candidates.
    pub iterations: usize,
    /// Seed of the drawn start.
    pub seed: u64,
    /// Tells the starts of several runs under one seed apart.
    pub run: u64,
    /// Bytes that kept products may take: four for each pair of points, or none are kept.
    pub kept: usize,
}

/// A clustering around points. Every point's label is that of its nearest medoid.
#[derive(Debug, Clone, PartialEq)]
pub struct Medoids {
    /// `[k]`: rows of the points.
    pub medoids: Vec<i64>,
    /// `[rows]`: each point's medoid, the lowest of equals.
    pub labels: Vec<i64>,
    /// Sum of the points' distances (not squared) to their medoids.
    pub loss: f64,
    /// Swaps that were made.
    pub swaps: usize,
}

/// Changes of the loss below this share of it may be rounding, and could go round in circles.
const LEAST: f64 = 1e-12;

/// Clusters points around `k` of them; deterministic at any thread count. Candidates come in the order of the rows; each
/// that lowers the loss is swapped in at once, for the medoid with which the loss falls most, the lowest of equals. It
/// ends when no candidate lowers the loss. `check` is asked now and then whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` is 0 or above the number of points, or `start` has another size or rows that are not
/// there or come twice; whatever `check` returns.
pub fn k_medoids<T>(points: &Points<'_, T>, settings: &Swaps<'_>, check: &dyn Fn() -> Result<()>) -> Result<Medoids>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (rows, k) = (points.rows(), settings.k);
    if k == 0 || k > rows {
        return Err(Error::argument("k", k, format!("from 1 to the number of points, {rows}")));
    }
    let medoids = match settings.start {
        Some(start) => checked(start, k, rows)?,
        None => {
            let name = format!("k-medoids start/{}", settings.run);
            let drawn = choose(Stream::new(settings.seed, &name, 0, Kind::Permutation), rows as u64, k as u64)?;
            drawn.into_iter().map(|id| id as usize).collect()
        }
    };
    let (medoids, swaps) = if k == 1 {
        middle(points, medoids[0], settings.iterations, check)?
    } else {
        let mut state = State::new(points, medoids, settings.kept);
        state.run(settings.iterations, check)?;
        (state.medoids, state.swaps)
    };
    let values: Vec<f64> = medoids.iter().flat_map(|&id| points.row(id).iter().map(|&value| value.into())).collect();
    let found = nearest(points, &Points::new("medoids", &values, k, points.columns())?, 1, check)?;
    Ok(Medoids {
        medoids: medoids.into_iter().map(|id| id as i64).collect(),
        labels: found.ids,
        loss: found.distances.iter().sum(),
        swaps,
    })
}

fn checked(start: &[i64], k: usize, rows: usize) -> Result<Vec<usize>> {
    let mut is_taken = vec![false; rows];
    if start.len() != k {
        return Err(Error::argument("start", format_args!("{} rows", start.len()), format!("k = {k} rows")));
    }
    let mut medoids = Vec::with_capacity(k);
    for &id in start {
        match usize::try_from(id).ok().and_then(|id| is_taken.get_mut(id)) {
            Some(taken) if !*taken => *taken = true,
            _ => return Err(Error::argument("start", id, format!("distinct rows from 0 to {rows} - 1"))),
        }
        medoids.push(id as usize);
    }
    Ok(medoids)
}

/// The one medoid: each candidate that is better than the last one replaces it.
fn middle<T>(
    points: &Points<'_, T>,
    start: usize,
    iterations: usize,
    check: &dyn Fn() -> Result<()>,
) -> Result<(Vec<usize>, usize)>
where
    T: Copy + Into<f64> + Send + Sync,
{
    if iterations == 0 {
        return Ok((vec![start], 0));
    }
    let loss = |id: usize| -> f64 {
        let own: Vec<f64> = points.row(id).iter().map(|&value| value.into()).collect();
        (0..points.rows()).map(|point| squared_distance(points.row(point), &own).sqrt()).sum()
    };
    let (mut best, mut swaps) = ((loss(start), start), 0);
    for first in (0..points.rows()).step_by(64) {
        check()?;
        let candidates: Vec<usize> = (first..points.rows().min(first + 64)).collect();
        for (id, loss) in candidates.iter().zip(parallel::map(candidates.clone(), loss)) {
            if loss < best.0 - LEAST * best.0 {
                best = (loss, *id);
                swaps += 1;
            }
        }
    }
    Ok((vec![best.1], swaps))
}

/// A point's nearest medoid and the one after it: clusters and distances; of equals the lowest cluster comes first.
#[derive(Debug, Clone, Copy)]
struct Two {
    first: (u32, f64),
    second: (u32, f64),
}

impl Two {
    /// With another medoid, which none of the two is, beside them.
    fn with(self, other: (u32, f64)) -> Self {
        if comes_before(other, self.first) {
            Self { first: other, second: self.first }
        } else if comes_before(other, self.second) {
            Self { second: other, ..self }
        } else {
            self
        }
    }
}

impl Two {
    fn sorted(self) -> Self {
        if comes_before(self.second, self.first) { Self { first: self.second, second: self.first } } else { self }
    }
}

fn comes_before(left: (u32, f64), right: (u32, f64)) -> bool {
    left.1 < right.1 || (left.1 == right.1 && left.0 < right.0)
}

/// What the estimate needs of [`Two`], in the kernel's coordinates.
#[derive(Debug, Clone, Copy, Default)]
struct Rough {
    cluster: u32,
    first: f32,
    second: f32,
}

/// Columns below which products are made again as fast as they are read from memory.
const KEPT_COLUMNS: usize = 128;

/// Candidates whose products are made together.
const BLOCK: usize = 32;

/// Products of candidates with all points: of all, as far as they are made, or of one block.
struct Products {
    values: Vec<f32>,
    /// The candidate that `values` begins with.
    first: usize,
    /// How many have their products.
    count: usize,
    is_kept: bool,
}

/// Memory for one estimate.
#[derive(Default)]
struct Scratch {
    near: Vec<u32>,
    changes: Vec<f64>,
}

struct State<'a, T> {
    points: &'a Points<'a, T>,
    /// Every point's limit is the squared distance to its second medoid.
    reach: Reach<'a, T>,
    products: Products,
    medoids: Vec<usize>,
    /// The medoids as the kernel takes them.
    targets: Targets,
    is_medoid: Vec<bool>,
    two: Vec<Two>,
    rough: Vec<Rough>,
    /// What the removal of each medoid costs.
    removal: Vec<f64>,
    loss: f64,
    swaps: usize,
}

impl<'a, T: Copy + Into<f64> + Send + Sync> State<'a, T> {
    fn new(points: &'a Points<'a, T>, medoids: Vec<usize>, kept: usize) -> Self {
        let (rows, columns) = (points.rows(), points.columns());
        let mut is_medoid = vec![false; rows];
        medoids.iter().for_each(|&id| is_medoid[id] = true);
        let reach = Reach::new(points);
        let width = reach.width();
        let is_kept = columns >= KEPT_COLUMNS && width.checked_mul(rows).is_some_and(|pairs| pairs <= kept / 4);
        let values = vec![0.0; width * if is_kept { rows } else { BLOCK.min(rows) }];
        let targets =
            Targets::pack(medoids.len(), columns, |index, out| reach.frame.map(points.row(medoids[index]), out));
        let unknown = Two { first: (0, 0.0), second: (0, 0.0) };
        let mut state = Self {
            points,
            reach,
            products: Products { values, first: 0, count: 0, is_kept },
            medoids,
            targets,
            is_medoid,
            two: vec![unknown; rows],
            rough: vec![Rough::default(); rows],
            removal: Vec::new(),
            loss: 0.0,
            swaps: 0,
        };
        state.find_two((0..rows).collect());
        state.sum();
        state
    }

    fn run(&mut self, iterations: usize, check: &dyn Fn() -> Result<()>) -> Result<()> {
        let rows = self.points.rows();
        let threads = parallel::threads();
        // Candidates that threads look at together; those behind one that helps are looked at again.
        let least = if threads == 1 { 1 } else { 4 * threads };
        let mut together = least;
        let mut idle = 0;
        for _ in 0..iterations {
            let mut candidate = 0;
            while candidate < rows {
                if idle >= rows {
                    return Ok(());
                }
                if candidate % BLOCK == 0 {
                    check()?;
                }
                let block_end = rows.min((candidate / BLOCK + 1) * BLOCK);
                self.make(candidate / BLOCK * BLOCK..block_end);
                let end = block_end.min(candidate + together).min(candidate + rows - idle);
                let Some(found) = self.first_that_may_help(candidate..end) else {
                    idle += end - candidate;
                    candidate = end;
                    together = BLOCK.min(2 * together);
                    continue;
                };
                idle += found + 1 - candidate;
                candidate = found + 1;
                let near = self.near(found);
                if let Some(cluster) = self.improved_by(&near) {
                    self.swap(cluster, found, &near);
                    idle = 0;
                    together = least;
                }
            }
        }
        Ok(())
    }

    /// Makes the products of a block of candidates, if they are not there.
    fn make(&mut self, block: Range<usize>) {
        let products = &mut self.products;
        if block.start >= products.first && block.end <= products.first + products.count {
            return;
        }
        let width = self.reach.width();
        let place = if products.is_kept { block.start } else { 0 };
        let out = &mut products.values[place * width..(place + block.len()) * width];
        let reach = &self.reach;
        // Eight candidates to a task: a tile's.
        let tasks: Vec<_> = out.chunks_mut(8 * width).zip(block.clone().step_by(8)).collect();
        parallel::for_each(tasks, |(out, first)| {
            let ids: Vec<usize> = (first..block.end.min(first + 8)).collect();
            reach.scores(&ids, 0, out);
        });
        if products.is_kept {
            // Blocks come in their order in the first pass.
            products.count = block.end;
        } else {
            (products.first, products.count) = (block.start, block.len());
        }
    }

    fn products_of(&self, candidate: usize) -> &[f32] {
        let width = self.reach.width();
        &self.products.values[(candidate - self.products.first) * width..][..width]
    }

    /// The first candidate of a block that may lower the loss.
    fn first_that_may_help(&self, candidates: Range<usize>) -> Option<usize> {
        let first = |mut part: Range<usize>| {
            let mut scratch = Scratch::default();
            part.find(|&candidate| !self.is_medoid[candidate] && self.may_help(candidate, &mut scratch))
        };
        let part = candidates.len().div_ceil(parallel::threads());
        let parts = candidates.clone().step_by(part).map(|start| start..candidates.end.min(start + part)).collect();
        parallel::map(parts, first).into_iter().flatten().next()
    }

    /// Whether a candidate may lower the loss, as far as the products tell.
    fn may_help(&self, candidate: usize, scratch: &mut Scratch) -> bool {
        let products = self.products_of(candidate);
        let scale = self.reach.frame.squared_scale().sqrt();
        scratch.near.clear();
        self.reach.near(candidate, 0, products, &mut scratch.near);
        scratch.changes.clear();
        scratch.changes.extend(self.removal.iter().map(|cost| cost * scale));
        let squared_length = 2.0 * self.reach.half_length(candidate) as f32;
        // What a squared distance can be off, and a distance that is not smaller than its root.
        let off = (2.0 * self.reach.error(candidate)) as f32;
        let root = off.sqrt();
        let (mut saved, mut error) = (0.0, 0.0);
        for &point in &scratch.near {
            let Rough { cluster, first, second } = self.rough[point as usize];
            let distance = (squared_length - 2.0 * products[point as usize]).max(0.0).sqrt();
            saved += f64::from(distance.min(first) - first);
            scratch.changes[cluster as usize] += f64::from(distance.max(first).min(second) - second);
            error += off / distance.max(root) + 4.0 * f32::EPSILON * second;
        }
        let least = scratch.changes.iter().copied().fold(f64::INFINITY, f64::min);
        // Sums of f32 errors are themselves rounded, by far less than the half that is added.
        least + saved < 1.5 * f64::from(error)
    }

    /// The points nearer to a candidate than to their second medoid, with squared distances.
    fn near(&self, candidate: usize) -> Vec<(usize, f64)> {
        let mut near = Vec::new();
        self.reach.near(candidate, 0, self.products_of(candidate), &mut near);
        self.reach.measure(candidate, &near)
    }

    /// The cluster whose medoid the candidate should replace, if the loss falls by it.
    fn improved_by(&self, near: &[(usize, f64)]) -> Option<usize> {
        let mut changes = self.removal.clone();
        let mut saved = 0.0;
        for &(point, squared) in near {
            let Two { first, second } = self.two[point];
            let distance = squared.sqrt();
            if distance < first.1 {
                saved += distance - first.1;
                changes[first.0 as usize] += first.1 - second.1;
            } else {
                changes[first.0 as usize] += distance - second.1;
            }
        }
        let mut best = (f64::INFINITY, 0);
        for (cluster, &change) in changes.iter().enumerate() {
            if change < best.0 {
                best = (change, cluster);
            }
        }
        (best.0 + saved < -LEAST * self.loss).then_some(best.1)
    }

    fn swap(&mut self, cluster: usize, candidate: usize, near: &[(usize, f64)]) {
        self.is_medoid[self.medoids[cluster]] = false;
        self.is_medoid[candidate] = true;
        self.medoids[cluster] = candidate;
        let mut row = vec![0.0; self.points.columns()];
        self.reach.frame.map(self.points.row(candidate), &mut row);
        self.targets.replace(cluster, &row);
        let slot = cluster as u32;
        for &(point, squared) in near {
            let (two, own) = (self.two[point], (slot, squared.sqrt()));
            // Whichever of the two the medoid was that is gone, the candidate lies before the third.
            let two = if two.first.0 == slot {
                Two { first: two.second, second: own }.sorted()
            } else if two.second.0 == slot {
                Two { first: two.first, second: own }.sorted()
            } else {
                two.with(own)
            };
            self.set(point, two);
        }
        let mut is_near = near.iter().map(|near| near.0).peekable();
        let mut lost = Vec::new();
        for (point, two) in self.two.iter().enumerate() {
            if is_near.next_if_eq(&point).is_none() && (two.first.0 == slot || two.second.0 == slot) {
                lost.push(point);
            }
        }
        self.find_two(lost);
        self.sum();
        self.swaps += 1;
    }

    fn set(&mut self, point: usize, two: Two) {
        let squared = squared_distance(self.points.row(point), &self.row(self.medoids[two.second.0 as usize]));
        self.set_with(point, two, squared);
    }

    fn set_with(&mut self, point: usize, two: Two, squared: f64) {
        let scale = self.reach.frame.squared_scale().sqrt();
        self.two[point] = two;
        self.rough[point] =
            Rough { cluster: two.first.0, first: (two.first.1 * scale) as f32, second: (two.second.1 * scale) as f32 };
        self.reach.set_limit(point, squared);
    }

    fn row(&self, id: usize) -> Vec<f64> {
        self.points.row(id).iter().map(|&value| value.into()).collect()
    }

    /// Finds both medoids of the points anew.
    fn find_two(&mut self, ids: Vec<usize>) {
        let (columns, width) = (self.points.columns(), self.targets.width());
        let medoids: Vec<Vec<f64>> = self.medoids.iter().map(|&id| self.row(id)).collect();
        let (points, targets, frame) = (self.points, &self.targets, &self.reach.frame);
        let found = parallel::map(ids.chunks(256).collect(), |ids| {
            let mut rows = vec![0.0; ids.len() * columns];
            for (&id, out) in ids.iter().zip(rows.chunks_exact_mut(columns)) {
                frame.map(points.row(id), out);
            }
            let mut scores = vec![0.0; ids.len() * width];
            targets.scores(0, &rows, &mut scores);
            let two_nearest = |((&point, row), scores): ((&usize, &[f32]), &[f32])| {
                let (mut best, mut next) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
                for &score in scores {
                    (best, next) = if score > best { (score, best) } else { (best, next.max(score)) };
                }
                let threshold = f64::from(next) - 2.0 * targets.error_bound(length(row));
                let unknown = (u32::MAX, f64::INFINITY);
                let (mut first, mut second) = (unknown, unknown);
                for (cluster, medoid) in medoids.iter().enumerate() {
                    if f64::from(scores[cluster]) >= threshold {
                        let own = (cluster as u32, squared_distance(points.row(point), medoid));
                        if own.1 < first.1 {
                            (first, second) = (own, first);
                        } else if own.1 < second.1 {
                            second = own;
                        }
                    }
                }
                (first, second)
            };
            let all = ids.iter().zip(rows.chunks_exact(columns)).zip(scores.chunks_exact(width));
            all.map(two_nearest).collect::<Vec<_>>()
        });
        for (&point, (first, second)) in ids.iter().zip(found.into_iter().flatten()) {
            let two = Two { first: (first.0, first.1.sqrt()), second: (second.0, second.1.sqrt()) };
            self.set_with(point, two, second.1);
        }
    }

    /// Sums up the loss and what each removal costs.
    fn sum(&mut self) {
        let k = self.medoids.len();
        let parts = parallel::map(tasks(self.points.rows()), |range| {
            let (mut loss, mut removal) = (0.0, vec![0.0; k]);
            for two in &self.two[range] {
                loss += two.first.1;
                removal[two.first.0 as usize] += two.second.1 - two.first.1;
            }
            (loss, removal)
        });
        self.loss = parts.iter().map(|part| part.0).sum();
        self.removal = vec![0.0; k];
        for (_, part) in parts {
            self.removal.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Units, integers, normal_f32};

    fn go() -> Result<()> {
        Ok(())
    }

    fn base(k: usize) -> Swaps<'static> {
        Swaps { k, start: None, iterations: 100, seed: 1, run: 0, kept: 0 }
    }

    fn points_of(rows: usize, columns: usize, is_coarse: bool) -> Vec<f32> {
        let mut values = vec![0f32; rows * columns];
        let units = Units::Range { first: 0, count: 1 };
        if is_coarse {
            let mut drawn = vec![0i64; values.len()];
            integers(Stream::new(1, "p", 0, Kind::Integers), units, values.len(), 5, &mut drawn).unwrap();
            return drawn.into_iter().map(|value| value as f32).collect();
        }
        let count = values.len();
        normal_f32(Stream::new(rows as u64, "p", 0, Kind::Normal), units, count, &mut values).unwrap();
        values
    }

    fn distance(points: &Points<'_, f32>, left: usize, right: usize) -> f64 {
        let own: Vec<f64> = points.row(right).iter().map(|&value| f64::from(value)).collect();
        squared_distance(points.row(left), &own).sqrt()
    }

    fn loss(points: &Points<'_, f32>, medoids: &[usize]) -> f64 {
        let nearest = |point| medoids.iter().map(|&id| distance(points, point, id)).fold(f64::INFINITY, f64::min);
        (0..points.rows()).map(nearest).sum()
    }

    /// Eager swaps in which every loss is summed up anew.
    fn brute(points: &Points<'_, f32>, start: &[i64]) -> Vec<i64> {
        let mut medoids: Vec<usize> = start.iter().map(|&id| id as usize).collect();
        let mut now = loss(points, &medoids);
        let mut idle = 0;
        for candidate in (0..points.rows()).cycle() {
            if idle >= points.rows() {
                break;
            }
            idle += 1;
            if medoids.contains(&candidate) {
                continue;
            }
            let mut best = (f64::INFINITY, 0);
            for cluster in 0..medoids.len() {
                let mut other = medoids.clone();
                other[cluster] = candidate;
                let changed = loss(points, &other);
                if changed < best.0 - 1e-9 * now {
                    best = (changed, cluster);
                }
            }
            if best.0 < now - 1e-9 * now {
                medoids[best.1] = candidate;
                now = best.0;
                idle = 0;
            }
        }
        medoids.into_iter().map(|id| id as i64).collect()
    }

    #[test]
    fn medoids_are_those_of_plain_swaps() {
        for (rows, columns, k) in [(1, 1, 1), (12, 1, 12), (40, 2, 3), (60, 5, 7), (50, 3, 1), (90, 20, 2)] {
            let values = points_of(rows, columns, false);
            let far: Vec<f32> = values.iter().map(|value| value + 100.0).collect();
            for values in [&values, &far] {
                let points = Points::new("points", values, rows, columns).unwrap();
                let start: Vec<i64> = (0..k as i64).collect();
                let settings = Swaps { start: Some(&start), ..base(k) };
                let found = k_medoids(&points, &settings, &go).unwrap();
                assert_eq!(k_medoids(&points, &Swaps { kept: 1 << 20, ..settings }, &go).unwrap(), found);
                assert_eq!(found.medoids, brute(&points, &start));
                let medoids: Vec<usize> = found.medoids.iter().map(|&id| id as usize).collect();
                assert!((found.loss - loss(&points, &medoids)).abs() <= 1e-12 * (1.0 + found.loss));
            }
        }
    }

    #[test]
    fn no_single_swap_helps_in_the_end_and_labels_are_the_nearest() {
        for is_coarse in [false, true] {
            let values = points_of(150, 2, is_coarse);
            let points = Points::new("points", &values, 150, 2).unwrap();
            for k in [2, 5, 150] {
                let found = k_medoids(&points, &base(k), &go).unwrap();
                let medoids: Vec<usize> = found.medoids.iter().map(|&id| id as usize).collect();
                for (point, &label) in found.labels.iter().enumerate() {
                    let all: Vec<f64> = medoids.iter().map(|&id| distance(&points, point, id)).collect();
                    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
                    assert_eq!(label as usize, all.iter().position(|&own| own == least).unwrap());
                }
                for cluster in 0..k.min(5) {
                    for candidate in 0..150 {
                        let mut other = medoids.clone();
                        other[cluster] = candidate;
                        assert!(loss(&points, &other) >= found.loss * (1.0 - 1e-9));
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_clustered_is_refused_by_name() {
        let points = Points::new("points", &[0.0, 1.0, 2.0], 3, 1).unwrap();
        let refused = |settings: Swaps<'_>| k_medoids(&points, &settings, &go).unwrap_err().to_string();
        assert!(refused(base(0)).starts_with("k:") && refused(base(4)).starts_with("k:"));
        for start in [&[0, 0][..], &[0, 3], &[-1, 0], &[0]] {
            assert!(refused(Swaps { start: Some(start), ..base(2) }).starts_with("start:"));
        }
        assert!(k_medoids(&points, &base(2), &|| Err(Error::Interrupted)).is_err());
        let still = Swaps { start: Some(&[0, 1]), iterations: 0, ..base(2) };
        assert_eq!(k_medoids(&points, &still, &go).unwrap().medoids, [0, 1]);
    }
}
