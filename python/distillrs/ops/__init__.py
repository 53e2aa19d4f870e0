"""Fused numerics: one meaning, several backends.

The torch backend defines what each function means, in any floating dtype and on any device; the Rust backend serves the
CPU, the CUDA backend NVIDIA's GPUs. Throughout, p is the teacher and q the student.
"""

from __future__ import annotations

from distillrs.ops._distributions import Dense, Sampled
from distillrs.ops._divergence import divergence
from distillrs.ops._divergences import (
    Alpha,
    ForwardKL,
    JensenShannon,
    Mixture,
    ReverseKL,
    RowDivergence,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from distillrs.ops._energy import energy
from distillrs.ops._kernels import (
    Gaussian,
    Geodesic,
    InverseMultiquadric,
    Laplacian,
    NegativeDistance,
    PairKernel,
    Polynomial,
)
from distillrs.ops._linear import linear_row_divergence
from distillrs.ops._mixture import mixture_denoiser, mixture_log_density
from distillrs.ops._ranking import plackett_luce
from distillrs.ops._row_divergence import row_divergence
from distillrs.ops._row_statistics import RowStatistics, row_statistics
from distillrs.ops._rows import DivergenceStatistics
from distillrs.ops._sparse import sparse_row_divergence
from distillrs.ops._top_k import TopK

__all__ = [
    "Alpha",
    "Dense",
    "DivergenceStatistics",
    "ForwardKL",
    "Gaussian",
    "Geodesic",
    "InverseMultiquadric",
    "JensenShannon",
    "Laplacian",
    "Mixture",
    "NegativeDistance",
    "PairKernel",
    "Polynomial",
    "ReverseKL",
    "RowDivergence",
    "RowStatistics",
    "Sampled",
    "SkewKL",
    "SkewReverseKL",
    "TopK",
    "TotalVariation",
    "divergence",
    "energy",
    "linear_row_divergence",
    "mixture_denoiser",
    "mixture_log_density",
    "plackett_luce",
    "row_divergence",
    "row_statistics",
    "sparse_row_divergence",
]
