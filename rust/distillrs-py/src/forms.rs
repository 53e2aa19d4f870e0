//! Bindings of student forms.

use distillrs_core::forms::{self, Kind};
use distillrs_core::{Error, Result};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{CoreResult, check_signals};
use crate::trajectory::{Memory, source, target};

/// Codes of `bits` bits, one to a byte of `codes`, as a stream.
#[pyfunction]
pub fn encode_codes<'py>(py: Python<'py>, codes: Memory, bits: u8) -> CoreResult<Bound<'py, PyBytes>> {
    let codes = source("codes", codes)?;
    let stream = py.detach(|| forms::encode_codes(codes, bits, &check_signals))?;
    Ok(PyBytes::new(py, &stream))
}

/// Fills `out`, one code to a byte, from a stream.
#[pyfunction]
pub fn decode_codes(py: Python<'_>, stream: Memory, bits: u8, out: Memory) -> CoreResult<()> {
    let (stream, out) = (source("codes", stream)?, target("out", out)?);
    Ok(py.detach(|| forms::decode_codes(stream, bits, out, &check_signals))?)
}

/// Values, costs and marks of what is required, of one kind of parts.
type Parts = (PyBuffer<f64>, PyBuffer<u64>, Vec<bool>);

/// Which parts of two kinds to keep within one limit; both rise.
#[pyfunction]
pub fn best_of_two_kinds(py: Python<'_>, first: Parts, second: Parts, limit: u64) -> CoreResult<(Vec<i64>, Vec<i64>)> {
    let (first_values, first_costs) = (read(py, "first", &first.0)?, read(py, "first", &first.1)?);
    let (second_values, second_costs) = (read(py, "second", &second.0)?, read(py, "second", &second.1)?);
    let first = Kind { values: &first_values, costs: &first_costs, required: &first.2 };
    let second = Kind { values: &second_values, costs: &second_costs, required: &second.2 };
    Ok(py.detach(|| forms::best_of_two_kinds(&first, &second, limit))?)
}

fn read<T: Element>(py: Python<'_>, name: &str, buffer: &PyBuffer<T>) -> Result<Vec<T>> {
    buffer.to_vec(py).map_err(|_| Error::argument(name, "a buffer that cannot be read", "a contiguous one"))
}
