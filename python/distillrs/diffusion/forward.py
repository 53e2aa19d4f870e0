"""Forward-mode differentiation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def jvp(function: Callable[..., Any], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    """``torch.func.jvp``: value and derivative along the tangents."""
    _load_rules()
    return torch.func.jvp(function, primals, tangents)


@functools.cache
def _load_rules() -> None:
    """Torch loads its rules at the first use, and may warn of its own deprecations then; those are not the caller's."""
    one = torch.ones(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.sin, (one,), (one,))
