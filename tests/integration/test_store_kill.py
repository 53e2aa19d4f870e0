"""A writer that is killed at any moment loses no record that it acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distillrs.trajectory import Column, DeltaInt8, Schema, Store

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")

SCHEMA = Schema(
    theta=Column((700,), "float32"),
    coded=Column((700,), "float32", codec=DeltaInt8(keyframe_every=5)),
    rows=Column((), "int64", ragged=True),
)

# The parent forks this child many times; importing torch anew each time would take a second.
WRITER = """
import os, sys, signal
import torch
from distillrs.trajectory import Column, DeltaInt8, Schema, Store

path, = sys.argv[1:]
torch.set_num_threads(1)
schema = Schema(
    theta=Column((700,), "float32"),
    coded=Column((700,), "float32", codec=DeltaInt8(keyframe_every=5)),
    rows=Column((), "int64", ragged=True),
)
for line in sys.stdin:
    key, count = line.split()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        store = Store.create(path, schema, exist_ok=True)
        writer = store.begin(key)
        out = os.fdopen(os.dup(1), "w", buffering=1)
        print("from", len(writer), file=out)
        for step in range(len(writer), len(writer) + int(count)):
            value = torch.full((700,), float(step))
            writer.append(theta=value, coded=value, rows=list(range(step % 4)))
            if step % 3 == 2:
                writer.flush()
                print("acknowledged", step + 1, file=out)
        writer.complete()
        print("complete", len(writer), file=out)
        os._exit(0)
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def check(store: Store, key: str, acknowledged: int) -> int:
    """The trajectory's length, after every record of it was compared."""
    length = store.lengths(incomplete=True).get(key, 0)
    assert length >= acknowledged
    if length:
        values = torch.arange(length, dtype=torch.float32)[:, None].expand(length, 700)
        assert torch.equal(store.read(key, range(length), "theta"), values)
        assert (store.read(key, range(length), "coded") - values).abs().max() < 0.02
        offsets = store.read_ragged(key, range(length), "rows").offsets
        assert (offsets[1:] - offsets[:-1]).tolist() == [step % 4 for step in range(length)]
    return length


def kill_repeatedly(path: Path, times: int, seed: int) -> None:
    draw = random.Random(seed)
    Store.create(path, SCHEMA).close()
    nursery = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    acknowledged: dict[str, int] = {}
    complete: set[str] = set()
    killed = 0
    number = 0
    torn = 0
    while killed < times:
        key = f"expert-{number}"
        nursery.stdin.write(f"{key} {draw.randrange(20, 200)}\n".encode())
        nursery.stdin.flush()
        child = int(nursery.stdout.readline().split()[1])
        started = int(nursery.stdout.readline().split()[1])
        assert started >= acknowledged.get(key, 0)
        patience = draw.randrange(0, 12)
        delay = draw.random() * 0.004
        heard: list[str] = []
        while True:
            if len(heard) == patience:
                time.sleep(delay)
                os.kill(child, signal.SIGKILL)
                killed += 1
            line = nursery.stdout.readline().decode().split()
            if line[0] == "ended":
                break
            heard.append(line[0])
            if line[0] == "acknowledged":
                acknowledged[key] = int(line[1])
            elif line[0] == "complete":
                acknowledged[key] = int(line[1])
                complete.add(key)
        with Store.open(path, verify="always") as store:
            length = check(store, key, acknowledged.get(key, 0))
            torn += length > acknowledged.get(key, 0)
            if key in complete:
                assert key in store
            elif key in store:
                # The kill came between completing and saying so.
                complete.add(key)
        # Some trajectories are killed again and again before they are left incomplete or completed.
        if key in complete or draw.random() < 0.3:
            number += 1
        if draw.random() < 0.1:
            with Store.create(path, SCHEMA, exist_ok=True):
                pass
    nursery.stdin.close()
    assert nursery.wait(30) == 0
    nursery.stdout.close()
    with Store.create(path, SCHEMA, exist_ok=True) as store:
        assert store.verify().sound
    with Store.open(path, verify="always") as store:
        assert complete <= set(store.keys())
        for key, count in acknowledged.items():
            check(store, key, count)
    # Otherwise every kill would have come between an acknowledgement and the next append.
    assert torn > 0


def test_fifty_kills_lose_no_acknowledged_record(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path / "s", 50, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_two_thousand_kills_lose_no_acknowledged_record(tmp_path: Path, seed: int) -> None:
    kill_repeatedly(tmp_path / "s", 500, seed=seed)
