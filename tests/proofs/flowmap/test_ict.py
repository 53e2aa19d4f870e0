"""The proof of improved consistency training: each of its changes counts.

Every arm draws its samples with the weights that were trained: a learning rate that falls to 0 stands in the place of
the average over the run that both papers sample with.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import distillrs as dr
from distillrs import diffusion, random, recipes
from distillrs.diffusion import (
    ConsistencyBoundary,
    Data,
    Eulerian,
    FlowMap,
    PseudoHuber,
    Solver,
    SquaredError,
    Weighted,
)
from distillrs.recipes._maps import doubling_levels, levels_law, preconditioned
from distillrs.schedule import EDM, BinnedLogNormal, Neighbouring
from proofs.flowmap import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
UPDATES = 4000
RATE = 1e-3
ROWS = 2000
PATH = EDM(80.0, 1.0)
LEAST = 0.002

# What each arm takes back of the improvements.
ARMS: dict[str, dict[str, Any]] = {
    "CT": {"average": 0.95, "huber": False, "binned": False, "levels": (40, 40), "weighted": False},
    "iCT": {},
    "average": {"average": 0.95},
    "squared": {"huber": False},
    "uniform": {"binned": False},
    "10 levels": {"levels": (10, 10)},
    "1280 levels": {"levels": (1280, 1280)},
}


@cache
def halves() -> tuple[Tensor, Tensor]:
    """Digits to learn from, and as many that are held out."""
    order = random.permutation(len(bed.exact().data), step=dr.Step(0), name="halves")
    rows = bed.exact().data[order]
    return rows[: len(rows) // 2].float(), rows[len(rows) // 2 :]


def one_over_step(rows: diffusion.Rows) -> Tensor:
    assert rows.middle is not None
    return 1 / (rows.path.sigma(rows.t) - rows.path.sigma(rows.middle))


def objective_of(
    network: torch.nn.Module,
    average: torch.nn.Module | None = None,
    huber: bool = True,
    binned: bool = True,
    levels: tuple[int, int] = (10, 1280),
    weighted: bool = True,
    seed: int = 0,
) -> FlowMap:
    """iCT from its parts, so that each can be exchanged; with all of them it is the recipe's."""

    def count(step: dr.Step) -> int:
        assert step.total is not None
        return doubling_levels(step.index, step.total, *levels)

    law = (lambda times: BinnedLogNormal(times, -1.1, 2.0, PATH)) if binned else Neighbouring
    return FlowMap(
        preconditioned(network, PATH),
        path=PATH,
        head=ConsistencyBoundary(LEAST),
        residual=Eulerian(Solver(None), source=Data()),
        pairs=levels_law(count, law, PATH, LEAST, 7.0),
        metric=PseudoHuber() if huber else SquaredError("sum"),
        balance=Weighted(one_over_step) if weighted else (),
        target=None if average is None else preconditioned(average, PATH),
        seed=seed,
    )


def batches(seed: int) -> Any:
    known = halves()[0]

    def batch_of(step: dr.Step) -> diffusion.Batch:
        rows = random.integers(bed.BATCH, len(known), step=dr.Step(step.index, seed=seed), name="rows")
        return diffusion.Batch(known[rows])

    return batch_of


def measure(arm: str, seed: int) -> float:
    network, settings = bed.Net(seed=seed), dict(ARMS[arm])
    watch = None
    rate = settings.pop("average", None)
    if rate is not None:
        settings["average"], watch = bed.average_of(network, rate)
    objective = objective_of(network, seed=seed, **settings)
    bed.train(objective, UPDATES, batches(seed), seed=seed, rates=RATE, optimiser=torch.optim.RAdam, watch=watch)
    noise = bed.start(ROWS, seed)
    ends = torch.full((ROWS,), objective.map.head.end(PATH), dtype=torch.float64)
    with torch.no_grad():
        samples = objective.map(PATH.sigma_max * noise, torch.ones(ROWS, dtype=torch.float64), ends)
    return bed.frechet(samples, halves()[1])


def test_1_each_improvement_counts(proof: Proof) -> None:
    network, step = bed.Net(), dr.Step(700, total=UPDATES)
    of_recipe = recipes.ict(network, sigma_data=1.0)(batches(0)(step), step)
    assert torch.equal(objective_of(network)(batches(0)(step), step).total, of_recipe.total)
    runs = {arm: [proof.cell(f"{arm}-{seed}", lambda a=arm, s=seed: measure(a, s)) for seed in SEEDS] for arm in ARMS}
    behind = {arm: bed.below(runs["iCT"], runs[arm]) for arm in ARMS if arm != "iCT"}
    proof.conclude(
        "1",
        f"Frechet distance of one-step samples from held-out digits after {UPDATES} updates: improved consistency "
        "training is at least 25% below that of 2023 (averaged target, squared error, uniform indices, 40 levels)",
        holds=behind["CT"] >= 0.25 and bed.same_sign(runs["iCT"], runs["CT"]),
        figures={"runs": runs, "iCT below": behind},
        seeds=SEEDS,
    )
    proof.conclude(
        "2",
        "targets of the present weights are at least 5% better than those of their average",
        holds=behind["average"] >= 0.05,
        figures={"below": behind["average"]},
        seeds=SEEDS,
    )
    proof.conclude(
        "3",
        "10 levels throughout and 1280 throughout are both worse than doubling",
        holds=min(behind["10 levels"], behind["1280 levels"]) > 0,
        figures={"below 10 levels": behind["10 levels"], "below 1280 levels": behind["1280 levels"]},
        seeds=SEEDS,
    )
