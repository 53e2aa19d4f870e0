import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import distillrs as dr
from distillrs import _core, random, select
from distillrs.select._points import as_tensor


def normal(*shape: int, name: str = "points", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return random.normal(*shape, step=0, name=name, dtype=dtype)


@pytest.fixture
def thread_count():
    before = _core.threads()
    yield _core.set_threads
    _core.set_threads(before)


def test_separate_blobs_are_found():
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    owners = torch.arange(90) % 3
    points = middles[owners] + 0.1 * normal(90, 2)
    found = select.k_means(points, 3, seed=4)
    order = found.labels[:3]
    assert torch.equal(found.labels, order[owners])
    assert torch.allclose(found.centres[order], middles, atol=0.1)
    assert torch.equal(owners[found.medoids[order]], torch.arange(3))
    assert found.inertia == pytest.approx(float((points - found.centres[found.labels]).square().sum()), rel=1e-5)
    assert found.groups is None


def test_inertia_matches_scikit_learn_from_the_same_start():
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits

    points = load_digits().data
    start = points[:12]
    ours = select.k_means(points, 12, start=start, iterations=300)
    theirs = KMeans(12, init=start, n_init=1, max_iter=300, tol=0.0, algorithm="lloyd").fit(points)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-9)
    assert np.array_equal(ours.labels.numpy(), theirs.labels_)
    assert np.allclose(ours.centres.numpy(), theirs.cluster_centers_)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_clusters_its_own_values(dtype, offset):
    points = (normal(300, 5, dtype=torch.float64) + offset).to(dtype)
    found = select.k_means(points, 7, iterations=0, seed=1)
    assert found.centres.dtype == dtype
    # Without rounds the centres are points, so no rounding stands between them and the labels.
    distances = torch.cdist(points.double(), found.centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(distances.gather(1, found.labels[:, None])[:, 0], distances.min(1).values)
    # The inputs may lie strided or in numpy's hands.
    assert torch.equal(select.k_means(points.T.contiguous().T, 7, iterations=0, seed=1).labels, found.labels)
    if dtype != torch.bfloat16:
        assert torch.equal(select.k_means(points.numpy(), 7, iterations=0, seed=1).labels, found.labels)


def test_points_of_any_shape_keep_it():
    images = normal(40, 2, 3, 4)
    found = select.k_means(images, 5)
    flat = select.k_means(images.flatten(1), 5)
    assert found.centres.shape == (5, 2, 3, 4)
    assert torch.equal(found.centres.flatten(1), flat.centres)
    near = select.nearest(found.centres, images, 1)
    assert torch.equal(near.ids[:, 0], found.medoids)


def test_groups_are_clustered_apart_and_keep_their_numbers():
    points, groups = normal(120, 3), torch.arange(120) % 3 * 5 - 5
    found = select.k_means(points, {-5: 2, 0: 1, 5: 4}, groups=groups, seed=9)
    assert found.groups.tolist() == [-5, -5, 0, 5, 5, 5, 5]
    assert torch.equal(found.groups[found.labels], groups)
    assert torch.equal(groups[found.medoids], found.groups)
    total = 0.0
    for group, first, k in ((-5, 0, 2), (0, 2, 1), (5, 3, 4)):
        rows = (groups == group).nonzero()[:, 0]
        alone = select.k_means(points[rows], k, groups=groups[rows], seed=9)
        assert torch.equal(found.centres[first : first + k], alone.centres)
        assert torch.equal(found.labels[rows] - first, alone.labels)
        assert torch.equal(found.medoids[first : first + k], rows[alone.medoids])
        total += alone.inertia
    assert found.inertia == pytest.approx(total)
    again = select.k_means(points, {-5: 2, 0: 1, 5: 4}, groups=groups, seed=9, start=found.centres)
    assert torch.equal(again.labels, found.labels)


def test_seeds_start_elsewhere_and_repeat():
    points = normal(500, 2)
    assert torch.equal(select.k_means(points, 9, seed=1).centres, select.k_means(points, 9, seed=1).centres)
    assert not torch.equal(select.k_means(points, 9, seed=1).centres, select.k_means(points, 9, seed=2).centres)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_threads_change_nothing(thread_count, count):
    points = normal(5000, 6)
    thread_count(1)
    alone, near = select.k_means(points, 20), select.nearest(points[:300], points, 4)
    thread_count(count)
    together = select.k_means(points, 20)
    for name in ("centres", "labels", "medoids"):
        assert torch.equal(getattr(alone, name), getattr(together, name))
    assert alone.inertia == together.inertia
    assert all(
        torch.equal(left, right) for left, right in zip(near, select.nearest(points[:300], points, 4), strict=True)
    )


def test_fewer_distinct_points_than_clusters():
    points = torch.tensor([[1.0], [2.0]]).repeat(10, 1)
    found = select.k_means(points, 5)
    assert found.inertia == 0
    assert set(found.centres[found.labels].flatten().tolist()) == {1.0, 2.0}
    assert select.k_means(points, 20).inertia == 0
    for several in (points, torch.ones(6, 2)):
        for k in (1, 3, len(several)):
            medoids = select.k_means(several, k).medoids
            assert len(medoids.unique()) == k
            assert len(select.k_medoids(several, k).medoids.unique()) == k
    # Both centres are nearest to the middle point: the second takes the next one.
    apart = select.k_means(torch.tensor([[0.0], [1.0], [2.5]]), 2, start=torch.tensor([[0.9], [1.2]]), iterations=0)
    assert apart.medoids.tolist() == [1, 0]


def test_nearest_of_nothing_is_empty():
    points = normal(5, 2)
    assert select.nearest(points[:0], points, 3).ids.shape == (0, 3)
    assert select.nearest(points, points, 0).distances.shape == (5, 0)


NOT_FINITE = torch.zeros(4, 3).index_put_((torch.tensor(2), torch.tensor(1)), torch.tensor(float("nan")))
POINTS = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select.k_means(NOT_FINITE, 2), "points: got NaN in row 2, column 1"),
        (lambda: select.k_means(POINTS / 0, 2), "points: got NaN in row 0, column 0"),
        (lambda: select.k_means(POINTS, 2, start=NOT_FINITE[1:3]), "start: got NaN in row 1"),
        (lambda: select.k_means(POINTS, 2, start=POINTS), "start: got 'the shape"),
        (lambda: select.k_means(POINTS, 0), "k: got 0"),
        (lambda: select.k_means(POINTS, 5), "k: got 5"),
        (lambda: select.k_means(POINTS, 1.5), "k: got 1.5"),
        (lambda: select.k_means(POINTS[:0], 1), "k: got 1"),
        (lambda: select.k_means(POINTS, {0: 1}), "k: got 'a mapping'"),
        (lambda: select.k_means(POINTS, {0: 1}, groups=torch.tensor([0, 0, 1, 1])), "k: got 'a mapping with"),
        (lambda: select.k_means(POINTS, 3, groups=torch.tensor([0, 0, 1, 1])), "k: got '3 for group 0'"),
        (lambda: select.k_means(POINTS, 1, groups=torch.tensor([0, 1])), "groups: got"),
        (lambda: select.k_means(POINTS.long(), 2), "points: got 'torch.int64"),
        (lambda: select.k_means(POINTS[:, 0], 2), "points: got 'torch.float32 of shape"),
        (lambda: select.k_means([[1.0]], 1), "points: got 'list'"),
        (lambda: select.k_means(POINTS, 2, iterations=-1), "iterations: got -1"),
        (lambda: select.k_means(POINTS, 2, seed=-1), "seed: got -1"),
        (lambda: select.k_means(POINTS, 2, memory_budget=100), "memory_budget: got '100 bytes'"),
        (lambda: select.nearest(NOT_FINITE, POINTS, 1), "queries: got NaN in row 2"),
        (lambda: select.nearest(POINTS, NOT_FINITE, 1), "points: got NaN in row 2"),
        (lambda: select.nearest(POINTS[:, :2], POINTS, 1), "queries: got 'rows of shape"),
        (lambda: select.nearest(POINTS, POINTS, 5), "k: got 5"),
        (lambda: select.nearest(POINTS, POINTS, 1, memory_budget=0), "memory_budget: got '0 bytes'"),
        (
            lambda: select.k_means(POINTS.to_sparse(), 1),
            "points: got 'torch.float32 of shape (4, 3), torch.sparse_coo'",
        ),
        (lambda: select.k_means(POINTS.to("meta"), 1), "points: got 'torch.float32 of shape (4, 3) without values'"),
        (lambda: select.k_means(POINTS, 2, iterations=10**30), "iterations: got 10"),
        (lambda: select.k_means(POINTS, {"a": 1, 2: 1}, groups=torch.tensor([0, 0, 1, 1])), "k: got"),
    ],
)
def test_what_cannot_be_selected_is_refused_by_name(call, message):
    with pytest.raises(dr.errors.ArgumentError) as refused:
        call()
    assert str(refused.value).startswith(message)


MEMORY = """
import resource, torch
from distillrs import select

points = torch.arange(200_000 * 8, dtype=torch.float32).reshape(-1, 8) % 1009
select.k_means(points[:1000], 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
select.k_means(points, 400, iterations=1, memory_budget=64 << 20)     # a matrix of distances would take 320 MB
select.nearest(points[:2000], points, 5, memory_budget=64 << 20)      # 1.6 GB
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts in kilobytes on Linux only")
def test_memory_stays_within_the_budget_far_below_a_matrix_of_distances():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) * 1024 < 64 << 20


def test_a_share_of_the_points_is_a_number_of_clusters():
    points, groups = normal(50, 3), torch.arange(50) // 40
    for share, counts in ((0.1, 5), (1.0, 50)):
        found = select.k_means(points, fraction=share, seed=2)
        assert torch.equal(found.centres, select.k_means(points, counts, seed=2).centres)
    assert select.k_means(points, fraction=0.1, groups=groups).groups.tolist() == [0] * 4 + [1]
    for arguments in ({}, {"k": 2, "fraction": 0.5}):
        with pytest.raises(dr.errors.ArgumentError, match=r"^k: got"):
            select.k_means(points, **arguments)
    with pytest.raises(dr.errors.ArgumentError, match=r"^fraction: got '0.0, 0 points'"):
        select.k_means(points, fraction=0.0)


# Anonymous memory alone: pages of a mapped file are the system's to drop.
BUDGETS = """
import re, sys, threading, time
import numpy as np, torch
from distillrs import select
from distillrs.errors import ArgumentError

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.0005)

rows = np.random.default_rng(0).standard_normal((60_000, 64), np.float32)
np.save("single.npy", rows)
np.save("half.npy", rows.astype(np.float16))
del rows
single, half = (np.load(name, mmap_mode="r") for name in ("single.npy", "half.npy"))
few = np.arange(60_000) % 3
calls = {
    "k_center": lambda budget: select.k_center(single, 9, memory_budget=budget),
    "k_center, half": lambda budget: select.k_center(half, 9, memory_budget=budget),
    "k_center, cosine": lambda budget: select.k_center(single, 9, metric="cosine", memory_budget=budget),
    "k_center, columns": lambda budget: select.k_center(single[:, 8:], 9, memory_budget=budget),
    "k_center, groups": lambda budget: select.k_center(single, 9, groups=few, memory_budget=budget),
    "herding": lambda budget: select.herding(single, 9, memory_budget=budget),
    "herding, half": lambda budget: select.herding(half, 9, memory_budget=budget),
    "k_means": lambda budget: select.k_means(half, 9, iterations=2, memory_budget=budget),
    "nearest": lambda budget: select.nearest(half[:50], half, 3, memory_budget=budget),
    "balanced_partition": lambda budget: select.balanced_partition(half, 3, iterations=1, memory_budget=budget),
}
calls["k_center"](None)  # threads and code of the first call
for name, call in calls.items():
    try:
        call(1)
        needed = 1
    except ArgumentError as refused:
        needed = int(re.search("the ([0-9]+) bytes", str(refused))[1])
    before = peak = anonymous()
    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    call(needed)
    done.set()
    watcher.join()
    # A thread's stack and the allocator's last pages.
    if peak - before > needed + 2**21:
        sys.exit(f"{name}: {peak - before} bytes of {needed}")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_files_and_half_precision_stay_within_what_a_refusal_says_that_they_take(tmp_path):
    done = subprocess.run([sys.executable, "-c", BUDGETS], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_only_read_is_shared_and_left_as_it_is(tmp_path):
    points = random.normal(50, 3, step=0, name="points").numpy()
    np.save(tmp_path / "points.npy", points)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = as_tensor("points", mapped)
    assert own.data_ptr() == mapped.ctypes.data
    assert torch.equal(select.k_means(mapped, 4).centres, select.k_means(points, 4).centres)
    for other in (points[::-1], points[:, ::2], np.broadcast_to(points[:1], (4, 3))):
        assert torch.equal(as_tensor("points", other), torch.from_numpy(other.copy()))
    assert torch.equal(as_tensor("points", points.astype(">f8")), torch.from_numpy(points).double())


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no interval timers")
def test_what_a_signal_handler_raises_ends_the_work_and_arrives():
    class Alarm(Exception):
        pass

    def ring(number, frame):
        raise Alarm

    points = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(0))
    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            select.k_means(points, 200, iterations=100_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
