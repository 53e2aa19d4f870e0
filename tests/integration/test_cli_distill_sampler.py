"""The command as a user runs it: tiny settings, real data, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from distillrs import cli, configuration, evaluate, random, schedule
from distillrs.cli import exit_codes, pictures
from distillrs.cli.sampler import command, methods, results
from distillrs.cli.sampler.settings import SamplerSettings
from distillrs.diffusion import FewStepSampler
from distillrs.evaluate.generation import frechet_distance, neighbourhood_scores, paired_rmse
from distillrs.schedule import RectifiedFlow
from distillrs.step import Step

TINY = [
    "--data", "digits", "--limit", "200", "--steps", "3",
    "--set", "network.options.width=16", "--set", "network.options.depth=1",
    "--set", "teacher.steps=24", "--set", "teacher.batch_size=32", "--set", "teacher.sampling_steps=6",
    "--set", "student.steps=24", "--set", "student.batch_size=32", "--set", "student.check_every=10",
    "--set", "evaluation.samples=60", "--set", "evaluation.neighbours=3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tiny(*words):
    return ["distill-sampler", *TINY, *map(str, words)]


def report_of(out):
    return json.loads((out / results.REPORT).read_text())


def assert_same_results(one, two):
    for name in (results.STUDENT, results.TEACHER, results.TRAJECTORIES):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    first, second = report_of(one), report_of(two)
    for part in ("samplers", "training", "parameters"):
        assert first[part] == second[part]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(tiny("--out", out)) == exit_codes.SUCCESS
    return out


def test_the_folder_holds_what_was_promised(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {*results.RESULTS, "config.toml"} - (set() if pictures.available() else {results.PICTURE})
    report = report_of(finished)
    assert set(report["files"]) == names
    assert [(row["name"], row["steps"]) for row in report["samplers"]] == [
        ("real", None), ("teacher", 6), ("student", 1), ("student", 2), ("student", 3),
        ("teacher", 1), ("teacher", 2), ("teacher", 3),
    ]  # fmt: skip
    assert len(report["training"]["teacher"]["losses"]) == len(report["training"]["student"]["losses"]) == 24
    assert [check["step"] for check in report["training"]["student"]["checks"]] == [10, 20, 24]
    assert set(report["seconds"]) == {"data", "teacher", "distil", "evaluate"}
    # The words of the call, not those that this process was started with.
    assert report["command"] == shlex.join(["distillrs", *tiny("--out", finished)])


def test_the_figures_are_those_of_the_saved_samplers(finished):
    """Everything once more from the files and the public functions alone."""
    report = report_of(finished)
    rows = {(row["name"], row["steps"]): row for row in report["samplers"]}
    bundle = evaluate.data.load("digits", limit=200)
    teacher, student = (FewStepSampler.load(finished / name) for name in (results.TEACHER, results.STUDENT))
    assert student.classes == bundle.classes
    step = Step(0, seed=0)
    noise = random.normal(60, 1, 8, 8, step=step, name="evaluation/noise")
    labels = bundle.y_train[random.integers(60, len(bundle.y_train), step=step, name="evaluation/labels")]
    real = teacher.transform.forward(bundle.x_test[random.choice(len(bundle.x_test), 60, step=step, name="real/test")])
    reference = teacher.run(noise, labels, steps=6)
    for name, sampler, steps in (("student", student, 1), ("student", student, 3), ("teacher", teacher, 2)):
        found = sampler.run(noise, labels, steps=steps)
        row = rows[name, steps]
        assert row["paired_rmse"] == pytest.approx(paired_rmse(found, reference))
        assert row["frechet"] == pytest.approx(frechet_distance(found, real))
        scores = neighbourhood_scores(found, real, 3)
        assert (row["precision"], row["recall"], row["coverage"]) == (scores.precision, scores.recall, scores.coverage)
    assert rows["teacher", 6]["paired_rmse"] == 0
    velocity = teacher.network(noise, torch.ones(60), label=labels)
    assert torch.allclose(teacher.run(noise, labels, steps=1), noise - velocity, atol=1e-6)


def test_the_card_says_what_it_is_and_how_well(finished):
    text, report = (finished / results.CARD).read_text(), report_of(finished)
    own = next(row for row in report["samplers"] if (row["name"], row["steps"]) == ("student", 3))
    assert f"| student, 3 steps | {own['frechet']:.3f} |" in text
    assert f"are {own['paired_rmse']:.3f} away" in text
    assert "in standard deviations of the data" in text
    identity = report | {"configuration": report["configuration"] | {"transform": "identity"}}
    assert "in the units of the data" in results.card(identity)
    assert report["data"]["fingerprint"] in text
    assert report["method"]["source"] in text
    examples = FewStepSampler.load(finished / results.STUDENT)(12, steps=3, seed=0)
    assert examples.shape == (12, 1, 8, 8)


def test_the_trajectories_serve_the_command_for_grids(finished, capsys):
    words = ["schedule", "--path", "flow", "--steps", "2", "--solver", "euler", "--json"]
    assert cli.main([*words, "--optimise", str(finished / results.TRAJECTORIES)]) == exit_codes.SUCCESS
    times = json.loads(capsys.readouterr().out)["times"]
    assert (times[0], times[-1], len(times)) == (1.0, 0.0, 3)
    kept = schedule.Trajectories.load(finished / results.TRAJECTORIES, RectifiedFlow())
    steps = kept.states[:-1] + kept.grid.times.diff()[:, None, None, None, None].float() * kept.velocities
    assert torch.allclose(steps, kept.states[1:], atol=1e-5)


def test_the_configuration_repeats_the_run_bit_for_bit(finished, tmp_path):
    config = finished / "config.toml"
    assert cli.main(["distill-sampler", "--config", str(config), "--out", str(tmp_path)]) == exit_codes.SUCCESS
    assert_same_results(finished, tmp_path)
    one, two = (configuration.load(SamplerSettings, path / "config.toml") for path in (finished, tmp_path))
    assert one.out != two.out


def test_another_configuration_is_refused_and_changes_nothing(finished, capsys):
    before = {path: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    assert cli.main(tiny("--out", finished, "--seed", 5)) == exit_codes.USAGE
    message = capsys.readouterr().err
    assert "seed: there 0, asked for 5" in message
    assert {path: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


class Signals:
    """Progress that sends this process signals where it is told to."""

    def __init__(self, planned):
        self.planned = planned

    @contextlib.contextmanager
    def phase(self, title, total, unit, start=0):
        self.title, self.start = title, start
        yield self

    def update(self, done, *, total=None, **figures):
        number = self.planned.pop((self.title, done), None)
        if number is not None:
            os.kill(os.getpid(), number)

    def note(self, text):
        pass


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bits(finished, tmp_path, monkeypatch, capsys):
    plans = [
        ({("teacher", 7): signal.SIGINT}, exit_codes.INTERRUPTED),
        ({("teacher", 24): signal.SIGTERM}, exit_codes.TERMINATED),
        ({("distil", 13): signal.SIGINT}, exit_codes.INTERRUPTED),
        ({("evaluate", 2): signal.SIGINT}, exit_codes.INTERRUPTED),
        ({}, exit_codes.SUCCESS),
    ]
    starts = []
    for planned, expected in plans:
        watching = Signals(dict(planned))
        monkeypatch.setattr(command, "choose", lambda *_, watching=watching, **__: watching)
        assert cli.main(tiny("--out", tmp_path)) == expected
        starts.append((watching.title, watching.start))
        assert (tmp_path / results.REPORT).exists() == (expected == exit_codes.SUCCESS)
    # Where each run was stopped it had begun at the step after the one that the last had finished.
    assert starts == [("teacher", 0), ("teacher", 8), ("distil", 0), ("evaluate", 0), ("evaluate", 0)]
    assert "interrupted; go on with: " in capsys.readouterr().err
    assert_same_results(finished, tmp_path)
    assert not (tmp_path / ".unfinished").exists()


KILLED = """
import os, signal, sys
from distillrs import cli
from distillrs.cli.sampler import command, phases
from distillrs.cli.progress import Silent

phases._SAVE_SECONDS = 0.0

class Killing(Silent):
    def phase(self, title, total, unit, start=0):
        self.title = title
        return super().phase(title, total, unit, start)

    def update(self, done, *, total=None, **figures):
        if (self.title, done) == ("distil", 15):
            os.kill(os.getpid(), signal.SIGKILL)

command.choose = lambda *_, **__: Killing()
cli.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(finished, tmp_path, monkeypatch):
    done = subprocess.run([sys.executable, "-c", KILLED, *tiny("--out", tmp_path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    starts = []

    class Watching(Signals):
        def phase(self, title, total, unit, start=0):
            starts.append((title, start))
            return super().phase(title, total, unit, start)

    monkeypatch.setattr(command, "choose", lambda *_, **__: Watching({}))
    assert cli.main(tiny("--out", tmp_path)) == exit_codes.SUCCESS
    assert starts == [("teacher", 24), ("distil", 15), ("evaluate", 0)]
    assert_same_results(finished, tmp_path)


def test_distribution_matching(tmp_path):
    words = tiny("--method", "dmd2", "--set", "ratio=3", "--out", tmp_path)
    assert cli.main(words) == exit_codes.SUCCESS
    report = report_of(tmp_path)
    assert len(report["training"]["student"]["losses"]) == 8  # the generator moves once in three steps
    assert set(report["parameters"]) == {"student", "critic"}
    student = FewStepSampler.load(tmp_path / results.STUDENT)
    expected = {1: [1, 0], 2: [1, 1 / 3, 0], 3: [1, 2 / 3, 1 / 3, 0]}
    assert set(student.grids) == set(expected)
    for steps, times in expected.items():
        assert student.grid(steps).times.tolist() == pytest.approx(times)
    assert (student.method, student.times) == ("renoise", "t")
    teacher = FewStepSampler.load(tmp_path / results.TEACHER)
    assert not torch.equal(student.network.first.weight, teacher.network.first.weight)


def test_larger_images_of_ones_own_take_a_unet(tmp_path, capsys):
    raw = random.integers(60, 256, 17, 18, step=0, name="images").numpy().astype(np.uint8)
    arrays = {"x_train": raw[:40], "x_test": raw[40:], "y_train": np.arange(40) % 2, "y_test": np.arange(20) % 2}
    np.savez(tmp_path / "own.npz", **arrays)
    words = [str(tmp_path / "own.npz") if word == "digits" else word for word in tiny("--out", tmp_path / "out")]
    words += ["--set", "student.steps=2", "--set", "teacher.steps=3", "--set", "network.options.width=4", "--json"]
    assert cli.main(words) == exit_codes.SUCCESS
    report = json.loads(capsys.readouterr().out)
    assert report == report_of(tmp_path / "out")
    assert report["network"]["name"] == "unet"
    assert FewStepSampler.load(tmp_path / "out" / results.STUDENT)(2).shape == (2, 1, 17, 18)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher.learning_rate=1e30", "the teacher's training diverged"),
        ("student.rates.student=1e30", "the student's training diverged"),
    ],
)
def test_training_that_diverges_says_so_and_leaves_no_results(change, message, tmp_path, capsys):
    words = tiny("--out", tmp_path, "--set", change)
    assert cli.main(words) == exit_codes.FAILED
    assert message in capsys.readouterr().err
    assert not (tmp_path / results.STUDENT).exists()
    assert not (tmp_path / results.REPORT).exists()


def test_rates_are_changed_one_by_one(capsys):
    words = ["distill-sampler", "--data", "digits", "--dry-run", "--json", "--method", "dmd2"]
    assert cli.main(words) == exit_codes.SUCCESS
    before = json.loads(capsys.readouterr().out)["configuration"]["student"]["rates"]
    assert cli.main([*words, "--set", "student.rates.critic=0.25"]) == exit_codes.SUCCESS
    after = json.loads(capsys.readouterr().out)["configuration"]["student"]["rates"]
    assert after == before | {"critic": 0.25} != before


@pytest.mark.slow
def test_the_default_student_is_near_its_teacher(tmp_path):
    """What a first run gives; takes a minute or two."""
    assert cli.main(["distill-sampler", "--data", "digits", "--out", str(tmp_path)]) == exit_codes.SUCCESS
    rows = {(row["name"], row["steps"]): row for row in report_of(tmp_path)["samplers"]}
    for steps in (2, 4):
        assert rows["student", steps]["paired_rmse"] < 0.6 * rows["teacher", steps]["paired_rmse"]
    assert rows["student", 4]["frechet"] < 1.3 * rows["teacher", 50]["frechet"]
    assert rows["teacher", 50]["recall"] > 0.6


def test_without_the_plot_extra_the_picture_is_skipped_and_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "available", lambda: False)
    words = tiny("--out", tmp_path, "--set", "student.steps=1", "--set", "teacher.steps=1")
    assert cli.main(words) == exit_codes.SUCCESS
    captured = capsys.readouterr()
    assert "distillrs[plot]" in captured.err
    assert "student, 3" in captured.out
    assert not (tmp_path / results.PICTURE).exists()
    assert results.PICTURE not in (tmp_path / results.CARD).read_text()


def test_dry_run_writes_nothing_and_shows_the_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["distill-sampler", "--data", "digits", "--dry-run"]
    assert cli.main([*words, "--json"]) == exit_codes.SUCCESS
    found = json.loads(capsys.readouterr().out)
    assert found["method"]["recipe"] == methods.METHODS["flow-map"].card.id
    assert found["evaluation"]["steps"] == [1, 2, 4]
    assert found["configuration"]["out"] == "out/digits-4-steps-flow-map"
    assert cli.main(words) == exit_codes.SUCCESS
    text = capsys.readouterr().out
    assert "[student.rates]" in text
    assert f"{found['network']['parameters']:,} parameters" in text
    assert list(tmp_path.iterdir()) == []


def test_help_explains_each_flag(capsys):
    assert cli.main(["distill-sampler", "--help"]) == exit_codes.SUCCESS
    text = capsys.readouterr().out
    for flag in ("--data", "--method", "--steps", "--network", "--out", "--seed", "--device", "--threads", "--config"):
        assert flag in text
    assert "None" not in text
    # What --set gives as examples are settings of this command.
    examples = ("off_diagonal=0.5", "student.steps=3000")
    assert all(example in "".join(text.split()).replace("│", "") for example in examples)
    for method, example in (("flow-map", examples[0]), ("dmd2", "ratio=3"), ("dmd2", examples[1])):
        words = ["distill-sampler", "--data", "digits", "--dry-run", "--json", "--method", method, "--set", example]
        assert cli.main(words) == exit_codes.SUCCESS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "flowmap"), "method: got 'flowmap'"),
        (("--method", "mf_rae"), "method: got 'mf_rae', allowed is 'flow-map'"),
        (("--steps", "0"), "steps: got 0"),
        (("--steps", "60"), "steps: got 60, allowed is at most the teacher's 50"),
        (("--network", "unot"), "network: got 'unot'"),
        (("--set", "width=3"), "set: got 'width'"),
        (("--set", "network.options.wide=3"), "option of mlp: got 'wide'"),
        (("--set", "teacher.step=3"), "teacher.key: got 'step'"),
        (("--set", "teacher.learning_rate=0"), "teacher.learning_rate: got 0.0"),
        (("--set", "student.rates.critic=0.1"), "student.rates: got"),
        (("--set", "student.average=1.0"), "student.average: got 1.0"),
        (("--set", "std=0"), "std: got 0.0"),
        (("--set", "ratio=3"), "set: got 'ratio'"),
        (("--set", "evaluation.neighbours=2000"), "samples: got 1000"),
        (("--device", "abacus"), "device: got 'abacus'"),
        (("--threads", "0"), "threads: got 0"),
        (("--set", "student=3"), "student: got 3, allowed is a table"),
        (("--set", "student.rates=3"), "student.rates: got 3, allowed is a table"),
        (("--set", "network.options.shape=[1]"), "option of mlp: got 'shape'"),
        (("--set", "network.options.seed=3"), "option of mlp: got 'seed'"),
        (("--set", "network.options.width=1000000000"), "width: got 1000000000"),
        (("--set", "off_diagonal=a"), "method.options.off_diagonal: got 'a'"),
    ],
)
def test_wrong_arguments_name_themselves(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["distill-sampler", "--data", "digits", "--dry-run", *words]) == exit_codes.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_missing_data_has_its_code(capsys, monkeypatch):
    monkeypatch.delenv("DISTILLRS_DATA", raising=False)
    assert cli.main(["distill-sampler", "--data", "mnist"]) == exit_codes.MISSING
    assert cli.main(["distill-sampler"]) == exit_codes.USAGE
    assert "data: got 'nothing'" in capsys.readouterr().err
