"""Trajectories on disk and in memory."""

from __future__ import annotations

from distillrs.trajectory.codecs import Codec, DeltaInt8, HalfDelta, Lossless, Raw
from distillrs.trajectory.layout import ParameterLayout, ParameterSlot
from distillrs.trajectory.loader import WindowBatch, WindowIterator, WindowLoader
from distillrs.trajectory.reports import CodecError, Damage, RepairReport, SealReport, VerifyReport
from distillrs.trajectory.ring import Ring
from distillrs.trajectory.schema import Column, Schema
from distillrs.trajectory.store import Ragged, Store
from distillrs.trajectory.transfer import export_safetensors, import_replay_buffers, import_safetensors
from distillrs.trajectory.writer import Writer

__all__ = [
    "Codec",
    "CodecError",
    "Column",
    "Damage",
    "DeltaInt8",
    "HalfDelta",
    "Lossless",
    "ParameterLayout",
    "ParameterSlot",
    "Ragged",
    "Raw",
    "RepairReport",
    "Ring",
    "Schema",
    "SealReport",
    "Store",
    "VerifyReport",
    "WindowBatch",
    "WindowIterator",
    "WindowLoader",
    "Writer",
    "export_safetensors",
    "import_replay_buffers",
    "import_safetensors",
]
