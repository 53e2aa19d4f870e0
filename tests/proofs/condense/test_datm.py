"""DATM's proof: which windows suit which size of set, and what the guard saves."""

from __future__ import annotations

import math
from functools import cache
from statistics import fmean

import pytest

from distillrs import recipes
from distillrs.condense import ExpertTraining
from distillrs.training import TrainingSettings
from proofs.condense.bed import Images, distil
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

# Two epochs more than the last start of 19 needs.
DIGITS_EXPERTS = ExpertTraining(TrainingSettings(epochs=22, batch_size=32, learning_rate=0.05))
# Plain gradient descent, because the learned rate belongs to it; each set brings the rate itself.
STUDENT = TrainingSettings(epochs=300, batch_size=1024, learning_rate=0.05)
SEEDS = [0, 1, 2]


@cache
def digits() -> Images:
    return Images.digits()


def digits_accuracy(low: int, high: int, seed: int, per_class: int, labels: str, lr: float, guard: float) -> float:
    """Test accuracy of digits condensed against one window."""
    bed = digits()
    store = bed.record("digits", DIGITS_EXPERTS, 5)
    network = bed.network(0)
    synthetic = recipes.datm_initial(
        bed.x, bed.y, per_class, store=store, network=network, seed=seed, inner_lr=0.05, labels=labels
    )
    objective = recipes.datm(
        store, network, synthetic, inner_steps=20, low=low, first_high=high, last_high=high, guard=guard, seed=seed
    )
    rates = {
        "images": {"lr": lr, "momentum": 0.5},
        "inner_lr": {"lr": 1e-4, "momentum": 0.5},
    } | ({"labels": {"lr": lr, "momentum": 0.9}} if labels == "soft" else {})
    steps = 300 if per_class == 1 else 150
    return bed.judged(distil(objective, synthetic, rates, steps, seed), STUDENT, seed)


def test_a_with_one_image_a_class_the_early_window_wins(proof: Proof) -> None:
    windows = {"[0, 3)": (0, 3), "[14, 20)": (14, 20)}
    seeds = SEEDS[:2]
    accuracy = {
        name: [
            proof.cell(
                f"a-{low}-{seed}",
                lambda low=low, high=high, seed=seed: digits_accuracy(
                    low, high, seed, per_class=1, labels="soft", lr=3.0, guard=1.1
                ),
            )
            for seed in seeds
        ]
        for name, (low, high) in windows.items()
    }
    gain = fmean(accuracy["[0, 3)"]) - fmean(accuracy["[14, 20)"])
    proof.conclude(
        "a",
        "digits, MLP, IPC 1, T=20, M=2, 2 seeds: starts in [0, 3) beat starts in [14, 20) by at least 15 points",
        holds=gain >= 0.15,
        figures={"accuracy": accuracy, "gain": gain},
        seeds=seeds,
    )


def test_c_the_guard_keeps_a_late_window_from_ruining_the_set(proof: Proof) -> None:
    def condensed(guard: float, seed: int) -> float:
        return digits_accuracy(14, 20, seed, per_class=30, labels="hard", lr=100.0, guard=guard)

    accuracy = {
        name: [proof.cell(f"c-{name}-{seed}", lambda guard=guard, seed=seed: condensed(guard, seed)) for seed in SEEDS]
        for name, guard in (("unguarded", math.inf), ("guarded", 1.0))
    }
    accuracy["random real"] = [
        proof.cell(f"c-real-{seed}", lambda seed=seed: digits().student(*digits().real(30, seed), STUDENT, seed))
        for seed in SEEDS
    ]
    means = {name: fmean(values) for name, values in accuracy.items()}
    proof.conclude(
        "c",
        "digits, IPC 30, late window, hard labels: without the guard accuracy falls below .3, with it it stays within "
        "2 points of random real examples",
        holds=means["unguarded"] < 0.3 and means["guarded"] >= means["random real"] - 0.02,
        figures={"accuracy": accuracy, "means": means},
        seeds=SEEDS,
    )
