"""Fused numerics: one meaning, several backends.

The torch backend defines what each function means, in any floating dtype and on any device; the Rust backend serves the
CPU. Throughout, p is the teacher and q the student.
"""

from __future__ import annotations

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
from distillrs.ops._row_divergence import row_divergence
from distillrs.ops._rows import DivergenceStatistics

__all__ = [
    "Alpha",
    "DivergenceStatistics",
    "ForwardKL",
    "JensenShannon",
    "Mixture",
    "ReverseKL",
    "RowDivergence",
    "SkewKL",
    "SkewReverseKL",
    "TotalVariation",
    "row_divergence",
]
