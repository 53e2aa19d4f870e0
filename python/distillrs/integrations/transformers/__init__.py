"""Hugging Face transformers: caches of its models' answers, and objectives in its Trainer."""

from __future__ import annotations

from distillrs.integrations.transformers.spans import (
    AcrossTokenizers,
    TokenSpans,
    begins_word,
    token_bytes,
    token_spans,
)
from distillrs.integrations.transformers.teaching import Taught, TeachProgress, fingerprint, load, teach
from distillrs.integrations.transformers.texts import read_texts
from distillrs.integrations.transformers.trainer import Distil

__all__ = [
    "AcrossTokenizers",
    "Distil",
    "Taught",
    "TeachProgress",
    "TokenSpans",
    "begins_word",
    "fingerprint",
    "load",
    "read_texts",
    "teach",
    "token_bytes",
    "token_spans",
]
