use distillrs_core::Error;
use pyo3::prelude::*;

use crate::error::CoreResult;

const SOURCES: [(&str, &str); 11] = [
    ("divergences.cuh", include_str!("../../../cuda/divergences.cuh")),
    ("energy.cu", include_str!("../../../cuda/energy.cu")),
    ("farthest_first.cu", include_str!("../../../cuda/farthest_first.cu")),
    ("mixture_denoiser.cu", include_str!("../../../cuda/mixture_denoiser.cu")),
    ("row_divergence.cu", include_str!("../../../cuda/row_divergence.cu")),
    ("row_statistics.cu", include_str!("../../../cuda/row_statistics.cu")),
    ("rows.cuh", include_str!("../../../cuda/rows.cuh")),
    ("sparse_divergence.cu", include_str!("../../../cuda/sparse_divergence.cu")),
    ("store_decode.cu", include_str!("../../../cuda/store_decode.cu")),
    ("tiles.cuh", include_str!("../../../cuda/tiles.cuh")),
    ("values.cuh", include_str!("../../../cuda/values.cuh")),
];

/// Names of the embedded CUDA sources and headers.
#[pyfunction]
pub fn cuda_sources() -> Vec<&'static str> {
    SOURCES.iter().map(|&(name, _)| name).collect()
}

/// The text of one of them.
#[pyfunction]
pub fn cuda_source(name: &str) -> CoreResult<&'static str> {
    let found = SOURCES.iter().find(|&&(known, _)| known == name);
    Ok(found.map(|&(_, text)| text).ok_or_else(|| Error::argument("name", name, cuda_sources().join(", ")))?)
}
