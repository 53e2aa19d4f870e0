"""Blended and mixed states, and a teacher's paths from a store."""

import math

import pytest
import torch
from torch import nn

from distillrs import random, schedule
from distillrs.diffusion import (
    JVP,
    Batch,
    Blend,
    Data,
    Diagonal,
    Endpoint,
    FlowMap,
    Lagrangian,
    Mix,
    Network,
    NoisedData,
    PriorOnly,
    StoredPaths,
    TeacherPath,
)  # fmt: skip
from distillrs.errors import ArgumentError, DataError
from distillrs.evaluate.beds import Gaussian
from distillrs.schedule import RectifiedFlow, Times, Triangle, Uniform
from distillrs.step import Step
from distillrs.trajectory import Column, Schema, Store

BED = Gaussian((0.7, -0.4), (0.6, 1.3))
PATH = RectifiedFlow()
GRID = schedule.spaced(8, PATH, start=0.95, end=0.05)
STEP = Step(3, seed=5)
ROWS = 64
X0 = BED.sample(ROWS, step=1)
NOISE = random.normal(ROWS, 2, step=2, name="noise", dtype=torch.float64)


def exact_paths():
    return torch.stack([BED.flow(NOISE, 1.0, float(time), PATH) for time in GRID.times], 1)


BATCH = Batch(X0, noise=NOISE, path_states=exact_paths())
TIMES = Times(*Triangle(diagonal=0.25, law=Uniform(0.1, 0.9)).draw(ROWS, step=STEP))
WITH_MIDDLE = TIMES._replace(middle=(TIMES.t + TIMES.r) / 2)


class Exact(nn.Module):
    """The network whose map is the exact flow of a rectified flow, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x, t, r):
        near = ((t - r).abs() < 1e-3)[:, None]
        way = torch.where(near, torch.ones_like(near, dtype=torch.float64), (r - t)[:, None])
        on = BED.on(PATH).velocity(x, t)
        return self.factor * torch.where(near, on, (BED.flow(x, t, r, PATH) - x) / way)


def loss_of(factor, states):
    objective = FlowMap(
        Network(Exact(factor)), path=PATH, source=BED.on(PATH), residual=Lagrangian(JVP()), states=states,
        pairs=Triangle(diagonal=0.2, law=Uniform(0.1, 0.9)),
    )  # fmt: skip
    return math.sqrt(float(objective(BATCH, 5).terms["loss"]))


@pytest.mark.parametrize("states", [Blend(NoisedData(), TeacherPath(GRID)), Mix(NoisedData(), TeacherPath(GRID), 0.3)])
def test_the_exact_map_has_no_residual_at_them(states):
    assert loss_of(1.0, states) < 1e-7
    assert loss_of(1.01, states) > 1e-3


@pytest.mark.parametrize("times", [TIMES, WITH_MIDDLE], ids=["two", "three"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_blend_is_the_weighted_sum_at_the_times_of_the_one_that_moves_them(times, turned):
    teacher = TeacherPath(GRID)
    other = teacher.draw(BATCH, times, PATH, STEP)
    own = NoisedData().draw(BATCH, Times(other.t, other.r, other.middle), PATH, STEP)
    share = random.uniform(ROWS, step=STEP, name="blend", dtype=torch.float64)[:, None]
    for given in (None, 0.25):
        weight = share if given is None else given
        if turned:
            found = Blend(teacher, NoisedData(), given).draw(BATCH, times, PATH, STEP)
            expected = weight * other.x + (1 - weight) * own.x
        else:
            found = Blend(NoisedData(), teacher, given).draw(BATCH, times, PATH, STEP)
            expected = weight * own.x + (1 - weight) * other.x
        torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-14)
        assert torch.equal(found.t, other.t)
        assert torch.equal(found.r, other.r)
        assert (found.middle is None) == (times.middle is None)
        assert found.end is found.x0 is found.noise is None
    assert 0.3 < float(share.mean()) < 0.7


def test_a_blend_at_its_ends_is_one_of_the_two():
    teacher = TeacherPath(GRID).draw(BATCH, TIMES, PATH, STEP)
    assert torch.equal(Blend(NoisedData(), TeacherPath(GRID), 0.0).draw(BATCH, TIMES, PATH, STEP).x, teacher.x)
    prior = Blend(PriorOnly((2,), torch.float64), NoisedData(), 1.0).draw(BATCH, TIMES, PATH, STEP)
    assert torch.equal(prior.x, NOISE)
    assert bool((prior.t == 1).all())


def test_noise_that_is_drawn_is_that_of_both():
    batch = Batch(X0)
    own = NoisedData().draw(batch, TIMES, PATH, STEP)
    both = Blend(NoisedData(), Mix(NoisedData(), NoisedData()), 0.4).draw(batch, TIMES, PATH, STEP)
    torch.testing.assert_close(both.x, own.x, rtol=0, atol=1e-14)


def test_half_precision_keeps_its_type():
    batch = Batch(X0.to(torch.bfloat16), path_states=BATCH.path_states.to(torch.bfloat16))
    for states in (Blend(NoisedData(), TeacherPath(GRID)), Mix(NoisedData(), TeacherPath(GRID))):
        assert states.draw(batch, TIMES, PATH, STEP).x.dtype == torch.bfloat16


@pytest.mark.parametrize("times", [TIMES, WITH_MIDDLE], ids=["two", "three"])
def test_each_row_of_a_mix_is_one_of_the_two_with_its_own_times_and_end(times):
    first, second = (kind.draw(BATCH, times, PATH, STEP) for kind in (NoisedData(), TeacherPath(GRID)))
    chosen = random.uniform(ROWS, step=STEP, name="mix", dtype=torch.float64) < 0.3
    assert 5 < int(chosen.sum()) < 35
    found = Mix(NoisedData(), TeacherPath(GRID), 0.3).draw(BATCH, times, PATH, STEP)
    for name in ("x", "t", "r", "end"):
        own, one, other = (getattr(drawn, name) for drawn in (found, first, second))
        assert torch.equal(own[chosen], one[chosen]), name
        assert torch.equal(own[~chosen], other[~chosen]), name
    assert (found.middle is None) == (times.middle is None)
    assert found.x0 is found.noise is None
    for share, whole in ((1.0, first), (0.0, second)):
        assert torch.equal(Mix(NoisedData(), TeacherPath(GRID), share).draw(BATCH, times, PATH, STEP).x, whole.x)


@pytest.mark.parametrize("states", [Blend(NoisedData(), TeacherPath(GRID)), Mix(NoisedData(), TeacherPath(GRID))])
def test_they_do_not_depend_on_how_a_batch_is_split(states):
    whole = states.draw(BATCH, TIMES, PATH, STEP).x
    half = ROWS // 2
    for first in (0, half):
        rows = slice(first, first + half)
        batch = Batch(X0[rows], noise=NOISE[rows], path_states=BATCH.path_states[rows])
        times = Times(TIMES.t[rows], TIMES.r[rows])
        assert torch.equal(states.draw(batch, times, PATH, Step(3, seed=5, first_unit=first)).x, whole[rows])


def test_what_is_known_is_known_of_both():
    teacher, noised, prior = TeacherPath(GRID), NoisedData(), PriorOnly((2,))
    assert Mix(noised, noised).knows_noise
    assert not Mix(noised, teacher).knows_noise
    assert Mix(noised, teacher).may_know_ends
    assert not Mix(teacher, prior).may_know_ends
    assert Mix(noised, teacher).moves_times
    assert not Mix(noised, noised).moves_times
    blend = Blend(noised, noised)
    assert not any((blend.knows_noise, blend.may_know_ends, blend.moves_times))
    assert Blend(noised, teacher).moves_times


def build(states, source=None, residual=None):
    residual = Diagonal() if residual is None else residual
    return FlowMap(Network(nn.Linear(2, 2), times="t_r"), path=PATH, source=source, residual=residual, states=states)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(Mix(NoisedData(), TeacherPath(GRID)), Data()), r"^source: got Data.*not noised data"),
        (lambda: build(Blend(NoisedData(), NoisedData()), Data()), r"^source: got Data.*not noised data"),
        (lambda: build(Blend(NoisedData(), TeacherPath(GRID)), residual=Endpoint()), r"^states: got Blend"),
        (lambda: build(Mix(TeacherPath(GRID), PriorOnly((2,))), residual=Endpoint()), r"^states: got Mix"),
        (lambda: Blend(NoisedData(), "teacher"), r"^second: got 'teacher', allowed is states"),
        (lambda: Mix(NoisedData, NoisedData()), r"^first: got .*NoisedData.*, allowed is states"),
        (lambda: Blend(TeacherPath(GRID), PriorOnly((2,))), r"^second: got PriorOnly.*TeacherPath chooses the times"),
        (lambda: Blend(NoisedData(), NoisedData(), 1.5), r"^share: got 1.5"),
        (lambda: Mix(NoisedData(), NoisedData(), None), r"^share: got None"),
        (lambda: Mix(Mix(NoisedData(), NoisedData()), NoisedData()), r"^first: got Mix.*the same shares"),
        (lambda: Blend(NoisedData(), Blend(NoisedData(), NoisedData())), r"^second: got Blend.*the same shares"),
        (
            lambda: Mix(NoisedData(), PriorOnly((3,))).draw(Batch(X0), TIMES, PATH, STEP),
            r"^second: got 'states of shape \(64, 3\)', allowed is that of the first, \(64, 2\)",
        ),
        (lambda: Mix(NoisedData(), TeacherPath(GRID)).draw(Batch(X0), TIMES, PATH, STEP), r"^path_states: got None"),
    ],
)
def test_refusals_of_states(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_paths_come_back_from_a_store_as_they_were_recorded(tmp_path):
    states = exact_paths().float()
    paths = StoredPaths.create(tmp_path / "paths", GRID, shape=(2,))
    paths.record(states[:3])
    paths.record(states[2:5] + 1, first=2)
    assert len(paths) == 5
    drawn = paths.draw(200, step=STEP)
    assert drawn.shape == (200, 9, 2)
    which = random.integers(200, 5, step=STEP, name="path")
    # The path that was there already has stayed.
    expected = torch.cat([states[:3], states[3:5] + 1])
    assert torch.equal(drawn, expected[which])
    assert torch.equal(paths.draw(range(50, 60), step=STEP), drawn[50:60])
    assert paths.draw(0, step=STEP).shape == (0, 9, 2)
    again = StoredPaths(Store.open(tmp_path / "paths"), GRID)
    assert torch.equal(again.draw(20, step=STEP), drawn[:20])
    batch = again.batch(20, step=STEP, condition={"label": torch.zeros(20)}, null_condition={"label": torch.ones(20)})
    assert torch.equal(batch.path_states, drawn[:20])
    objective = FlowMap(Network(_TwoTimes(), times="t_r"), path=PATH, residual=Endpoint(), states=TeacherPath(GRID))
    assert math.isfinite(float(objective(Batch(path_states=batch.path_states), STEP).total.detach()))


class _TwoTimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, t, r):
        return self.layer(torch.cat([x, t[:, None], r[:, None]], 1))


def test_refusals_of_stored_paths(tmp_path):
    paths = StoredPaths.create(tmp_path / "paths", GRID, shape=(2,))
    with pytest.raises(DataError, match=r"no complete path"):
        paths.draw(3, step=0)
    for states in (torch.zeros(3, 8, 2), [1.0], torch.zeros(3)):
        with pytest.raises(ArgumentError, match=r"^states: got .*, allowed is a tensor \[n, 9, \.\.\.\]"):
            paths.record(states)
    with pytest.raises(ArgumentError, match=r"^state: got"):
        paths.record(torch.zeros(1, 9, 3))
    with pytest.raises(ArgumentError, match=r"^first: got True"):
        paths.record(torch.zeros(1, 9, 2), first=True)
    with pytest.raises(ArgumentError, match=r"^grid: got Grid.*the times that the store was made for"):
        StoredPaths(paths.store, schedule.spaced(8, PATH, end=0.1))
    with pytest.raises(ArgumentError, match=r"^grid: got 'tuple'"):
        StoredPaths(paths.store, (1.0, 0.0))
    with pytest.raises(ArgumentError, match=r"^store: got 'str'"):
        StoredPaths("paths", GRID)
    with pytest.raises(ArgumentError, match=r"^shape: got 2"):
        StoredPaths.create(tmp_path / "other", GRID, shape=2)
    two = Store.create(tmp_path / "two", Schema(a=Column((2,), "float32"), b=Column((), "float32")))
    with pytest.raises(ArgumentError, match=r"^store: got 'columns a, b'"):
        StoredPaths(two, GRID)
    plain = Store.create(tmp_path / "plain", Schema(x=Column((2,), "float32")))
    with plain.begin("short") as writer:
        writer.append(x=torch.zeros(2))
    with pytest.raises(DataError, match=r"short: it has 1 records, the grid has 9 times"):
        StoredPaths(plain, GRID).draw(1, step=0)
