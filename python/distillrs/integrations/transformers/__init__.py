"""Hugging Face transformers: caches of its models' answers."""

from __future__ import annotations

from distillrs.integrations.transformers.teaching import Taught, TeachProgress, fingerprint, load, teach
from distillrs.integrations.transformers.texts import read_texts

__all__ = ["Taught", "TeachProgress", "fingerprint", "load", "read_texts", "teach"]
