from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distillrs.errors import ArgumentError, DataError, StoreError
from distillrs.step import Step
from distillrs.trajectory import Column, Schema, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    schema = Schema(theta=Column((3,), "float32"), tokens=Column((), "int8", ragged=True))
    with Store.create(tmp_path / "s", schema) as writable:
        for number in range(4):
            with writable.begin(f"expert-{number}") as writer:
                for step in range(10):
                    writer.append(theta=[number, step, 0], tokens=[])
    yield Store.open(tmp_path / "s")
    # A dropped iterator tells its thread to end and does not wait for it.
    for thread in threading.enumerate():
        if thread.name == "distillrs-windows":
            thread.join(10)
            assert not thread.is_alive()


def test_batches_are_the_windows_that_sampling_gives(store: Store) -> None:
    loader = store.loader(2, range(5), steps=20, column="theta", units=3, seed=9)
    assert len(loader) == 20
    seen = 0
    for batch in loader:
        windows = store.sample(2, range(5), units=3, step=Step(batch.step, seed=9))
        assert batch.windows == windows
        for unit, (key, start) in enumerate(windows):
            number = int(key[-1])
            assert batch.first[unit].tolist() == [number, start, 0]
            assert batch.last[unit].tolist() == [number, start + 2, 0]
        assert batch.step == seen
        seen += 1
    assert seen == 20


def test_a_restart_goes_on_where_it_stopped_and_ranks_share(store: Store) -> None:
    whole = [(batch.windows, batch.first.clone()) for batch in store.loader(1, steps=8, column="theta", units=4)]
    later = [
        (batch.windows, batch.first.clone()) for batch in store.loader(1, steps=range(5, 8), column="theta", units=4)
    ]
    rank = [batch.windows for batch in store.loader(1, steps=8, column="theta", units=range(2, 4))]
    assert [windows for windows, _ in later] == [windows for windows, _ in whole[5:]]
    assert all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in zip(later, whole[5:], strict=True))
    assert rank == [windows[2:] for windows, _ in whole]


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(store: Store) -> None:
    with iter(store.loader(1, steps=50, column="theta", prefetch=3)) as batches:
        for batch in batches:
            kept = batch.first.clone()
            time.sleep(0.001)
            assert torch.equal(batch.first, kept)


def test_buffers_are_reused(store: Store) -> None:
    pointers = {batch.first.data_ptr() for batch in store.loader(1, steps=40, column="theta", prefetch=2)}
    assert len(pointers) <= 3


def test_each_pass_begins_anew(store: Store) -> None:
    loader = store.loader(1, steps=3, column="theta")
    assert [batch.windows for batch in loader] == [batch.windows for batch in loader]


def test_leaving_early_ends_the_thread(store: Store) -> None:
    loader = store.loader(1, steps=10_000, column="theta")
    with iter(loader) as batches:
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    batches.close()
    for _ in loader:
        break


def test_a_dropped_iterator_ends_its_thread(store: Store) -> None:
    batches = iter(store.loader(1, steps=10_000, column="theta"))
    next(batches)
    thread = batches._thread
    del batches
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_an_error_in_the_thread_reaches_the_consumer(store: Store) -> None:
    def curriculum(step: Step) -> range:
        if step.index == 3:
            raise ZeroDivisionError("step 3")
        return range(5)

    batches = iter(store.loader(1, curriculum, steps=10, column="theta", prefetch=1))
    for _ in range(3):
        next(batches)
    with pytest.raises(ZeroDivisionError, match="step 3"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_damage_reaches_the_consumer(tmp_path: Path) -> None:
    with Store.create(tmp_path / "d", Schema(theta=Column((3,), "float32"))) as writable, writable.begin("a") as writer:
        for step in range(2):
            writer.append(theta=[step, 1234.5, step])
    (segment,) = (tmp_path / "d").glob("seg-*")
    data = segment.read_bytes()
    place = data.rindex(torch.tensor([1234.5]).numpy().tobytes())
    segment.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    with pytest.raises(StoreError):
        next(iter(Store.open(tmp_path / "d").loader(1, steps=1)))


def test_refused_arguments_name_themselves(store: Store) -> None:
    with pytest.raises(ArgumentError, match="prefetch: got 0"):
        store.loader(1, steps=1, column="theta", prefetch=0)
    with pytest.raises(ArgumentError, match="units: got 0"):
        store.loader(1, steps=1, column="theta", units=0)
    with pytest.raises(ArgumentError, match=r"steps: got range\(5, 0, -1\)"):
        store.loader(1, steps=range(5, 0, -1), column="theta")
    with pytest.raises(ArgumentError, match="span: got 0"):
        store.loader(0, steps=1, column="theta")
    with pytest.raises(ArgumentError, match="column: got None"):
        store.loader(1, steps=1)
    with pytest.raises(ArgumentError, match="column: got 'tokens', allowed is a column of fixed shape"):
        store.loader(1, steps=1, column="tokens")
    with pytest.raises(ArgumentError, match=r"start: got range\(9, 10\)"):
        next(iter(store.loader(1, range(9, 10), steps=1, column="theta")))
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match="pin_memory: got True"):
            store.loader(1, steps=1, column="theta", pin_memory=True)


def test_an_empty_store_is_told(tmp_path: Path) -> None:
    empty = Store.create(tmp_path / "e", Schema(theta=Column((3,), "float32")))
    with pytest.raises(DataError, match="no complete trajectory"):
        next(iter(empty.loader(1, steps=1)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_iterator_from_before_a_fork_refuses_instead_of_hanging(store: Store) -> None:
    with iter(store.loader(1, steps=100, column="theta")) as batches:
        next(batches)
        child = os.fork()
        if child == 0:
            try:
                next(batches)
                os._exit(1)
            except StoreError:
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.gpu
def test_pinned_batches_reach_a_device_while_the_next_is_read(store: Store) -> None:
    kept = []
    for batch in store.loader(1, steps=30, column="theta", units=2, pin_memory=True):
        assert batch.first.is_pinned()
        kept.append((batch.windows, batch.last.to("cuda", non_blocking=True)))
        torch.cuda.synchronize()
    for windows, last in kept:
        assert last.cpu().tolist() == [[int(key[-1]), start + 1, 0] for key, start in windows]
