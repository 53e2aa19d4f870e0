use distillrs_core::trajectory::codec::{self, CodecSpec, DecodeError, Dtype, Encoder, RecordKind};
use distillrs_core::{Error, Result};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::CoreResult;
use crate::random::writable;

fn parse(spec: &str) -> Result<CodecSpec> {
    let json = serde_json::from_str(spec).map_err(|error| Error::argument("codec", spec, format!("JSON: {error}")))?;
    CodecSpec::parse(&json)
}

/// A payload, the step it refers to (none for a keyframe).
type Encoded<'py> = (Bound<'py, PyBytes>, Option<u64>);

/// Encodes the records of one column in order; payloads with their base steps, and the measured error (max, mean, count).
#[pyfunction]
pub fn codec_encode<'py>(
    py: Python<'py>,
    spec: &str,
    dtype: &str,
    tensor_sizes: Vec<usize>,
    records: Vec<PyBuffer<u8>>,
) -> CoreResult<(Vec<Encoded<'py>>, (f64, f64, u64))> {
    let (spec, dtype) = (parse(spec)?, dtype.parse::<Dtype>()?);
    let elements = records.first().map_or(0, |record| record.item_count() / dtype.size());
    let mut encoder = Encoder::new(&spec, dtype, elements, &tensor_sizes)?;
    let mut encoded = Vec::with_capacity(records.len());
    let mut payload = Vec::new();
    for (step, record) in (0..).zip(&records) {
        let record = readable(record)?;
        payload.clear();
        let kind = py.detach(|| encoder.encode(step, record, &mut payload))?;
        let base = if let RecordKind::Delta { base } = kind { Some(base) } else { None };
        encoded.push((PyBytes::new(py, &payload), base));
    }
    let error = encoder.error();
    Ok((encoded, (error.max, error.mean, error.records)))
}

/// Decodes the wanted positions of one chain into buffers of one record each.
#[pyfunction]
pub fn codec_decode(
    py: Python<'_>,
    spec: &str,
    dtype: &str,
    tensor_sizes: Vec<usize>,
    chain: Vec<PyBuffer<u8>>,
    wanted: Vec<(usize, PyBuffer<u8>)>,
) -> CoreResult<()> {
    let (spec, dtype) = (parse(spec)?, dtype.parse::<Dtype>()?);
    let elements = wanted.first().map_or(0, |(_, out)| out.item_count() / dtype.size());
    let chain = chain.iter().map(readable).collect::<CoreResult<Vec<_>>>()?;
    let mut wanted =
        wanted.iter().map(|(position, out)| Ok((*position, writable(out)?))).collect::<CoreResult<Vec<_>>>()?;
    let located = |error: DecodeError| error.at(|position| (format!("payload {position}").into(), 0));
    py.detach(|| codec::decode(&spec, dtype, elements, &tensor_sizes, &chain, &mut wanted).map_err(located))?;
    Ok(())
}

/// Copies bytes: what decoding is measured against.
#[pyfunction]
pub fn copy_bytes(py: Python<'_>, source: PyBuffer<u8>, out: PyBuffer<u8>) -> CoreResult<()> {
    let (source, out) = (readable(&source)?, writable(&out)?);
    if source.len() != out.len() {
        return Err(Error::argument("out", out.len(), format!("{} bytes", source.len())).into());
    }
    py.detach(|| out.copy_from_slice(source));
    Ok(())
}

/// The memory of a contiguous buffer.
fn readable(buffer: &PyBuffer<u8>) -> CoreResult<&[u8]> {
    if !buffer.is_c_contiguous() {
        return Err(Error::argument("records", "a strided buffer", "a contiguous one").into());
    }
    if buffer.item_count() == 0 {
        return Ok(&[]);
    }
    // SAFETY: contiguous, `item_count` bytes, kept alive by `buffer`; the callers (benchmarks and tests) write to it in
    // no other thread.
    Ok(unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.item_count()) })
}
