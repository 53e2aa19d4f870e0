"""rCM's proof: consistency and a score together are sharper than the one and more diverse than the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import distillrs as dr
from distillrs import diffusion, recipes, schedule
from distillrs.diffusion import Eulerian, FlowMap, Matcher
from proofs.flowmap import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
UPDATES = 500
RATIO = 4
GUIDANCE = 2.0
LEVELS = (1.0, 0.6)
ROWS = 2000
FLOW, PATH = schedule.RectifiedFlow(), schedule.Trig(1.0)
RATES = {"generator": 5e-4, "critic": 1e-3, "student": 5e-4}


def batches(seed: int) -> Any:
    draw = bed.labelled(seed)

    def batch_of(step: dr.Step) -> diffusion.Batch:
        x0, label = draw(step)
        return diffusion.Batch(x0, {"label": label}, {"label": torch.full_like(label, bed.NONE)})

    return batch_of


def objective_of(arm: str, seed: int, student: bed.Net, teacher: bed.Net, critic: bed.Net) -> Matcher | FlowMap:
    whole = recipes.rcm(
        student,
        teacher,
        critic,
        GUIDANCE,
        consistency=0.0 if arm == "DMD" else 100.0,
        matching=0.0 if arm == "sCM" else 1.0,
        warm_up=UPDATES // 4 * (1 if arm == "sCM" else RATIO),
        levels=LEVELS,
        ratio=RATIO,
        seed=seed,
    )
    # Without a gap there is nothing to fit a critic for.
    return whole.auxiliaries[0].objective if arm == "sCM" else whole


def measure(arm: str, seed: int) -> dict[str, float]:
    teacher = bed.teacher(seed)
    student, critic = (teacher.continued().requires_grad_(True) for _ in range(2))
    objective = objective_of(arm, seed, student, teacher, critic)
    steps = UPDATES * (1 if arm == "sCM" else RATIO)
    bed.train(objective, steps, batches(seed), seed=seed, rates=RATES)
    noise, condition = bed.start(ROWS, seed), bed.labels(ROWS)
    grid = schedule.Grid([*LEVELS, 0.0], PATH)
    with torch.no_grad():
        samples = diffusion.sample(objective.map, noise, grid, condition, method="renoise", step=dr.Step(0, seed=seed))
    wanted = target(seed)
    near = bed.generation.neighbourhood_scores(samples, wanted)
    return {"FD": bed.frechet(samples, wanted), "coverage": near.coverage, "recall": near.recall}


def target(seed: int) -> Tensor:
    """What the guided teacher makes of other noise."""
    score = bed.score_of(bed.teacher(seed), guidance=GUIDANCE)
    return bed.walk(score, FLOW, bed.start(ROWS, seed, "guided"), 40, bed.labels(ROWS))


ARMS = ("sCM", "DMD", "rCM")


def test_1_sharper_than_one_and_more_diverse_than_the_other(proof: Proof) -> None:
    runs = {arm: [proof.cell(f"{arm}-{seed}", lambda a=arm, s=seed: measure(a, s)) for seed in SEEDS] for arm in ARMS}
    column = {arm: {name: [run[name] for run in runs[arm]] for name in runs[arm][0]} for arm in ARMS}
    sharper = {arm: bed.below(column["rCM"]["FD"], column[arm]["FD"]) for arm in ("sCM", "DMD")}
    proof.conclude(
        "1",
        f"two steps, {UPDATES} updates of the student each: the Frechet distance of rCM from the guided teacher's "
        "samples is at least 10% below that of consistency alone and no larger than that of matching alone",
        holds=sharper["sCM"] >= 0.1 and sharper["DMD"] >= 0,
        figures={"runs": runs, "below": sharper},
        seeds=SEEDS,
    )
    wider = -bed.below(column["rCM"]["coverage"], column["DMD"]["coverage"])
    proof.conclude(
        "2",
        "its coverage, the share of the guided teacher's samples with one of its own as near as their fifth neighbour, "
        "is at least 1.15 times that of matching alone",
        holds=wider >= 0.15,
        figures={arm: {name: column[arm][name] for name in ("coverage", "recall")} for arm in ARMS} | {"above": wider},
        seeds=SEEDS,
    )


def rates(h: float) -> dict[str, float]:
    """How far dPhi/dt of a student, as it begins, is from forward mode by two other ways; float64.

    The discrete one is a step of the teacher along the path's arc, from one side; h is in radians.
    """
    teacher, step = bed.teacher(SEEDS[0]).double(), h * 2 / math.pi
    whole = recipes.rcm(teacher.continued().double(), teacher, teacher.continued().double())
    flow = whole.auxiliaries[0].objective
    x0, label = bed.exact().sample(256, step=dr.Step(1)), bed.labels(256)
    ways: dict[str, Eulerian] = {
        "jvp": Eulerian(diffusion.JVP(), scale="state"),
        "semi-continuous": Eulerian(diffusion.Central(step), scale="state"),
        "discrete": Eulerian(diffusion.Solver(step, "ddim")),
    }
    found = {}
    for name, residual in ways.items():
        seen: list[Tensor] = []

        def watched(prediction: Tensor, target: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append((prediction - target).detach())
            return (prediction - target).square().mean(1)

        objective = FlowMap(
            flow.map.network, path=PATH, head=flow.map.head, source=flow._source[0], residual=residual,
            pairs=schedule.Segments(1, schedule.Uniform(0.05, 0.95)), metric=watched,
        )  # fmt: skip
        objective(diffusion.Batch(x0, label), dr.Step(0, seed=1))
        found[name] = seen[0] / step if name == "discrete" else seen[0]
    return {
        name: float((value - found["jvp"]).norm() / found["jvp"].norm())
        for name, value in found.items()
        if name != "jvp"
    }


def test_3_derivatives_agree(proof: Proof) -> None:
    gaps = rates(1e-4)
    proof.conclude(
        "3",
        "the derivative of a student's map along the teacher, as training begins, by forward mode, by central "
        "differences and by the teacher's discrete step, both of 1e-4 radians, agree within 1e-3 in norm, float64, "
        "angles of 0.08 to 1.49",
        holds=max(gaps.values()) < 1e-3,
        figures=gaps,
    )


def test_4_weight_0_is_the_pure_method(proof: Proof) -> None:
    network, teacher, critic = (bed.Net(seed=seed).double() for seed in (1, 2, 3))
    teacher.requires_grad_(False)
    x0 = bed.exact().sample(64, step=dr.Step(2))
    batch, step = diffusion.Batch(x0), dr.Step(50, seed=3, total=100)

    def gradient(objective: dr.Objective, factor: float = 1.0, **settings: Any) -> Tensor:
        network.zero_grad()
        (factor * objective(batch, step, **settings).total).backward()
        return torch.cat([value.grad.flatten() for value in network.parameters() if value.grad is not None])

    both, scm, dmd = (
        recipes.rcm(network, teacher, critic, consistency=one, matching=other, levels=LEVELS)
        for one, other in ((100.0, 1.0), (100.0, 0.0), (0.0, 1.0))
    )
    pure_map = scm.auxiliaries[0].objective
    pure_match = Matcher(
        dmd.map, real=dmd._real[0], critic=dmd.critics["critic"], rollout=dmd.rollout, terms=dmd.terms, ratio=RATIO
    )
    found = {name: gradient(one, turn="generator") for name, one in (("both", both), ("sCM", scm), ("DMD", dmd))}
    wanted = {"sCM": gradient(pure_map, 100.0), "DMD": gradient(pure_match, turn="generator")}
    apart = {name: float((found[name] - value).norm() / value.norm()) for name, value in wanted.items()}
    apart["both, against the sum"] = float((found["both"] - found["sCM"] - found["DMD"]).norm() / found["both"].norm())
    proof.conclude(
        "4",
        "with weight 0 on either part the gradient is that of the other alone, and with both it is their sum, to 1e-9",
        holds=max(apart.values()) < 1e-9,
        figures=apart,
    )
