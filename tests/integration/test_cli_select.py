"""``distillrs select`` from arguments to files."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch

from distillrs import cli, random, select
from distillrs.cli import exit_codes
from distillrs.cli.select import principal_components
from distillrs.evaluate import data


def run(capsys, *words):
    code = cli.main(["select", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def points(tmp_path):
    values = random.normal(60, 4, step=0, name="points").numpy()
    np.save(tmp_path / "points.npy", values)
    return values


def test_picks_of_digits_with_table_picture_and_the_settings_to_repeat_them(tmp_path, capsys):
    out = tmp_path / "picks.json"
    code, text, log = run(capsys, "--data", "digits", "--k", 30, "--features", "pca", "--components", 8, "--out", out)
    assert code == exit_codes.SUCCESS
    assert "and 20 more" in text
    assert "of each class: 0 " in text
    assert "select" in log
    found = json.loads(out.read_text())
    x = torch.from_numpy(data.sources.read_source("digits").arrays["x_train"])
    expected = select.k_center(principal_components(x, 8), 30)
    assert found["ids"] == expected.ids.tolist()
    assert found["gains"][0] is None
    assert found["gains"][1:] == expected.gains.tolist()[1:]
    assert (tmp_path / "picks.png").read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again.json"
    code, text, _ = run(capsys, "--config", out, "--out", again, "--json")
    assert code == exit_codes.SUCCESS
    assert again.read_bytes() == out.read_bytes()
    assert json.loads(text)["ids"] == found["ids"]


@pytest.mark.parametrize("method", ["k-center", "facility-location", "herding", "k-medoids", "k-means", "random"])
def test_every_method_picks_of_every_class(method, tmp_path, capsys):
    out = tmp_path / "picks.json"
    words = [
        "--data",
        "digits",
        "--method",
        method,
        "--k",
        3,
        "--per-class",
        "--features",
        "pca",
        "--out",
        out,
        "--json",
    ]
    code, text, log = run(capsys, *words)
    assert (code, log) == (exit_codes.SUCCESS, "")
    found = json.loads(text)
    assert sorted(found["labels"]) == sorted(list(range(10)) * 3)
    assert len(set(found["ids"])) == 30
    y = data.sources.read_source("digits").arrays["y_train"]
    assert [int(y[row]) for row in found["ids"]] == found["labels"]


def test_points_and_features_of_ones_own(points, tmp_path, capsys):
    source, out = tmp_path / "points.npy", tmp_path / "picks.json"
    assert run(capsys, "--data", source, "--method", "herding", "--k", 5, "--out", out)[0] == exit_codes.SUCCESS
    found = json.loads(out.read_text())
    assert found["ids"] == select.herding(points, 5).ids.tolist()
    assert found["labels"] is None
    assert not (tmp_path / "picks.png").exists()
    np.save(tmp_path / "features.npy", points[:, ::-1] * 2)
    words = ["--data", source, "--k", 5, "--features", tmp_path / "features.npy", "--seed", 3, "--out", out]
    assert run(capsys, *words)[0] == exit_codes.SUCCESS
    expected = select.k_center(points[:, ::-1] * 2, 5, seed=3)
    assert json.loads(out.read_text())["ids"] == expected.ids.tolist()


def test_folders_of_the_file_are_made_and_what_the_system_refuses_is_named(points, tmp_path, capsys, monkeypatch):
    words = ["--data", tmp_path / "points.npy", "--k", 3, "--out", tmp_path / "a" / "b" / "picks.json"]
    assert run(capsys, *words)[0] == exit_codes.SUCCESS
    assert (tmp_path / "a" / "b" / "picks.json").exists()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("distillrs.cli.select.write_whole", full)
    code, _, error = run(capsys, *words[:-1], tmp_path / "c.json")
    assert code == exit_codes.USAGE
    assert "out: got" in error
    assert "No space left" in error


def test_principal_components_keep_distances_and_come_by_variance():
    x = random.normal(50, 3, 2, step=0, name="x") * torch.tensor([[1.0, 5.0], [0.1, 2.0], [3.0, 0.5]])
    found = principal_components(x, 6)
    distances, own = ((one[:, None] - one[None]).norm(dim=-1) for one in (found, x.flatten(1)))
    assert torch.allclose(distances, own, atol=1e-3)
    assert torch.all(found.var(0).diff() <= 0)
    # Products of other widths are summed in another order on some processors.
    torch.testing.assert_close(principal_components(x, 2), found[:, :2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], exit_codes.USAGE, "data: got 'nothing'"),
        (["--data", "digits"], exit_codes.USAGE, "k: got 'nothing'"),
        (["--data", "digits", "--k", "0"], exit_codes.USAGE, "k: got 0"),
        (["--data", "digits", "--k", "9999"], exit_codes.USAGE, "k: got 9999"),
        (["--data", "digits", "--k", "9999", "--method", "random"], exit_codes.USAGE, "k: got 9999"),
        (["--data", "digits", "--k", "3", "--method", "kcenter"], exit_codes.USAGE, "method: got 'kcenter'"),
        (["--data", "digits", "--k", "3", "--features", "clip"], exit_codes.USAGE, "features: got 'clip'"),
        (["--data", "digits", "--k", "3", "--features", "no.npy"], exit_codes.MISSING, "features: there is no file"),
        (["--data", "digits", "--k", "3", "--features", "points.npy"], exit_codes.USAGE, "features: got '60 rows"),
        (["--data", "points.npy", "--k", "3", "--per-class"], exit_codes.USAGE, "per_class: got True"),
        (["--data", "no.npy", "--k", "3"], exit_codes.MISSING, "data: there is no file"),
        (["--data", "no-such-set", "--k", "3"], exit_codes.USAGE, "no-such-set"),
        (["--data", "points.npy", "--k", "3", "--memory-budget", "10"], exit_codes.USAGE, "memory_budget: got"),
        (
            ["--data", "points.npy", "--k", "3", "--features", "pca", "--components", "0"],
            exit_codes.USAGE,
            "components",
        ),
        (["--data", "points.npy", "--k", "3", "--out", "picks.png"], exit_codes.USAGE, "out: got 'picks.png'"),
        (["--data", "points.npy", "--k", "3", "--out", "."], exit_codes.USAGE, "out: got '.'"),
        (["--data", "points.npy", "--k", "3", "--out", "points.npy/a.json"], exit_codes.USAGE, "out: got 'points.npy/"),
        (["--config", "points.npy"], exit_codes.USAGE, "config: got"),
        (["--config", "other.json"], exit_codes.USAGE, "config: got"),
        (["--config", "wrong.json"], exit_codes.USAGE, "config: got \"k = 'three'"),
        (["--config", "none.json"], exit_codes.MISSING, "config: there is no file"),
    ],
)
def test_what_cannot_be_is_refused_by_name(words, code, message, points, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "wrong.json").write_text('{"format": "distillrs-picks", "config": {"k": "three"}}')
    found, _, error = run(capsys, *words)
    assert found == code
    assert message in error
    assert not (tmp_path / "picks.json").exists()
