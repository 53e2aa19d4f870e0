"""INFER's proof: Fashion-MNIST at 14 x 14 in place of CIFAR-10, the room of ten images a class, two networks.

Labels are static: one for each stored example, mixed as the images are. Beside the blocks with compensators stand the
same blocks without them, images recovered from noise (SRe2L) and random real images, all in the same room. Claims: (a)
label bytes, (b) accuracy, (c) what a compensator does to each class. Settings were chosen with seed 100 on validation
data.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from distillrs import recipes
from distillrs.condense import Committee, MixedLabels, Synthetic
from proofs.condense import recovered
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
LIMIT = 5_000
PER_CLASS = 10
MEMBERS = ("resnet", "vgg")
STEPS = 300
STRENGTH = 0.05
RATES = {"infer": 0.005, "sre2l": 0.1}
"""Of the recovery, along half a cosine."""
EPOCHS = 300
VIEWS = 60
TEMPERATURE = 4.0
ARMS = ("infer", "images alone", "sre2l", "real")


def set_of(kind: str, seed: int, teachers: Committee) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Images, classes, and what was seen on the way."""
    data = recovered.data(LIMIT)
    if kind == "real":
        return *recovered.real(LIMIT, PER_CLASS, seed), {}
    if kind == "sre2l":
        synthetic = recipes.cda_initial(data.x, data.y, PER_CLASS, seed=seed)
        made = recipes.cda(teachers, synthetic, STRENGTH, curriculum="constant", members=len(MEMBERS), seed=seed)
        recovered.recover(made, STEPS, seed, RATES[kind])
        return *recovered.finished(synthetic), {}
    synthetic = recipes.infer_ufc_initial(data.x, data.y, PER_CLASS, teachers, seed=seed)
    if kind == "images alone":
        # One of the equal copies that offsets of 0 make.
        images, labels = recovered.finished(synthetic)
        return images[:: len(MEMBERS)], labels[:: len(MEMBERS)], {}
    before = class_errors(synthetic, teachers)
    recovered.recover(recipes.infer_ufc(teachers, synthetic, STRENGTH, seed=seed), STEPS, seed, RATES[kind])
    after = class_errors(synthetic, teachers)
    stored = len(synthetic.images) + synthetic.factors.offsets.shape[:2].numel()
    return *recovered.finished(synthetic), {"before": before, "after": after, "stored images": stored}


@torch.no_grad()
def class_errors(synthetic: Synthetic, teachers: Committee) -> list[float]:
    """Mean cross-entropy of each class, each example under the teacher that its compensator is for."""
    images, labels = synthetic.examples(), synthetic.targets()
    found = torch.zeros(len(images))
    for number in range(len(teachers)):
        rows = slice(number, None, len(teachers))
        found[rows] = functional.cross_entropy(teachers[number](images[rows]), labels[rows], reduction="none")
    return [float(found[labels == label].mean()) for label in range(10)]


def arm(seed: int, kind: str, part: recovered.Part = "test") -> dict[str, Any]:
    teachers = recovered.committee(MEMBERS, LIMIT, seed)
    images, labels, seen = set_of(kind, seed, teachers)
    logits = teachers.vote(images).half()
    views = MixedLabels(recipes.infer_ufc_views(VIEWS, temperature=TEMPERATURE, seed=seed), logits)
    return {
        "accuracy": recovered.student(images, labels, LIMIT, seed, views=views, part=part),
        "label bytes": views.label_bytes(len(images), 10),
        "examples": len(images),
        **seen,
    }


def runs(proof: Proof) -> dict[str, list[dict[str, Any]]]:
    return {
        kind: [proof.cell(f"{kind.replace(' ', '-')}-{seed}", lambda s=seed, k=kind: arm(s, k)) for seed in SEEDS]
        for kind in ARMS
    }


def test_a_label_bytes(proof: Proof) -> None:
    own = runs(proof)["infer"][0]
    # 16 bits for each class of each view, of as many epochs as published runs have.
    every_view = EPOCHS * PER_CLASS * 10 * 10 * 2
    share = own["label bytes"] / every_view
    fits = own["stored images"] <= PER_CLASS * 10
    proof.conclude(
        "a",
        "in the room of ten images a class: labels take at most 1% of the bytes that labels of every view over 300 "
        "epochs of as many images take",
        holds=share <= 0.01 and fits,
        figures={"share": share, "stored images": own["stored images"], "examples": own["examples"]},
        seeds=SEEDS[:1],
    )


def test_b_accuracy(proof: Proof) -> None:
    found = runs(proof)
    means = {kind: fmean(run["accuracy"] for run in own) for kind, own in found.items()}
    proof.conclude(
        "b",
        "static labels, the same training: at least 3 points above recovered images (SRe2L) and at least 1 above the "
        "same real images without compensators, mean of three seeds; as many random real images as the room holds are "
        "beside it",
        holds=means["infer"] >= means["sre2l"] + 3 and means["infer"] >= means["images alone"] + 1,
        figures={"means": means, "runs": found},
        seeds=SEEDS,
    )


def test_c_a_compensator_helps_every_class(proof: Proof) -> None:
    found = runs(proof)["infer"]
    before, after = ([fmean(run[name][label] for run in found) for label in range(10)] for name in ("before", "after"))
    proof.conclude(
        "c",
        "compensators bring the mean cross-entropy down for each of the ten classes, mean of three seeds",
        holds=all(new < old for new, old in zip(after, before, strict=True)),
        figures={"before": before, "after": after},
        seeds=SEEDS,
    )


def pilot() -> None:
    """Chooses settings: `python -c "from proofs.condense.test_infer_ufc import pilot; pilot()"`."""
    global TEMPERATURE
    torch.set_num_threads(1)
    seed = recovered.CHOOSING_SEED
    for TEMPERATURE in (1.0, 4.0):
        print(TEMPERATURE, {k: arm(seed, k, "validation")["accuracy"] for k in ("images alone", "real")}, flush=True)
        for RATES["infer"] in (0.005, 0.02, 0.1):
            print(TEMPERATURE, RATES["infer"], arm(seed, "infer", "validation")["accuracy"], flush=True)
        for RATES["sre2l"] in (0.02, 0.1, 0.3):
            print(TEMPERATURE, RATES["sre2l"], arm(seed, "sre2l", "validation")["accuracy"], flush=True)
