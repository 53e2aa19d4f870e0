"""Counter-based randomness.

Every draw is a pure function of (seed, name, step, unit, position), computed by Philox4x32-10 on the CPU. The draw for
a unit does not depend on the batch it is in, the order of units, the rank, the device or the number of threads, so runs
resume exactly and ranks agree without talking. Draws of different kinds (uniform, normal, ...) share nothing, even
under one name.

``units`` says whom a draw is for, by global ids: a count ``n`` stands for the units ``step.first_unit`` to
``step.first_unit + n - 1``; a ``range`` or a one-dimensional int64 tensor names the ids themselves.
"""

from __future__ import annotations

import math
import operator
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.step import Step

__all__ = ["Units", "choice", "generator_seed", "integers", "normal", "permutation", "uniform"]

Units: TypeAlias = int | range | Tensor

_IDS = "a count, a range of ids from 0, or a one-dimensional int64 tensor of ids from 0"

# Significand bits of the dtypes that are made from float32: more would round up to 1.
_HALF_BITS = {torch.float16: 11, torch.bfloat16: 8}


def uniform(
    units: Units,
    *shape: int,
    step: Step | int,
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws uniformly from [0, 1).

    Values are multiples of 2^-24 in float32, 2^-53 in float64, 2^-11 in float16 and 2^-8 in bfloat16; the narrower ones
    are those of float32, cut off.

    Args:
        units: Whom to draw for; see the module.
        *shape: Shape of each unit's draw; none for a scalar.
        step: Where in the run; a plain integer has seed 0.
        name: What the draw is for; draws under different names are independent.
        dtype: float64, float32, float16 or bfloat16.
        device: Where the result goes; the CPU by default.

    Returns:
        ``[len(units), *shape]``.

    Raises:
        ArgumentError: For units, shape or dtype that are not allowed.
    """
    values = _real(False, units, shape, step, name, dtype)
    if dtype in _HALF_BITS:
        scale = 2.0 ** _HALF_BITS[dtype]
        values = values.mul_(scale).floor_().div_(scale)
    return values.to(device=device, dtype=dtype)


def normal(
    units: Units,
    *shape: int,
    step: Step | int,
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws from the standard normal distribution, by the transform of Box and Muller in float64.

    Narrower dtypes hold the same values, rounded. No value exceeds 8.58.

    Args:
        units: Whom to draw for; see the module.
        *shape: Shape of each unit's draw; none for a scalar.
        step: Where in the run; a plain integer has seed 0.
        name: What the draw is for; draws under different names are independent.
        dtype: float64, float32, float16 or bfloat16.
        device: Where the result goes; the CPU by default.

    Returns:
        ``[len(units), *shape]``.

    Raises:
        ArgumentError: For units, shape or dtype that are not allowed.
    """
    return _real(True, units, shape, step, name, dtype).to(device=device, dtype=dtype)


def integers(
    units: Units,
    high: int,
    *shape: int,
    step: Step | int,
    name: str,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draws integers from 0 to ``high - 1``; no probability is off by more than ``high / 2^64`` of itself.

    Args:
        units: Whom to draw for; see the module.
        high: Number of possible values, from 1 to 2^63.
        *shape: Shape of each unit's draw; none for a scalar.
        step: Where in the run; a plain integer has seed 0.
        name: What the draw is for; draws under different names are independent.
        device: Where the result goes; the CPU by default.

    Returns:
        int64 ``[len(units), *shape]``.

    Raises:
        ArgumentError: For units, ``high`` or shape that are not allowed.
    """
    step = Step.of(step)
    ids, count = _units(units, step)
    high = _whole("high", high, 1, 2**63)
    _check_name(name)
    per_unit = _values_per_unit(shape)
    out = np.empty(count * per_unit, np.int64)
    _core.random_integers(high, step.seed, name, step.index, ids, per_unit, out.data)
    return torch.from_numpy(out).reshape(count, *shape).to(device=device)


def permutation(n: int, *, step: Step | int, name: str) -> Tensor:
    """Draws an order of ``n`` things, each order equally likely.

    Args:
        n: How many things, at most 2^33.
        step: Where in the run; a plain integer has seed 0.
        name: What the draw is for.

    Returns:
        int64 ``[n]``, each of 0 to ``n - 1`` once.

    Raises:
        ArgumentError: For a negative ``n`` or one above 2^33.
    """
    return choice(n, n, step=step, name=name)


def choice(n: int, k: int, *, step: Step | int, name: str) -> Tensor:
    """Draws ``k`` of ``n`` things without replacement: the first ``k`` of :func:`permutation` under the same name.

    Takes time and memory in proportion to ``k`` when ``k`` is small against ``n``.

    Args:
        n: How many things, at most 2^33.
        k: How many to draw, at most ``n``.
        step: Where in the run; a plain integer has seed 0.
        name: What the draw is for.

    Returns:
        int64 ``[k]``, distinct, in random order.

    Raises:
        ArgumentError: For a ``k`` above ``n``, negative numbers, or ``n`` above 2^33.
    """
    step = Step.of(step)
    n = _whole("n", n, 0, 2**33)
    _check_name(name)
    out = np.empty(_whole("k", k, 0, n), np.int64)
    _core.random_choice(n, step.seed, name, step.index, out.data)
    return torch.from_numpy(out)


def generator_seed(step: Step | int, name: str) -> int:
    """A seed for a generator of another kind, such as ``torch.Generator().manual_seed(...)``.

    Args:
        step: Where in the run; a plain integer has seed 0.
        name: What the generator is for.

    Returns:
        An integer from 0 to 2^64 - 1.
    """
    step = Step.of(step)
    _check_name(name)
    return _core.random_seed(step.seed, name, step.index)


def _real(
    is_normal: bool, units: Units, shape: tuple[int, ...], step: Step | int, name: str, dtype: torch.dtype
) -> Tensor:
    if dtype not in (torch.float64, torch.float32, *_HALF_BITS):
        raise argument_error("dtype", dtype, "torch.float64, float32, float16 or bfloat16")
    step = Step.of(step)
    ids, count = _units(units, step)
    _check_name(name)
    per_unit = _values_per_unit(shape)
    out = np.empty(count * per_unit, np.float64 if dtype == torch.float64 else np.float32)
    _core.random_real(is_normal, step.seed, name, step.index, ids, per_unit, out.data)
    return torch.from_numpy(out).reshape(count, *shape)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise argument_error("name", name, "a text: what the draw is for")


def _units(units: Units, step: Step) -> tuple[tuple[int, int] | memoryview, int]:
    """The ids as the core takes them (first and count, or a list), and their number."""
    if isinstance(units, Tensor):
        if units.dtype != torch.int64 or units.dim() != 1:
            raise argument_error("units", f"a tensor of {units.dtype}, shape {tuple(units.shape)}", _IDS)
        ids = np.ascontiguousarray(units.detach().cpu().numpy())
        if ids.size and int(ids.min()) < 0:
            raise argument_error("units", f"the id {int(ids.min())}", _IDS)
        return ids.data, len(ids)
    if isinstance(units, range):
        if len(units) and min(units[0], units[-1]) < 0:
            raise argument_error("units", units, _IDS)
        if units.step == 1:
            return (units.start if len(units) else 0, len(units)), len(units)
        return np.arange(units.start, units.stop, units.step, dtype=np.int64).data, len(units)
    count = _whole("units", units, 0, 2**63, _IDS)
    return (step.first_unit, count), count


def _values_per_unit(shape: tuple[int, ...]) -> int:
    for size in shape:
        _whole("shape", size, 0, 2**63)
    return math.prod(shape)


def _whole(name: str, value: int, low: int, high: int, allowed: str | None = None) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = -1
    if isinstance(value, bool) or not low <= whole <= high:
        raise argument_error(name, value, allowed or f"an integer from {low} to {high}")
    return whole
