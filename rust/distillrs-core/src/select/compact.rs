//! Scores of one row against many targets, from coordinates of 16 bits.
//!
//! One row against all targets reads every coordinate once and computes little: memory sets the time, so half the bytes
//! take half of it. The coordinates are the upper halves of `f32` (bfloat16), rounded; what rounding can do to a score
//! is known from the targets ([`Compact::error_bound`]), and callers decide anew, exactly, whatever lies within it.

use super::points::length;
use crate::host::Level;

/// Targets to a panel.
pub(super) const LANES: usize = 32;

/// Half a panel: a word holds a target's coordinate in its lower half, that of the target `HALF` further on in its upper.
const HALF: usize = LANES / 2;

/// Targets of which every one has the score `x . c - |c|^2 / 2` with a row x.
pub(super) struct Compact {
    level: Level,
    columns: usize,
    words: Vec<[u32; HALF]>,
    biases: Vec<[f32; LANES]>,
    longest: f64,
    /// Most that rounding moved a target.
    moved: f64,
}

impl Compact {
    /// Packs `count` targets; `target` writes the coordinates of one.
    pub(super) fn pack(count: usize, columns: usize, mut target: impl FnMut(usize, &mut [f32])) -> Self {
        let panels = count.div_ceil(LANES);
        let mut packed = Self {
            level: Level::here(),
            columns,
            words: vec![[0; HALF]; panels * columns],
            biases: vec![[f32::NEG_INFINITY; LANES]; panels],
            longest: 0.0,
            moved: 0.0,
        };
        let mut row = vec![0.0; columns];
        for index in 0..count {
            target(index, &mut row);
            let (panel, lane) = (index / LANES, index % LANES);
            let squared: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            packed.biases[panel][lane] = (-0.5 * squared) as f32;
            packed.longest = packed.longest.max(length(&row));
            let words = &mut packed.words[panel * columns..(panel + 1) * columns];
            for (words, value) in words.iter_mut().zip(&mut row) {
                let half = round(*value);
                words[lane % HALF] |= half << (lane / HALF * 16);
                *value -= f32::from_bits(half << 16);
            }
            packed.moved = packed.moved.max(length(&row));
        }
        packed
    }

    /// Number of panels of [`LANES`] targets.
    pub(super) fn panels(&self) -> usize {
        self.biases.len()
    }

    /// Takes a target out: its score is minus infinity from now on.
    pub(super) fn remove(&mut self, target: usize) {
        self.biases[target / LANES][target % LANES] = f32::NEG_INFINITY;
    }

    /// Most that a score of this row can be off; see [`super::kernel::Targets::error_bound`] for the sums, and to those
    /// comes the row's product with what rounding took from a target.
    pub(super) fn error_bound(&self, row: &[f32]) -> f64 {
        let (unit, length) = (f64::from(f32::EPSILON) / 2.0, length(row));
        let products = (self.columns as f64 + 6.0) * unit * length * self.longest;
        2.0 * (products + 8.0 * unit * self.longest * self.longest) + 1.001 * length * self.moved + 1e-35
    }

    /// Scores of the row in the panels from `first` on, as many as `out` holds.
    pub(super) fn scores(&self, first: usize, row: &[f32], out: &mut [[f32; LANES]]) {
        let words = &self.words[first * self.columns..(first + out.len()) * self.columns];
        let biases = &self.biases[first..first + out.len()];
        match self.level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx512 => unsafe { avx512::scores(row, words, biases, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level says that the processor has these features.
            Level::Avx2 => unsafe { avx2::scores(row, words, biases, out) },
            Level::Portable => {
                for ((out, bias), words) in out.iter_mut().zip(biases).zip(words.chunks_exact(self.columns)) {
                    *out = portable(row, words, bias);
                }
            }
        }
    }
}

/// Calls `found(target, score)` for every target from the panel `first` on whose score reaches the threshold, in order.
pub(super) fn reaching(scores: &[[f32; LANES]], first: usize, threshold: f32, mut found: impl FnMut(usize, f32)) {
    for (panel, scores) in (first..).zip(scores) {
        if scores.iter().fold(false, |any, &score| any | (score >= threshold)) {
            for (target, &score) in (panel * LANES..).zip(scores) {
                if score >= threshold {
                    found(target, score);
                }
            }
        }
    }
}

/// Upper half of the nearest `f32` with an empty lower half. Coordinates are finite and at most 1.
fn round(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

fn portable(row: &[f32], words: &[[u32; HALF]], bias: &[f32; LANES]) -> [f32; LANES] {
    let mut sums = *bias;
    for (&value, words) in row.iter().zip(words) {
        let (low, high) = sums.split_at_mut(HALF);
        for ((low, high), &word) in low.iter_mut().zip(high).zip(words) {
            *low += value * f32::from_bits(word << 16);
            *high += value * f32::from_bits(word & 0xffff_0000);
        }
    }
    sums
}

/// The loop in vectors of one width, four panels at a time: the sums of one alone would wait for each other.
#[cfg(target_arch = "x86_64")]
macro_rules! level {
    ($name:ident, $together:literal, $vectors:literal, $width:literal, $features:literal, $load:ident, $words:ident, $spread:ident,
     $shift:ident, $and:ident, $mask:ident, $cast:ident, $fuse:ident, $store:ident) => {
        mod $name {
            use std::arch::x86_64::*;

            use super::{HALF, LANES};

            #[target_feature(enable = $features)]
            pub(super) fn scores(
                row: &[f32],
                words: &[[u32; HALF]],
                biases: &[[f32; LANES]],
                out: &mut [[f32; LANES]],
            ) {
                let columns = row.len();
                let last = out.len().saturating_sub(1);
                for (group, out) in out.chunks_mut($together).enumerate() {
                    // The last panel again where there are fewer than taken together.
                    let panels: [usize; $together] = std::array::from_fn(|index| (group * $together + index).min(last));
                    let taken = panels.map(|panel| &words[panel * columns..(panel + 1) * columns]);
                    let mut sums: [[_; 2 * $vectors]; $together] = std::array::from_fn(|index| {
                        std::array::from_fn(|part| {
                            // SAFETY: a bias holds as many vectors as are read.
                            unsafe { $load(biases[panels[index]].as_ptr().add(part * $width)) }
                        })
                    });
                    let mask = $mask(0xffff_0000_u32 as i32);
                    for (column, &value) in row.iter().enumerate() {
                        let value = $spread(value);
                        for (sums, words) in sums.iter_mut().zip(&taken) {
                            for part in 0..$vectors {
                                let first = part * $width;
                                // SAFETY: each panel has as many columns as the row; a column holds the vectors read.
                                let word = unsafe { $words(words.get_unchecked(column).as_ptr().add(first).cast()) };
                                sums[part] = $fuse(value, $cast($shift::<16>(word)), sums[part]);
                                sums[$vectors + part] = $fuse(value, $cast($and(word, mask)), sums[$vectors + part]);
                            }
                        }
                    }
                    for (out, sums) in out.iter_mut().zip(sums) {
                        for (part, sum) in sums.into_iter().enumerate() {
                            // SAFETY: the scores of a panel are the vectors of its sums.
                            unsafe { $store(out.as_mut_ptr().add(part * $width), sum) };
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
level!(
    avx512,
    4,
    1,
    16,
    "avx512f,avx2,fma",
    _mm512_loadu_ps,
    _mm512_loadu_si512,
    _mm512_set1_ps,
    _mm512_slli_epi32,
    _mm512_and_si512,
    _mm512_set1_epi32,
    _mm512_castsi512_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps
);
#[cfg(target_arch = "x86_64")]
level!(
    avx2,
    2,
    2,
    8,
    "avx2,fma",
    _mm256_loadu_ps,
    _mm256_loadu_si256,
    _mm256_set1_ps,
    _mm256_slli_epi32,
    _mm256_and_si256,
    _mm256_set1_epi32,
    _mm256_castsi256_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Kind, Stream, Units, normal_f32};

    #[test]
    fn every_level_has_the_scores_within_the_bound() {
        for (count, columns) in [(1, 1), (33, 5), (200, 64), (129, 3)] {
            let mut values = vec![0f32; (count + 1) * columns];
            let units = Units::Range { first: 0, count: 1 };
            let stream = Stream::new(count as u64, "compact", 0, Kind::Normal);
            normal_f32(stream, units, values.len(), &mut values).unwrap();
            values.iter_mut().for_each(|value| *value /= 8.0);
            let (row, targets) = values.split_at(columns);
            let target = |index: usize| &targets[index * columns..(index + 1) * columns];
            let mut compact = Compact::pack(count, columns, |index, out| out.copy_from_slice(target(index)));
            compact.remove(0);
            for level in Level::all() {
                compact.level = level;
                let mut scores = vec![[0.0; LANES]; compact.panels()];
                compact.scores(0, row, &mut scores);
                let bound = compact.error_bound(row);
                assert_eq!(scores[0][0], f32::NEG_INFINITY);
                for (index, &score) in scores.as_flattened().iter().enumerate().take(count).skip(1) {
                    let pairs = row.iter().zip(target(index));
                    let exact: f64 = pairs.map(|(&x, &c)| f64::from(c) * (f64::from(x) - 0.5 * f64::from(c))).sum();
                    assert!((f64::from(score) - exact).abs() <= bound, "{level:?}");
                }
                let threshold = scores.as_flattened()[count / 2];
                let mut seen = Vec::new();
                reaching(&scores, 0, threshold, |target, score| {
                    assert_eq!(score, scores[target / LANES][target % LANES]);
                    seen.push(target);
                });
                let expected = scores.as_flattened().iter().enumerate().filter(|(_, score)| **score >= threshold);
                assert_eq!(seen, expected.map(|(index, _)| index).collect::<Vec<_>>());
            }
        }
    }
}
