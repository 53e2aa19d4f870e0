"""Choosing the few times of a sampler from trajectories of its teacher at many."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distillrs import _core
from distillrs.checks import check_whole
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule._times import check_values
from distillrs.schedule.grids import Grid, check_grid
from distillrs.schedule.path import Path
from distillrs.schedule.solvers import Solver, Velocity, check_solver, integrate
from distillrs.schedule.trajectories import Trajectories

Method: TypeAlias = Literal["local", "propagated", "refined"]

# Features that are converted at a time: memory stays small, and sums in float32 short.
_CHUNK = 2**11
# Rows to a product; the smaller, the less is multiplied below the diagonal.
_BLOCK = 40
# The shortest move of a refined time, in intervals of the trajectories' grid.
_FINEST = 0.25


class FoundGrid(NamedTuple):
    """A grid and how well it does on the trajectories that it was chosen from.

    Attributes:
        grid: The times.
        error: Root mean square over samples and features; of the last state against the teacher's for ``propagated``
            and ``refined``; for ``local`` the root of the steps' summed squares, each from the teacher's own state.
    """

    grid: Grid
    error: float


class MixedGrid(NamedTuple):
    """A grid whose steps use one of two velocities.

    Attributes:
        grid: The times.
        second: Whether each step uses the second one.
        error: As for ``local`` in :class:`FoundGrid`.
    """

    grid: Grid
    second: tuple[bool, ...]
    error: float


def optimise_grid(
    trajectories: Trajectories,
    path: Path | None = None,
    steps: Sequence[int] = (4, 8),
    method: Method = "local",
    velocity: Velocity | None = None,
    solver: Solver = "euler",
    start: Grid | None = None,
) -> dict[int, FoundGrid]:
    """Chooses the times of a sampler with few steps from trajectories with many, for every number of steps.

    - ``local``: the steps' errors from the teacher's own states, ``|step(x_i) - x_j|^2`` for all pairs, and exactly the
      shortest path through them, for all numbers of steps at once: ``O(steps n^2)`` after two products of Gram.
    - ``propagated``: as ``local``, but each step starts where the best shorter grid arrived: the dynamic programme of
      Pei et al., "Optimal stepsize for diffusion sampling" (2025), with exactly as many steps as asked for. Takes
      ``max(steps) n`` evaluations of all samples.
    - ``refined``: from the best of ``local``, ``propagated`` (for the solvers that it takes), equal steps, steps
      shifted by 3, and ``start``, times move one by one as long as the last state comes nearer to the teacher's,
      at last by a quarter of the trajectories' intervals. Takes some thousand evaluations.

    The best grid depends on the solver, so name the one that will be used. On held-out noise ``local`` alone may lose
    to a good hand-set shift; ``refined`` is never worse than ``start`` on the trajectories.

    Args:
        trajectories: Of the teacher, on a grid finer than any number of steps.
        path: What the times are of; if given, it must be that of the trajectories.
        steps: Numbers of steps.
        method: See above.
        velocity: The teacher; for ``propagated`` and ``refined``.
        solver: ``euler`` or ``ddim``; ``refined`` takes any.
        start: A grid with the first and last time of the trajectories, for ``refined``, whose other times are moved to
            the nearest of the trajectories' and which is used for its number of steps.

    Returns:
        The grid and its error for each number of steps.

    Raises:
        ArgumentError: For what is no trajectories, another path, numbers of steps out of range, an unknown method or
            solver, a start that is no grid, or a missing velocity.
    """
    _check_trajectories(trajectories)
    fine = trajectories.grid
    if path is not None and path != fine.path:
        raise argument_error("path", path, f"that of the trajectories, {fine.path!r}")
    counts = _counts(steps, fine.steps)
    if method not in ("local", "propagated", "refined"):
        raise unknown_name_error("method", method, ["local", "propagated", "refined"])
    if method != "refined" and solver not in ("euler", "ddim"):
        raise argument_error("solver", solver, f"'euler' or 'ddim' for the method {method!r}, any for 'refined'")
    check_solver(solver)
    if start is not None:
        check_grid("start", start)
    if method == "local":
        return {count: _found(fine, nodes, error) for count, nodes, error in _local(trajectories, counts, solver)}
    if not callable(velocity):
        allowed = f"the teacher, a function of states and time, which the method {method!r} evaluates"
        raise argument_error("velocity", velocity, allowed)
    with torch.no_grad():
        if method == "refined":
            return _refined(trajectories, counts, velocity, solver, start)
        rows = _propagated(trajectories, counts, velocity, solver)
    return {count: _found(fine, nodes, error) for count, nodes, error in rows}


def optimise_mixed(
    trajectories: Trajectories,
    second: Tensor,
    steps: int,
    second_steps: int,
    solver: Literal["euler", "ddim"] = "euler",
) -> MixedGrid:
    """Chooses times, and which steps use a second, cheaper velocity: without guidance, or from a cache.

    As ``local`` in :func:`optimise_grid`, over both kinds of steps at once; exact.

    Args:
        trajectories: Of the teacher, with its full velocities.
        second: The cheaper velocities at the same states, ``[n, samples, ...]``.
        steps: Number of steps.
        second_steps: How many of them use the second velocity.
        solver: ``euler`` or ``ddim``.

    Raises:
        ArgumentError: For numbers of steps out of range, or velocities of another shape.
    """
    if solver not in ("euler", "ddim"):
        raise argument_error("solver", solver, "'euler' or 'ddim'")
    _check_trajectories(trajectories)
    fine = trajectories.grid
    check_whole("steps", steps, f"a number from 1 to the trajectories' {fine.steps}", least=1, most=fine.steps)
    check_whole("second_steps", second_steps, f"a number from 0 to steps, {steps}", least=0, most=steps)
    check_values("second", second, trajectories.velocities)
    other = Trajectories(fine, trajectories.states, second)
    costs = [_local_costs(each, solver).numpy() for each in (trajectories, other)]
    total, nodes, kinds = _core.shortest_paths_of_two(costs[0].data, costs[1].data, steps, second_steps)
    return MixedGrid(_grid(fine, nodes), tuple(kinds), _root(total, trajectories))


def _check_trajectories(value: object) -> None:
    if not isinstance(value, Trajectories):
        raise argument_error("trajectories", type(value).__name__, "Trajectories: those of a teacher on a fine grid")


def _counts(steps: object, most: int) -> list[int]:
    allowed = f"one or more numbers from 1 to the trajectories' {most}"
    if not isinstance(steps, Collection) or not steps:
        raise argument_error("steps", steps, allowed)
    for count in steps:
        check_whole("steps", count, allowed, least=1, most=most)
    return sorted({int(count) for count in steps})


Row: TypeAlias = tuple[int, list[int], float]
Places: TypeAlias = tuple[float, ...]


def _found(fine: Grid, nodes: list[int], error: float) -> FoundGrid:
    return FoundGrid(_grid(fine, nodes), error)


def _grid(fine: Grid, nodes: list[int]) -> Grid:
    return Grid(fine.times[nodes], fine.path)


def _root(total: float, trajectories: Trajectories) -> float:
    return math.sqrt(max(total, 0.0) / max(trajectories.states[0].numel(), 1))


def step_weights(grid: Grid, solver: Solver) -> tuple[Tensor, Tensor]:
    """Weights of state and velocity in a step between any two times of a grid: float64 ``[n, n + 1]`` each."""
    t, r = grid.times[:-1, None], grid.times[None, :]
    if solver == "euler":
        return torch.ones(len(t), r.shape[1], dtype=torch.float64), r - t
    # DDIM's step in (state, x0), with x0 written in (state, velocity): a finite velocity is finite everywhere.
    path = grid.path
    alpha, sigma = path._alpha(t), path._sigma(t)
    scale, data, noise = path._velocity(t)
    determinant = alpha * noise - sigma * data
    of_state, of_velocity = noise / determinant, -sigma * scale / determinant
    ratio = path._sigma(r) / sigma
    weight = path._alpha(r) - alpha * ratio
    return ratio + weight * of_state, weight * of_velocity


def _local(trajectories: Trajectories, counts: list[int], solver: Solver) -> list[Row]:
    costs = _local_costs(trajectories, solver).numpy()
    totals, nodes = _core.shortest_paths(costs.data, counts[-1])
    return [(count, nodes[count - 1], _root(totals[count - 1], trajectories)) for count in counts]


def _local_costs(trajectories: Trajectories, solver: Solver) -> Tensor:
    state, current = step_weights(trajectories.grid, solver)
    times = trajectories.grid.times
    chord = times if solver == "euler" else None
    costs = _pair_costs(None, trajectories.velocities, trajectories.states, state, current, chord)
    return torch.cat([costs, torch.zeros(1, len(times), dtype=torch.float64)])


def _pair_costs(
    origins: Tensor | None,
    slopes: Tensor,
    targets: Tensor,
    state: Tensor,
    current: Tensor,
    times: Tensor | None = None,
) -> Tensor:
    """``|state_ij o_i + current_ij v_i - x_j|^2`` from products of matrices: float64 ``[n, n + 1]``.

    Below the diagonal the numbers mean nothing: no step goes back.

    Without origins they are the targets but the last. With ``times`` (Euler's step) the straight line between the first
    and the last target is taken away from states and velocities first, which changes no step's error, but keeps small
    errors from being differences of large numbers.
    """
    slopes, targets = slopes.flatten(1), targets.flatten(1)
    starts = None if origins is None else origins.flatten(1)
    count, features = targets.shape
    states, drifts = (torch.zeros(rows, count, dtype=torch.float64) for rows in (count, count - 1))
    own, along, speed = (torch.zeros(count - 1, dtype=torch.float64) for _ in range(3))
    lengths = torch.zeros(count, dtype=torch.float64)
    for first in range(0, features, _CHUNK):
        x, v = targets[:, first : first + _CHUNK], slopes[:, first : first + _CHUNK]
        o = None if starts is None else starts[:, first : first + _CHUNK]
        if times is not None:
            origin, line = x[0], (x[-1] - x[0]) / float(times[-1] - times[0])
            elapsed = (times - times[0]).to(x)
            x, v = torch.addr(x - origin, elapsed, line, alpha=-1), v - line
            o = None if o is None else torch.addr(o - origin, elapsed[:-1], line, alpha=-1)
        _add_products(drifts, v, x)
        speed += torch.linalg.vector_norm(v, dim=1).double().cpu().square()
        if o is None:
            _add_products(states, x, x)
        else:
            _add_products(states[:-1], o, x)
            lengths += torch.linalg.vector_norm(x, dim=1).double().cpu().square()
            own += torch.linalg.vector_norm(o, dim=1).double().cpu().square()
            along += (o * v).sum(1).double().cpu()
    if starts is None:
        lengths, along = states.diagonal(), drifts.diagonal()
        own = lengths[:-1]
    costs = state.square() * own[:, None] + 2 * state * current * along[:, None] + current.square() * speed[:, None]
    return (costs + lengths - 2 * state * states[:-1] - 2 * current * drifts).clamp_(min=0.0)


def _add_products(out: Tensor, rows: Tensor, others: Tensor) -> None:
    """Adds ``rows @ others.T`` above the diagonal and in the blocks along it."""
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        out[first : first + _BLOCK, first:] += (block @ others[first:].T).double().cpu()


def _propagated(trajectories: Trajectories, counts: list[int], velocity: Velocity, solver: Solver) -> list[Row]:
    fine, targets = trajectories.grid, trajectories.states
    times = fine.times
    state, current = step_weights(fine, solver)
    chord = times if solver == "euler" else None
    last = fine.steps
    arrived = targets[:-1].clone()
    reachable = torch.zeros(last, dtype=torch.bool)
    reachable[0] = True
    before: list[list[int]] = []
    rows: list[Row] = []
    slopes = torch.zeros_like(arrived)
    for count in range(1, counts[-1] + 1):
        for node in reachable.nonzero().flatten().tolist():
            slopes[node] = velocity(arrived[node], times[node])
        costs = _pair_costs(arrived, slopes, targets, state, current, chord)
        forward = torch.arange(last)[:, None] < torch.arange(last + 1)[None, :]
        costs = torch.where(forward & reachable[:, None], costs, torch.inf)
        best, origin = costs.min(0)
        before.append(origin.tolist())
        if count in counts:
            nodes = [last]
            for table in reversed(before):
                nodes.append(table[nodes[-1]])
            rows.append((count, nodes[::-1], _root(float(best[-1]), trajectories)))
        following = torch.zeros_like(reachable)
        moved = arrived.clone()
        for node in range(1, last):
            if best[node] < torch.inf:
                source = int(origin[node])
                step = float(state[source, node]) * arrived[source] + float(current[source, node]) * slopes[source]
                moved[node], following[node] = step, True
        arrived, reachable = moved, following
    return rows


def _refined(
    trajectories: Trajectories, counts: list[int], velocity: Velocity, solver: Solver, start: Grid | None
) -> dict[int, FoundGrid]:
    fine = trajectories.grid
    simple: Solver = "ddim" if solver in ("ddim", "dpm++2m") else "euler"
    beginnings = {count: [nodes] for count, nodes, _ in _local(trajectories, counts, simple)}
    for count in counts:
        share = torch.arange(count + 1, dtype=torch.float64) / count
        span = fine.times[0] + share * (fine.times[-1] - fine.times[0])
        beginnings[count] += [_nearest(fine, span), _nearest(fine, 3 * span / (1 + 2 * span))]
    if start is not None:
        ends = torch.stack([start.times[0], start.times[-1]])
        if start.path != fine.path or not torch.allclose(ends, fine.times[[0, -1]], rtol=0, atol=1e-9):
            raise argument_error("start", start, "a grid of the trajectories' path, with their first and last time")
        if start.steps in beginnings:
            beginnings[start.steps].append(_nearest(fine, start.times))
    if solver in ("euler", "ddim"):
        for count, nodes, _ in _propagated(trajectories, counts, velocity, solver):
            beginnings[count].append(nodes)
    found: dict[int, FoundGrid] = {}
    for count in counts:
        known: dict[Places, float] = {}

        def error(places: Places, known: dict[Places, float] = known) -> float:
            if places not in known:
                end = integrate(_between(fine, places), trajectories.states[0], velocity, solver=solver)
                known[places] = float((end - trajectories.states[-1]).double().square().mean().sqrt())
            return known[places]

        best = min((tuple(float(node) for node in nodes) for nodes in beginnings[count]), key=error)
        stride = float(1 << max((fine.steps // count).bit_length() - 1, 0))
        while stride >= _FINEST:
            moved = False
            for place in range(1, count):
                for offset in (-stride, stride):
                    candidate = (*best[:place], best[place] + offset, *best[place + 1 :])
                    if not candidate[place - 1] < candidate[place] < candidate[place + 1]:
                        continue
                    if error(candidate) < error(best):
                        best, moved = candidate, True
            if not moved:
                stride /= 2
        found[count] = FoundGrid(_between(fine, best), error(best))
    return found


def _between(fine: Grid, places: Places) -> Grid:
    """The grid at fractional places of a finer one, by linear interpolation of its times."""
    low = [min(int(place), fine.steps - 1) for place in places]
    share = torch.tensor(places, dtype=torch.float64) - torch.tensor(low, dtype=torch.float64)
    times = fine.times
    above = times[[index + 1 for index in low]]
    # Exact at both of an interval's times.
    return Grid(torch.where(share == 1, above, times[low] + share * (above - times[low])), fine.path)


def _nearest(fine: Grid, times: Tensor) -> list[int]:
    """Distinct nodes near the times, from the first to the last."""
    count = len(times) - 1
    nodes = [int((fine.times - time).abs().argmin()) for time in times]
    nodes[0], nodes[-1] = 0, fine.steps
    for place in range(1, count):
        nodes[place] = min(max(nodes[place], nodes[place - 1] + 1), fine.steps - (count - place))
    return nodes
