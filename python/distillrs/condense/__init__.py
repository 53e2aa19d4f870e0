"""Fewer examples: a synthetic set is moved until a signal measured on it agrees with the same on the real set."""

from __future__ import annotations

from distillrs.condense.factors import Additive, Enlarged, Factors
from distillrs.condense.file import CondensedSet, load
from distillrs.condense.functional import FunctionalNetwork
from distillrs.condense.guard import Guard
from distillrs.condense.labels import HardLabels, Labels, SoftLabels
from distillrs.condense.matching import Perturbation, TrajectoryMatching
from distillrs.condense.synthetic import Synthetic, draw_per_class
from distillrs.condense.unroll import Target, Unroll, Unrolled
from distillrs.condense.windows import TrajectoryStore, Windows, inner_batches, intermediate_targets

__all__ = [
    "Additive",
    "CondensedSet",
    "Enlarged",
    "Factors",
    "FunctionalNetwork",
    "Guard",
    "HardLabels",
    "Labels",
    "Perturbation",
    "SoftLabels",
    "Synthetic",
    "Target",
    "TrajectoryMatching",
    "TrajectoryStore",
    "Unroll",
    "Unrolled",
    "Windows",
    "draw_per_class",
    "inner_batches",
    "intermediate_targets",
    "load",
]
