"""What several processes remember together is what one process would remember of all rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import two_ranks
from distillrs.knowledge.ranks import latest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", TESTS / "two_ranks.py", folder],
            env=os.environ | {"RANK": str(rank), "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        try:
            _, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, errors[-2000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", two_ranks.KINDS)
def test_with_a_group_every_process_has_the_memory_of_all_rows(kind, found):
    made, losses = two_ranks.values(kind, slice(None))
    state = made.state_dict()
    assert state
    for rank in range(2):
        assert list(found[rank][kind]["state"]) == list(state)
        for name, value in found[rank][kind]["state"].items():
            torch.testing.assert_close(value, state[name], rtol=1e-12, atol=1e-14)
            assert torch.equal(value, found[0][kind]["state"][name])
    if kind != "queue":
        # Rows of tables and memories do not depend on the others of their batch: the losses are a weighted mean.
        sizes = [[len(batch[2]) for batch in two_ranks.batches(rows)] for rows in (slice(None, 3), slice(3, None))]
        sizes = torch.tensor(sizes, dtype=torch.float64)
        both = torch.stack([found[rank][kind]["losses"] for rank in range(2)])
        torch.testing.assert_close((both * sizes).sum(0) / sizes.sum(0), losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", two_ranks.KINDS)
def test_without_a_group_each_keeps_its_own(kind, found):
    for rank, rows in enumerate((slice(None, 3), slice(3, None))):
        made, losses = two_ranks.values(kind, rows)
        torch.testing.assert_close(found[rank][f"{kind} alone"]["losses"], losses)
        for name, value in made.state_dict().items():
            torch.testing.assert_close(found[rank][f"{kind} alone"]["state"][name], value)
    first, second = (found[rank][f"{kind} alone"]["state"] for rank in range(2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_of_an_example_that_comes_twice_the_last_is_remembered():
    assert latest(torch.tensor([3, 1, 3, 2, 1])).tolist() == [4, 3, 2]
    assert latest(torch.tensor([], dtype=torch.int64)).tolist() == []
