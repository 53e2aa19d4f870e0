from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from rich.console import Console

import distillrs as dr
from distillrs import cli, errors
from distillrs.cli import exit_codes, experts, interrupt


def run(capsys, *words):
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version(capsys):
    assert run(capsys, "--version") == (exit_codes.SUCCESS, f"distillrs {dr.__version__}\n", "")


def test_help_names_every_command_and_every_exit_code(capsys):
    code, text, _ = run(capsys, "--help")
    assert code == exit_codes.SUCCESS
    for command in ("condense", "experts", "store", "data", "recipes", "doctor"):
        assert f"• {command}" in text
    for number, meaning in exit_codes.MEANINGS.items():
        assert f"{number}  {meaning}" in text


@pytest.mark.parametrize("command", ["condense", "experts"])
def test_help_of_a_command_explains_each_flag(command, capsys):
    code, text, _ = run(capsys, command, "--help")
    assert code == exit_codes.SUCCESS
    for flag in (
        "--data",
        "--per-class",
        "--method",
        "--network",
        "--limit",
        "--seed",
        "--device",
        "--threads",
        "--set",
    ):
        assert flag in text
    assert "None" not in text


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nonsense",),
        ("condense", "--nonsense"),
        ("condense",),
        ("condense", "--data", "digitz"),
        ("condense", "--data", "digits", "--method", "teslo", "--dry-run"),
        ("condense", "--data", "digits", "--device", "abacus", "--dry-run"),
        ("condense", "--data", "digits", "--threads", "0", "--dry-run"),
        ("condense", "--config", "no/such.toml"),
        ("experts", "--data", "digits", "--shard", "4/4"),
        ("recipes", "teslo"),
        ("data", "prepare", "digits", "--source", "."),
    ],
)
def test_wrong_usage_has_its_code_and_says_why(words, capsys, monkeypatch):
    monkeypatch.delenv("DISTILLRS_DATA", raising=False)
    code, out, err = run(capsys, *words)
    assert code == exit_codes.USAGE
    assert out == ""
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ("condense", "--data", "mnist", "--dry-run"),
        ("condense", "--data", "no/such/file.npz", "--dry-run"),
        ("store", "info", "no/such/store"),
        ("store", "verify", "no/such/store"),
        ("store", "repair", "no/such/store"),
    ],
)
def test_what_is_not_there_has_its_code(words, capsys, monkeypatch):
    monkeypatch.delenv("DISTILLRS_DATA", raising=False)
    code, out, err = run(capsys, *words)
    assert code == exit_codes.MISSING
    assert out == ""
    assert err.startswith("distillrs: ")


def test_every_error_of_the_library_has_a_code():
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.DistillrsError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert exit_codes.of(kind("message")) in (exit_codes.FAILED, exit_codes.USAGE, exit_codes.MISSING)
    assert exit_codes.of(OSError(28, "No space left on device")) == exit_codes.FAILED
    assert exit_codes.of(RuntimeError("a bug")) is None


class Failing:
    def __init__(self, failure):
        self.failure = failure

    def run(self, output, messages):
        raise self.failure


def test_a_failure_is_one_line_and_a_bug_is_a_traceback(capsys):
    assert cli._run(Failing(errors.StoreCorrupt("bad bytes"))) == exit_codes.FAILED
    assert capsys.readouterr().err == "distillrs: bad bytes\n"
    with pytest.raises(RuntimeError, match="a bug"):
        cli._run(Failing(RuntimeError("a bug")))


def test_interruption_says_how_to_go_on(capsys):
    stop = KeyboardInterrupt()
    stop.add_note("go on with: distillrs condense")
    assert cli._run(Failing(stop)) == exit_codes.INTERRUPTED
    assert capsys.readouterr().err == "interrupted; go on with: distillrs condense\n"
    assert cli._run(Failing(interrupt.Terminated())) == exit_codes.TERMINATED


def test_deferred_interruption_waits_for_the_loop_and_a_second_one_does_not():
    with interrupt.deferred() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert isinstance(request.signal, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            request.obey()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_termination_unwinds_like_an_interruption():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(interrupt.Terminated), interrupt.terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    with interrupt.deferred() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(request.signal, interrupt.Terminated)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_leave_signals_alone():
    found = []

    def work():
        with interrupt.terminable(), interrupt.deferred() as request:
            found.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.parametrize(("text", "shard"), [("0/1", (0, 1)), ("3/16", (3, 16))])
def test_shards_are_read(text, shard):
    assert experts.parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "3", "4/4", "-1/4", "a/b", "1/0", "1/2/3", "1.0/2"])
def test_shards_that_make_no_sense_are_refused(text):
    with pytest.raises(errors.ArgumentError, match="shard: got"):
        experts.parse_shard(text)


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "8"}, (2, 8)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, (1, 4)),
        # A batch script that starts no step with srun is one process, however many tasks it may start.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (3, 4),
        ),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "10", "SLURM_ARRAY_TASK_MIN": "1"}, (4, 10)),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "10", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},
            (5, 10),
        ),
    ],
)
def test_launchers_give_the_shard(environment, shard):
    assert experts.launcher_shard(environment) == shard


def test_a_job_array_with_gaps_does_not_guess_its_shard():
    environment = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}
    with pytest.raises(errors.ArgumentError, match="shard: got 'task 7 of a job array of 3 with gaps'"):
        experts.launcher_shard(environment)


def test_recipes_show_equation_deviations_and_options(capsys):
    code, text, _ = run(capsys, "recipes", "--json")
    assert code == exit_codes.SUCCESS
    pages = {page["id"]: page for page in json.loads(text)}
    assert {"mtt", "tesla", "ftd", "datm", "smooth-expert"} <= set(pages)
    assert pages["tesla"]["options"]["options"]["inner_steps"] == {"takes": "a whole number", "default": "20"}
    code, text, _ = run(capsys, "recipes", "datm")
    assert code == exit_codes.SUCCESS
    assert pages["datm"]["deviations"][0][:40] in " ".join(text.split())
    assert "radius" in text


def test_data_show_and_prepare(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLRS_DATA", str(tmp_path))
    code, text, _ = run(capsys, "data", "show", "digits", "--json")
    assert code == exit_codes.SUCCESS
    assert json.loads(text)["shape"] == [1, 8, 8]
    code, _, err = run(capsys, "data", "prepare", "mnist", "--source", str(tmp_path))
    assert code == exit_codes.MISSING
    assert "train-images" in err


def test_a_reader_that_leaves_early_is_no_failure():
    command = f"{sys.executable} -m distillrs recipes | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_dry_run_writes_nothing_and_shows_the_plan(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("condense", "--data", "digits", "--per-class", "2", "--limit", "200", "--dry-run")
    code, text, _ = run(capsys, *words, "--json")
    assert code == exit_codes.SUCCESS
    found = json.loads(text)
    parameters = 64 * 32 + 32 + 32 * 10 + 10
    assert found["network"]["parameters"] == parameters
    count, epochs = found["experts"]["count"], found["experts"]["epochs"]
    assert found["experts"]["store_bytes"] == count * (epochs + 1) * parameters * 4
    assert found["distillation"]["examples"] == 20
    assert found["data"]["train"] + found["data"]["validation"] == 200
    code, text, _ = run(capsys, *words)
    assert "[distillation.optimisers.images]" in text
    assert list(tmp_path.iterdir()) == []


def test_results_go_to_standard_output_only():
    drawn = io.StringIO()
    assert cli.Doctor(json=True).run(Console(file=drawn), Console(file=io.StringIO())) == exit_codes.SUCCESS
    assert json.loads(drawn.getvalue())["format"] == 1


INTERRUPTED_IN_EXEC = """
import sys
from distillrs import cli
class Command:
    def run(self, output, messages):
        exec("raise KeyboardInterrupt")
sys.exit(cli._run(Command()))
"""


def test_an_interrupt_inside_exec_still_gives_the_exit_code(tmp_path):
    (tmp_path / "interrupted_in_exec.py").write_text(INTERRUPTED_IN_EXEC)
    command = [sys.executable, "-m", "interrupted_in_exec"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == exit_codes.INTERRUPTED
    assert "interrupted" in done.stderr
