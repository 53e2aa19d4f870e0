"""Students of written answers against students of the teacher itself, on real text.

No published system but a promise of this library: training from a cache of the likeliest tokens and the tail's mass, or
of tokens drawn at random, reaches what the live teacher gives. And a warning that it states: the likeliest tokens
without the tail, brought to a sum of 1, are another teacher.
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
from torch import Tensor

import distillrs as dr
from distillrs import knowledge
from distillrs.errors import DataError
from distillrs.integrations import transformers as hooks
from distillrs.trajectory import TeacherCache, key_of, random_sample
from proofs.ledger import ROOT, Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SEEDS = [1, 2, 3]
TEACHER_STEPS = 500
STEPS = 300
K = 16
MORE = 64
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


class Bed:
    """The example's corpus and teacher, and students of it by what they learn from."""

    def __init__(self) -> None:
        self.example = example()
        self.corpus = self.example.Corpus.read(text())
        self.held_out = self.corpus.rows(self.corpus.held_out)
        self.teacher = self.example.train_teacher(self.corpus, TEACHER_STEPS)
        self.mark = hooks.fingerprint(self.teacher, self.corpus.tokenizer, max_length=self.example.LENGTH)
        self.logits = self.logits_of(self.held_out)

    def logits_of(self, rows: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            parts = torch.split(rows["input_ids"], 64), torch.split(rows["attention_mask"], 64)
            found = [self.teacher(input_ids=ids, attention_mask=mask).logits for ids, mask in zip(*parts, strict=True)]
        return torch.cat(found)

    def teach(self, path: Path, k: int) -> float:
        """Writes the likeliest tokens; bytes for each."""
        return hooks.teach(
            self.teacher, self.corpus.tokenizer, self.corpus.train, path, k=k, max_length=self.example.LENGTH
        ).bytes_per_token

    def draw(self, path: Path, draws: int) -> None:
        """Writes tokens drawn at random."""
        rows = self.corpus.rows(self.corpus.train)
        vocabulary = self.example.VOCABULARY
        with TeacherCache.create(path, vocabulary, draws, self.mark, code="f16") as cache:
            for document, logits, mask in zip(
                self.corpus.train, self.logits_of(rows), rows["attention_mask"], strict=True
            ):
                key = key_of(document)
                cache.append(key, random_sample(logits[: int(mask.sum())], draws, key=key))

    def students(self, source: Any, rows: dict[str, Tensor]) -> dict[str, list[float]]:
        """Held-out losses, and divergences from the teacher, for each seed."""
        found: dict[str, list[float]] = {"loss": [], "divergence": []}
        for seed in SEEDS:
            student = self.example.model(64, 1, seed).train()
            objective = self.example.objective_of(student, source)
            self.example.in_a_loop(objective, rows, STEPS, seed, lambda step: None)
            found["loss"].append(self.example.held_out_loss(student, self.held_out))
            found["divergence"].append(self.example.held_out_loss(student, self.held_out, self.logits))
        return found


def measure() -> dict[str, Any]:
    bed = Bed()
    found: dict[str, Any] = {"teacher": bed.example.held_out_loss(bed.teacher, bed.held_out)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers"
        found["bytes per token"] = bed.teach(path, K)
        with TeacherCache.open(path, bed.mark) as cache:
            live, written = bed.corpus.rows(bed.corpus.train), bed.corpus.rows(bed.corpus.train, cache)
            found["mean tail"] = mean_tail(cache, written)
            for way in WAYS:
                source = {
                    "live": lambda: dr.Frozen(bed.teacher),
                    "tail": lambda: knowledge.Cached(cache),
                    "no tail": lambda: WithoutTail(cache),
                }[way]()
                found[way] = bed.students(source, live if way == "live" else written)
    return found


def measure_more() -> dict[str, Any]:
    bed = Bed()
    found: dict[str, Any] = {"live": bed.students(dr.Frozen(bed.teacher), bed.corpus.rows(bed.corpus.train))}
    with tempfile.TemporaryDirectory() as folder:
        for way, write in (("likeliest", bed.teach), ("drawn", bed.draw)):
            path = Path(folder) / way
            write(path, MORE)
            with TeacherCache.open(path, bed.mark) as cache:
                written = bed.corpus.rows(bed.corpus.train, cache)
                found[way] = bed.students(knowledge.Cached(cache), written)
                if way == "likeliest":
                    found["mean tail"] = mean_tail(cache, written)
    return found


def mean_tail(cache: TeacherCache, written: dict[str, Tensor]) -> float:
    places = written["teacher_rows"]
    return float(cache.gather(places[places >= 0][:20_000]).tail_log_mass.exp().mean())


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


@pytest.mark.parametrize(("claim", "way"), [("c", "likeliest"), ("d", "drawn")])
def test_c_d_with_more_tokens(proof: Proof, claim: str, way: str) -> None:
    found = proof.cell("c", measure_more)
    live, other = found["live"]["loss"], found[way]["loss"]
    noise = max(live) - min(live)
    difference = fmean(other) - fmean(live)
    what = {"likeliest": f"the {MORE} likeliest tokens and the tail's mass", "drawn": f"{MORE} tokens drawn at random"}
    proof.conclude(
        claim,
        f"tinyshakespeare, 512 byte pairs, {STEPS} steps: the mean held-out loss of students of {what[way]} "
        "differs from that of students of the live teacher by less than the spread of the latter over three seeds",
        holds=abs(difference) <= noise,
        figures={**found, "difference": difference, "noise": noise},
        seeds=SEEDS,
    )
