"""Noise paths and pure functions of the step."""

from __future__ import annotations

from distillrs.schedule.gaussian_paths import EDM, RectifiedFlow, Trig
from distillrs.schedule.path import Clock, Kind, Moved, Path
from distillrs.schedule.ramps import Constant, Cosine, Doubling, ExpandingWindow, LinearRamp, Ramp
from distillrs.schedule.residual import Residual
from distillrs.schedule.tables import Table
from distillrs.schedule.variance_preserving import VP, AlphaTable, CosineAlpha, LinearBeta, Signal, SubVP

__all__ = [
    "EDM",
    "VP",
    "AlphaTable",
    "Clock",
    "Constant",
    "Cosine",
    "CosineAlpha",
    "Doubling",
    "ExpandingWindow",
    "Kind",
    "LinearBeta",
    "LinearRamp",
    "Moved",
    "Path",
    "Ramp",
    "RectifiedFlow",
    "Residual",
    "Signal",
    "SubVP",
    "Table",
    "Trig",
]
