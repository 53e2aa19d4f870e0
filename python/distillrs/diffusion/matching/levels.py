"""Levels at which a sample is noised again, and the noised sample."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distillrs import random
from distillrs.diffusion.matching.rollouts import Rolled
from distillrs.diffusion.state_map import per_row
from distillrs.errors import argument_error
from distillrs.schedule import Path, TimeLaw
from distillrs.schedule.path import check_path
from distillrs.step import Step

Within: TypeAlias = Literal["all", "below"]
"""Bounds of a level, never below the sample's own end ``s``: ``all``, none further; ``below``: up to the level of the
call that made the sample. Steps along a trajectory then have intervals that do not overlap, so that one critic serves
them all."""

WITHIN = ("all", "below")


class Noised(NamedTuple):
    """A noised sample.

    Attributes:
        x_t: ``[n, ...]``.
        t: float64 ``[n]``.
        noise: What was added, standard normal.
        spread: Its weight ``s_(t|s) = sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)``: float64 ``[n]``.
    """

    x_t: Tensor
    t: Tensor
    noise: Tensor
    spread: Tensor


def draw_noised(path: Path, rolled: Rolled, law: TimeLaw, within: Within, step: Step, name: str) -> Noised:
    """Draws a level and noise for every row.

    Args:
        path: The path.
        rolled: The samples.
        law: Of the levels.
        within: Their bounds; the draw is that of the law on condition of them.
        step: Where in the run.
        name: What the draws are for.
    """
    x, n = rolled.x, len(rolled.x)
    high = None if within == "all" else rolled.level
    t = law.draw(n, step=step, name=f"{name}/t", device=x.device, low=rolled.end, high=high)
    noise = random.normal(n, *x.shape[1:], step=step, name=f"{name}/noise", dtype=x.dtype, device=x.device)
    return noised(path, rolled, t, noise)


def noised(path: Path, rolled: Rolled, t: Tensor, noise: Tensor) -> Noised:
    """``x_t = a x_s + s_(t|s) eps`` with ``a = alpha_t / alpha_s``; from the data itself where the rollout ends there.

    Noise must be added to the state that the rollout ended in: ``alpha_t x + sigma_t eps`` of its estimate ``x`` is
    distributed otherwise.

    Raises:
        ArgumentError: For what is no path, or no rollout's result.
    """
    check_path("path", path)
    if not isinstance(rolled, Rolled):
        raise argument_error("rolled", type(rolled).__name__, "Rolled: what a rollout gave")
    if rolled.state is None or rolled.end is None:
        return Noised(path.corrupt(rolled.x, noise, t), t, noise, path.sigma(t))
    scale, spread = transition(path, rolled.end.to(t.device), t)
    x_t = per_row(scale, noise) * rolled.state + per_row(spread, noise) * noise
    return Noised(x_t.to(noise.dtype), t, noise, spread)


def transition(path: Path, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """``alpha_t / alpha_s`` and ``s_(t|s)`` of going from ``s`` up to ``t``: float64 ``[n]``."""
    scale = path.alpha(t) / path.alpha(s)
    variance = path.sigma(t).square() - (scale * path.sigma(s)).square()
    return scale, torch.sqrt(variance.clamp(min=0.0))
