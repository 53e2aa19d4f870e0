"""DATM's proof: which windows suit which size of set, and what the guard saves."""

from __future__ import annotations

import math
from statistics import fmean

import pytest

from distillrs import recipes
from distillrs.condense import ExpertTraining
from distillrs.training import TrainingSettings
from proofs.condense.bed import CHOOSING_SEED, FASHION_STUDENT, Images, Part, best, distil
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

# Two epochs more than the last start of 19 needs.
DIGITS_EXPERTS = ExpertTraining(TrainingSettings(epochs=22, batch_size=32, learning_rate=0.05))
# Plain gradient descent, because the learned rate belongs to it; each set brings the rate itself.
STUDENT = TrainingSettings(epochs=300, batch_size=1024, learning_rate=0.05)
SEEDS = [0, 1, 2]

FASHION_EXPERTS = recipes.datm_experts(None, TrainingSettings(epochs=20, batch_size=256, learning_rate=0.05))
FASHION_WINDOWS = {"early": (0, 4), "middle": (7, 11), "late": (14, 18)}
FASHION_RATE = 0.05
FASHION_STEPS = 15
FASHION_UPDATES = {1: 100, 50: 150}
FASHION_IMAGE_RATES = {1: ("30", "100"), 50: ("100", "300")}


def digits_condensed(
    low: int,
    high: int,
    seed: int,
    *,
    per_class: int,
    labels: str,
    lr: float,
    guard: float,
    steps: int,
    on: Part = "test",
) -> dict[str, float]:
    """Accuracy of digits condensed against one window, and the rate that was learned with them."""
    bed = Images.digits()
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
    data = distil(objective, synthetic, rates, steps, seed)
    return {"accuracy": bed.judged(data, STUDENT, seed, on=on), "learned rate": float(data.inner_lr)}


def test_a_with_one_image_a_class_the_early_window_wins(proof: Proof) -> None:
    windows = {"[0, 3)": (0, 3), "[14, 20)": (14, 20)}
    candidates = ("1", "3", "10")
    seeds = SEEDS[:2]

    def condensed(window: str, lr: str, seed: int, on: Part) -> dict[str, float]:
        return digits_condensed(
            *windows[window], seed, per_class=1, labels="soft", lr=float(lr), guard=1.1, steps=300, on=on
        )

    found = {}
    for window, (low, _) in windows.items():
        validation = {
            lr: proof.cell(f"a-{low}-rate-{lr}", lambda w=window, lr=lr: condensed(w, lr, CHOOSING_SEED, "validation"))
            for lr in candidates
        }
        lr = best({lr: cell["accuracy"] for lr, cell in validation.items()})
        runs = [
            proof.cell(f"a-{low}-{seed}", lambda w=window, lr=lr, seed=seed: condensed(w, lr, seed, "test"))
            for seed in seeds
        ]
        found[window] = {"validation by rate": validation, "rate": lr, "test": runs}
    mean = {window: fmean(run["accuracy"] for run in each["test"]) for window, each in found.items()}
    gain = mean["[0, 3)"] - mean["[14, 20)"]
    proof.conclude(
        "a",
        "digits, MLP, IPC 1, T=20, M=2, 2 seeds: starts in [0, 3) beat starts in [14, 20) by at least 15 points, each "
        "with the rate that does best on validation data",
        holds=gain >= 0.15,
        figures={**found, "mean": mean, "gain": gain},
        seeds=seeds,
    )


def fashion_condensed(per_class: int, window: str, seed: int, lr: float, on: Part = "test") -> dict[str, float]:
    """Accuracy of Fashion-MNIST condensed against one window."""
    low, high = FASHION_WINDOWS[window]
    bed = Images.fashion()
    store = bed.record("fashion", FASHION_EXPERTS, 3)
    network = bed.network(0)
    synthetic = recipes.datm_initial(
        bed.x, bed.y, per_class, store=store, network=network, seed=seed, inner_lr=FASHION_RATE
    )
    objective = recipes.datm(
        store, network, synthetic, inner_steps=FASHION_STEPS, low=low, first_high=high, last_high=high, guard=1.1,
        batch=100, seed=seed,
    )  # fmt: skip
    rates = {
        "images": {"lr": lr, "momentum": 0.5},
        "labels": {"lr": 2.0, "momentum": 0.9},
        "inner_lr": {"lr": 1e-4, "momentum": 0.5},
    }
    data = distil(objective, synthetic, rates, FASHION_UPDATES[per_class], seed)
    return {"accuracy": bed.judged(data, FASHION_STUDENT, seed, on=on), "learned rate": float(data.inner_lr)}


def fashion_real(per_class: int, seed: int, lr: float, on: Part = "test") -> float:
    """Accuracy of random real images with the labels that the condensed ones start with."""
    bed = Images.fashion()
    store = bed.record("fashion", FASHION_EXPERTS, 3)
    data = recipes.datm_initial(
        bed.x, bed.y, per_class, store=store, network=bed.network(0), seed=seed, inner_lr=lr
    ).condensed()
    return bed.judged(data, FASHION_STUDENT, seed, on=on)


def test_b_larger_sets_prefer_later_windows(proof: Proof) -> None:
    found = {}
    for per_class in (1, 50):
        candidates = FASHION_IMAGE_RATES[per_class]
        validation = {
            lr: proof.cell(
                f"b-{per_class}-rate-{lr}",
                lambda n=per_class, lr=lr: fashion_condensed(n, "middle", CHOOSING_SEED, float(lr), "validation"),
            )
            for lr in candidates
        }
        lr = best({lr: cell["accuracy"] for lr, cell in validation.items()})
        windows = {
            name: [
                proof.cell(
                    f"b-{per_class}-{name}-{seed}",
                    lambda n=per_class, w=name, s=seed, lr=lr: fashion_condensed(n, w, s, float(lr)),
                )
                for seed in SEEDS
            ]
            for name in FASHION_WINDOWS
        }
        tried = {
            str(rate): proof.cell(
                f"b-{per_class}-real-rate-{rate}",
                lambda n=per_class, rate=rate: fashion_real(n, CHOOSING_SEED, rate, "validation"),
            )
            for rate in (0.02, 0.05, 0.1, 0.2, 0.4)
        }
        real_rate = best(tried)
        real = [
            proof.cell(
                f"b-{per_class}-real-{seed}", lambda n=per_class, s=seed, lr=real_rate: fashion_real(n, s, float(lr))
            )
            for seed in SEEDS
        ]
        mean = {name: fmean(run["accuracy"] for run in runs) for name, runs in windows.items()}
        found[per_class] = {
            "validation by rate of the images": validation,
            "windows": windows,
            "mean": mean,
            "best window": best(mean),
            "random real": {"validation by rate": tried, "rate": real_rate, "test": real, "mean": fmean(real)},
        }
    order = list(FASHION_WINDOWS)
    later = order.index(found[50]["best window"]) >= order.index(found[1]["best window"])
    gain = {n: each["mean"][each["best window"]] - each["random real"]["mean"] for n, each in found.items()}
    proof.conclude(
        "b",
        "Fashion-MNIST 10k, ConvNet: the best of an early, a middle and a late window is not earlier at IPC 50 "
        "than at IPC 1, and beats random real images with the same teachers' labels by at least 2 points at both",
        holds=later and min(gain.values()) >= 0.02,
        figures={**{f"IPC {n}": each for n, each in found.items()}, "gain over random real": gain},
        seeds=SEEDS,
    )


def test_c_the_guard_keeps_a_late_window_from_ruining_the_set(proof: Proof) -> None:
    def condensed(guard: float, seed: int) -> dict[str, float]:
        # The rate is the paper's.
        return digits_condensed(14, 20, seed, per_class=30, labels="hard", lr=100.0, guard=guard, steps=400)

    found = {
        name: [proof.cell(f"c-{name}-{seed}", lambda guard=guard, seed=seed: condensed(guard, seed)) for seed in SEEDS]
        for name, guard in (("unguarded", math.inf), ("guarded", 1.0))
    }
    real = [
        proof.cell(
            f"c-real-{seed}", lambda seed=seed: Images.digits().student(*Images.digits().real(30, seed), STUDENT, seed)
        )
        for seed in SEEDS
    ]
    means = {name: fmean(run["accuracy"] for run in runs) for name, runs in found.items()} | {
        "random real": fmean(real)
    }
    proof.conclude(
        "c",
        "digits, IPC 30, late window, hard labels, 400 steps: without the guard accuracy falls below .3, with it it "
        "stays within 2 points of random real examples",
        holds=means["unguarded"] < 0.3 and means["guarded"] >= means["random real"] - 0.02,
        figures={**found, "random real": real, "means": means},
        seeds=SEEDS,
    )
