import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distillrs import select

# A coarse grid makes ties and duplicates common; the scaled one makes them rare.
coordinates = st.integers(-2, 2).map(float) | st.floats(-1e3, 1e3, width=32)
points = st.tuples(st.integers(1, 30), st.integers(1, 5)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=coordinates)
)
offsets = st.sampled_from([0.0, 1.0, 4096.0, -(2.0**30)])


def squared(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return ((left[:, None] - right[None]) ** 2).sum(-1)


def assert_nearest(found: np.ndarray, distances: np.ndarray) -> None:
    """Up to the last bits of a sum the chosen column is the smallest; exact ties go to the lowest."""
    chosen = np.take_along_axis(distances, found[:, None], 1)[:, 0]
    least = distances.min(1)
    assert np.all(chosen <= least * (1 + 1e-12))
    lowest = distances.argmin(1)
    assert np.all((found == lowest) | (chosen < least * (1 + 1e-12)))


@given(points=points, offset=offsets, data=st.data())
def test_clusters_keep_their_promises(points, offset, data):
    points = points + offset
    k = data.draw(st.integers(1, len(points)))
    found = select.k_means(
        points, k, seed=data.draw(st.integers(0, 5)), iterations=data.draw(st.sampled_from([0, 1, 50]))
    )
    centres, labels = found.centres.numpy(), found.labels.numpy()
    distances = squared(points, centres)
    assert_nearest(labels, distances)
    left = distances.copy()
    for medoid, column in zip(found.medoids.tolist(), left.T, strict=True):
        assert_nearest(np.array([medoid]), column[None])
        left[medoid] = np.inf
    assert len(set(found.medoids.tolist())) == k
    assert np.isclose(found.inertia, distances[np.arange(len(points)), labels].sum(), rtol=1e-9, atol=1e-300)


@given(points=points, data=st.data())
def test_converged_centres_are_the_means_of_their_points(points, data):
    found = select.k_means(points, data.draw(st.integers(1, len(points))), iterations=1000)
    for cluster, centre in enumerate(found.centres.numpy()):
        members = points[found.labels.numpy() == cluster]
        if len(members):
            assert np.allclose(members.mean(0), centre, rtol=1e-12, atol=1e-9)


@given(points=points, data=st.data())
def test_more_rounds_never_raise_the_inertia(points, data):
    k = data.draw(st.integers(1, len(points)))
    inertias = [select.k_means(points, k, iterations=rounds).inertia for rounds in range(5)]
    assert all(later <= earlier * (1 + 1e-9) + 1e-12 for earlier, later in itertools.pairwise(inertias))


@given(points=points, power=st.integers(-40, 40))
def test_scaling_by_a_power_of_two_scales_the_result(points, power):
    k = min(3, len(points))
    plain, scaled = select.k_means(points, k), select.k_means(points * 2.0**power, k)
    assert torch.equal(plain.labels, scaled.labels)
    assert torch.equal(plain.centres * 2.0**power, scaled.centres)


@given(points=points, offset=offsets, data=st.data())
def test_neighbours_are_those_of_brute_force(points, offset, data):
    points = points + offset
    count = data.draw(st.integers(0, len(points)))
    queries = np.concatenate([points[:count], points[count:] * 0.5 + offset / 2])
    k = data.draw(st.integers(1, len(points)))
    found = select.nearest(queries, points, k)
    distances = squared(queries, points)
    ids = found.ids.numpy()
    assert all(len(set(row)) == k for row in ids.tolist())
    expected = np.sort(distances, 1)[:, :k]
    assert np.allclose(found.distances.numpy() ** 2, expected, rtol=1e-9, atol=1e-300)
    assert np.allclose(np.take_along_axis(distances, ids, 1), expected, rtol=1e-9, atol=1e-300)
    exact = found.distances.numpy()
    ties = exact[:, 1:] == exact[:, :-1]
    assert np.all(ids[:, 1:][ties] > ids[:, :-1][ties])


@given(points=points)
def test_a_points_nearest_neighbour_is_itself_or_its_lowest_duplicate(points):
    found = select.nearest(points, points, 1)
    lowest = [next(i for i, other in enumerate(points) if np.array_equal(other, point)) for point in points]
    assert found.ids[:, 0].tolist() == lowest
    assert not found.distances.any()
