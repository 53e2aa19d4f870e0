use distillrs_core::random::{self, Kind, Stream, Units};
use distillrs_core::{Error, parallel};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;

use crate::error::CoreResult;

/// The memory of a contiguous, writable buffer.
#[expect(clippy::mut_from_ref, reason = "the buffer's memory belongs to Python, not to the handle")]
pub fn writable<T: Element>(buffer: &PyBuffer<T>) -> CoreResult<&mut [T]> {
    if buffer.readonly() || !buffer.is_c_contiguous() {
        return Err(Error::argument("out", "a read-only or strided buffer", "a writable, contiguous one").into());
    }
    if buffer.item_count() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: contiguous, writable, `item_count` elements of type `T` (checked by `PyBuffer`), kept alive by `buffer`.
    // The callers allocated the array and show it to nobody before the call returns.
    Ok(unsafe { std::slice::from_raw_parts_mut(buffer.buf_ptr().cast::<T>(), buffer.item_count()) })
}

type Fill<T> = fn(Stream, Units<'_>, usize, &mut [T]) -> distillrs_core::Result<()>;

/// Ids from Python: the first and a count, or a list.
#[derive(FromPyObject)]
pub enum Ids {
    #[pyo3(transparent)]
    Range((u64, usize)),
    #[pyo3(transparent)]
    List(PyBuffer<i64>),
}

fn draw<T: Element + Send>(
    py: Python<'_>,
    stream: Stream,
    units: &Ids,
    per_unit: usize,
    out: &PyBuffer<T>,
    fill: impl Fn(Stream, Units<'_>, usize, &mut [T]) -> distillrs_core::Result<()> + Send + Sync,
) -> CoreResult<()> {
    let out = writable(out)?;
    match units {
        Ids::Range((first, count)) => {
            let units = Units::Range { first: *first, count: *count };
            py.detach(|| fill(stream, units, per_unit, out))?;
        }
        Ids::List(buffer) => {
            let ids: Vec<u64> = buffer.to_vec(py).map_err(|_| wrong_ids())?.into_iter().map(|id| id as u64).collect();
            py.detach(|| fill(stream, Units::Ids(&ids), per_unit, out))?;
        }
    }
    Ok(())
}

fn wrong_ids() -> Error {
    Error::argument("units", "a buffer that cannot be read", "a one-dimensional array of int64")
}

/// `normal` or uniform values in float32 or float64, by the type of `out`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the address of a draw, spelled out")]
pub fn random_real(
    py: Python<'_>,
    normal: bool,
    seed: u64,
    name: &str,
    step: u64,
    units: Ids,
    per_unit: usize,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let stream = Stream::new(seed, name, step, if normal { Kind::Normal } else { Kind::Uniform });
    if let Ok(out) = PyBuffer::<f32>::get(out) {
        let fill: Fill<f32> = if normal { random::normal_f32 } else { random::uniform_f32 };
        return Ok(draw(py, stream, &units, per_unit, &out, fill)?);
    }
    let fill: Fill<f64> = if normal { random::normal_f64 } else { random::uniform_f64 };
    Ok(draw(py, stream, &units, per_unit, &PyBuffer::<f64>::get(out)?, fill)?)
}

/// Integers below `high`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the address of a draw, spelled out")]
pub fn random_integers(
    py: Python<'_>,
    high: u64,
    seed: u64,
    name: &str,
    step: u64,
    units: Ids,
    per_unit: usize,
    out: PyBuffer<i64>,
) -> CoreResult<()> {
    let stream = Stream::new(seed, name, step, Kind::Integers);
    draw(py, stream, &units, per_unit, &out, move |stream, units, per_unit, out| {
        random::integers(stream, units, per_unit, high, out)
    })
}

/// The first entries of a permutation of `0..n`, as many as `out` holds.
#[pyfunction]
pub fn random_choice(py: Python<'_>, n: u64, seed: u64, name: &str, step: u64, out: PyBuffer<i64>) -> CoreResult<()> {
    let stream = Stream::new(seed, name, step, Kind::Permutation);
    let out = writable(&out)?;
    let picks = py.detach(|| random::choose(stream, n, out.len() as u64))?;
    out.copy_from_slice(&picks);
    Ok(())
}

/// A 64-bit seed.
#[pyfunction]
pub fn random_seed(seed: u64, name: &str, step: u64) -> u64 {
    random::seed(Stream::new(seed, name, step, Kind::Seed))
}

/// Threads that heavy work uses.
#[pyfunction]
pub fn threads() -> usize {
    parallel::threads()
}

/// Sets the threads that heavy work uses.
#[pyfunction]
pub fn set_threads(count: usize) -> CoreResult<()> {
    Ok(parallel::set_threads(count)?)
}
