"""What the recipes of flow maps share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from distillrs.checks import is_number
from distillrs.diffusion import Network, NetworkAdapter, Score, Teacher
from distillrs.diffusion.checks import check_adapter
from distillrs.errors import argument_error
from distillrs.frozen import Frozen
from distillrs.schedule import EDM, Adjacent, Kind, PairLaw, ScheduledPairs, karras
from distillrs.step import Step


def adapted(network: nn.Module | NetworkAdapter, name: str = "network", **settings: Any) -> NetworkAdapter:
    """A plain module in the recipe's own adapter; an adapter as it is.

    Raises:
        ArgumentError: Neither of them, by the argument's name.
    """
    if isinstance(network, nn.Module):
        return Network(network, **settings)
    check_adapter(name, network)
    return network


def frozen(teacher: nn.Module | NetworkAdapter) -> nn.Module | NetworkAdapter:
    """A plain module in evaluation mode and without gradients; an adapter as it is."""
    return Frozen(teacher) if isinstance(teacher, nn.Module) and not isinstance(teacher, Frozen) else teacher


def teacher_score(teacher: nn.Module | NetworkAdapter | Score, kind: Kind) -> Score:
    """A plain module or an adapter as a score of one time, frozen; a score as it is."""
    return teacher if isinstance(teacher, Score) else Teacher(adapted(frozen(teacher), "teacher", times="t"), kind)


def check_guidance(guidance: float | None) -> None:
    """Refuses what is neither a strength nor ``None``; a text would be taken for the name of a condition's entry."""
    if guidance is not None and not is_number(guidance):
        raise argument_error("guidance", guidance, "a finite number, or None for none")


def preconditioned(network: nn.Module | NetworkAdapter, path: EDM, name: str = "network") -> NetworkAdapter:
    """EDM's input and clock: ``F(x / sqrt(sigma^2 + sigma_data^2), log(sigma) / 4)``."""
    return adapted(network, name, times="t", clock="log_sigma", clock_factor=0.25, path=path, scale_input=True)


def levels_law(
    count: Callable[[Step], int],
    law: Callable[[tuple[float, ...]], PairLaw],
    path: EDM,
    sigma_min: float,
    rho: float,
) -> PairLaw:
    """Neighbouring levels of EDM's grid whose fineness is a function of the step, towards the least level."""

    @functools.lru_cache(maxsize=64)
    def of(levels: int) -> PairLaw:
        grid = karras(levels, sigma_min, path.sigma_max, rho, path=path)
        times = tuple(grid.times[:-1].tolist())
        return Adjacent(law(times), end=times[-1])

    return ScheduledPairs(lambda step: of(count(step)))


def run_length(step: Step, steps: int | None) -> int:
    """The length that a curriculum is a share of."""
    total = step.total if steps is None else steps
    if total is None:
        raise argument_error("steps", None, "a length, or a Step with a total: the curriculum is a share of the run")
    check_length(total)
    return total


def check_length(steps: int | None) -> None:
    """Refuses what is no length of a run; ``None`` takes the run's own."""
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise argument_error("steps", steps, "a whole number of steps, at least 1, or None for the run's")


def growing_levels(index: int, total: int, start: int, end: int) -> int:
    """``ceil(sqrt(k/K ((end + 1)^2 - start^2) + start^2) - 1) + 1``: Song et al., "Consistency models" (2023)."""
    share = min(index, total) / total
    return math.ceil(math.sqrt(share * ((end + 1) ** 2 - start**2) + start**2) - 1) + 1


def doubling_levels(index: int, total: int, start: int, end: int) -> int:
    """``min(start 2^floor(k / K'), end) + 1`` with ``K' = floor(K / (log2 floor(end / start) + 1))``: iCT."""
    period = max(math.floor(total / (math.log2(end // start) + 1)), 1)
    return min(start << min(index // period, 62), end) + 1


def check_levels(start: int, end: int, names: tuple[str, str] = ("start_levels", "end_levels")) -> None:
    """Refuses numbers of levels that are none, or in the wrong order."""
    for name, value in zip(names, (start, end), strict=True):
        if isinstance(value, bool) or not isinstance(value, int):
            raise argument_error(name, value, "a whole number of levels, at least 2")
    if not 2 <= start <= end:
        raise argument_error("levels", (start, end), "two numbers of levels from 2, the first not above the second")
