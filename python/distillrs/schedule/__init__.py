"""Pure functions of the step: ramps and windows."""

from __future__ import annotations

from distillrs.schedule.ramps import Constant, Cosine, Doubling, ExpandingWindow, LinearRamp, Ramp

__all__ = ["Constant", "Cosine", "Doubling", "ExpandingWindow", "LinearRamp", "Ramp"]
