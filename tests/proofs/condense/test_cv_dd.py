"""CV-DD's proof: Fashion-MNIST at 14 x 14 in place of CIFAR-10, ten images a class, three small networks.

Every arm begins with medium patches under its own committee, takes the same steps and is judged by two students whose
architectures no recovery saw. Members are worth what data distilled with each alone reaches on validation data. Claims:
(a) accuracy, (b) labels of batches, (c) the members stay as they are. Settings were chosen with seed 100 on validation
data.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

from distillrs import random, recipes
from distillrs.condense import Committee, ViewLabels, ViewPlan
from distillrs.step import Step
from proofs.condense import recovered
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
LIMIT = 10_000
PER_CLASS = 10
MEMBERS = ("resnet", "vgg", "mobile")
STUDENTS = ("plain", "wide")
STEPS = 400
STRENGTH = 0.05
RATE = 0.1
VIEWS = 60
BATCH = 25
TEMPERATURE = 4.0


def distilled(teachers: Committee, seed: int) -> tuple[Tensor, Tensor]:
    """Images recovered under a committee, two members for each group where there are two."""
    data = recovered.data(LIMIT)
    synthetic = recipes.cv_dd_initial(data.x, data.y, PER_CLASS, teachers, seed=seed)
    count = min(2, len(teachers))
    made = recipes.cv_dd(teachers, synthetic, STRENGTH, members=count, normalised=True, seed=seed)
    recovered.recover(made, STEPS, seed, RATE)
    return recovered.finished(synthetic)


def views_of(teachers: Committee, seed: int, *, batches: bool) -> ViewLabels:
    """Labels of views: of batches that normalise themselves, or of members as they are in evaluation."""
    plan = recipes.cv_dd_views(VIEWS, temperature=TEMPERATURE, batch=BATCH, seed=seed)
    if batches:
        return ViewLabels(plan, recipes.cv_dd_voice(teachers))
    alone = ViewPlan.from_dict({name: value for name, value in plan.describe().items() if name != "batch"})
    return ViewLabels(alone, lambda images: teachers.vote(images, temperature=10.0))


def judged(
    images: Tensor, labels: Tensor, teachers: Committee, seed: int, part: recovered.Part, *, batches: bool = True
) -> float:
    """Mean accuracy of the unseen students."""
    views = views_of(teachers, seed, batches=batches)
    return fmean(recovered.student(images, labels, LIMIT, seed, views=views, name=name, part=part) for name in STUDENTS)


def alone(seed: int, number: int, part: recovered.Part = "test") -> dict[str, float]:
    """One member by itself: what it reaches on validation data, which is its prior, and on the part."""
    teachers = recovered.committee(MEMBERS[number : number + 1], LIMIT, seed)
    images, labels = distilled(teachers, seed)
    return {
        "prior": judged(images, labels, teachers, seed, "validation"),
        "accuracy": judged(images, labels, teachers, seed, part),
    }


def together(seed: int, prior: tuple[float, ...] | None, part: recovered.Part = "test") -> dict[str, Any]:
    teachers = recovered.committee(MEMBERS, LIMIT, seed, prior)
    before = [{name: value.clone() for name, value in each.state_dict().items()} for each in _members(teachers)]
    images, labels = distilled(teachers, seed)
    found = {
        "accuracy": judged(images, labels, teachers, seed, part),
        "labels of single views": judged(images, labels, teachers, seed, part, batches=False),
        "spread": spread(images, teachers, seed),
    }
    same = all(
        torch.equal(value, old[name])
        for each, old in zip(_members(teachers), before, strict=True)
        for name, value in each.state_dict().items()
    )
    return found | {"members as they were": same}


def _members(teachers: Committee) -> list[torch.nn.Module]:
    return [teachers[number] for number in range(len(teachers))]


def spread(images: Tensor, teachers: Committee, seed: int, orders: int = 8) -> dict[str, float]:
    """Mean variance of an image's probabilities over the batches that it may be in."""
    found = {}
    for name, batches in (("batches", True), ("single views", False)):
        voice = views_of(teachers, seed, batches=batches).source
        assert callable(voice)
        answers = []
        for number in range(orders):
            order = random.permutation(len(images), step=Step(number, seed=seed), name="batches")
            logits = torch.cat([voice(images[rows]) for rows in torch.split(order, BATCH)])
            answers.append((torch.empty_like(logits).index_copy_(0, order, logits) / TEMPERATURE).softmax(1))
        found[name] = float(torch.stack(answers).var(0).mean())
    return found


def runs(proof: Proof) -> list[dict[str, Any]]:
    found = []
    for seed in SEEDS:
        single = [
            proof.cell(f"{name}-{seed}", lambda s=seed, n=number: alone(s, n)) for number, name in enumerate(MEMBERS)
        ]
        prior = tuple(each["prior"] for each in single)
        found.append(
            {
                "single": single,
                "prior": proof.cell(f"prior-{seed}", lambda s=seed, p=prior: together(s, p)),
                "equal": proof.cell(f"equal-{seed}", lambda s=seed: together(s, None)),
                "real": proof.cell(f"real-{seed}", lambda s=seed, p=prior: real(s, p)),
            }
        )
    return found


def real(seed: int, prior: tuple[float, ...]) -> float:
    """Random real images with the committee's labels."""
    images, labels = recovered.real(LIMIT, PER_CLASS, seed)
    return judged(images, labels, recovered.committee(MEMBERS, LIMIT, seed, prior), seed, "test")


def test_a_a_committee_beats_its_best_member(proof: Proof) -> None:
    found = runs(proof)
    singles = [fmean(run["single"][number]["accuracy"] for run in found) for number in range(len(MEMBERS))]
    means = {name: fmean(run[name]["accuracy"] for run in found) for name in ("prior", "equal")}
    proof.conclude(
        "a",
        "ten images a class, mean accuracy of two unseen students and three seeds: two members of three for each "
        "image, weighed by their prior, are at least 1 point above the best single member; equal weights and random "
        "real images are beside it",
        holds=means["prior"] >= max(singles) + 1,
        figures={
            "means": means | {"real": fmean(run["real"] for run in found)},
            "single members": dict(zip(MEMBERS, singles, strict=True)),
            "runs": found,
        },
        seeds=SEEDS,
    )


def test_b_labels_of_batches(proof: Proof) -> None:
    found = runs(proof)
    kinds = ("batches", "single views")
    spreads = {kind: fmean(run["prior"]["spread"][kind] for run in found) for kind in kinds}
    gain = fmean(run["prior"]["accuracy"] - run["prior"]["labels of single views"] for run in found)
    proof.conclude(
        "b",
        "a label varies over the batches that its image may be in, and does not where members are in evaluation mode; "
        "what that does to accuracy is recorded with its sign",
        holds=spreads["batches"] > 0 and spreads["single views"] <= 1e-10,
        figures={"variance": spreads, "points that labels of batches add": gain},
        seeds=SEEDS,
    )


def test_c_members_stay_as_they_are(proof: Proof) -> None:
    same = [run["prior"]["members as they were"] for run in runs(proof)]
    proof.conclude(
        "c",
        "parameters and running statistics of every member are the same bits before and after recovering and labelling",
        holds=all(same),
        figures={"the same": same},
        seeds=SEEDS,
    )


def pilot() -> None:
    """Chooses strength and rate: `python -c "from proofs.condense.test_cv_dd import pilot; pilot()"`."""
    global STRENGTH, RATE
    torch.set_num_threads(1)
    seed = recovered.CHOOSING_SEED
    for STRENGTH in (0.05, 0.5):
        for RATE in (0.02, 0.1):
            found = alone(seed, 0, "validation"), together(seed, None, "validation")
            print(STRENGTH, RATE, found, flush=True)
