"""Stores inside DataLoader workers, under every way to start them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distillrs.trajectory import Column, Schema, Store


class Pairs(Dataset[Tensor]):
    """Every (t, t + 2) pair of every trajectory."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.windows = [(key, start) for key, length in store.lengths().items() for start in range(length - 2)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        key, start = self.windows[index]
        return torch.stack(self.store.window(key, start=start, span=2))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    with Store.create(path, Schema(theta=Column((500,), "float32", codec="delta-int8"))) as store:
        for number in range(4):
            with store.begin(f"expert-{number}") as writer:
                for step in range(8):
                    writer.append(theta=torch.full((500,), 100.0 * number + step))
    return path


@pytest.fixture(autouse=True)
def _workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers that are not forked import the data set's class by the name of this module.
    monkeypatch.syspath_prepend(Path(__file__).parents[len(__name__.split(".")) - 1])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_workers_read_what_the_parent_reads(path: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"the system has no {method}")
    store = Store.open(path)
    # Mapped and verified in the parent first: a forked child inherits both.
    here = torch.stack(list(Pairs(store)))
    loader = DataLoader(Pairs(store), batch_size=5, num_workers=2, multiprocessing_context=method)
    assert torch.equal(torch.cat(list(loader)), here)


def test_a_store_that_may_write_reaches_workers_as_a_reader(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Schema(theta=Column((3,), "float32"))) as store:
        with store.begin("a") as writer:
            for step in range(6):
                writer.append(theta=[step, step, step])
        batches = list(DataLoader(Pairs(store), batch_size=4, num_workers=1, multiprocessing_context="spawn"))
    assert torch.cat(batches)[:, :, 0].tolist() == [[0, 2], [1, 3], [2, 4], [3, 5]]


def test_a_forked_child_prefetches_for_itself(path: Path) -> None:
    store = Store.open(path)
    expected = [batch.windows for batch in store.loader(2, steps=5, units=2)]
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    receive, send = context.Pipe()
    child = context.Process(target=_prefetch, args=(store, send))
    child.start()
    assert receive.poll(60)
    assert receive.recv() == expected
    child.join(60)
    assert child.exitcode == 0


def _prefetch(store: Store, send: multiprocessing.connection.Connection) -> None:
    send.send([batch.windows for batch in store.loader(2, steps=5, units=2)])
