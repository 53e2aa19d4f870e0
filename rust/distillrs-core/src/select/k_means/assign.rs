//! Every point's nearest centre, by bounds on groups of centres.
//!
//! Each point keeps an upper bound of the distance to its own centre and, for each group of centres, a lower bound of
//! the distance to the nearest other one (Ding and others, "Yinyang k-means", 2015). Centres that move by s change a
//! distance by at most s, so a group whose bound stays above is not looked at. A group is a part of the kernel's panel,
//! or a few of them one after the other: what is looked at are whole tiles.

use super::{NONE, TASK};
use crate::parallel;
use crate::select::kernel::{Best, Look, Targets};
use crate::select::mapped::Mapped;
use crate::select::points::{Points, products, squared_distance};
use crate::select::reach::above;
use crate::simd::vectorised;

/// Most groups: bounds for a point take four bytes for each.
const GROUPS: usize = 16;

/// Shrinks a bound by more than its rounding.
const DOWN: f32 = 1.0 - 4.0 * f32::EPSILON;

/// Grows a bound by more than its rounding.
const UP: f32 = 1.0 + 4.0 * f32::EPSILON;

/// Labels of points, and what is known of their distances in the kernel's coordinates.
pub(super) struct Assigned {
    /// Each point's centre.
    pub labels: Vec<u32>,
    /// Most that a point's distance to its centre is; infinite when unknown.
    uppers: Vec<f32>,
    /// For each [`TASK`] of points and each group, minus what the points' distances to the group's centres are at least,
    /// their own centres aside.
    lowers: Vec<f32>,
    groups: Groups,
    /// Each point's, for centres of up to `longest`.
    reaches: Vec<Reach>,
    longest: f64,
}

/// Centres in parts of the kernel's panels, and these in groups of equal size.
#[derive(Clone, Copy)]
struct Groups {
    count: usize,
    /// Centres to a part.
    part: usize,
    /// Parts of all centres.
    parts: usize,
    /// Parts to a group.
    size: usize,
}

impl Groups {
    fn of(centres: usize) -> Self {
        let part = Targets::part();
        let parts = centres.div_ceil(part);
        let size = parts.div_ceil(GROUPS);
        Self { count: parts.div_ceil(size), part, parts, size }
    }

    fn group_of(&self, centre: u32) -> usize {
        centre as usize / (self.part * self.size)
    }
}

/// One round's centres.
struct Round<'a, T> {
    points: &'a Points<'a, T>,
    mapped: &'a Mapped,
    centres: &'a [f64],
    targets: Targets,
    /// The centres in the kernel's coordinates, one after the other.
    rows: Vec<f32>,
    /// What each centre has moved, at most.
    steps: Vec<f32>,
    /// The largest step of each group's.
    group_steps: Vec<f32>,
}

impl Assigned {
    pub(super) fn new(rows: usize, centres: usize) -> Self {
        let groups = Groups::of(centres);
        Self {
            labels: vec![NONE; rows],
            uppers: vec![f32::INFINITY; rows],
            lowers: vec![0.0; rows * groups.count],
            groups,
            reaches: vec![Reach::default(); rows],
            longest: f64::NEG_INFINITY,
        }
    }

    /// Labels a point whatever its distances are.
    pub(super) fn force(&mut self, row: usize, label: u32) {
        self.labels[row] = label;
        self.uppers[row] = f32::INFINITY;
        let (task, count) = (row / TASK, self.groups.count);
        let length = TASK.min(self.labels.len() - task * TASK);
        let lowers = &mut self.lowers[task * TASK * count..][..length * count];
        lowers.iter_mut().skip(row % TASK).step_by(length).for_each(|lower| *lower = 0.0);
    }

    /// Labels every point with its nearest centre, the lowest of equals; whether any label changed. The centres have
    /// made `steps` since, in the kernel's coordinates.
    pub(super) fn renew<T>(&mut self, points: &Points<'_, T>, mapped: &Mapped, centres: &[f64], steps: &[f64]) -> bool
    where
        T: Copy + Into<f64> + Send + Sync,
    {
        let columns = points.columns();
        let groups = self.groups;
        let mut rows = vec![0.0; centres.len()];
        for (centre, out) in centres.chunks_exact(columns).zip(rows.chunks_exact_mut(columns)) {
            // Centres outside the points' range (a start from elsewhere) would overflow nothing: f32 has the exponents.
            mapped.frame.map(centre, out);
        }
        let targets = Targets::pack(centres.len() / columns, columns, |index, out| {
            out.copy_from_slice(&rows[index * columns..(index + 1) * columns]);
        });
        let steps: Vec<f32> = steps.iter().map(|&step| (step as f32).next_up()).collect();
        let group_steps =
            steps.chunks(groups.part * groups.size).map(|steps| steps.iter().copied().fold(0.0, f32::max)).collect();
        if targets.longest() > self.longest {
            // Means of points are no longer than those: this is done once, or again after a start from elsewhere.
            self.longest = targets.longest().max(mapped.longest());
            let reach = |&length| Reach::of(columns, length, self.longest);
            self.reaches = mapped.lengths.iter().map(reach).collect();
        }
        let round = Round { points, mapped, centres, targets, rows, steps, group_steps };
        let parts = self.labels.chunks_mut(TASK).zip(self.uppers.chunks_mut(TASK));
        let parts = parts.zip(self.lowers.chunks_mut(TASK * groups.count)).zip(self.reaches.chunks(TASK));
        let moved = parallel::map(parts.enumerate().collect(), |(task, (((labels, uppers), lowers), reaches))| {
            round.renew(task * TASK, groups, reaches, labels, uppers, lowers)
        });
        moved.into_iter().any(|moved| moved)
    }
}

/// What a squared distance can be, for a point: so much minus twice the score with a centre.
#[derive(Clone, Copy, Default)]
struct Reach {
    low: f32,
    high: f32,
    /// By how much the largest score has to be above the next one to be the largest in truth.
    gap: f32,
}

impl Reach {
    fn of(columns: usize, length: f64, longest: f64) -> Self {
        // The score's error, what rounding the coordinates does to the squared length, and the rounding of differences;
        // distances in f64 are compared in the end: they are rounded, too.
        let (unit, score) = (f64::from(f32::EPSILON), Targets::error_bound_of(columns, length, longest));
        let error = 2.0 * score + unit * (12.0 * length * length + 4.0 * longest * longest);
        Self {
            low: (length * length - error) as f32,
            high: (length * length + error) as f32,
            gap: (2.0 * score) as f32 * UP,
        }
    }

    /// At least the distance at a score.
    #[inline(always)]
    fn lower(self, score: f32) -> f32 {
        // No bound from a score that is out of range.
        let squared = self.low - 2.0 * score;
        if squared > 0.0 && squared < f32::MAX { squared.sqrt() * DOWN } else { 0.0 }
    }

    /// At most the distance at a score.
    #[inline(always)]
    fn upper(self, score: f32) -> f32 {
        let squared = self.high - 2.0 * score;
        let squared = if squared < 0.0 { 0.0 } else { squared };
        if squared < f32::MAX { squared.sqrt() * UP } else { f32::INFINITY }
    }
}

impl<T: Copy + Into<f64> + Send + Sync> Round<'_, T> {
    /// See [`Assigned::renew`]; for the points from `first` on.
    fn renew(
        &self,
        first: usize,
        groups: Groups,
        reaches: &[Reach],
        labels: &mut [u32],
        uppers: &mut [f32],
        lowers: &mut [f32],
    ) -> bool {
        let count = labels.len();
        let rows = self.mapped.rows(first..first + count);
        let mut nearest = vec![f32::NEG_INFINITY; count];
        for (lowers, &step) in lowers.chunks_exact_mut(count).zip(&self.group_steps) {
            sink(lowers, step, &mut nearest);
        }
        for (upper, &label) in uppers.iter_mut().zip(labels.iter()) {
            // No step is known before the first round: nothing else is, either.
            *upper = (*upper + self.steps.get(label as usize).copied().unwrap_or(0.0)) * UP;
        }
        let mut ids = Vec::with_capacity(count);
        not_above(&nearest, uppers, &mut ids);
        let mut own = vec![f32::NEG_INFINITY; count];
        if labels[0] != NONE {
            products(rows, &ids, &self.rows, labels, self.points.columns(), &mut own);
            for &id in &ids {
                let index = id as usize;
                own[index] += self.targets.bias(labels[index] as usize);
                uppers[index] = reaches[index].upper(own[index]);
            }
            ids.clear();
            not_above(&nearest, uppers, &mut ids);
        }
        let mut best = vec![Best::NONE; count];
        for &id in &ids {
            let (index, label) = (id as usize, labels[id as usize]);
            // A look at the label's own group finds it again.
            if label != NONE && -lowers[groups.group_of(label) * count + index] > uppers[index] {
                best[index] = Best { target: label, score: own[index], next: f32::NEG_INFINITY };
            }
        }
        let besides = self.look(groups, rows, reaches, &mut best, uppers, lowers);
        let mut moved = false;
        for &id in &ids {
            let (index, label, best) = (id as usize, labels[id as usize], best[id as usize]);
            // Not "gap <= bound": a gap that is not a number is no decision either.
            let is_clear = best.score - best.next > reaches[index].gap;
            let mut choice = best.target;
            if is_clear {
                uppers[index] = reaches[index].upper(best.score);
                if let Some(beside) = besides[index] {
                    let other = if groups.size == 1 { beside } else { best.next };
                    lowers[groups.group_of(choice) * count + index] = -reaches[index].lower(other);
                }
            } else {
                choice = self.nearest_exactly(first + index);
                uppers[index] = f32::INFINITY;
            }
            if choice != label {
                moved = true;
                labels[index] = choice;
                if label != NONE {
                    let lower = &mut lowers[groups.group_of(label) * count + index];
                    *lower = lower.max(-reaches[index].lower(own[index]));
                }
            }
        }
        moved
    }

    /// Looks at the groups that may have a nearer centre. Where the best centre was found in one, what is beside it there.
    fn look(
        &self,
        groups: Groups,
        rows: &[f32],
        reaches: &[Reach],
        best: &mut [Best],
        uppers: &[f32],
        lowers: &mut [f32],
    ) -> Vec<Option<f32>> {
        let count = uppers.len();
        let mut besides = vec![None; count];
        let (mut near, mut largest, mut better) = (Vec::new(), Vec::new(), Vec::new());
        for (group, lowers) in lowers.chunks_exact_mut(count).enumerate() {
            // Points that no group is near enough to are not among those of any.
            near.clear();
            not_above(lowers, uppers, &mut near);
            largest.clear();
            largest.resize(near.len(), f32::NEG_INFINITY);
            for part in group * groups.size..groups.parts.min((group + 1) * groups.size) {
                better.clear();
                let mut look = Look { best, largest: &mut largest, better: &mut better };
                self.targets.look(part, rows, &near, &mut look);
                better.iter().for_each(|&(place, other)| besides[near[place as usize] as usize] = Some(other));
            }
            for (&id, &largest) in near.iter().zip(&largest) {
                lowers[id as usize] = -reaches[id as usize].lower(largest);
            }
        }
        besides
    }

    fn nearest_exactly(&self, row: usize) -> u32 {
        let mut best = (f64::INFINITY, 0);
        for (index, centre) in self.centres.chunks_exact(self.points.columns()).enumerate() {
            let squared = squared_distance(self.points.row(row), centre);
            if squared < best.0 {
                best = (squared, index as u32);
            }
        }
        best.1
    }
}

/// The points of which a lower bound, given as its negative, is not above the upper one.
fn not_above(lowers: &[f32], uppers: &[f32], out: &mut Vec<u32>) {
    // The difference of two numbers is zero for equal ones only.
    above(lowers, uppers, -f32::MIN_POSITIVE, 0, out);
}

vectorised! {
    /// Lowers bounds, given as their negatives, by a step; `nearest` becomes the lowest of a point's.
    fn sink(bounds: &mut [f32], step: f32, nearest: &mut [f32]) = sink_body;
}

#[inline(always)]
fn sink_body(bounds: &mut [f32], step: f32, nearest: &mut [f32]) {
    for (bound, nearest) in bounds.iter_mut().zip(nearest) {
        let raised = *bound + step;
        *bound = if raised < 0.0 { raised * DOWN } else { 0.0 };
        *nearest = if *bound > *nearest { *bound } else { *nearest };
    }
}
