"""Several processes write into one store, with nothing between them but its files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillrs.errors import StoreLocked
from distillrs.trajectory import Column, Schema, Store

SCHEMA = Schema(theta=Column((1000,), "float32"))

WRITER = """
import os, signal, sys
import torch
from distillrs.errors import StoreLocked
from distillrs.trajectory import Column, Schema, Store

path, name, count, die_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
appended = 0
with Store.create(path, Schema(theta=Column((1000,), "float32")), exist_ok=True) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(count):
        key = f"{name}-{number}"
        if key in store:
            continue
        with store.begin(key) as writer:
            for step in range(len(writer), 10):
                writer.append(theta=torch.full((1000,), number + step / 16))
                writer.flush()
                appended += 1
                if appended == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(path: Path, name: str, *, count: int = 6, die_at: int = -1) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count), str(die_at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.close()


def end(process: subprocess.Popen[bytes]) -> int:
    code = process.wait(60)
    assert process.stdout is not None
    process.stdout.close()
    return code


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_two_writers_at_once_one_killed_and_restarted(tmp_path: Path) -> None:
    # Neither made the store beforehand: creation itself is raced for.
    path = tmp_path / "s"
    steady, doomed = start(path, "steady"), start(path, "doomed", die_at=27)
    go(steady)
    go(doomed)
    assert end(doomed) == -signal.SIGKILL
    assert Store.open(path).lengths(incomplete=True)["doomed-2"] == 7
    again = start(path, "doomed")
    go(again)
    assert end(again) == 0
    assert end(steady) == 0
    store = Store.open(path, verify="always")
    assert store.keys() == sorted(f"{name}-{number}" for name in ("steady", "doomed") for number in range(6))
    assert store.lengths() == dict.fromkeys(store.keys(), 10)
    for key in store.keys():  # noqa: SIM118  # a store is no mapping: iterating it means nothing
        number = int(key[-1])
        expected = number + torch.arange(10)[:, None].expand(10, 1000) / 16
        assert torch.equal(store.read(key, range(10)), expected)
    assert not list(path.glob("log-*.dlog"))


def test_a_lock_of_another_process_names_it(tmp_path: Path) -> None:
    Store.create(tmp_path / "s", SCHEMA).close()
    script = """
import sys
from distillrs.trajectory import Store
store = Store.create(sys.argv[1], Store.open(sys.argv[1]).schema, exist_ok=True)
writer = store.begin("a")
print("locked", flush=True)
sys.stdin.readline()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"locked\n"
    store = Store.create(tmp_path / "s", SCHEMA, exist_ok=True)
    with pytest.raises(StoreLocked) as caught:
        store.begin("a")
    assert str(caught.value.process) == str(holder.pid)
    assert str(holder.pid) in str(caught.value)
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    store.begin("a").close()


def test_a_sealing_process_leaves_another_s_open_trajectory_alone(tmp_path: Path) -> None:
    mine = Store.create(tmp_path / "s", SCHEMA)
    writer = mine.begin("mine")
    writer.append(theta=torch.zeros(1000))
    other = start(tmp_path / "s", "other", count=2)
    go(other)
    assert end(other) == 0
    writer.append(theta=torch.ones(1000))
    writer.complete()
    assert Store.open(tmp_path / "s").lengths() == {"mine": 2, "other-0": 10, "other-1": 10}
    mine.close()


def test_readers_keep_reading_while_a_writer_appends_and_seals(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store.create(path, SCHEMA) as store, store.begin("steady-9") as writer:
        for step in range(10):
            writer.append(theta=torch.full((1000,), 9 + step / 16))
    reader = Store.open(path)
    busy = start(path, "steady", count=9)
    go(busy)
    seen: set[str] = set()
    while busy.poll() is None or len(seen) < 10:
        reader.refresh()
        for key, length in reader.lengths().items():
            seen.add(key)
            assert length == 10
            assert torch.equal(reader.read(key, 9), torch.full((1000,), int(key[-1]) + 9 / 16))
        assert os.path.exists(path / "manifest.json")
    assert end(busy) == 0
