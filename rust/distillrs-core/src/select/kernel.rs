//! The one dense loop of this module: scores of a few rows against a panel of targets.
//!
//! The score of row x and target c is `x . c - |c|^2 / 2`: the target with the largest one is the nearest. Its rounding
//! error is bounded by [`error_bound`]; callers decide anew, exactly, whatever lies within it. That is why this loop may
//! fuse products with sums and take any vector width.

use crate::host::Level;

/// The target with the largest score of some.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Best {
    pub target: u32,
    pub score: f32,
    /// The next score.
    pub next: f32,
}

impl Best {
    /// None yet.
    pub(super) const NONE: Self = Self { target: u32::MAX, score: f32::NEG_INFINITY, next: f32::NEG_INFINITY };
}

/// What a look at a part of the targets finds.
pub(super) struct Look<'a> {
    /// For each of the rows the best of all targets so far.
    pub best: &'a mut [Best],
    /// For each of the rows that are looked at the largest score of this and earlier parts.
    pub largest: &'a mut [f32],
    /// Where the best is new: the row's place among those looked at, and the largest score of the part beside it.
    pub better: &'a mut Vec<(u32, f32)>,
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
        Self::error_bound_of(self.columns, length, self.longest)
    }

    /// The same with targets of up to some length.
    pub(super) fn error_bound_of(columns: usize, length: f64, longest: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) / 2.0;
        let products = (columns as f64 + 6.0) * unit * length * longest;
        2.0 * (products + 4.0 * unit * longest * longest) + 1e-35
    }

    /// Length of the longest target.
    pub(super) fn longest(&self) -> f64 {
        self.longest
    }

    /// Targets to a part.
    pub(super) fn part() -> usize {
        lanes(Level::here()) / 2
    }

    /// What is added to a row's product with a target.
    pub(super) fn bias(&self, target: usize) -> f32 {
        self.biases[target]
    }

    /// Looks at the scores of some rows, `ids` of `rows` (flat), with a part of the targets.
    pub(super) fn look(&self, part: usize, rows: &[f32], ids: &[u32], look: &mut Look<'_>) {
        match self.level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx512 => unsafe { look_avx512(self, part, rows, ids, look) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx2 => unsafe { look_avx2(self, part, rows, ids, look) },
            Level::Portable => self::look::<4, 4, Plain>(self, part, rows, ids, look),
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
}

/// Scores of `R` rows against one part of `L` targets, half a panel.
trait HalfTile<const R: usize, const L: usize> {
    /// `panel` holds `2 L` coordinates for each of the rows', those of the part from `start` on.
    ///
    /// # Safety
    /// The processor has the instructions that the implementation uses.
    unsafe fn scores(rows: [&[f32]; R], panel: &[f32], start: usize, bias: &[f32]) -> [[f32; L]; R];

    /// The largest score of each row.
    ///
    /// # Safety
    /// The processor has the instructions that the implementation uses.
    #[inline(always)]
    unsafe fn largest(scores: &[[f32; L]; R]) -> [f32; R] {
        scores.map(|scores| largest_of(&scores))
    }

    /// The first lane of the largest score, and the largest of the other lanes'.
    ///
    /// # Safety
    /// The processor has the instructions that the implementation uses.
    #[inline(always)]
    unsafe fn beside(scores: &[f32; L], largest: f32) -> (usize, f32) {
        let lane = scores.iter().position(|&score| score == largest).unwrap_or(0);
        let mut others = *scores;
        others[lane] = f32::NEG_INFINITY;
        (lane, largest_of(&others))
    }
}

#[inline(always)]
fn largest_of(scores: &[f32]) -> f32 {
    scores.iter().fold(f32::NEG_INFINITY, |left, &right| if right > left { right } else { left })
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

impl HalfTile<4, 4> for Plain {
    #[inline(always)]
    unsafe fn scores(rows: [&[f32]; 4], panel: &[f32], start: usize, bias: &[f32]) -> [[f32; 4]; 4] {
        let mut first = [0.0; 4];
        first.copy_from_slice(bias);
        let mut sums = [first; 4];
        for (column, targets) in panel.as_chunks::<8>().0.iter().enumerate() {
            for (sums, row) in sums.iter_mut().zip(rows) {
                for (sum, target) in sums.iter_mut().zip(&targets[start..start + 4]) {
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
    ($name:ident, $rows:literal, $width:literal, $features:literal, $zero:ident, $load:ident, $store:ident, $spread:ident, $fuse:ident, $add:ident
     $(, $largest:ident, $beside:ident)?) => {
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
        }

        impl HalfTile<$rows, $width> for $name {
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn scores(rows: [&[f32]; $rows], panel: &[f32], start: usize, bias: &[f32]) -> [[f32; $width]; $rows] {
                let panel = panel.as_chunks::<{ 2 * $width }>().0;
                assert!(bias.len() == $width && start <= $width && rows.iter().all(|row| row.len() == panel.len()));
                // Two sums for each row, of every other column: one alone would wait for itself.
                // SAFETY: the bias holds a vector.
                let mut sums = [[unsafe { $load(bias.as_ptr()) }, $zero()]; $rows];
                let (pairs, odd) = panel.as_chunks::<2>();
                for (pair, targets) in pairs.iter().enumerate() {
                    // SAFETY: the targets of one column are two vectors, and the part begins at the latest at the second.
                    let targets = unsafe { [$load(targets[0].as_ptr().add(start)), $load(targets[1].as_ptr().add(start))] };
                    for (sums, row) in sums.iter_mut().zip(&rows) {
                        // SAFETY: every row has as many columns as the panel.
                        let values = unsafe { [*row.get_unchecked(2 * pair), *row.get_unchecked(2 * pair + 1)] };
                        *sums = [
                            $fuse($spread(values[0]), targets[0], sums[0]),
                            $fuse($spread(values[1]), targets[1], sums[1]),
                        ];
                    }
                }
                for targets in odd {
                    // SAFETY: as above.
                    let targets = unsafe { $load(targets.as_ptr().add(start)) };
                    for (sums, row) in sums.iter_mut().zip(&rows) {
                        // SAFETY: every row has as many columns as the panel.
                        let value = unsafe { *row.get_unchecked(panel.len() - 1) };
                        sums[0] = $fuse($spread(value), targets, sums[0]);
                    }
                }
                let mut scores = [[0.0; $width]; $rows];
                for (scores, sums) in scores.iter_mut().zip(sums) {
                    // SAFETY: a row of scores is a vector.
                    unsafe { $store(scores.as_mut_ptr(), $add(sums[0], sums[1])) };
                }
                scores
            }
            $(
                #[inline]
                #[target_feature(enable = $features)]
                unsafe fn largest(scores: &[[f32; $width]; $rows]) -> [f32; $rows] {
                    $largest(scores)
                }

                #[inline]
                #[target_feature(enable = $features)]
                unsafe fn beside(scores: &[f32; $width], largest: f32) -> (usize, f32) {
                    $beside(scores, largest)
                }
            )?
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
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
    _mm512_add_ps,
    largest_avx512,
    beside_avx512
);
#[cfg(target_arch = "x86_64")]
tile!(
    Avx2,
    6,
    8,
    "avx2,fma",
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps
);

/// All rows together: each step halves the lanes that are left and joins two rows' in one vector. The compiler takes
/// lanes that wait for each other one by one, which costs as much as the products.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn largest_avx512(scores: &[[f32; 16]; 8]) -> [f32; 8] {
    use std::arch::x86_64::{
        _mm_storeu_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_extractf32x4_ps, _mm512_max_ps, _mm512_shuffle_f32x4,
        _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };

    // SAFETY: the scores of a row are a vector.
    let row = |index: usize| unsafe { _mm512_loadu_ps(scores[index].as_ptr()) };
    // Lanes 0 to 3 of each quarter belong to rows 0 1 0 1, ...
    let pairs = [(row(0), row(1)), (row(2), row(3)), (row(4), row(5)), (row(6), row(7))]
        .map(|(left, right)| _mm512_max_ps(_mm512_unpacklo_ps(left, right), _mm512_unpackhi_ps(left, right)));
    // ... then to 0 1 2 3 and 4 5 6 7, ...
    let fours = [(pairs[0], pairs[1]), (pairs[2], pairs[3])].map(|(left, right)| {
        let (left, right) = (_mm512_castps_pd(left), _mm512_castps_pd(right));
        let (low, high) = (_mm512_unpacklo_pd(left, right), _mm512_unpackhi_pd(left, right));
        _mm512_max_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    });
    // ... and quarters are left, two of each four rows.
    let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(fours[0], fours[1]);
    let odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(fours[0], fours[1]);
    let halves = _mm512_max_ps(even, odd);
    let all = _mm512_max_ps(halves, _mm512_shuffle_f32x4::<0b10_11_00_01>(halves, halves));
    let mut out = [0.0; 8];
    // SAFETY: each half of the values is a quarter of a vector.
    unsafe {
        _mm_storeu_ps(out.as_mut_ptr(), _mm512_extractf32x4_ps::<0>(all));
        _mm_storeu_ps(out.as_mut_ptr().add(4), _mm512_extractf32x4_ps::<2>(all));
    }
    out
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx2,fma")]
fn beside_avx512(scores: &[f32; 16], largest: f32) -> (usize, f32) {
    use std::arch::x86_64::{_CMP_EQ_OQ, _mm512_cmp_ps_mask, _mm512_mask_mov_ps, _mm512_reduce_max_ps};

    // SAFETY: the scores are a vector.
    let scores = unsafe { _mm512_loadu_ps(scores.as_ptr()) };
    let lanes = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(scores, _mm512_set1_ps(largest));
    let lane = lanes.trailing_zeros().min(15);
    let others = _mm512_mask_mov_ps(scores, 1 << lane, _mm512_set1_ps(f32::NEG_INFINITY));
    (lane as usize, _mm512_reduce_max_ps(others))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn look_avx512(targets: &Targets, part: usize, rows: &[f32], ids: &[u32], look: &mut Look<'_>) {
    self::look::<8, 16, Avx512>(targets, part, rows, ids, look);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn look_avx2(targets: &Targets, part: usize, rows: &[f32], ids: &[u32], look: &mut Look<'_>) {
    self::look::<6, 8, Avx2>(targets, part, rows, ids, look);
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
fn look<const R: usize, const L: usize, T: HalfTile<R, L>>(
    targets: &Targets,
    part: usize,
    rows: &[f32],
    ids: &[u32],
    look: &mut Look<'_>,
) {
    assert_eq!(ids.len(), look.largest.len());
    let columns = targets.columns;
    let panel = &targets.panels[part / 2 * (2 * L * columns)..][..2 * L * columns];
    let bias = &targets.biases[part * L..(part + 1) * L];
    for first in (0..ids.len()).step_by(R) {
        let taken = std::array::from_fn(|index| {
            let id = ids[(first + index).min(ids.len() - 1)] as usize;
            &rows[id * columns..(id + 1) * columns]
        });
        // SAFETY: callers choose the tile by the processor's level.
        let scores = unsafe { T::scores(taken, panel, part % 2 * L, bias) };
        // SAFETY: callers choose the tile by the processor's level.
        let tops = unsafe { T::largest(&scores) };
        for ((place, scores), score) in (first..ids.len()).zip(&scores).zip(tops) {
            let (best, largest) = (&mut look.best[ids[place] as usize], &mut look.largest[place]);
            if score > best.score {
                // SAFETY: callers choose the tile by the processor's level.
                let (lane, other) = unsafe { T::beside(scores, score) };
                let next = if best.score > other { best.score } else { other };
                *best = Best { target: (part * L + lane) as u32, score, next };
                look.better.push((place as u32, other));
            } else if score > best.next {
                best.next = score;
            }
            *largest = if score > *largest { score } else { *largest };
        }
    }
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
                let all: Vec<u32> = (0..rows as u32).collect();
                let mut out = vec![Best::NONE; rows];
                let mut largest = vec![f32::NEG_INFINITY; rows];
                for part in 0..count.div_ceil(lanes(level) / 2) {
                    let mut better = Vec::new();
                    let mut look = Look { best: &mut out, largest: &mut largest, better: &mut better };
                    targets.look(part, &points, &all, &mut look);
                    for (row, other) in better {
                        let best = out[row as usize];
                        assert!(best.target as usize / (lanes(level) / 2) == part && other <= best.next);
                    }
                    out.iter().zip(&largest).for_each(|(best, &largest)| assert_eq!(best.score, largest));
                }
                for (row, &Best { target: best, score: largest, next }) in out.iter().enumerate() {
                    let gap = largest - next;
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
