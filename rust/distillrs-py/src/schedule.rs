use distillrs_core::Error;
use distillrs_core::schedule::{self, Arcs};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;

use crate::error::{CoreResult, check_signals};

/// The square of costs as the core takes it; a copy, so that nobody changes it meanwhile.
fn square(py: Python<'_>, name: &str, buffer: &PyBuffer<f64>) -> CoreResult<(Vec<f64>, usize)> {
    let [rows, columns] = *buffer.shape() else {
        let got = format!("{} dimensions", buffer.dimensions());
        return Err(Error::argument(name, got, "a square matrix").into());
    };
    if rows != columns {
        return Err(Error::argument(name, format_args!("{rows} x {columns}"), "a square matrix").into());
    }
    let values = buffer.to_vec(py).map_err(|_| Error::argument(name, "a buffer that cannot be read", "a matrix"))?;
    Ok((values, rows))
}

/// Cheapest walks of 1 to `most` arcs: their costs and nodes.
#[pyfunction]
pub fn shortest_paths(py: Python<'_>, costs: PyBuffer<f64>, most: usize) -> CoreResult<(Vec<f64>, Vec<Vec<usize>>)> {
    let (values, nodes) = square(py, "costs", &costs)?;
    let found = py.detach(|| {
        let arcs = Arcs::new("costs", &values, nodes)?;
        schedule::shortest_paths(&arcs, most, &check_signals)
    })?;
    Ok((found.costs, found.nodes))
}

/// The cheapest walk of `count` arcs with `second_count` of the second kind: cost, nodes, and which arcs are.
#[pyfunction]
pub fn shortest_paths_of_two(
    py: Python<'_>,
    first: PyBuffer<f64>,
    second: PyBuffer<f64>,
    count: usize,
    second_count: usize,
) -> CoreResult<(f64, Vec<usize>, Vec<bool>)> {
    let (first, nodes) = square(py, "first", &first)?;
    let (second, second_nodes) = square(py, "second", &second)?;
    Ok(py.detach(|| {
        let first = Arcs::new("first", &first, nodes)?;
        let second = Arcs::new("second", &second, second_nodes)?;
        schedule::shortest_paths_of_two(&first, &second, count, second_count, &check_signals)
    })?)
}
