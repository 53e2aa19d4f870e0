"""``distillrs store`` on stores that are sound, damaged, and filled from elsewhere."""

from __future__ import annotations

import json

import pytest
import torch

from distillrs import cli, evaluate, trajectory
from distillrs.cli import exit_codes

SIZE = 64 * 5 + 5 + 5 * 10 + 10  # the perceptron 64-5-10


def network():
    return evaluate.networks.build("mlp", (1, 8, 8), 10, widths=[5])


def records(seed, count=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, generator=generator)


@pytest.fixture
def store(tmp_path):
    layout = trajectory.ParameterLayout.of(network())
    path = tmp_path / "store"
    schema = trajectory.Schema(theta=layout.column(codec="delta-int8"))
    with trajectory.Store.create(path, schema, {"layout": layout.to_dict()}) as made:
        for seed in range(3):
            with made.begin(f"expert-{seed}") as writer:
                for record in records(seed):
                    writer.append(theta=record)
        writer = made.begin("unfinished")
        writer.append(theta=records(9)[0])
        writer.close()
    return path


def run(capsys, *words):
    code = cli.main(["store", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_info_shows_columns_trajectories_bytes_and_the_codecs_error(store, capsys):
    code, out, _ = run(capsys, "info", store, "--json")
    assert code == exit_codes.SUCCESS
    found = json.loads(out)
    assert found["trajectory_lengths"] == {"expert-0": 6, "expert-1": 6, "expert-2": 6}
    assert found["incomplete"] == {"unfinished": 1}
    assert 0 < found["codec_error"]["theta"]["maximum"] < 0.05
    code, out, _ = run(capsys, "info", store)
    assert code == exit_codes.SUCCESS
    for part in ("3 trajectories, 18 records", "unfinished (1)", "delta-int8", f"[{SIZE}]", "% of a step"):
        assert part in out


def test_verify_and_repair_of_a_sound_store(store, capsys):
    code, out, _ = run(capsys, "verify", store)
    assert code == exit_codes.SUCCESS
    assert "0 damaged places" in out
    code, out, _ = run(capsys, "repair", store, "--json")
    assert code == exit_codes.SUCCESS
    assert json.loads(out)["dropped"] == []


def test_damage_is_named_then_dropped_then_gone(store, capsys):
    segment = next(store.glob("seg-*.safetensors"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0x40  # among the records: a copy of the header lies at the end
    segment.write_bytes(content)
    code, out, _ = run(capsys, "verify", store, "--json")
    assert code == exit_codes.FAILED
    found = json.loads(out)
    assert not found["sound"]
    assert found["damage"][0]["path"].endswith(segment.name)
    code, out, _ = run(capsys, "verify", store)
    assert code == exit_codes.FAILED
    assert "damaged: " in out
    assert "store repair" in out
    code, out, _ = run(capsys, "repair", store)
    assert code == exit_codes.SUCCESS
    assert "1 damaged records dropped" in out
    assert run(capsys, "verify", store)[0] == exit_codes.SUCCESS
    assert "missing" in run(capsys, "info", store)[1]


def test_export_and_import_bring_back_the_same_numbers(store, tmp_path, capsys):
    folder = tmp_path / "files"
    code, out, _ = run(capsys, "export", store, "--out", folder, "--key", "expert-0", "--key", "expert-2", "--json")
    assert code == exit_codes.SUCCESS
    assert len(json.loads(out)["files"]) == 2
    copy = tmp_path / "copy"
    words = ("import", copy, "--source", folder, "--network", "mlp", "--data", "digits", "--option", "widths=[5]")
    code, out, _ = run(capsys, *words)
    assert code == exit_codes.SUCCESS
    assert "2 trajectories" in out
    original, copied = trajectory.Store.open(store), trajectory.Store.open(copy)
    assert copied.keys() == ["expert-0", "expert-2"]
    for step in range(6):
        assert torch.equal(original.read("expert-2", step), copied.read("expert-2", step))
    # A second import of the same files changes nothing, and needs no network: the store is there.
    assert run(capsys, "import", copy, "--source", folder)[0] == exit_codes.SUCCESS
    assert trajectory.Store.open(copy).lengths() == {"expert-0": 6, "expert-2": 6}


def test_replay_buffers_of_other_code_are_imported(tmp_path, capsys):
    layout = trajectory.ParameterLayout.of(network())
    experts = [[list(layout.unflatten(record).values()) for record in records(seed)] for seed in range(2)]
    experts = [[[tensor.clone() for tensor in snapshot] for snapshot in expert] for expert in experts]
    torch.save(experts, tmp_path / "replay_buffer_0.pt")
    path = tmp_path / "store"
    source = ("--source", tmp_path / "replay_buffer_0.pt")
    code, _, err = run(capsys, "import", path, *source)
    assert code == exit_codes.USAGE
    assert "network and data" in err
    words = ("import", path, *source, "--network", "mlp", "--data", "digits", "--option", "widths=[5]", "--json")
    code, out, _ = run(capsys, *words)
    assert code == exit_codes.SUCCESS
    keys = json.loads(out)["trajectories"]
    assert len(keys) == 2
    store = trajectory.Store.open(path)
    assert torch.equal(store.read(keys[1], 3), records(1)[3])


@pytest.mark.parametrize("names", [(), ("a.pt", "b.safetensors"), ("a.txt",)])
def test_sources_of_no_or_of_mixed_kinds_are_refused(names, tmp_path, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    words = [word for name in names for word in ("--source", folder / name)] or ["--source", folder]
    code, _, err = run(capsys, "import", tmp_path / "store", *words)
    assert code == exit_codes.USAGE
    assert "source: got" in err
    assert not (tmp_path / "store").exists()


def test_info_of_a_damaged_store_says_what_cannot_be_read(store, capsys):
    (segment,) = store.glob("seg-*.safetensors")
    content = bytearray(segment.read_bytes())
    content[20] ^= 0xFF
    segment.write_bytes(content)
    code, out, _ = run(capsys, "info", store, "--json")
    assert code == exit_codes.SUCCESS
    found = json.loads(out)
    assert list(found["unreadable"]) == ["expert-0", "expert-1", "expert-2"]
    assert segment.name in found["unreadable"]["expert-0"]
    code, out, _ = run(capsys, "info", store)
    assert "store verify" in " ".join(out.split())


def test_info_of_a_label_cache_tells_views_labels_and_bytes(tmp_path, capsys):
    path = tmp_path / "labels"
    with trajectory.LabelCache.create(path, 10, trajectory.UNCHECKED, augmentation="words") as cache:
        for view in range(3):
            cache.append(range(40), view, torch.randn(40, 10))
    code, out, _ = run(capsys, "info", path, "--json")
    assert code == exit_codes.SUCCESS
    found = json.loads(out)["cache"]
    assert (found["kind"], found["views"], found["rows"], found["row_bytes"]) == ("label_cache", 3, 120, 20)
    assert found["payload_bytes"] == 2400
    code, out, _ = run(capsys, "info", path)
    assert code == exit_codes.SUCCESS
    shown = " ".join(out.split())
    for part in ("label cache 3 views, 120 labels", "20 of them payload", "all 10 classes, code f16", "UNCHECKED"):
        assert part in shown


@pytest.mark.parametrize("form", [{"format": 0}, {"k": 0, "vocabulary": 0}])
def test_info_of_a_cache_that_cannot_be_read_says_why(form, tmp_path, capsys):
    path = tmp_path / "cache"
    whole = {"format": 0, "vocabulary": 10, "k": 2, "code": "u8", "temperatures": [1.0], "sampled": False}
    whole |= {"offsets": False, "fingerprint": None}
    schema = trajectory.Schema(rows=trajectory.Column((), "uint8", ragged=True))
    trajectory.Store.create(path, schema, {"teacher_cache": form if len(form) == 1 else whole | form}).close()
    code, out, _ = run(capsys, "info", path)
    assert code == exit_codes.SUCCESS
    assert "teacher cache cannot be read: " in " ".join(out.split())
    code, out, _ = run(capsys, "info", path, "--json")
    assert json.loads(out)["cache"]["unreadable"]
