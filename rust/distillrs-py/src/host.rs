use pyo3::prelude::*;

/// Name of the widest vector instructions in use.
#[pyfunction]
pub fn simd_level() -> &'static str {
    distillrs_core::host::simd_level()
}
