"""The store against a plain dictionary, through creation, crashes, resumption, sealing and reopening."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from distillrs.errors import ArgumentError, KeyConflict, KeyNotFound, StoreLocked
from distillrs.testing import strategies
from distillrs.trajectory import Column, DeltaInt8, Lossless, Schema, Store, Writer

SCHEMA = Schema(
    raw=Column((3,), "bfloat16"),
    exact=Column((5,), "float32", codec=Lossless(keyframe_every=3)),
    rounded=Column((300,), "float32", codec=DeltaInt8(keyframe_every=4)),
    rows=Column((2,), "int16", ragged=True),
)
KEYS = st.sampled_from(["a", "b", "a/theta", "ü", ".."])
NAMES = st.sampled_from(list(SCHEMA))


def record(number: int, rows: int) -> dict[str, Tensor]:
    """A record that its number determines; neighbours lie close, as delta codecs expect."""
    generator = torch.Generator().manual_seed(number)
    return {
        "raw": torch.randn(3, generator=generator).bfloat16(),
        "exact": torch.randn(5, generator=generator),
        "rounded": torch.linspace(-1, 1, 300) + 0.01 * torch.randn(300, generator=generator),
        "rows": torch.randint(-9, 9, (rows, 2), generator=generator, dtype=torch.int16),
    }


class StoreMachine(RuleBasedStateMachine):
    """One process that writes, and readers that open the store anew.

    ``trajectories`` holds what the store must hold: every record appended to a trajectory whose writer was not dropped
    by a crash, and at least those before the last flush where it was.
    """

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="distillrs-"))
        self.store = Store.create(self.folder / "s", SCHEMA, {"n": 1})
        self.reader: Store | None = None
        self.writers: dict[str, Writer] = {}
        self.trajectories: dict[str, list[dict[str, Tensor]]] = {}
        self.complete: set[str] = set()
        self.number = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(key=KEYS, target=keys)
    def begin(self, key: str) -> str:
        if key in self.complete:
            with pytest.raises(KeyConflict):
                self.store.begin(key)
        elif key in self.writers:
            with pytest.raises(StoreLocked):
                self.store.begin(key)
        else:
            self.writers[key] = self.store.begin(key)
            assert len(self.writers[key]) == len(self.trajectories.setdefault(key, []))
        return key

    @precondition(lambda self: set(self.trajectories) - set(self.writers) - self.complete)
    @rule(data=st.data())
    def resume_at(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(set(self.trajectories) - set(self.writers) - self.complete)))
        length = len(self.trajectories[key])
        at = data.draw(st.integers(0, length + 2))
        if at > length:
            with pytest.raises(ArgumentError, match="resume_at"):
                self.store.begin(key, resume_at=at)
            return
        self.writers[key] = self.store.begin(key, resume_at=at)
        del self.trajectories[key][at:]
        assert len(self.writers[key]) == at

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), rows=st.integers(0, 3), count=st.integers(1, 3))
    def append(self, data: st.DataObject, rows: int, count: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.writers)))
        for _ in range(count):
            self.number += 1
            values = record(self.number, rows)
            assert self.writers[key].append(**values) == len(self.trajectories[key])
            self.trajectories[key].append(values)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def refused_append(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.writers)))
        with pytest.raises(ArgumentError):
            self.writers[key].append(**{**record(0, 1), "raw": torch.zeros(4)})

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), how=st.sampled_from(["flush", "complete", "close", "crash"]))
    def end(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.writers)))
        if how == "flush":
            self.writers[key].flush()
            return
        writer = self.writers.pop(key)
        if how == "complete":
            writer.complete()
            self.complete.add(key)
        elif how == "close":
            writer.close()
        else:
            self.store._writers.discard(writer)
            del writer

    @rule()
    def seal(self) -> None:
        report = self.store.seal()
        assert set(report.sealed) <= self.complete
        assert report.skipped == ()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.writers.clear()
        self.store = Store.create(self.folder / "s", SCHEMA, exist_ok=True)

    @rule()
    def open_reader(self) -> None:
        self.reader = Store.open(self.folder / "s", verify="always")
        self.check_listing(self.reader)

    @precondition(lambda self: self.reader is not None)
    @rule()
    def refresh_reader(self) -> None:
        assert self.reader is not None
        self.reader.refresh()
        self.check_listing(self.reader)

    @precondition(lambda self: any(self.trajectories.values()))
    @rule(data=st.data(), name=NAMES)
    def read(self, data: st.DataObject, name: str) -> None:
        # A reader knows what was there when it looked; the writing store knows everything.
        key = data.draw(st.sampled_from(sorted(key for key, records in self.trajectories.items() if records)))
        self.store.refresh()
        records = self.trajectories[key]
        steps = data.draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=4))
        for step in steps:
            self.compare(self.store.read(key, step, name), records[step][name], name)
        if name != "rows":
            many = self.store.read(key, steps, name)
            for value, step in zip(many, steps, strict=True):
                self.compare(value, records[step][name], name)
        with pytest.raises(ArgumentError, match="step"):
            self.store.read(key, len(records), name)

    @precondition(lambda self: any(len(self.trajectories[key]) > 1 for key in self.complete))
    @rule(data=st.data(), name=NAMES)
    def window(self, data: st.DataObject, name: str) -> None:
        key = data.draw(st.sampled_from(sorted(key for key in self.complete if len(self.trajectories[key]) > 1)))
        records = self.trajectories[key]
        span = data.draw(st.integers(1, len(records) - 1))
        start = data.draw(st.integers(0, len(records) - 1 - span))
        first, last = Store.open(self.folder / "s").window(key, name, start=start, span=span)
        self.compare(first, records[start][name], name)
        self.compare(last, records[start + span][name], name)
        with pytest.raises(ArgumentError, match="start"):
            self.store.window(key, name, start=len(records) - span, span=span)
        assert all(
            start + span < len(self.trajectories[key]) and key in self.complete
            for key, start in self.store.sample(span, units=5, step=self.number)
        )

    @invariant()
    def the_store_lists_what_there_is(self) -> None:
        self.store.refresh()
        self.check_listing(self.store)
        with pytest.raises(KeyNotFound):
            self.store.read("nowhere", 0, "raw")

    def check_listing(self, store: Store) -> None:
        assert store.keys() == sorted(self.complete)
        assert store.lengths() == {key: len(self.trajectories[key]) for key in sorted(self.complete)}
        # A trajectory that was begun and holds no record may be listed or not.
        begun = {key: length for key, length in store.lengths(incomplete=True).items() if length}
        assert begun == {
            key: len(self.trajectories[key]) for key in sorted(self.trajectories) if self.trajectories[key]
        }
        assert store.metadata == {"n": 1}
        assert store.schema == SCHEMA

    @staticmethod
    def compare(found: Tensor, expected: Tensor, name: str) -> None:
        assert found.shape == expected.shape
        if name == "rounded":
            assert (found - expected).abs().max() < 1e-2
        else:
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(stateful_step_count=30, parent=settings(max_examples=settings().max_examples // 2))


@given(strategies.stores())
def test_any_store_gives_back_its_contents(filled: strategies.FilledStore) -> None:
    store, contents = filled.store, filled.contents
    assert store.keys() == sorted(contents)
    for key, trajectory in contents.items():
        for step, expected in enumerate(trajectory):
            for name, value in expected.items():
                found = store.read(key, step, name)
                assert found.dtype == value.dtype
                assert found.shape == value.shape
                assert torch.equal(_bits(found), _bits(value))
    assert store.verify().sound


def _bits(value: Tensor) -> Any:
    return value.reshape(-1).view(torch.uint8)
