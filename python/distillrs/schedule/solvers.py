"""Solvers of the probability flow: their coefficients on a grid, and a plain loop that applies them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule._times import check_values
from distillrs.schedule.grids import Grid, check_grid
from distillrs.schedule.path import Kind, check_kind

Solver: TypeAlias = Literal["euler", "heun", "midpoint", "ddim", "dpm++2m"]
"""Names of solvers; see :func:`integrate`."""

Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``velocity(x, t)``: states ``[n, ...]`` and a float64 scalar time to a prediction of the states' shape."""


class Coefficients(NamedTuple):
    """A linear multi-step solver on a grid: ``x_(i+1) = state_i x_i + current_i p_i + previous_i p_(i-1)``.

    Attributes:
        kind: What the predictions ``p`` are.
        state: float64 ``[steps]``.
        current: float64 ``[steps]``.
        previous: float64 ``[steps]``; 0 for one-step solvers and at the first step.
    """

    kind: Kind
    state: Tensor
    current: Tensor
    previous: Tensor


def coefficients(grid: Grid, solver: Solver) -> Coefficients:
    """The coefficients of a solver with one evaluation in each step.

    - ``euler``: ``x + (r - t) velocity``.
    - ``ddim``: ``(sigma_r / sigma_t) x + (alpha_r - alpha_t sigma_r / sigma_t) x0``, exact for a constant ``x0``: Song,
      Meng, Ermon, "Denoising diffusion implicit models" (2021); the exponential integrator of first order.
    - ``dpm++2m``: the same with ``x0`` extrapolated in ``l = log(alpha / sigma)`` from the step before,
      ``x0 + (x0 - x0_before) h / (2 h_before)`` with ``h`` the steps in ``l``: Lu et al., "DPM-Solver++" (2022). First
      order where a step in ``l`` is infinite: a last step to the data, a first one from pure noise.

    Args:
        grid: The times.
        solver: The solver. ``heun`` and ``midpoint``, which ask twice in a step, have :func:`stages` in their place.

    Raises:
        ArgumentError: For what is no grid, or another solver.
    """
    check_grid("grid", grid)
    times = grid.times
    one, none = torch.ones(grid.steps, dtype=torch.float64), torch.zeros(grid.steps, dtype=torch.float64)
    if solver == "euler":
        return Coefficients("velocity", one, times.diff(), none)
    if solver not in ("ddim", "dpm++2m"):
        raise unknown_name_error("solver", solver, ["euler", "ddim", "dpm++2m"])
    alpha, sigma = grid.alphas, grid.sigmas
    state = sigma[1:] / sigma[:-1]
    weight = alpha[1:] - alpha[:-1] * state
    if solver == "ddim":
        return Coefficients("x0", state, weight, none)
    steps = (grid.log_snr / 2).diff()
    share = none.clone()
    usable = steps[1:].isfinite() & steps[:-1].isfinite()
    share[1:] = torch.where(usable, steps[1:] / (2 * steps[:-1]), none[1:])
    return Coefficients("x0", state, weight * (1 + share), -weight * share)


class Stages(NamedTuple):
    """A solver with two velocities in a step of length ``h_i = t_(i+1) - t_i``.

    With ``u_i`` the velocity at ``(x_i, t_i)`` and ``w_i`` that at ``(x_i + share_i h_i u_i, time_i)``, the step is
    ``x_(i+1) = x_i + h_i (first_i u_i + second_i w_i)``. Where ``second_i`` is 0 the second one is not asked for.

    Attributes:
        time: float64 ``[steps]``.
        share: float64 ``[steps]``.
        first: float64 ``[steps]``.
        second: float64 ``[steps]``.
    """

    time: Tensor
    share: Tensor
    first: Tensor
    second: Tensor


def stages(grid: Grid, solver: Solver) -> Stages:
    """The coefficients of a solver with two evaluations in each step.

    - ``heun``: the mean of the velocities at both ends, the second one where Euler's step arrives; Euler's step alone
      where it ends in the data, as Karras et al., "Elucidating the design space of diffusion-based generative models"
      (2022), do, since many networks have no velocity there.
    - ``midpoint``: the velocity in the middle of the step, where half a step of Euler's arrives.

    Args:
        grid: The times.
        solver: The solver.

    Raises:
        ArgumentError: For what is no grid, or another solver.
    """
    check_grid("grid", grid)
    times = grid.times
    one, none = torch.ones(grid.steps, dtype=torch.float64), torch.zeros(grid.steps, dtype=torch.float64)
    if solver == "midpoint":
        return Stages((times[:-1] + times[1:]) / 2, one / 2, none, one)
    if solver != "heun":
        raise unknown_name_error("solver", solver, ["heun", "midpoint"])
    second = torch.where(times[1:] > 0, one / 2, none)
    return Stages(times[1:], one, 1 - second, second)


def momentum_displacement(log_gain: Tensor, t: Tensor, r: Tensor, start: Tensor | None = None) -> Tensor:
    """How far a unit of decaying velocity carries a state: ``g^(start - s)`` integrated from ``t`` to ``r``.

    ``g^(start - t) (r - t) expm1(q) / q`` with ``q = log g (t - r)``: the exact step of "ArcFlow"
    (2026). Its limit for ``g = 1`` is Euler's ``r - t``.

    Args:
        log_gain: ``log g``, any shape.
        t: Where the step starts; broadcasts.
        r: Where it ends; broadcasts.
        start: Where the head was evaluated; ``t`` by default.

    Returns:
        Of the broadcast shape and type; differentiable.
    """
    exponent = log_gain * (t - r)
    # The series where the quotient would lose its digits; its neglected term is below 1e-16.
    small = exponent.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(exponent), exponent)
    series = 1 + exponent / 2 + exponent.square() / 6 + exponent**3 / 24
    share = torch.where(small, series, torch.expm1(safe) / safe)
    lead = 1.0 if start is None else (log_gain * (start - t)).exp()
    return lead * (r - t) * share


def evaluations(grid: Grid, solver: Solver) -> int:
    """How often :func:`integrate` calls its network.

    Raises:
        ArgumentError: For what is no grid, or an unknown solver.
    """
    check_grid("grid", grid)
    check_solver(solver)
    if solver in ("heun", "midpoint"):
        return grid.steps + int((stages(grid, solver).second != 0).sum())
    return grid.steps


def integrate(
    grid: Grid, x: Tensor, predict: Velocity, *, solver: Solver = "euler", kind: Kind = "velocity", every: bool = False
) -> Tensor:
    """Carries states along a grid.

    ``euler``, ``ddim`` and ``dpm++2m`` as in :func:`coefficients`, ``heun`` and ``midpoint`` as in :func:`stages`.

    Args:
        grid: The times, from noise to data.
        x: States at the first time, ``[n, ...]``.
        predict: The network; see :data:`Velocity`.
        solver: The solver.
        kind: What the network predicts.
        every: Whether to return the states at all times.

    Returns:
        States at the last time, ``[n, ...]``; with ``every`` those at all of them, ``[steps + 1, n, ...]``.

    Raises:
        ArgumentError: For what is no grid or no network, an unknown solver or kind, or a prediction of another shape
            than the states.
    """
    check_grid("grid", grid)
    check_solver(solver)
    check_kind("kind", kind)
    check_values("x", x)
    if not callable(predict):
        raise argument_error("predict", predict, "a function of states and a time")
    path, states = grid.path, [x]

    def prediction(x: Tensor, t: Tensor, to: Kind) -> Tensor:
        value = predict(x, t)
        check_values("predict", value, x)
        return path.convert(value, x, t, kind=kind, to=to)

    if solver in ("heun", "midpoint"):
        two = stages(grid, solver)
        for index, (t, r) in enumerate(itertools.pairwise(grid.times.unbind())):
            step = float(r - t)
            slope = prediction(x, t, "velocity")
            first, second = float(two.first[index]), float(two.second[index])
            if second != 0:
                there = prediction(x + float(two.share[index]) * step * slope, two.time[index], "velocity")
                # Not 0 times the first velocity, which may be infinite.
                slope = second * there if first == 0 else first * slope + second * there
            x = x + step * slope
            states.append(x)
    else:
        weights = coefficients(grid, solver)
        before: Tensor | None = None
        for index, t in enumerate(grid.times[:-1].unbind()):
            now = prediction(x, t, weights.kind)
            x = float(weights.state[index]) * x + float(weights.current[index]) * now
            if before is not None and float(weights.previous[index]) != 0:
                x = x + float(weights.previous[index]) * before
            before = now
            states.append(x)
    return torch.stack(states) if every else x


def check_solver(solver: object) -> None:
    """Refuses the name of no solver."""
    if solver not in get_args(Solver):
        raise unknown_name_error("solver", solver, list(get_args(Solver)))
