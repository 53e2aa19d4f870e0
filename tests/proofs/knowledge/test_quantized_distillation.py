"""Quantised distillation's proof: two-bit students against rounding afterwards and against labels alone.

Every student of a seed starts from the same weights, sees the same batches for as many steps and has its rate chosen on
the validation part for another seed. Claims: (a) margins of straight-through training, (b) of learned levels,
(c) the file's size and exactness, (d) the levels' gradient.
"""

from __future__ import annotations

import copy
import math
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distillrs as dr
from distillrs import evaluate, knowledge, random, recipes
from distillrs.knowledge.forms import LearnedLevels, Quantised
from distillrs.knowledge.forms.levels import Codes
from distillrs.transforms import Standardise
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
BITS = 2
BATCH = 64
STEPS = 560
TEACHER_STEPS = 1500
LEVEL_STEPS = 190
RATE = 3e-3
LEVEL_RATE = 1e-4
TEMPERATURE = 4.0
WEIGHT = 0.9
WIDTH = 24


@dataclass(frozen=True)
class Bed:
    """6,000 rows of Fashion-MNIST to learn from, validation and test rows, and a trained teacher of twice the width."""

    x: Tensor
    y: Tensor
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    teacher: nn.Module

    @staticmethod
    @cache
    def make() -> Bed:
        bundle = evaluate.data.load("fashion", limit=6_667)
        forward = Standardise.fit(bundle.x_train).forward
        x, x_val, x_test = (forward(part) for part in (bundle.x_train, bundle.x_val, bundle.x_test))
        teacher = network(0, 2 * WIDTH)
        bed = Bed(x, bundle.y_train, (x_val, bundle.y_val), (x_test, bundle.y_test), teacher)
        labels = knowledge.Term(knowledge.Output("logits"), target=knowledge.Labels(), name="task")
        train(bed, knowledge.Objective(teacher, None, [labels]), TEACHER_STEPS, 0)
        return bed


def network(seed: int, width: int = WIDTH) -> nn.Module:
    """A ConvNet of two blocks."""
    return evaluate.networks.build("convnet", (1, 28, 28), 10, seed=seed, width=width, depth=2)


def train(bed: Bed, objective: knowledge.Objective, steps: int, seed: int, levels: float | None = None) -> None:
    """Adam with a cosine to 0, or plain gradient descent at a constant rate for levels."""
    parameters = [p for group in objective.parameter_groups().values() for p in group]
    optimiser: Any = torch.optim.Adam(parameters, RATE) if levels is None else torch.optim.SGD(parameters, levels)
    objective.student.train()
    for index in range(steps):
        if levels is None:
            optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * index / steps))
        rows = random.integers(BATCH, len(bed.x), step=dr.Step(index, seed=seed), name="batches")
        optimiser.zero_grad()
        objective((bed.x[rows], bed.y[rows]), dr.Step(index, seed=seed, total=steps)).total.backward()
        optimiser.step()
    objective.student.eval()


@torch.inference_mode()
def accuracy(student: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    x, y = part
    found = torch.cat([student(rows).argmax(1) for rows in x.split(500)])
    return 100 * float((found == y).float().mean())


def students(bed: Bed, seed: int, level_rate: float = LEVEL_RATE) -> dict[str, nn.Module]:
    """Plain networks with the weights that are evaluated."""
    form, levels = Quantised(bits=BITS), LearnedLevels(bits=BITS)
    full = network(seed)
    train(bed, recipes.hinton(full, bed.teacher, TEMPERATURE, WEIGHT), STEPS, seed)
    found = {"full precision": full, "rounded": form.materialise(form.apply(copy.deepcopy(full)))}
    for name, weight in (("distilled", WEIGHT), ("labels alone", 0.0)):
        student = network(seed)
        objective = recipes.quantized_distillation(student, bed.teacher, form, TEMPERATURE, weight)
        train(bed, objective, STEPS, seed)
        found[name] = student if name == "distilled" else form.materialise(student)
    student = copy.deepcopy(full)
    objective = recipes.differentiable_quantization(student, bed.teacher, levels, TEMPERATURE, WEIGHT)
    found["levels at quantiles"] = levels.materialise(student)
    train(bed, objective, LEVEL_STEPS, seed, level_rate)
    found["levels"] = levels.materialise(student)
    return found


def measure() -> dict[str, Any]:
    bed = Bed.make()
    accuracies: dict[str, list[float]] = {"teacher": [accuracy(bed.teacher, bed.test)]}
    ratios, exact = [], []
    for seed in SEEDS:
        found = students(bed, seed)
        for name, student in found.items():
            accuracies.setdefault(name, []).append(accuracy(student, bed.test))
        form, student = Quantised(bits=BITS), found["distilled"]
        with tempfile.TemporaryDirectory() as folder:
            size = form.export(student, Path(folder) / "student")
            read = form.restore(network(seed), Path(folder) / "student")
        ratios.append(size / sum(4 * p.numel() for p in read.parameters()))
        plain = form.materialise(student)
        same = all(torch.equal(p, read.get_parameter(name)) for name, p in plain.named_parameters())
        with torch.inference_mode():
            exact.append(same and torch.equal(read(bed.test[0][:500]), student(bed.test[0][:500])))
    return {"accuracies": accuracies, "ratios": ratios, "exact": exact}


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return measure()


def margins(figures: dict[str, Any], first: str, second: str) -> list[float]:
    return [a - b for a, b in zip(figures["accuracies"][first], figures["accuracies"][second], strict=True)]


def test_a_straight_through_training_beats_rounding_and_labels_alone(proof: Proof, figures: dict[str, Any]) -> None:
    over_rounding = margins(figures, "distilled", "rounded")
    over_labels = margins(figures, "distilled", "labels alone")
    proof.conclude(
        "a",
        "2 bits, mean test accuracy: quantized distillation beats rounding afterwards by at least 10 points and "
        "quantized training on labels by at least 0.5",
        holds=fmean(over_rounding) >= 10 and fmean(over_labels) >= 0.5,
        figures={**figures["accuracies"], "over rounding": over_rounding, "over labels": over_labels},
        seeds=SEEDS,
    )


def test_b_learned_levels_beat_uniform_ones(proof: Proof, figures: dict[str, Any]) -> None:
    over_uniform = margins(figures, "levels", "rounded")
    proof.conclude(
        "b",
        "2 bits, the same weights: learned levels beat uniform rounding by at least 5 points of mean test accuracy",
        holds=fmean(over_uniform) >= 5,
        figures={
            "over uniform": over_uniform,
            "levels": figures["accuracies"]["levels"],
            "levels at quantiles": figures["accuracies"]["levels at quantiles"],
            "rounded": figures["accuracies"]["rounded"],
        },
        seeds=SEEDS,
    )


def test_c_the_file_is_small_and_exact(proof: Proof, figures: dict[str, Any]) -> None:
    proof.conclude(
        "c",
        "the whole file, biases and normalisations in full, takes at most 1/12 of float32 and comes back to the bit",
        holds=max(figures["ratios"]) <= 1 / 12 and all(figures["exact"]),
        figures={"share of float32": figures["ratios"], "one over it": [1 / ratio for ratio in figures["ratios"]]},
        seeds=SEEDS,
    )


def test_d_gradients_of_levels_match_finite_differences(proof: Proof) -> None:
    bed = Bed.make()
    student = network(1)
    LearnedLevels(bits=BITS).apply(student)
    x, y = bed.x[:64], bed.y[:64]
    worst = 0.0
    conv: Any = student.get_submodule(
        next(name for name, m in student.named_modules() if hasattr(m, "parametrizations"))
    )
    quantiser = conv.parametrizations.weight[0]
    loss = nn.functional.cross_entropy(student(x), y)
    (found,) = torch.autograd.grad(loss, quantiser.levels)
    codes = quantiser.encode(conv.parametrizations.weight.original)
    plain = LearnedLevels(bits=BITS).materialise(student).double()
    name = next(name for name, p in plain.named_parameters() if p.ndim > 1)
    for place in range(2**BITS):
        losses = []
        for sign in (1, -1):
            moved = codes.levels.detach().double().clone()
            moved[place] += sign * 1e-5
            weight = Codes(codes.codes, codes.low.double(), codes.scale.double(), moved).decode(
                plain.get_parameter(name).shape, torch.float64
            )
            with torch.no_grad():
                plain.get_parameter(name).copy_(weight)
                losses.append(float(nn.functional.cross_entropy(plain(x.double()), y)))
        slope = (losses[0] - losses[1]) / 2e-5
        worst = max(worst, abs(slope - float(found[place])) / max(float(found.abs().max()), 1e-12))
    proof.conclude(
        "d",
        "gradients of the levels agree with central differences to 1e-3 of the largest",
        holds=worst <= 1e-3,
        figures={"largest difference": worst},
        seeds=[1],
    )
