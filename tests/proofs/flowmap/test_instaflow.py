"""InstaFlow's proof: a reflow first makes one step an easier thing to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import distillrs as dr
from distillrs import diffusion, random, recipes, schedule
from proofs.flowmap import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
GUIDANCE = 2.0
PAIRS = 4096
PAIR_STEPS = 12
UPDATES = 1600
ROWS = 1000
PATH = schedule.RectifiedFlow()

Pairs = tuple[Tensor, Tensor, Tensor]


def pairs(score: diffusion.Score, name: str, seed: int, count: int = PAIRS) -> Pairs:
    """Noise, where a score's flow carries it, and its class."""
    noise, condition = bed.start(count, seed, name), bed.labels(count)
    return noise, bed.walk(score, PATH, noise, PAIR_STEPS, condition), condition["label"]


def batches(known: Pairs, seed: int) -> Any:
    noise, x, label = known

    def batch_of(step: dr.Step) -> diffusion.Batch:
        rows = random.integers(bed.BATCH, len(x), step=dr.Step(step.index, seed=seed), name="pairs")
        return diffusion.Batch(x[rows], {"label": label[rows]}, noise=noise[rows])

    return batch_of


def student(network: bed.Net, stage: str, updates: int, known: Pairs, seed: int) -> bed.Net:
    found = network.continued().requires_grad_(True)
    bed.train(recipes.instaflow(found, stage, seed=seed), updates, batches(known, seed), seed=seed)
    return found.eval().requires_grad_(False)


def one_step(network: bed.Net, noise: Tensor, condition: dict[str, Tensor]) -> Tensor:
    flow = diffusion.StateMap(diffusion.Network(network, times="t"), PATH)
    return bed.one_call(flow, noise, condition)


def measure(seed: int) -> dict[str, float]:
    teacher = bed.teacher(seed)
    score = bed.score_of(teacher, guidance=GUIDANCE)
    first, more = (pairs(score, name, seed) for name in ("pairs", "more pairs"))
    direct = student(teacher, "distil", UPDATES, tuple(map(torch.cat, zip(first, more, strict=True))), seed)
    flow = student(teacher, "reflow", UPDATES // 2, first, seed)
    own = pairs(bed.score_of(flow), "own pairs", seed)
    distilled = student(flow, "distil", UPDATES - UPDATES // 2, own, seed)
    noise, condition = bed.start(ROWS, seed), bed.labels(ROWS)
    before = bed.walk(score, PATH, noise, 40, condition, every=True)
    after = bed.walk(bed.score_of(flow), PATH, noise, 40, condition, every=True)
    # Other noise: samples of the same would share its chance with one of the two.
    real = bed.walk(score, PATH, bed.start(ROWS, seed, "real"), 40, condition)
    made = {"direct": one_step(direct, noise, condition), "reflow": one_step(distilled, noise, condition)}
    return {
        "direct, RMSE": bed.paired(made["direct"], before[-1]),
        "reflow, RMSE": bed.paired(made["reflow"], after[-1]),
        "direct, FD": bed.frechet(made["direct"], real),
        "reflow, FD": bed.frechet(made["reflow"], real),
        "teacher, bend": bed.bend(before),
        "reflow, bend": bed.bend(after),
        "teacher, transport": float((before[-1] - noise).square().mean()),
        "reflow, transport": float((after[-1] - noise).square().mean()),
    }


def test_1_a_reflow_makes_one_step_learnable(proof: Proof) -> None:
    runs = [proof.cell(f"seed-{seed}", lambda s=seed: measure(s)) for seed in SEEDS]
    column = {name: [run[name] for run in runs] for name in runs[0]}
    nearer = bed.below(column["reflow, RMSE"], column["direct, RMSE"])
    sharper = bed.below(column["reflow, FD"], column["direct, FD"])
    straighter = bed.below(column["reflow, bend"], column["teacher, bend"])
    cheaper = bed.below(column["reflow, transport"], column["teacher, transport"])
    proof.conclude(
        "1",
        "one step, each against the end of its own teacher's flow: reflow and distillation have a paired RMSE at "
        "least 15% below that of direct distillation, with as many updates and pairs",
        holds=nearer >= 0.15 and bed.same_sign(column["reflow, RMSE"], column["direct, RMSE"]),
        figures={**column, "below": nearer},
        seeds=SEEDS,
    )
    proof.conclude(
        "2",
        "their Frechet distance from other samples of the guided teacher is no larger",
        holds=sharper >= 0,
        figures={"direct": column["direct, FD"], "reflow": column["reflow, FD"], "below": sharper},
        seeds=SEEDS,
    )
    proof.conclude(
        "3",
        "the reflow's paths are at least 50% straighter than the guided teacher's, and its coupling costs less to "
        "transport, in every seed",
        holds=straighter >= 0.5 and bed.same_sign(column["reflow, transport"], column["teacher, transport"]),
        figures={"bend, below": straighter, "transport, below": cheaper},
        seeds=SEEDS,
    )
