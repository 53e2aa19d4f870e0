"""Noise paths, laws of time, and pure functions of the step."""

from __future__ import annotations

from distillrs.schedule.gaussian_paths import EDM, RectifiedFlow, Trig
from distillrs.schedule.laws import (
    Levels,
    LogitNormal,
    LogNormal,
    Shifted,
    Stratified,
    TimeLaw,
    Uniform,
    UShaped,
    shift_time,
)
from distillrs.schedule.pair_laws import BinnedLogNormal, Nested, PairLaw, Segments, Times, Triangle
from distillrs.schedule.path import Clock, Kind, Moved, Path
from distillrs.schedule.ramps import Constant, Cosine, Doubling, ExpandingWindow, LinearRamp, Ramp
from distillrs.schedule.residual import Residual
from distillrs.schedule.tables import Table
from distillrs.schedule.variance_preserving import VP, AlphaTable, CosineAlpha, LinearBeta, Signal, SubVP

__all__ = [
    "EDM",
    "VP",
    "AlphaTable",
    "BinnedLogNormal",
    "Clock",
    "Constant",
    "Cosine",
    "CosineAlpha",
    "Doubling",
    "ExpandingWindow",
    "Kind",
    "Levels",
    "LinearBeta",
    "LinearRamp",
    "LogNormal",
    "LogitNormal",
    "Moved",
    "Nested",
    "PairLaw",
    "Path",
    "Ramp",
    "RectifiedFlow",
    "Residual",
    "Segments",
    "Shifted",
    "Signal",
    "Stratified",
    "SubVP",
    "Table",
    "TimeLaw",
    "Times",
    "Triangle",
    "Trig",
    "UShaped",
    "Uniform",
    "shift_time",
]
