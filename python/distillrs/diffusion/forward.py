"""Forward-mode differentiation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def jvp(function: Callable[..., Any], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    """``torch.func.jvp``: value and derivative along the tangents."""
    _load_rules()
    return torch.func.jvp(function, primals, tangents)


def slope_along(function: Callable[..., Tensor], point: tuple[Tensor, ...], direction: tuple[Tensor, ...]) -> Any:
    """As :func:`jvp` for one output, by dual numbers alone.

    A module wrapped for data parallelism does work of its own within the call, which cannot run inside ``torch.func``.
    """
    _load_rules()
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, point, direction)
        value, slope = forward_ad.unpack_dual(function(*duals))  # type: ignore[no-untyped-call]  # untyped in torch
    return value, torch.zeros_like(value) if slope is None else slope


@functools.cache
def _load_rules() -> None:
    """Torch loads its rules at the first use, and may warn of its own deprecations then; those are not the caller's."""
    one = torch.ones(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.func.jvp(torch.sin, (one,), (one,))
