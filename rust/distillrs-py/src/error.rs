//! Maps the core's error enum to the exceptions of `distillrs.errors`.

use std::cell::RefCell;

use distillrs_core::Error;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::PyDict;

thread_local! {
    /// What a signal's handler raised while the core was at work.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Runs the handlers of signals that arrived. What one raises is kept, and raised once the core has stopped.
///
/// # Errors
/// [`Error::Interrupted`] if a handler raised.
pub fn check_signals() -> distillrs_core::Result<()> {
    Python::attach(|py| py.check_signals()).map_err(interrupted)
}

/// Keeps what Python raised while the core was at work, to be raised once the core has stopped.
pub fn interrupted(raised: PyErr) -> Error {
    RAISED.set(Some(raised));
    Error::Interrupted
}

/// A core error on its way to Python.
pub struct CoreError(pub Error);

impl From<Error> for CoreError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// Result of every binding that can fail.
pub type CoreResult<T> = Result<T, CoreError>;

fn class_name(error: &Error) -> &'static str {
    match error {
        Error::Argument { .. } => "ArgumentError",
        Error::KeyNotFound { .. } => "KeyNotFound",
        Error::KeyConflict { .. } => "KeyConflict",
        Error::StoreMissing { .. } => "StoreMissing",
        Error::StoreExists { .. } => "StoreExists",
        Error::SchemaMismatch { .. } => "SchemaMismatch",
        Error::StoreLocked { .. } => "StoreLocked",
        Error::StoreCorrupt { .. } => "StoreCorrupt",
        Error::StoreVersion { .. } => "StoreVersionError",
        Error::Io { .. } => "StoreIOError",
        _ => "DistillrsError",
    }
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let class = py.import("distillrs.errors")?.getattr(class_name(error))?;
    let fields = PyDict::new(py);
    match error {
        Error::StoreLocked { host, process, .. } => {
            fields.set_item("host", host)?;
            fields.set_item("process", process)?;
        }
        Error::Io { source, path, .. } => {
            fields.set_item("errno", source.raw_os_error())?;
            fields.set_item("filename", path)?;
        }
        Error::StoreCorrupt { path, offset, .. } => {
            fields.set_item("path", path)?;
            fields.set_item("offset", offset)?;
        }
        _ => {}
    }
    Ok(PyErr::from_value(class.call((error.to_string(),), Some(&fields))?))
}

impl From<CoreError> for PyErr {
    fn from(CoreError(error): CoreError) -> Self {
        if matches!(error, Error::Interrupted) {
            return RAISED.take().unwrap_or_else(|| PyKeyboardInterrupt::new_err(()));
        }
        Python::attach(|py| build(py, &error).unwrap_or_else(|failure| failure))
    }
}
