"""Trajectories on disk and in memory."""

from __future__ import annotations

from distillrs.trajectory.codecs import Codec, DeltaInt8, HalfDelta, Lossless, Raw
from distillrs.trajectory.layout import ParameterLayout, ParameterSlot
from distillrs.trajectory.schema import Column, Schema

__all__ = [
    "Codec",
    "Column",
    "DeltaInt8",
    "HalfDelta",
    "Lossless",
    "ParameterLayout",
    "ParameterSlot",
    "Raw",
    "Schema",
]
