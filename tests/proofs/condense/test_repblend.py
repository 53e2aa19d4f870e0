"""RepBlend's proof: halves of digits, 47 pairs with similarities of low rank for a budget of 50.

Encoders are principal components, heads are linear. Claims: (a) collapse, (b) recall, (c) both heads. The rates were
chosen with the seeds 100 and 101 on validation pairs, those that are best for blending and without it.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch

from distillrs import fit, recipes
from proofs.condense import halves
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
ITERATIONS = 300
ARMS: dict[str, dict[str, Any]] = {
    "blended": {},
    "not blended": {"blended": False},
    "images alone": {"sides": "images"},
}


def arm(seed: int, options: dict[str, Any], part: halves.Part = "test") -> dict[str, float]:
    """Distils once and trains a student on the result."""
    start = recipes.repblend_initial(halves.data().train, halves.PAIRS, rank=halves.RANK, seed=seed)
    before = halves.likeness(start.pairs())
    store = halves.experts(seed, shared_start=False)
    made = recipes.repblend(
        store,
        halves.network(0),
        start,
        halves.INNER,
        start=halves.STARTS,
        batch=halves.BATCH,
        seed=seed,
        **options,
    )
    last = fit(made, halves.MATCHING, ITERATIONS, seed=seed)
    pairs, loss, learned = halves.student_of(start)
    return {
        "recall": halves.judged(pairs, seed, loss=loss, learned=learned, part=part),
        "likeness before": before,
        "likeness after": halves.likeness(start.pairs()),
        "skipped": float(last.skipped),
    }


def real(seed: int, part: halves.Part = "test") -> float:
    """Recall of a student of as many random real pairs as the budget has."""
    return halves.judged(halves.data().train.at(halves.random_rows(halves.BUDGET, seed)), seed, part=part)


def runs(proof: Proof) -> list[dict[str, Any]]:
    found = []
    for seed in SEEDS:
        cells = {
            name: proof.cell(f"{name.replace(' ', '-')}-{seed}", lambda s=seed, o=options: arm(s, o))
            for name, options in ARMS.items()
        }
        found.append(cells | {"random": proof.cell(f"random-{seed}", lambda s=seed: real(s))})
    return found


def column(found: list[dict[str, Any]], name: str, figure: str) -> list[float]:
    return [run[name][figure] for run in found]


def test_a_blending_holds_the_collapse_back(proof: Proof) -> None:
    found = runs(proof)
    rises = {
        name: [
            after - before
            for after, before in zip(
                column(found, name, "likeness after"), column(found, name, "likeness before"), strict=True
            )
        ]
        for name in ("blended", "not blended")
    }
    proof.conclude(
        "a",
        "halves of digits, 47 pairs: the mean cosine between different members of a modality rises less from the start "
        "with blending than without, mean of three seeds",
        holds=fmean(rises["blended"]) < fmean(rises["not blended"]),
        figures={"rises": rises, "runs": found},
        seeds=SEEDS,
    )


def test_b_recall(proof: Proof) -> None:
    found = runs(proof)
    means = {name: fmean(column(found, name, "recall")) for name in ARMS} | {
        "random": fmean(run["random"] for run in found)
    }
    proof.conclude(
        "b",
        "IR@10 + TR@10 on held-out pairs: blending is at least 2 points above no blending and at least 5 above 50 "
        "random real pairs, each with the rate that is best on validation pairs, mean of three seeds",
        holds=means["blended"] >= means["not blended"] + 2 and means["blended"] >= means["random"] + 5,
        figures={"means": means, "recalls": {name: column(found, name, "recall") for name in ARMS}},
        seeds=SEEDS,
    )


def test_c_both_heads(proof: Proof) -> None:
    found = runs(proof)
    both, one = (fmean(column(found, name, "recall")) for name in ("blended", "images alone"))
    proof.conclude(
        "c",
        "matching both heads gives a higher IR@10 + TR@10 than matching the image head alone, mean of three seeds",
        holds=both > one,
        figures={"both": both, "image head alone": one},
        seeds=SEEDS,
    )


def pilot() -> None:
    """Chooses rates: `python -c "from proofs.condense.test_repblend import pilot; pilot()"`."""
    torch.set_num_threads(1)
    for seed in (halves.CHOOSING_SEED, halves.CHOOSING_SEED + 1):
        print(seed, "random", real(seed, "validation"), flush=True)
        for rate in (1.0, 3.0, 10.0, 30.0):
            for name in ("images", "texts"):
                halves.MATCHING[name]["lr"] = rate
            for name in ("blended", "not blended"):
                print(seed, rate, name, arm(seed, ARMS[name], "validation"), flush=True)
