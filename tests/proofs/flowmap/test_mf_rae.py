"""The proof of mean flows with a teacher: begun on its paths they are nearer, and their training is calmer."""

from __future__ import annotations

import copy
from functools import cache
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

import distillrs as dr
from distillrs import diffusion, random, recipes, schedule
from distillrs.diffusion.randomness import Replay
from proofs.flowmap import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
UPDATES = 3000
MID_TRAINING = 1000
ROWS = 64
SHIFT = 1.0
PATHS = 4096
DIFFERENCE = 5e-3
HELD_OUT = 512
PATH = schedule.RectifiedFlow()
GRID = schedule.spaced(16, PATH)


@cache
def states() -> Tensor:
    """Paths of the exact flow in 16 Euler steps, `[4096, 17, 64]`."""

    def walked() -> dict[str, Tensor]:
        exact, parts = bed.exact().on(PATH), bed.start(PATHS, 0, "paths").split(1024)
        found = [bed.walk(exact, PATH, part, GRID.steps, solver="euler", every=True) for part in parts]
        return {"states": torch.cat(found, 1).transpose(0, 1)}

    return bed.kept(f"paths-{PATHS}", walked)["states"]


def on_paths(seed: int) -> Any:
    def batch_of(step: dr.Step) -> diffusion.Batch:
        rows = random.integers(ROWS, PATHS, step=dr.Step(step.index, seed=seed), name="paths")
        return diffusion.Batch(path_states=states()[rows])

    return batch_of


def derivative_gap(network: bed.Net, seed: int) -> float:
    """How far central differences of a network are from its forward-mode derivative, along the flow, float64."""
    network = copy.deepcopy(network).double()
    adapter, t = diffusion.Network(network, times="t_gap"), torch.linspace(0.1, 0.9, 256, dtype=torch.float64)
    x = PATH.corrupt(bed.exact().sample(256, step=dr.Step(3, seed=seed)), bed.start(256, seed, "gap").double(), t)
    direction = (bed.exact().on(PATH).velocity(x, t), torch.ones_like(t), torch.zeros_like(t))
    replay = Replay(network, x.device)
    one, other = (
        way.along(adapter, (x, t, t / 2), direction, network, replay, False).slope.detach()
        for way in (diffusion.JVP(), diffusion.Central(DIFFERENCE))
    )
    return float((other - one).norm() / one.norm())


def measure(arm: str, seed: int) -> dict[str, float]:
    network, exact, draw = bed.Net(2, seed=seed), bed.exact().on(PATH), bed.batches(seed, ROWS)
    updates = UPDATES
    if arm == "CMT + MFD":
        begun = recipes.mf_rae(network, "mid_training", grid=GRID, seed=seed)
        bed.train(begun, MID_TRAINING, on_paths(seed), seed=seed, clip=1.0)
        updates -= MID_TRAINING
    stage = "tune" if arm == "MF" else "distil"
    objective = recipes.mf_rae(network, stage, teacher=exact, shift=SHIFT, seed=seed)
    norms = bed.train(objective, updates, lambda step: diffusion.Batch(draw(step)), seed=seed, clip=1.0)
    made = bed.one_call(objective.map, bed.start(HELD_OUT, seed))
    return {
        "RMSE": bed.paired(made, bed.reference(HELD_OUT, seed)),
        "spikiness": bed.spikiness(norms),
        "derivative gap": derivative_gap(network, seed),
    }


ARMS = ("MF", "MFD", "CMT + MFD")


def test_1_a_teacher_and_its_paths(proof: Proof) -> None:
    runs = {arm: [proof.cell(f"{arm}-{seed}", lambda a=arm, s=seed: measure(a, s)) for seed in SEEDS] for arm in ARMS}
    error = {arm: [run["RMSE"] for run in runs[arm]] for arm in ARMS}
    ahead = {arm: bed.below(error["CMT + MFD"], error[arm]) for arm in ("MF", "MFD")}
    proof.conclude(
        "1",
        f"{UPDATES} updates in all: mid-training on the teacher's paths and then its velocities have a one-step paired "
        "RMSE at least 25% below that of mean flows and 8% below that of its velocities alone",
        holds=ahead["MF"] >= 0.25 and ahead["MFD"] >= 0.08,
        figures={"runs": runs, "below": ahead},
        seeds=SEEDS,
    )
    spikes = {arm: fmean(run["spikiness"] for run in runs[arm]) for arm in ARMS}
    proof.conclude(
        "2",
        "after mid-training, the 99th percentile of the gradient norms over their median, past the first tenth of the "
        "updates, is at most half of that of mean flows",
        holds=spikes["CMT + MFD"] <= spikes["MF"] / 2,
        figures=spikes,
        seeds=SEEDS,
    )
    gaps = {arm: [run["derivative gap"] for run in runs[arm]] for arm in ARMS}
    proof.conclude(
        "3",
        f"central differences of {DIFFERENCE:g} in time and the forward-mode derivative of the trained networks along "
        "the flow, t from 0.1 to 0.9 and r = t/2, differ by less than 1e-3 in norm, float64",
        holds=max(max(values) for values in gaps.values()) < 1e-3,
        figures=gaps,
        seeds=SEEDS,
    )
