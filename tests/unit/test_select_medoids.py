"""k-medoids."""

import numpy as np
import pytest
import torch

import distillrs as dr
from distillrs import _core, random, select

POINTS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [5.0, 4.0], [1.0, 0.5]])
GROUPS = torch.tensor([7, -2, 7, -2, 7])
NOT_FINITE = POINTS.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(float("nan")))


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return random.normal(*shape, step=0, name="points", dtype=dtype)


def test_the_middles_of_blobs_are_found():
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    owners = torch.arange(90) % 3
    points = middles[owners] + 0.1 * normal(90, 2)
    found = select.k_medoids(points, 3, seed=4)
    assert torch.equal(owners[found.medoids][found.labels], owners)
    assert torch.equal(found.centres, points[found.medoids])
    distances = (points - found.centres[found.labels]).double().norm(dim=1)
    assert found.inertia == pytest.approx(float(distances.sum()), rel=1e-6)
    for medoid, cluster in zip(found.medoids.tolist(), range(3), strict=True):
        own = points[found.labels == cluster].double()
        sums = torch.cdist(own, own).sum(1)
        assert float(torch.cdist(points[medoid][None].double(), own).sum()) == pytest.approx(float(sums.min()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_and_layout_clusters_its_own_values(dtype):
    points = (normal(120, 2, 2, dtype=torch.float64) + 3).to(dtype)
    found = select.k_medoids(points, 6, seed=1)
    exact = select.k_medoids(points.double().flatten(1), 6, seed=1)
    assert found.centres.dtype == dtype
    assert found.centres.shape == (6, 2, 2)
    assert torch.equal(found.medoids, exact.medoids)
    assert torch.equal(found.labels, exact.labels)
    assert found.inertia == exact.inertia
    strided = points.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(select.k_medoids(strided, 6, seed=1).medoids, exact.medoids)


def test_groups_are_clustered_apart_and_keep_their_numbers():
    points, groups = normal(90, 3), torch.arange(90) % 3 * 5 - 5
    found = select.k_medoids(points, {-5: 2, 0: 1, 5: 4}, groups=groups, seed=9)
    assert found.groups.tolist() == [-5, -5, 0, 5, 5, 5, 5]
    assert torch.equal(found.groups[found.labels], groups)
    assert torch.equal(groups[found.medoids], found.groups)
    for group, first, k in ((-5, 0, 2), (0, 2, 1), (5, 3, 4)):
        rows = (groups == group).nonzero()[:, 0]
        alone = select.k_medoids(points[rows], k, groups=groups[rows], seed=9)
        assert torch.equal(found.medoids[first : first + k], rows[alone.medoids])
        assert torch.equal(found.labels[rows] - first, alone.labels)
    again = select.k_medoids(points, {-5: 2, 0: 1, 5: 4}, groups=groups, start=found.medoids)
    assert torch.equal(again.medoids, found.medoids)
    assert again.inertia == found.inertia


def test_swaps_and_seeds():
    points = normal(200, 2)
    start = torch.arange(9)
    still = select.k_medoids(points, 9, start=start, iterations=0)
    assert torch.equal(still.medoids, start)
    assert select.k_medoids(points, 9, start=start).inertia < still.inertia
    drawn = [select.k_medoids(points, 9, iterations=0, seed=seed).medoids for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert sorted(select.k_medoids(points, fraction=1.0).medoids.tolist()) == list(range(200))


def test_threads_change_nothing():
    points, before = normal(9000, 3), _core.threads()
    try:
        found = []
        for count in (1, 3):
            _core.set_threads(count)
            found.append(select.k_medoids(points, 5, start=torch.arange(5), iterations=1))
    finally:
        _core.set_threads(before)
    assert torch.equal(found[0].medoids, found[1].medoids)
    assert torch.equal(found[0].labels, found[1].labels)
    assert found[0].inertia == found[1].inertia


def test_points_that_are_all_alike():
    found = select.k_medoids(np.ones((40, 2)), 3)
    assert found.inertia == 0
    assert len(set(found.medoids.tolist())) == 3
    assert found.labels.tolist() == [0] * 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select.k_medoids(NOT_FINITE, 2), "points: got NaN in row 3, column 1"),
        (lambda: select.k_medoids(NOT_FINITE, 1, groups=GROUPS), "points: got NaN in row 3"),
        (lambda: select.k_medoids(POINTS, 0), "k: got 0"),
        (lambda: select.k_medoids(POINTS, 6), "k: got 6"),
        (lambda: select.k_medoids(POINTS), "k: got 'neither"),
        (lambda: select.k_medoids(POINTS, 3, groups=GROUPS), "k: got '3 for group -2'"),
        (lambda: select.k_medoids(POINTS, 2, start=torch.tensor([0])), "start: got '1 rows'"),
        (lambda: select.k_medoids(POINTS, 2, start=torch.tensor([0, 0])), "start: got 'a row that comes twice'"),
        (lambda: select.k_medoids(POINTS, 2, start=torch.tensor([0, 5])), "start: got 5"),
        (
            lambda: select.k_medoids(POINTS, 1, start=torch.tensor([0, 1]), groups=GROUPS),
            "start: got 'rows [0] for group",
        ),
        (lambda: select.k_medoids(POINTS, 2, iterations=-1), "iterations: got -1"),
        (lambda: select.k_medoids(POINTS, 2, seed=-1), "seed: got -1"),
        (lambda: select.k_medoids(POINTS, 2, memory_budget=100), "memory_budget: got '100 bytes'"),
    ],
)
def test_what_cannot_be_clustered_is_refused_by_name(call, message):
    with pytest.raises(dr.errors.ArgumentError) as refused:
        call()
    assert str(refused.value).startswith(message)
