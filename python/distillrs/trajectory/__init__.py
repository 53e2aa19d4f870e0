"""Trajectories on disk and in memory."""

from __future__ import annotations

from distillrs.trajectory.codecs import Codec, DeltaInt8, HalfDelta, Lossless, Raw
from distillrs.trajectory.fingerprint import UNCHECKED, Fingerprint
from distillrs.trajectory.label_cache import LabelCache
from distillrs.trajectory.layout import ParameterLayout, ParameterSlot
from distillrs.trajectory.loader import WindowBatch, WindowIterator, WindowLoader
from distillrs.trajectory.random_sample import random_sample
from distillrs.trajectory.reports import CodecError, Damage, RepairReport, SealReport, VerifyReport
from distillrs.trajectory.ring import Ring
from distillrs.trajectory.schema import Column, Schema
from distillrs.trajectory.store import Ragged, Store
from distillrs.trajectory.support import union_support
from distillrs.trajectory.teacher_cache import Sampled, TeacherCache, key_of
from distillrs.trajectory.transfer import export_safetensors, import_replay_buffers, import_safetensors
from distillrs.trajectory.writer import Writer

__all__ = [
    "UNCHECKED",
    "Codec",
    "CodecError",
    "Column",
    "Damage",
    "DeltaInt8",
    "Fingerprint",
    "HalfDelta",
    "LabelCache",
    "Lossless",
    "ParameterLayout",
    "ParameterSlot",
    "Ragged",
    "Raw",
    "RepairReport",
    "Ring",
    "Sampled",
    "Schema",
    "SealReport",
    "Store",
    "TeacherCache",
    "VerifyReport",
    "WindowBatch",
    "WindowIterator",
    "WindowLoader",
    "Writer",
    "export_safetensors",
    "import_replay_buffers",
    "import_safetensors",
    "key_of",
    "random_sample",
    "union_support",
]
