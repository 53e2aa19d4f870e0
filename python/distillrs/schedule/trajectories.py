"""Sampled trajectories of a teacher, from which grids are chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.schedule._times import check_values
from distillrs.schedule.grids import Grid
from distillrs.schedule.path import Kind
from distillrs.schedule.solvers import Solver, Velocity, integrate


@dataclass(frozen=True, slots=True, eq=False)
class Trajectories:
    """States and velocities of several samples at the times of a fine grid.

    Attributes:
        grid: The fine grid, ``n`` steps.
        states: ``[n + 1, samples, ...]``, float32 or float64.
        velocities: ``[n, samples, ...]``: at every state but the last.
    """

    grid: Grid
    states: Tensor
    velocities: Tensor

    def __post_init__(self) -> None:
        check_values("states", self.states)
        check_values("velocities", self.velocities)
        points = self.grid.steps + 1
        if self.states.dim() < 2 or len(self.states) != points:
            raise argument_error("states", f"shape {tuple(self.states.shape)}", f"[{points}, samples, ...]")
        expected = (points - 1, *self.states.shape[1:])
        if tuple(self.velocities.shape) != expected:
            raise argument_error("velocities", f"shape {tuple(self.velocities.shape)}", f"shape {expected}")
        for name, values in (("states", self.states), ("velocities", self.velocities)):
            if values.dtype not in (torch.float32, torch.float64):
                raise argument_error(name, values.dtype, "float32 or float64")
            if not bool(values.isfinite().all()):
                raise argument_error(name, "values that are not finite", "finite values")

    @classmethod
    def record(
        cls, grid: Grid, x: Tensor, predict: Velocity, *, solver: Solver = "heun", kind: Kind = "velocity"
    ) -> Trajectories:
        """Runs a teacher along a fine grid; its velocities are taken at the states of the solver.

        Args:
            grid: The fine grid.
            x: States at its first time, ``[samples, ...]``.
            predict: The teacher; see :func:`integrate`.
            solver: The solver.
            kind: What the teacher predicts.
        """
        with torch.no_grad():
            states = integrate(grid, x, predict, solver=solver, kind=kind, every=True)
            velocities = [
                grid.path.convert(predict(state, t), state, t, kind=kind, to="velocity")
                for state, t in zip(states[:-1], grid.times[:-1], strict=True)
            ]
        return cls(grid, states, torch.stack(velocities))
