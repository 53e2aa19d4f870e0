"""Processes that write one store together, some of which are killed at any moment."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# The parent forks these many times; importing torch anew each time would take a second. What is put in for PARTS
# imports what it needs and defines write(path, first, last), a generator of the numbers whose writing is acknowledged.
NURSERY = """
import os, sys
import torch
PARTS

path, = sys.argv[1:]
torch.set_num_threads(1)

for line in sys.stdin:
    first, last = map(int, line.split())
    child = os.fork()
    if child == 0:
        out = os.fdopen(os.dup(1), "w", buffering=1)
        # By itself, so that nothing it does can be heard of before.
        print("child", os.getpid(), file=out)
        for number in write(path, first, last):
            print("acknowledged", number, file=out)
        print("done", 0, file=out)
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", 0, flush=True)
"""


def killed_writers(parts: str, path: Path, times: int, *, new: int, shared: int, seed: int = 0) -> Iterator[set[int]]:
    """Lets writers run and kills them, one after another; three in turn begin at the same number.

    Args:
        parts: Source of the writer's `write(path, first, last)`, a generator of the numbers it has made durable.
        path: The store.
        times: How many writers.
        new: Numbers that every third writer adds.
        shared: Numbers beyond those, which the next ones begin again.
        seed: Of when they are killed.

    Yields:
        What was acknowledged so far, after each writer's end.
    """
    draw = random.Random(seed)
    program = NURSERY.replace("PARTS", parts)
    acknowledged: set[int] = set()
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=-1, stdout=-1, text=True) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for turn in range(times):
            first = new * (turn // 3)
            nursery.stdin.write(f"{first} {first + new + shared}\n")
            nursery.stdin.flush()
            word, number = nursery.stdout.readline().split()
            assert word == "child"
            child = int(number)
            patience, heard = draw.randrange(0, 20), 0
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
            yield acknowledged
    assert nursery.returncode == 0


def remove_logs(path: Path) -> None:
    """Once all is sealed, what remains is the log of a writer that died before its first whole record: nothing."""
    for log in path.glob("*.dlog"):
        log.unlink()
