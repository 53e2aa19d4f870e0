"""The command as a user runs it: tiny settings, real data, real signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from distillrs import cli, condense, configuration, evaluate, trajectory
from distillrs.cli import exit_codes, pictures
from distillrs.cli.settings import CondenseSettings
from distillrs.registry import recipe_cards

TINY = [
    "--data", "digits", "--limit", "300", "--threads", "1",
    "--set", "experts.count=2", "--set", "experts.training.epochs=12", "--set", "distillation.steps=40",
    "--set", "distillation.validate_every=10", "--set", "distillation.validation_networks=1",
    "--set", "evaluation.training.epochs=20", "--set", "evaluation.full_data.epochs=2",
    "--set", "evaluation.seeds=[0, 1]", "--set", "evaluation.learning_rates=[0.03]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(*words):
    return ["condense", *TINY, *map(str, words)]


def results(out):
    small = condense.load(out)
    report = json.loads((out / "report.json").read_text())
    return small, report


def assert_same_results(one, two):
    (small, report), (other, other_report) = results(one), results(two)
    assert torch.equal(small.stored, other.stored)
    assert torch.equal(small.target(), other.target())
    assert small.inner_lr == other.inner_lr
    for part in ("accuracy", "class_accuracy", "stored_bytes", "examples"):
        assert report[part] == other_report[part]
    for part in ("losses", "validation", "best_step"):
        assert report["distillation"][part] == other_report["distillation"][part]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(tiny("--out", out)) == exit_codes.SUCCESS
    return out


def test_the_folder_holds_what_was_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "condensed.safetensors", "condensed.png", "curve.png", "report.md", "report.json", "config.toml", "experts",
    }  # fmt: skip
    small, report = results(finished)
    assert small.images.shape == (10, 1, 8, 8)
    assert report["format"] == 1
    selected = {"k_center", "herding", "facility_location"}
    assert set(report["accuracy"]) >= {"distilled", "random_real", "full_data"} | selected
    assert {report["examples"][name] for name in selected} == {10}
    for entry in report["accuracy"].values():
        assert 0 <= entry["mean"] <= 1
        assert entry["seeds"] == [0, 1]
        assert entry["std"] >= 0
    assert report["per_class"] == 1
    assert report["stored_bytes"] == small.stored_bytes()
    assert set(report["seconds"]) >= {"data", "experts", "distil", "evaluate"}
    assert report["peak_rss_bytes"] > 50_000_000
    assert len(report["distillation"]["losses"]) == 40
    assert [check["step"] for check in report["distillation"]["validation"]] == [0, 10, 20, 30, 40]
    best = max(report["distillation"]["validation"], key=lambda check: check["accuracy"])
    assert report["distillation"]["best_step"] == best["step"]
    assert report["files"] == [name for name in report["files"] if (finished / name).exists()]


def test_the_report_shows_the_figures(finished):
    text = (finished / "report.md").read_text()
    mean = results(finished)[1]["accuracy"]["distilled"]["mean"]
    assert f"{100 * mean:.1f}%" in text
    assert "![The condensed set](condensed.png)" in text


def test_the_result_trains_a_network_in_two_lines(finished):
    data = condense.load(finished)
    bundle = evaluate.data.load("digits")
    network = evaluate.networks.build("mlp", bundle.shape, 10)
    evaluate.train(network, data)
    found = evaluate.accuracy(network, data.transform.forward(bundle.x_test), bundle.y_test)
    assert found > 0.3
    assert len(data) == 10


def test_the_configuration_repeats_the_run_bit_for_bit(finished, tmp_path):
    config = finished / "config.toml"
    assert cli.main(["condense", "--config", str(config), "--out", str(tmp_path)]) == exit_codes.SUCCESS
    assert_same_results(finished, tmp_path)
    one, two = (configuration.load(CondenseSettings, path / "config.toml") for path in (finished, tmp_path))
    assert one.out != two.out
    assert one.threads == two.threads == 1


def test_experts_are_reused_and_the_same_command_gives_the_same(finished, tmp_path, capsys):
    again = tmp_path / "again"
    words = tiny("--out", again, "--store", finished / "experts")
    assert cli.main(words) == exit_codes.SUCCESS
    assert "2 are recorded already" in capsys.readouterr().err
    assert_same_results(finished, again)
    assert not (again / "experts").exists()


def test_another_configuration_is_refused_and_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    assert cli.main(tiny("--out", finished, "--seed", 5)) == exit_codes.USAGE
    message = capsys.readouterr().err
    assert "seed: there 0, asked for 5" in message
    assert "--overwrite" in message
    assert {path: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_overwrite_replaces_another_configuration(finished, tmp_path, capsys):
    words = tiny("--out", tmp_path, "--set", "distillation.steps=2", "--store", finished / "experts")
    assert cli.main(words) == exit_codes.SUCCESS
    assert cli.main([*words, "--set", "distillation.steps=3"]) == exit_codes.USAGE
    assert cli.main([*words, "--set", "distillation.steps=3", "--overwrite", "--json"]) == exit_codes.SUCCESS
    printed = json.loads(capsys.readouterr().out.split("condensed.png, curve.png", 1)[1].split("\n", 1)[1])
    assert len(printed["distillation"]["losses"]) == 3
    assert printed == results(tmp_path)[1]


@pytest.mark.parametrize("card", recipe_cards("condense"), ids=lambda card: card.id)
def test_every_recipe_runs_without_a_line_of_its_own(card, tmp_path):
    changes = ["distillation.steps=2", "distillation.validate_every=2", "evaluation.seeds=[0]"]
    if card.id in ("ftd", "datm"):
        changes.append("radius=0.02")
    words = [word for change in changes for word in ("--set", change)]
    if card.id == "infer-ufc":
        words += ["--per-class", "2"]  # a block has ten images and two compensators
    assert cli.main(tiny("--out", tmp_path, "--method", card.id, *words)) == exit_codes.SUCCESS
    small, report = results(tmp_path)
    assert report["method"]["id"] == card.id
    assert (small.logits is not None) == (card.id in ("datm", "rded", "random_real_soft_labels", "infer-ufc"))
    assert (small.views is not None) == (report["comparison"]["labels"] == "views") == (card.views is not None)
    assert all((tmp_path / name).exists() for name in report["files"])
    assert ("condensed-labels" in report["files"]) == (tmp_path / "condensed-labels").exists()
    assert {"experts", "teachers"} & set(report) == {card.needs} - {"data"}
    assert len(report["distillation"]["losses"]) == (2 if card.moves else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "infer-ufc"], "per_class: got 1, allowed is at least 2 for infer-ufc with 10 classes"),
        (["--method", "infer-ufc", "--per-class", "1", "--dry-run"], "per_class: got 1, allowed is at least 2"),
        (["--method", "rded", "--per-class", "1000"], "per_class: got 1000, allowed is at most"),
        (["--method", "tesla", "--per-class", "1000"], "per_class: got 1000, allowed is at most"),
    ],
)
def test_a_number_of_images_that_cannot_be_is_refused_before_anything_is_trained(words, message, tmp_path, capsys):
    assert cli.main([*tiny("--out", tmp_path / "out"), *words]) == exit_codes.USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["pcoreset", "peek", "repblend"])
def test_a_method_that_condenses_nothing_here_is_told_which_do(method, tmp_path, capsys):
    assert cli.main([*tiny("--out", tmp_path / "out"), "--method", method]) == exit_codes.USAGE
    error = capsys.readouterr().err
    assert f"method: got '{method}', allowed is a method that condenses data" in error
    assert {"cda,", "mirage,", "mtt,"} <= set(error.replace("(", " ").split())


def test_teachers_are_trained_once_and_give_the_controls_their_labels(tmp_path, capsys):
    words = tiny("--method", "rded", "--store", tmp_path / "teachers", "--set", "evaluation.seeds=[0]")
    outs = [tmp_path / "one", tmp_path / "two"]
    stamps = []
    for out in outs:
        assert cli.main([*words, "--out", str(out)]) == exit_codes.SUCCESS
        files = sorted((tmp_path / "teachers").rglob("teacher-*.safetensors"))
        assert len(files) == 2
        stamps.append([path.stat().st_mtime_ns for path in files])
    assert stamps[0] == stamps[1]
    assert_same_results(*outs)
    assert results(outs[0])[1]["comparison"]["labels"] == "soft"
    assert "none; the method gives the set as it is" in (outs[0] / "report.md").read_text()


def test_experts_of_a_method_without_any_are_refused(tmp_path, capsys):
    assert cli.main(["experts", *TINY, "--method", "dm", "--store", str(tmp_path)]) == exit_codes.USAGE
    assert "method: got 'dm'" in capsys.readouterr().err


def test_without_the_plot_extra_pictures_are_skipped_and_it_says_so(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "available", lambda: False)
    words = tiny("--out", tmp_path, "--set", "distillation.steps=2", "--store", finished / "experts")
    assert cli.main(words) == exit_codes.SUCCESS
    assert "distillrs[plot]" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))
    _, report = results(tmp_path)
    assert "condensed.png" not in report["files"]
    assert "condensed.png" not in (tmp_path / "report.md").read_text()


def test_a_farm_of_shards_makes_the_store_that_condense_uses(finished, tmp_path, capsys):
    farm = tmp_path / "farm"
    for shard in ("0/2", "1/2"):
        assert cli.main(["experts", *TINY, "--store", str(farm), "--shard", shard, "--json"]) == exit_codes.SUCCESS
    found = json.loads("{" + capsys.readouterr().out.rsplit("\n{", 1)[1])
    assert found["shard"] == [1, 2]
    assert found["experts"] == {"expert-1": "recorded"}
    alone = trajectory.Store.open(next((finished / "experts").iterdir()))
    together = trajectory.Store.open(found["store"])
    assert together.lengths() == alone.lengths() == {"expert-0": 13, "expert-1": 13}
    for key in alone.keys():  # noqa: SIM118  # a store is no mapping
        for step in (0, 6, 12):
            assert torch.equal(alone.read(key, step), together.read(key, step))
    assert cli.main(tiny("--out", tmp_path / "out", "--store", farm)) == exit_codes.SUCCESS
    assert_same_results(finished, tmp_path / "out")


class Running:
    """The command in a process of its own."""

    def __init__(self, words):
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "distillrs", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said = []

    def wait_for(self, beginning):
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith(beginning):
                return
        pytest.fail(f"never said {beginning!r}: {''.join(self.said)}")

    def finish(self):
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, "".join(self.said) + err


def interrupted(words, phase, number=signal.SIGINT):
    run = Running(words)
    run.wait_for(phase)
    time.sleep(0.2)
    run.process.send_signal(number)
    return run.finish()


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(finished, tmp_path):
    words = tiny("--out", tmp_path)
    for phase, number in (
        ("experts", signal.SIGINT),
        ("distil", signal.SIGINT),
        ("distil", signal.SIGTERM),
        ("evaluate", signal.SIGINT),
    ):
        code, _, said = interrupted(words, phase, number)
        assert code == (exit_codes.TERMINATED if number == signal.SIGTERM else exit_codes.INTERRUPTED), said
        last = said.strip().splitlines()[-1]
        assert last.startswith("interrupted; go on with: distillrs condense --data digits")
        assert "Traceback" not in said
        assert not (tmp_path / "report.json").exists()
    code, out, said = Running(words).finish()
    assert code == exit_codes.SUCCESS, said
    assert "2 are recorded already" in said
    assert "distil: 40/40 steps" in said
    assert "distilled" in out
    assert_same_results(finished, tmp_path)
    assert not (tmp_path / ".unfinished").exists()
