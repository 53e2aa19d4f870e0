"""Several processes label into one cache; some are killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distillrs.trajectory import UNCHECKED, LabelCache

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")

CLASSES = 7

# The parent forks these many times; importing torch anew each time would take a second.
NURSERY = """
import os, sys
import torch
from distillrs.trajectory import UNCHECKED, LabelCache

path, = sys.argv[1:]
torch.set_num_threads(1)

def answers(image, view):
    return torch.randn(7, generator=torch.Generator().manual_seed(100 * view + image))

for line in sys.stdin:
    first, last = map(int, line.split())
    child = os.fork()
    if child == 0:
        out = os.fdopen(os.dup(1), "w", buffering=1)
        with LabelCache.create(path, 7, UNCHECKED, exist_ok=True) as cache:
            for view in range(first, last):
                for begin in (0, 10):
                    left = cache.missing(range(begin, begin + 12), view).tolist()
                    if left:
                        cache.append(left, view, torch.stack([answers(image, view) for image in left]), seed=view)
                if view % 2 == 0:
                    cache.flush()
                    print("acknowledged", view, file=out)
        print("done", 0, file=out)
        os._exit(0)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("ended", 0, flush=True)
"""


def answers(image: int, view: int) -> torch.Tensor:
    return torch.randn(CLASSES, generator=torch.Generator().manual_seed(100 * view + image))


def check(path: Path, due: set[int]) -> int:
    """Compares every label that is there; all of the views that are due are among them. Gives their number."""
    with LabelCache.open(path, UNCHECKED, verify="always") as cache:
        assert cache.conflicts == []
        for view in cache.views():
            images = cache.images(view)
            if view in due:
                assert images.tolist() == list(range(22))
            rows = cache.index(images, view)
            assert cache.seeds(rows).eq(view).all()
            exact = torch.stack([answers(image, view) for image in images.tolist()]).log_softmax(-1)
            torch.testing.assert_close(cache.gather(rows), exact, rtol=0, atol=0.01)
        assert due <= set(cache.views())
        return len(cache)


def test_kills_lose_no_acknowledged_label(tmp_path: Path) -> None:
    path, draw = tmp_path / "c", random.Random(0)
    nursery = subprocess.Popen([sys.executable, "-c", NURSERY, str(path)], stdin=-1, stdout=-1, text=True)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    acknowledged: set[int] = set()
    beyond = 0
    for turn in range(15):
        first = 24 * (turn // 3)  # the next writer goes on where a killed one ended
        nursery.stdin.write(f"{first} {first + 36}\n")
        nursery.stdin.flush()
        child = int(nursery.stdout.readline().split()[1])
        patience, heard = draw.randrange(0, 18), 0
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
        beyond += check(path, acknowledged) - 22 * len(acknowledged)
    nursery.stdin.close()
    assert nursery.wait(30) == 0
    nursery.stdout.close()
    # Otherwise no kill came between an append and the next acknowledgement.
    assert beyond > 0
    with LabelCache.create(path, CLASSES, UNCHECKED, exist_ok=True) as cache:
        assert cache.verify().sound
    # All is sealed: the log of a writer that died before its first whole record may stay, and holds nothing.
    for log in path.glob("*.dlog"):
        log.unlink()
    check(path, acknowledged)
