"""FTD's proof: sharpness-aware experts walk where the loss is flat, and a student strays less from their path."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from distillrs.condense import ExpertTraining, SharpnessAware
from distillrs.recipes import ftd_experts
from distillrs.training import TrainingSettings
from proofs.condense.bed import Images
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

DIGITS_TRAINING = TrainingSettings(epochs=20, batch_size=32, learning_rate=0.1)
EPOCHS = (5, 10, 20)


@cache
def digits() -> Images:
    return Images.digits()


def digits_network() -> Any:
    return digits().network(0)


def test_a_flat_experts_lie_where_noise_hurts_less_at_equal_accuracy(proof: Proof) -> None:
    kinds = {
        "plain": ExpertTraining(DIGITS_TRAINING),
        "flat": ftd_experts(digits_network(), DIGITS_TRAINING, radius=0.3, adaptive=False, surrogate_gap=0.0),
    }
    assert kinds["flat"].rule == SharpnessAware(0.3)

    def measure(name: str) -> dict[str, list[float]]:
        bed = digits()
        store = bed.record(f"digits-{name}", kinds[name], 4)
        return {
            "loss rise": [bed.flatness(store, epoch) for epoch in EPOCHS],
            "accuracy": [bed.expert_accuracy(store, epoch) for epoch in EPOCHS],
        }

    found = {name: proof.cell(f"a-{name}", lambda name=name: measure(name)) for name in kinds}
    change = [
        flat / plain - 1 for flat, plain in zip(found["flat"]["loss rise"], found["plain"]["loss rise"], strict=True)
    ]
    apart = [
        abs(flat - plain) for flat, plain in zip(found["flat"]["accuracy"], found["plain"]["accuracy"], strict=True)
    ]
    proof.conclude(
        "a",
        "digits, MLP, 4 experts: the mean loss rise under weight noise of 10% norm is at least 15% lower than that of "
        "plain experts at each of the epochs 5, 10 and 20, test accuracies within 1 point",
        holds=max(change) <= -0.15 and max(apart) <= 0.01,
        figures={**found, "epochs": list(EPOCHS), "change of the loss rise": change, "accuracy apart": apart},
        seeds=[0],
    )
