//! Counter-based randomness: every draw is a pure function of (seed, name, step, unit, position).
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//! Its key is xxh3-64 over the seed, the kind of draw, the upper half of the step and the name; its counter holds, from
//! the lowest word, the block of the position (32 bits), the lower half of the step (32) and the unit (64). Nothing is
//! carried from one draw to the next, so neither batches, order, ranks, devices nor threads can change a draw.
//!
//! Words of a block: `f32` uniforms take one word each, its upper 24 bits. Everything else takes 64-bit values, two to
//! a block: words 0 and 1, then 2 and 3, the first of each pair low. `f64` uniforms are the upper 53 bits of one.

use crate::digest::xxh3_64;
use crate::host::Level;

use crate::{Error, Result, parallel};

mod math;

/// What a stream is drawn for. Kinds never share words, even under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Uniform,
    Normal,
    Integers,
    Permutation,
    Seed,
}

/// Where a draw stands in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    step: u32,
}

impl Stream {
    /// The stream of a seed, a name and a step.
    pub fn new(seed: u64, name: &str, step: u64, kind: Kind) -> Self {
        let mut text = Vec::with_capacity(13 + name.len());
        text.extend_from_slice(&seed.to_le_bytes());
        text.push(kind as u8);
        text.extend_from_slice(&((step >> 32) as u32).to_le_bytes());
        text.extend_from_slice(name.as_bytes());
        let key = xxh3_64(&text);
        Self { key: [key as u32, (key >> 32) as u32], step: step as u32 }
    }

    fn block(&self, unit: u64, block: u32) -> [u32; 4] {
        let counter = [[block], [self.step], [unit as u32], [(unit >> 32) as u32]];
        philox(self.key, counter).map(|[word]| word)
    }

    /// The 64-bit value at a position of a unit, and no others.
    fn wide(&self, unit: u64, position: u64) -> u64 {
        let words = self.block(unit, (position / 2) as u32);
        let low = 2 * (position % 2) as usize;
        u64::from(words[low]) | u64::from(words[low + 1]) << 32
    }
}

/// Global ids of the units that are drawn for.
#[derive(Debug, Clone, Copy)]
pub enum Units<'a> {
    /// `count` units from `first` on.
    Range {
        /// The first id.
        first: u64,
        /// How many.
        count: usize,
    },
    /// Any ids, in any order.
    Ids(&'a [u64]),
}

impl Units<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Range { count, .. } => *count,
            Self::Ids(ids) => ids.len(),
        }
    }

    fn get(&self, index: usize) -> u64 {
        match self {
            Self::Range { first, .. } => first.wrapping_add(index as u64),
            Self::Ids(ids) => ids[index],
        }
    }
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32-10 on `L` counters at once; words and lanes as `[word][lane]`.
#[inline(always)]
fn philox<const L: usize>(mut key: [u32; 2], mut counter: [[u32; L]; 4]) -> [[u32; L]; 4] {
    for _ in 0..10 {
        let mut next = [[0; L]; 4];
        for lane in 0..L {
            let first = u64::from(counter[0][lane]) * u64::from(MULTIPLIERS[0]);
            let second = u64::from(counter[2][lane]) * u64::from(MULTIPLIERS[1]);
            next[0][lane] = (second >> 32) as u32 ^ counter[1][lane] ^ key[0];
            next[1][lane] = second as u32;
            next[2][lane] = (first >> 32) as u32 ^ counter[3][lane] ^ key[1];
            next[3][lane] = first as u32;
        }
        counter = next;
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// Turns blocks of words into values.
trait Draw: Copy + Sync {
    type Value: Copy + Default + Send;
    /// Values that one block gives: 2 or 4.
    const PER_BLOCK: usize;

    /// Values as `[position][lane]`.
    fn draw<const L: usize>(&self, words: &[[u32; L]; 4]) -> [[Self::Value; L]; 4];
}

#[inline(always)]
fn wide<const L: usize>(words: &[[u32; L]; 4], half: usize) -> [u64; L] {
    std::array::from_fn(|lane| u64::from(words[2 * half][lane]) | u64::from(words[2 * half + 1][lane]) << 32)
}

/// 53 bits to [0, 1). Through `i64`, which has a vector conversion to `f64` where `u64` has none.
#[inline(always)]
fn unit_interval(bits: u64) -> f64 {
    (bits >> 11) as i64 as f64 * (1.0 / (1u64 << 53) as f64)
}

#[derive(Clone, Copy)]
struct UniformF32;

impl Draw for UniformF32 {
    type Value = f32;
    const PER_BLOCK: usize = 4;

    #[inline(always)]
    fn draw<const L: usize>(&self, words: &[[u32; L]; 4]) -> [[f32; L]; 4] {
        words.map(|row| row.map(|word| (word >> 8) as i32 as f32 * (1.0 / (1u32 << 24) as f32)))
    }
}

#[derive(Clone, Copy)]
struct UniformF64;

impl Draw for UniformF64 {
    type Value = f64;
    const PER_BLOCK: usize = 2;

    #[inline(always)]
    fn draw<const L: usize>(&self, words: &[[u32; L]; 4]) -> [[f64; L]; 4] {
        [wide(words, 0).map(unit_interval), wide(words, 1).map(unit_interval), [0.0; L], [0.0; L]]
    }
}

/// Box and Muller's transform in `f64`: positions 2j and 2j + 1 are the cosine and the sine of one pair.
#[inline(always)]
fn normal<const L: usize>(words: &[[u32; L]; 4]) -> [[f64; L]; 2] {
    let (radii, angles) = (wide(words, 0), wide(words, 1));
    let mut out = [[0.0; L]; 2];
    for lane in 0..L {
        // 1 - u lies in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * math::ln(1.0 - unit_interval(radii[lane]))).sqrt();
        let (sine, cosine) = math::sine_cosine_of_turns(unit_interval(angles[lane]));
        out[0][lane] = radius * cosine;
        out[1][lane] = radius * sine;
    }
    out
}

#[derive(Clone, Copy)]
struct NormalF64;

impl Draw for NormalF64 {
    type Value = f64;
    const PER_BLOCK: usize = 2;

    #[inline(always)]
    fn draw<const L: usize>(&self, words: &[[u32; L]; 4]) -> [[f64; L]; 4] {
        let [cosines, sines] = normal(words);
        [cosines, sines, [0.0; L], [0.0; L]]
    }
}

#[derive(Clone, Copy)]
struct NormalF32;

impl Draw for NormalF32 {
    type Value = f32;
    const PER_BLOCK: usize = 2;

    #[inline(always)]
    fn draw<const L: usize>(&self, words: &[[u32; L]; 4]) -> [[f32; L]; 4] {
        let [cosines, sines] = normal(words);
        [cosines.map(|value| value as f32), sines.map(|value| value as f32), [0.0; L], [0.0; L]]
    }
}

#[derive(Clone, Copy)]
struct Below(u64);

impl Draw for Below {
    type Value = i64;
    const PER_BLOCK: usize = 2;

    #[inline(always)]
    fn draw<const L: usize>(&self, words: &[[u32; L]; 4]) -> [[i64; L]; 4] {
        let scale = |bits| below(bits, self.0) as i64;
        [wide(words, 0).map(scale), wide(words, 1).map(scale), [0; L], [0; L]]
    }
}

/// Multiply and shift: no value's probability is off by more than `high / 2^64` of itself.
#[inline(always)]
fn below(bits: u64, high: u64) -> u64 {
    ((u128::from(bits) * u128::from(high)) >> 64) as u64
}

/// A part of the output: blocks `first ..` of all units in a row, and the values of those blocks.
#[inline(always)]
fn fill_lanes<D: Draw, const L: usize>(
    draw: D,
    stream: Stream,
    units: Units<'_>,
    per_unit: usize,
    first: usize,
    out: &mut [D::Value],
) {
    let blocks = per_unit.div_ceil(D::PER_BLOCK);
    let (mut row, mut block, mut at) = (first / blocks, first % blocks, 0);
    while at < out.len() {
        let mut counter = [[0; L]; 4];
        counter[1] = [stream.step; L];
        let lanes_left_in_unit = blocks - block;
        let mut lengths = [0; L];
        let whole = lanes_left_in_unit >= L && (block + L) * D::PER_BLOCK <= per_unit;
        if whole {
            let unit = units.get(row);
            counter[0] = std::array::from_fn(|lane| (block + lane) as u32);
            counter[2] = [unit as u32; L];
            counter[3] = [(unit >> 32) as u32; L];
            block += L;
            if block == blocks {
                (row, block) = (row + 1, 0);
            }
        } else {
            let mut planned = at;
            for lane in 0..L {
                if planned == out.len() {
                    break;
                }
                let unit = units.get(row);
                counter[0][lane] = block as u32;
                counter[2][lane] = unit as u32;
                counter[3][lane] = (unit >> 32) as u32;
                lengths[lane] = D::PER_BLOCK.min(per_unit - block * D::PER_BLOCK);
                planned += lengths[lane];
                block += 1;
                if block == blocks {
                    (row, block) = (row + 1, 0);
                }
            }
        }
        let values = draw.draw(&philox(stream.key, counter));
        if whole {
            let target = &mut out[at..at + L * D::PER_BLOCK];
            for (lane, chunk) in target.chunks_exact_mut(D::PER_BLOCK).enumerate() {
                for (position, value) in chunk.iter_mut().enumerate() {
                    *value = values[position][lane];
                }
            }
            at += L * D::PER_BLOCK;
        } else {
            for (lane, &length) in lengths.iter().enumerate() {
                for (position, value) in out[at..at + length].iter_mut().enumerate() {
                    *value = values[position][lane];
                }
                at += length;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn fill_avx512<D: Draw>(draw: D, stream: Stream, units: Units<'_>, per: usize, first: usize, out: &mut [D::Value]) {
    fill_lanes::<D, 16>(draw, stream, units, per, first, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn fill_avx2<D: Draw>(draw: D, stream: Stream, units: Units<'_>, per: usize, first: usize, out: &mut [D::Value]) {
    fill_lanes::<D, 8>(draw, stream, units, per, first, out);
}

fn fill_part<D: Draw>(draw: D, stream: Stream, units: Units<'_>, per: usize, first: usize, out: &mut [D::Value]) {
    #[cfg(target_arch = "x86_64")]
    {
        match Level::here() {
            // SAFETY: the level says that the processor has the instructions.
            Level::Avx512 => return unsafe { fill_avx512(draw, stream, units, per, first, out) },
            // SAFETY: the level says that the processor has the instructions.
            Level::Avx2 => return unsafe { fill_avx2(draw, stream, units, per, first, out) },
            Level::Portable => {}
        }
    }
    fill_lanes::<D, 4>(draw, stream, units, per, first, out);
}

/// Blocks that one task draws; fewer are not worth a second thread.
const TASK_BLOCKS: usize = 1 << 14;

fn fill<D: Draw>(draw: D, stream: Stream, units: Units<'_>, per_unit: usize, out: &mut [D::Value]) -> Result<()> {
    if units.len().checked_mul(per_unit) != Some(out.len()) {
        let allowed = format!("{} units of {per_unit} values", units.len());
        return Err(Error::argument("out", format_args!("{} values", out.len()), allowed));
    }
    if out.is_empty() {
        return Ok(());
    }
    let blocks = per_unit.div_ceil(D::PER_BLOCK);
    if u32::try_from(blocks).is_err() {
        let allowed = format!("at most {} values for each unit", (1u64 << 32) * D::PER_BLOCK as u64);
        return Err(Error::argument("shape", format_args!("{per_unit} values"), allowed));
    }
    let total = units.len() * blocks;
    let start = |block: usize| (block / blocks) * per_unit + per_unit.min(block % blocks * D::PER_BLOCK);
    let mut parts = Vec::with_capacity(total.div_ceil(TASK_BLOCKS));
    let mut rest = out;
    for first in (0..total).step_by(TASK_BLOCKS) {
        let length = start(total.min(first + TASK_BLOCKS)) - start(first);
        let (part, tail) = rest.split_at_mut(length);
        parts.push((first, part));
        rest = tail;
    }
    parallel::for_each(parts, |(first, part)| fill_part(draw, stream, units, per_unit, first, part));
    Ok(())
}

/// Fills `out`, `[units, per_unit]`, with uniforms in [0, 1): multiples of 2^-24.
///
/// # Errors
/// [`Error::Argument`] when the sizes disagree.
pub fn uniform_f32(stream: Stream, units: Units<'_>, per_unit: usize, out: &mut [f32]) -> Result<()> {
    fill(UniformF32, stream, units, per_unit, out)
}

/// Fills `out`, `[units, per_unit]`, with uniforms in [0, 1): multiples of 2^-53.
///
/// # Errors
/// [`Error::Argument`] when the sizes disagree.
pub fn uniform_f64(stream: Stream, units: Units<'_>, per_unit: usize, out: &mut [f64]) -> Result<()> {
    fill(UniformF64, stream, units, per_unit, out)
}

/// Fills `out`, `[units, per_unit]`, with standard normals: those of [`normal_f64`], rounded.
///
/// # Errors
/// [`Error::Argument`] when the sizes disagree.
pub fn normal_f32(stream: Stream, units: Units<'_>, per_unit: usize, out: &mut [f32]) -> Result<()> {
    fill(NormalF32, stream, units, per_unit, out)
}

/// Fills `out`, `[units, per_unit]`, with standard normals; the largest possible one is 8.57.
///
/// # Errors
/// [`Error::Argument`] when the sizes disagree.
pub fn normal_f64(stream: Stream, units: Units<'_>, per_unit: usize, out: &mut [f64]) -> Result<()> {
    fill(NormalF64, stream, units, per_unit, out)
}

/// Fills `out`, `[units, per_unit]`, with integers in `0..high`; no probability is off by more than `high / 2^64` of
/// itself.
///
/// # Errors
/// [`Error::Argument`] when `high` is not in `1..=2^63` or the sizes disagree.
pub fn integers(stream: Stream, units: Units<'_>, per_unit: usize, high: u64, out: &mut [i64]) -> Result<()> {
    if !(1..=1 << 63).contains(&high) {
        return Err(Error::argument("high", high, "an integer from 1 to 2**63"));
    }
    fill(Below(high), stream, units, per_unit, out)
}

/// The first `count` entries of a permutation of `0..n` (Fisher and Yates, swap `i` drawn at position `i`): `choose`
/// with a smaller count is a prefix. Time and memory are O(count) when `count` is small against `n`, else O(n).
///
/// # Errors
/// [`Error::Argument`] when `count` exceeds `n`, or `n` exceeds 2^33.
pub fn choose(stream: Stream, n: u64, count: u64) -> Result<Vec<i64>> {
    if n > 1 << 33 {
        return Err(Error::argument("n", n, "at most 2**33"));
    }
    if count > n {
        return Err(Error::argument("k", count, format!("at most n = {n}")));
    }
    let swap = |index: u64| index + below(stream.wide(0, index), n - index);
    let mut chosen = Vec::with_capacity(count as usize);
    if count < n / 8 {
        let mut moved = std::collections::HashMap::new();
        for index in 0..count {
            let other = swap(index);
            let here = moved.remove(&index).unwrap_or(index);
            let taken = if other == index { here } else { moved.insert(other, here).unwrap_or(other) };
            chosen.push(taken as i64);
        }
        return Ok(chosen);
    }
    let mut items: Vec<i64> = (0..n as i64).collect();
    for index in 0..count {
        items.swap(index as usize, swap(index) as usize);
    }
    items.truncate(count as usize);
    chosen.append(&mut items);
    Ok(chosen)
}

/// A 64-bit seed for generators of another kind.
pub fn seed(stream: Stream) -> u64 {
    stream.wide(0, 0)
}

#[cfg(test)]
mod tests;
