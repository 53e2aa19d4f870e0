"""The proof of trajectory distribution matching: states of the student's own flow, against estimates noised anew."""

from __future__ import annotations

from typing import Any

import pytest

from distillrs import diffusion, recipes, schedule
from proofs.distmatch import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
UPDATES = 1000
STEPS = 4
LEVELS = (1.0, 0.75, 0.5, 0.25)
RATES = {"generator": 1e-3, "critic": 2e-3}
RATIOS = {"TDM": 1, "DMD": 1, "DMD, ratio 5": 5}
"""Updates of the critic for each of the generator: the same for the two that are compared, and DMD's own beside."""


def measure(arm: str, seed: int, updates: int = UPDATES) -> dict[str, Any]:
    teacher = bed.teacher(seed)
    student, critic, ratio = teacher.copied(), teacher.copied(), RATIOS[arm]
    shared: dict[str, Any] = {"path": bed.PATH, "kind": "v", "guidance": None, "ratio": ratio, "seed": seed}
    if arm == "TDM":
        grid = schedule.spaced(STEPS, bed.PATH)
        objective = recipes.tdm(student, teacher, critic, grid=grid, shape=(bed.SIZE,), **shared)
    else:
        objective = recipes.dmd2(student, teacher, critic, levels=LEVELS, shape=(bed.SIZE,), **shared)
    bed.train(objective, updates * ratio, bed.classes(seed), seed=seed, rates=RATES)
    noise = bed.start(seed)
    method: diffusion.SamplerMethod = "ode" if arm == "TDM" else "renoise"
    times = {str(steps): LEVELS[:steps] for steps in range(1, STEPS + 1)} | {"2, even": LEVELS[::2]}
    found = {name: bed.quality(bed.sample(objective.map, noise, part, method)) for name, part in times.items()}
    return {"steps": found, "DFD": found[str(STEPS)]["DFD"], "updates": objective.updates}


def runs(proof: Proof, arm: str) -> list[dict[str, Any]]:
    return [proof.cell(f"{arm}-{seed}", lambda s=seed: measure(arm, s)) for seed in SEEDS]


def test_1_the_trajectory_against_fresh_noise(proof: Proof) -> None:
    own, other, more = (runs(proof, arm) for arm in RATIOS)
    one, two = bed.column(own, "DFD"), bed.column(other, "DFD")
    proof.conclude(
        "1",
        f"four steps, {UPDATES} updates of the generator and as many of the critic, no data: the DFD of trajectory "
        "distribution matching is at most 0.85 times that of distribution matching with fresh noise between the "
        "steps, for every seed below it",
        holds=bed.ratio(one, two) <= 0.85 and bed.all_below(one, two),
        figures={"TDM": own, "DMD": other, "times": bed.ratio(one, two), "DMD with five updates of the critic": more},
        seeds=SEEDS,
    )
    coarse = [proof.cell(f"euler-{seed}", lambda s=seed: bed.many_steps(s, STEPS)) for seed in SEEDS]
    two = bed.column(coarse, "DFD")
    proof.conclude(
        "1b",
        "it is at most 0.33 times that of four Euler steps (DDIM) of the teacher, for every seed below it",
        holds=bed.ratio(one, two) <= 0.33 and bed.all_below(one, two),
        figures={"TDM": one, "teacher": coarse, "times": bed.ratio(one, two)},
        seeds=SEEDS,
    )
    prefixes = {steps: [run["steps"][steps]["DFD"] for run in own] for steps in ("2", "3")}
    two = bed.column(other, "DFD")
    proof.conclude(
        "2",
        "the same student that stops after the first 2 or 3 of its calls stays below the other at 4, for every seed",
        holds=all(bed.all_below(values, two) for values in prefixes.values()),
        figures={
            "calls": prefixes,
            "DMD at 4": two,
            "calls at 1 and 0.5": [run["steps"]["2, even"]["DFD"] for run in own],
        },
        seeds=SEEDS,
    )
