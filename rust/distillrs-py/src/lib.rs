//! The extension module `distillrs._core`: argument conversion and nothing else.
#![allow(missing_docs, reason = "the Python stub `_core.pyi` documents the surface")]

mod align;
mod codec;
mod cuda;
mod error;
mod forms;
mod host;
mod ops;
mod random;
mod schedule;
mod select;
mod teacher;
mod trajectory;

use pyo3::prelude::*;

/// Rust core of distillrs. Private: use the modules of `distillrs`.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use crate::align::{shared_tokens, token_chunks};
    #[pymodule_export]
    use crate::codec::{codec_decode, codec_encode, copy_bytes};
    #[pymodule_export]
    use crate::cuda::{cuda_source, cuda_sources};
    #[pymodule_export]
    use crate::forms::{best_of_two_kinds, decode_codes, encode_codes};
    #[pymodule_export]
    use crate::host::simd_level;
    #[pymodule_export]
    use crate::ops::{
        memory_pass, mixture_covariance, mixture_mean, plackett_luce, row_divergence, row_statistics,
        sparse_row_divergence,
    };
    #[pymodule_export]
    use crate::random::{random_choice, random_integers, random_real, random_seed, set_threads, threads};
    #[pymodule_export]
    use crate::schedule::{shortest_paths, shortest_paths_of_two};
    #[pymodule_export]
    use crate::select::{
        balanced_partition, budget, candidate_pairs, check_points, computation_trees, facility_location,
        facility_location_sharded, facility_location_weighted, herding, k_center, k_center_sharded, k_means, k_medoids,
        max_min_items, max_min_texts, min_hash, nearest,
    };
    #[pymodule_export]
    use crate::teacher::{TeacherRows, teacher_pack_dense, teacher_pack_logits, teacher_pack_top_k, teacher_row_bytes};
    #[pymodule_export]
    use crate::trajectory::{RecordView, TrajectoryStore, TrajectoryWriter, repair_store};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        distillrs_core::host::Level::bound().map_err(crate::error::CoreError::from)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
