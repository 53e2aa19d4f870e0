//! `delta-int8`: differences to the reconstructed predecessor as `int8`, in blocks of 256 elements with four bytes of scales.
//!
//! The loop is closed: the encoder subtracts what a decoder will have, not what it was given, so that errors do not add
//! up over a chain. Differences, unlike weights, keep late and small motions: their scale is that of the motion itself.
//!
//! A block's four bytes are a scale for each half, the upper 16 bits of an `f32` (bfloat16), rounded up. One `f32` for
//! the whole block costs the same and errs a tenth more: the largest of 256 differences is larger than that of 128.
//!
//! Body of a keyframe: the record's bytes. Body of a delta: `ceil(elements / 128)` scales, then one `int8` for each
//! element; the value is `predecessor + int8 * scale`, the product rounded in the column's type before the sum.
//!
//! A record with an infinity or NaN, with one in its predecessor, or with a difference that overflows becomes a
//! keyframe, so nothing is lost. In a block whose differences are all below 2^-100 the scale is zero: the differences
//! stay in the loop until they have grown.

use super::measure::CodecError;
use super::payload::{Damage, HEADER, expect_body, split, write_header};
use super::real::Real;
use super::{Column, ColumnEncoder, DecodeError, RecordKind};
use crate::simd::vectorised;

/// Elements that share one scale.
pub const BLOCK: usize = 128;

/// Bytes of a scale.
const SCALE: usize = 2;

/// Blocks that are decoded through a whole chain before the next ones: they stay in the first-level cache.
const TILE: usize = 16 * BLOCK;

/// Differences below this have no scale whose inverse is a normal number.
const SMALLEST: f32 = 7.888_609e-31; // 2^-100

/// 1.5 * 2^23: adding it to a small `f32` leaves the nearest integer, ties to even, in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// Bytes of a delta's body.
pub(super) fn delta_bytes(elements: usize) -> Option<usize> {
    elements.div_ceil(BLOCK).checked_mul(SCALE)?.checked_add(elements)
}

/// The encoder's side of the loop.
pub(super) struct Encoder<R> {
    column: Column,
    keyframe_every: u32,
    /// Records since the last keyframe, itself included; 0 asks for a keyframe.
    age: u32,
    last_step: u64,
    /// What a decoder has for the last record.
    reconstructed: Vec<R>,
    /// The last record as it was given.
    given: Vec<R>,
}

impl<R: Real> Encoder<R> {
    pub(super) fn new(column: Column, keyframe_every: u32) -> Self {
        Self { column, keyframe_every, age: 0, last_step: 0, reconstructed: Vec::new(), given: Vec::new() }
    }

    fn keyframe(&mut self, record: &[u8], out: &mut Vec<u8>) -> RecordKind {
        write_header(out, self.column.codec, RecordKind::Keyframe, self.column.dtype, self.column.elements);
        out.extend_from_slice(record);
        self.given.clear();
        self.given.extend(record.chunks_exact(R::SIZE).map(R::load));
        self.reconstructed.clone_from(&self.given);
        self.age = 1;
        RecordKind::Keyframe
    }
}

impl<R: Real> ColumnEncoder for Encoder<R> {
    fn encode(&mut self, step: u64, record: &[u8], out: &mut Vec<u8>, error: &mut CodecError) -> RecordKind {
        let base = std::mem::replace(&mut self.last_step, step);
        if self.age == 0 || self.age >= self.keyframe_every {
            return self.keyframe(record, out);
        }
        let kind = RecordKind::Delta { base };
        let start = out.len();
        write_header(out, self.column.codec, kind, self.column.dtype, self.column.elements);
        let blocks = self.column.elements.div_ceil(BLOCK);
        let body = out.len();
        out.resize(body + SCALE * blocks + self.column.elements, 0);
        let (scales, codes) = out[body..].split_at_mut(SCALE * blocks);
        match encode_blocks(record, &mut self.reconstructed, &mut self.given, scales, codes) {
            Some([squared_error, squared_displacement]) => {
                error.record(squared_error, squared_displacement);
                self.age += 1;
                kind
            }
            None => {
                out.truncate(start);
                self.keyframe(record, out)
            }
        }
    }

    fn abandon_last(&mut self) {
        self.age = 0;
    }

    fn resume(&mut self, chain: &[&[u8]], last: &[u8], last_step: u64) {
        self.given.clear();
        self.given.extend(last.chunks_exact(R::SIZE).map(R::load));
        self.reconstructed.clone_from(&self.given);
        self.last_step = last_step;
        let records = chain.iter().rev().take_while(|payload| payload.get(1) == Some(&1)).count() + 1;
        self.age = u32::try_from(records).unwrap_or(0);
    }
}

vectorised! {
    /// Encodes all blocks and moves both states on; the squared error and the squared displacement of the record, or
    /// `None` when a difference or a result is not finite.
    fn encode_blocks<R: Real>(
        record: &[u8], reconstructed: &mut [R], given: &mut [R], scales: &mut [u8], codes: &mut [u8],
    ) -> Option<[f64; 2]> = encode_blocks_body;
}

#[inline(always)]
fn encode_blocks_body<R: Real>(
    record: &[u8],
    reconstructed: &mut [R],
    given: &mut [R],
    scales: &mut [u8],
    codes: &mut [u8],
) -> Option<[f64; 2]> {
    // Eight partial sums each: one fixed order of summation that vectors of any width can follow.
    let mut squared_error = [0.0; 8];
    let mut squared_displacement = [0.0; 8];
    let mut block = Block::new();
    let parts = record.chunks(BLOCK * R::SIZE).zip(reconstructed.chunks_mut(BLOCK)).zip(given.chunks_mut(BLOCK));
    let outputs = scales.chunks_exact_mut(SCALE).zip(codes.chunks_mut(BLOCK));
    for (((record, reconstructed), given), (scale_out, codes)) in parts.zip(outputs) {
        let length = codes.len();
        if length < BLOCK {
            block = Block::new();
        }
        for (value, bytes) in block.value.iter_mut().zip(record.chunks_exact(R::SIZE)) {
            *value = R::load(bytes);
        }
        block.reconstructed[..length].copy_from_slice(reconstructed);
        block.given[..length].copy_from_slice(given);
        let scale = block.encode(&mut squared_error, &mut squared_displacement)?;
        scale_out.copy_from_slice(&scale.to_le_bytes()[2..]);
        for (out, &code) in codes.iter_mut().zip(&block.codes) {
            *out = code as u8;
        }
        reconstructed.copy_from_slice(&block.reconstructed[..length]);
        given.copy_from_slice(&block.value[..length]);
    }
    Some([squared_error.iter().sum(), squared_displacement.iter().sum()])
}

/// One block, padded with zeros: loops of a fixed length become vector code.
struct Block<R> {
    value: [R; BLOCK],
    reconstructed: [R; BLOCK],
    given: [R; BLOCK],
    codes: [i8; BLOCK],
}

impl<R: Real> Block<R> {
    #[inline(always)]
    fn new() -> Self {
        let zero = [R::default(); BLOCK];
        Self { value: zero, reconstructed: zero, given: zero, codes: [0; BLOCK] }
    }

    /// Finds scale and codes, moves `reconstructed` on, adds to the sums.
    #[inline(always)]
    fn encode(&mut self, squared_error: &mut [f64; 8], squared_displacement: &mut [f64; 8]) -> Option<f32> {
        let mut largest = R::Bits::default();
        for (value, reconstructed) in self.value.iter().zip(&self.reconstructed) {
            largest = largest.max(value.minus(*reconstructed).magnitude());
        }
        let largest = R::from_magnitude(largest);
        if !largest.is_finite() {
            return None;
        }
        let scale = if largest < SMALLEST { 0.0 } else { rounded_up(largest / 127.0) };
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let mut largest = R::Bits::default();
        for index in 0..BLOCK {
            let difference = self.value[index].minus(self.reconstructed[index]);
            let shifted = difference.times(inverse) + ROUNDER;
            self.codes[index] = shifted.to_bits() as i8;
            let moved = self.reconstructed[index].plus_product(shifted - ROUNDER, scale);
            self.reconstructed[index] = moved;
            largest = largest.max(moved.magnitude());
        }
        if !R::from_magnitude(largest).is_finite() {
            return None;
        }
        for row in 0..BLOCK / 8 {
            for lane in 0..8 {
                let index = 8 * row + lane;
                let value = self.value[index].wide();
                let error = value - self.reconstructed[index].wide();
                let displacement = value - self.given[index].wide();
                squared_error[lane] += error * error;
                squared_displacement[lane] += displacement * displacement;
            }
        }
        Some(scale)
    }
}

/// The next number whose lower 16 bits are zero, so that the largest difference still has a code.
#[inline(always)]
fn rounded_up(scale: f32) -> f32 {
    f32::from_bits(scale.to_bits().wrapping_add(0xFFFF) & 0xFFFF_0000)
}

/// The scale that two bytes stand for.
#[inline(always)]
fn load_scale(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([0, 0, bytes[0], bytes[1]])
}

/// A payload taken apart.
enum Item<'a> {
    Keyframe(&'a [u8]),
    Delta { scales: &'a [u8], codes: &'a [u8] },
}

fn parse<'a>(column: &Column, index: usize, payload: &'a [u8]) -> Result<Item<'a>, Damage> {
    let (is_delta, body) = split(payload, index, column.codec, column.dtype, column.elements)?;
    if !is_delta {
        expect_body(body, index, column.bytes())?;
        return Ok(Item::Keyframe(body));
    }
    // The encoder allocated no less, so the size fits.
    expect_body(body, index, delta_bytes(column.elements).unwrap_or(usize::MAX))?;
    let (scales, codes) = body.split_at(SCALE * column.elements.div_ceil(BLOCK));
    for (block, bytes) in scales.chunks_exact(SCALE).enumerate() {
        let scale = load_scale(bytes);
        if !(scale.is_finite() && scale.is_sign_positive()) {
            return Err(Damage { index, offset: HEADER + SCALE * block, reason: format!("a scale is {scale}") });
        }
    }
    Ok(Item::Delta { scales, codes })
}

/// A tile's bytes. Vectors that straddle two cache lines would halve the speed.
#[repr(align(64))]
struct Aligned([u8; TILE * 8]);

/// Decodes, tile by tile: a tile goes through the whole chain while it is in the cache, so memory is read once.
pub(super) fn decode<R: Real>(
    column: &Column,
    chain: &[&[u8]],
    wanted: &mut [(usize, &mut [u8])],
) -> Result<(), DecodeError> {
    let (Some((first, _)), Some((last, _))) = (wanted.first(), wanted.last()) else { return Ok(()) };
    let (first, last) = (*first, *last);
    let mut items = Vec::with_capacity(last + 1);
    let mut start = None;
    for (index, payload) in chain.iter().enumerate().take(last + 1) {
        let item = parse(column, index, payload)?;
        match item {
            Item::Keyframe(_) if index <= first => start = Some(index),
            Item::Delta { .. } if start.is_none() => {
                return Err(Damage { index, offset: 1, reason: "a chain begins with a delta".into() }.into());
            }
            _ => {}
        }
        items.push(item);
    }
    let start = start.unwrap_or(0);
    let mut tile = Aligned([0; TILE * 8]);
    for from in (0..column.elements).step_by(TILE) {
        let to = column.elements.min(from + TILE);
        decode_tile::<R>(&items[start..], start, &mut tile.0[..(to - from) * R::SIZE], from, wanted);
    }
    Ok(())
}

vectorised! {
    fn decode_tile<R: Real>(
        items: &[Item<'_>], first: usize, tile: &mut [u8], from: usize, wanted: &mut [(usize, &mut [u8])],
    ) = decode_tile_body;
}

/// Where the values of the last record lie; every move of them costs as much as the arithmetic.
#[derive(Clone, Copy)]
enum Place<'a> {
    Keyframe(&'a [u8]),
    Tile,
    Wanted(usize),
}

#[inline(always)]
fn decode_tile_body<R: Real>(
    items: &[Item<'_>],
    first: usize,
    tile: &mut [u8],
    from: usize,
    wanted: &mut [(usize, &mut [u8])],
) {
    let bytes = from * R::SIZE..from * R::SIZE + tile.len();
    let elements = from..from + tile.len() / R::SIZE;
    let mut place = Place::Tile;
    let mut next = 0;
    for (index, item) in (first..).zip(items) {
        let target = wanted.get(next).is_some_and(|(position, _)| *position == index).then_some(next);
        next += usize::from(target.is_some());
        match item {
            Item::Keyframe(body) => {
                place = Place::Keyframe(&body[bytes.clone()]);
                if let Some(target) = target {
                    wanted[target].1[bytes.clone()].copy_from_slice(&body[bytes.clone()]);
                }
            }
            Item::Delta { scales, codes } => {
                let delta = (&scales[SCALE * (from / BLOCK)..], &codes[elements.clone()]);
                match (place, target) {
                    (Place::Keyframe(values), None) => add::<R>(values, delta, tile),
                    (Place::Keyframe(values), Some(target)) => {
                        add::<R>(values, delta, &mut wanted[target].1[bytes.clone()]);
                    }
                    (Place::Tile, None) => add_in_place::<R>(delta, tile),
                    (Place::Tile, Some(target)) => add::<R>(tile, delta, &mut wanted[target].1[bytes.clone()]),
                    (Place::Wanted(source), None) => add::<R>(&wanted[source].1[bytes.clone()], delta, tile),
                    (Place::Wanted(source), Some(target)) => {
                        let (before, behind) = wanted.split_at_mut(target);
                        add::<R>(&before[source].1[bytes.clone()], delta, &mut behind[0].1[bytes.clone()]);
                    }
                }
                place = target.map_or(Place::Tile, Place::Wanted);
            }
        }
    }
}

/// Values of one tile plus their differences (scales, codes).
#[inline(always)]
fn add<R: Real>(values: &[u8], (scales, codes): (&[u8], &[u8]), out: &mut [u8]) {
    let values = values.chunks(BLOCK * R::SIZE).zip(codes.chunks(BLOCK));
    for ((values, codes), (out, scale)) in values.zip(out.chunks_mut(BLOCK * R::SIZE).zip(scales.chunks_exact(SCALE))) {
        let scale = load_scale(scale);
        let values = values.chunks_exact(R::SIZE).zip(codes);
        for ((value, &code), out) in values.zip(out.chunks_exact_mut(R::SIZE)) {
            R::load(value).plus_product(f32::from(code as i8), scale).store(out);
        }
    }
}

#[inline(always)]
fn add_in_place<R: Real>((scales, codes): (&[u8], &[u8]), values: &mut [u8]) {
    let values = values.chunks_mut(BLOCK * R::SIZE).zip(codes.chunks(BLOCK));
    for ((values, codes), scale) in values.zip(scales.chunks_exact(SCALE)) {
        let scale = load_scale(scale);
        for (value, &code) in values.chunks_exact_mut(R::SIZE).zip(codes) {
            R::load(value).plus_product(f32::from(code as i8), scale).store(value);
        }
    }
}
