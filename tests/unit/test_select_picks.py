"""Greedy picks: the order, groups, what counts as picked, and what is refused."""

import numpy as np
import pytest
import torch

import distillrs as dr
from distillrs import _core, random, select

POINTS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0], [5.0, 4.0], [1.0, 0.5]])
GROUPS = torch.tensor([7, -2, 7, -2, 7])
NOT_FINITE = POINTS.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(float("nan")))


def normal(*shape: int, name: str = "points", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return random.normal(*shape, step=0, name=name, dtype=dtype)


@pytest.fixture
def thread_count():
    before = _core.threads()
    yield _core.set_threads
    _core.set_threads(before)


def test_k_center_goes_to_the_farthest_point():
    picks = select.k_center(POINTS, 4, start=0)
    assert picks.ids.tolist() == [0, 3, 2, 4]
    assert picks.gains.tolist() == pytest.approx([float("inf"), 41**0.5, 4.0, 1.25**0.5])
    assert picks.groups is None
    assert len(picks) == 4
    assert len(picks.prefix(2)) == 2
    assert picks.ids.dtype == torch.int64
    assert picks.gains.dtype == torch.float64


def test_cosine_compares_directions_only():
    points = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1e-30, 1e-30], [0.0, 1e30], [-2.0, 0.0]])
    picks = select.k_center(points, 4, start=0, metric="cosine")
    assert picks.ids.tolist() == [0, 4, 3, 2]
    assert picks.gains.tolist() == pytest.approx([float("inf"), 2.0, 1.0, 1 - 0.5**0.5])


def test_chosen_points_count_as_picked_and_are_not_picked_again():
    picks = select.k_center(POINTS, 2, chosen=torch.tensor([2, 3]))
    assert picks.ids.tolist() == [0, 4]
    assert picks.gains.tolist() == pytest.approx([5.0, 1.25**0.5])
    first = select.k_center(POINTS, 5, start=1)
    rest = select.k_center(POINTS, 3, chosen=first.ids[:2])
    assert torch.equal(rest.ids, first.ids[2:])
    assert torch.equal(rest.gains, first.gains[2:])
    assert select.k_center(POINTS, 1, chosen=torch.tensor([2, 3]), start=1).gains.tolist() == pytest.approx([4.0])


def test_herding_follows_the_mean():
    points = torch.tensor([[0.0], [1.0], [4.0], [7.0]])
    picks = select.herding(points, 4)
    # The mean is 3: 4 is nearest, then 2 * 3 - 4 = 2 wants 1, then 9 - 5 = 4 wants 7 of those left, then 0.
    assert picks.ids.tolist() == [2, 1, 3, 0]
    assert picks.gains.tolist() == pytest.approx([1.0, 0.5, 1.0, 0.0])


def value_of(points: torch.Tensor, ids: torch.Tensor) -> float:
    """Minus the sum of the squared distances to the nearest pick."""
    differences = points.double()[:, None] - points.double()[ids][None]
    return -float(differences.square().sum(-1).min(1).values.sum())


def test_facility_location_covers_blobs_one_by_one():
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    owners = torch.arange(200) % 4
    points = middles[owners] + 0.1 * normal(200, 2)
    picks = select.facility_location(points, 5)
    # The first lies nearest to the middle of all; the next ones take a blob each.
    assert sorted(owners[picks.ids[:4]].tolist()) == [0, 1, 2, 3]
    assert picks.gains[4] < 0.01 * picks.gains[3]


def test_the_gains_of_facility_location_sum_to_its_value():
    points = normal(300, 6, dtype=torch.float64) + 50
    picks = select.facility_location(points, 20)
    largest = 4 * float((points - points.mean(0)).square().sum(1).max())
    for j in (1, 2, 20):
        expected = 300 * largest + value_of(points, picks.ids[:j])
        assert float(picks.gains[:j].sum()) == pytest.approx(expected, rel=1e-12)
    assert largest >= float(torch.cdist(points, points).square().max())


def test_random_candidates_are_nearly_as_good_and_repeat():
    points = normal(600, 4)
    best = select.facility_location(points, 30)
    drawn = [select.facility_location(points, 30, method="stochastic", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0].ids, drawn[1].ids)
    assert not torch.equal(drawn[0].ids, drawn[2].ids)
    one = -value_of(points, best.ids[:1])
    for picks in drawn:
        assert len(set(picks.ids.tolist())) == 30
        saved, most = one + value_of(points, picks.ids), one + value_of(points, best.ids)
        assert 0.9 * most < saved <= most * 1.05
    fixed = [select.facility_location(points, k, method="stochastic", sample=15).ids for k in (30, 12)]
    assert torch.equal(fixed[0][:12], fixed[1])


@pytest.mark.parametrize("selector", [select.k_center, select.herding, select.facility_location])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_layout_and_shape_gives_the_picks_of_its_own_values(selector, dtype):
    points = normal(90, 2, 3, dtype=torch.float64).to(dtype)
    exact = selector(points.double().flatten(1), 20)
    found = selector(points, 20)
    assert torch.equal(found.ids, exact.ids)
    assert torch.equal(found.gains, exact.gains)
    strided = points.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not strided.is_contiguous()
    assert torch.equal(selector(strided, 20).ids, exact.ids)
    if dtype != torch.bfloat16:
        array = points.numpy()[::-1]
        flipped = selector(np.ascontiguousarray(array), 20)
        assert torch.equal(selector(array, 20).ids, flipped.ids)


@pytest.mark.parametrize("selector", [select.k_center, select.herding, select.facility_location])
def test_groups_are_picked_apart(selector):
    points, groups = normal(80, 4), torch.arange(80) % 3 * 5 - 5
    counts = {-5: 4, 0: 0, 5: 7}
    picks = selector(points, counts, groups=groups)
    assert picks.groups.tolist() == [-5] * 4 + [5] * 7
    assert torch.equal(groups[picks.ids], picks.groups)
    for group, count in counts.items():
        rows = (groups == group).nonzero()[:, 0]
        alone = selector(points[rows], count, groups=groups[rows])
        assert torch.equal(picks.ids[picks.groups == group], rows[alone.ids])
        assert torch.equal(picks.gains[picks.groups == group], alone.gains)
    short = picks.prefix(5)
    assert short.groups.tolist() == [-5] * 4 + [5] * 5
    assert torch.equal(short.ids, selector(points, {-5: 4, 0: 0, 5: 5}, groups=groups).ids)
    assert torch.equal(selector(points, 3, groups=groups).ids, selector(points, 9, groups=groups).prefix(3).ids)


def test_a_fraction_is_rounded_to_the_nearest_number_of_each_group():
    groups = torch.tensor([0] * 10 + [1] * 5)
    assert select.k_center(normal(15, 2), fraction=0.3, groups=groups).groups.tolist() == [0] * 3 + [1] * 2
    assert len(select.herding(normal(15, 2), fraction=0.1)) == 2
    assert len(select.herding(normal(15, 2), fraction=0.0)) == 0
    assert sorted(select.k_center(normal(15, 2), fraction=1.0).ids.tolist()) == list(range(15))


def test_starts_of_groups_and_chosen_points_are_rows_of_all_points():
    points, groups = normal(40, 3), torch.arange(40) % 2
    chosen = torch.tensor([4, 13, 6])
    picks = select.k_center(points, 5, groups=groups, start={1: 9}, chosen=chosen)
    for group in (0, 1):
        rows = (groups == group).nonzero()[:, 0]
        own = torch.tensor([rows.tolist().index(row) for row in chosen.tolist() if groups[row] == group])
        alone = select.k_center(points[rows], 5, chosen=own, start=4 if group else None)
        assert torch.equal(picks.ids[picks.groups == group], rows[alone.ids])
    assert picks.ids[5] == 9


def test_the_first_pick_is_drawn_by_the_seed():
    points = normal(1000, 2)
    firsts = [int(select.k_center(points, 1, seed=seed).ids[0]) for seed in range(40)]
    assert len(set(firsts)) > 30
    assert firsts[3] == int(select.k_center(points, 5, seed=3).ids[0])
    assert abs(np.mean(firsts) - 500) < 200


def test_nothing_and_everything():
    for selector in (select.k_center, select.herding, select.facility_location):
        assert selector(POINTS, 0).ids.shape == (0,)
        assert len(selector(POINTS, 0).prefix(0)) == 0
        assert sorted(selector(POINTS, 5).ids.tolist()) == [0, 1, 2, 3, 4]
        assert selector(POINTS[:0], 0).ids.shape == (0,)
        empty = selector(POINTS[:0], 0, groups=GROUPS[:0])
        assert empty.groups.shape == (0,)
        assert len(empty.prefix(0)) == 0
        # Points that are all alike are picked in their order.
        assert selector(
            torch.zeros(70, 3), 4, **({"start": 0} if selector is select.k_center else {})
        ).ids.tolist() == [
            0,
            1,
            2,
            3,
        ]


@pytest.mark.parametrize("count", [2, 3])
def test_threads_change_nothing(thread_count, count):
    points = normal(40_000, 4)
    calls = [
        lambda: select.k_center(points, 60, seed=1),
        lambda: select.herding(points, 20),
        lambda: select.facility_location(points[:9000], 6),
        lambda: select.facility_location(points[:9000], 3, method="stochastic", sample=20),
    ]
    thread_count(1)
    alone = [call() for call in calls]
    thread_count(count)
    for call, expected in zip(calls, alone, strict=True):
        found = call()
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.gains, expected.gains)


def test_coverage_of_probabilities_is_that_of_recomputing_all_distances():
    logits = random.normal(400, 10, step=0, name="logits", dtype=torch.float64)
    probabilities = (3 * logits).softmax(1)
    labelled = torch.arange(0, 400, 40)
    found = select.k_center(probabilities, 30, chosen=labelled)
    picked = labelled.tolist()
    for pick, gain in zip(found.ids.tolist(), found.gains.tolist(), strict=True):
        distances = torch.cdist(probabilities, probabilities[picked], compute_mode="donot_use_mm_for_euclid_dist")
        near = distances.min(1).values
        near[picked] = -1
        assert pick == int(near.argmax())
        assert gain == pytest.approx(float(near.max()), rel=1e-12)
        picked.append(pick)


def test_two_rounds_over_parts_come_near_to_one():
    points = normal(600, 4)
    exact, parts = select.k_center(points, 20), select.k_center(points, 20, method="partitioned", partitions=4)
    radius = [float(select.nearest(points, points[picks.ids], 1).distances.max()) for picks in (exact, parts)]
    # Each is within a factor of the best radius, which is at least half of greedy's.
    assert radius[1] <= 4 * radius[0]
    left = [
        float(select.nearest(points, points[picks.ids], 1).distances.square().sum())
        for picks in (
            select.facility_location(points, 20),
            select.facility_location(points, 20, method="partitioned", partitions=4),
            select.facility_location(points[:150], 20),
        )
    ]
    # Weights matter: the rounds see all points, not those of one part.
    assert left[1] < 1.1 * left[0] < 1.1 * left[2]
    assert left[1] < left[2]


def test_one_part_gives_the_plain_picks_and_its_copies_change_nothing():
    points = normal(80, 3)
    for selector in (select.k_center, select.facility_location):
        whole = selector(points, 12, method="partitioned", partitions=1)
        assert sorted(whole.ids.tolist()) == sorted(selector(points, 12).ids.tolist())
        assert len(selector(points, 80, method="partitioned", partitions=200).ids.unique()) == 80
        assert selector(torch.ones(9, 2), 4, method="partitioned", partitions=2).ids.unique().numel() == 4


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, torch.int16])
def test_groups_and_rows_of_any_integers_are_those_of_64_bits(dtype):
    points, groups, chosen = normal(30, 3), torch.arange(30) % 3, torch.tensor([4, 11])

    def other(values):
        return values.to(dtype) if isinstance(dtype, torch.dtype) else values.numpy().astype(dtype)

    for found, expected in (
        (select.k_center(points, 4, groups=other(groups)), select.k_center(points, 4, groups=groups)),
        (select.k_center(points, 4, chosen=other(chosen)), select.k_center(points, 4, chosen=chosen)),
        (select.facility_location(points, 4, groups=other(groups)), select.facility_location(points, 4, groups=groups)),
        (select.herding(points, 4, groups=other(groups)), select.herding(points, 4, groups=groups)),
    ):
        assert torch.equal(found.ids, expected.ids)
    means = [select.k_means(points, {0: 1, 1: 2, 2: 1}, groups=each) for each in (other(groups), groups)]
    assert torch.equal(means[0].centres, means[1].centres)
    medoids = [select.k_medoids(points, 2, start=each) for each in (other(chosen), chosen)]
    assert torch.equal(medoids[0].medoids, medoids[1].medoids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select.k_center(NOT_FINITE, 2), "points: got NaN in row 3, column 1"),
        (lambda: select.k_center(NOT_FINITE + 1, 2, metric="cosine"), "points: got NaN in row 3"),
        (lambda: select.k_center(NOT_FINITE, 1, groups=GROUPS), "points: got NaN in row 3"),
        (lambda: select.k_center(POINTS, 2, metric="cosine"), "points: got 'only zeros in row 0'"),
        (lambda: select.k_center(POINTS, 2, metric="manhattan"), "metric: got 'manhattan'"),
        (lambda: select.k_center(POINTS, 6), "k: got 6"),
        (lambda: select.k_center(POINTS, -1), "k: got -1"),
        (lambda: select.k_center(POINTS, True), "k: got True"),
        (lambda: select.k_center(POINTS, 4, chosen=torch.tensor([0, 1])), "k: got 4"),
        (lambda: select.k_center(POINTS), "k: got 'neither k nor fraction'"),
        (lambda: select.k_center(POINTS, 1, fraction=0.5), "k: got 'k and fraction'"),
        (lambda: select.k_center(POINTS, fraction=1.5), "fraction: got 1.5"),
        (lambda: select.k_center(POINTS, fraction=1.0, chosen=torch.tensor([0])), "fraction: got '1.0, 5 points'"),
        (lambda: select.k_center(POINTS, {0: 1}), "k: got 'a mapping'"),
        (lambda: select.k_center(POINTS, {0: 1}, groups=GROUPS), "k: got 'a mapping with"),
        (lambda: select.k_center(POINTS, 3, groups=GROUPS), "k: got '3 for group -2'"),
        (lambda: select.k_center(POINTS, 1, groups=GROUPS[:2]), "groups: got"),
        (lambda: select.k_center(POINTS, 1, groups=[0] * 5), "groups: got 'list'"),
        (lambda: select.k_center(POINTS, 1, start=5), "start: got 5"),
        (lambda: select.k_center(POINTS, 1, start=1, chosen=torch.tensor([1])), "start: got 1"),
        (lambda: select.k_center(POINTS, 1, start=1, groups=GROUPS), "start: got 1"),
        (lambda: select.k_center(POINTS, 1, start={7: 1}), "start: got 'a mapping'"),
        (lambda: select.k_center(POINTS, 1, start={7: 1}, groups=GROUPS), "start: got 'the row 1 for group 7'"),
        (lambda: select.k_center(POINTS, 1, start={3: 1}, groups=GROUPS), "start: got 'the group 3'"),
        (lambda: select.k_center(POINTS, 1, chosen=torch.tensor([1, 1])), "chosen: got 'a row that comes twice'"),
        (lambda: select.k_center(POINTS, 1, chosen=torch.tensor([5])), "chosen: got 5"),
        (lambda: select.k_center(POINTS, 1, chosen=[1]), "chosen: got 'list'"),
        (lambda: select.k_center(POINTS, 1, chosen=torch.tensor([1.0])), "chosen: got 'torch.float32 of shape (1,)'"),
        (lambda: select.k_center(POINTS, 1, chosen=torch.ones(2).to_sparse()), "chosen: got 'torch.float32"),
        (lambda: select.k_center(POINTS, 1, groups=torch.ones(5, dtype=torch.bool)), "groups: got 'torch.bool"),
        (lambda: select.k_center(POINTS, 1, groups=np.full(5, 2**63, np.uint64)), "groups: got 9223372036854775808"),
        (lambda: select.k_center(POINTS, 1, groups=GROUPS, start={"a": 1, 3: 1}), "start: got 'the group"),
        (lambda: select.k_center(POINTS, 1, metric=np.array([1, 2])), "metric: got array"),
        (lambda: select.k_center(POINTS, 1, method=np.array([1, 2])), "method: got array"),
        (lambda: select.k_center(POINTS, 1, replicated="no"), "replicated: got 'no'"),
        (lambda: select.facility_location(POINTS, 1, replicated=torch.ones(2)), "replicated: got tensor"),
        (lambda: select.facility_location(POINTS, 1, similarity=np.array([1, 2])), "similarity: got array"),
        (lambda: select.facility_location(POINTS, 1, method="stochastic", sample=10**30), "sample: got 10"),
        (lambda: select.k_center(POINTS, 1, seed=-1), "seed: got -1"),
        (lambda: select.k_center(POINTS, 1, memory_budget=100), "memory_budget: got '100 bytes'"),
        (lambda: select.k_center(POINTS.long(), 1), "points: got 'torch.int64"),
        (lambda: select.herding(NOT_FINITE, 2), "points: got NaN in row 3, column 1"),
        (lambda: select.herding(POINTS / 0, 2, groups=GROUPS), "points: got NaN in row 0"),
        (lambda: select.herding(POINTS, 6), "k: got 6"),
        (lambda: select.herding(POINTS, 1, memory_budget=100), "memory_budget: got '100 bytes'"),
        (lambda: select.herding(POINTS, 3).prefix(4), "j: got 4"),
        (lambda: select.herding(POINTS, 2, groups=GROUPS).prefix(3), "j: got 3"),
        (lambda: select.facility_location(NOT_FINITE, 2), "points: got NaN in row 3, column 1"),
        (lambda: select.facility_location(NOT_FINITE, 1, groups=GROUPS), "points: got NaN in row 3"),
        (lambda: select.facility_location(POINTS, 6), "k: got 6"),
        (lambda: select.facility_location(POINTS, 2, similarity="cosine"), "similarity: got 'cosine'"),
        (lambda: select.facility_location(POINTS, 2, method="naive"), "method: got 'naive'"),
        (lambda: select.facility_location(POINTS, 2, sample=3), "sample: got 3"),
        (lambda: select.facility_location(POINTS, 2, method="stochastic", sample=0), "sample: got 0"),
        (lambda: select.facility_location(POINTS, 2, seed=-1), "seed: got -1"),
        (lambda: select.facility_location(POINTS, 1, memory_budget=100), "memory_budget: got '100 bytes'"),
        (lambda: select.k_means(NOT_FINITE, 1, groups=GROUPS), "points: got NaN in row 3"),
    ],
)
def test_what_cannot_be_picked_is_refused_by_name(call, message):
    with pytest.raises(dr.errors.ArgumentError) as refused:
        call()
    assert str(refused.value).startswith(message)
