"""Selection over several processes picks what one process picks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import distillrs as dr
from distillrs import select

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

# One import of torch for all ranks: each is a fork.
RANKS = """
import os, sys, traceback
import torch
from torch import distributed
import distillrs as dr
from distillrs import select, random

count, rendezvous = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)


def same(left, right):
    assert torch.equal(left.ids, right.ids), (left.ids, right.ids)
    assert torch.equal(left.gains, right.gains), (left.gains - right.gains).abs().max()
    assert (left.groups is None) == (right.groups is None)
    assert left.groups is None or torch.equal(left.groups, right.groups)


def refused(start, call):
    try:
        call()
    except dr.errors.ArgumentError as error:
        assert str(error).startswith(start), error
    else:
        raise AssertionError(f"{start} was taken")


def work(rank):
    distributed.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=count)
    world = distributed.group.WORLD
    n = 90
    smooth = random.normal(n, 3, step=0, name="points")
    coarse = random.integers(n * 2, 4, step=0, name="coarse").reshape(n, 2).double()
    wide = torch.cat([smooth[:45] + 1000, smooth[:45].flip(0)])
    groups = random.integers(n, 3, step=0, name="groups") * 5 - 5
    chosen = torch.tensor([88, 3, 40])
    for share in ([3, 0, 0, 4], [1, 2, 3, 4])[: count]:
        edges = [n * sum(share[:part]) // sum(share[:count]) for part in range(count + 1)]
        own = slice(edges[rank], edges[rank + 1])
        for points in (smooth, coarse, wide.half()):
            mine = points[own]
            same(select.k_center(mine, 12, process_group=world), select.k_center(points, 12))
            same(
                select.k_center(mine, 5, chosen=chosen, start=7, process_group=world),
                select.k_center(points, 5, chosen=chosen, start=7),
            )
            for method in ("lazy", "stochastic"):
                same(
                    select.facility_location(mine, 12, method=method, process_group=world),
                    select.facility_location(points, 12, method=method),
                )
        cosine = dict(metric="cosine", fraction=0.2, seed=4)
        same(select.k_center(smooth[own], process_group=world, **cosine), select.k_center(smooth, **cosine))
        firsts = {-5: int((groups == -5).nonzero()[4]), 5: int((groups == 5).nonzero()[2])}
        among = dict(chosen=chosen, start=firsts)
        same(
            select.k_center(smooth[own], 6, groups=groups[own], process_group=world, **among),
            select.k_center(smooth, 6, groups=groups, **among),
        )
        counts = {-5: 4, 0: 9, 5: 0}
        same(
            select.facility_location(coarse[own], counts, groups=groups[own], process_group=world),
            select.facility_location(coarse, counts, groups=groups),
        )
        found = select.facility_location(smooth[own], 9, method="partitioned", process_group=world)
        assert len(set(found.ids.tolist())) == 9
        found = select.k_center(smooth[own], 5, groups=groups[own], method="partitioned", process_group=world)
        assert torch.equal(groups[found.ids], found.groups)
    for select_from in (select.k_center, select.facility_location):
        same(
            select_from(smooth, 7, groups=groups, process_group=world, replicated=True),
            select_from(smooth, 7, groups=groups),
        )
    # A process of its own, although others are there.
    same(select.k_center(smooth[: 10 + rank], 5), select.k_center(smooth[: 10 + rank].clone(), 5))

    bad = smooth.clone()
    bad[n - 1, 1] = float("nan")
    edges = [n * part // count for part in range(count + 1)]
    mine = slice(edges[rank], edges[rank + 1])
    where = "points: got NaN in row" if rank == count - 1 else f"process_group: got 'what process {count - 1} refuses"
    refused(where, lambda: select.k_center(bad[mine], 3, process_group=world))
    refused("k: got 91", lambda: select.k_center(smooth[mine], 91, process_group=world))
    refused("start: got", lambda: select.k_center(smooth[mine], 1, start=90, process_group=world))
    refused("chosen: got", lambda: select.k_center(smooth[mine], 1, chosen=torch.tensor([90]), process_group=world))
    refused("memory_budget", lambda: select.k_center(smooth[mine], 3, memory_budget=9, process_group=world))
    refused("neighbours", lambda: select.facility_location(smooth[mine], 3, neighbours=4, process_group=world))
    parts = dict(method="partitioned", partitions=2)
    refused("partitions", lambda: select.k_center(smooth[mine], 3, process_group=world, **parts))
    refused("replicated", lambda: select.k_center(smooth, 3, process_group=world, replicated=True))
    unknown = dict(groups=groups[mine], start={1: 0})
    refused("start: got 'the group 1'", lambda: select.k_center(smooth[mine], 3, process_group=world, **unknown))
    elsewhere = dict(groups=groups[mine], start={0: firsts[5]})
    refused("start: got 'the row", lambda: select.k_center(smooth[mine], 3, process_group=world, **elsewhere))
    if count > 1:
        refused("process_group: got", lambda: select.k_center(smooth[mine], 3 + rank, process_group=world))
        refused("points: got", lambda: select.k_center(smooth[mine, : 3 - rank % 2], 3, process_group=world))
        ours = dict(groups=groups, process_group=world, replicated=True)
        refused("points: got", lambda: select.k_center(smooth + rank, 3, **ours))
    distributed.destroy_process_group()


children = []
for rank in range(count):
    child = os.fork()
    if child == 0:
        try:
            work(rank)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
failed = [child for child in children if os.waitpid(child, 0)[1]]
sys.exit(bool(failed))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the ranks are forks")
@pytest.mark.parametrize("count", [1, 2, 4])
def test_row_shards_give_the_picks_of_one_process(count, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RANKS, str(count), str(tmp_path / "rendezvous")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]


POINTS = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select.k_center(POINTS, 2, process_group=7), "process_group: got 'int"),
        (lambda: select.k_center(POINTS, 2, replicated=True), "replicated: got True"),
        (lambda: select.k_center(POINTS, 2, method="fast"), "method: got 'fast'"),
        (lambda: select.k_center(POINTS, 2, method="partitioned"), "partitions: got None"),
        (lambda: select.k_center(POINTS, 2, method="partitioned", partitions=0), "partitions: got 0"),
        (lambda: select.k_center(POINTS, 2, partitions=2), "partitions: got 2"),
        (lambda: select.k_center(POINTS, 2, method="partitioned", partitions=2, start=1), "start: got"),
        (lambda: select.facility_location(POINTS, 2, partitions=2), "partitions: got 2"),
        (lambda: select.facility_location(POINTS, 2, method="partitioned"), "partitions: got None"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_by_name(call, message):
    with pytest.raises(dr.errors.ArgumentError) as refused:
        call()
    assert str(refused.value).startswith(message)
