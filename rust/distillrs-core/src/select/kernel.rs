//! The one dense loop of this module: scores of a few rows against a panel of targets.
//!
//! The score of row x and target c is `x . c - |c|^2 / 2`: the target with the largest one is the nearest. Its rounding
//! error is bounded by [`error_bound`]; callers decide anew, exactly, whatever lies within it. That is why this loop may
//! fuse products with sums and take any vector width.

use crate::host::Level;

/// The target with the largest score.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Best {
    pub target: u32,
    pub score: f32,
    /// How far the next score lies behind.
    pub gap: f32,
}

/// Targets of a panel: two vectors of them.
fn lanes(level: Level) -> usize {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => 32,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => 16,
        Level::Portable => 8,
    }
}

/// Targets in panels: coordinate by coordinate, [`lanes`] targets side by side.
pub(super) struct Targets {
    level: Level,
    count: usize,
    columns: usize,
    panels: Vec<f32>,
    /// `-|c|^2 / 2`; minus infinity where a panel has no target.
    biases: Vec<f32>,
    longest: f64,
}

impl Targets {
    /// Packs `count` targets; `target` writes the coordinates of one.
    pub(super) fn pack(count: usize, columns: usize, target: impl FnMut(usize, &mut [f32])) -> Self {
        Self::pack_for(Level::here(), count, columns, target)
    }

    fn pack_for(level: Level, count: usize, columns: usize, mut target: impl FnMut(usize, &mut [f32])) -> Self {
        let lanes = lanes(level);
        let panels = count.div_ceil(lanes);
        let mut packed = Self {
            level,
            count: 0,
            columns,
            panels: vec![0.0; panels * columns * lanes],
            biases: vec![f32::NEG_INFINITY; panels * lanes],
            longest: 0.0,
        };
        let mut row = vec![0.0; columns];
        for index in 0..count {
            target(index, &mut row);
            packed.push(&row);
        }
        packed
    }

    /// No targets yet, and room for `count`; the first ones have at most this length.
    pub(super) fn with_room(count: usize, columns: usize, longest: f64) -> Self {
        let level = Level::here();
        let panels = count.div_ceil(lanes(level));
        let (values, biases) = (panels * columns * lanes(level), panels * lanes(level));
        Self { level, count: 0, columns, panels: vec![0.0; values], biases: vec![f32::NEG_INFINITY; biases], longest }
    }

    /// One more target.
    pub(super) fn push(&mut self, row: &[f32]) {
        let (lanes, index) = (lanes(self.level), self.count);
        let panel = &mut self.panels[index / lanes * self.columns * lanes..];
        for (column, &value) in row.iter().enumerate() {
            panel[column * lanes + index % lanes] = value;
        }
        self.biases[index] = (-0.5 * super::points::squared_length(row)) as f32;
        self.longest = self.longest.max(super::points::length(row));
        self.count += 1;
    }

    /// Number of targets.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Most that a score of a row of this length can be off, rounding of the row and the targets included.
    ///
    /// A sum of d products is off by at most (d + 1) u of the sum of their magnitudes (u = 2^-24), rounding the
    /// coordinates adds 3 u, the bias 2 u of itself; the factor 2 covers terms of higher order.
    pub(super) fn error_bound(&self, length: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) / 2.0;
        let products = (self.columns as f64 + 6.0) * unit * length * self.longest;
        2.0 * (products + 4.0 * unit * self.longest * self.longest) + 1e-35
    }

    /// For each row of `rows` (flat) the target with the largest score.
    pub(super) fn best(&self, rows: &[f32], out: &mut [Best]) {
        match self.level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx512 => unsafe { best_avx512(self, rows, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx2 => unsafe { best_avx2(self, rows, out) },
            Level::Portable => best::<4, 8, Plain>(self, rows, out),
        }
    }

    /// Calls `found(row, target)` for every pair whose score reaches the row's threshold; `found` gives the row's new
    /// threshold. Targets come in rising order for each row.
    pub(super) fn reaching(&self, rows: &[f32], thresholds: &mut [f32], found: &mut dyn FnMut(usize, usize) -> f32) {
        self.reaching_from(0, rows, thresholds, found);
    }

    /// [`Targets::reaching`] without the targets before `first`, up to whole panels.
    pub(super) fn reaching_from(
        &self,
        first: usize,
        rows: &[f32],
        thresholds: &mut [f32],
        found: &mut dyn FnMut(usize, usize) -> f32,
    ) {
        let first = first / lanes(self.level);
        match self.level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx512 => unsafe { reaching_avx512(self, first, rows, thresholds, found) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx2 => unsafe { reaching_avx2(self, first, rows, thresholds, found) },
            Level::Portable => reaching::<4, 8, Plain>(self, first, rows, thresholds, found),
        }
    }
}

impl Targets {
    /// Number of scores that [`Targets::scores`] writes for a row: targets up to whole panels.
    pub(super) fn width(&self) -> usize {
        self.biases.len()
    }

    /// Another target in the place of one.
    pub(super) fn replace(&mut self, index: usize, row: &[f32]) {
        let count = std::mem::replace(&mut self.count, index);
        self.push(row);
        self.count = count;
    }

    /// Scores of each row with the targets from `first` on, a multiple of [`lanes`], as many as `out` has room
    /// for; minus infinity where a panel has no target.
    pub(super) fn scores(&self, first: usize, rows: &[f32], out: &mut [f32]) {
        match self.level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx512 => unsafe { scores_avx512(self, first, rows, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx2 => unsafe { scores_avx2(self, first, rows, out) },
            Level::Portable => scores::<4, 8, Plain>(self, first, rows, out),
        }
    }
}

/// Scores of `R` rows against one panel of `L` targets.
trait Tile<const R: usize, const L: usize> {
    /// `panel` holds `L` coordinates for each of the rows'.
    ///
    /// # Safety
    /// The processor has the instructions that the implementation uses.
    unsafe fn scores(rows: [&[f32]; R], panel: &[f32], bias: &[f32]) -> [[f32; L]; R];

    /// See [`reduce`].
    ///
    /// # Safety
    /// The processor has the instructions that the implementation uses.
    #[inline(always)]
    unsafe fn reduce(largest: &[f32; L], second: &[f32; L]) -> (usize, f32, f32) {
        reduce(largest, second)
    }
}

struct Plain;

impl Tile<4, 8> for Plain {
    #[inline(always)]
    unsafe fn scores(rows: [&[f32]; 4], panel: &[f32], bias: &[f32]) -> [[f32; 8]; 4] {
        let mut first = [0.0; 8];
        first.copy_from_slice(bias);
        let mut sums = [first; 4];
        for (column, targets) in panel.as_chunks::<8>().0.iter().enumerate() {
            for (sums, row) in sums.iter_mut().zip(rows) {
                for (sum, target) in sums.iter_mut().zip(targets) {
                    *sum += row[column] * target;
                }
            }
        }
        sums
    }
}

/// The loop in vectors of one width, two to a panel: the compiler does not find them by itself here.
#[cfg(target_arch = "x86_64")]
macro_rules! tile {
    ($name:ident, $rows:literal, $width:literal, $features:literal, $zero:ident, $load:ident, $store:ident, $spread:ident, $fuse:ident
     $(, $reduce:ident)?) => {
        struct $name;

        impl Tile<$rows, { 2 * $width }> for $name {
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn scores(rows: [&[f32]; $rows], panel: &[f32], bias: &[f32]) -> [[f32; 2 * $width]; $rows] {
                let panel = panel.as_chunks::<{ 2 * $width }>().0;
                assert!(bias.len() == 2 * $width && rows.iter().all(|row| row.len() == panel.len()));
                let mut sums = [[$zero(); 2]; $rows];
                for sums in &mut sums {
                    // SAFETY: the bias holds two vectors.
                    *sums = unsafe { [$load(bias.as_ptr()), $load(bias.as_ptr().add($width))] };
                }
                for (column, targets) in panel.iter().enumerate() {
                    // SAFETY: the targets of one column are two vectors.
                    let targets = unsafe { [$load(targets.as_ptr()), $load(targets.as_ptr().add($width))] };
                    for (sums, row) in sums.iter_mut().zip(&rows) {
                        // SAFETY: every row has as many columns as the panel.
                        let value = $spread(unsafe { *row.get_unchecked(column) });
                        *sums = [$fuse(value, targets[0], sums[0]), $fuse(value, targets[1], sums[1])];
                    }
                }
                let mut scores = [[0.0; 2 * $width]; $rows];
                for (scores, sums) in scores.iter_mut().zip(sums) {
                    // SAFETY: a row of scores is two vectors.
                    unsafe {
                        $store(scores.as_mut_ptr(), sums[0]);
                        $store(scores.as_mut_ptr().add($width), sums[1]);
                    }
                }
                scores
            }
            $(
                #[inline]
                #[target_feature(enable = $features)]
                unsafe fn reduce(
                    largest: &[f32; 2 * $width],
                    second: &[f32; 2 * $width],
                ) -> (usize, f32, f32) {
                    $reduce(largest, second)
                }
            )?
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

#[cfg(target_arch = "x86_64")]
tile!(
    Avx512,
    8,
    16,
    "avx512f,avx2,fma",
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    reduce_avx512
);
#[cfg(target_arch = "x86_64")]
tile!(Avx2, 6, 8, "avx2,fma", _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn best_avx512(targets: &Targets, rows: &[f32], out: &mut [Best]) {
    best::<8, 32, Avx512>(targets, rows, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn best_avx2(targets: &Targets, rows: &[f32], out: &mut [Best]) {
    best::<6, 16, Avx2>(targets, rows, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn reaching_avx512(
    targets: &Targets,
    first: usize,
    rows: &[f32],
    thresholds: &mut [f32],
    found: &mut dyn FnMut(usize, usize) -> f32,
) {
    reaching::<8, 32, Avx512>(targets, first, rows, thresholds, found);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn reaching_avx2(
    targets: &Targets,
    first: usize,
    rows: &[f32],
    thresholds: &mut [f32],
    found: &mut dyn FnMut(usize, usize) -> f32,
) {
    reaching::<6, 16, Avx2>(targets, first, rows, thresholds, found);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn scores_avx512(targets: &Targets, first: usize, rows: &[f32], out: &mut [f32]) {
    scores::<8, 32, Avx512>(targets, first, rows, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn scores_avx2(targets: &Targets, first: usize, rows: &[f32], out: &mut [f32]) {
    scores::<6, 16, Avx2>(targets, first, rows, out);
}

/// `R` rows from `first` on; the last one again where there are fewer.
#[inline(always)]
fn take<const R: usize>(rows: &[f32], columns: usize, first: usize, count: usize) -> [&[f32]; R] {
    std::array::from_fn(|index| {
        let row = (first + index).min(count - 1);
        &rows[row * columns..(row + 1) * columns]
    })
}

#[inline(always)]
fn best<const R: usize, const L: usize, T: Tile<R, L>>(targets: &Targets, rows: &[f32], out: &mut [Best]) {
    let columns = targets.columns;
    for first in (0..out.len()).step_by(R) {
        let taken = take::<R>(rows, columns, first, out.len());
        let mut largest = [[f32::NEG_INFINITY; L]; R];
        let mut second = [[f32::NEG_INFINITY; L]; R];
        let mut panels = [[0i32; L]; R];
        let all = targets.panels.chunks_exact(columns * L).zip(targets.biases.chunks_exact(L));
        for (panel, (values, bias)) in (0i32..).zip(all) {
            // SAFETY: callers choose the tile by the processor's level.
            let scores = unsafe { T::scores(taken, values, bias) };
            for row in 0..R {
                let (largest, second, panels) = (&mut largest[row], &mut second[row], &mut panels[row]);
                for lane in 0..L {
                    let (score, before) = (scores[row][lane], largest[lane]);
                    let is_larger = score > before;
                    let loser = if is_larger { before } else { score };
                    second[lane] = if loser > second[lane] { loser } else { second[lane] };
                    largest[lane] = if is_larger { score } else { before };
                    panels[lane] = if is_larger { panel } else { panels[lane] };
                }
            }
        }
        let length = R.min(out.len() - first);
        for (row, out) in out[first..first + length].iter_mut().enumerate() {
            // SAFETY: callers choose the tile by the processor's level.
            let (lane, score, next) = unsafe { T::reduce(&largest[row], &second[row]) };
            *out = Best { target: (panels[row][lane] as usize * L + lane) as u32, score, gap: score - next };
        }
    }
}

/// Lane of the largest value, that value, and the next one.
#[inline(always)]
fn reduce<const L: usize>(largest: &[f32; L], second: &[f32; L]) -> (usize, f32, f32) {
    let (mut lane, mut score, mut next) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for index in 0..L {
        let own = largest[index];
        let is_larger = own > score;
        let loser = if is_larger { score } else { own };
        next = if loser > next { loser } else { next };
        next = if second[index] > next { second[index] } else { next };
        lane = if is_larger { index } else { lane };
        score = if is_larger { own } else { score };
    }
    (lane, score, next)
}

/// [`reduce`] in a few vectors: the compiler takes the lanes one by one, which costs as much as the products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn reduce_avx512(largest: &[f32; 32], second: &[f32; 32]) -> (usize, f32, f32) {
    use std::arch::x86_64::{_CMP_EQ_OQ, _mm512_cmp_ps_mask, _mm512_mask_mov_ps, _mm512_max_ps, _mm512_reduce_max_ps};

    // SAFETY: each array holds two vectors.
    let [low, high, second_low, second_high] = unsafe {
        [
            _mm512_loadu_ps(largest.as_ptr()),
            _mm512_loadu_ps(largest.as_ptr().add(16)),
            _mm512_loadu_ps(second.as_ptr()),
            _mm512_loadu_ps(second.as_ptr().add(16)),
        ]
    };
    let score = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
    let all = _mm512_set1_ps(score);
    let low_lanes = u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(low, all));
    let lanes = low_lanes | u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(high, all)) << 16;
    let lane = lanes.trailing_zeros().min(31);
    let (own, none) = (1u32 << lane, _mm512_set1_ps(f32::NEG_INFINITY));
    let rest_low = _mm512_mask_mov_ps(low, own as u16, none);
    let rest_high = _mm512_mask_mov_ps(high, (own >> 16) as u16, none);
    let next = _mm512_max_ps(_mm512_max_ps(rest_low, rest_high), _mm512_max_ps(second_low, second_high));
    (lane as usize, score, _mm512_reduce_max_ps(next))
}

#[inline(always)]
fn reaching<const R: usize, const L: usize, T: Tile<R, L>>(
    targets: &Targets,
    skipped: usize,
    rows: &[f32],
    thresholds: &mut [f32],
    found: &mut dyn FnMut(usize, usize) -> f32,
) {
    let columns = targets.columns;
    let count = thresholds.len();
    // Panels outside, so that one stays in the cache for all rows.
    let all = targets.panels.chunks_exact(columns * L).zip(targets.biases.chunks_exact(L));
    let used = targets.count.div_ceil(L);
    for (panel, (values, bias)) in all.enumerate().take(used).skip(skipped) {
        for first in (0..count).step_by(R) {
            // SAFETY: callers choose the tile by the processor's level.
            let scores = unsafe { T::scores(take::<R>(rows, columns, first, count), values, bias) };
            for row in 0..R.min(count - first) {
                let threshold = &mut thresholds[first + row];
                if !scores[row].iter().fold(false, |any, score| any | (score >= threshold)) {
                    continue;
                }
                for (target, &score) in (panel * L..targets.count).zip(&scores[row]) {
                    if score >= *threshold {
                        *threshold = found(first + row, target);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn scores<const R: usize, const L: usize, T: Tile<R, L>>(
    targets: &Targets,
    start: usize,
    rows: &[f32],
    out: &mut [f32],
) {
    let columns = targets.columns;
    let count = rows.len() / columns;
    if count == 0 {
        return;
    }
    let width = out.len() / count;
    let panels = targets.panels[start * columns..(start + width) * columns].chunks_exact(columns * L);
    // Panels outside, so that one stays in the cache for all rows.
    for (panel, (values, bias)) in panels.zip(targets.biases[start..].chunks_exact(L)).enumerate() {
        for first in (0..count).step_by(R) {
            // SAFETY: callers choose the tile by the processor's level.
            let scores = unsafe { T::scores(take::<R>(rows, columns, first, count), values, bias) };
            for (row, scores) in (first..count).zip(&scores) {
                out[row * width + panel * L..][..L].copy_from_slice(scores);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_finds_the_largest_score_and_the_gap_within_the_bound() {
        let noise = |seed: u64, count: usize| {
            let mut values = vec![0f32; count];
            let stream = crate::random::Stream::new(seed, "kernel", 0, crate::random::Kind::Normal);
            let units = crate::random::Units::Range { first: 0, count: 1 };
            crate::random::normal_f32(stream, units, count, &mut values).unwrap();
            values.iter().map(|value| value / 8.0).collect::<Vec<f32>>()
        };
        for (rows, count, columns) in [(1, 1, 1), (7, 33, 5), (40, 100, 64), (9, 64, 3)] {
            let (points, centres) = (noise(1, rows * columns), noise(2, count * columns));
            for level in Level::all() {
                let targets = Targets::pack_for(level, count, columns, |index, out| {
                    out.copy_from_slice(&centres[index * columns..(index + 1) * columns]);
                });
                let mut out = vec![Best::default(); rows];
                targets.best(&points, &mut out);
                for (row, &Best { target: best, score: largest, gap }) in out.iter().enumerate() {
                    let point = &points[row * columns..(row + 1) * columns];
                    let score = |index: usize| -> f64 {
                        let centre = &centres[index * columns..(index + 1) * columns];
                        let pairs = point.iter().zip(centre);
                        pairs.map(|(&x, &c)| f64::from(c) * (f64::from(x) - 0.5 * f64::from(c))).sum()
                    };
                    let mut scores: Vec<f64> = (0..count).map(score).collect();
                    let bound = targets.error_bound(super::super::points::length(point));
                    let own = scores[best as usize];
                    assert!((f64::from(largest) - own).abs() <= bound, "{level:?}");
                    scores.sort_by(f64::total_cmp);
                    assert!(scores[count - 1] - own <= 2.0 * bound, "{level:?}");
                    if count > 1 {
                        assert!((f64::from(gap) - (own - scores[count - 2])).abs() <= 4.0 * bound, "{level:?}");
                    } else {
                        assert_eq!(gap, f32::INFINITY);
                    }
                    let first = lanes(level) * usize::from(count > lanes(level));
                    let width = targets.width() - first;
                    let mut all = vec![0.0; 2 * width];
                    targets.scores(first, &[point, point].concat(), &mut all);
                    assert_eq!(all[..width], all[width..]);
                    for (index, &found) in all[..width].iter().enumerate() {
                        match index + first {
                            index if index < count => {
                                assert!((f64::from(found) - score(index)).abs() <= bound, "{level:?}")
                            }
                            _ => assert_eq!(found, f32::NEG_INFINITY),
                        }
                    }
                    let mut seen = Vec::new();
                    let mut thresholds = vec![f32::INFINITY; rows];
                    thresholds[row] = scores[count / 2] as f32;
                    targets.reaching(&points, &mut thresholds, &mut |found, target| {
                        assert_eq!(found, row);
                        seen.push(target);
                        scores[count / 2] as f32
                    });
                    let sure = (0..count).filter(|&index| score(index) > scores[count / 2] + bound + 1e-6);
                    assert!(sure.into_iter().all(|index| seen.contains(&index)), "{level:?}");
                    assert!(seen.is_sorted() && seen.len() <= count);
                }
            }
        }
    }
}
