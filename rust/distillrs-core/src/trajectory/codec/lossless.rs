//! `lossless`: XOR with the predecessor, bytes sorted by their place in the element, LZ4.
//!
//! Neighbouring records agree in sign, exponent and leading bits, so the XOR has long runs of zeros once the bytes of
//! one place lie together. Any element type; every bit pattern comes back.
//!
//! Body: a byte that says how the rest is packed (0: as it is, 1: an LZ4 block), then the sorted bytes.

use lz4_flex::block;

use super::measure::CodecError;
use super::payload::{Damage, HEADER, split, write_header};
use super::{Column, ColumnEncoder, DecodeError, RecordKind};

const STORED: u8 = 0;
const LZ4: u8 = 1;

/// Most bytes of a body: what does not shrink is stored.
pub(super) fn bound(bytes: usize) -> Option<usize> {
    bytes.checked_add(1)
}

/// The encoder: the last record.
pub(super) struct Encoder {
    column: Column,
    keyframe_every: u32,
    /// Records since the last keyframe, itself included; 0 asks for a keyframe.
    age: u32,
    last_step: u64,
    last: Vec<u8>,
}

impl Encoder {
    pub(super) fn new(column: Column, keyframe_every: u32) -> Self {
        Self { column, keyframe_every, age: 0, last_step: 0, last: Vec::new() }
    }
}

impl ColumnEncoder for Encoder {
    fn encode(&mut self, step: u64, record: &[u8], out: &mut Vec<u8>, _: &mut CodecError) -> RecordKind {
        let base = std::mem::replace(&mut self.last_step, step);
        let kind = if self.age == 0 || self.age >= self.keyframe_every {
            self.last.clear();
            self.last.resize(record.len(), 0);
            self.age = 1;
            RecordKind::Keyframe
        } else {
            self.age += 1;
            RecordKind::Delta { base }
        };
        write_header(out, self.column.codec, kind, self.column.dtype, self.column.elements);
        let mut sorted = vec![0; record.len()];
        sort_bytes(record, &self.last, self.column.dtype.size(), &mut sorted);
        self.last.copy_from_slice(record);
        let start = out.len();
        out.push(LZ4);
        out.resize(start + 1 + block::get_maximum_output_size(sorted.len()), 0);
        match block::compress_into(&sorted, &mut out[start + 1..]) {
            Ok(length) if length < sorted.len() => out.truncate(start + 1 + length),
            _ => {
                out.truncate(start);
                out.push(STORED);
                out.extend_from_slice(&sorted);
            }
        }
        kind
    }

    fn abandon_last(&mut self) {
        self.age = 0;
    }

    fn resume(&mut self, chain: &[&[u8]], last: &[u8], last_step: u64) {
        self.last = last.to_vec();
        self.last_step = last_step;
        let records = chain.iter().rev().take_while(|payload| payload.get(1) == Some(&1)).count() + 1;
        self.age = u32::try_from(records).unwrap_or(0);
    }
}

/// Byte `place` of element `index` goes to `place * elements + index`, XORed with the predecessor's.
fn sort_bytes(record: &[u8], last: &[u8], size: usize, sorted: &mut [u8]) {
    match size {
        1 => sort_bytes_of::<1>(record, last, sorted),
        2 => sort_bytes_of::<2>(record, last, sorted),
        4 => sort_bytes_of::<4>(record, last, sorted),
        _ => sort_bytes_of::<8>(record, last, sorted),
    }
}

fn sort_bytes_of<const SIZE: usize>(record: &[u8], last: &[u8], sorted: &mut [u8]) {
    let elements = record.len() / SIZE;
    for place in 0..SIZE {
        let plane = &mut sorted[place * elements..(place + 1) * elements];
        for ((out, record), last) in plane.iter_mut().zip(record.chunks_exact(SIZE)).zip(last.chunks_exact(SIZE)) {
            *out = record[place] ^ last[place];
        }
    }
}

/// The inverse: `state`, the predecessor, becomes the record.
fn merge_bytes(sorted: &[u8], size: usize, state: &mut [u8]) {
    match size {
        1 => merge_bytes_of::<1>(sorted, state),
        2 => merge_bytes_of::<2>(sorted, state),
        4 => merge_bytes_of::<4>(sorted, state),
        _ => merge_bytes_of::<8>(sorted, state),
    }
}

fn merge_bytes_of<const SIZE: usize>(sorted: &[u8], state: &mut [u8]) {
    let elements = state.len() / SIZE;
    if elements == 0 {
        return;
    }
    let planes: [&[u8]; SIZE] = std::array::from_fn(|place| &sorted[place * elements..(place + 1) * elements]);
    for (index, bytes) in state.chunks_exact_mut(SIZE).enumerate() {
        for place in 0..SIZE {
            bytes[place] ^= planes[place][index];
        }
    }
}

/// Decodes from the last keyframe before the first wanted record on.
pub(super) fn decode(column: &Column, chain: &[&[u8]], wanted: &mut [(usize, &mut [u8])]) -> Result<(), DecodeError> {
    let (Some((first, _)), Some((last, _))) = (wanted.first(), wanted.last()) else { return Ok(()) };
    let (first, last) = (*first, *last);
    let mut items = Vec::with_capacity(last + 1);
    let mut start = None;
    for (index, payload) in chain.iter().enumerate().take(last + 1) {
        let (is_delta, body) = split(payload, index, column.codec, column.dtype, column.elements)?;
        if !is_delta && index <= first {
            start = Some(index);
        }
        if start.is_none() {
            return Err(Damage { index, offset: 1, reason: "a chain begins with a delta".into() }.into());
        }
        items.push((is_delta, body));
    }
    let start = start.unwrap_or(0);
    let bytes = column.bytes();
    let mut state = vec![0; bytes];
    let mut unpacked = vec![0; bytes];
    let mut wanted = wanted.iter_mut().peekable();
    for (index, (is_delta, body)) in (start..).zip(&items[start..]) {
        if !is_delta {
            state.fill(0);
        }
        merge_bytes(unpack(body, index, &mut unpacked)?, column.dtype.size(), &mut state);
        if let Some((_, buffer)) = wanted.next_if(|(position, _)| *position == index) {
            buffer.copy_from_slice(&state);
        }
    }
    Ok(())
}

/// The sorted bytes of a body, exactly as many as `buffer` holds.
fn unpack<'a>(body: &'a [u8], index: usize, buffer: &'a mut [u8]) -> Result<&'a [u8], Damage> {
    let damage = |reason: String| Damage { index, offset: HEADER, reason };
    let due = buffer.len();
    match body.split_first() {
        Some((&STORED, rest)) if rest.len() == due => Ok(rest),
        Some((&STORED, rest)) => Err(damage(format!("{} stored bytes where {due} are due", rest.len()))),
        Some((&LZ4, rest)) => match block::decompress_into(rest, buffer) {
            Ok(length) if length == due => Ok(buffer),
            Ok(length) => Err(damage(format!("{length} unpacked bytes where {due} are due"))),
            Err(error) => Err(damage(format!("the LZ4 block is broken: {error}"))),
        },
        Some((packing, _)) => Err(damage(format!("packing {packing} is neither stored nor LZ4"))),
        None => Err(damage("an empty body".into())),
    }
}
