"""Hypothesis strategies and checks for your own parts.

``strategies`` needs the ``testing`` extra (hypothesis); the checks need nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distillrs.testing._objectives import check_objective
from distillrs.testing._selectors import check_selector
from distillrs.testing.checks import check_codec, check_divergence, check_path, check_time_law

if TYPE_CHECKING:
    import distillrs.testing.strategies as strategies

__all__ = [
    "check_codec",
    "check_divergence",
    "check_objective",
    "check_path",
    "check_selector",
    "check_time_law",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name == "strategies":
        return importlib.import_module("distillrs.testing.strategies")
    raise AttributeError(f"module 'distillrs.testing' has no attribute {name!r}")
