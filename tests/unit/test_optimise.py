import itertools
import math

import numpy as np
import pytest
import torch

from distillrs import _core, random
from distillrs.errors import ArgumentError
from distillrs.schedule import (
    EDM,
    VP,
    Grid,
    RectifiedFlow,
    Trajectories,
    Trig,
    coefficients,
    integrate,
    optimise_grid,
    optimise_mixed,
    spaced,
)  # fmt: skip

DATA = torch.tensor([[1.5, 0.0], [-0.5, 1.0], [-1.0, -1.2]], dtype=torch.float64)


def teacher(path, bandwidth=0.3):
    """The exact velocity of a mixture of three Gaussians."""

    def velocity(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha**2 * bandwidth**2 + sigma**2
        away = x[:, None] - alpha * DATA.to(x.dtype)
        weights = (-(away**2).sum(-1) / (2 * variance)).softmax(1)
        centres = DATA.to(x.dtype) + alpha * bandwidth**2 / variance * away
        denoised = (weights[..., None] * centres).sum(1)
        return path.convert(denoised.to(x.dtype), x, t, kind="x0", to="velocity")

    return velocity


def noise(path, count=24, name="n", dtype=torch.float64):
    return (random.normal(count, 2, step=0, name=name, dtype=torch.float64) * float(path.sigma(1.0))).to(dtype)


def recorded(path=None, steps=12, count=24, dtype=torch.float64):
    path = path or RectifiedFlow()
    grid = spaced(steps, path, end=0.0 if isinstance(path, RectifiedFlow) else 0.02)
    return Trajectories.record(grid, noise(path, count, dtype=dtype), teacher(path))


def step_error(trajectories, i, j, solver, velocities=None):
    """One step by the solver's own coefficients, alone."""
    times, velocities = trajectories.grid.times, trajectories.velocities if velocities is None else velocities
    weights = coefficients(Grid(times[[i, j]], trajectories.grid.path), solver)
    x, v = trajectories.states[i], velocities[i]
    prediction = trajectories.grid.path.convert(v, x, times[i], kind="velocity", to=weights.kind)
    end = weights.state[0] * x + weights.current[0] * prediction
    return float((end - trajectories.states[j]).square().sum())


@pytest.mark.parametrize("path", [RectifiedFlow(), Trig(), VP(), EDM(5.0)], ids=str)
@pytest.mark.parametrize("solver", ["euler", "ddim"])
def test_local_is_the_cheapest_of_all_grids(path, solver):
    trajectories = recorded(path, steps=9)
    pairs = {(i, j): step_error(trajectories, i, j, solver) for i in range(9) for j in range(i + 1, 10)}
    found = optimise_grid(trajectories, path, steps=range(1, 10), solver=solver)
    for count in range(1, 10):
        walks = [(0, *inner, 9) for inner in itertools.combinations(range(1, 9), count - 1)]
        costs = {walk: sum(pairs[pair] for pair in itertools.pairwise(walk)) for walk in walks}
        best = min(costs, key=costs.get)
        size = trajectories.states[0].numel()
        assert found[count].error == pytest.approx(math.sqrt(costs[best] / size), rel=1e-7)
        nodes = [int((trajectories.grid.times - time).abs().argmin()) for time in found[count].grid.times]
        assert costs[tuple(nodes)] == pytest.approx(costs[best], rel=1e-9)
        assert found[count].grid.steps == count


def test_propagated_states_are_those_of_the_grid_it_returns():
    """The error it reports is that of sampling with its grid; the recursion is that of exactly so many steps."""
    for path, solver in ((RectifiedFlow(), "euler"), (Trig(), "ddim")):
        trajectories, velocity = recorded(path), teacher(path)
        found = optimise_grid(trajectories, steps=(1, 2, 3, 5), method="propagated", velocity=velocity, solver=solver)
        for count, (grid, error) in found.items():
            assert grid.steps == count
            end = integrate(grid, trajectories.states[0], velocity, solver=solver)
            actual = float((end - trajectories.states[-1]).square().mean().sqrt())
            assert error == pytest.approx(actual, rel=1e-9)
        # Two steps leave nothing to approximate: the middle node is the best of all, by trying each.
        ends = []
        for middle in range(1, trajectories.grid.steps):
            grid = Grid(trajectories.grid.times[[0, middle, -1]], path)
            ends.append(integrate(grid, trajectories.states[0], velocity, solver=solver) - trajectories.states[-1])
        assert found[2].error == pytest.approx(min(float(end.square().mean().sqrt()) for end in ends), rel=1e-9)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "ddim", "dpm++2m"])
def test_refined_is_never_worse_than_where_it_starts_and_no_single_move_helps(solver):
    path = RectifiedFlow()
    trajectories, velocity = recorded(path, steps=16), teacher(path)
    start = Grid([1.0, 0.9, 0.4, 0.0], path)

    def error(grid):
        end = integrate(grid, trajectories.states[0], velocity, solver=solver)
        return float((end - trajectories.states[-1]).square().mean().sqrt())

    grid, found = optimise_grid(
        trajectories, path, steps=(3,), method="refined", velocity=velocity, solver=solver, start=start
    )[3]
    times = trajectories.grid.times
    on_nodes = Grid(
        [1.0, float(times[(times - 0.9).abs().argmin()]), float(times[(times - 0.4).abs().argmin()]), 0.0], path
    )
    assert found == pytest.approx(error(grid), rel=1e-12)
    assert found <= error(on_nodes)
    if solver == "euler":
        assert found <= error(optimise_grid(trajectories, steps=(3,))[3].grid)
    # The trajectories' times are equally spaced: a quarter of their interval either way.
    for place in (1, 2):
        for offset in (-1 / 64, 1 / 64):
            moved = grid.times.clone()
            moved[place] += offset
            assert error(Grid(moved, path)) >= found - 1e-12


def test_all_steps_are_the_fine_grid_and_results_do_not_depend_on_the_type():
    trajectories = recorded()
    assert optimise_grid(trajectories, steps=(12,))[12].grid == trajectories.grid
    single = Trajectories(trajectories.grid, trajectories.states.float(), trajectories.velocities.float())
    for count, (grid, error) in optimise_grid(trajectories, steps=(2, 4, 6)).items():
        other = optimise_grid(single, steps=(count,))[count]
        assert other.error == pytest.approx(error, rel=1e-4)
        assert other.grid == grid


def test_an_offset_of_all_states_does_not_cancel():
    trajectories = recorded()
    moved = Trajectories(trajectories.grid, trajectories.states + 1e6, trajectories.velocities)
    for count, (grid, error) in optimise_grid(trajectories, steps=(3, 6)).items():
        other = optimise_grid(moved, steps=(count,))[count]
        assert other.grid == grid
        assert other.error == pytest.approx(error, rel=1e-6)


def test_more_features_than_a_chunk():
    grid = spaced(4, RectifiedFlow())
    states = random.normal(5, 3, 5000, step=0, name="s", dtype=torch.float64)
    velocities = random.normal(4, 3, 5000, step=0, name="v", dtype=torch.float64)
    trajectories = Trajectories(grid, states, velocities)
    found = optimise_grid(trajectories, steps=(1,))[1]
    assert found.error == pytest.approx(math.sqrt(step_error(trajectories, 0, 4, "euler") / 15000), rel=1e-9)


def test_mixed_steps_are_the_cheapest_of_all():
    trajectories = recorded(steps=6)
    second = trajectories.velocities * 0.9 + 0.05
    for count in (1, 2, 3, 6):
        for budget in range(count + 1):
            best = math.inf
            for inner in itertools.combinations(range(1, 6), count - 1):
                for kinds in itertools.combinations(range(count), budget):
                    total = 0.0
                    for place, (i, j) in enumerate(itertools.pairwise((0, *inner, 6))):
                        total += step_error(trajectories, i, j, "euler", second if place in kinds else None)
                    best = min(best, total)
            found = optimise_mixed(trajectories, second, count, budget)
            assert found.error == pytest.approx(math.sqrt(best / trajectories.states[0].numel()), rel=1e-7)
            assert sum(found.second) == budget
            assert len(found.second) == found.grid.steps == count


def test_the_core_refuses_costs_that_are_not_square_or_numbers():
    with pytest.raises(ArgumentError, match=r"^costs: got 2 x 3"):
        _core.shortest_paths(np.zeros((2, 3)).data, 1)
    with pytest.raises(ArgumentError, match=r"^costs: got 1 dim"):
        _core.shortest_paths(np.zeros(4).data, 1)
    with pytest.raises(ArgumentError, match=r"^costs: got NaN from node 0 to node 1"):
        _core.shortest_paths(np.full((2, 2), np.nan).data, 1)
    assert _core.shortest_paths(np.full((3, 3), np.inf).data, 2) == ([math.inf, math.inf], [[], []])


FLOW = recorded(steps=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimise_grid(FLOW, EDM()), "^path: got EDM"),
        (lambda: optimise_grid(FLOW, steps=(5,)), "^steps: got"),
        (lambda: optimise_grid(FLOW, steps=(0,)), "^steps: got"),
        (lambda: optimise_grid(FLOW, steps=()), "^steps: got"),
        (lambda: optimise_grid(FLOW, steps=(2,), method="global"), "method.*'global'"),
        (lambda: optimise_grid(FLOW, steps=(2,), method="refined"), "^velocity: got None"),
        (lambda: optimise_grid(FLOW, steps=(2,), solver="heun"), "^solver: got 'heun'"),
        (
            lambda: optimise_grid(
                FLOW,
                steps=(2,),
                method="refined",
                velocity=lambda x, t: x,
                start=Grid([0.9, 0.5, 0.0], RectifiedFlow()),
            ),
            "^start: got Grid",
        ),
        (lambda: optimise_mixed(FLOW, FLOW.velocities, 2, 3), "^second_steps: got 3"),
        (lambda: optimise_mixed(FLOW, FLOW.velocities, 9, 3), "^steps: got 9"),
        (lambda: optimise_mixed(FLOW, FLOW.velocities, 2, 1, solver="heun"), "^solver"),
        (lambda: optimise_mixed(FLOW, FLOW.velocities[1:], 2, 1), "^second: got 'shape"),
        (lambda: Trajectories(FLOW.grid, FLOW.states[1:], FLOW.velocities), "^states: got 'shape"),
        (lambda: Trajectories(FLOW.grid, FLOW.states * math.nan, FLOW.velocities), "^states: got.*not finite"),
        (lambda: Trajectories(FLOW.grid, FLOW.states.half(), FLOW.velocities), "^states: got torch.float16"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
