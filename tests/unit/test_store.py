from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distillrs.errors import (
    ArgumentError,
    KeyConflict,
    KeyNotFound,
    SchemaMismatch,
    StoreCorrupt,
    StoreError,
    StoreExists,
    StoreLocked,
    StoreMissing,
    UnknownNameError,
)
from distillrs.trajectory import Column, DeltaInt8, ParameterLayout, Schema, Store, Writer

THETA = Schema(theta=Column((4,), "float32"))
RAGGED = Schema(tokens=Column((2,), "int32", ragged=True), loss=Column((), "float64"))


def vector(number: int) -> Tensor:
    return torch.arange(4, dtype=torch.float32) + 10 * number


def filled(path: Path, *, trajectories: int = 2, steps: int = 5, seal: bool = True) -> Store:
    store = Store.create(path, THETA, {"note": "n"}, exist_ok=True)
    for number in range(trajectories):
        with store.begin(f"expert-{number}") as writer:
            for step in range(steps):
                writer.append(theta=vector(100 * number + step))
    if seal:
        store.seal()
    return store


def test_a_model_s_trajectory_goes_in_and_comes_out(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    layout = ParameterLayout.of(model)
    schema = Schema(theta=layout.column(codec="delta-int8"))
    metadata = {"layout": layout.to_dict()}
    with (
        Store.create(tmp_path / "experts", schema, metadata=metadata, exist_ok=True) as store,
        store.begin("expert-0") as expert,
    ):
        for _ in range(6):
            expert.append(theta=layout.flatten(model))
            expert.flush()
            with torch.no_grad():
                model.weight.add_(0.01)
    store = Store.open(tmp_path / "experts")
    first, last = torch.empty(layout.size), torch.empty(layout.size)
    start, end = store.window("expert-0", column="theta", start=3, span=2, out=(first, last))
    assert start is first
    assert end is last
    assert ParameterLayout.from_dict(store.metadata["layout"]) == layout
    assert torch.allclose(end[:6] - start[:6], torch.full((6,), 0.02), atol=1e-3)
    assert (end - start).norm() > 0
    error = store.codec_error("expert-0")
    assert error is not None
    assert 0 <= error.mean <= error.maximum < 0.02
    assert error.records > 0


@pytest.mark.parametrize("seal", [False, True])
def test_records_are_read_bit_for_bit(tmp_path: Path, seal: bool) -> None:
    store = filled(tmp_path / "s", seal=seal)
    for reader in (store, Store.open(tmp_path / "s")):
        assert reader.keys() == ["expert-0", "expert-1"]
        assert reader.lengths() == {"expert-0": 5, "expert-1": 5}
        assert len(reader) == 2
        assert "expert-1" in reader
        assert "expert-2" not in reader
        assert torch.equal(reader.read("expert-1", 3), vector(103))
        assert torch.equal(reader.read("expert-1", [4, 0, 4]), torch.stack([vector(104), vector(100), vector(104)]))
        assert torch.equal(reader.read("expert-0", range(5)), torch.stack([vector(step) for step in range(5)]))
        assert reader.read("expert-0", []).shape == (0, 4)
        out = torch.empty(2, 4)
        assert reader.read("expert-0", range(2), out=out) is out
        assert torch.equal(out[1], vector(1))


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seal", [False, True])
def test_every_type_keeps_its_bits(tmp_path: Path, dtype: torch.dtype, seal: bool) -> None:
    high = 2 if dtype is torch.bool else 256
    bits = [torch.randint(0, high, (3 * dtype.itemsize,), dtype=torch.uint8) for _ in range(2)]
    records = [each.view(dtype) for each in bits]
    with Store.create(tmp_path / "s", Schema(x=Column((3,), dtype))) as store, store.begin("a") as writer:
        for record in records:
            writer.append(x=record)
        if not seal:
            writer.complete()
            first, last = Store.open(tmp_path / "s").window("a", start=0, span=1)
    if seal:
        first, last = Store.open(tmp_path / "s").window("a", start=0, span=1)
    assert first.dtype == last.dtype == dtype
    assert torch.equal(first.view(torch.uint8), bits[0])
    assert torch.equal(last.view(torch.uint8), bits[1])


def test_a_sealed_segment_opens_in_any_safetensors_reader(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    segments = list((tmp_path / "s").glob("seg-*.safetensors"))
    assert len(segments) == 1
    tensors = load_file(segments[0])
    assert torch.equal(tensors["expert-1/theta"], torch.stack([vector(100 + step) for step in range(5)]))
    assert not list((tmp_path / "s").glob("log-*.dlog"))


def test_numbers_lists_arrays_and_strided_tensors_are_taken(tmp_path: Path) -> None:
    schema = Schema(loss=Column((), "float64"), x=Column((2, 2), "float32"))
    store = Store.create(tmp_path / "s", schema)
    grid = torch.arange(4, dtype=torch.float32).reshape(2, 2)
    with store.begin("a") as writer:
        writer.append(loss=0.5, x=[[0, 1], [2, 3]])
        writer.append(loss=np.float64(1.5), x=grid.numpy())
        writer.append(loss=torch.tensor(2.5, dtype=torch.float64, requires_grad=True), x=grid.T)
        writer.append(loss=3, x=grid.repeat(1, 2)[:, ::2][:, [0, 1]])
    assert store.read("a", range(4), "loss").tolist() == [0.5, 1.5, 2.5, 3.0]
    assert torch.equal(store.read("a", 1, "x"), grid)
    assert torch.equal(store.read("a", 2, "x"), grid.T)


def test_an_appended_tensor_may_change_afterwards(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", THETA)
    value = vector(0)
    with store.begin("a") as writer:
        writer.append(theta=value)
        value.fill_(-1)
        writer.append(theta=value)
    first, last = store.window("a", start=0, span=1)
    assert torch.equal(first, vector(0))
    assert torch.equal(last, torch.full((4,), -1.0))


def test_refused_records_name_the_column_and_write_nothing(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", Schema(theta=Column((4,), "float32"), loss=Column((), "float64")))
    writer = store.begin("a")
    good: dict[str, Any] = {"theta": vector(0), "loss": 1.0}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"theta": vector(0)}, "columns: got 'theta', allowed is all of theta, loss"),
        ({}, "columns: got 'none'"),
        ({**good, "thetas": 1}, "column: got 'thetas'.*did you mean 'theta'"),
        ({**good, "theta": torch.zeros(5)}, r"theta: got 'float32 \[5\]', allowed is float32 of shape \[4\]"),
        ({**good, "theta": torch.zeros(4, 1)}, r"theta: got 'float32 \[4, 1\]'"),
        ({**good, "theta": torch.zeros(4).double()}, r"theta: got 'float64 \[4\]'"),
        ({**good, "theta": np.zeros(4)}, r"theta: got 'float64 \[4\]'"),
        ({**good, "theta": "abcd"}, "theta: got 'abcd'"),
        ({**good, "theta": torch.zeros(4).to_sparse()}, "theta: got 'torch.sparse_coo"),
        ({**good, "theta": torch.zeros(4, device="meta")}, "meta device"),
        ({**good, "loss": [1.0]}, r"loss: got 'float64 \[1\]', allowed is float64 of shape \[\]"),
    ]
    for record, message in cases:
        with pytest.raises(ArgumentError, match=message):
            writer.append(**record)
    assert len(writer) == 0
    assert writer.append(**good) == 0
    assert len(writer) == 1


def test_ragged_records_are_values_and_offsets(tmp_path: Path) -> None:
    rows = [3, 0, 5, 1]
    records = [torch.randint(0, 100, (count, 2), dtype=torch.int32) for count in rows]
    with Store.create(tmp_path / "s", RAGGED) as store, store.begin("a") as writer:
        for number, record in enumerate(records):
            writer.append(tokens=record, loss=number)
        writer.complete()
        self_read = store.read_ragged("a", range(4), "tokens")
    reader = Store.open(tmp_path / "s")
    for ragged in (self_read, reader.read_ragged("a", range(4), "tokens")):
        assert ragged.offsets.tolist() == [0, 3, 3, 8, 9]
        assert torch.equal(ragged.values, torch.cat(records))
    assert reader.read_ragged("a", [2, 1], "tokens").offsets.tolist() == [0, 5, 5]
    assert reader.read_ragged("a", [], "tokens").values.shape == (0, 2)
    assert torch.equal(reader.read("a", 2, "tokens"), records[2])
    assert reader.read("a", 1, "tokens").shape == (0, 2)
    first, last = reader.window("a", "tokens", start=0, span=3)
    assert torch.equal(first, records[0])
    assert torch.equal(last, records[3])
    assert reader.view("a", 2, "tokens").tolist() == records[2].tolist()
    with pytest.raises(ArgumentError, match=r"step: got range\(0, 4\), allowed is one step of the ragged column"):
        reader.read("a", range(4), "tokens")
    with pytest.raises(ArgumentError, match="column: got 'loss', allowed is a ragged column"):
        reader.read_ragged("a", range(4), "loss")


def test_an_empty_ragged_record_hides_nothing(tmp_path: Path) -> None:
    # It is the last column of the last record and brings no bytes of its own.
    schema = Schema(x=Column((3,), "int16"), rows=Column((), "int64", ragged=True))
    writer = Store.create(tmp_path / "s", schema).begin("a")
    for count in range(4):
        writer.append(x=[count] * 3, rows=[])
        writer.flush()
        reader = Store.open(tmp_path / "s")
        assert reader.lengths(incomplete=True) == {"a": count + 1}
        assert reader.read("a", count, "x").tolist() == [count] * 3
        assert reader.verify().tails == ()


def test_create_refuses_what_is_there_and_joins_when_asked(tmp_path: Path) -> None:
    Store.create(tmp_path / "s", THETA, {"data": "digits", "seed": 1}).close()
    with pytest.raises(StoreExists, match="s"):
        Store.create(tmp_path / "s", THETA)
    for metadata in (None, {"seed": 1, "data": "digits"}):
        joined = Store.create(tmp_path / "s", THETA, metadata, exist_ok=True)
        assert joined.metadata == {"data": "digits", "seed": 1}
        assert joined.writable
    with pytest.raises(SchemaMismatch):
        Store.create(tmp_path / "s", Schema(theta=Column((5,), "float32")), exist_ok=True)
    for other in ({"data": "mnist", "seed": 1}, {}):
        with pytest.raises(SchemaMismatch, match="metadata"):
            Store.create(tmp_path / "s", THETA, other, exist_ok=True)


def test_metadata_is_a_copy(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", THETA, {"list": [1]})
    store.metadata["list"].append(2)
    assert store.metadata == {"list": [1]}
    for bad in ({"x": torch.zeros(1)}, {"x": float("nan")}):
        with pytest.raises(ArgumentError, match="metadata: got"):
            Store.create(tmp_path / "t", THETA, bad)
    assert not (tmp_path / "t").exists()
    with pytest.raises(ArgumentError, match="schema: got"):
        Store.create(tmp_path / "t", {"theta": 1})  # type: ignore[arg-type]  # what is refused


def test_open_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        Store.open(tmp_path / "nothing")
    with pytest.raises(ArgumentError, match="verify: got 'sometimes', allowed is 'first', 'always' or 'never'"):
        Store.open(tmp_path, verify="sometimes")  # type: ignore[arg-type]  # what is refused


def test_an_exception_leaves_the_trajectory_incomplete_kept_and_resumable(tmp_path: Path) -> None:
    def break_off(store: Store) -> None:
        with store.begin("a") as writer:
            writer.append(theta=vector(0))
            writer.append(theta=vector(1))
            raise ZeroDivisionError

    with Store.create(tmp_path / "s", THETA) as store:
        with pytest.raises(ZeroDivisionError):
            break_off(store)
        assert store.keys() == []
        assert store.keys(incomplete=True) == ["a"]
        assert store.lengths(incomplete=True) == {"a": 2}
    reader = Store.open(tmp_path / "s")
    assert reader.keys() == []
    assert reader.lengths(incomplete=True) == {"a": 2}
    assert torch.equal(reader.read("a", 1), vector(1))
    with Store.create(tmp_path / "s", THETA, exist_ok=True) as store:
        with store.begin("a") as writer:
            assert len(writer) == 2
            assert writer.key == "a"
            assert writer.append(theta=vector(2)) == 2
        assert store.lengths() == {"a": 3}
    assert torch.equal(Store.open(tmp_path / "s").read("a", range(3)), torch.stack([vector(step) for step in range(3)]))


def test_resume_at_drops_the_records_from_there_on(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", THETA)
    writer = store.begin("a")
    for step in range(4):
        writer.append(theta=vector(step))
    writer.close()
    with store.begin("a", resume_at=2) as writer:
        assert len(writer) == 2
        assert writer.discarded["records"] == 2
        writer.append(theta=vector(9))
    assert torch.equal(store.read("a", range(3)), torch.stack([vector(0), vector(1), vector(9)]))


def test_resume_at_beyond_the_end_is_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", THETA)
    writer = store.begin("a")
    writer.append(theta=vector(0))
    writer.close()
    with pytest.raises(ArgumentError, match="resume_at: got 3"):
        store.begin("a", resume_at=3)
    store.begin("a", resume_at=1).close()
    for wrong in (-1, "1", 0.5):
        with pytest.raises(ArgumentError, match="resume_at: got"):
            store.begin("a", resume_at=wrong)  # type: ignore[arg-type]  # what the types forbid is refused by name too


@pytest.mark.parametrize("codec", ["delta-int8", "lossless", "half-delta"])
def test_coded_columns_resume_where_they_stopped(tmp_path: Path, codec: str) -> None:
    schema = Schema(theta=Column((600,), "float32", codec=codec))
    steps = torch.randn(12, 600).cumsum(0)
    whole, pieces = Store.create(tmp_path / "whole", schema), Store.create(tmp_path / "pieces", schema)
    with whole.begin("a") as writer:
        for step in steps:
            writer.append(theta=step)
    for at in (0, 1, 5, 9):
        writer = pieces.begin("a", resume_at=at)
        for step in steps[at : at + 6]:
            writer.append(theta=step)
        writer.close()
    with pieces.begin("a", resume_at=12):
        pass
    assert torch.equal(pieces.read("a", range(12)), whole.read("a", range(12)))
    if codec == "lossless":
        assert torch.equal(whole.read("a", range(12)), steps)


def test_a_complete_trajectory_is_not_begun_again(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", seal=False)
    with pytest.raises(KeyConflict, match="expert-0"):
        store.begin("expert-0")
    store.seal()
    with pytest.raises(KeyConflict, match="expert-0"):
        store.begin("expert-0")


def test_a_second_writer_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    import os
    import socket

    store = Store.create(tmp_path / "s", THETA)
    writer = store.begin("a")
    with pytest.raises(StoreLocked) as caught:
        Store.create(tmp_path / "s", THETA, exist_ok=True).begin("a")
    assert caught.value.host == socket.gethostname()
    assert str(caught.value.process) == str(os.getpid())
    writer.close()
    Store.create(tmp_path / "s", THETA, exist_ok=True).begin("a").close()


def test_a_store_opened_to_read_does_not_write(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "s").iterdir())
    with Store.open(tmp_path / "s") as store:
        assert not store.writable
        for call in (lambda: store.begin("a"), store.seal):
            with pytest.raises(ArgumentError, match="store: got 'one opened to read'"):
                call()
        store.read("expert-0", 0)
        assert store.verify().sound
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "s").iterdir()) == before


@pytest.mark.parametrize("key", ["", "x" * 5000, 3, None])
def test_keys_that_are_not_allowed_are_refused(tmp_path: Path, key: Any) -> None:
    store = Store.create(tmp_path / "s", THETA)
    with pytest.raises(ArgumentError, match="key: got"):
        store.begin(key)
    assert store.keys(incomplete=True) == []


@pytest.mark.parametrize("key", ["../up", "a/b", "a b", "é\u4e2d", "CON", "x" * 200, "a\nb"])
def test_any_other_text_is_a_key(tmp_path: Path, key: str) -> None:
    with Store.create(tmp_path / "s", THETA) as store, store.begin(key) as writer:
        writer.append(theta=vector(1))
    assert Store.open(tmp_path / "s").keys() == [key]
    assert torch.equal(Store.open(tmp_path / "s").read(key, 0), vector(1))
    assert list(tmp_path.iterdir()) == [tmp_path / "s"]


def test_refused_reads_name_what_is_wrong(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    with pytest.raises(KeyNotFound, match="expert-7"):
        store.read("expert-7", 0)
    with pytest.raises(KeyNotFound, match="expert-7"):
        store.window("expert-7", start=0, span=1)
    with pytest.raises(KeyNotFound, match="expert-7"):
        store.codec_error("expert-7")
    with pytest.raises(ArgumentError, match="key: got 3"):
        store.read(3, 0)  # type: ignore[arg-type]  # what is refused
    for step in (5, -1, 2.0, None):
        with pytest.raises(ArgumentError, match=rf"step: got {step}, allowed is a step from 0 to 4 of 'expert-0'"):
            store.read("expert-0", step)  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ArgumentError, match="step: got 5"):
        store.read("expert-0", [0, 5])
    with pytest.raises(UnknownNameError, match="did you mean 'theta'"):
        store.read("expert-0", 0, "theat")
    for out in (torch.empty(5), torch.empty(4).double(), torch.empty(8)[::2], torch.empty(4, requires_grad=True)):
        with pytest.raises(ArgumentError, match=r"out: got .*a contiguous float32 tensor of shape \[4\] on the CPU"):
            store.read("expert-0", 0, out=out)
    with pytest.raises(ArgumentError, match=r"out: got .*shape \[2, 4\]"):
        store.read("expert-0", [0, 1], out=torch.empty(4))


def test_a_view_is_read_only_without_a_copy_and_outlives_the_store(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    store = Store.open(tmp_path / "s")
    first, again = store.view("expert-0", 2), store.view("expert-0", 2)
    assert first.dtype == np.float32
    assert not first.flags.writeable
    assert first.ctypes.data == again.ctypes.data
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        first.flags.writeable = True
    store.close()
    del store
    gc.collect()
    assert first.tolist() == vector(2).tolist()


def test_a_view_of_a_type_that_numpy_lacks_gives_its_bits(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Schema(x=Column((3,), "bfloat16"))) as store, store.begin("a") as writer:
        writer.append(x=torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16))
    view = Store.open(tmp_path / "s").view("a", 0)
    assert view.dtype == np.uint16
    assert torch.from_numpy(view.copy()).view(torch.bfloat16).tolist() == [1.0, -2.0, 0.5]


def test_a_pickled_store_opens_its_path_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = filled(Path("s"))
    data = pickle.dumps(store)
    monkeypatch.chdir("/")
    copy = pickle.loads(data)
    assert not copy.writable
    assert torch.equal(copy.read("expert-1", 4), vector(104))


def leave_by(path: Path, failure: type[BaseException]) -> None:
    with Store.create(path, THETA) as store:
        with store.begin("a") as writer:
            writer.append(theta=vector(0))
        store.begin("b").append(theta=vector(1))
        raise failure


def test_leaving_the_block_seals_what_is_complete(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        leave_by(tmp_path / "s", ZeroDivisionError)
    assert len(list((tmp_path / "s").glob("seg-*"))) == 1
    reader = Store.open(tmp_path / "s")
    assert reader.keys() == ["a"]
    assert reader.keys(incomplete=True) == ["a", "b"]


def test_ctrl_c_does_not_wait_for_sealing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        leave_by(tmp_path / "s", KeyboardInterrupt)
    assert not list((tmp_path / "s").glob("seg-*"))
    assert Store.open(tmp_path / "s").keys() == ["a"]


def test_a_failure_to_seal_does_not_hide_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "s", THETA)

    def fail() -> None:
        raise StoreError("no room")

    monkeypatch.setattr(store, "seal", fail)
    with pytest.raises(ZeroDivisionError) as caught, store:
        raise ZeroDivisionError
    assert "no room" in caught.value.__notes__[0]
    store = Store.create(tmp_path / "t", THETA)
    monkeypatch.setattr(store, "seal", fail)
    with pytest.raises(StoreError, match="no room"), store:
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_process_records_more_trajectories_than_it_may_open_files(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Store.create(tmp_path / "probe", THETA) as probe:
        writer = probe.begin("a")
        with (tmp_path / "highest").open("wb") as file:
            highest = file.fileno()
        writer.close()
    store = Store.create(tmp_path / "s", THETA)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 32, hard))
    try:
        for number in range(80):
            with store.begin(f"expert-{number}") as writer:
                writer.append(theta=vector(number))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(store) == 80


def test_a_writer_that_could_not_complete_frees_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "s", THETA)

    def refuse(writer: Writer) -> None:
        raise StoreError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "complete", refuse)
        try:
            with store.begin("a") as writer:
                writer.append(theta=vector(0))
        except StoreError:
            # The failure, which holds the writer, is still being handled.
            patch.undo()
            with store.begin("a") as again:
                assert len(again) == 1
    assert store.keys() == ["a"]


@pytest.mark.parametrize("end", [float("inf"), float("nan")])
def test_a_curriculum_that_runs_away_is_refused_by_name(tmp_path: Path, end: float) -> None:
    with pytest.raises(ArgumentError, match="start: got"):
        filled(tmp_path / "s").sample(1, lambda step: end)


def test_seal_says_what_it_did(tmp_path: Path) -> None:
    store = filled(tmp_path / "s", seal=False)
    report = store.seal()
    assert report.sealed == ("expert-0", "expert-1")
    assert len(report.segments) == 1
    assert report.skipped == ()
    assert store.seal().sealed == ()


def test_a_writer_closed_in_its_block_leaves_the_trajectory_incomplete(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", THETA)
    with store.begin("a") as writer:
        writer.append(theta=vector(0))
        writer.close()
    with store.begin("b") as writer:
        writer.append(theta=vector(0))
        writer.complete()
    assert store.keys() == ["b"]
    assert store.keys(incomplete=True) == ["a", "b"]


def test_other_processes_trajectories_appear_after_refresh(tmp_path: Path) -> None:
    mine = Store.create(tmp_path / "s", THETA)
    reader = Store.open(tmp_path / "s")
    with mine.begin("a") as writer:
        writer.append(theta=vector(0))
    assert mine.keys() == ["a"]
    reader.refresh()
    assert reader.keys() == ["a"]


def test_info_counts_what_is_there(tmp_path: Path) -> None:
    info = filled(tmp_path / "s").info()
    assert info["metadata"] == {"note": "n"}
    assert (info["complete"], info["incomplete"], info["steps"]) == (2, 0, 10)
    assert info["bytes"] == sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    assert info["damage"] == []


def test_damage_is_found_named_and_repaired(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    (segment,) = (tmp_path / "s").glob("seg-*")
    data = bytearray(segment.read_bytes())
    where = data.index(np.array([102.0 * 10 + 0], dtype=np.float32).tobytes())
    data[where] ^= 1
    segment.write_bytes(data)
    reader = Store.open(tmp_path / "s")
    with pytest.raises(StoreCorrupt) as caught:
        reader.read("expert-1", 2)
    assert str(segment) == str(caught.value.path)
    assert torch.equal(reader.read("expert-1", 1), vector(101))
    report = reader.verify()
    assert not report.sound
    (damage,) = [each for each in report.damage if each.step is not None]
    assert (damage.key, damage.step, damage.column) == ("expert-1", 2, "theta")
    assert "expert-1" in str(damage)
    assert "step 2" in str(damage)
    reader.close()
    mended = Store.repair(tmp_path / "s")
    assert mended.dropped == (("expert-1", 2),)
    assert mended.dependants == ()
    assert mended.kept == 9
    store = Store.open(tmp_path / "s")
    assert store.verify().sound
    assert store.missing("expert-1") == [2]
    assert store.missing("expert-0") == []
    with pytest.raises(StoreCorrupt):
        store.read("expert-1", 2)
    assert torch.equal(store.read("expert-1", 3), vector(103))
    starts = set(store.sample(1, units=400))
    assert ("expert-1", 1) not in starts
    assert ("expert-1", 2) not in starts
    assert ("expert-1", 3) in starts


def test_repair_names_what_is_lost_and_what_was_set_aside(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    (segment,) = (tmp_path / "s").glob("seg-*")
    segment.write_bytes(b"\0" * 4096)
    mended = Store.repair(tmp_path / "s")
    assert mended.lost == ("expert-0", "expert-1")
    assert mended.set_aside == (f"{segment.name}.damaged",)
    assert mended.removed == ()
    assert Store.open(tmp_path / "s").keys() == []


def test_verify_counts_what_a_repair_dropped(tmp_path: Path) -> None:
    filled(tmp_path / "s").close()
    (segment,) = (tmp_path / "s").glob("seg-*")
    data = bytearray(segment.read_bytes())
    data[data.index(vector(102).numpy().tobytes())] ^= 1
    segment.write_bytes(data)
    Store.repair(tmp_path / "s")
    assert Store.open(tmp_path / "s").verify().missing == 1


def test_repair_of_a_chain_drops_dependants_up_to_the_next_keyframe(tmp_path: Path) -> None:
    schema = Schema(theta=Column((600,), "float32", codec=DeltaInt8(keyframe_every=4)))
    steps = torch.randn(10, 600).cumsum(0)
    with Store.create(tmp_path / "s", schema) as store, store.begin("a") as writer:
        for step in steps:
            writer.append(theta=step)
    before = Store.open(tmp_path / "s").read("a", range(10))
    (segment,) = (tmp_path / "s").glob("seg-*")
    data = segment.read_bytes()
    for place in range(len(data) - 1, 0, -97):
        segment.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        damage = [each for each in Store.open(tmp_path / "s").verify().damage if each.step is not None]
        if damage and damage[0].step == 5:
            break
    else:
        raise AssertionError("no byte of step 5 was hit")
    mended = Store.repair(tmp_path / "s")
    assert mended.dropped == (("a", 5),)
    assert mended.dependants == (("a", 6), ("a", 7))
    store = Store.open(tmp_path / "s")
    assert store.missing("a") == [5, 6, 7]
    assert torch.equal(store.read("a", [0, 4, 8, 9]), before[[0, 4, 8, 9]])


def test_a_store_that_was_closed_refuses_to_read(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    store.close()
    store.close()
    with pytest.raises((StoreError, ArgumentError)):
        store.read("expert-0", 0)


def test_steps_and_starts_may_be_whole_numbers_of_any_kind(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    assert torch.equal(store.read("expert-0", np.int64(2)), vector(2))
    assert torch.equal(store.read("expert-0", [np.int32(1), 3])[1], vector(3))
    start, end = store.window("expert-0", start=np.int64(1), span=2)
    assert torch.equal(start, vector(1))
    assert torch.equal(end, vector(3))
    for wrong in (1.0, "1", None):
        with pytest.raises(ArgumentError, match="step: got"):
            store.read("expert-0", wrong)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="start: got"):
            store.window("expert-0", start=wrong, span=1)  # type: ignore[arg-type]


def test_a_lazily_negated_tensor_is_recorded_as_its_values(tmp_path: Path) -> None:
    # Contiguous as it is, so that no copy on the way does the negation.
    negated = vector(2)._neg_view()
    assert negated.is_neg()
    with Store.create(tmp_path / "s", THETA) as store:
        with store.begin("a") as writer:
            writer.append(theta=negated)
        assert torch.equal(store.read("a", 0), -vector(2))
        with pytest.raises(ArgumentError, match="out: got"):
            store.read("a", 0, out=vector(1)._neg_view())


def test_what_is_no_tensor_is_refused_as_a_buffer(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    with pytest.raises(ArgumentError, match="out: got"):
        store.read("expert-0", 0, out=np.empty(4, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"out\[1\]: got"):
        store.window("expert-0", start=0, span=1, out=(torch.empty(4), np.empty(4, np.float32)))  # type: ignore[arg-type]


def test_autograd_notices_what_the_store_overwrote(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    weight = torch.ones(4, requires_grad=True)
    pair = (torch.ones(4), torch.ones(4))
    for fill in (
        lambda: store.read("expert-0", 0, out=pair[1]),
        lambda: store.window("expert-0", start=0, span=1, out=pair),
    ):
        product = (weight * pair[1]).sum()
        fill()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


MANY_LOGS = """
import resource, sys
from distillrs.trajectory import Store
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = Store.open(sys.argv[1])
print(sum(float(store.read(key, 0)[0]) for key in store.lengths(incomplete=True)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_more_unfinished_trajectories_than_open_files(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", THETA)
    for number in range(100):
        writer = store.begin(f"expert-{number:03d}")
        writer.append(theta=torch.full((4,), float(number)))
        writer.flush()
        writer.close()
    command = [sys.executable, "-c", MANY_LOGS, str(tmp_path / "s")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "4950.0"


def test_a_reader_follows_a_trajectory_that_another_process_seals(tmp_path: Path) -> None:
    writing = filled(tmp_path / "s", seal=False)
    reading = Store.open(tmp_path / "s")
    writing.seal()
    assert not list((tmp_path / "s").glob("*.dlog"))
    assert torch.equal(reading.read("expert-1", 2), vector(102))
    assert torch.equal(reading.window("expert-0", start=1, span=2)[1], vector(3))


def test_other_metadata_is_refused_with_the_entry_that_differs(tmp_path: Path) -> None:
    Store.create(tmp_path / "s", THETA, {"same": 1, "layout": list(range(10_000))})
    with pytest.raises(SchemaMismatch, match='metadata with "layout"') as failure:
        Store.create(tmp_path / "s", THETA, {"same": 1, "layout": []}, exist_ok=True)
    assert len(str(failure.value)) < 1000


def test_a_pair_without_tensors_is_filled_with_new_ones(tmp_path: Path) -> None:
    store = filled(tmp_path / "s")
    start, end = store.window("expert-0", start=0, span=2, out=(None, None))  # type: ignore[arg-type]
    assert torch.equal(start, vector(0))
    assert torch.equal(end, vector(2))
