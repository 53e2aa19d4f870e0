"""One objective in four loops: the same losses and parameters, also when cut into micro-batches and processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from distillrs.errors import ArgumentError
from distillrs.integrations.bookkeeping import count_items
from distillrs.knowledge import Labels, Objective, Output, Term

for name in ("transformers", "accelerate", "lightning"):
    pytest.importorskip(name, reason=f"the extra {name!r} is not installed")

import tiny_language as tiny  # noqa: E402  # after the extras were found

pytestmark = [pytest.mark.filterwarnings("ignore")]  # of other people's packages


def close(found, due, tolerance=1e-6):
    assert len(found[0]) == len(due[0])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(due[0]), rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(found[1], due[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=100 * tolerance)


@pytest.fixture(autouse=True)
def _state_of_accelerate(monkeypatch):
    """It belongs to the process, and a precision once chosen would stay."""
    from accelerate.state import AcceleratorState

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


@pytest.fixture(scope="module")
def reference():
    return tiny.plain()


def test_the_reference_learns_and_its_parts_all_count(reference):
    losses, parameters = reference
    assert losses[-1] < losses[0]
    start = tiny.parameters(tiny.make())
    assert all(not torch.equal(mine, theirs) for mine, theirs in zip(parameters, start, strict=True))
    # One batch of four rows' worth instead of two of two: the labelled terms are the very same sums.
    objective = tiny.make()
    window = [batch for batch, _ in zip(tiny.loader(), range(2), strict=False)]
    assert [int(count_items(objective, batch)) for batch in window] == [
        int((batch["labels"][:, 1:] != -100).sum()) for batch in window
    ]


def test_the_trainer_of_transformers(reference, tmp_path):
    close(tiny.with_trainer(tmp_path), reference)


def test_accelerate(reference):
    close(tiny.with_accelerate(), reference)


@pytest.mark.parametrize("holds", [False, True])
def test_lightning(reference, holds):
    close(tiny.with_lightning(holds=holds)[:2], reference)


def test_without_accumulation(tmp_path):
    due = tiny.plain(accumulate=1)
    close(tiny.with_trainer(tmp_path, accumulate=1), due)
    close(tiny.with_accelerate(accumulate=1), due)
    close(tiny.with_lightning(accumulate=1)[:2], due)


def test_mixed_precision(tmp_path):
    due = tiny.plain(bf16=True)
    assert due[0] != tiny.plain()[0]
    # Sums of bfloat16 differ in their last of eight bits where outputs are widened earlier.
    loops = (
        lambda: tiny.with_trainer(tmp_path, bf16=True),
        lambda: tiny.with_accelerate(precision="bf16"),
        lambda: tiny.with_lightning(precision="bf16-mixed"),
    )
    for loop in loops:
        found = loop()
        torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(due[0]), rtol=2e-3, atol=2e-3)


def test_terms_are_logged_and_add_up(tmp_path):
    objective = tiny.make()
    trainer = tiny.trainer_of(tmp_path, objective)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "term/hint" in log]
    assert len(logs) == tiny.STEPS
    for index, log in enumerate(logs):
        scale = 1.0 + (0.2 - 1.0) * index / tiny.STEPS
        [divergence] = [name for name in log if name.startswith("term/ForwardKL")]
        total = 0.7 * log[divergence] + scale * log["term/hint"] + 0.3 * log["term/task"]
        assert abs(total - sum(trainer.seen[2 * index : 2 * index + 2])) < 1e-4


def test_evaluation_gives_losses_and_outputs(tmp_path):
    objective = tiny.make()
    trainer = tiny.trainer_of(tmp_path, objective, per_device_eval_batch_size=4)
    metrics = trainer.evaluate(tiny.rows()[:8])
    assert metrics["eval_loss"] > 0
    logits = trainer.predict(tiny.rows()[:8]).predictions
    assert logits.shape == (8, tiny.LENGTH, tiny.VOCABULARY)


def test_columns_that_only_the_objective_reads_are_kept(tmp_path):
    objective = tiny.make()
    objective.withheld = ("teacher_rows",)
    trainer = tiny.trainer_of(tmp_path, objective)
    trainer._set_signature_columns_if_needed()
    assert {"teacher_rows", "ids", "labels", "input_ids", "position_ids"} <= set(trainer._signature_columns)


def test_resuming_is_exact_to_the_bit(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = tiny.trainer_of(tmp_path / "whole", first := tiny.make(dropout=0.2), **settings)
    whole.train()
    again = tiny.trainer_of(tmp_path / "again", second := tiny.make(dropout=0.2), **settings)
    with torch.no_grad():
        for parameter in [*second.student.parameters(), *second.parameters()]:
            parameter.add_(1.0)  # all of it has to come from the checkpoint
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.seen == whole.seen[4:]
    for mine, theirs in zip(tiny.parameters(second), tiny.parameters(first), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / "whole" / "checkpoint-2" / "objective.pt").unlink()
    with pytest.raises(ArgumentError, match=r"resume_from_checkpoint: got .*objective\.pt"):
        tiny.trainer_of(tmp_path / "third", tiny.make(), **settings).train(
            resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
        )


def test_lightning_resumes_exactly(tmp_path):
    _, due, _ = tiny.with_lightning(steps=4)
    _, _, half = tiny.with_lightning(steps=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    other = tiny.make()
    with torch.no_grad():
        for parameter in [*other.student.parameters(), *other.parameters()]:
            parameter.add_(1.0)
    # A loader without a state of its own begins anew in Lightning: it is given what is left.
    data = torch.utils.data.DataLoader(tiny.rows()[2 * 2 * tiny.BATCH :], batch_size=tiny.BATCH)
    _, found, _ = tiny.with_lightning(steps=4, objective=other, path=str(tmp_path / "half.ckpt"), data=data)
    for mine, theirs in zip(found, due, strict=True):
        assert torch.equal(mine, theirs)


def test_accelerate_resumes_exactly(tmp_path):
    import accelerate

    from distillrs.integrations.accelerate import Distil

    def run(steps, save=None, restore=None):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        objective = tiny.make()
        distil = Distil(accelerator, objective, seed=42, total=tiny.STEPS)
        model, optimiser, batches = accelerator.prepare(objective.student, tiny.adam(objective), tiny.loader())
        if restore:
            with torch.no_grad():
                for parameter in objective.parameters():
                    parameter.add_(1.0)
            accelerator.load_state(restore)
        for index, window in enumerate(distil.windows(batches)):
            if index < distil.step.index:
                continue
            for batch in window:
                distil.backward(model, batch)
            optimiser.step()
            optimiser.zero_grad()
            if distil.step.index == steps:
                break
        if save:
            accelerator.save_state(save)
        return tiny.parameters(objective)

    due = run(4)
    run(2, save=str(tmp_path / "state"))
    for mine, theirs in zip(run(4, restore=str(tmp_path / "state")), due, strict=True):
        assert torch.equal(mine, theirs)


def test_two_processes_have_the_loss_of_one(tmp_path):
    due = tiny.plain(accumulate=4)  # two micro-batches on each of two
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x"}
    shared |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "GROUP_RANK": "0", "ACCELERATE_USE_CPU": "true"}
    script = Path(tiny.__file__)
    ranks = []
    for number in range(2):
        environment = {**os.environ, **shared, "RANK": str(number), "NODE_RANK": str(number)}
        log = (tmp_path / f"log-{number}").open("w")
        ranks.append(
            (subprocess.Popen([sys.executable, script, tmp_path], env=environment, stdout=log, stderr=log), log)
        )
    try:
        codes = [process.wait(180) for process, _ in ranks]
    finally:
        for process, log in ranks:
            process.kill()
            process.wait()
            log.close()
    logs = "".join((tmp_path / f"log-{number}").read_text() for number in range(2))
    assert codes == [0, 0], logs[-5000:]
    for number in range(2):
        losses = json.loads((tmp_path / f"losses-{number}.json").read_text())
        for name in ("trainer", "accelerate", "lightning"):
            close((losses[name], torch.load(tmp_path / f"{name}-{number}.pt")), due, tolerance=2e-6)


class TwoTurns:
    def __call__(self, batch, step, *, turn=None, student=None):
        raise AssertionError("it is refused before")

    def turns(self, step):
        return ("critic", "generator")


def test_objectives_that_do_not_fit_are_refused(tmp_path):
    import accelerate

    from distillrs.integrations.accelerate import Distil
    from distillrs.integrations.lightning import distil

    with pytest.raises(ArgumentError, match=r"objective: got 'turns critic, generator'"):
        distil(TwoTurns())
    with pytest.raises(ArgumentError, match="objective"):
        Distil(accelerate.Accelerator(cpu=True), TwoTurns())
    objective = tiny.make()
    with pytest.raises(ArgumentError, match=r"^label_smoothing_factor: got 0.1, .*Labels\(smoothing"):
        tiny.trainer_of(tmp_path, objective, label_smoothing_factor=0.1)
    trainer = tiny.trainer_of(tmp_path, objective)
    trainer.optimizer = torch.optim.SGD(objective.student.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=r"optimizers: got 'an optimiser without \d+ of them'"):
        trainer.train()


def test_items_are_examples_without_labels_and_an_objectives_own_word():
    network = nn.Linear(3, 2)
    objective = Objective(network, None, [Term(Output(), target=Labels())])
    assert int(count_items(objective, (torch.zeros(5, 3), torch.tensor([0, 1, -100, 1, 1])))) == 4
    assert int(count_items(objective, torch.zeros(5, 3))) == 5

    class Own:
        def count_items(self, batch):
            return 17

    assert int(count_items(Own(), None)) == 17
    with pytest.raises(ArgumentError, match="objective: got 'TwoTurns'"):
        count_items(TwoTurns(), None)
