//! How records become bytes: `raw`, `delta-int8`, `half-delta`, `lossless`.
//!
//! A record is one flat, little-endian vector. Its payload is either a keyframe, which stands alone, or a delta, which
//! needs the record named by its base. Following bases from a record down to a keyframe gives its chain; [`decode`]
//! takes the chain's payloads in the order of their steps.

mod delta_int8;
mod dtype;
mod lossless;
mod measure;
mod payload;
mod spec;

pub use dtype::Dtype;
pub use measure::CodecError;
pub use payload::{Damage, DecodeError, HEADER};
pub use spec::{CodecSpec, DEFAULT_KEYFRAME_EVERY, MAX_KEYFRAME_EVERY};

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

/// Encodes the records of one column of one trajectory, in order.
#[derive(Debug)]
pub struct Encoder {
    spec: CodecSpec,
    dtype: Dtype,
    elements: usize,
    error: CodecError,
}

impl Encoder {
    /// An encoder for records of `elements` values. `tensor_sizes` are the lengths of the tensors that lie one after the
    /// other in a record; an empty list takes the record as one tensor.
    ///
    /// # Errors
    /// [`Error::Argument`] for a dtype that the codec does not take, or sizes that do not add up to `elements`.
    pub fn new(spec: &CodecSpec, dtype: Dtype, elements: usize, tensor_sizes: &[usize]) -> Result<Self> {
        spec.check_dtype(dtype)?;
        let total = tensor_sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
        if !tensor_sizes.is_empty() && total != Some(elements) {
            let got = total.map_or_else(|| "more than fits".to_owned(), |total| total.to_string());
            return Err(Error::argument("tensor_sizes", got, format!("sizes that add up to {elements}")));
        }
        Ok(Self { spec: *spec, dtype, elements, error: CodecError::default() })
    }

    /// Appends the payload of the record of `step` to `out`; steps rise from call to call.
    ///
    /// # Errors
    /// [`Error::Argument`] when `record` has another length than the schema says; nothing is appended then.
    pub fn encode(&mut self, step: u64, record: &[u8], out: &mut Vec<u8>) -> Result<RecordKind> {
        let _ = step;
        let bytes = self.elements * self.dtype.size();
        if record.len() != bytes {
            return Err(Error::argument("record", format_args!("{} bytes", record.len()), format!("{bytes} bytes")));
        }
        if self.spec != CodecSpec::Raw {
            payload::write_header(out, self.spec.code(), RecordKind::Keyframe, self.dtype, self.elements);
        }
        out.extend_from_slice(record);
        Ok(RecordKind::Keyframe)
    }

    /// Says that the last encoded record was not stored: no later record will need it.
    pub fn abandon_last(&mut self) {}

    /// Goes on after the records of a reopened log. `chain` holds the payloads from a keyframe to the last stored record,
    /// whose step is `last_step`, as [`decode`] takes them.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn resume(&mut self, chain: &[&[u8]], last_step: u64) -> Result<(), DecodeError> {
        let _ = last_step;
        let mut last = vec![0; self.elements * self.dtype.size()];
        let end = chain.len().saturating_sub(1);
        decode(&self.spec, self.dtype, self.elements, &[], chain, &mut [(end, &mut last)])
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
    let _ = tensor_sizes;
    let bytes = elements.saturating_mul(dtype.size());
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
    for (index, buffer) in wanted.iter_mut() {
        let body = if *spec == CodecSpec::Raw {
            chain[*index]
        } else {
            payload::split(chain[*index], *index, spec.code(), dtype, elements)?.1
        };
        payload::expect_body(body, *index, bytes)?;
        buffer.copy_from_slice(body);
    }
    Ok(())
}
