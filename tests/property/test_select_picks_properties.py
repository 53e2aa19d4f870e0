"""Greedy picks against plain loops in float64."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distillrs import select

# A coarse grid makes ties and duplicates common; the scaled one makes them rare. Some columns are zero throughout.
coordinates = st.integers(-2, 2).map(float) | st.floats(-1e3, 1e3, width=32)
points = st.tuples(st.integers(1, 40), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.float64, shape, elements=coordinates),
        arrays.arrays(np.float64, shape[1], elements=st.sampled_from([0.0, 1.0, 1.0])),
    ).map(lambda pair: pair[0] * pair[1])
)
grids = st.tuples(st.integers(1, 40), st.integers(1, 4)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))
)
offsets = st.sampled_from([0.0, 1.0, 4096.0, -(2.0**30)])


def squared(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return ((left[:, None] - right[None]) ** 2).sum(-1)


@given(points=grids, offset=offsets, data=st.data())
def test_k_center_picks_what_a_plain_loop_picks(points, offset, data):
    points, n = points + offset, len(points)
    chosen = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n - 1))
    k = data.draw(st.integers(0, n - len(chosen)))
    start = data.draw(st.none() | st.sampled_from(sorted(set(range(n)) - set(chosen))))
    found = select.k_center(points, k, chosen=torch.tensor(chosen, dtype=torch.int64), start=start, seed=5)
    distances = squared(points, points)  # exact: small whole numbers
    near = distances[:, chosen].min(1, initial=np.inf)
    open_ = np.ones(n, bool)
    open_[chosen] = False
    for place, (pick, gain) in enumerate(zip(found.ids.tolist(), found.gains.tolist(), strict=True)):
        if place > 0 or (start is None and chosen):
            assert pick == int(np.argmax(np.where(open_, near, -1.0)))
        elif start is not None:
            assert pick == start
        assert open_[pick]
        assert gain == np.sqrt(near[pick])
        open_[pick] = False
        near = np.minimum(near, distances[pick])


@given(points=points, offset=offsets, data=st.data())
def test_k_center_goes_to_the_farthest_point_up_to_the_last_bits(points, offset, data):
    points = points + offset
    found = select.k_center(points, data.draw(st.integers(1, len(points))), seed=data.draw(st.integers(0, 3)))
    ids, gains = found.ids.tolist(), found.gains.numpy()
    distances = squared(points, points)
    assert len(set(ids)) == len(ids)
    assert np.all(np.diff(gains) <= 0)
    for place in range(1, len(ids)):
        rest = np.setdiff1d(np.arange(len(points)), ids[:place])
        near = distances[:, ids[:place]].min(1)
        assert np.isclose(gains[place] ** 2, near[ids[place]], rtol=1e-12)
        assert near[ids[place]] >= near[rest].max() * (1 - 1e-12)


@given(points=points, offset=offsets, data=st.data())
def test_herding_picks_the_point_that_brings_the_mean_nearest(points, offset, data):
    points = points + offset
    found = select.herding(points, data.draw(st.integers(0, len(points))))
    centred = points - points[0]
    mean = centred.mean(0)
    tolerance = 1e-9 * (1 + np.abs(centred).max()) ** 2 * len(points)
    ids = found.ids.tolist()
    assert len(set(ids)) == len(ids)
    for place, pick in enumerate(ids):
        wanted = (place + 1) * mean - centred[ids[:place]].sum(0)
        costs = squared(wanted[None], centred)[0]
        costs[ids[:place]] = np.inf
        assert costs[pick] <= costs.min() + tolerance
        own = np.linalg.norm(centred[ids[: place + 1]].mean(0) - mean)
        assert np.isclose(found.gains[place], own, rtol=1e-9, atol=1e-9 * (1 + np.abs(centred).max()))


@given(points=grids, repeats=st.integers(2, 3), data=st.data())
def test_of_duplicates_the_lowest_is_picked_first(points, repeats, data):
    several = np.tile(points, (repeats, 1))
    k = data.draw(st.integers(1, len(several)))
    for found in (
        select.herding(several, k),
        select.k_center(several, k, start=0),
        select.facility_location(several, k),
    ):
        ids = found.ids.numpy()
        for row in range(len(points)):
            copies = ids[np.all(several[ids] == points[row], axis=1)]
            assert np.all(np.diff(copies) > 0)


@given(points=points, data=st.data())
def test_fewer_picks_are_a_prefix_of_more(points, data):
    k = data.draw(st.integers(0, len(points)))
    j = data.draw(st.integers(0, k))
    for selector in (select.k_center, select.herding, select.facility_location):
        more, fewer = selector(points, k), selector(points, j)
        assert more.prefix(j).ids.tolist() == fewer.ids.tolist()
        assert more.prefix(j).gains.tolist() == fewer.gains.tolist()


@given(points=points, offset=offsets, data=st.data())
def test_facility_location_takes_the_largest_gain_every_time(points, offset, data):
    points = points + offset
    found = select.facility_location(points, data.draw(st.integers(1, len(points))))
    ids, gains = found.ids.tolist(), found.gains.numpy()
    assert len(set(ids)) == len(ids)
    assert np.all(np.diff(gains) <= 1e-12 * gains[0])
    distances = squared(points, points)
    totals = distances.sum(1)
    assert totals[ids[0]] <= totals.min() + 1e-9 * (totals.max() + 1e-300)
    near = distances[ids[0]]
    for place in range(1, len(ids)):
        saved = np.maximum(near[None] - distances, 0).sum(1)
        saved[ids[:place]] = -1
        assert np.isclose(gains[place], saved[ids[place]], rtol=1e-9, atol=1e-9 * distances.max())
        assert saved[ids[place]] >= saved.max() * (1 - 1e-9)
        near = np.minimum(near, distances[ids[place]])


@given(points=grids, data=st.data())
def test_of_equal_gains_facility_location_takes_the_lowest(points, data):
    found = select.facility_location(points, data.draw(st.integers(1, len(points))))
    ids = found.ids.tolist()
    distances = squared(points, points)  # exact: small whole numbers, and so are the gains
    near = distances[ids[0]]
    for place in range(1, len(ids)):
        saved = np.maximum(near[None] - distances, 0).sum(1)
        saved[ids[:place]] = -1
        assert ids[place] == int(np.argmax(saved))
        assert found.gains[place] == saved[ids[place]]
        near = np.minimum(near, distances[ids[place]])


@given(points=points, offset=offsets, data=st.data())
def test_no_single_swap_improves_the_medoids(points, offset, data):
    points = points + offset
    n = len(points)
    k = data.draw(st.integers(1, n))
    found = select.k_medoids(points, k, seed=data.draw(st.integers(0, 3)))
    distances = np.sqrt(squared(points, points))
    medoids = found.medoids.tolist()
    assert len(set(medoids)) == k
    own = distances[:, medoids]
    assert np.array_equal(own[np.arange(n), found.labels.numpy()], own.min(1))
    loss = own.min(1).sum()
    assert np.isclose(found.inertia, loss, rtol=1e-9, atol=1e-300)
    for cluster in range(k):
        rest = np.delete(own, cluster, 1).min(1, initial=np.inf)
        swapped = np.minimum(rest[:, None], distances).sum(0)
        assert np.all(swapped >= loss * (1 - 1e-9))
