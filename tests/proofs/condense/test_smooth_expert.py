"""AST's proof: smooth experts with momentum, what distilling against them gives, and their initialisation."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest

from distillrs import recipes
from distillrs.condense import ExpertTraining, Synthetic
from distillrs.training import TrainingSettings
from proofs.condense.bed import CHOOSING_SEED, FASHION_STUDENT, Images, Part, best, displacements, distil, variation
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [0, 1, 2]
# The authors' settings for 50 epochs of all of CIFAR, with a rate for 20 epochs of a sixth as many examples.
TRAINING = TrainingSettings(
    epochs=20,
    batch_size=256,
    learning_rate=0.01,
    momentum=0.9,
    weight_decay=1e-3,
    schedule="step",
    drop_at=(0.5,),
    drop_factor=0.6,
)
EXPERTS = {"raw": ExpertTraining(TRAINING), "smooth": recipes.smooth_expert_experts(None, TRAINING)}
INNER_STEPS = 15
SPAN = 2
UPDATES = 80
IMAGE_RATES = ("300", "1000")


def test_a_smooth_experts_move_evenly_at_equal_accuracy(proof: Proof) -> None:
    def measured(name: str) -> dict[str, object]:
        bed = Images.fashion()
        store = bed.record(name, EXPERTS[name], 3)
        moved = displacements(store)
        return {
            "displacements": moved,
            "variation": fmean(variation(values) for values in moved.values()),
            "accuracy": bed.expert_accuracy(store, TRAINING.epochs),
        }

    found = {name: proof.cell(f"a-{name}", lambda name=name: measured(name)) for name in EXPERTS}
    change = found["smooth"]["variation"] / found["raw"]["variation"] - 1
    apart = abs(found["smooth"]["accuracy"] - found["raw"]["accuracy"])
    proof.conclude(
        "a",
        "Fashion-MNIST 10k, ConvNet, momentum experts: with clipping and penalty the coefficient of variation of "
        "the epochs' displacements is at least 20% lower, test accuracies within 1 point",
        holds=change <= -0.2 and apart <= 0.01,
        figures={**found, "change of the variation": change, "accuracy apart": apart},
        seeds=[0],
    )


def condensed(experts: str, initial: str, seed: int, lr: float, on: Part = "test") -> dict[str, float]:
    """Accuracy of Fashion-MNIST condensed against one kind of experts from one kind of start."""
    bed = Images.fashion()
    store = bed.record(experts, EXPERTS[experts], 3)
    network = bed.network(0)
    if initial == "k-means":
        synthetic = recipes.smooth_expert_initial(
            bed.x, bed.y, 10, store=store, network=network, seed=seed, inner_lr=0.02
        )
    else:
        synthetic = Synthetic.from_real(bed.x, bed.y, 10, seed=seed, inner_lr=0.02)
    objective = recipes.smooth_expert(
        store, network, synthetic, inner_steps=INNER_STEPS, span=SPAN, start=range(8), seed=seed
    )
    rates = {"images": {"lr": lr, "momentum": 0.5}, "inner_lr": {"lr": 1e-5, "momentum": 0.5}}
    data = distil(objective, synthetic, rates, UPDATES, seed)
    return {"accuracy": bed.judged(data, FASHION_STUDENT, seed, on=on), "learned rate": float(data.inner_lr)}


def runs(proof: Proof, experts: str, initial: str) -> dict[str, object]:
    """Test accuracy over the seeds with the rate that does best on validation data."""
    validation = {
        lr: proof.cell(
            f"{experts}-{initial}-rate-{lr}",
            lambda lr=lr: condensed(experts, initial, CHOOSING_SEED, float(lr), "validation"),
        )
        for lr in IMAGE_RATES
    }
    lr = best({lr: cell["accuracy"] for lr, cell in validation.items()})
    found = [
        proof.cell(f"{experts}-{initial}-{seed}", lambda seed=seed: condensed(experts, initial, seed, float(lr)))
        for seed in SEEDS
    ]
    accuracy = [run["accuracy"] for run in found]
    return {
        "validation by rate of the images": validation,
        "rate": lr,
        "test": found,
        "mean": fmean(accuracy),
        "spread": stdev(accuracy),
    }


def test_b_smooth_experts_teach_more_than_raw_ones(proof: Proof) -> None:
    found = {experts: runs(proof, experts, "k-means") for experts in EXPERTS}
    gain = found["smooth"]["mean"] - found["raw"]["mean"]
    proof.conclude(
        "b",
        "Fashion-MNIST 10k, ConvNet, IPC 10: distilling against smooth experts beats distilling against raw "
        "momentum experts by at least 1 point",
        holds=gain >= 0.01,
        figures={**found, "gain": gain},
        seeds=SEEDS,
    )


def test_c_the_k_means_start_spreads_no_more_than_a_random_one(proof: Proof) -> None:
    found = {initial: runs(proof, "smooth", initial) for initial in ("k-means", "random")}
    proof.conclude(
        "c",
        "Fashion-MNIST 10k, ConvNet, IPC 10, equal updates: the standard deviation of the accuracy over seeds "
        "from the k-means start is at most that from random real examples",
        holds=found["k-means"]["spread"] <= found["random"]["spread"],
        figures=found,
        seeds=SEEDS,
    )
