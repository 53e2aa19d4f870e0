"""DMD2's proof: two speeds, a discriminator on the critic, and inputs that are met in sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distillrs as dr
from distillrs import diffusion, random, recipes
from proofs.distmatch import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
UPDATES = 500
WEAK_STEPS = 150
LOOKS = 10
LEVELS = (1.0, 0.75, 0.5, 0.25)
RATES = {"generator": 1e-3, "critic": 2e-3}
ADVERSARY = 3e-2

ARMS: dict[str, dict[str, Any]] = {
    "ratio 5": {},
    "ratio 1": {"ratio": 1},
    "head": {"head": True},
    "weak teacher, head": {"head": True, "weak": True},
    "simulated": {"levels": LEVELS},
    "noised data": {"levels": LEVELS, "inputs": "data"},
}


def measure(arm: str, seed: int, updates: int = UPDATES) -> dict[str, Any]:
    settings: dict[str, Any] = {"ratio": 5, "levels": (1.0,)} | ARMS[arm]
    teacher = bed.teacher(seed, steps=WEAK_STEPS if settings.pop("weak", False) else bed.TEACHER_STEPS)
    if settings.pop("head", False):
        settings |= {"head": bed.head(seed), "features": bed.Net.features, "generator_adversary": ADVERSARY}
    student = teacher.copied()
    objective = recipes.dmd2(student, teacher, teacher.copied(), path=bed.PATH, kind="v", seed=seed, **settings)
    noise, looks = bed.start(seed), []
    steps = updates * settings["ratio"]

    def watch(index: int) -> None:
        if (index + 1) % (steps // LOOKS) == 0:
            looks.append(bed.quality(bed.sample(objective.map, noise, settings["levels"]))["DFD"])

    bed.train(objective, steps, bed.examples(seed), seed=seed, rates=RATES, watch=watch)
    found = bed.quality(bed.sample(objective.map, noise, settings["levels"]))
    return found | {"looks": looks, "updates": objective.updates}


def runs(proof: Proof, arm: str) -> list[dict[str, Any]]:
    return [proof.cell(f"{arm}-{seed}", lambda s=seed: measure(arm, s)) for seed in SEEDS]


def test_1_a_faster_critic(proof: Proof) -> None:
    fast, slow = runs(proof, "ratio 5"), runs(proof, "ratio 1")
    one, other = bed.column(fast, "DFD"), bed.column(slow, "DFD")
    worst = max(looks[-1] / min(looks) for looks in bed.column(fast, "looks"))
    proof.conclude(
        "1",
        f"one step, {UPDATES} updates of the generator, no regression: with five updates of the critic for each the "
        "DFD is at most 0.8 times that with one, for every seed below it, and no run diverges (its last DFD is at most "
        "1.2 times the least of ten looks)",
        holds=bed.ratio(one, other) <= 0.8 and bed.all_below(one, other) and worst <= 1.2,
        figures={"ratio 5": fast, "ratio 1": slow, "times": bed.ratio(one, other), "last over least": worst},
        seeds=SEEDS,
    )


def test_2_a_discriminator_on_the_critic(proof: Proof) -> None:
    with_head, without = runs(proof, "head"), runs(proof, "ratio 5")
    one, other = bed.column(with_head, "DFD"), bed.column(without, "DFD")
    proof.conclude(
        "2",
        "a head on the critic's bottleneck lowers the DFD by at least 10%, and for every seed",
        holds=bed.ratio(one, other) <= 0.9 and bed.all_below(one, other),
        figures={"head": with_head, "times": bed.ratio(one, other)},
        seeds=SEEDS,
    )
    student = runs(proof, "weak teacher, head")
    teacher = [proof.cell(f"weak-{seed}", lambda s=seed: bed.many_steps(s, trained=WEAK_STEPS)) for seed in SEEDS]
    one, other = bed.column(student, "DFD"), bed.column(teacher, "DFD")
    proof.conclude(
        "2b",
        f"the one-step student of a teacher of only {WEAK_STEPS} steps of training ends below that teacher's own DFD "
        "in 50 steps, for every seed",
        holds=bed.all_below(one, other),
        figures={"student": student, "teacher": teacher, "times": bed.ratio(one, other)},
        seeds=SEEDS,
    )


def test_3_inputs_that_are_met_in_sampling(proof: Proof) -> None:
    simulated, noised = runs(proof, "simulated"), runs(proof, "noised data")
    teacher = [proof.cell(f"teacher-{seed}", lambda s=seed: bed.many_steps(s)) for seed in SEEDS]
    one, other = bed.column(simulated, "DFD"), bed.column(noised, "DFD")
    proof.conclude(
        "3",
        "four steps: trained on the inputs that it meets in sampling the student's DFD is at most 0.9 times that of "
        "one trained on noised data, for every seed below it",
        holds=bed.ratio(one, other) <= 0.9 and bed.all_below(one, other),
        figures={
            "simulated": simulated,
            "noised data": noised,
            "times": bed.ratio(one, other),
            "teacher, 50 steps": teacher,
        },
        seeds=SEEDS,
    )


class Fixed(nn.Module):
    """The same clean state whatever it is asked."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.value


def test_4_the_gradient_is_the_direction(proof: Proof) -> None:
    worst = {}
    for shape in [(1, 1), (7, 64), (3, 5, 5), (4, 3, 8, 8), (2, 4, 2, 3, 3)]:
        x, real, fake = (random.normal(*shape, step=dr.Step(0, seed=4), name=name) for name in ("x", "real", "fake"))
        networks = [Fixed(value) for value in (x, real, fake)]
        objective = recipes.dmd2(*networks, path=bed.PATH, kind="x0", shape=shape[1:])
        objective(diffusion.Batch(size=len(x)), 0, turn="generator").total.backward()
        distance = (x - real).abs().flatten(1).mean(1).reshape(-1, *(1,) * (x.dim() - 1))
        wanted = (fake - real) / distance / x.numel()
        slope = networks[0].value.grad
        assert slope is not None
        worst["x".join(map(str, shape))] = float((slope - wanted).abs().max() / wanted.abs().max())
    proof.conclude(
        "4",
        "for five shapes the gradient on the sample is its direction over the number of elements, to 1e-6 of the "
        "largest (also: a property test for any shape)",
        holds=max(worst.values()) < 1e-6,
        figures=worst,
    )


def test_features_tell_digits_apart_and_noise_from_them() -> None:
    """The measure itself: held-out digits are near, and noise, or one digit for all, is far."""
    x, _, other, y = bed.digits()
    near = bed.quality(other[torch.arange(bed.ROWS) % len(other)])["DFD"]
    far = bed.quality(bed.start(0))["DFD"]
    alone = bed.quality(other[:1] + 0.01 * bed.start(0))["DFD"]
    assert near < 0.2 * min(far, alone)
    hidden = bed.classifier()
    nearest = torch.cdist(hidden(other), hidden(x)).argmin(1)
    assert float((bed.digits()[1][nearest] == y).double().mean()) > 0.95
