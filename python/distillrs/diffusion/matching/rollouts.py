"""Rollouts: how the generator makes a sample while it is trained, and where the gradient is."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from distillrs import random
from distillrs.diffusion.checks import is_number
from distillrs.diffusion.samplers import SamplerMethod
from distillrs.diffusion.state_map import StateMap
from distillrs.diffusion.states import Batch
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Grid, Path, RectifiedFlow, RolloutPlan
from distillrs.step import Step

Gradient: TypeAlias = Literal["none", "last", "all"]
"""Which calls of a rollout are differentiated."""


@dataclass(frozen=True, slots=True, eq=False)
class Rolled:
    """A sample of the generator.

    Attributes:
        x: Its estimate of the data, ``[n, ...]``.
        level: Time of the call that made it: float64 ``[n]`` on the CPU.
        state: The state ``x_s`` that the same call made, where the rollout ends above the data; it is what is noised.
        end: Its time ``s``: float64 ``[n]`` on the CPU.
    """

    x: Tensor
    level: Tensor
    state: Tensor | None = None
    end: Tensor | None = None

    def detached(self) -> Rolled:
        """The same without a graph."""
        return Rolled(self.x.detach(), self.level, None if self.state is None else self.state.detach(), self.end)


class Rollout(ABC):
    """A way to make samples; everything that it draws is a pure function of the step and of a row's id."""

    __slots__ = ()

    @abstractmethod
    def run(self, map: StateMap, noise: Tensor, batch: Batch, step: Step) -> Rolled:
        """Makes a sample of every row; differentiable where the rollout says so, if gradients are enabled at all.

        Args:
            map: The generator.
            noise: Standard normal, ``[n, ...]``.
            batch: Its conditions, and its examples where they are used.
            step: Where in the run.
        """

    def check(self, map: StateMap) -> None:
        """Refuses a generator that cannot be rolled out this way, with the reason."""
        if map.head.end(map.path) is not None:
            allowed = "one whose map can end at the data itself (Jump, AverageVelocity): a rollout ends there"
            raise argument_error("head", map.head, allowed)

    @property
    def ends_in_data(self) -> bool:
        """Whether what is noised is the estimate of the data itself."""
        return True


@dataclass(frozen=True, slots=True)
class Planned(Rollout):
    """The calls of a plan, from noise to the data.

    Between two calls the state is ``renoise``: the estimate of the data with fresh noise; ``anchor``: with the noise
    that the sample began with; ``ode``: where the map itself ends. Plans of several units belong to streams.

    Attributes:
        plan: The plan, or a function of the step; one that draws its exit draws it for all rows and ranks at once,
            since ranks with different graphs wait for each other for ever.
        method: What is between two calls.
        path: Whose times the plan's levels are, if that is to be checked.
    """

    plan: RolloutPlan | Callable[[Step], RolloutPlan]
    method: SamplerMethod = "renoise"
    path: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.plan, RolloutPlan) and not callable(self.plan):
            raise argument_error("plan", self.plan, "a RolloutPlan, or a function of the step that gives one")
        if self.method not in ("renoise", "anchor", "ode"):
            raise unknown_name_error("method", self.method, ["renoise", "anchor", "ode"])
        if isinstance(self.plan, RolloutPlan):
            _check_plan(self.plan)

    def run(self, map: StateMap, noise: Tensor, batch: Batch, step: Step) -> Rolled:
        """See :class:`Rollout`."""
        plan = self.plan if isinstance(self.plan, RolloutPlan) else self.plan(step)
        _check_plan(plan)
        x = (float(map.path.sigma(plan.moves[0].level)) * noise).to(noise.dtype)
        differentiable = torch.is_grad_enabled()
        for move in plan.moves:
            last = move is plan.moves[-1]
            with torch.set_grad_enabled(differentiable and move.gradient):
                ends = move.to if self.method == "ode" or last else 0.0
                t, r = (_full(time, x) for time in (move.level, ends))
                # A call without a gradient ends the graph of those before it.
                x = map(x if move.gradient else x.detach(), t, r, batch.condition).to(noise.dtype)
                if not last and self.method != "ode":
                    fresh = noise if self.method == "anchor" else _fresh(noise, step, f"renoise/{move.step}")
                    x = map.path.corrupt(x, fresh, move.to)
        return Rolled(x, torch.full((len(x),), plan.moves[-1].level, dtype=torch.float64))

    def check(self, map: StateMap) -> None:
        """Maps that end at one time only cannot stop between; levels are of the generator's path."""
        Rollout.check(self, map)
        if self.path is not None and self.path != map.path:
            raise argument_error("path", self.path, f"the generator's, {map.path}: whose times the levels are")
        # What a function of the user's begins with shows when it is called.
        known = self.plan if isinstance(self.plan, RolloutPlan) else getattr(self.plan, "grid", None)
        if isinstance(known, RolloutPlan):
            map.check_start(known.moves[0].level, 0.0)
        elif isinstance(known, Grid):
            map.check_start(float(known.times[0]), 0.0)


def one_step(level: float = 1.0) -> Planned:
    """One call: ``sigma(level)`` times the noise, and its estimate of the data.

    Args:
        level: Time of the call; SiD begins at sigma 2.5 of EDM's path, one-step SDXL at row 399 of its table.

    Raises:
        ArgumentError: For a level outside (0, 1].
    """
    if not (is_number(level) and 0 < level <= 1):
        raise argument_error("level", level, "a time above 0, up to 1")
    return simulated((level,))


def simulated(levels: tuple[float, ...] | Grid, method: SamplerMethod = "renoise") -> Planned:
    """A few-step generator as it samples, up to a drawn call, which alone is differentiated.

    Its inputs are those that it meets when it samples; noised data are not, and a generator that was trained on them
    never sees its own errors. Yin et al., "Improved distribution matching distillation for fast image synthesis"
    (2024).

    Args:
        levels: Times of the calls, from noise; or a grid, each of whose times but the last is one.
        method: What is between two calls.

    Raises:
        ArgumentError: For levels that do not fall or are not times above 0.
    """
    path = levels.path if isinstance(levels, Grid) else None
    grid = _grid(tuple(levels.times[:-1].tolist()) if isinstance(levels, Grid) else levels)
    if grid.steps == 1:
        return Planned(RolloutPlan.trajectory(grid), method, path)
    return Planned(_Simulated(grid), method, path)


@dataclass(frozen=True, slots=True)
class _Simulated:
    grid: Grid

    def __call__(self, step: Step) -> RolloutPlan:
        return RolloutPlan.simulated(self.grid, step=step)


@dataclass(frozen=True, slots=True)
class AlongTrajectory(Rollout):
    """The generator's own ODE chain without a gradient, then one drawn step of each row with one.

    Row by row a step ``i`` is drawn, and the call at ``t_i`` gives both the estimate ``x`` of the data and the state
    ``x_s`` at ``s = t_(i+1)``, by the same data and noise: Luo et al., "Learning few-step diffusion models by
    trajectory distribution matching" (2025). Noise is added to ``x_s``; added to ``x`` it would give a state whose
    distribution is not the trajectory's.

    Attributes:
        grid: The steps; their times are those of the generator's path.
    """

    grid: Grid

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid):
            raise argument_error("grid", type(self.grid).__name__, "a Grid of the generator's path")

    def run(self, map: StateMap, noise: Tensor, batch: Batch, step: Step) -> Rolled:
        """See :class:`Rollout`."""
        times = self.grid.times
        x = (float(self.grid.sigmas[0]) * noise).to(noise.dtype)
        inputs = [x]
        with torch.no_grad():
            for t, r in itertools.pairwise(times[:-1].tolist()):
                x = map(x, _full(t, x), _full(r, x), batch.condition).to(noise.dtype)
                inputs.append(x)
        drawn = random.integers(len(noise), self.grid.steps, step=step, name="trajectory")
        there = drawn.to(noise.device)
        chosen = torch.stack(inputs)[there, torch.arange(len(noise), device=noise.device)]
        level, end = times[drawn], times[drawn + 1]
        t, s = level.to(noise.device), end.to(noise.device)
        data = torch.zeros_like(t)
        output = map.output(chosen, t, data, batch.condition)
        estimate, state = (map.join(output, chosen, t, r).to(noise.dtype) for r in (data, s))
        return Rolled(estimate, level, state, end)

    def check(self, map: StateMap) -> None:
        """The estimate and the state come from one output, which must not depend on where the map ends."""
        Planned.check(Planned(_Simulated(self.grid), path=self.grid.path), map)
        if map.network.two_times:
            raise argument_error("network", "one of two times", "one of one time: its output gives x and x_s at once")

    @property
    def ends_in_data(self) -> bool:
        """Only in the last step."""
        return False


@dataclass(frozen=True, slots=True)
class NoisedInputs(Rollout):
    """One call on noised examples at one of the levels, drawn for each row: what the generator never meets in sampling.

    Attributes:
        levels: Times, from noise.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        _grid(self.levels)

    def run(self, map: StateMap, noise: Tensor, batch: Batch, step: Step) -> Rolled:
        """See :class:`Rollout`."""
        if batch.x0 is None:
            raise argument_error("x0", None, "clean examples: the rollout's inputs are noised data")
        drawn = random.integers(len(noise), len(self.levels), step=step, name="trajectory")
        level = torch.tensor(self.levels, dtype=torch.float64)[drawn]
        t = level.to(noise.device)
        x = map(map.path.corrupt(batch.x0, noise, t), t, torch.zeros_like(t), batch.condition)
        return Rolled(x.to(noise.dtype), level)

    def check(self, map: StateMap) -> None:
        """The map must end in the data, and begin at the first level."""
        Rollout.check(self, map)
        map.check_start(float(self.levels[0]), 0.0)


def _grid(levels: Sequence[float]) -> Grid:
    if not isinstance(levels, Sequence) or not levels or not all(is_number(level) for level in levels):
        raise argument_error("levels", levels, "one or more times of the calls, from noise; or a Grid")
    # A plan's levels belong to the generator's path, whatever this grid says; it only orders them.
    return Grid([*levels, 0.0], RectifiedFlow())


def _check_plan(plan: RolloutPlan) -> None:
    if not isinstance(plan, RolloutPlan):
        raise argument_error("plan", type(plan).__name__, "a function of the step that gives a RolloutPlan")
    if plan.units > 1 or any(move.cache != "none" for move in plan.moves):
        raise argument_error("plan", f"{plan.units} units", "a plan of one unit without a cache")
    if plan.moves[-1].to != 0:
        raise argument_error("plan", f"an end at {plan.moves[-1].to}", "an end at the data, 0; see AlongTrajectory")


def _full(time: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), time, dtype=torch.float64, device=x.device)


def _fresh(noise: Tensor, step: Step, name: str) -> Tensor:
    return random.normal(len(noise), *noise.shape[1:], step=step, name=name, dtype=noise.dtype, device=noise.device)
