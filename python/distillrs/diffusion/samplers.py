"""Samplers of flow maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from distillrs import random
from distillrs.diffusion.conditions import Condition, check_condition
from distillrs.diffusion.state_map import StateMap
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Grid, Path
from distillrs.schedule.grids import check_grid
from distillrs.step import Step

SamplerMethod: TypeAlias = Literal["ode", "renoise", "anchor", "stochastic"]
"""See :func:`sample`."""


def sample(
    map: StateMap | Sequence[StateMap],
    noise: Tensor,
    grid: Grid,
    condition: Condition = None,
    *,
    method: SamplerMethod = "ode",
    step: Step | int = 0,
    name: str = "renoise",
    gradient: Literal["none", "last", "all"] = "none",
    every: bool = False,
) -> Tensor:
    """Samples with a map, one call for each step of a grid.

    - ``ode``: from each time to the next. What a map of two times was trained for; only this keeps to the flow.
    - ``renoise``: to the data, then noise anew up to the next time: multi-step sampling of consistency models (Song et
      al., 2023). A map that is wrong between its ends may still look well here.
    - ``anchor``: to the data, then up with the noise that the sample began with: Lee, Lin, Fanti (2024).
    - ``stochastic``: two steps of the grid in one, then noise anew for one step back: Meng et al., "On distillation of
      guided diffusion models" (2023). The last step is a single one.

    Args:
        map: The student's map; or one for each step of the grid, to change from one network to another on the way.
        noise: Standard normal, ``[n, ...]``; row ``i`` is unit ``step.first_unit + i``.
        grid: The times, from noise; the last is where the samples end.
        condition: Of the rows.
        method: See above.
        step: Of the noise that ``renoise`` draws.
        name: What that noise is for.
        gradient: Which calls are differentiated.
        every: Whether to return the states at all times.

    Returns:
        ``[n, ...]``; with ``every`` ``[steps + 1, n, ...]``.

    Raises:
        ArgumentError: For a grid of another path, an unknown method, a wrong number of maps, or a map that cannot
            end at the grid's times.
    """
    if method not in get_args(SamplerMethod):
        raise unknown_name_error("method", method, list(get_args(SamplerMethod)))
    if gradient not in ("none", "last", "all"):
        raise argument_error("gradient", gradient, "'none', 'last' or 'all'")
    check_grid("grid", grid)
    check_condition("condition", condition)
    if not isinstance(noise, Tensor):
        raise argument_error("noise", type(noise).__name__, "a tensor [n, ...]")
    if not isinstance(map, StateMap) and not (
        isinstance(map, Sequence) and all(isinstance(one, StateMap) for one in map)
    ):
        raise argument_error("map", type(map).__name__, "a StateMap, or one for each step of the grid")
    maps = [map] * grid.steps if isinstance(map, StateMap) else list(map)
    if len(maps) != grid.steps:
        raise argument_error("map", f"{len(maps)} maps", f"one, or one for each of the grid's {grid.steps} steps")
    for one in maps:
        if grid.path != one.path:
            raise argument_error("grid", grid.path, f"one of the map's path, {one.path}")
    ends = [one.head.end(one.path) for one in maps]
    if method in ("ode", "stochastic") and any(end is not None for end in ends[:-1]):
        raise argument_error("method", method, "'renoise' or 'anchor': the map of this head ends at one time only")
    maps[0].check_start(float(grid.times[0]), float(grid.times[1]))
    step = Step.of(step)
    x = (float(grid.sigmas[0]) * noise).to(noise.dtype)
    states = [x]

    def full(time: float) -> Tensor:
        return torch.full((len(noise),), time, dtype=torch.float64, device=noise.device)

    times = grid.times.tolist()
    for index, (t, r) in enumerate(itertools.pairwise(times)):
        final = index == grid.steps - 1
        now, end = maps[index], ends[index]
        if method == "ode" or final:
            there = r if end is None else end
        elif method == "stochastic":
            there = times[index + 2]
        else:
            there = times[-1] if end is None else end
        with torch.set_grad_enabled(torch.is_grad_enabled() and (gradient == "all" or (gradient == "last" and final))):
            x = now(x, full(t), full(there), condition).to(noise.dtype)
            if method != "ode" and not final:
                fresh = noise if method == "anchor" else _fresh(noise, step, f"{name}/{index}")
                x = _back(now.path, x, fresh, there, r) if method == "stochastic" else now.path.corrupt(x, fresh, r)
        states.append(x)
    return torch.stack(states) if every else x


def _back(path: Path, x: Tensor, noise: Tensor, t: float, to: float) -> Tensor:
    """From a time to a noisier one: ``x alpha'/alpha + sqrt(sigma'^2 - (sigma alpha'/alpha)^2) noise``."""
    ratio = float(path.alpha(to)) / float(path.alpha(t))
    spread = float(path.sigma(to)) ** 2 - (float(path.sigma(t)) * ratio) ** 2
    return (ratio * x + math.sqrt(max(spread, 0.0)) * noise).to(x.dtype)


def _fresh(noise: Tensor, step: Step, name: str) -> Tensor:
    return random.normal(len(noise), *noise.shape[1:], step=step, name=name, dtype=noise.dtype, device=noise.device)
