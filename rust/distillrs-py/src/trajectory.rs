//! Bindings of the trajectory store.

use std::os::raw::{c_int, c_void};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use distillrs_core::Error;
use distillrs_core::trajectory::{ColumnData, Store, Verify, View, Writer, repair};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{CoreError, CoreResult};

fn json<T: serde::Serialize>(value: &T) -> CoreResult<String> {
    serde_json::to_string(value).map_err(|error| Error::argument("report", error, "what JSON can say").into())
}

/// Address and bytes of memory that the caller keeps alive, in place and for the call alone: that of a contiguous CPU
/// tensor, from `distillrs.trajectory.buffers`. Python's buffer protocol costs several microseconds a tensor, which a small
/// record notices.
pub type Memory = (usize, usize);

pub fn source<'a>(name: &str, (address, length): Memory) -> CoreResult<&'a [u8]> {
    if length == 0 {
        return Ok(&[]);
    }
    refuse_null(name, address)?;
    // SAFETY: the one caller of this private module passes the memory of a tensor that it holds until the call returns;
    // every bit pattern is a valid u8. Nobody writes it meanwhile: the documentation asks for that, as for numpy's functions.
    Ok(unsafe { std::slice::from_raw_parts(address as *const u8, length) })
}

pub fn target<'a>(name: &str, (address, length): Memory) -> CoreResult<&'a mut [u8]> {
    if length == 0 {
        return Ok(&mut []);
    }
    refuse_null(name, address)?;
    // SAFETY: as in `source`; `refuse_overlap` came before, so no two targets share a byte.
    Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, length) })
}

fn refuse_null(name: &str, address: usize) -> CoreResult<()> {
    if address == 0 {
        return Err(Error::argument(name, "no memory", "a tensor with data").into());
    }
    Ok(())
}

#[pyclass(frozen, module = "distillrs._core")]
pub struct TrajectoryStore {
    store: Mutex<Option<std::sync::Arc<Store>>>,
}

impl TrajectoryStore {
    fn new(store: Store) -> Self {
        Self { store: Mutex::new(Some(std::sync::Arc::new(store))) }
    }

    /// The open store. The lock is held for a clone only, and with the interpreter's lock, so no fork comes between.
    pub fn get(&self) -> CoreResult<std::sync::Arc<Store>> {
        let guard = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || Error::argument("store", "a closed store", "an open one");
        Ok(guard.as_ref().ok_or_else(closed)?.clone())
    }
}

#[pymethods]
impl TrajectoryStore {
    #[staticmethod]
    fn create(py: Python<'_>, path: &str, schema: &str, metadata: &str, exist_ok: bool) -> CoreResult<Self> {
        Ok(Self::new(py.detach(|| Store::create(Path::new(path), schema, metadata, exist_ok))?))
    }

    #[staticmethod]
    fn open(py: Python<'_>, path: &str, verify: &str) -> CoreResult<Self> {
        let verify = Verify::parse(verify)?;
        Ok(Self::new(py.detach(|| Store::open(Path::new(path), verify))?))
    }

    #[getter]
    fn path(&self) -> CoreResult<String> {
        Ok(self.get()?.path().display().to_string())
    }

    #[getter]
    fn writable(&self) -> CoreResult<bool> {
        Ok(self.get()?.writable())
    }

    #[getter]
    fn schema(&self) -> CoreResult<String> {
        Ok(self.get()?.schema().to_json())
    }

    #[getter]
    fn metadata(&self) -> CoreResult<String> {
        Ok(self.get()?.metadata().to_owned())
    }

    #[pyo3(signature = (key, resume_at))]
    fn begin(&self, py: Python<'_>, key: &str, resume_at: Option<u64>) -> CoreResult<TrajectoryWriter> {
        let store = self.get()?;
        let writer = py.detach(|| store.begin(key, resume_at))?;
        Ok(TrajectoryWriter { key: key.to_owned(), writer: Mutex::new(writer) })
    }

    fn keys(&self, py: Python<'_>, incomplete: bool) -> CoreResult<Vec<String>> {
        let store = self.get()?;
        Ok(py.detach(|| store.keys(incomplete))?)
    }

    fn lengths<'py>(&self, py: Python<'py>, incomplete: bool) -> PyResult<Bound<'py, PyDict>> {
        let store = self.get()?;
        let lengths = py.detach(|| store.lengths(incomplete)).map_err(CoreError::from)?;
        let result = PyDict::new(py);
        for (key, steps) in lengths {
            result.set_item(key, steps)?;
        }
        Ok(result)
    }

    fn missing(&self, py: Python<'_>, key: &str) -> CoreResult<Vec<u64>> {
        let store = self.get()?;
        Ok(py.detach(|| store.missing(key))?)
    }

    fn codec_error(&self, py: Python<'_>, key: &str, column: &str) -> CoreResult<Option<(f64, f64, u64)>> {
        let store = self.get()?;
        let error = py.detach(|| store.codec_error(key, column))?;
        Ok((error.records > 0).then_some((error.max, error.mean, error.records)))
    }

    fn rows(&self, py: Python<'_>, key: &str, column: &str, step: u64) -> CoreResult<u64> {
        let store = self.get()?;
        Ok(py.detach(|| store.rows(key, column, step))?)
    }

    fn read_into(&self, py: Python<'_>, key: &str, column: &str, steps: Vec<u64>, outs: Vec<Memory>) -> CoreResult<()> {
        let store = self.get()?;
        if steps.len() != outs.len() {
            let allowed = format!("{}, one for each step", steps.len());
            return Err(Error::argument("outs", format_args!("{} buffers", outs.len()), allowed).into());
        }
        refuse_overlap(&outs)?;
        let targets = outs.into_iter().map(|out| target("outs", out));
        let mut wanted: Vec<(u64, &mut [u8])> =
            steps.into_iter().zip(targets).map(|(step, target)| Ok((step, target?))).collect::<CoreResult<_>>()?;
        Ok(py.detach(|| store.read(key, column, &mut wanted))?)
    }

    fn view(&self, py: Python<'_>, key: &str, column: &str, step: u64) -> CoreResult<RecordView> {
        let store = self.get()?;
        Ok(RecordView { view: py.detach(|| store.view(key, column, step))? })
    }

    fn refresh(&self, py: Python<'_>) -> CoreResult<()> {
        let store = self.get()?;
        Ok(py.detach(|| store.refresh())?)
    }

    fn seal(&self, py: Python<'_>) -> CoreResult<String> {
        let store = self.get()?;
        json(&py.detach(|| store.seal())?)
    }

    fn info(&self, py: Python<'_>) -> CoreResult<String> {
        let store = self.get()?;
        json(&py.detach(|| store.info())?)
    }

    fn verify(&self, py: Python<'_>) -> CoreResult<String> {
        let store = self.get()?;
        json(&py.detach(|| store.verify())?)
    }

    fn close(&self) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Two buffers that share bytes would be written through two exclusive borrows.
pub fn refuse_overlap(outs: &[Memory]) -> CoreResult<()> {
    let mut ranges: Vec<Memory> = outs.iter().copied().filter(|(_, length)| *length > 0).collect();
    ranges.sort_unstable();
    let overlap = ranges.windows(2).any(|pair| pair[1].0 - pair[0].0 < pair[0].1);
    if overlap {
        return Err(Error::argument("outs", "buffers that overlap", "separate buffers").into());
    }
    Ok(())
}

#[pyclass(frozen, module = "distillrs._core")]
pub struct TrajectoryWriter {
    key: String,
    writer: Mutex<Writer>,
}

impl TrajectoryWriter {
    /// The writer; waiting for it would hold up the interpreter while another thread writes to a disk.
    fn lock(&self) -> CoreResult<MutexGuard<'_, Writer>> {
        match self.writer.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Error::argument("writer", "a call while another thread's is under way", "one thread at a time")
                    .into())
            }
        }
    }
}

#[pymethods]
impl TrajectoryWriter {
    #[getter]
    fn key(&self) -> &str {
        &self.key
    }

    #[getter]
    fn discarded(&self) -> CoreResult<String> {
        json(&self.lock()?.discarded())
    }

    fn __len__(&self) -> CoreResult<usize> {
        Ok(usize::try_from(self.lock()?.steps()).unwrap_or(usize::MAX))
    }

    fn append(&self, py: Python<'_>, columns: Vec<(String, Memory, Option<u64>)>) -> CoreResult<u64> {
        let mut writer = self.lock()?;
        let data = columns
            .iter()
            .map(|(name, memory, rows)| Ok(ColumnData { name, bytes: source(name, *memory)?, rows: *rows }))
            .collect::<CoreResult<Vec<_>>>()?;
        let writer = &mut *writer;
        Ok(py.detach(|| writer.append(&data))?)
    }

    fn flush(&self, py: Python<'_>) -> CoreResult<()> {
        let mut guard = self.lock()?;
        let writer = &mut *guard;
        Ok(py.detach(|| writer.flush())?)
    }

    fn complete(&self, py: Python<'_>) -> CoreResult<()> {
        let mut guard = self.lock()?;
        let writer = &mut *guard;
        Ok(py.detach(|| writer.complete())?)
    }

    fn close(&self, py: Python<'_>) -> CoreResult<()> {
        let mut guard = self.lock()?;
        let writer = &mut *guard;
        py.detach(|| writer.close());
        Ok(())
    }
}

/// Drops damaged records only; says what it did as JSON.
#[pyfunction]
pub fn repair_store(py: Python<'_>, path: &str) -> CoreResult<String> {
    json(&py.detach(|| repair(Path::new(path)))?)
}

#[pyclass(frozen, module = "distillrs._core")]
pub struct RecordView {
    view: View,
}

#[pymethods]
impl RecordView {
    fn __len__(&self) -> usize {
        self.view.bytes().len()
    }

    /// # Safety
    /// `buffer` is null or points to a `Py_buffer` that the caller owns; CPython calls it so.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, buffer: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if buffer.is_null() {
            return Err(PyBufferError::new_err("there is no buffer to fill"));
        }
        let bytes = slf.get().view.bytes();
        let length =
            ffi::Py_ssize_t::try_from(bytes.len()).map_err(|_| PyBufferError::new_err("the record is too long"))?;
        // SAFETY: `buffer` is not null. The bytes never change, so read-only is true; `PyBuffer_FillInfo` takes a reference to
        // the object, which owns the bytes, so they outlive the buffer.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(buffer, slf.as_ptr(), bytes.as_ptr().cast_mut().cast::<c_void>(), length, 1, flags)
        };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
