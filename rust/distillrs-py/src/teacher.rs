//! Bindings of the teacher cache's rows.

use std::sync::Arc;

use distillrs_core::trajectory::teacher::{
    self, BFloat16, Gathered, Half, Id, Logits, RowLayout, TeacherRows as Rows, TopKRows,
};
use distillrs_core::{Error, Result};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{CoreError, CoreResult, check_signals};
use crate::trajectory::{Memory, TrajectoryStore, refuse_overlap, source, target};

/// Plain numbers, for which every bit pattern is a value.
///
/// # Safety
/// Every bit pattern is valid.
unsafe trait Plain: Copy {}

// SAFETY: every bit pattern is a value of these.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: a transparent `u16`.
unsafe impl Plain for BFloat16 {}
// SAFETY: a transparent `u16`.
unsafe impl Plain for Half {}

fn elements<'a, T: Plain>(name: &str, memory: Memory) -> CoreResult<&'a [T]> {
    let bytes = source(name, memory)?;
    // SAFETY: `Plain` types have no invalid bits.
    let (before, values, after) = unsafe { bytes.align_to::<T>() };
    if bytes.is_empty() || (before.is_empty() && after.is_empty()) {
        return Ok(values);
    }
    Err(misaligned(name))
}

fn elements_mut<'a, T: Plain>(name: &str, memory: Memory) -> CoreResult<&'a mut [T]> {
    let bytes = target(name, memory)?;
    if bytes.is_empty() {
        return Ok(&mut []);
    }
    // SAFETY: `Plain` types have no invalid bits.
    let (before, values, after) = unsafe { bytes.align_to_mut::<T>() };
    if before.is_empty() && after.is_empty() {
        return Ok(values);
    }
    Err(misaligned(name))
}

fn misaligned(name: &str) -> CoreError {
    Error::argument(name, "memory that is not aligned to its elements", "a tensor's memory").into()
}

/// Rows of one call to the core, between which signals are looked at.
const ROWS: usize = 512;

fn in_parts(layout: &RowLayout, out: &mut [u8], mut part: impl FnMut(usize, &mut [u8]) -> Result<()>) -> Result<()> {
    for (index, out) in out.chunks_mut(ROWS * layout.row_bytes).enumerate() {
        check_signals()?;
        part(index * ROWS, out)?;
    }
    Ok(())
}

fn part<T>(values: &[T], first: usize, rows: usize, width: usize) -> &[T] {
    values.get(first * width..(first + rows) * width).unwrap_or_default()
}

#[pyfunction]
pub fn teacher_row_bytes(layout: &str) -> CoreResult<usize> {
    Ok(RowLayout::parse(layout)?.row_bytes)
}

#[pyfunction]
pub fn teacher_pack_logits<'py>(
    py: Python<'py>,
    layout: &str,
    dtype: &str,
    rows: usize,
    logits: Memory,
    ids: Option<Memory>,
    sampled: Option<Memory>,
) -> CoreResult<Bound<'py, PyBytes>> {
    let layout = RowLayout::parse(layout)?;
    let logits = match dtype {
        "float32" => Logits::Single(elements("logits", logits)?),
        "bfloat16" => Logits::BFloat16(elements("logits", logits)?),
        "float16" => Logits::Half(elements("logits", logits)?),
        other => return Err(Error::argument("logits", other, "float32, bfloat16 or float16").into()),
    };
    let ids: Option<&[i64]> = ids.map(|memory| elements("ids", memory)).transpose()?;
    let sampled: Option<&[i64]> = sampled.map(|memory| elements("sampled", memory)).transpose()?;
    let mut out = buffer(&layout, rows)?;
    py.detach(|| {
        in_parts(&layout, &mut out, |first, out| {
            let rows = out.len() / layout.row_bytes;
            let width = layout.vocabulary as usize;
            let logits = match logits {
                Logits::Single(values) => Logits::Single(part(values, first, rows, width)),
                Logits::BFloat16(values) => Logits::BFloat16(part(values, first, rows, width)),
                Logits::Half(values) => Logits::Half(part(values, first, rows, width)),
            };
            let ids = ids.map(|ids| part(ids, first, rows, layout.k));
            let sampled = sampled.map(|sampled| part(sampled, first, rows, 1));
            teacher::pack_logits(&layout, logits, ids, sampled, first, out)
        })
    })?;
    Ok(PyBytes::new(py, &out))
}

fn buffer(layout: &RowLayout, rows: usize) -> CoreResult<Vec<u8>> {
    let bytes = rows.checked_mul(layout.row_bytes).filter(|&bytes| isize::try_from(bytes).is_ok());
    Ok(vec![0; bytes.ok_or_else(|| Error::argument("rows", rows, "as many as memory holds"))?])
}

#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "one for each tensor of the stub's function")]
pub fn teacher_pack_top_k<'py>(
    py: Python<'py>,
    layout: &str,
    rows: usize,
    ids: Memory,
    log_probs: Memory,
    tail: Memory,
    partitions: Memory,
    sampled: Option<(Memory, Memory)>,
) -> CoreResult<Bound<'py, PyBytes>> {
    let layout = RowLayout::parse(layout)?;
    let top_k = TopKRows {
        ids: elements("ids", ids)?,
        log_probs: elements("log_probs", log_probs)?,
        tail: elements("tail_log_mass", tail)?,
        partitions: elements("log_partition", partitions)?,
    };
    let sampled: Option<(&[i64], &[f32])> = match sampled {
        None => None,
        Some((ids, log_probs)) => Some((elements("sampled.ids", ids)?, elements("sampled.log_probs", log_probs)?)),
    };
    let mut out = buffer(&layout, rows)?;
    py.detach(|| teacher::pack_top_k(&layout, top_k, sampled, &mut out))?;
    Ok(PyBytes::new(py, &out))
}

#[pyfunction]
pub fn teacher_pack_dense<'py>(
    py: Python<'py>,
    layout: &str,
    rows: usize,
    logits: Memory,
) -> CoreResult<Bound<'py, PyBytes>> {
    let layout = RowLayout::parse(layout)?;
    let logits: &[f32] = elements("logits", logits)?;
    let mut out = buffer(&layout, rows)?;
    py.detach(|| {
        in_parts(&layout, &mut out, |first, out| {
            let rows = out.len() / layout.row_bytes;
            teacher::pack_dense(&layout, part(logits, first, rows, layout.vocabulary as usize), first, out)
        })
    })?;
    Ok(PyBytes::new(py, &out))
}

#[pyclass(frozen, module = "distillrs._core")]
pub struct TeacherRows {
    rows: Arc<Rows>,
}

#[pymethods]
impl TeacherRows {
    #[staticmethod]
    fn load(py: Python<'_>, store: &TrajectoryStore, layout: &str) -> CoreResult<Self> {
        let layout = RowLayout::parse(layout)?;
        let store = store.get()?;
        Ok(Self { rows: Arc::new(py.detach(|| Rows::load(&store, layout))?) })
    }

    #[getter]
    fn size(&self) -> (usize, u64) {
        self.rows.size()
    }

    fn keys(&self) -> Vec<&str> {
        self.rows.keys()
    }

    fn conflicts(&self) -> Vec<&str> {
        self.rows.conflicts().iter().map(|conflict| conflict.key.as_str()).collect()
    }

    fn conflict_rows(&self) -> Vec<(&str, i64, i64)> {
        self.rows
            .conflicts()
            .iter()
            .map(|conflict| (conflict.key.as_str(), conflict.kept_row(), conflict.other_row()))
            .collect()
    }

    fn find(&self, key: &str) -> Option<(i64, u32)> {
        self.rows.find(key)
    }

    fn place(&self, key: &str) -> Option<(&str, u64)> {
        self.rows.place(key)
    }

    fn packed<'py>(&self, py: Python<'py>, key: &str) -> CoreResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.rows.packed(key))?;
        Ok(PyBytes::new(py, bytes))
    }

    #[allow(clippy::too_many_arguments, reason = "one for each tensor of the stub's function")]
    fn gather(
        &self,
        py: Python<'_>,
        rows: Memory,
        wide: bool,
        ids: Memory,
        log_probs: Memory,
        tail: Memory,
        partitions: Memory,
    ) -> CoreResult<()> {
        refuse_overlap(&[ids, log_probs, tail, partitions])?;
        let rows = elements("rows", rows)?;
        if wide {
            self.fill(py, rows, elements_mut::<i64>("ids", ids)?, log_probs, tail, partitions)
        } else {
            self.fill(py, rows, elements_mut::<i32>("ids", ids)?, log_probs, tail, partitions)
        }
    }

    fn gather_dense(&self, py: Python<'_>, rows: Memory, out: Memory) -> CoreResult<()> {
        let (rows, out) = (elements("rows", rows)?, elements_mut("out", out)?);
        Ok(py.detach(|| self.rows.gather_dense(rows, out))?)
    }

    fn gather_packed(&self, py: Python<'_>, rows: Memory, out: Memory) -> CoreResult<()> {
        let (rows, out) = (elements("rows", rows)?, target("out", out)?);
        Ok(py.detach(|| self.rows.gather_packed(rows, out))?)
    }

    fn gather_sampled(&self, py: Python<'_>, rows: Memory, ids: Memory, log_probs: Memory) -> CoreResult<()> {
        refuse_overlap(&[ids, log_probs])?;
        let rows = elements("rows", rows)?;
        let (ids, log_probs) = (elements_mut("ids", ids)?, elements_mut("log_probs", log_probs)?);
        Ok(py.detach(|| self.rows.gather_sampled(rows, ids, log_probs))?)
    }
}

impl TeacherRows {
    fn fill<I: Id>(
        &self,
        py: Python<'_>,
        rows: &[i64],
        ids: &mut [I],
        log_probs: Memory,
        tail: Memory,
        partitions: Memory,
    ) -> CoreResult<()> {
        let out = Gathered {
            ids,
            log_probs: elements_mut("log_probs", log_probs)?,
            tail: elements_mut("tail_log_mass", tail)?,
            partitions: elements_mut("log_partition", partitions)?,
        };
        Ok(py.detach(|| self.rows.gather(rows, out))?)
    }
}
