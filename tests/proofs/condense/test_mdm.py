"""MDM's proof: halves of digits, 50 pairs, beside the trajectory engine of eight inner steps on the same data.

Claims: (a) the gap on the sphere, (b) recall beside selected real pairs, (c) cost, (d) other encoders. Rates were
chosen with seed 100 on validation pairs.
"""

from __future__ import annotations

import time
from statistics import fmean, median
from typing import Any

import pytest
import torch

from distillrs import Objective, fit, recipes
from distillrs.condense import PairedSynthetic, Pairs, spread_pairs
from proofs.condense import halves
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3]
ITERATIONS = 300
RATES = {"images": {"lr": 100.0, "momentum": 0.5}, "texts": {"lr": 100.0, "momentum": 0.5}}
TIMED = 30


def matching(seed: int) -> tuple[Objective, PairedSynthetic]:
    train, store = halves.data().train, halves.experts(seed, shared_start=True)
    synthetic = recipes.mdm_initial(train, halves.network(0), halves.BUDGET, seed=seed)
    return recipes.mdm(store, halves.network(0), train, synthetic, batch=None, seed=seed), synthetic


def trajectories(seed: int) -> tuple[Objective, PairedSynthetic]:
    """The trajectory engine with the two heads' distances and learned similarities, without blending."""
    train, store = halves.data().train, halves.experts(seed, shared_start=True)
    synthetic = recipes.repblend_initial(train, halves.BUDGET - 1, rank=halves.RANK, seed=seed)
    made = recipes.repblend(
        store,
        halves.network(0),
        synthetic,
        halves.INNER,
        start=halves.STARTS,
        batch=halves.BATCH,
        blended=False,
        seed=seed,
    )
    return made, synthetic


def gaps(made: Objective, steps: int = 20) -> dict[str, float]:
    """Mean gaps over the merged experts of steps that no run has."""
    terms = [made(None, 10**6 + step).terms for step in range(steps)]
    return {name: fmean(float(each[name]) for each in terms) for name in ("common", "gap")}


def recalls(pairs: Pairs, seed: int, part: halves.Part, **options: Any) -> dict[str, float]:
    return {kind: halves.judged(pairs, seed, part=part, encoders=kind, **options) for kind in ("pca", "random")}


def measure(seed: int, part: halves.Part = "test") -> dict[str, Any]:
    made, synthetic = matching(seed)
    before = gaps(made)
    fit(made, RATES, ITERATIONS, seed=seed)
    other, beside = trajectories(seed)
    fit(other, halves.MATCHING, ITERATIONS, seed=seed)
    pairs, loss, learned = halves.student_of(beside)
    rows = spread_pairs(halves.network(0), halves.data().train, halves.BUDGET, seed=seed)
    return {
        "gaps before": before,
        "gaps after": gaps(made),
        "mdm": recalls(synthetic.pairs(), seed, part),
        "trajectories": recalls(pairs, seed, part, loss=loss, learned=learned),
        "selected": recalls(halves.data().train.at(rows), seed, part),
        "random": recalls(halves.data().train.at(halves.random_rows(halves.BUDGET, seed)), seed, part),
    }


def runs(proof: Proof) -> list[dict[str, Any]]:
    return [proof.cell(f"seed-{seed}", lambda s=seed: measure(s)) for seed in SEEDS]


def mean_of(found: list[dict[str, Any]], name: str, kind: str = "pca") -> float:
    """Of IR@10 and TR@10, in percent."""
    return fmean(run[name][kind] for run in found) / 2


def test_a_the_gap_falls(proof: Proof) -> None:
    found = runs(proof)
    left = {
        name: fmean(run["gaps after"][name] for run in found) / fmean(run["gaps before"][name] for run in found)
        for name in ("common", "gap")
    }
    proof.conclude(
        "a",
        "the kernel gap of sums and that of differences, under merged experts that no step drew, are at most half of "
        "those at the start, means of three seeds",
        holds=max(left.values()) <= 0.5,
        figures={"left": left, "runs": found},
        seeds=SEEDS,
    )


def test_b_recall_beside_selected_pairs(proof: Proof) -> None:
    found = runs(proof)
    means = {name: mean_of(found, name) for name in ("mdm", "selected", "random", "trajectories")}
    proof.conclude(
        "b",
        "the mean of IR@10 and TR@10 on held-out pairs is at least 2 points above that of the real pairs nearest to "
        "the centres of k-means, each with the rate that is best on validation pairs, mean of three seeds",
        holds=means["mdm"] >= means["selected"] + 2,
        figures={"means": means},
        seeds=SEEDS,
    )


def seconds(made: Objective, rates: dict[str, dict[str, float]]) -> float:
    times = []
    last = time.perf_counter()

    def look(_: object) -> None:
        nonlocal last
        now = time.perf_counter()
        times.append(now - last)
        last = now

    fit(made, rates, TIMED, callback=look)
    return median(times)


def test_c_cost(proof: Proof) -> None:
    found = runs(proof)
    # One after the other in turns, so that both see the same machine.
    taken = [(seconds(matching(seed)[0], RATES), seconds(trajectories(seed)[0], halves.MATCHING)) for seed in SEEDS]
    share = median(one / other for one, other in taken)
    means = {name: mean_of(found, name) for name in ("mdm", "trajectories")}
    proof.conclude(
        "c",
        "an iteration takes at most a third of the seconds of one of the trajectory engine with eight inner steps, and "
        "the mean recall is at most 3 points below its",
        holds=share <= 1 / 3 and means["mdm"] >= means["trajectories"] - 3,
        figures={"share of seconds": share, "seconds": taken, "means": means},
        seeds=SEEDS,
    )


def test_d_other_encoders(proof: Proof) -> None:
    found = runs(proof)
    drops = {
        name: mean_of(found, name) - mean_of(found, name, "random") for name in ("mdm", "trajectories", "selected")
    }
    proof.conclude(
        "d",
        "distilled with principal components and judged with random features, the mean recall drops less than that of "
        "the trajectory engine's set, mean of three seeds",
        holds=drops["mdm"] < drops["trajectories"],
        figures={"drops": drops},
        seeds=SEEDS,
    )


def pilot() -> None:
    """Chooses the rate: `python -c "from proofs.condense.test_mdm import pilot; pilot()"`."""
    torch.set_num_threads(1)
    seed = halves.CHOOSING_SEED
    for rate in (1.0, 10.0, 100.0):
        for name in RATES:
            RATES[name]["lr"] = rate
        made, synthetic = matching(seed)
        before = gaps(made)
        fit(made, RATES, ITERATIONS, seed=seed)
        print(rate, before, gaps(made), halves.judged(synthetic.pairs(), seed, part="validation"), flush=True)
