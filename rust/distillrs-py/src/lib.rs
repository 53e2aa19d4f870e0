//! The extension module `distillrs._core`: argument conversion and nothing else.
#![allow(missing_docs, reason = "the Python stub `_core.pyi` documents the surface")]

mod codec;
mod error;
mod host;
mod random;
mod select;
mod teacher;
mod trajectory;

use pyo3::prelude::*;

/// Rust core of distillrs. Private: use the modules of `distillrs`.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::codec::{codec_decode, codec_encode, copy_bytes};
    #[pymodule_export]
    use crate::host::simd_level;
    #[pymodule_export]
    use crate::random::{random_choice, random_integers, random_real, random_seed, set_threads, threads};
    #[pymodule_export]
    use crate::select::{k_means, nearest};
    #[pymodule_export]
    use crate::teacher::{TeacherRows, teacher_pack_logits, teacher_pack_top_k, teacher_row_bytes};
    #[pymodule_export]
    use crate::trajectory::{RecordView, TrajectoryStore, TrajectoryWriter, repair_store};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
