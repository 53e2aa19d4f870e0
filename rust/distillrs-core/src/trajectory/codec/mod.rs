//! How records become bytes: `raw`, `delta-int8`, `half-delta`, `lossless`.
//!
//! A record is one flat, little-endian vector. Its payload is either a keyframe, which stands alone, or a delta, which
//! needs the record named by its base. Following bases from a record down to a keyframe gives its chain; [`decode`]
//! takes the chain's payloads in the order of their steps.

mod delta_int8;
mod dtype;
mod half_delta;
#[doc(hidden)]
pub mod hostile;
mod lossless;
mod measure;
mod payload;
mod real;
mod spec;

pub use dtype::Dtype;
pub use measure::CodecError;
pub use payload::{Damage, DecodeError, HEADER};
pub use spec::{CodecSpec, DEFAULT_KEYFRAME_EVERY, MAX_KEYFRAME_EVERY};

use std::fmt;

use crate::{Error, Result};

/// What an encoded record needs to be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Nothing.
    Keyframe,
    /// The record of step `base`, decoded.
    Delta {
        /// Step that the difference is taken to.
        base: u64,
    },
}

impl RecordKind {
    /// Whether another record is needed.
    pub fn is_delta(self) -> bool {
        matches!(self, Self::Delta { .. })
    }
}

/// What a codec knows of its column.
#[derive(Debug, Clone)]
struct Column {
    codec: u8,
    dtype: Dtype,
    elements: usize,
    tensor_sizes: Vec<usize>,
}

impl Column {
    fn new(spec: &CodecSpec, dtype: Dtype, elements: usize, tensor_sizes: &[usize]) -> Result<Self> {
        spec.check_dtype(dtype)?;
        if spec.payload_bound(dtype, elements, tensor_sizes.len().max(1)).is_none() {
            return Err(Error::argument("elements", elements, "as many as this machine can address"));
        }
        let total = tensor_sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if !tensor_sizes.is_empty() && total != Some(elements) {
            let got = total.map_or_else(|| "more than fits".to_owned(), |total| total.to_string());
            return Err(Error::argument("tensor_sizes", got, format!("sizes that add up to {elements}")));
        }
        let tensor_sizes = if tensor_sizes.is_empty() { vec![elements] } else { tensor_sizes.to_vec() };
        Ok(Self { codec: spec.code(), dtype, elements, tensor_sizes })
    }

    fn bytes(&self) -> usize {
        self.elements * self.dtype.size()
    }
}

/// One codec's side of [`Encoder`]; lengths are checked before.
trait ColumnEncoder: Send + Sync {
    fn encode(&mut self, step: u64, record: &[u8], out: &mut Vec<u8>, error: &mut CodecError) -> RecordKind;
    fn abandon_last(&mut self);
    /// `last` is the last record of the chain, decoded.
    fn resume(&mut self, chain: &[&[u8]], last: &[u8], last_step: u64);
}

/// `raw`: nothing is kept.
struct RawEncoder;

impl ColumnEncoder for RawEncoder {
    fn encode(&mut self, _: u64, record: &[u8], out: &mut Vec<u8>, _: &mut CodecError) -> RecordKind {
        out.extend_from_slice(record);
        RecordKind::Keyframe
    }

    fn abandon_last(&mut self) {}

    fn resume(&mut self, _: &[&[u8]], _: &[u8], _: u64) {}
}

/// Encodes the records of one column of one trajectory, in order.
pub struct Encoder {
    spec: CodecSpec,
    column: Column,
    inner: Box<dyn ColumnEncoder>,
    last_step: Option<u64>,
    error: CodecError,
    error_before: CodecError,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Encoder")
            .field("spec", &self.spec)
            .field("column", &self.column)
            .finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder for records of `elements` values. `tensor_sizes` are the lengths of the tensors that lie one after the
    /// other in a record; an empty list takes the record as one tensor.
    ///
    /// # Errors
    /// [`Error::Argument`] for a dtype that the codec does not take, or sizes that do not add up to `elements`.
    pub fn new(spec: &CodecSpec, dtype: Dtype, elements: usize, tensor_sizes: &[usize]) -> Result<Self> {
        let column = Column::new(spec, dtype, elements, tensor_sizes)?;
        let inner: Box<dyn ColumnEncoder> = match (spec, dtype) {
            (CodecSpec::Raw, _) => Box::new(RawEncoder),
            (CodecSpec::Lossless { keyframe_every }, _) => {
                Box::new(lossless::Encoder::new(column.clone(), *keyframe_every))
            }
            (CodecSpec::DeltaInt8 { keyframe_every }, Dtype::F64) => {
                Box::new(delta_int8::Encoder::<f64>::new(column.clone(), *keyframe_every))
            }
            (CodecSpec::DeltaInt8 { keyframe_every }, _) => {
                Box::new(delta_int8::Encoder::<f32>::new(column.clone(), *keyframe_every))
            }
            (CodecSpec::HalfDelta, Dtype::F64) => Box::new(half_delta::Encoder::<f64>::new(column.clone())),
            (CodecSpec::HalfDelta, _) => Box::new(half_delta::Encoder::<f32>::new(column.clone())),
        };
        let error = CodecError::default();
        Ok(Self { spec: *spec, column, inner, last_step: None, error, error_before: error })
    }

    /// Appends the payload of the record of `step` to `out`.
    ///
    /// # Errors
    /// [`Error::Argument`] when `record` has another length than the schema says, or `step` is not above the last one;
    /// nothing is appended then.
    pub fn encode(&mut self, step: u64, record: &[u8], out: &mut Vec<u8>) -> Result<RecordKind> {
        let bytes = self.column.bytes();
        if record.len() != bytes {
            return Err(Error::argument("record", format_args!("{} bytes", record.len()), format!("{bytes} bytes")));
        }
        if let Some(last) = self.last_step.filter(|&last| step <= last) {
            return Err(Error::argument("step", step, format!("a step above {last}")));
        }
        self.last_step = Some(step);
        self.error_before = self.error;
        Ok(self.inner.encode(step, record, out, &mut self.error))
    }

    /// Says that the last encoded record was not stored: no later record will need it, its step may come again, and its
    /// error does not count.
    pub fn abandon_last(&mut self) {
        self.inner.abandon_last();
        self.error = self.error_before;
        self.last_step = None;
    }

    /// Goes on after the records of a reopened log. `chain` holds the payloads from a keyframe to the last stored record,
    /// whose step is `last_step`, as [`decode`] takes them. An empty chain starts anew.
    ///
    /// The measured error counts from here on; the displacement of the next record is taken to the decoded one.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn resume(&mut self, chain: &[&[u8]], last_step: u64) -> Result<(), DecodeError> {
        if chain.is_empty() {
            return Ok(());
        }
        let mut last = vec![0; self.column.bytes()];
        decode_column(&self.spec, &self.column, chain, &mut [(chain.len() - 1, &mut last)])?;
        self.inner.resume(chain, &last, last_step);
        self.last_step = Some(last_step);
        Ok(())
    }

    /// Error of the records encoded by this encoder.
    pub fn error(&self) -> CodecError {
        self.error
    }
}

/// Decodes records of one chain in one pass.
///
/// `chain` holds the payloads of a keyframe and of the records that follow it, in the order of their steps; for
/// `half-delta` the trajectory's first record and those asked for. `wanted` pairs positions in the chain, rising, with
/// buffers of one record each. `tensor_sizes` are those given to the encoder.
///
/// # Errors
/// [`DecodeError::Damaged`] names the payload and the byte; [`DecodeError::Argument`] a wrong position or buffer. The
/// buffers' contents are unspecified then.
pub fn decode(
    spec: &CodecSpec,
    dtype: Dtype,
    elements: usize,
    tensor_sizes: &[usize],
    chain: &[&[u8]],
    wanted: &mut [(usize, &mut [u8])],
) -> Result<(), DecodeError> {
    let column = Column::new(spec, dtype, elements, tensor_sizes).map_err(DecodeError::Argument)?;
    decode_column(spec, &column, chain, wanted)
}

fn decode_column(
    spec: &CodecSpec,
    column: &Column,
    chain: &[&[u8]],
    wanted: &mut [(usize, &mut [u8])],
) -> Result<(), DecodeError> {
    let bytes = column.bytes();
    let mut next = 0;
    for (index, buffer) in wanted.iter() {
        if *index < next || *index >= chain.len() {
            let allowed = format!("rising positions below {}", chain.len());
            return Err(DecodeError::Argument(Error::argument("wanted", index, allowed)));
        }
        if buffer.len() != bytes {
            let got = format!("{} bytes", buffer.len());
            return Err(DecodeError::Argument(Error::argument("buffer", got, format!("{bytes} bytes"))));
        }
        next = index + 1;
    }
    match (spec, column.dtype) {
        (CodecSpec::Raw, _) => {
            for (index, buffer) in wanted.iter_mut() {
                payload::expect_raw(chain[*index], *index, bytes)?;
                buffer.copy_from_slice(chain[*index]);
            }
            Ok(())
        }
        (CodecSpec::Lossless { .. }, _) => lossless::decode(column, chain, wanted),
        (CodecSpec::DeltaInt8 { .. }, Dtype::F64) => delta_int8::decode::<f64>(column, chain, wanted),
        (CodecSpec::DeltaInt8 { .. }, _) => delta_int8::decode::<f32>(column, chain, wanted),
        (CodecSpec::HalfDelta, Dtype::F64) => half_delta::decode::<f64>(column, chain, wanted),
        (CodecSpec::HalfDelta, _) => half_delta::decode::<f32>(column, chain, wanted),
    }
}

#[cfg(test)]
mod tests;
