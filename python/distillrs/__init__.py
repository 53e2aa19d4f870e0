"""Distillation of data sets, diffusion models, networks and policies, over a Rust core.

The modules stand on floors and import only downwards; each is loaded at its first use::

    import distillrs as dr
    from distillrs import condense, evaluate, recipes, trajectory
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distillrs import _core, errors
from distillrs.errors import DistillrsError
from distillrs.fitting import FitResult, Progress, fit
from distillrs.frozen import Frozen
from distillrs.objective import Objective
from distillrs.registry import RecipeCard, recipe
from distillrs.step import Loss, Step

if TYPE_CHECKING:
    import distillrs.condense as condense
    import distillrs.diffusion as diffusion
    import distillrs.evaluate as evaluate
    import distillrs.integrations as integrations
    import distillrs.knowledge as knowledge
    import distillrs.ops as ops
    import distillrs.random as random
    import distillrs.recipes as recipes
    import distillrs.schedule as schedule
    import distillrs.select as select
    import distillrs.testing as testing
    import distillrs.trajectory as trajectory

__version__ = "0.1.0"

if _core.__version__ != __version__:
    raise ImportError(
        f"distillrs {__version__} found a compiled core of version {_core.__version__}; "
        "rebuild it: `maturin develop --release`, or reinstall the package"
    )

_MODULES = (
    "condense",
    "diffusion",
    "evaluate",
    "experimental",
    "integrations",
    "knowledge",
    "ops",
    "random",
    "recipes",
    "schedule",
    "select",
    "testing",
    "trajectory",
)

__all__ = [
    "DistillrsError",
    "FitResult",
    "Frozen",
    "Loss",
    "Objective",
    "Progress",
    "RecipeCard",
    "Step",
    "condense",
    "diffusion",
    "errors",
    "evaluate",
    "fit",
    "integrations",
    "knowledge",
    "ops",
    "random",
    "recipe",
    "recipes",
    "schedule",
    "select",
    "testing",
    "trajectory",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"distillrs.{name}")
    raise AttributeError(f"module 'distillrs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
