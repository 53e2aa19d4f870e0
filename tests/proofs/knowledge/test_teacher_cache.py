"""Students of written answers against students of the teacher itself, on real text.

No published system but a promise of this library: training from a cache of the sixteen likeliest tokens and the tail's
mass reaches what the live teacher gives. And a warning that it states: the same tokens without the tail, brought to a
sum of 1, are another teacher.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
import torch

import distillrs as dr
from distillrs import knowledge
from distillrs.errors import DataError
from distillrs.integrations import transformers as hooks
from distillrs.trajectory import TeacherCache
from proofs.ledger import ROOT, Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SEEDS = [1, 2, 3]
TEACHER_STEPS = 500
STEPS = 300
K = 16
WAYS = ("live", "tail", "no tail")


class WithoutTail(knowledge.Cached):
    """The usual mistake: the likeliest tokens as if there were no others."""

    def answers(self, request: knowledge.Request) -> dict[Any, Any]:
        """The entries of each row, brought to a sum of 1."""
        found = super().answers(request)
        top = next(iter(found.values()))
        there = (top.log_probs > -torch.inf).any(-1)
        log_probs = torch.where(there[..., None], top.log_probs.log_softmax(-1), top.log_probs)
        tail = torch.where(there, -torch.inf, top.tail_log_mass)
        return dict.fromkeys(found, replace(top, log_probs=log_probs, tail_log_mass=tail))


def example() -> ModuleType:
    """The example's own code."""
    spec = importlib.util.spec_from_file_location("distil_transformer", ROOT / "examples" / "distil_transformer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their own module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def text() -> Path:
    path = Path(os.environ.get("DISTILLRS_DATA", ".")) / "tinyshakespeare.txt"
    if not path.is_file():
        raise DataError(f"{path} is not there: set DISTILLRS_DATA to the folder of tinyshakespeare.txt")
    return path


def measure() -> dict[str, Any]:
    bed = example()
    corpus = bed.Corpus.read(text())
    held_out = corpus.rows(corpus.held_out)
    teacher = bed.train_teacher(corpus, TEACHER_STEPS)
    with torch.inference_mode():
        parts = torch.split(held_out["input_ids"], 64), torch.split(held_out["attention_mask"], 64)
        logits = torch.cat(
            [teacher(input_ids=ids, attention_mask=mask).logits for ids, mask in zip(*parts, strict=True)]
        )
    found: dict[str, Any] = {"teacher": bed.held_out_loss(teacher, held_out)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers"
        taught = hooks.teach(teacher, corpus.tokenizer, corpus.train, path, k=K, max_length=bed.LENGTH)
        found["bytes per token"] = taught.bytes_per_token
        mark = hooks.fingerprint(teacher, corpus.tokenizer, max_length=bed.LENGTH)
        with TeacherCache.open(path, mark) as cache:
            live, written = corpus.rows(corpus.train), corpus.rows(corpus.train, cache)
            places = written["teacher_rows"]
            tail = cache.gather(places[places >= 0][:20_000]).tail_log_mass.exp()
            found["mean tail"] = float(tail.mean())
            for way in WAYS:
                found[way] = {"loss": [], "divergence": []}
                for seed in SEEDS:
                    student = bed.model(64, 1, seed).train()
                    source = {
                        "live": lambda: dr.Frozen(teacher),
                        "tail": lambda: knowledge.Cached(cache),
                        "no tail": lambda: WithoutTail(cache),
                    }[way]()
                    rows = live if way == "live" else written
                    bed.in_a_loop(bed.objective_of(student, source), rows, STEPS, seed, lambda step: None)
                    found[way]["loss"].append(bed.held_out_loss(student, held_out))
                    found[way]["divergence"].append(bed.held_out_loss(student, held_out, logits))
    return found


def test_a_written_answers_teach_as_the_teacher_does(proof: Proof) -> None:
    found = proof.cell("a", measure)
    live, tail = found["live"]["loss"], found["tail"]["loss"]
    noise = max(live) - min(live)
    difference = fmean(tail) - fmean(live)
    proof.conclude(
        "a",
        f"tinyshakespeare, 512 byte pairs, {STEPS} steps: the mean held-out loss of students of the {K} likeliest "
        "tokens and the tail's mass differs from that of students of the live teacher by less than the spread of the "
        "latter over three seeds",
        holds=abs(difference) <= noise,
        figures={**found, "difference": difference, "noise": noise},
        seeds=SEEDS,
    )


def test_b_without_the_tail_it_is_another_teacher(proof: Proof) -> None:
    found = proof.cell("a", measure)
    tail, without = found["tail"]["divergence"], found["no tail"]["divergence"]
    each = [second - first for first, second in zip(tail, without, strict=True)]
    proof.conclude(
        "b",
        "the same students are nearer to the teacher's held-out distribution with the tail than with the entries "
        "brought to a sum of 1, for each of three seeds",
        holds=min(each) > 0,
        figures={"divergence with tail": tail, "without": without, "mean tail": found["mean tail"]},
        seeds=SEEDS,
    )
