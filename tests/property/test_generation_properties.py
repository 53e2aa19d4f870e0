"""Metrics of generated samples against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.evaluate import generation
from distillrs.evaluate.generation import (
    class_histogram,
    frechet_distance,
    maximum_mean_discrepancy,
    neighbourhood_scores,
    paired_rmse,
    total_variation,
)  # fmt: skip
from distillrs.step import Step


@st.composite
def two_sets(draw, least=4):
    rows, others, width = draw(st.integers(least, 12)), draw(st.integers(least, 12)), draw(st.integers(1, 4))
    step = Step(0, seed=draw(st.integers(0, 1000)))
    x = random.normal(rows, width, step=step, name="x", dtype=torch.float64)
    y = 0.3 + 1.4 * random.normal(others, width, step=step, name="y", dtype=torch.float64)
    if draw(st.booleans()):  # ties and repeated rows
        x, y = x.round(), y.round()
    return x, y


def distance(a, b):
    return math.dist(a.tolist(), b.tolist())


@given(two_sets(), st.integers(1, 3))
def test_neighbourhoods_against_loops(sets, k):
    x, y = sets
    radius = lambda points, i: sorted(distance(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]
    of_x, of_y = ([radius(points, i) for i in range(len(points))] for points in (x, y))
    inside = [[distance(a, b) <= of_y[j] for j, b in enumerate(y)] for a in x]
    covers = [[distance(a, b) <= of_x[i] for i, a in enumerate(x)] for b in y]
    found = neighbourhood_scores(x, y, k)
    assert found.precision == pytest.approx(np.mean([any(row) for row in inside]))
    assert found.density == pytest.approx(np.sum(inside) / (k * len(x)))
    assert found.coverage == pytest.approx(np.mean([any(row[j] for row in inside) for j in range(len(y))]))
    assert found.recall == pytest.approx(np.mean([any(row) for row in covers]))


@given(two_sets(), st.lists(st.floats(0.2, 3), min_size=1, max_size=3), st.booleans())
def test_discrepancies_against_loops(sets, bandwidths, unbiased):
    x, y = sets

    def mean(a, b, same):
        values = [
            sum(math.exp(-(distance(p, q) ** 2) / (2 * h * h)) for h in bandwidths)
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and unbiased and i == j)
        ]
        return sum(values) / len(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert maximum_mean_discrepancy(x, y, bandwidths, unbiased=unbiased) == pytest.approx(expected, abs=1e-12)
    if not unbiased:
        assert maximum_mean_discrepancy(x, x, bandwidths, unbiased=False) == pytest.approx(0, abs=1e-12)


@given(two_sets())
def test_the_frechet_distance_against_the_square_root_of_the_product(sets):
    x, y = (points.numpy() for points in sets)
    first, second = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    roots = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0, None))
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(first) + np.trace(second) - 2 * roots.sum()
    assert frechet_distance(*sets) == pytest.approx(max(expected, 0), rel=1e-6, abs=1e-6)
    assert frechet_distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-6)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 25), st.integers(0, 1000))
def test_the_frechet_distance_of_fewer_rows_than_features(rows, others, width, seed):
    step = Step(0, seed=seed)
    x = random.normal(rows, width, step=step, name="x", dtype=torch.float64)
    y = 0.3 + 1.4 * random.normal(others, width, step=step, name="y", dtype=torch.float64)
    first, second = (np.cov(points.numpy().T).reshape(width, width) for points in (x, y))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(first) + np.trace(second) - 2 * cross
    # What is 0 of the covariances' eigenvalues is 1e-16 there, whose root is 1e-8.
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


@given(two_sets(), st.integers(0, 1000))
def test_histograms_count_the_class_of_the_nearest(sets, seed):
    x, y = sets
    labels = random.integers(len(y), 3, step=Step(0, seed=seed), name="labels")
    counts = [0] * (int(labels.max()) + 1)
    for a in x:
        squared = [float((a - b).square().sum()) for b in y]
        counts[int(labels[squared.index(min(squared))])] += 1
    found = class_histogram(x, y, labels)
    assert found.tolist() == pytest.approx([count / len(x) for count in counts])
    uniform = torch.full_like(found, 1 / len(found))
    expected = sum(abs(a - b) for a, b in zip(found.tolist(), uniform.tolist(), strict=True)) / 2
    assert total_variation(found, uniform) == pytest.approx(expected)


@given(two_sets(), st.integers(1, 50))
def test_tiles_do_not_change_a_result(sets, tile):
    before = generation._TILE
    whole = neighbourhood_scores(*sets, 2), maximum_mean_discrepancy(*sets, [1.0])
    try:
        generation._TILE = tile
        parts = neighbourhood_scores(*sets, 2), maximum_mean_discrepancy(*sets, [1.0])
    finally:
        generation._TILE = before
    assert parts[0] == whole[0]
    assert parts[1] == pytest.approx(whole[1], abs=1e-12)


def test_two_gaussians_have_the_known_frechet_distance():
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    # Deviations sqrt(2) and 3 sqrt(2), means 0 and 5.
    assert frechet_distance(x, 3 * x + 5) == pytest.approx(25 + (math.sqrt(18) - math.sqrt(2)) ** 2)
    assert paired_rmse(x, 3 * x) == pytest.approx(2)
    assert paired_rmse(x.float(), x) == 0


def test_a_copied_set_is_precise_and_a_collapsed_one_covers_little():
    real = random.normal(60, 3, step=0, name="r", dtype=torch.float64)
    copied = neighbourhood_scores(real.clone(), real, 5)
    assert (copied.precision, copied.recall, copied.coverage) == (1, 1, 1)
    collapsed = neighbourhood_scores(real[:1] + 1e-3 * random.normal(60, 3, step=1, name="c").double(), real, 5)
    assert collapsed.coverage < 0.3
    assert collapsed.recall < 0.1


REAL = torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_rmse(REAL, REAL[:3]), "^samples: got"),
        (lambda: frechet_distance(REAL[:1], REAL), "^samples: got"),
        (lambda: frechet_distance(REAL[:, :1], REAL), "^samples: got"),
        (lambda: frechet_distance(REAL, REAL / 0), "^real: got 'values that are not finite'"),
        (lambda: neighbourhood_scores(REAL, REAL, 6), "^k: got 6"),
        (lambda: maximum_mean_discrepancy(REAL, REAL, []), "^bandwidths: got"),
        (lambda: maximum_mean_discrepancy(REAL, REAL, [0.0]), "^bandwidths: got"),
        (lambda: class_histogram(REAL, REAL, torch.zeros(3, dtype=torch.int64)), "^labels: got"),
        (lambda: total_variation(torch.ones(2), torch.ones(3)), "^first: got"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
