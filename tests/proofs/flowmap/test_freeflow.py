"""FreeFlow's proof: a map that reads no data misses nothing that its teacher knows."""

from __future__ import annotations

from typing import Any

import pytest

import distillrs as dr
from distillrs import diffusion, recipes, schedule
from proofs.flowmap import bed
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
UPDATES = 6000
CORRECTION = 2.0
HELD_OUT = 512
ROWS = 2000
PATH = schedule.RectifiedFlow()
FIVE = (0, 1, 2, 3, 4)


def no_data(step: dr.Step) -> diffusion.Batch:
    return diffusion.Batch(size=bed.BATCH)


def noised(seed: int, classes: tuple[int, ...] | None) -> Any:
    draw = bed.batches(seed, classes=classes)
    return lambda step: diffusion.Batch(draw(step))


def measure(arm: str, seed: int) -> dict[str, float]:
    exact, batch_of = bed.exact().on(PATH), no_data
    if arm in ("five digits", "all digits"):
        objective = recipes.mf_rae(bed.Net(2, seed=seed), teacher=exact, seed=seed)
        batch_of = noised(seed, FIVE if arm == "five digits" else None)
    elif arm == "BOOT":
        cosine = bed.PATHS["cosine"][0]
        objective = recipes.boot(bed.Net(seed=seed), bed.exact().on(cosine), (bed.SIZE,), path=cosine, seed=seed)
    elif arm == "prediction":
        objective = recipes.freeflow(bed.Net(seed=seed), exact, (bed.SIZE,), seed=seed)
    else:
        critic = bed.Net(seed=seed + 1000)
        # A critic from scratch says nothing at first.
        ramp = schedule.LinearRamp(0.0, CORRECTION, steps=UPDATES // 10, begin=UPDATES // 2)
        objective = recipes.freeflow(
            bed.Net(seed=seed), exact, (bed.SIZE,), critic, correction=ramp, ratio=1, seed=seed
        )
    bed.train(objective, UPDATES, batch_of, seed=seed)
    samples = bed.one_call(objective.map, bed.start(ROWS, seed))
    return {
        "RMSE": bed.paired(samples[:HELD_OUT], bed.reference(HELD_OUT, seed)),
        "FD": bed.frechet(samples),
        "classes off": bed.classes_off(samples),
        "coverage": bed.neighbourhoods(samples).coverage,
    }


ARMS = ("FreeFlow", "prediction", "five digits", "all digits", "BOOT")


def test_1_nothing_is_missed(proof: Proof) -> None:
    runs = {arm: [proof.cell(f"{arm}-{seed}", lambda a=arm, s=seed: measure(a, s)) for seed in SEEDS] for arm in ARMS}
    column = {arm: {name: [run[name] for run in runs[arm]] for name in runs[arm][0]} for arm in ARMS}
    off = max(column["FreeFlow"]["classes off"])
    nearer = bed.below(column["FreeFlow"]["RMSE"], column["five digits"]["RMSE"])
    behind = -bed.below(column["FreeFlow"]["RMSE"], column["all digits"]["RMSE"])
    proof.conclude(
        "1",
        "one step: classes of FreeFlow's samples are within a total variation of 0.10 of the digits' in every seed, "
        "and its paired RMSE is at least 15% below that of a distillation on noised digits 0 to 4 alone",
        holds=off <= 0.1 and nearer >= 0.15,
        figures={"runs": runs, "classes off": off, "below": nearer},
        seeds=SEEDS,
    )
    proof.conclude(
        "2",
        "its paired RMSE is at most 10% above that of the distillation on all noised digits",
        holds=behind <= 0.1,
        figures={"above": behind, "BOOT below": bed.below(column["FreeFlow"]["RMSE"], column["BOOT"]["RMSE"])},
        seeds=SEEDS,
    )
    corrected = bed.below(column["FreeFlow"]["FD"], column["prediction"]["FD"])
    proof.conclude(
        "3",
        "the correction brings the Frechet distance at least 10% below that of the prediction alone",
        holds=corrected >= 0.1 and bed.same_sign(column["FreeFlow"]["FD"], column["prediction"]["FD"]),
        figures={"below": corrected},
        seeds=SEEDS,
    )


def test_4_no_example_is_read(proof: Proof) -> None:
    batch = no_data(dr.Step(0))
    objective = recipes.freeflow(bed.Net(), bed.exact().on(PATH), (bed.SIZE,), bed.Net())
    losses = [objective(batch, 0, turn=turn).total for turn in objective.turns(0)]
    proof.conclude(
        "4",
        "batches hold no example and no noise of one, their size alone; the losses of both turns have a gradient",
        holds=batch.x0 is None
        and batch.noise is None
        and batch.path_states is None
        and all(loss.requires_grad and bool(loss.isfinite()) for loss in losses),
        figures={"rows": batch.rows},
    )
