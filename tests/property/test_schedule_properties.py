"""Laws, grids, solvers and the optimiser on random arguments."""

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from distillrs import random
from distillrs.schedule import (
    EDM,
    VP,
    Grid,
    LogitNormal,
    LogNormal,
    Nested,
    RectifiedFlow,
    Residual,
    Segments,
    Shifted,
    Stratified,
    Trajectories,
    Triangle,
    Trig,
    Uniform,
    UShaped,
    coefficients,
    evaluations,
    integrate,
    karras,
    optimise_grid,
    optimise_mixed,
    spaced,
)  # fmt: skip
from distillrs.step import Step
from distillrs.testing import strategies

SIMPLE = st.one_of(
    st.builds(lambda low, width: Uniform(low, low + width), st.floats(0, 0.5), st.floats(0.01, 0.5)),
    st.builds(LogitNormal, st.floats(-2, 2), st.floats(0.1, 2)),
    st.builds(LogNormal, st.floats(-3, 3), st.floats(0.2, 2), tails=st.sampled_from(["clip", "cut"])),
    st.builds(UShaped, st.floats(0.1, 50)),
)
LAWS = st.one_of(
    SIMPLE, st.builds(Shifted, SIMPLE, st.floats(0.2, 5)), st.builds(Stratified, SIMPLE, st.integers(1, 300))
)
PAIRS = st.one_of(
    st.builds(Triangle, st.floats(0, 0.6), st.floats(0, 0.4), LAWS, maximum_gap=st.floats(0.05, 1)),
    st.builds(Segments, st.integers(1, 9), LAWS),
    st.builds(Nested, st.integers(1, 20)),
)
STEPS = strategies.steps()
CLOSED = st.sampled_from([EDM(5.0), RectifiedFlow(), Trig(0.7), VP(), VP.cosine()])


@st.composite
def grids(draw, path=CLOSED, most=8):
    path = draw(path)
    count = draw(st.integers(2, most + 1))
    cuts = draw(st.lists(st.integers(1, 10**6 - 1), min_size=count, max_size=count, unique=True))
    return Grid([cut / 10**6 for cut in sorted(cuts, reverse=True)], path)


def normal(name, *shape):
    return random.normal(1, *shape, step=0, name=name, dtype=torch.float64)[0]


@given(LAWS, st.floats(0.01, 0.99))
def test_quantiles_undo_distribution_functions(law, share):
    u = torch.tensor([share, min(1.0, share * 1.01)], dtype=torch.float64)
    t = law.quantile(u)
    assert float(t[1]) >= float(t[0])
    assume(bool(((t > 0) & (t < 1)).all()))
    assert torch.allclose(law.cdf(t), u, atol=1e-9)


@given(LAWS, STEPS, st.integers(0, 40), st.integers(0, 40), st.floats(0, 1), st.floats(0, 1))
def test_draws_belong_to_their_units_and_keep_their_bounds(law, step, first, second, one, other):
    whole = law.draw(first + second, step=step)
    parts = [
        range(step.first_unit, step.first_unit + first),
        range(step.first_unit + first, step.first_unit + first + second),
    ]
    assert torch.equal(torch.cat([law.draw(part, step=step) for part in parts]), whole)
    assert bool(((whole >= 0) & (whole <= 1)).all())
    low, high = sorted((one, other))
    bounded = law.draw(first + second, step=step, low=low, high=high)
    assert bool(((bounded >= low) & (bounded <= high)).all())


@given(PAIRS, STEPS, st.integers(1, 40))
def test_pairs_are_in_order_and_belong_to_their_units(law, step, count):
    times = law.draw(count, step=step)
    assert bool(((times.r >= 0) & (times.r <= times.t) & (times.t <= 1)).all())
    if times.middle is not None:
        assert bool(((times.r < times.middle) & (times.middle < times.t)).all())
    last = law.draw(range(step.first_unit + count - 1, step.first_unit + count), step=step)
    assert torch.equal(last.t, times.t[-1:])
    assert torch.equal(last.r, times.r[-1:])


@given(grids(), st.sampled_from([RectifiedFlow(), Trig(1.0), EDM(1e4)]))
def test_grids_travel_and_keep_their_levels_on_another_path(grid, other):
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert bool((grid.times.diff() < 0).all())
    assert bool((grid.log_snr.diff() > 0).all())
    assume(float(grid.log_snr[0]) > float(other.log_snr(1.0)))
    moved = grid.on(other)
    assert torch.allclose(moved.log_snr, grid.log_snr, rtol=1e-8, atol=1e-8)
    assert torch.allclose(moved.ratios, grid.ratios, rtol=1e-7)


@given(st.integers(1, 60), st.floats(1e-3, 0.5), st.floats(1.0, 80.0), st.floats(1, 12))
def test_karras_grids_fall_from_one_end_to_the_other(steps, low, high, rho):
    grid = karras(steps, low, high, rho)
    assert float(grid.sigmas[0]) == pytest.approx(high, rel=1e-12)
    assert float(grid.sigmas[-1]) == 0
    if steps > 1:
        assert float(grid.sigmas[-2]) == pytest.approx(low, rel=1e-12)
        powers = grid.sigmas[:-1] ** (1 / rho)
        assert torch.allclose(powers.diff(), powers.diff().mean(), rtol=1e-6, atol=1e-12)


@given(grids(), st.sampled_from(["ddim", "dpm++2m"]))
def test_exponential_solvers_carry_constant_data_along_the_path(grid, solver):
    """x = alpha x0 + sigma eps stays on its path, whatever the steps: the multistep correction vanishes."""
    x0, noise = normal("x", 3), normal("e", 3)
    state = grid.path.corrupt(x0, noise, grid.times[0])
    states = integrate(grid, state, lambda x, t: x0, solver=solver, kind="x0", every=True)
    for time, found in zip(grid.times, states, strict=True):
        expected = grid.path.corrupt(x0, noise, time)
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8 * float(1 + state.abs().max()))


@given(grids(), st.sampled_from(["euler", "heun", "midpoint", "ddim", "dpm++2m"]))
def test_solvers_are_linear_in_linear_velocities_and_count_their_calls(grid, solver):
    calls = []

    def predict(x, t):
        calls.append(float(t))
        return 0.3 * x

    x, y = normal("x", 4), normal("y", 4)
    kind = "velocity" if solver in ("euler", "heun", "midpoint") else "x0"
    one, other, both = (integrate(grid, start, predict, solver=solver, kind=kind) for start in (x, y, 2 * x - y))
    assert torch.allclose(both, 2 * one - other, rtol=1e-8, atol=1e-8 * float(1 + both.abs().max()))
    assert len(calls) == 3 * evaluations(grid, solver)


@given(grids())
def test_euler_is_exact_for_a_constant_velocity(grid):
    x, velocity = normal("x", 3), normal("v", 3)
    for solver in ("euler", "heun", "midpoint"):
        end = integrate(grid, x, lambda x, t: velocity, solver=solver)
        assert torch.allclose(end, x + float(grid.times[-1] - grid.times[0]) * velocity, rtol=1e-11, atol=1e-11)


FLOWS = st.sampled_from([RectifiedFlow(), Trig(1.0), VP()])


@st.composite
def recorded(draw):
    grid = draw(grids(FLOWS, most=6))
    seed = draw(st.integers(0, 100))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)))
    states = random.normal(grid.steps + 1, *shape, step=Step(0, seed=seed), name="x", dtype=torch.float64)
    velocities = random.normal(grid.steps, *shape, step=Step(0, seed=seed), name="v", dtype=torch.float64)
    return Trajectories(grid, states, velocities)


def pair_cost(trajectories, i, j, solver, velocities):
    """One step by the solver's own coefficients, alone."""
    times, path = trajectories.grid.times, trajectories.grid.path
    weights = coefficients(Grid(times[[i, j]], path), solver)
    x, v = trajectories.states[i], velocities[i]
    prediction = path.convert(v, x, times[i], kind="velocity", to=weights.kind)
    return float((weights.state[0] * x + weights.current[0] * prediction - trajectories.states[j]).square().sum())


@given(recorded(), st.sampled_from(["euler", "ddim"]))
def test_the_local_optimum_is_the_cheapest_of_all_grids(trajectories, solver):
    n = trajectories.grid.steps
    cost = {
        (i, j): pair_cost(trajectories, i, j, solver, trajectories.velocities)
        for i, j in itertools.combinations(range(n + 1), 2)
    }
    found = optimise_grid(trajectories, steps=range(1, n + 1), solver=solver)
    for count in range(1, n + 1):
        walks = [(0, *inner, n) for inner in itertools.combinations(range(1, n), count - 1)]
        best = min(sum(cost[pair] for pair in itertools.pairwise(walk)) for walk in walks)
        assert found[count].error == pytest.approx(math.sqrt(best / trajectories.states[0].numel()), rel=1e-6, abs=1e-9)
        assert found[count].grid.steps == count


@given(recorded(), st.sampled_from(["euler", "ddim"]), st.data())
def test_the_mixed_optimum_is_the_cheapest_of_all_choices(trajectories, solver, data):
    n = trajectories.grid.steps
    count = data.draw(st.integers(1, n))
    cheap = data.draw(st.integers(0, count))
    second = trajectories.velocities.flip(0)
    cost = [
        {(i, j): pair_cost(trajectories, i, j, solver, each) for i, j in itertools.combinations(range(n + 1), 2)}
        for each in (trajectories.velocities, second)
    ]
    best = min(
        sum(cost[place in chosen][pair] for place, pair in enumerate(itertools.pairwise((0, *inner, n))))
        for inner in itertools.combinations(range(1, n), count - 1)
        for chosen in itertools.combinations(range(count), cheap)
    )
    found = optimise_mixed(trajectories, second, count, cheap, solver=solver)
    assert found.error == pytest.approx(math.sqrt(best / trajectories.states[0].numel()), rel=1e-6, abs=1e-9)


@given(st.integers(2, 20), st.sampled_from(["time", "angle", "log_snr"]), st.floats(0.5, 0.99), st.floats(0.01, 0.4))
def test_equal_steps_are_equal_by_their_clock(steps, clock, start, end):
    path = Residual() if clock == "time" else RectifiedFlow()
    grid = spaced(steps, path, of=clock, start=start, end=end)
    gaps = path.clock(grid.times, to=clock).diff()
    assert torch.allclose(gaps, gaps.mean(), rtol=1e-8)
