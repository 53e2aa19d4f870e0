"""Picks of texts and other items, and choice within a budget."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import distillrs as dr
from distillrs import select


@functools.cache
def edits(left: str, right: str) -> int:
    """The table of all prefixes."""
    row = list(range(len(right) + 1))
    for place, character in enumerate(left, 1):
        before, row[0] = row[0], place
        for column, other in enumerate(right, 1):
            before, row[column] = row[column], min(before + (character != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


def plain(items, k, metric, start):
    ids, gains, near = [], [], [float("inf")] * len(items)
    pick = start
    for _ in range(k):
        ids.append(pick)
        gains.append(near[pick])
        near = [min(old, metric(item, items[pick])) for old, item in zip(near, items, strict=True)]
        free = [place for place in range(len(items)) if place not in ids]
        pick = max(free, key=lambda place: (near[place], -place), default=0)
    return ids, gains


texts = st.text(st.sampled_from("abé😀"), max_size=8) | st.text("ab", min_size=60, max_size=140)


@given(items=st.lists(texts, min_size=1, max_size=12), data=st.data())
def test_texts_are_picked_as_by_the_plain_rule(items, data):
    k, start = data.draw(st.integers(0, len(items))), data.draw(st.integers(0, len(items) - 1))
    expected = plain(items, k, edits, start)
    for metric in ("levenshtein", edits):
        found = select.max_min(items, k, metric=metric, start=start)
        assert (found.ids.tolist(), found.gains.tolist()) == expected
    found = select.max_min(items, k, metric="normalised_levenshtein", start=start)
    shares = plain(items, k, lambda a, b: edits(a, b) / max(len(a), len(b), 1), start)
    assert (found.ids.tolist(), found.gains.tolist()) == shares


@given(items=st.lists(st.integers(-5, 5) | st.floats(-5, 5), min_size=1, max_size=100), data=st.data())
def test_items_are_picked_as_by_the_plain_rule(items, data):
    def metric(left, right):
        return abs(left - right) ** 2  # no triangle inequality

    k, start = data.draw(st.integers(0, len(items))), data.draw(st.integers(0, len(items) - 1))
    found = select.max_min(items, k, metric=metric, start=start)
    assert (found.ids.tolist(), found.gains.tolist()) == plain(items, k, metric, start)
    assert found.prefix(k // 2).ids.tolist() == select.max_min(items, k // 2, metric=metric, start=start).ids.tolist()


def test_the_first_pick_is_drawn_by_the_seed_and_a_metrics_error_arrives():
    firsts = {int(select.max_min(range(100), 1, metric=lambda a, b: 1.0, seed=seed).ids[0]) for seed in range(30)}
    assert len(firsts) > 20
    assert select.max_min([], 0).ids.shape == (0,)

    def broken(left, right):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        select.max_min(range(5), 2, metric=broken)


def test_few_distances_are_asked_for():
    asked = []

    def metric(left, right):
        asked.append((left, right))
        return abs(left - right)

    select.max_min([number * 7919 % 1009 for number in range(400)], 50, metric=metric, start=0)
    assert len(asked) < 400 * 49 / 2


def value_and_cost(ids, values, costs):
    return sum(values[i] for i in ids), sum(costs[i] for i in ids)


@given(
    items=st.lists(st.tuples(st.integers(-3, 9), st.integers(0, 7).map(lambda cost: 2 * cost)), max_size=9),
    limit=st.integers(0, 40),
)
def test_no_choice_within_the_budget_is_worth_more(items, limit):
    values, costs = [float(value) for value, _ in items], [cost for _, cost in items]
    found = select.budget(torch.tensor(values), torch.tensor(costs, dtype=torch.int64), limit)
    value, cost = value_and_cost(found.tolist(), values, costs)
    assert cost <= limit
    assert found.tolist() == sorted(set(found.tolist()))
    subsets = itertools.chain.from_iterable(itertools.combinations(range(len(items)), size) for size in range(10))
    pairs = ((*value_and_cost(subset, values, costs), list(subset)) for subset in subsets)
    allowed = [(worth, ids) for worth, price, ids in pairs if price <= limit and all(values[i] > 0 for i in ids)]
    most = max(worth for worth, _ in allowed)
    assert value == most
    # Of equal choices the one with the lowest items; a longer one comes before its own beginning.
    assert found.tolist() == min((ids for worth, ids in allowed if worth == most), key=lambda ids: [*ids, 99])


def test_arrays_are_chosen_from_as_tensors_are():
    values, costs = [3.0, 1.0, 2.5], [2, 1, 3]
    expected = select.budget(torch.tensor(values), torch.tensor(costs), 4)
    assert torch.equal(select.budget(np.array(values), np.array(costs, np.int32), 4), expected)
    scores = np.array([1.0, 3.0, 2.0, 0.0], np.float32)
    assert select.stratified(scores, 2).ids.tolist() == [1, 2]
    assert select.max_min(np.array(["a", "abc"]).tolist(), 2, start=0).gains.tolist() == [float("inf"), 2.0]
    points = np.array([0.0, 5.0, 1.0])
    assert select.max_min(points, 2, metric=lambda a, b: abs(a - b), start=0).ids.tolist() == [0, 1]


ONE = torch.tensor([1.0, 2.0])
TWO = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select.max_min(["a", "b"], 3), "k: got 3"),
        (lambda: select.max_min("ab", 1), "items: got 'ab'"),
        (lambda: select.max_min(3, 1), "items: got 'int'"),
        (lambda: select.max_min({"a": 1}, 1), "items: got 'dict'"),
        (lambda: select.max_min({"a"}, 1), "items: got 'set'"),
        (lambda: select.max_min(torch.tensor(1.0), 1, metric=max), "items: got 'Tensor'"),
        (lambda: select.max_min(["a", "b"], 1, metric=np.array([1, 2])), "metric: got array"),
        (lambda: select.max_min(["a", "b"], 1, start=2), "start: got 2"),
        (lambda: select.max_min(["a", "b"], 1, seed=-1), "seed: got -1"),
        (lambda: select.max_min(["a", 1], 1), "items: got 'int at 1'"),
        (lambda: select.max_min(["a", "\udc80"], 1), "items: got 'a lone surrogate at 1'"),
        (lambda: select.max_min(["\ud800"], 1, metric="normalised_levenshtein"), "items: got 'a lone surrogate at 0'"),
        (lambda: select.max_min(["a", "b"], 1, metric="hamming"), "metric: got 'hamming'"),
        (lambda: select.max_min([1, 2], 2, metric=lambda a, b: float("nan")), "metric: got NaN between items"),
        (lambda: select.max_min([1, 2], 2, metric=lambda a, b: -1), "metric: got -1 between items"),
        (lambda: select.max_min([1, 2], 2, metric=lambda a, b: "far"), "metric: got \"'far' between items"),
        (lambda: select.budget(ONE, TWO, -1), "budget: got -1"),
        (lambda: select.budget(ONE / 0, TWO, 1), "values: got inf in row 0"),
        (lambda: select.budget(TWO, TWO, 1), "values: got 'torch.int64"),
        (lambda: select.budget(ONE, TWO[:1], 1), "costs: got 'torch.int64"),
        (lambda: select.budget(ONE, ONE, 1), "costs: got 'torch.float32"),
        (lambda: select.budget(ONE, -TWO, 1), "costs: got '-1 in row 0'"),
        (lambda: select.budget(ONE, TWO * 2**40 + 1, 2**45), "budget: got"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(call, message):
    with pytest.raises(dr.errors.ArgumentError) as refused:
        call()
    assert str(refused.value).startswith(message)
