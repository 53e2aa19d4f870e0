"""Several processes write one cache; some are killed at any moment."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillrs.ops import TopK
from distillrs.trajectory import UNCHECKED, TeacherCache
from killed_writers import killed_writers, remove_logs

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")

V, K = 60, 9

KILLED = """
from distillrs.trajectory import UNCHECKED, TeacherCache

def answers(number):
    return torch.randn(1 + number % 7, 60, generator=torch.Generator().manual_seed(number))

def write(path, first, last):
    with TeacherCache.create(path, 60, 9, UNCHECKED, exist_ok=True) as cache:
        for key in cache.missing([f"document {number}" for number in range(first, last)]):
            number = int(key.split()[1])
            cache.append(key, answers(number))
            if number % 3 == 0:
                cache.flush()
                yield number
"""


def answers(number: int) -> torch.Tensor:
    return torch.randn(1 + number % 7, V, generator=torch.Generator().manual_seed(number))


def check(path: Path, due: set[int]) -> set[int]:
    """Documents that are there, after every one was compared; all that are due are among them."""
    with TeacherCache.open(path, UNCHECKED, verify="always") as cache:
        keys = cache.keys()
        found = {int(key.split()[1]) for key in keys}
        assert due <= found
        assert cache.conflicts == []
        keys = [f"document {number}" for number in sorted(found)]
        lengths = cache.lengths(keys).tolist()
        assert lengths == [1 + number % 7 for number in sorted(found)]
        if found:
            starts = cache.index(keys)
            rows = torch.cat([start + torch.arange(n) for start, n in zip(starts, lengths, strict=True)])
            exact = TopK.from_logits(torch.cat([answers(number) for number in sorted(found)]), K)
            topk = cache.gather(rows)
            assert torch.equal(topk.ids, exact.ids)
            assert (topk.log_probs - exact.log_probs).abs().max() < 0.02
    return found


def kill_repeatedly(path: Path, times: int, seed: int) -> None:
    acknowledged, unacknowledged = set[int](), 0
    for acknowledged in killed_writers(KILLED, path, times, new=40, shared=20, seed=seed):
        unacknowledged += len(check(path, acknowledged) - acknowledged)
    # Otherwise no kill came between an append and the next acknowledgement.
    assert unacknowledged > 0
    with TeacherCache.create(path, V, K, UNCHECKED, exist_ok=True) as cache:
        assert cache.verify().sound
    remove_logs(path)
    check(path, acknowledged)


def test_kills_lose_no_acknowledged_document(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path / "c", 15, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_kills_lose_no_acknowledged_document(tmp_path: Path, seed: int) -> None:
    kill_repeatedly(tmp_path / "c", 300, seed=seed)


WRITER = """
import sys, torch
from distillrs.trajectory import UNCHECKED, TeacherCache

path, first = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
with TeacherCache.create(path, 60, 9, UNCHECKED, exist_ok=True) as cache:
    for number in range(first, first + 40):
        generator = torch.Generator().manual_seed(number)
        cache.append(f"document {number}", torch.randn(1 + number % 7, 60, generator=generator))
"""


def test_processes_write_one_cache_at_the_same_time(tmp_path: Path) -> None:
    # Neighbours overlap by half: the same content from two writers is one document.
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "c"), str(20 * number)]) for number in range(2)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert check(tmp_path / "c", set(range(60))) == set(range(60))
