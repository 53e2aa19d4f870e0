"""Several processes write one cache; some are killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distillrs.ops import TopK
from distillrs.trajectory import UNCHECKED, TeacherCache

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")

V, K = 60, 9

# The parent forks these many times; importing torch anew each time would take a second.
NURSERY = """
import os, sys
import torch
from distillrs.trajectory import UNCHECKED, TeacherCache

path, = sys.argv[1:]
torch.set_num_threads(1)

def answers(number):
    return torch.randn(1 + number % 7, 60, generator=torch.Generator().manual_seed(number))

for line in sys.stdin:
    first, last = map(int, line.split())
    child = os.fork()
    if child == 0:
        out = os.fdopen(os.dup(1), "w", buffering=1)
        with TeacherCache.create(path, 60, 9, UNCHECKED, exist_ok=True) as cache:
            for key in cache.missing([f"document {number}" for number in range(first, last)]):
                cache.append(key, answers(int(key.split()[1])))
                if int(key.split()[1]) % 3 == 0:
                    cache.flush()
                    print("acknowledged", key.split()[1], file=out)
        print("done", 0, file=out)
        os._exit(0)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("ended", 0, flush=True)
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
    draw = random.Random(seed)
    nursery = subprocess.Popen([sys.executable, "-c", NURSERY, str(path)], stdin=-1, stdout=-1, text=True)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    acknowledged: set[int] = set()
    unacknowledged = 0
    for turn in range(times):
        first = 40 * (turn // 3)  # the next writer goes on where a killed one ended
        nursery.stdin.write(f"{first} {first + 60}\n")
        nursery.stdin.flush()
        child = int(nursery.stdout.readline().split()[1])
        patience, heard = draw.randrange(0, 22), 0
        while True:
            if heard == patience:
                time.sleep(draw.random() * 0.002)
                subprocess.run(["kill", "-9", str(child)], check=False, stderr=subprocess.DEVNULL)
            word, number = nursery.stdout.readline().split()
            if word == "ended":
                break
            heard += 1
            if word == "acknowledged":
                acknowledged.add(int(number))
        unacknowledged += len(check(path, acknowledged) - acknowledged)
    nursery.stdin.close()
    assert nursery.wait(30) == 0
    nursery.stdout.close()
    # Otherwise no kill came between an append and the next acknowledgement.
    assert unacknowledged > 0
    with TeacherCache.create(path, V, K, UNCHECKED, exist_ok=True) as cache:
        assert cache.verify().sound
    # All is sealed: the log of a writer that died before its first whole record may stay, and holds nothing.
    for log in path.glob("*.dlog"):
        log.unlink()
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
