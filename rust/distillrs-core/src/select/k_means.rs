//! k-means: Lloyd's rounds from a k-means++ start.
//!
//! Lloyd, "Least squares quantization in PCM", 1982; Arthur and Vassilvitskii, "k-means++: the advantages of careful
//! seeding", 2007. Centres that cannot be nearer than a point's own are not looked at ([`assign`]).

use self::assign::Assigned;
use self::sums::Sums;
use super::mapped::Mapped;
use super::nearest::nearest;
use super::points::{Points, squared_distance};
use crate::random::{Kind, Stream, Units, uniform_f64};
use crate::{Error, Result, parallel};

mod assign;
mod sums;

/// What [`k_means`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Number of clusters.
    pub k: usize,
    /// Centres to start from, `[k, columns]`; k-means++ without.
    pub start: Option<&'a [f64]>,
    /// Most rounds of assignment and update.
    pub iterations: usize,
    /// Seed of the start.
    pub seed: u64,
    /// Tells the starts of several runs under one seed apart.
    pub run: u64,
}

/// A clustering. Every point's label is that of its nearest centre.
#[derive(Debug, Clone, PartialEq)]
pub struct Clusters {
    /// `[k, columns]`.
    pub centres: Vec<f64>,
    /// `[rows]`: each point's centre.
    pub labels: Vec<i64>,
    /// Sum of squared distances of points to their centres.
    pub inertia: f64,
    /// `[k]`: the point nearest to each centre that is not the medoid of a cluster before.
    pub medoids: Vec<i64>,
    /// Rounds that were run.
    pub rounds: usize,
}

/// A label that is no centre.
const NONE: u32 = u32::MAX;

/// Points that one task takes. Sums over tasks go in their order, whatever the threads do.
const TASK: usize = 1024;

/// Clusters points; deterministic at any thread count. A cluster that loses all its points starts again at the point
/// farthest from its own centre. `check` is asked before every round whether to go on.
///
/// # Errors
/// [`Error::Argument`] when `k` is 0 or above the number of points, or `start` has another size or a value that is not
/// finite; whatever `check` returns.
pub fn k_means<T>(points: &Points<'_, T>, settings: &Settings<'_>, check: &dyn Fn() -> Result<()>) -> Result<Clusters>
where
    T: Copy + Into<f64> + Send + Sync,
{
    let (rows, columns, k) = (points.rows(), points.columns(), settings.k);
    if k == 0 || k > rows {
        return Err(Error::argument("k", k, format!("from 1 to the number of points, {rows}")));
    }
    let run = Run::new(points);
    let mut centres = match settings.start {
        Some(start) => Points::new("start", start, k, columns)?.values().to_vec(),
        None => run.plus_plus(settings, check)?,
    };
    let mut assigned = Assigned::new(rows, k);
    let mut sums = Sums::new(&run.mapped.frame, k, rows);
    let mut steps = vec![0.0; k];
    let mut rounds = 0;
    loop {
        check()?;
        let moved = assigned.renew(points, &run.mapped, &centres, &steps);
        // One assignment more than updates: labels belong to the centres that are returned.
        if !moved || rounds == settings.iterations {
            break;
        }
        rounds += 1;
        let before = centres.clone();
        run.update(&mut centres, &mut assigned, &mut sums);
        steps = run.steps(&before, &centres);
    }
    let labels = assigned.labels;
    let distances = run.distances(&centres, &labels);
    let inertia = distances.iter().sum();
    let medoids = run.medoids(&centres, &labels, &distances, check)?;
    Ok(Clusters { centres, labels: labels.into_iter().map(i64::from).collect(), inertia, medoids, rounds })
}

/// The points and what is derived from them once.
struct Run<'a, T> {
    points: &'a Points<'a, T>,
    mapped: Mapped,
}

impl<'a, T: Copy + Into<f64> + Send + Sync> Run<'a, T> {
    fn new(points: &'a Points<'a, T>) -> Self {
        Self { points, mapped: Mapped::of(points) }
    }

    fn centre<'c>(&self, centres: &'c [f64], index: usize) -> &'c [f64] {
        &centres[index * self.points.columns()..(index + 1) * self.points.columns()]
    }

    /// How far each centre has moved, in the kernel's coordinates, rounded up.
    fn steps(&self, before: &[f64], centres: &[f64]) -> Vec<f64> {
        let columns = self.points.columns();
        let scale = self.mapped.frame.squared_scale().sqrt();
        let pairs = before.chunks_exact(columns).zip(centres.chunks_exact(columns));
        pairs.map(|(before, centre)| squared_distance(before, centre).sqrt() * scale * (1.0 + 1e-9)).collect()
    }

    /// Squared distance of every point to its centre.
    fn distances(&self, centres: &[f64], labels: &[u32]) -> Vec<f64> {
        let mut distances = vec![0.0; labels.len()];
        let tasks: Vec<_> = distances.chunks_mut(TASK).zip(labels.chunks(TASK)).enumerate().collect();
        parallel::for_each(tasks, |(task, (distances, labels))| {
            for (index, (out, &label)) in distances.iter_mut().zip(labels).enumerate() {
                *out = squared_distance(self.points.row(task * TASK + index), self.centre(centres, label as usize));
            }
        });
        distances
    }

    /// The point nearest to each centre that is not the medoid of a cluster before, the lowest of equals.
    ///
    /// A point that is nearer to some centre than each of that cluster's own is nearer still to its own centre: only
    /// points within the largest of the clusters' smallest distances can be medoids.
    fn medoids(
        &self,
        centres: &[f64],
        labels: &[u32],
        distances: &[f64],
        check: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<i64>> {
        let columns = self.points.columns();
        let mut smallest = vec![f64::INFINITY; centres.len() / columns];
        for (&label, &squared) in labels.iter().zip(distances) {
            let least = &mut smallest[label as usize];
            *least = least.min(squared);
        }
        // An empty cluster leaves all of them.
        let limit = smallest.into_iter().fold(0.0, f64::max);
        let ids: Vec<usize> = (0..labels.len()).filter(|&row| distances[row] <= limit).collect();
        let values: Vec<T> = ids.iter().flat_map(|&row| self.points.row(row)).copied().collect();
        let inner = Points::new("points", &values, ids.len(), columns)?;
        let found = nearest(&Points::new("centres", centres, centres.len() / columns, columns)?, &inner, 1, check)?;
        let mut is_taken = vec![false; labels.len()];
        let mut medoids = Vec::with_capacity(found.ids.len());
        for (centre, place) in centres.chunks_exact(columns).zip(found.ids) {
            let mut medoid = ids[place as usize];
            if is_taken[medoid] {
                check()?;
                medoid = self.nearest_free(centre, &is_taken);
            }
            is_taken[medoid] = true;
            medoids.push(medoid as i64);
        }
        Ok(medoids)
    }

    /// The nearest point that is not taken, the lowest of equals; there is one.
    fn nearest_free(&self, centre: &[f64], is_taken: &[bool]) -> usize {
        let tasks: Vec<_> = is_taken.chunks(TASK).enumerate().collect();
        let found = parallel::map(tasks, |(task, is_taken)| {
            let mut best = (f64::INFINITY, usize::MAX);
            for (index, _) in is_taken.iter().enumerate().filter(|(_, taken)| !**taken) {
                let squared = squared_distance(self.points.row(task * TASK + index), centre);
                if squared < best.0 {
                    best = (squared, task * TASK + index);
                }
            }
            best
        });
        found.into_iter().fold((f64::INFINITY, 0), |best, own| if own.0 < best.0 { own } else { best }).1
    }

    /// Moves every centre to the mean of its points.
    fn update(&self, centres: &mut [f64], assigned: &mut Assigned, sums: &mut Sums<'_>) {
        sums.follow(self.points, &assigned.labels);
        if sums.counts.contains(&0) {
            self.fill_empty(centres, assigned, sums.counts.clone());
            sums.follow(self.points, &assigned.labels);
        }
        sums.means(self.points, centres);
    }

    /// Gives each empty cluster the point that lies farthest from its centre; a point at its centre stays (there are
    /// fewer distinct points than clusters then, and the cluster stays empty where it is).
    fn fill_empty(&self, centres: &[f64], assigned: &mut Assigned, mut counts: Vec<usize>) {
        let distances = self.distances(centres, &assigned.labels);
        let mut order: Vec<u32> = (0..distances.len() as u32).collect();
        order.sort_by(|&left, &right| {
            distances[right as usize].total_cmp(&distances[left as usize]).then(left.cmp(&right))
        });
        let mut farthest = order.into_iter().map(|row| row as usize).take_while(|&row| distances[row] > 0.0);
        for cluster in 0..counts.len() {
            if counts[cluster] > 0 {
                continue;
            }
            // The last point of a cluster cannot leave it.
            let labels = &assigned.labels;
            let Some(row) = farthest.find(|&row| counts[labels[row] as usize] > 1) else { return };
            counts[labels[row] as usize] -= 1;
            counts[cluster] = 1;
            assigned.force(row, cluster as u32);
        }
    }

    /// Draws each centre from the points with probability in proportion to the squared distance to those drawn before.
    fn plus_plus(&self, settings: &Settings<'_>, check: &dyn Fn() -> Result<()>) -> Result<Vec<f64>> {
        let (rows, columns, k) = (self.points.rows(), self.points.columns(), settings.k);
        let mut draws = vec![0.0; k];
        let stream = Stream::new(settings.seed, "k-means start", 0, Kind::Uniform);
        uniform_f64(stream, Units::Range { first: settings.run, count: 1 }, k, &mut draws)?;
        let mut centres: Vec<f64> = Vec::with_capacity(k * columns);
        let mut is_drawn = vec![false; rows];
        let mut squared = vec![f64::INFINITY; rows];
        let mut pick = (draws[0] * rows as f64) as usize;
        for (draw, &share) in draws.iter().enumerate() {
            check()?;
            if draw > 0 {
                pick = choose(&squared, share).unwrap_or_else(|| {
                    // Every point lies on a centre: the lowest one that is not drawn yet.
                    is_drawn.iter().position(|&drawn| !drawn).unwrap_or(0)
                });
            }
            is_drawn[pick] = true;
            let centre: Vec<f64> = self.points.row(pick).iter().map(|&value| value.into()).collect();
            let tasks: Vec<_> = squared.chunks_mut(TASK).enumerate().collect();
            parallel::for_each(tasks, |(task, squared)| {
                for (index, best) in squared.iter_mut().enumerate() {
                    *best = best.min(squared_distance(self.points.row(task * TASK + index), &centre));
                }
            });
            centres.extend(centre);
        }
        Ok(centres)
    }
}

/// Index drawn in proportion to the weights; `None` when all are zero.
fn choose(weights: &[f64], draw: f64) -> Option<usize> {
    let sums: Vec<f64> = weights.chunks(TASK).map(|part| part.iter().sum()).collect();
    let total: f64 = sums.iter().sum();
    let mut rest = draw * total;
    let mut last = None;
    for (task, sum) in sums.iter().enumerate() {
        if rest >= *sum && task + 1 < sums.len() {
            rest -= sum;
            continue;
        }
        for (index, &weight) in weights.iter().enumerate().skip(task * TASK) {
            if weight > 0.0 {
                last = Some(index);
                if rest < weight {
                    return last;
                }
                rest -= weight;
            }
        }
        break;
    }
    // Rounding may leave a rest behind the last weight.
    last.or_else(|| weights.iter().rposition(|&weight| weight > 0.0))
}

#[cfg(test)]
mod tests;
