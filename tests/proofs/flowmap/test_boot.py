"""BOOT's proof: with the teacher's calls that stored pairs would cost, and no data, one step is nearer than without."""

from __future__ import annotations

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
STORED = 6000
CALLS = STORED * (2 * 40 - 1)
SPENT = 0.5
ROWS = 128
HELD_OUT = 512
GAP, SHARE = 1 / 8, 1 / 8

# Student and teacher are on the paper's path. Both paths carry pure noise to the same ends, so that the reference and
# the pairs are those of the other proofs.
PATH, FLOW = schedule.VP.cosine(), schedule.RectifiedFlow()

ARMS: dict[str, dict[str, Any]] = {
    "BOOT": {},
    "no boundary": {"boundary": 0.0},
    "Heun": {"solver": "heun"},
}


def updates(arm: str) -> int:
    """As many as the share of the calls allows: Heun asks twice for all rows but those of the boundary."""
    return int(SPENT * CALLS / ROWS / (2 - SHARE if arm == "Heun" else 1))


def no_data(step: dr.Step) -> diffusion.Batch:
    return diffusion.Batch(size=ROWS)


def objective_of(arm: str, seed: int) -> diffusion.FlowMap:
    # As published a step begins at t from the gap to 1 and ends at t - gap: the first way has the boundary alone.
    settings = {"gap": GAP, "greatest": 1 - GAP, "boundary": SHARE} | ARMS[arm]
    return recipes.boot(bed.Net(seed=seed), bed.exact().on(PATH), (bed.SIZE,), path=PATH, seed=seed, **settings)


def measure(arm: str, seed: int) -> float:
    objective = objective_of(arm, seed)
    bed.train(objective, updates(arm), no_data, seed=seed)
    return bed.paired(bed.one_call(objective.map, bed.start(HELD_OUT, seed)), bed.reference(HELD_OUT, seed))


def regression(seed: int) -> float:
    """Kernel ridge regression on stored pairs; its bandwidth and ridge are chosen on a tenth of them."""
    noise = bed.start(STORED, seed, "stored").double()
    ends = bed.exact().on(FLOW).endpoints(noise.float()).double()
    cut, some = STORED * 9 // 10, STORED * 3 // 10

    def predict(x: Tensor, y: Tensor, where: Tensor, width: float, ridge: float) -> Tensor:
        kernel = torch.cdist(x, x).square_().mul_(-0.5 / width**2).exp_()
        kernel.diagonal().add_(ridge)
        weights = torch.cholesky_solve(y - y.mean(0), torch.linalg.cholesky(kernel))
        return torch.cdist(where, x).square_().mul_(-0.5 / width**2).exp_() @ weights + y.mean(0)

    choices = [(width, ridge) for width in (6.0, 10.0, 16.0) for ridge in (0.01, 0.1, 1.0)]
    errors = [bed.paired(predict(noise[:some], ends[:some], noise[cut:], *choice), ends[cut:]) for choice in choices]
    best = choices[errors.index(min(errors))]
    found = predict(noise, ends, bed.start(HELD_OUT, seed).double(), *best)
    return bed.paired(found, bed.reference(HELD_OUT, seed))


def euler(seed: int) -> float:
    noise = bed.start(HELD_OUT, seed)
    return bed.paired(bed.walk(bed.exact().on(FLOW), FLOW, noise, 1, solver="euler"), bed.reference(HELD_OUT, seed))


def test_1_one_step_without_data(proof: Proof) -> None:
    runs = {arm: [proof.cell(f"{arm}-{seed}", lambda a=arm, s=seed: measure(a, s)) for seed in SEEDS] for arm in ARMS}
    single = [proof.cell(f"euler-{seed}", lambda s=seed: euler(s)) for seed in SEEDS]
    # Its pairs are as many calls of the teacher again, so there is one for all seeds.
    ridge = [proof.cell("regression-1", lambda: regression(1))] * len(SEEDS)
    own = runs["BOOT"]
    figures = {**runs, "one Euler step": single, "kernel ridge": ridge[0]}
    proof.conclude(
        "1",
        f"with {SPENT:.0%} of the {CALLS} calls of the teacher that {STORED} pairs of 40 Heun steps cost, BOOT's "
        "paired RMSE after one call is at least 40% below that of one Euler step and below kernel ridge regression on "
        "such pairs",
        holds=bed.below(own, single) >= 0.4 and bed.below(own, ridge) > 0,
        figures={**figures, "below Euler": bed.below(own, single), "below the regression": bed.below(own, ridge)},
        seeds=SEEDS,
    )
    worse = -bed.below(runs["no boundary"], own)
    proof.conclude(
        "2",
        "without the boundary's loss it is at least 10% larger",
        holds=worse >= 0.1 and bed.same_sign(own, runs["no boundary"]),
        figures={"larger by": worse},
        seeds=SEEDS,
    )
    better = bed.below(runs["Heun"], own)
    proof.conclude(
        "3",
        "targets of Heun's steps of 1/8 are no worse than those of DDIM's, which are Euler's of the signal, at as many "
        "calls of the teacher",
        holds=better >= 0,
        figures={"below": better},
        seeds=SEEDS,
    )


def test_4_no_example_is_read(proof: Proof) -> None:
    batch, objective = no_data(dr.Step(0)), objective_of("BOOT", 1)
    losses = [objective(batch, dr.Step(index, seed=1)).total for index in range(3)]
    proof.conclude(
        "4",
        "batches hold no example and no noise of one, their size alone; states are pure noise; losses have a gradient",
        holds=batch.x0 is None
        and batch.noise is None
        and batch.path_states is None
        and isinstance(objective.states, diffusion.PriorOnly)
        and all(loss.requires_grad and bool(loss.isfinite()) for loss in losses),
        figures={"rows": batch.rows},
    )
