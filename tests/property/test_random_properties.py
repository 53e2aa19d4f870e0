import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillrs as dr
from distillrs import random

ids = st.lists(st.integers(0, 2**62), max_size=40)
steps = st.builds(dr.Step, index=st.integers(0, 2**40), seed=st.integers(0, 2**64 - 1))
names = st.text(max_size=10)
shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
KINDS = {
    "uniform": lambda units, *shape, **rest: random.uniform(units, *shape, **rest),
    "double": lambda units, *shape, **rest: random.uniform(units, *shape, dtype=torch.float64, **rest),
    "normal": lambda units, *shape, **rest: random.normal(units, *shape, **rest),
    "integers": lambda units, *shape, **rest: random.integers(units, 1000, *shape, **rest),
}
kinds = st.sampled_from(sorted(KINDS)).map(KINDS.__getitem__)


@given(draw=kinds, units=ids, step=steps, name=names, shape=shapes)
def test_a_units_draw_does_not_depend_on_its_batch(draw, units, step, name, shape):
    together = draw(torch.tensor(units, dtype=torch.int64), *shape, step=step, name=name)
    for row, unit in zip(together, units, strict=True):
        assert torch.equal(row, draw(range(unit, unit + 1), *shape, step=step, name=name)[0])


@given(draw=kinds, first=st.integers(0, 2**60), cuts=st.lists(st.integers(0, 9), max_size=6), step=steps)
def test_ranks_that_split_a_batch_draw_what_one_would(draw, first, cuts, step):
    whole = draw(range(first, first + sum(cuts)), 3, step=step, name="x")
    parts, at = [], first
    for count in cuts:
        parts.append(draw(count, 3, step=dr.Step(step.index, step.seed, first_unit=at), name="x"))
        at += count
    assert torch.equal(whole, torch.cat([*parts, whole[:0]]))


@given(draw=kinds, units=ids, step=steps, data=st.data())
def test_the_order_of_units_orders_the_draws(draw, units, step, data):
    order = data.draw(st.permutations(range(len(units))))
    straight = draw(torch.tensor(units, dtype=torch.int64), 2, step=step, name="x")
    shuffled = draw(torch.tensor([units[index] for index in order], dtype=torch.int64), 2, step=step, name="x")
    assert torch.equal(straight[order], shuffled)


@given(draw=kinds, shape=shapes.filter(lambda shape: math.prod(shape) > 0), step=steps)
def test_a_longer_draw_begins_with_the_shorter(draw, shape, step):
    long = draw(3, math.prod(shape) + 5, step=step, name="x")
    assert torch.equal(draw(3, *shape, step=step, name="x").reshape(3, -1), long[:, : math.prod(shape)])


@given(first=st.integers(0, 100), stop=st.integers(0, 100), stride=st.sampled_from([-3, -1, 2, 5]), step=steps)
def test_a_range_with_a_stride_names_its_ids(first, stop, stride, step):
    units = range(first, stop, stride)
    listed = torch.tensor(list(units), dtype=torch.int64)
    assert torch.equal(random.uniform(units, step=step, name="x"), random.uniform(listed, step=step, name="x"))


@given(n=st.integers(0, 300), step=steps, data=st.data())
def test_a_permutation_holds_everything_once_and_choices_are_its_prefixes(n, step, data):
    order = random.permutation(n, step=step, name="x")
    assert order.sort().values.tolist() == list(range(n))
    k = data.draw(st.integers(0, n))
    assert torch.equal(random.choice(n, k, step=step, name="x"), order[:k])


# The bounds below are five standard deviations of the statistic: a sound generator passes with probability 1 - 1e-6,
# and the draws are the same in every run. The last tests show that they do catch broken ones.


def assert_uniform(values: torch.Tensor) -> None:
    values = values.double().flatten()
    count = values.numel()
    assert abs(float(values.mean()) - 1 / 2) < 5 / math.sqrt(12 * count)
    assert abs(float(values.var()) - 1 / 12) < 5 / math.sqrt(180 * count)
    cells = torch.bincount((values * 256).long(), minlength=256).double()
    chi_square = float(((cells - count / 256).square() / (count / 256)).sum())
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)
    low = torch.bincount((values * 2**24).long() % 256, minlength=256).double()
    assert abs(float(((low - count / 256).square() / (count / 256)).sum()) - 255) < 5 * math.sqrt(2 * 255)


def assert_uncorrelated(first: torch.Tensor, second: torch.Tensor) -> None:
    pair = torch.stack([first.double().flatten(), second.double().flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(pair.shape[1])


VIEWS = {
    "positions": lambda draw: draw(1, 200_000, step=dr.Step(0), name="x"),
    "units": lambda draw: draw(200_000, step=dr.Step(0), name="x"),
    "steps": lambda draw: torch.cat([draw(4, 5, step=dr.Step(index), name="x") for index in range(10_000)]),
    "seeds": lambda draw: torch.cat([draw(4, 5, step=dr.Step(0, seed=index), name="x") for index in range(10_000)]),
    "names": lambda draw: torch.cat([draw(4, 5, step=dr.Step(0), name=f"x{index}") for index in range(10_000)]),
}


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_uniforms_are_uniform_and_serially_uncorrelated_along(view):
    for dtype in (torch.float32, torch.float64):
        values = VIEWS[view](lambda *a, dtype=dtype, **k: random.uniform(*a, dtype=dtype, **k)).flatten()
        assert_uniform(values)
        for lag in (1, 2, 3, 4, 7, 20):
            assert_uncorrelated(values[lag:], values[:-lag])


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_normals_have_the_moments_of_a_normal_along(view):
    values = VIEWS[view](random.normal).double().flatten()
    count = values.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float(values.pow(power).mean()) - moment) < 5 * math.sqrt(variance / count)
    assert_uniform(torch.special.ndtr(values))
    for lag in (1, 2, 3, 4):
        assert_uncorrelated(values[lag:], values[:-lag])
        assert_uncorrelated(values[lag:].square(), values[:-lag].square())


def test_names_seeds_steps_units_and_kinds_share_nothing():
    draws = [
        random.uniform(range(unit, unit + 100), 100, step=dr.Step(index, seed=seed), name=name)
        for index, seed, name, unit in itertools.product((0, 1), (0, 1), ("a", "b"), (0, 100))
    ]
    draws.append(torch.special.ndtr(random.normal(100, 100, step=0, name="a")))
    draws.append(random.integers(100, 2**62, 100, step=0, name="a").double() / 2**62)
    for first, second in itertools.combinations(draws, 2):
        assert_uncorrelated(first, second)


def test_integers_are_equally_likely():
    for high in (2, 3, 10, 97):
        counts = torch.bincount(random.integers(100_000, high, step=0, name="i"), minlength=high).double()
        chi_square = float(((counts - 1e5 / high).square() / (1e5 / high)).sum())
        assert abs(chi_square - (high - 1)) < 5 * math.sqrt(2 * high)


def test_orders_are_equally_likely():
    orders = torch.stack([random.permutation(4, step=index, name="o") for index in range(24_000)])
    counts = torch.bincount(orders @ torch.tensor([64, 16, 4, 1]), minlength=256).double()
    assert int((counts > 0).sum()) == 24
    assert abs(float(((counts[counts > 0] - 1000).square() / 1000).sum()) - 23) < 5 * math.sqrt(2 * 23)


def test_the_statistics_catch_broken_generators():
    sound = random.uniform(1, 200_000, step=0, name="x").flatten()
    broken = {
        "few bits": (sound * 2**14).floor() / 2**14,
        "shifted": (sound + 0.01) % 1 * 0.99,
        "repeated": sound[:50_000].repeat(4),
        "biased low bit": ((sound * 2**24).long() & ~1) / 2**24,
    }
    for values in broken.values():
        with pytest.raises(AssertionError):
            assert_uniform(values)
    with pytest.raises(AssertionError):
        assert_uncorrelated(sound[1:] + 0.02 * sound[:-1], sound[:-1])
