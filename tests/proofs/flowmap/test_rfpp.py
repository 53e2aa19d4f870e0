"""The proof of better rectified flows: where errors are looked at, how they are measured, and where training begins."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import distillrs as dr
from distillrs import diffusion, random, recipes, schedule
from proofs.flowmap import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
PAIRS = 20_000
UPDATES = 1500
SHARE = 0.4
HELD_OUT = 512
PATH = schedule.RectifiedFlow()


@cache
def pairs() -> tuple[Tensor, Tensor]:
    """Noise and where the exact flow carries it, 40 steps of Heun."""
    noise = bed.start(PAIRS, 0, "pairs")

    def walked() -> dict[str, Tensor]:
        return {"ends": torch.cat([bed.walk(bed.exact().on(PATH), PATH, part, 40) for part in noise.split(1000)])}

    return noise, bed.kept(f"pairs-{PAIRS}", walked)["ends"]


@cache
def features() -> nn.Module:
    """A small classifier of digits, frozen: its hidden layer is what the perceptual distance looks at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = nn.Sequential(nn.Linear(bed.SIZE, 64), nn.SiLU())
        whole = nn.Sequential(hidden, nn.Linear(64, bed.CLASSES))
    optimiser = torch.optim.Adam(whole.parameters(), 3e-3)
    draw = bed.labelled(0)
    for index in range(400):
        x, label = draw(dr.Step(index))
        loss = nn.functional.cross_entropy(whole(x), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return hidden.requires_grad_(False)


def perceptual(one: Tensor, other: Tensor) -> Tensor:
    """The root of the squared difference of features, as pseudo-Huber metrics grow."""
    squares = (features()(one) - features()(other)).square().mean(1)
    return (squares + 1e-4).sqrt() - 1e-2


def batches(seed: int) -> Any:
    noise, ends = pairs()

    def batch_of(step: dr.Step) -> diffusion.Batch:
        rows = random.integers(bed.BATCH, PAIRS, step=dr.Step(step.index, seed=seed), name="pairs")
        return diffusion.Batch(ends[rows], {"label": torch.full((bed.BATCH,), bed.NONE)}, noise=noise[rows])

    return batch_of


def measure(arm: str, seed: int) -> dict[str, float]:
    begun = arm == "teacher"
    network = bed.teacher(seed).continued().requires_grad_(True) if begun else bed.Net(seed=seed)
    updates = round(SHARE * UPDATES) if begun else UPDATES
    if arm == "uniform":
        objective = recipes.instaflow(network, seed=seed)
    else:
        objective = recipes.rfpp(network, perceptual, seed=seed)
    bed.train(objective, updates, batches(seed), seed=seed)
    noise, condition = bed.start(HELD_OUT, seed), {"label": torch.full((HELD_OUT,), bed.NONE)}
    flow = bed.walk(bed.score_of(network), PATH, noise, 40, condition, every=True)
    return {
        "RMSE": bed.paired(bed.one_call(objective.map, noise, condition), bed.reference(HELD_OUT, seed)),
        "bend": bed.bend(flow),
    }


def first_bend(seed: int) -> float:
    return bed.bend(bed.walk(bed.exact().on(PATH), PATH, bed.start(HELD_OUT, seed), 40, every=True))


ARMS = ("uniform", "u-shaped", "teacher")


def test_1_better_training_of_a_reflow(proof: Proof) -> None:
    runs = {arm: [proof.cell(f"{arm}-{seed}", lambda a=arm, s=seed: measure(a, s)) for seed in SEEDS] for arm in ARMS}
    error = {arm: [run["RMSE"] for run in runs[arm]] for arm in ARMS}
    nearer = bed.below(error["u-shaped"], error["uniform"])
    proof.conclude(
        "1",
        f"after {UPDATES} updates on {PAIRS} pairs the U-shaped law with pseudo-Huber and a feature distance has a "
        "paired RMSE of one step at least 10% below that of uniform times with the squared error",
        holds=nearer >= 0.1 and bed.same_sign(error["u-shaped"], error["uniform"]),
        figures={"runs": runs, "below": nearer},
        seeds=SEEDS,
    )
    ahead = bed.below(error["teacher"], error["u-shaped"])
    proof.conclude(
        "2",
        f"begun as the teacher, {SHARE:.0%} of the updates reach what all of them reach from scratch",
        holds=ahead >= 0,
        figures={"begun as the teacher": error["teacher"], "from scratch": error["u-shaped"], "below": ahead},
        seeds=SEEDS,
    )
    first = [proof.cell(f"bend-{seed}", lambda s=seed: first_bend(s)) for seed in SEEDS]
    bends = {arm: [run["bend"] for run in runs[arm]] for arm in ("u-shaped", "teacher")}
    straighter = {arm: bed.below(values, first) for arm, values in bends.items()}
    proof.conclude(
        "3",
        "paths of the reflow, from scratch and begun as the teacher, are at least 50% straighter than those of the "
        "flow that made the pairs: E|v - (z - x)|^2 along them",
        holds=min(straighter.values()) >= 0.5,
        figures={"first flow": first, **bends, "below": straighter},
        seeds=SEEDS,
    )
