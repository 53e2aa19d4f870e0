"""The CUDA backend: kernels from ``cuda/``, compiled when they are first used and launched on torch's stream."""

from __future__ import annotations

from distillrs.ops._cuda._rows import divergence_rows
from distillrs.ops._cuda._rows import prepare as prepare_divergence
from distillrs.ops._cuda._rows import refusal as divergence_refusal
from distillrs.ops._cuda._sparse import prepare as prepare_sparse
from distillrs.ops._cuda._sparse import refusal as sparse_refusal
from distillrs.ops._cuda._sparse import sparse_rows
from distillrs.ops._cuda._statistics import prepare as prepare_statistics
from distillrs.ops._cuda._statistics import refusal as statistics_refusal
from distillrs.ops._cuda._statistics import row_summary

__all__ = [
    "divergence_refusal",
    "divergence_rows",
    "prepare_divergence",
    "prepare_sparse",
    "prepare_statistics",
    "row_summary",
    "sparse_refusal",
    "sparse_rows",
    "statistics_refusal",
]
