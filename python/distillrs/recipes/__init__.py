"""Published systems by name, each a short composition of engine parts."""

from __future__ import annotations

from distillrs.recipes.mtt import mtt
from distillrs.recipes.tesla import tesla

__all__ = ["mtt", "tesla"]
