"""Optimisation trajectory distillation's proof: digits 0 to 6 are known, those of another domain are turned and noisy.

The target domain has all ten digits without labels, but for three examples of each of 7, 8 and 9. The baseline has the
same losses, pseudo-labels and amplified gradients without the distilled terms. Claims: (a) accuracy, (b) the
projection, (c) the statistics, (d) time. Settings were chosen with seed 100 on validation examples of the target
domain.
"""

from __future__ import annotations

import math
import time
from functools import cache
from statistics import fmean, median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs import Step, evaluate, fit, random, recipes
from distillrs.condense import DomainBatch, GradientAmplifier, GradientDistillation, Subspace, mixed_target
from distillrs.condense.gradient_statistics import head_gradients, moments
from distillrs.training import module_randomness
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
CHOOSING_SEED = 100
KNOWN, NEW = tuple(range(7)), (7, 8, 9)
SHOTS = 3
ANGLE = 20.0
NOISE = 0.3
WIDTH = 32
STEPS = 1500
WARMUP = 100
ROWS = 32
RATE = 1e-3
# The paper's 1000 is of gradients that are shares in a batch's mean; those of whole losses have squares 32^2 times as
# large.
WEIGHT = 1.0
THRESHOLD = 0.7
TIMED = 60


@cache
def digits() -> evaluate.DataBundle:
    return evaluate.data.load("digits")


def turned(x: Tensor, seed: int, name: str) -> Tensor:
    """The target domain: turned, and noise of its own for each example."""
    angle = math.radians(ANGLE)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = nn.functional.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    # The border repeats what is there: zero is no background here.
    seen = nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    noise = random.normal(*x.shape, step=Step(0, seed=seed), name=f"noise/{name}")
    return (seen + NOISE * (digits().x_train.std()) * noise).flatten(1)


def networks(seed: int) -> tuple[nn.Module, nn.Linear]:
    with module_randomness(Step(0, seed=seed), "network initialisation"):
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, WIDTH), nn.ReLU()), nn.Linear(WIDTH, 10)


class Domains:
    """Both domains of a seed: halves of the training digits, the few, and batches of a step."""

    def __init__(self, seed: int) -> None:
        bundle = digits()
        mean, scale = bundle.x_train.mean(), bundle.x_train.std()
        order = random.permutation(len(bundle.x_train), step=Step(0, seed=seed), name="halves")
        x, y = ((bundle.x_train - mean) / scale)[order], bundle.y_train[order]
        half = len(x) // 2
        labelled = torch.isin(y[:half], torch.tensor(KNOWN))
        self.seed = seed
        self.source = x[:half][labelled].flatten(1), y[:half][labelled]
        self.unlabelled = turned(x[half:], seed, "unlabelled")
        rows = torch.cat([(y[half:] == label).nonzero()[:SHOTS, 0] for label in NEW])
        self.few = self.unlabelled[rows], y[half:][rows]
        self.parts = {
            name: (turned((values - mean) / scale, seed, name), labels)
            for name, values, labels in (
                ("validation", bundle.x_val, bundle.y_val),
                ("test", bundle.x_test, bundle.y_test),
            )
        }

    def batch(self, step: Step, body: nn.Module, head: nn.Linear) -> DomainBatch:
        at = Step(step.index, seed=self.seed)
        own = random.integers(ROWS, len(self.source[0]), step=at, name="source")
        other = random.integers(ROWS, len(self.unlabelled), step=at, name="unlabelled")
        seen = self.unlabelled[other]
        with torch.no_grad():
            logits = head(body(seen))
        few = self.few
        return DomainBatch((self.source[0][own], self.source[1][own]), few, mixed_target(few, seen, logits, THRESHOLD))


def objective(seed: int, weight: float) -> tuple[GradientDistillation, nn.Module, nn.Linear, GradientAmplifier]:
    body, head = networks(seed)
    made = recipes.opt_traj_distill(body, head, KNOWN, NEW, weight=weight, warmup=WARMUP)
    return made, body, head, GradientAmplifier(body[2], amount=0.1, held=64)


def run(seed: int, weight: float, steps: int | None = None, part: str = "test") -> dict[str, Any]:
    """Trains once; accuracies are means over classes."""
    steps = STEPS if steps is None else steps
    made, body, head, _ = objective(seed, weight)
    domains = Domains(seed)
    adam = torch.optim.Adam(made.parameter_groups()["student"], RATE)
    fit(made, adam, steps, seed=seed, batches=lambda step: domains.batch(step, body, head))
    x, y = domains.parts[part]
    with torch.no_grad():
        guess = head(body(x)).argmax(1)
    right = [float((guess[y == label] == label).double().mean()) for label in range(10)]
    return {
        "macro": 100 * fmean(right),
        "new": 100 * fmean(right[label] for label in NEW),
        "known": 100 * fmean(right[label] for label in KNOWN),
    }


def test_a_accuracy_on_the_target_domain(proof: Proof) -> None:
    runs = {
        name: [proof.cell(f"{name}-{seed}", lambda s=seed, w=weight: run(s, w)) for seed in SEEDS]
        for name, weight in (("distilled", WEIGHT), ("baseline", 0.0))
    }
    means = {
        name: {figure: fmean(each[figure] for each in own) for figure in ("macro", "new", "known")}
        for name, own in runs.items()
    }
    gains = {figure: means["distilled"][figure] - means["baseline"][figure] for figure in ("macro", "new")}
    proof.conclude(
        "a",
        "mean accuracy over the ten classes of the target domain is at least 2 points above the baseline's, over the "
        "three new ones at least 3, means of five seeds",
        holds=gains["macro"] >= 2 and gains["new"] >= 3,
        figures={"means": means, "gains": gains, "runs": runs},
        seeds=SEEDS,
    )


def test_b_the_projection(proof: Proof) -> None:
    made, body, head, _ = objective(SEEDS[0], WEIGHT)
    domains = Domains(SEEDS[0])
    adam = torch.optim.Adam(made.parameter_groups()["student"], RATE)
    # Past the first whole ring, so that every subspace is there.
    fit(made, adam, WARMUP + 600, batches=lambda step: domains.batch(step, body, head))
    figures = []
    for space in [*made.domain_spaces, *made.class_spaces]:
        assert isinstance(space, Subspace)
        basis = space.basis.double()
        projection = basis @ basis.T
        kept, ring = space.project(space.ring).double(), space.ring.double()
        figures.append(
            {
                "idempotent": float((projection @ projection - projection).norm() / projection.norm()),
                "rank": int(space.rank),
                "dimensions": space.ring.shape[1],
                "energy": float(kept.square().sum() / ring.square().sum()),
            }
        )
    first = Subspace(40, held=20, energy=0.98).double()
    for row in random.normal(20, 40, step=0, name="vectors", dtype=torch.float64):
        first.keep(row)
    exact = float(first.project(first.ring).square().sum() / first.ring.square().sum())
    proof.conclude(
        "b",
        "U U = U to 1e-5, its rank is below the number of dimensions, and it holds at least .98 of the squares of the "
        "vectors that it was formed of",
        holds=all(0 < each["rank"] < each["dimensions"] and each["idempotent"] <= 1e-5 for each in figures)
        and exact >= 0.98,
        figures={"after training": figures, "energy of random vectors": exact},
        seeds=SEEDS[:1],
    )


def test_c_statistics_are_those_of_a_loop(proof: Proof) -> None:
    body, head = networks(SEEDS[0])
    body, head = body.double(), head.double()
    x, y = Domains(SEEDS[0]).source
    x, y = x[:64].double(), y[:64]
    features = body(x).detach()
    found = moments(head_gradients(head(features).detach(), features, y))
    loop = []
    for row in range(len(x)):
        loss = functional.cross_entropy(head(features[row : row + 1]), y[row : row + 1])
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        loop.append(torch.cat([weight, bias[:, None]], 1))
    each = torch.stack(loop)
    off = {
        "mean": float((found.mean - each.mean(0)).abs().max()),
        "variance": float((found.variance - each.var(0, correction=0)).abs().max()),
    }
    proof.conclude(
        "c",
        "mean and variance of the head's gradients over 64 digits equal those of a loop over examples to 1e-6",
        holds=max(off.values()) <= 1e-6,
        figures={"largest differences": off},
        seeds=SEEDS[:1],
    )


def test_d_time_of_a_step(proof: Proof) -> None:
    def seconds(weight: float, warmup: int) -> float:
        body, head = networks(SEEDS[0])
        made = recipes.opt_traj_distill(body, head, KNOWN, NEW, weight=weight, warmup=warmup)
        adam = torch.optim.Adam(made.parameter_groups()["student"], RATE)
        batch = domains.batch(Step(0), body, head)
        times, last = [], time.thread_time()

        def look(_: object) -> None:
            nonlocal last
            now = time.thread_time()
            times.append(now - last)
            last = now

        fit(made, adam, TIMED, batches=lambda _: batch, callback=look)
        return median(times)

    domains = Domains(SEEDS[0])
    pairs = proof.cell("time", lambda: [(seconds(WEIGHT, 0), seconds(0.0, TIMED + 1)) for _ in range(15)])
    share = median(one / other for one, other in pairs)
    proof.conclude(
        "d",
        "a step takes at most 2.5 times the processor's time of one without the distilled terms, medians in "
        "alternation",
        holds=share <= 2.5,
        figures={"times": share, "seconds": pairs},
        seeds=SEEDS[:1],
    )


def pilot() -> None:
    """Chooses weight and threshold: `python -c "from proofs.condense.test_opt_traj_distill import pilot; pilot()"`."""
    global THRESHOLD
    torch.set_num_threads(1)
    for THRESHOLD in (0.7, 0.9):
        for weight in (0.0, 0.3, 1.0, 3.0, 10.0, 100.0):
            print(THRESHOLD, weight, run(CHOOSING_SEED, weight, part="validation"), flush=True)
