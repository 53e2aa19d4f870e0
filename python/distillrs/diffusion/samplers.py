"""Samplers of flow maps."""

from __future__ import annotations

import itertools
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from distillrs import random
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.state_map import StateMap
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Grid
from distillrs.step import Step

SamplerMethod: TypeAlias = Literal["ode", "renoise", "anchor"]
"""See :func:`sample`."""


def sample(
    map: StateMap,
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

    Args:
        map: The student's map.
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
        ArgumentError: For a grid of another path, an unknown method, or a map that cannot end at the grid's times.
    """
    if method not in ("ode", "renoise", "anchor"):
        raise unknown_name_error("method", method, ["ode", "renoise", "anchor"])
    if gradient not in ("none", "last", "all"):
        raise argument_error("gradient", gradient, "'none', 'last' or 'all'")
    if grid.path != map.path:
        raise argument_error("grid", grid.path, f"one of the map's path, {map.path}")
    end = map.head.end(map.path)
    if end is not None and method == "ode" and grid.steps > 1:
        raise argument_error("method", method, "'renoise' or 'anchor': the map of this head ends at one time only")
    last = float(grid.times[-1]) if end is None else end
    step = Step.of(step)
    x = (float(grid.sigmas[0]) * noise).to(noise.dtype)
    states = [x]

    def full(time: float) -> Tensor:
        return torch.full((len(noise),), time, dtype=torch.float64, device=noise.device)

    for index, (t, r) in enumerate(itertools.pairwise(grid.times.tolist())):
        final = index == grid.steps - 1
        with torch.set_grad_enabled(torch.is_grad_enabled() and (gradient == "all" or (gradient == "last" and final))):
            ends = r if method == "ode" and not (final and end is not None) else last
            x = map(x, full(t), full(ends), condition).to(noise.dtype)
            if method != "ode" and not final:
                fresh = noise if method == "anchor" else _fresh(noise, step, f"{name}/{index}")
                x = map.path.corrupt(x, fresh, r)
        states.append(x)
    return torch.stack(states) if every else x


def _fresh(noise: Tensor, step: Step, name: str) -> Tensor:
    return random.normal(len(noise), *noise.shape[1:], step=step, name=name, dtype=noise.dtype, device=noise.device)
