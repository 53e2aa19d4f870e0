"""Thin hooks: ``transformers``, ``accelerate``, ``lightning``, ``diffusers`` and ``sklearn``.

Each is a module or package of its own, named after the other people's package that it serves: both
``integrations.transformers.Distil`` and ``from distillrs.integrations import transformers`` find it. None of them
imports its package before it is used. With each of the trainers, and in a plain loop, an objective gives the same
losses.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distillrs.integrations.bookkeeping import count_items

if TYPE_CHECKING:
    from distillrs.integrations import accelerate, diffusers, lightning, sklearn, transformers

__all__ = ["accelerate", "count_items", "diffusers", "lightning", "sklearn", "transformers"]

_MODULES = ("accelerate", "diffusers", "lightning", "sklearn", "transformers")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"distillrs.integrations.{name}")
    raise AttributeError(f"module 'distillrs.integrations' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
