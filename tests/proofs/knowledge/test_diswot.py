"""DisWOT's proof: forty students scored without training, and distilled.

A score is the mean over four pairs of random networks on one batch. The same four teachers serve every student.
"""

from __future__ import annotations

import time
from itertools import combinations, pairwise
from statistics import fmean, median
from typing import Any

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import evaluate, knowledge, random, recipes
from distillrs.transforms import Standardise
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow]

COUNT = 40
EXAMPLES = 3000
BATCH = 100
EPOCHS = 6
BUDGET = 12_000
SCORING = [1, 2, 3, 4, 5]
PAIRS = 4
SEED = 1
WIDTHS = [4, 6, 8, 12, 16, 24]
KERNELS = [1, 3, 5]


class Student(nn.Module):
    """Two to four blocks of convolutions; every second one halves the picture."""

    def __init__(self, blocks: list[list[int]], seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            width = 1
            for number, (channels, kernel) in enumerate(blocks):
                layers += [nn.Conv2d(width, channels, kernel, padding=kernel // 2), nn.ReLU()]
                layers += [nn.MaxPool2d(2)] if number < 2 else []
                width = channels
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


TEACHER = [[16, 3], [32, 3], [32, 3]]


def parameters(blocks: list[list[int]]) -> int:
    widths = [1, *(channels for channels, _ in blocks)]
    ends = zip(pairwise(widths), blocks, strict=True)
    weights = sum(one * other * kernel**2 + other for (one, other), (_, kernel) in ends)
    return weights + 10 * widths[-1] + 10


def block(step: dr.Step, name: str) -> list[int]:
    places = random.integers(1, 10**6, 2, step=step, name=name)[0].tolist()
    return [WIDTHS[places[0] % len(WIDTHS)], KERNELS[places[1] % len(KERNELS)]]


def draw(step: dr.Step) -> list[list[int]]:
    count = 2 + int(random.integers(1, 3, step=step, name="blocks"))
    return [block(step, f"block {number}") for number in range(count)]


def mutate(blocks: list[list[int]], step: dr.Step) -> list[list[int]]:
    place = int(random.integers(1, len(blocks), step=step, name="which"))
    blocks[place] = block(step, "block")
    return blocks


class Remembered(knowledge.FrozenTeacher):
    """A network that is asked about one batch alone, and only once."""

    known: dict[Any, Any] | None = None

    def answers(self, request: knowledge.Request) -> dict[Any, Any]:
        """See the base."""
        if self.known is None:
            self.known = super().answers(request)
        return self.known


class Scoring:
    """The batch and the teachers of one scoring seed.

    Args:
        x: All pictures.
        y: Their classes.
        seed: Of the batch and of all weights.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, seed: int) -> None:
        rows = random.choice(EXAMPLES, 64, step=dr.Step(0, seed=seed), name="scoring")
        self.batch = x[rows], y[rows]
        self.seeds = [PAIRS * seed + number for number in range(PAIRS)]
        self.teachers = [Remembered(dr.Frozen(Student(TEACHER, each + 1000))) for each in self.seeds]

    def __call__(self, blocks: list[list[int]]) -> float:
        """The score of one student."""
        pairs = zip(self.seeds, self.teachers, strict=True)
        return fmean(
            recipes.diswot_score(Student(blocks, seed), teacher, self.batch, features="body", classifier="head")
            for seed, teacher in pairs
        )


class Bed:
    """3,000 pictures of 14 x 14 and a way to train on them."""

    def __init__(self) -> None:
        bundle = evaluate.data.load("fashion")
        rows = random.choice(len(bundle.x_train), EXAMPLES, step=0, name="rows of the proof")
        to_input = Standardise.fit(bundle.x_train[rows]).forward
        self.x, self.y = halved(to_input(bundle.x_train[rows])), bundle.y_train[rows]
        self.x_test, self.y_test = halved(to_input(bundle.x_test)), bundle.y_test

    def scoring(self, seed: int) -> Scoring:
        """Scores of one seed."""
        return Scoring(self.x, self.y, seed)

    def train(self, network: nn.Module, teacher: nn.Module | None, epochs: int) -> float:
        """Test accuracy after Adam with a cosine; by the teacher's outputs and the labels where there is one."""
        objective = None if teacher is None else recipes.hinton(network, teacher, weight=0.7)
        steps = epochs * EXAMPLES // BATCH
        optimiser = torch.optim.Adam(network.parameters(), 5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        network.train()
        for index in range(steps):
            rows = random.choice(EXAMPLES, BATCH, step=dr.Step(index, seed=SEED), name="batch")
            x, y = self.x[rows], self.y[rows]
            if objective is None:
                loss = nn.functional.cross_entropy(network(x), y)
            else:
                loss = objective((x, y), dr.Step(index, seed=SEED, total=steps)).total
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        return evaluate.accuracy(network.eval(), self.x_test, self.y_test)


def halved(x: torch.Tensor) -> torch.Tensor:
    """Each two by two pixels as one."""
    return nn.functional.avg_pool2d(x, 2)


def kendall(first: list[float], second: list[float]) -> float:
    """Concordant less discordant pairs, over all."""
    signs = [(a - b) * (c - d) for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)]
    return sum((sign > 0) - (sign < 0) for sign in signs) / len(signs)


def candidates() -> list[list[list[int]]]:
    """Different ones under the budget, at least a quarter of it."""
    found: list[list[list[int]]] = []
    number = 0
    while len(found) < COUNT:
        blocks = draw(dr.Step(number, seed=SEED))
        number += 1
        if BUDGET // 4 <= parameters(blocks) <= BUDGET and blocks not in found:
            found.append(blocks)
    return found


def measure() -> dict[str, Any]:
    bed = Bed()
    teacher = Student(TEACHER, 7)
    found: dict[str, Any] = {"teacher": bed.train(teacher, None, 20)}
    students = candidates()
    bed.scoring(0)(students[0])
    began = time.perf_counter()
    found["scores"] = [[*map(bed.scoring(seed), students)] for seed in SCORING]
    found["seconds of scoring"] = (time.perf_counter() - began) / len(SCORING)
    began = time.perf_counter()
    found["accuracies"] = [bed.train(Student(blocks, SEED), teacher, EPOCHS) for blocks in students]
    found["seconds of distilling"] = time.perf_counter() - began
    found["parameters"] = [parameters(blocks) for blocks in students]
    search = knowledge.Evolution(
        draw,
        mutate,
        bed.scoring(SCORING[0]),
        cost=parameters,
        budget=BUDGET,
        population=20,
        tournament=5,
        seed=SEED,
    )
    best = search.run(200)
    found["evolved"] = {"blocks": best.candidate, "score": best.score, "parameters": best.cost}
    found["evolved accuracy"] = bed.train(Student(best.candidate, SEED), teacher, EPOCHS)
    return found


def test_a_scores_rank_students(proof: Proof) -> None:
    found = proof.cell("a", measure)
    taus = [kendall(scores, found["accuracies"]) for scores in found["scores"]]
    size = kendall([float(each) for each in found["parameters"]], found["accuracies"])
    proof.conclude(
        "a",
        f"{COUNT} random students of at most {BUDGET} parameters, {EXAMPLES} pictures of Fashion-MNIST: Kendall's tau "
        f"of score, the mean over {PAIRS} pairs of random networks, and accuracy after distillation is above 0.2 in "
        "the mean of five scoring seeds, and above that of the number of parameters",
        holds=fmean(taus) > 0.2 and fmean(taus) > size,
        figures={
            "tau": taus,
            "mean tau": fmean(taus),
            "tau of parameters": size,
            "teacher": found["teacher"],
            "accuracies": found["accuracies"],
            "parameters": found["parameters"],
        },
        seeds=SCORING,
    )


def test_b_evolution_finds_a_good_student(proof: Proof) -> None:
    found = proof.cell("a", measure)
    accuracy, others = found["evolved accuracy"], found["accuracies"]
    proof.conclude(
        "b",
        "the student that evolution finds by the score alone is within 1 point of the best of the forty after "
        "distillation, and above their median",
        holds=accuracy >= max(others) - 0.01 and accuracy > median(others),
        figures={"evolved": found["evolved"], "accuracy": accuracy, "best": max(others), "median": median(others)},
        seeds=[SEED],
    )


def test_c_scoring_is_cheap(proof: Proof) -> None:
    found = proof.cell("a", measure)
    ratio = found["seconds of distilling"] / found["seconds of scoring"]
    proof.conclude(
        "c",
        "scoring all forty is at least 100 times faster than distilling all forty",
        holds=ratio >= 100,
        figures={
            "seconds of scoring": found["seconds of scoring"],
            "seconds of distilling": found["seconds of distilling"],
            "ratio": ratio,
        },
        seeds=SCORING,
    )
