from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distillrs.errors import ArgumentError, DataError, KeyNotFound, StoreCorrupt
from distillrs.trajectory import (
    Column,
    ParameterLayout,
    Schema,
    Store,
    export_safetensors,
    import_replay_buffers,
    import_safetensors,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))


def experts(count: int, snapshots: int, shapes: list[tuple[int, ...]] | None = None) -> list[list[list[Tensor]]]:
    shapes = shapes or [tuple(parameter.shape) for parameter in network().parameters()]
    return [[[torch.randn(shape) for shape in shapes] for _ in range(snapshots)] for _ in range(count)]


def new_store(path: Path, layout: ParameterLayout) -> Store:
    return Store.create(path, Schema(theta=layout.column()))


def test_replay_buffers_become_trajectories(tmp_path: Path) -> None:
    layout = ParameterLayout.of(network())
    contents = [experts(2, 3), experts(1, 4)]
    paths = [tmp_path / f"replay_buffer_{number}.pt" for number in range(2)]
    for path, content in zip(paths, contents, strict=True):
        torch.save(content, path)
    heard: list[str] = []
    with new_store(tmp_path / "s", layout) as store:
        keys = import_replay_buffers(paths, store, layout, on_expert=heard.append)
    assert keys == heard == ["replay_buffer_0-000", "replay_buffer_0-001", "replay_buffer_1-000"]
    reader = Store.open(tmp_path / "s")
    assert reader.lengths() == {"replay_buffer_0-000": 3, "replay_buffer_0-001": 3, "replay_buffer_1-000": 4}
    for key, expert in zip(keys, [*contents[0], *contents[1]], strict=True):
        for step, parameters in enumerate(expert):
            assert torch.equal(reader.read(key, step), torch.cat([value.flatten() for value in parameters]))


def test_an_import_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    layout = ParameterLayout.of(network())
    torch.save(experts(3, 2), tmp_path / "replay_buffer_0.pt")
    heard: list[str] = []

    def stop(key: str) -> None:
        heard.append(key)
        raise KeyboardInterrupt

    store = new_store(tmp_path / "s", layout)
    with pytest.raises(KeyboardInterrupt):
        import_replay_buffers([tmp_path / "replay_buffer_0.pt"], store, layout, on_expert=stop)
    keys = import_replay_buffers([tmp_path / "replay_buffer_0.pt"], store, layout, on_expert=heard.append)
    assert heard == keys == [f"replay_buffer_0-{number:03d}" for number in range(3)]


def test_an_expert_that_another_writer_holds_is_passed_over(tmp_path: Path) -> None:
    layout = ParameterLayout.of(network())
    torch.save(experts(2, 2), tmp_path / "replay_buffer_0.pt")
    store = new_store(tmp_path / "s", layout)
    other = Store.create(tmp_path / "s", store.schema, exist_ok=True).begin("replay_buffer_0-000")
    assert import_replay_buffers([tmp_path / "replay_buffer_0.pt"], store, layout) == ["replay_buffer_0-001"]
    other.close()


class Execute:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_files_that_are_something_else_are_refused_with_the_place(tmp_path: Path) -> None:
    layout = ParameterLayout.of(network())
    good = experts(1, 2)[0]
    short = [good[0], good[1][:-1]]
    other = [good[0], [good[1][0].permute(3, 2, 1, 0), *good[1][1:]]]
    double = [good[0], [value.double() for value in good[1]]]
    cases: list[tuple[Any, str]] = [
        ({"a": 1}, "got dict, expected a list of experts"),
        ([], "expected a list of experts"),
        ([3], "expert 0: expected a list of snapshots"),
        ([good, [[]]], "expert 1, snapshot 0: 0 parameters, the layout has 4"),
        ([[[1, 2, 3, 4]]], "expert 0, snapshot 0: expected a list of tensors"),
        ([good, short], "expert 1, snapshot 1: 3 parameters, the layout has 4"),
        (
            [other],
            r"expert 0, snapshot 1: float32 \[3, 3, 1, 2\] where the layout has '0.weight', float32 \[2, 1, 3, 3\]",
        ),
        ([double], "expert 0, snapshot 1: float64"),
        ([good, [[Execute()]]], "holds more than tensors and lists"),
    ]
    for number, (content, message) in enumerate(cases):
        path = tmp_path / f"replay_buffer_{number}.pt"
        torch.save(content, path)
        with pytest.raises(DataError, match=message):
            import_replay_buffers([path], new_store(tmp_path / f"s{number}", layout), layout)
    with pytest.raises(DataError, match="there is no file"):
        import_replay_buffers([tmp_path / "none.pt"], new_store(tmp_path / "a", layout), layout)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(DataError, match=r"not a file that torch\.save made"):
        import_replay_buffers([tmp_path / "broken.pt"], new_store(tmp_path / "b", layout), layout)
    with (tmp_path / "old.pt").open("wb") as file:
        pickle.dump([1], file)
    with pytest.raises(DataError, match=r"old\.pt"):
        import_replay_buffers([tmp_path / "old.pt"], new_store(tmp_path / "c", layout), layout)


def test_snapshots_that_share_one_memory_are_refused(tmp_path: Path) -> None:
    layout = ParameterLayout.of(network())
    model = network()
    aliased = [[[parameter.detach().cpu() for parameter in model.parameters()] for _ in range(3)]]
    torch.save(aliased, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(DataError, match=r"expert 0: all 3 snapshots are one memory.*recorded without a copy"):
        import_replay_buffers([tmp_path / "replay_buffer_0.pt"], new_store(tmp_path / "s", layout), layout)


def test_columns_that_do_not_fit_the_layout_are_refused(tmp_path: Path) -> None:
    layout = ParameterLayout.of(network())
    two = Store.create(tmp_path / "two", Schema(theta=layout.column(), loss=Column((), "float32")))
    with pytest.raises(
        ArgumentError, match="store: got 'columns theta, loss', allowed is one whose only column is 'theta'"
    ):
        import_replay_buffers([], two, layout, column="theta")
    other = Store.create(tmp_path / "other", Schema(theta=Column((layout.size,), "float64")))
    with pytest.raises(ArgumentError, match=r"'theta' of float64 \[47\].*float32 \[47\]"):
        import_replay_buffers([], other, layout)


MEASURE = """
import sys
import torch
from distillrs.trajectory import ParameterLayout, Schema, Store, import_replay_buffers

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))

torch.set_num_threads(1)
model = torch.nn.Linear(1000, 250)
layout = ParameterLayout.of(model)
store = Store.create(sys.argv[2], Schema(theta=layout.column()))
before = anonymous()
peak = 0
def look(key):
    global peak
    peak = max(peak, anonymous())
keys = import_replay_buffers([sys.argv[1]], store, layout, on_expert=look)
print(len(keys), peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="anonymous memory is read from /proc")
def test_memory_grows_by_less_than_one_expert(tmp_path: Path) -> None:
    # 12 experts of 8 MB each: a reader that kept them would grow by 96 MB.
    torch.save(experts(12, 8, [(250, 1000), (250,)]), tmp_path / "replay_buffer_0.pt")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "replay_buffer_0.pt"), str(tmp_path / "s")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(output[0]) == 12
    assert int(output[1]) < 8 * 251_000 * 4


MIXED = Schema(
    theta=Column((600,), "float32", codec="delta-int8"),
    half=Column((2, 3), "bfloat16"),
    tokens=Column((2,), "int32", ragged=True),
)


def mixed(path: Path) -> Store:
    with Store.create(path, MIXED) as store:
        for key in ("a/b", "c"):
            with store.begin(key) as writer:
                for step in range(20):
                    writer.append(
                        theta=torch.randn(600), half=torch.randn(2, 3).bfloat16(), tokens=torch.ones(step % 3, 2).int()
                    )
    return Store.open(path)


def test_exported_files_hold_decoded_tensors(tmp_path: Path) -> None:
    store = mixed(tmp_path / "s")
    heard: list[str] = []
    files = export_safetensors(store, tmp_path / "out" / "deep", on_trajectory=heard.append)
    assert [path.name for path in files] == ["a%2Fb.safetensors", "c.safetensors"]
    assert heard == ["a/b", "c"]
    assert sorted(path.name for path in (tmp_path / "out" / "deep").iterdir()) == sorted(path.name for path in files)
    tensors = load_file(files[0])
    assert sorted(tensors) == ["half", "theta", "tokens", "tokens.offsets"]
    assert tensors["theta"].dtype == torch.float32
    assert torch.equal(tensors["theta"], store.read("a/b", range(20), "theta"))
    assert torch.equal(tensors["half"], store.read("a/b", range(20), "half"))
    ragged = store.read_ragged("a/b", range(20), "tokens")
    assert torch.equal(tensors["tokens"], ragged.values)
    assert torch.equal(tensors["tokens.offsets"], ragged.offsets)
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata()["key"] == "a/b"


def test_export_and_import_are_inverse(tmp_path: Path) -> None:
    store = mixed(tmp_path / "s")
    files = export_safetensors(store, tmp_path / "out")
    exact = Schema(**{**MIXED, "theta": Column((600,), "float32", codec="lossless")})
    with Store.create(tmp_path / "t", exact) as copy:
        assert import_safetensors(files, copy) == ["a/b", "c"]
        heard: list[str] = []
        assert import_safetensors(files, copy, on_trajectory=heard.append) == ["a/b", "c"]
        assert heard == []
        for key in ("a/b", "c"):
            for name in ("theta", "half"):
                assert torch.equal(copy.read(key, range(20), name), store.read(key, range(20), name))
            mine, theirs = copy.read_ragged(key, range(20), "tokens"), store.read_ragged(key, range(20), "tokens")
            assert torch.equal(mine.values, theirs.values)
            assert torch.equal(mine.offsets, theirs.offsets)


def test_long_and_odd_keys_have_file_names(tmp_path: Path) -> None:
    keys = ["..", "CON:", "\u00e9" * 60 + "a", "\u00e9" * 60 + "b"]
    with Store.create(tmp_path / "s", Schema(x=Column((), "float32"))) as store:
        for number, key in enumerate(keys):
            with store.begin(key) as writer:
                writer.append(x=number)
        files = export_safetensors(store, tmp_path / "out", keys=keys)
    assert len({path.name for path in files}) == 4
    assert sorted((tmp_path / "out").iterdir()) == sorted(files)
    copy = Store.create(tmp_path / "t", Schema(x=Column((), "float32")))
    assert import_safetensors(files, copy) == keys
    assert [float(copy.read(key, 0)) for key in keys] == [0, 1, 2, 3]


def test_chosen_keys_are_exported_and_unknown_ones_refused(tmp_path: Path) -> None:
    store = mixed(tmp_path / "s")
    assert [path.name for path in export_safetensors(store, tmp_path / "out", keys=["c"])] == ["c.safetensors"]
    with pytest.raises(KeyNotFound, match="zz"):
        export_safetensors(store, tmp_path / "out", keys=["zz"])


def test_a_damaged_trajectory_leaves_no_file(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s", Schema(x=Column((2,), "float32"))) as store, store.begin("a") as writer:
        for _ in range(3):
            writer.append(x=[1.0, 1234.5])
    (segment,) = (tmp_path / "s").glob("seg-*")
    data = segment.read_bytes()
    place = data.rindex(torch.tensor([1234.5]).numpy().tobytes())
    segment.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(StoreCorrupt):
        export_safetensors(Store.open(tmp_path / "s"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    Store.repair(tmp_path / "s")
    with pytest.raises(DataError, match=r"a: a repair dropped its steps \[2\]"):
        export_safetensors(Store.open(tmp_path / "s"), tmp_path / "out")


def test_safetensors_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", MIXED)
    good = {
        "theta": torch.zeros(2, 600),
        "half": torch.zeros(2, 2, 3, dtype=torch.bfloat16),
        "tokens": torch.zeros(5, 2, dtype=torch.int32),
        "tokens.offsets": torch.tensor([0, 2, 5]),
    }
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({"theta": good["theta"]}, "it holds theta, the store takes half, theta, tokens, tokens.offsets"),
        ({**good, "theta": torch.zeros(2, 601)}, r"theta is F32 \[2, 601\], the store takes F32 \[T, 600\]"),
        ({**good, "theta": torch.zeros(2, 600).double()}, "theta is F64"),
        ({**good, "theta": torch.zeros(3, 600)}, r"its columns have \[2, 3\] steps"),
        ({**good, "tokens.offsets": torch.tensor([0, 2, 4])}, "tokens.offsets must be int64, rise from 0 and end at 5"),
        ({**good, "tokens.offsets": torch.tensor([0, 6, 5])}, "tokens.offsets must be"),
        ({**good, "tokens.offsets": torch.tensor([0.0, 2.0, 5.0])}, "tokens.offsets must be"),
    ]
    for number, (tensors, message) in enumerate(cases):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(DataError, match=message):
            import_safetensors([path], store)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a safetensors file"):
        import_safetensors([tmp_path / "x.safetensors"], store)
    with pytest.raises(DataError, match="there is no file"):
        import_safetensors([tmp_path / "y.safetensors"], store)
    save_file(good, tmp_path / "named-by-stem.safetensors")
    assert import_safetensors([tmp_path / "named-by-stem.safetensors"], store) == ["named-by-stem"]
    assert store.keys() == ["named-by-stem"]
