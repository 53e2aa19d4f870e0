//! `half-delta`: the difference to the trajectory's first record in `f16`, with one scale for each tensor.
//!
//! The scale is the power of two that brings the tensor's largest difference to [2^14, 2^15): scaling is exact, and
//! differences down to 2^-28 of the largest keep all eleven bits.
//!
//! Body of a keyframe: the record's bytes. Body of a delta: the first record's step (`u64`), one `f32` scale for each
//! tensor, then one `f16` for each element; the value is `first + f16 * scale`, the product rounded in the column's type before the sum. A record whose
//! difference has an infinity or NaN becomes a keyframe. In a tensor whose differences are all below 2^-100 the scale
//! is zero.

use super::measure::CodecError;
use super::payload::{Damage, HEADER, expect_body, split, write_header};
use super::real::Real;
use super::{Column, ColumnEncoder, DecodeError, RecordKind};
use crate::simd::vectorised;

const SMALLEST: f32 = 7.888_609e-31; // 2^-100

/// Exponent of the largest scaled difference.
const TOP: i32 = 14;

/// Bytes of the first record's step.
const BASE: usize = 8;

/// Bytes of a delta's body.
pub(super) fn delta_bytes(elements: usize, tensors: usize) -> Option<usize> {
    elements.checked_mul(2)?.checked_add(tensors.checked_mul(4)?)?.checked_add(BASE)
}

/// The encoder: the first record and, for the measure, the last one.
pub(super) struct Encoder<R> {
    column: Column,
    /// Step of the first record, once it is stored.
    base: Option<u64>,
    last_step: u64,
    first: Vec<R>,
    given: Vec<R>,
}

impl<R: Real> Encoder<R> {
    pub(super) fn new(column: Column) -> Self {
        Self { column, base: None, last_step: 0, first: Vec::new(), given: Vec::new() }
    }

    fn keyframe(&self, record: &[u8], out: &mut Vec<u8>) -> RecordKind {
        write_header(out, self.column.codec, RecordKind::Keyframe, self.column.dtype, self.column.elements);
        out.extend_from_slice(record);
        RecordKind::Keyframe
    }

    fn delta(&self, base: u64, values: &[R], out: &mut Vec<u8>) -> Option<(RecordKind, [f64; 2])> {
        let kind = RecordKind::Delta { base };
        write_header(out, self.column.codec, kind, self.column.dtype, self.column.elements);
        out.extend_from_slice(&base.to_le_bytes());
        let start = out.len();
        let scale_bytes = 4 * self.column.tensor_sizes.len();
        out.resize(start + scale_bytes + 2 * self.column.elements, 0);
        let (scales, codes) = out[start..].split_at_mut(scale_bytes);
        let mut at = 0;
        let mut sums = [0.0; 2];
        for (&size, scale) in self.column.tensor_sizes.iter().zip(scales.chunks_exact_mut(4)) {
            let range = at..at + size;
            let codes = &mut codes[2 * at..2 * (at + size)];
            let (first, given) = (&self.first[range.clone()], &self.given[range.clone()]);
            let (factor, part) = encode_tensor(&values[range], first, given, codes)?;
            scale.copy_from_slice(&factor.to_le_bytes());
            sums = [sums[0] + part[0], sums[1] + part[1]];
            at += size;
        }
        Some((kind, sums))
    }
}

impl<R: Real> ColumnEncoder for Encoder<R> {
    fn encode(&mut self, step: u64, record: &[u8], out: &mut Vec<u8>, error: &mut CodecError) -> RecordKind {
        self.last_step = step;
        let values: Vec<R> = record.chunks_exact(R::SIZE).map(R::load).collect();
        let Some(base) = self.base else {
            self.base = Some(step);
            self.first.clone_from(&values);
            self.given = values;
            return self.keyframe(record, out);
        };
        let start = out.len();
        let kind = match self.delta(base, &values, out) {
            Some((kind, [squared_error, squared_displacement])) => {
                error.record(squared_error, squared_displacement);
                kind
            }
            None => {
                out.truncate(start);
                self.keyframe(record, out)
            }
        };
        self.given = values;
        kind
    }

    fn abandon_last(&mut self) {
        if self.base == Some(self.last_step) {
            self.base = None;
        }
    }

    fn resume(&mut self, chain: &[&[u8]], last: &[u8], last_step: u64) {
        self.given = last.chunks_exact(R::SIZE).map(R::load).collect();
        self.last_step = last_step;
        // A record that stands alone becomes the one that later records refer to.
        let named = chain.last().filter(|payload| payload.get(1) == Some(&1)).and_then(|payload| base_of(payload));
        let first = if named.is_some() { chain.first() } else { chain.last() };
        let body = first.and_then(|payload| payload.get(HEADER..)).unwrap_or_default();
        self.first = body.chunks_exact(R::SIZE).map(R::load).collect();
        self.base = Some(named.unwrap_or(last_step));
    }
}

/// Step of the first record, from a delta's payload.
fn base_of(payload: &[u8]) -> Option<u64> {
    let bytes = payload.get(HEADER..HEADER + BASE)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

vectorised! {
    /// Codes of one tensor; its scale, and its share of the squared error and the squared displacement.
    fn encode_tensor<R: Real>(
        values: &[R], first: &[R], given: &[R], codes: &mut [u8],
    ) -> Option<(f32, [f64; 2])> = encode_tensor_body;
}

#[inline(always)]
fn encode_tensor_body<R: Real>(values: &[R], first: &[R], given: &[R], codes: &mut [u8]) -> Option<(f32, [f64; 2])> {
    let mut largest = R::Bits::default();
    for (value, first) in values.iter().zip(first) {
        largest = largest.max(value.minus(*first).magnitude());
    }
    let largest = R::from_magnitude(largest);
    if !largest.is_finite() {
        return None;
    }
    let (scale, inverse) = if largest < SMALLEST {
        (0.0, 0.0)
    } else {
        let exponent = (largest.to_bits() >> 23) as i32 - 127 - TOP;
        (power_of_two(exponent), power_of_two(-exponent))
    };
    let mut endless = R::Bits::default();
    let mut sums = [[0.0; 8]; 2];
    let rows = values.chunks(8).zip(first.chunks(8)).zip(given.chunks(8)).zip(codes.chunks_mut(16));
    for (((values, first), given), codes) in rows {
        for lane in 0..values.len() {
            let code = to_half(values[lane].minus(first[lane]).times(inverse));
            codes[2 * lane..2 * lane + 2].copy_from_slice(&code.to_le_bytes());
            let decoded = first[lane].plus_product(from_half(code), scale);
            endless = endless.max(decoded.magnitude());
            let error = values[lane].wide() - decoded.wide();
            let displacement = values[lane].wide() - given[lane].wide();
            sums[0][lane] += error * error;
            sums[1][lane] += displacement * displacement;
        }
    }
    if !R::from_magnitude(endless).is_finite() {
        return None;
    }
    Some((scale, sums.map(|lanes| lanes.iter().sum())))
}

/// 2^exponent for exponents of normal numbers.
#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Nearest `f16`, ties to even, of a number below 2^15 in magnitude. Exact integer arithmetic but for one rounding sum,
/// and never a denormal `f32`: threads that flush those give the same bits.
#[inline(always)]
fn to_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let magnitude = bits & 0x7FFF_FFFF;
    let normal = (magnitude.wrapping_add(0xFFF + ((magnitude >> 13) & 1)).wrapping_sub(112 << 23)) >> 13;
    // The last bit of 0.5 is that of the smallest f16.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let chosen = if magnitude < 113 << 23 { small } else { normal };
    (sign | chosen) as u16
}

/// Exact value of a finite `f16`.
#[inline(always)]
fn from_half(code: u16) -> f32 {
    let code = u32::from(code);
    let shifted = (code & 0x7FFF) << 13;
    let normal = f32::from_bits(shifted + (112 << 23));
    let small = f32::from_bits(shifted | 113 << 23) - f32::from_bits(113 << 23);
    let magnitude = if code & 0x7C00 == 0 { small } else { normal };
    f32::from_bits(magnitude.to_bits() | (code & 0x8000) << 16)
}

/// Decodes the wanted records; each needs the chain's first payload and its own.
pub(super) fn decode<R: Real>(
    column: &Column,
    chain: &[&[u8]],
    wanted: &mut [(usize, &mut [u8])],
) -> Result<(), DecodeError> {
    let tensors = column.tensor_sizes.len();
    let mut first = None;
    for (index, buffer) in wanted.iter_mut() {
        let index = *index;
        let (is_delta, body) = split(chain[index], index, column.codec, column.dtype, column.elements)?;
        if !is_delta {
            expect_body(body, index, column.bytes())?;
            buffer.copy_from_slice(body);
            continue;
        }
        expect_body(body, index, delta_bytes(column.elements, tensors).unwrap_or(usize::MAX))?;
        let first = match first {
            Some(first) => first,
            None => *first.insert(first_record(column, chain[0])?),
        };
        let (scales, codes) = body[BASE..].split_at(4 * tensors);
        let mut at = 0;
        for (tensor, (&size, scale)) in column.tensor_sizes.iter().zip(scales.chunks_exact(4)).enumerate() {
            let scale = f32::load(scale);
            if !(scale.is_finite() && scale.is_sign_positive()) {
                let reason = format!("a scale is {scale}");
                return Err(Damage { index, offset: HEADER + BASE + 4 * tensor, reason }.into());
            }
            let bytes = at * R::SIZE..(at + size) * R::SIZE;
            let codes = &codes[2 * at..2 * (at + size)];
            if !decode_tensor::<R>(&first[bytes.clone()], codes, scale, &mut buffer[bytes]) {
                let reason = "a difference is infinite or not a number".into();
                return Err(Damage { index, offset: HEADER + BASE + 4 * tensors + 2 * at, reason }.into());
            }
            at += size;
        }
    }
    Ok(())
}

fn first_record<'a>(column: &Column, payload: &'a [u8]) -> Result<&'a [u8], Damage> {
    let (is_delta, body) = split(payload, 0, column.codec, column.dtype, column.elements)?;
    if is_delta {
        return Err(Damage { index: 0, offset: 1, reason: "a chain begins with a delta".into() });
    }
    expect_body(body, 0, column.bytes())?;
    Ok(body)
}

vectorised! {
    /// Decodes one tensor; whether all its codes are finite.
    fn decode_tensor<R: Real>(first: &[u8], codes: &[u8], scale: f32, out: &mut [u8]) -> bool = decode_tensor_body;
}

#[inline(always)]
fn decode_tensor_body<R: Real>(first: &[u8], codes: &[u8], scale: f32, out: &mut [u8]) -> bool {
    let mut largest = 0;
    let parts = first.chunks_exact(R::SIZE).zip(codes.chunks_exact(2)).zip(out.chunks_exact_mut(R::SIZE));
    for ((first, code), out) in parts {
        let code = u16::from_le_bytes([code[0], code[1]]);
        largest = largest.max(code & 0x7C00);
        R::load(first).plus_product(from_half(code), scale).store(out);
    }
    largest != 0x7C00
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_convert_exactly_and_round_to_nearest_even() {
        for code in (0..=u16::MAX).filter(|code| code & 0x7C00 != 0x7C00) {
            let exponent = i32::from((code >> 10) & 31);
            let fraction = f64::from(code & 0x3FF);
            let magnitude =
                if exponent == 0 { fraction * 2f64.powi(-24) } else { (1024.0 + fraction) * 2f64.powi(exponent - 25) };
            let sign = if code & 0x8000 == 0 { 1.0 } else { -1.0 };
            assert_eq!(f64::from(from_half(code)), sign * magnitude);
            if exponent < 30 {
                assert_eq!(to_half(from_half(code)), code);
                // Half way to the next code goes to the even one, a hair beyond goes up.
                let next = from_half(code + 1);
                let middle = from_half(code) / 2.0 + next / 2.0;
                assert_eq!(to_half(middle), code + (code & 1));
                let beyond = f32::from_bits(middle.to_bits() + 1);
                assert_eq!(to_half(beyond), code + 1);
            }
        }
    }
}
