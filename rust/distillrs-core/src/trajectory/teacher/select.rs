//! The largest logits of a row and the masses of the softmax, in `f32` from logits of any floating type.
//!
//! A row is read twice for each temperature set: once for the maximum of every block, once for the sum of exponentials of
//! every block. The k-th largest block maximum is a lower bound of the k-th largest logit, so only blocks that reach it
//! are searched. The tail's mass is the sum of what was not chosen and never a difference, so a small one is exact too.

use std::cmp::Ordering;

use super::half::from_half;
use crate::simd::vectorised;

/// Widest block; a row of a small vocabulary is cut finer, so that there are more blocks than entries.
const BLOCK: usize = 256;
const LANES: usize = 16;

/// One element of a row of logits.
pub trait Logit: Copy + Send + Sync {
    /// Its value.
    fn widen(self) -> f32;
}

/// A `bf16`'s bits.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct BFloat16(u16);

/// An `f16`'s bits.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Half(u16);

impl Logit for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Logit for BFloat16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl Logit for Half {
    #[inline(always)]
    fn widen(self) -> f32 {
        from_half(self.0)
    }
}

/// Logits, `[rows, vocabulary]`, contiguous.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// `f32`.
    Single(&'a [f32]),
    /// `bf16`.
    BFloat16(&'a [BFloat16]),
    /// `f16`.
    Half(&'a [Half]),
}

impl Logits<'_> {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Single(values) => values.len(),
            Self::BFloat16(values) => values.len(),
            Self::Half(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a row is stored from.
#[derive(Debug, Clone, Default)]
pub(super) struct Selected {
    /// Ids with their log-probabilities at temperature 1, falling, ties by id.
    pub entries: Vec<(u32, f64)>,
    /// Log of the entries' mass at each temperature.
    pub log_heads: Vec<f64>,
    /// Log of the mass of all other ids at temperature 1.
    pub log_tail: f64,
    /// Log of the softmax's denominator at temperature 1, in units of the logits.
    pub log_sum: f64,
}

/// Room that rows share.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    maxima: Vec<f32>,
    sorted: Vec<f32>,
    sums: Vec<f32>,
    candidates: Vec<(f32, u32)>,
    masked: Vec<f32>,
    pub selected: Selected,
}

/// Why a row has no distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoDistribution {
    NotANumber,
    Infinite,
    Empty,
    /// A wanted id that is out of range.
    Id(i64),
    /// A wanted id that stands twice.
    Twice(i64),
}

fn falling(first: &(f32, u32), second: &(f32, u32)) -> Ordering {
    second.0.total_cmp(&first.0).then(first.1.cmp(&second.1))
}

/// Fills `scratch.selected` from one row: the `k` largest, or the ids `wanted` (-1 is none).
pub(super) fn select<T: Logit>(
    row: &[T],
    k: usize,
    wanted: Option<&[i64]>,
    temperatures: &[f64],
    scratch: &mut Scratch,
) -> Result<(), NoDistribution> {
    let block = (row.len() / (4 * k.max(1)) / LANES * LANES).clamp(LANES, BLOCK);
    scratch.maxima.clear();
    scratch.maxima.resize(row.len().div_ceil(block), f32::NEG_INFINITY);
    if block_maxima(row, block, &mut scratch.maxima) {
        return Err(NoDistribution::NotANumber);
    }
    let largest = scratch.maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    match largest {
        f32::INFINITY => return Err(NoDistribution::Infinite),
        f32::NEG_INFINITY => return Err(NoDistribution::Empty),
        _ => {}
    }
    match wanted {
        Some(ids) => take_wanted(row, ids, &mut scratch.candidates)?,
        None => take_largest(row, k, block, scratch),
    }
    let Scratch { candidates, sums, masked, selected, .. } = scratch;
    selected.log_heads.clear();
    sums.resize(row.len().div_ceil(block), 0.0);
    for (index, &temperature) in temperatures.iter().enumerate() {
        let inverse = (1.0 / temperature) as f32;
        block_sums(row, block, largest, inverse, sums);
        // Blocks that hold an entry are summed again without it.
        candidates.sort_unstable_by_key(|&(_, id)| id);
        let mut start = 0;
        while let Some(&(_, first)) = candidates.get(start) {
            let number = first as usize / block;
            let range = number * block..((number + 1) * block).min(row.len());
            masked.clear();
            masked.extend(row[range.clone()].iter().map(|value| value.widen()));
            while let Some(&(_, id)) = candidates.get(start).filter(|(_, id)| range.contains(&(*id as usize))) {
                masked[id as usize - range.start] = f32::NEG_INFINITY;
                start += 1;
            }
            block_sums(masked, block, largest, inverse, &mut sums[number..=number]);
        }
        let rest: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
        let wide = |value: f32| f64::from(value) - f64::from(largest);
        let head: f64 = candidates.iter().map(|&(value, _)| (wide(value) / temperature).exp()).sum();
        let log_sum = (head + rest).ln();
        selected.log_heads.push(head.ln() - log_sum);
        if index == 0 {
            candidates.sort_unstable_by(falling);
            selected.entries.clear();
            selected.entries.extend(candidates.iter().map(|&(value, id)| (id, wide(value) - log_sum)));
            selected.log_tail = rest.ln() - log_sum;
            selected.log_sum = f64::from(largest) + log_sum;
        }
    }
    Ok(())
}

fn take_wanted<T: Logit>(row: &[T], ids: &[i64], candidates: &mut Vec<(f32, u32)>) -> Result<(), NoDistribution> {
    candidates.clear();
    for &id in ids.iter().filter(|&&id| id != -1) {
        let value = usize::try_from(id).ok().and_then(|index| row.get(index)).ok_or(NoDistribution::Id(id))?;
        candidates.push((value.widen(), id as u32));
    }
    candidates.sort_unstable_by_key(|&(_, id)| id);
    match candidates.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        Some(pair) => Err(NoDistribution::Twice(i64::from(pair[0].1))),
        None => Ok(()),
    }
}

fn take_largest<T: Logit>(row: &[T], k: usize, block: usize, scratch: &mut Scratch) {
    let Scratch { maxima, sorted, candidates, .. } = scratch;
    candidates.clear();
    if k == 0 {
        return;
    }
    let bound = if maxima.len() < k {
        f32::NEG_INFINITY
    } else {
        sorted.clone_from(maxima);
        *sorted.select_nth_unstable_by(k - 1, |first, second| second.total_cmp(first)).1
    };
    for (number, values) in row.chunks(block).enumerate().filter(|(number, _)| maxima[*number] >= bound) {
        let ids = (number * block) as u32..;
        // Zeros of both signs are one value.
        candidates.extend(values.iter().map(|value| value.widen() + 0.0).zip(ids).filter(|(value, _)| *value >= bound));
    }
    if candidates.len() > k {
        candidates.select_nth_unstable_by(k - 1, falling);
        candidates.truncate(k);
    }
}

vectorised! {
    /// The largest value of every block; whether any value is not a number.
    fn block_maxima<T: Logit>(row: &[T], block: usize, maxima: &mut [f32]) -> bool = block_maxima_body;
}

#[inline(always)]
fn block_maxima_body<T: Logit>(row: &[T], block: usize, maxima: &mut [f32]) -> bool {
    let mut strange = [false; LANES];
    for (values, maximum) in row.chunks(block).zip(maxima) {
        let mut largest = [f32::NEG_INFINITY; LANES];
        let mut chunks = values.chunks_exact(LANES);
        for chunk in &mut chunks {
            for lane in 0..LANES {
                let value = chunk[lane].widen();
                largest[lane] = if value > largest[lane] { value } else { largest[lane] };
                strange[lane] |= value.is_nan();
            }
        }
        for (lane, value) in chunks.remainder().iter().enumerate() {
            let value = value.widen();
            largest[lane] = if value > largest[lane] { value } else { largest[lane] };
            strange[lane] |= value.is_nan();
        }
        *maximum = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    }
    strange.contains(&true)
}

vectorised! {
    /// The sum of `exp((value - largest) * inverse)` over every block.
    fn block_sums<T: Logit>(row: &[T], block: usize, largest: f32, inverse: f32, sums: &mut [f32]) = block_sums_body;
}

#[inline(always)]
fn block_sums_body<T: Logit>(row: &[T], block: usize, largest: f32, inverse: f32, sums: &mut [f32]) {
    for (values, sum) in row.chunks(block).zip(sums) {
        let mut total = [0.0f32; LANES];
        let mut chunks = values.chunks_exact(LANES);
        for chunk in &mut chunks {
            for lane in 0..LANES {
                total[lane] += exp((chunk[lane].widen() - largest) * inverse);
            }
        }
        for (lane, value) in chunks.remainder().iter().enumerate() {
            total[lane] += exp((value.widen() - largest) * inverse);
        }
        *sum = total.into_iter().sum();
    }
}

/// `e^x` for `x <= 0`, within 4e-7 of it; 0 below -87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number
    let y = if x > -87.0 { x } else { -87.0 };
    let shifted = y * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    // ln 2 in two parts, the first with few bits, so that its multiple is exact.
    let r = (y - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // Minimax polynomial of e^r on [-ln 2 / 2, ln 2 / 2] with the first two coefficients 1 (Cephes, expf).
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let value = (p * r) * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
    if x > -87.0 { value * scale } else { 0.0 }
}

/// `ln` of the sum of `e^value`.
pub(super) fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + values.map(|value| (value - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_the_stated_error() {
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let (got, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - expected).abs() <= 4e-7 * expected, "{x}: {got} {expected}");
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(-88.0), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0, 0.0));
    }
}
