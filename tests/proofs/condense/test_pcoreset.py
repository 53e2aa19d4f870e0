"""PCoreSet's proof: digits, and a teacher of three shots a class that cannot tell 3 from 5, nor 4 from 9.

One labelled digit a class to begin with, then six rounds of ten queries; after each round a student with two heads is
trained anew. Beside queries spread over predictions stand random ones, and queries spread over the student's features
(cosine, as in the authors' code). Claims: (a) the covering radius, (b) accuracy, (c) picks and time. The rate was
chosen for each way with seeds 100 and 101 on validation data.
"""

from __future__ import annotations

import time
from functools import cache
from statistics import fmean, median
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from distillrs import Step, _core, evaluate, fit, random, recipes, select
from distillrs.training import module_randomness
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

SEEDS = [1, 2, 3, 4, 5]
CHOOSING_SEEDS = [100, 101]
MERGED = ((3, 5), (4, 9))
SHOTS = 3
PENALTY = 1e-3
WIDTH = 64
QUERIES, ROUNDS = 10, 6
COUNTED = range(3, 7)
STEPS = 300
BATCH = 128
RATES = {"pcoreset": 0.03, "random": 0.03, "features": 0.3}
DRAWS = 20
POOL, CLASSES, MANY = 20_000, 100, 300

Way = Literal["pcoreset", "random", "features"]


class TwoHeads(nn.Module):
    """A perceptron with one hidden layer, a head for labels and one for the teacher."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with module_randomness(Step(0, seed=seed), "network initialisation"):
            self.body = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU())
            self.ce, self.kd = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"ce": self.ce(features), "kd": self.kd(features), "features": features}


@cache
def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Pixels in deviations, flat, and classes."""
    bundle = evaluate.data.load("digits")
    mean, scale = bundle.x_train.mean(), bundle.x_train.std()
    parts = {
        "pool": (bundle.x_train, bundle.y_train),
        "validation": (bundle.x_val, bundle.y_val),
        "test": (bundle.x_test, bundle.y_test),
    }
    return {name: (((x - mean) / scale).flatten(1), y) for name, (x, y) in parts.items()}


def shots(count: int, seed: int, name: str) -> Tensor:
    """Rows of the pool, as many of each class."""
    _, y = digits()["pool"]
    order = random.permutation(len(y), step=Step(0, seed=seed), name=name)
    return torch.cat([order[y[order] == label][:count] for label in range(10)])


@cache
def biased_teacher(seed: int) -> nn.Linear:
    """Logistic regression on a few digits of eight classes, two of which are pairs; a pair's share is halved."""
    x, y = digits()["pool"]
    rows = shots(SHOTS, seed, "teacher's shots")
    group = torch.arange(10)
    for one, other in MERGED:
        group[other] = one
    names = group.unique()
    group = torch.searchsorted(names, group)
    weight = torch.zeros(len(names), 64, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = x[rows].double() @ weight.T + bias
        loss = nn.functional.cross_entropy(logits, group[y[rows]]) + PENALTY * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    teacher = nn.Linear(64, 10)
    shared = group.bincount()[group].float()
    with torch.no_grad():
        teacher.weight.copy_(weight[group])
        teacher.bias.copy_(bias[group] - shared.log())
    return teacher


def student(labelled: Tensor, seed: int, place: int, rate: float) -> TwoHeads:
    """Trained on some labels and the teacher's predictions of the whole pool."""
    x, y = digits()["pool"]
    known = torch.full_like(y, -100)
    known[labelled] = y[labelled]
    model = TwoHeads(10 * seed + place)
    objective = recipes.pcoreset(model, biased_teacher(seed))

    def batch(step: Step) -> tuple[Tensor, Tensor]:
        at = Step(step.index, seed=10 * seed + place)
        rows = torch.cat([labelled, random.integers(BATCH, len(x), step=at, name="rows")])
        return x[rows], known[rows]

    sgd = torch.optim.SGD(objective.parameter_groups()["student"], rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, STEPS)
    fit(objective, sgd, STEPS, batches=batch, callback=lambda _: schedule.step())
    return model


@torch.no_grad()
def predicted(model: TwoHeads, x: Tensor) -> Tensor:
    found = model(x)
    return recipes.pcoreset_probabilities(found["ce"], found["kd"])


def radius(p: Tensor, centres: Tensor) -> float:
    """The largest distance from a prediction to the nearest centre's."""
    return float(torch.cdist(p.double(), p[centres].double()).min(1).values.max())


def random_queries(labelled: Tensor, count: int, seed: int, place: int, name: str) -> Tensor:
    _, y = digits()["pool"]
    free = torch.ones(len(y), dtype=torch.bool)
    free[labelled] = False
    rows = free.nonzero()[:, 0]
    return rows[random.choice(len(rows), count, step=Step(place, seed=seed), name=name)]


def queries(way: Way, model: TwoHeads, labelled: Tensor, seed: int, place: int) -> Tensor:
    x, _ = digits()["pool"]
    if way == "random":
        return random_queries(labelled, QUERIES, seed, place, "queries")
    if way == "pcoreset":
        return recipes.pcoreset_queries(predicted(model, x), labelled, QUERIES).ids
    with torch.no_grad():
        features = model(x)["features"]
    return select.k_center(features, QUERIES, chosen=labelled, metric="cosine").ids


def recomputed(p: Tensor, labelled: Tensor, k: int) -> list[int]:
    """All distances to all centres, once more for each query; picked points are centres, at distance 0."""
    centres = labelled.tolist()
    for _ in range(k):
        near = torch.cat([torch.cdist(part, p[centres]).min(1).values for part in p.split(1000)])
        near[centres] = -1.0
        centres.append(int(near.argmax()))
    return centres[len(labelled) :]


def run(way: Way, seed: int, part: str = "test", rate: float | None = None) -> dict[str, Any]:
    """All rounds: accuracy after each, in percent, and how the queries cover the predictions that they were made on."""
    x, _ = digits()["pool"]
    held, y = digits()[part]
    rate = RATES[way] if rate is None else rate
    labelled = shots(1, seed, "first labels")
    found: dict[str, Any] = {"accuracy": [], "radius": [], "radius of random ones": [], "as by brute force": []}
    for place in range(ROUNDS + 1):
        model = student(labelled, seed, place, rate)
        found["accuracy"].append(100 * float((predicted(model, held).argmax(1) == y).double().mean()))
        if place == ROUNDS:
            break
        more, p = queries(way, model, labelled, seed, place), predicted(model, x)
        found["radius"].append(radius(p, torch.cat([labelled, more])))
        others = [random_queries(labelled, QUERIES, seed, place, f"draw {draw}") for draw in range(DRAWS)]
        found["radius of random ones"].append(fmean(radius(p, torch.cat([labelled, each])) for each in others))
        if way == "pcoreset":
            found["as by brute force"].append(more.tolist() == recomputed(p.double(), labelled, QUERIES))
        labelled = torch.cat([labelled, more])
    with torch.no_grad():
        found["accuracy of the teacher"] = 100 * float((biased_teacher(seed)(held).argmax(1) == y).double().mean())
    return found


def runs(proof: Proof, way: Way) -> list[dict[str, Any]]:
    return [proof.cell(f"{way}-{seed}", lambda s=seed: run(way, s)) for seed in SEEDS]


def test_a_the_covering_radius(proof: Proof) -> None:
    found = {way: runs(proof, way) for way in ("pcoreset", "random")}
    # The radius that round r leaves stands at r - 1.
    means = {way: fmean(run["radius"][place - 1] for run in own for place in COUNTED) for way, own in found.items()}
    beside = {
        name: fmean(fmean(run[name]) for run in found["pcoreset"]) for name in ("radius", "radius of random ones")
    }
    proof.conclude(
        "a",
        "the largest distance from a prediction to the nearest labelled or queried one, mean of rounds 3 to 6 and five "
        "seeds, is at least 30% below that with random queries, each of its own student",
        holds=means["pcoreset"] <= 0.7 * means["random"],
        figures={
            "means": means,
            "share": means["pcoreset"] / means["random"],
            "after each round": {way: [run["radius"] for run in own] for way, own in found.items()},
            f"one round of random queries in place of its own, {DRAWS} draws, all rounds": beside,
        },
        seeds=SEEDS,
    )


def test_b_accuracy(proof: Proof) -> None:
    found = {way: runs(proof, way) for way in ("pcoreset", "random", "features")}
    means = {way: fmean(run["accuracy"][place] for run in own for place in COUNTED) for way, own in found.items()}
    proof.conclude(
        "b",
        "the student's accuracy, mean of rounds 3 to 6 (40 to 70 labels) and five seeds, is at least 1 point above "
        "that with random queries, and at least that with queries spread over features",
        holds=means["pcoreset"] >= means["random"] + 1 and means["pcoreset"] >= means["features"],
        figures={
            "means": means,
            "accuracy after each round": {way: [run["accuracy"] for run in own] for way, own in found.items()},
            "accuracy of the teacher": [run["accuracy of the teacher"] for run in found["random"]],
            "rates": RATES,
        },
        seeds=SEEDS,
    )


def test_c_picks_and_time(proof: Proof) -> None:
    same = [all(run["as by brute force"]) for run in runs(proof, "pcoreset")]
    p = (3 * random.normal(POOL, CLASSES, step=0, name="logits")).softmax(1)
    labelled = random.choice(POOL, CLASSES, step=0, name="labelled")

    def measure() -> dict[str, Any]:
        _core.set_threads(1)
        ids = recipes.pcoreset_queries(p, labelled, MANY).ids.tolist()
        seconds: dict[str, list[float]] = {"own": [], "recomputed": []}
        for _ in range(3):
            for name, work in (
                ("own", lambda: recipes.pcoreset_queries(p, labelled, MANY)),
                ("recomputed", lambda: recomputed(p, labelled, MANY)),
            ):
                start = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - start)
        return {
            "same picks of 20,000": ids == recomputed(p.double(), labelled, MANY),
            "seconds": seconds,
            "ratio": median(seconds["recomputed"]) / median(seconds["own"]),
        }

    large = proof.cell("time", measure)
    proof.conclude(
        "c",
        f"queries are those of measuring all distances anew for each, in every round and of {POOL} predictions over "
        f"{CLASSES} classes ({CLASSES} labelled, {MANY} queries), where they take at most a fifth of its time, one "
        "thread",
        holds=all(same) and large["same picks of 20,000"] and large["ratio"] >= 5,
        figures={"same picks in every round": same, **large},
        seeds=SEEDS,
    )


def pilot() -> None:
    """Chooses rates: `python -c "from proofs.condense.test_pcoreset import pilot; pilot()"`."""
    torch.set_num_threads(1)
    for rate in (0.03, 0.1, 0.3):
        for way in ("pcoreset", "random", "features"):
            found = [run(way, seed, "validation", rate) for seed in CHOOSING_SEEDS]
            accuracy = [fmean(each["accuracy"][place] for place in COUNTED) for each in found]
            share = fmean(fmean(each["radius"]) / fmean(each["radius of random ones"]) for each in found)
            print(rate, way, fmean(accuracy), accuracy, share, found[0]["accuracy of the teacher"], flush=True)
