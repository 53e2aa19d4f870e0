"""One store, read from many threads while another writes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from distillrs.trajectory import Column, DeltaInt8, Schema, Store

SCHEMA = Schema(raw=Column((5000,), "float32"), coded=Column((5000,), "float32", codec=DeltaInt8(keyframe_every=6)))


def value(number: int, step: int) -> torch.Tensor:
    return torch.full((5000,), 1000.0 * number + step)


def write(store: Store, number: int, steps: int = 12) -> None:
    with store.begin(f"expert-{number}") as writer:
        for step in range(steps):
            writer.append(raw=value(number, step), coded=value(number, step))


@pytest.mark.parametrize("verify", ["first", "always", "never"])
def test_threads_see_the_same_records(tmp_path: Path, verify: str) -> None:
    with Store.create(tmp_path / "s", SCHEMA) as writable:
        for number in range(6):
            write(writable, number)
    store = Store.open(tmp_path / "s", verify=verify)  # type: ignore[arg-type]  # the parameter is one of the three
    start = threading.Barrier(8)

    def read(seed: int) -> int:
        start.wait()
        for key, first in store.sample(3, units=60, step=seed):
            number = int(key[-1])
            for name in ("raw", "coded"):
                pair = store.window(key, name, start=first, span=3)
                assert torch.allclose(pair[0], value(number, first), atol=0.05)
                assert torch.allclose(pair[1], value(number, first + 3), atol=0.05)
            assert store.view(key, first, "raw")[0] == 1000 * number + first
        return seed

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, range(8))) == list(range(8))


def test_threads_write_their_own_trajectories_while_others_read(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", SCHEMA) as store:
        write(store, 0)
        done = threading.Event()

        def read(_: int) -> int:
            count = 0
            while not done.is_set() or count == 0:
                for key, length in store.lengths().items():
                    assert length == 12
                    assert torch.equal(store.read(key, 11, "raw"), value(int(key[-1]), 11))
                    count += 1
            return count

        with ThreadPoolExecutor(6) as threads:
            readers = [threads.submit(read, number) for number in range(3)]
            for writer in [threads.submit(write, store, number) for number in range(1, 6)]:
                writer.result()
            store.seal()
            done.set()
            assert all(reader.result() > 0 for reader in readers)
    assert len(Store.open(tmp_path / "s")) == 6
