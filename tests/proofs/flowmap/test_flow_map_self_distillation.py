"""Self-distillation's proof: the Lagrangian condition is the best of three at every number of steps."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

import distillrs as dr
from distillrs import diffusion, recipes, schedule
from proofs.flowmap import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
UPDATES = 1200
LEARNED_SHARE = 0.01
STEPS = (1, 2, 4, 8)
ROWS = 2000
ARMS = ("lagrangian", "midpoint", "uniform", "eulerian")
PATH = schedule.RectifiedFlow()


def measure(arm: str, seed: int) -> dict[str, Any]:
    network = bed.Net(2, seed=seed)
    objective = recipes.flow_map_self_distillation(network, arm, seed=seed)
    draw = bed.batches(seed)
    norms = bed.train(
        objective,
        UPDATES,
        lambda step: diffusion.Batch(draw(step)),
        seed=seed,
        clip=1.0,
        learned_share=LEARNED_SHARE,
    )
    noise = bed.start(ROWS, seed)
    with torch.no_grad():
        made = [diffusion.sample(objective.map, noise, schedule.spaced(steps, PATH)) for steps in STEPS]
    # Steps of a map that did not settle can leave what is finite.
    distances = [bed.frechet(samples) if bool(samples.isfinite().all()) else 1e300 for samples in made]
    return {"FD": distances, "spikiness": bed.spikiness(norms)}


def test_1_the_lagrangian_condition_is_the_best(proof: Proof) -> None:
    runs = {arm: [proof.cell(f"{arm}-{seed}", lambda a=arm, s=seed: measure(a, s)) for seed in SEEDS] for arm in ARMS}
    means = {arm: [fmean(run["FD"][place] for run in runs[arm]) for place in range(len(STEPS))] for arm in ARMS}
    best = [min(means[arm][place] for arm in ARMS) for place in range(len(STEPS))]
    share = [own / least for own, least in zip(means["lagrangian"], best, strict=True)]
    ahead = 1 - means["lagrangian"][0] / means["eulerian"][0]
    proof.conclude(
        "1",
        "Frechet distances of the Lagrangian condition at 1, 2, 4 and 8 steps are the least of four or within 3% of "
        "it, and at 1 step at least 10% below the Eulerian's",
        holds=max(share) <= 1.03 and ahead >= 0.1,
        figures={"steps": list(STEPS), "mean FD": means, "over the best": share, "below Eulerian": ahead, "runs": runs},
        seeds=SEEDS,
    )
    spikes = {arm: fmean(run["spikiness"] for run in runs[arm]) for arm in ARMS}
    proof.conclude(
        "2",
        "the 99th percentile of the Eulerian's gradient norms is, over their median, at least 3 times the Lagrangian's",
        holds=spikes["eulerian"] >= 3 * spikes["lagrangian"],
        figures=spikes,
        seeds=SEEDS,
    )


def carried(x: Tensor, t: float, r: float, steps: int = 30) -> Tensor:
    """The exact flow from one time to another: classical Runge-Kutta in float64."""
    exact = bed.exact().on(PATH)
    h = (r - t) / steps
    for index in range(steps):
        now = t + index * h
        one = exact.velocity(x, now)
        two = exact.velocity(x + h / 2 * one, now + h / 2)
        three = exact.velocity(x + h / 2 * two, now + h / 2)
        x = x + h / 6 * (one + 2 * two + 2 * three + exact.velocity(x + h * three, now + h))
    return x


def residuals(t: float, r: float, h: float = 2e-4, rows: int = 32) -> dict[str, float]:
    """How far the exact map is from each of the three conditions, root mean squares."""
    exact = bed.exact().on(PATH)
    x0 = bed.exact().sample(rows, step=dr.Step(7))
    x = PATH.corrupt(x0, bed.start(rows, 7).double(), t)
    end, u = carried(x, t, r), exact.velocity(x, t)
    by_end = (carried(x, t, r + h) - carried(x, t, r - h)) / (2 * h)
    by_start = (carried(x, t + h, r) - carried(x, t - h, r)) / (2 * h)
    by_state = (carried(x + h * u, t, r) - carried(x - h * u, t, r)) / (2 * h)
    cut = (t + r) / 2
    found = {
        "lagrangian": by_end - exact.velocity(end, r),
        "eulerian": by_start + by_state,
        "semigroup": carried(carried(x, t, cut), cut, r) - end,
    }
    return {name: float(value.square().mean().sqrt()) for name, value in found.items()}


def test_3_the_exact_map_has_no_residual(proof: Proof) -> None:
    found = {f"{t} to {r}": residuals(t, r) for t, r in ((0.9, 0.5), (0.8, 0.3), (0.95, 0.2))}
    proof.conclude(
        "3",
        "on the kernel density of the digits all three residuals of the exact map are below 1e-3",
        holds=all(value < 1e-3 for row in found.values() for value in row.values()),
        figures=found,
    )
