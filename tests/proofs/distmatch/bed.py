"""What the proofs of distribution matching share: digits, a small network, its training, and measures.

Digits are 64 pixels within [-1, 1]; the fifth of each class that the library's test set is stays held out. `teacher` is
a class-conditional network that is trained on the rest, once per seed, and kept beside the proofs' cells.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import distillrs as dr
from distillrs import diffusion, evaluate, random, schedule
from distillrs.evaluate import generation
from proofs.ledger import CELLS, source_fingerprint

SIZE, CLASSES, NONE = 64, 10, 10
BATCH = 128
TEACHER_STEPS = 2000
TEACHER_RATE = 2e-3
DROPPED = 0.1
ROWS = 2000

CHOOSING_SEED = 100
"""Of the runs that choose settings; none of a proof's own seeds."""

PATH = schedule.VP.betas()
"""The table of the papers' teachers; networks predict v on it, which stays well conditioned at pure noise."""

EDM = schedule.EDM(sigma_data=0.85)
"""Its networks predict F; the deviation is that of the pixels, about 0."""


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels ``[n, 64]`` and classes ``[n]``: those to train on, 1438, then those held out, 359."""
    bundle = evaluate.data.load("digits")
    own = torch.cat([bundle.x_train, bundle.x_val]).flatten(1)
    return 2 * own - 1, torch.cat([bundle.y_train, bundle.y_val]), 2 * bundle.x_test.flatten(1) - 1, bundle.y_test


class Block(nn.Module):
    """Two layers beside the identity, which they are at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.second(nn.functional.silu(self.first(nn.functional.silu(hidden))))


class Net(nn.Module):
    """A residual perceptron of 64 pixels, a time and a class; what its second block gives is its bottleneck.

    Args:
        seed: Of the parameters.
        width: Of the hidden layers.
    """

    features = "blocks.1"

    def __init__(self, seed: int = 0, width: int = 192) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.frequencies: Tensor
            self.register_buffer("frequencies", 2 * math.pi * torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0]))
            self.first = nn.Linear(SIZE, width)
            self.clock = nn.Linear(2 * len(self.frequencies), width)
            self.classes = nn.Embedding(CLASSES + 1, width)
            self.blocks = nn.Sequential(*[Block(width) for _ in range(3)])
            self.last = nn.Linear(width, SIZE)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        angles = t[:, None] * self.frequencies
        hidden = self.first(x) + self.clock(torch.cat([angles.sin(), angles.cos()], 1))
        if label is not None:
            hidden = hidden + self.classes(label)
        return self.last(nn.functional.silu(self.blocks(hidden)))

    def copied(self) -> Net:
        """The same once more, to be trained on."""
        return copy.deepcopy(self).train().requires_grad_(True)


def head(seed: int, width: int = 192) -> nn.Module:
    """A discriminator's last part, on the features of a network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, 1))


def examples(seed: int, rows: int = BATCH) -> Callable[[dr.Step], diffusion.Batch]:
    """Batches of digits with their classes."""
    x, y, _, _ = digits()

    def batch_of(step: dr.Step) -> diffusion.Batch:
        chosen = random.integers(rows, len(x), step=dr.Step(step.index, seed=seed), name="digits")
        return diffusion.Batch(x[chosen], *conditions(y[chosen]))

    return batch_of


def classes(seed: int, rows: int = BATCH) -> Callable[[dr.Step], diffusion.Batch]:
    """Batches of classes alone."""

    def batch_of(step: dr.Step) -> diffusion.Batch:
        drawn = random.integers(rows, CLASSES, step=dr.Step(step.index, seed=seed), name="classes")
        return diffusion.Batch(None, *conditions(drawn), size=rows)

    return batch_of


def conditions(label: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the rows, and of none."""
    return {"label": label}, {"label": torch.full_like(label, NONE)}


def labels(rows: int = ROWS) -> dict[str, Tensor]:
    """One class after another."""
    return {"label": torch.arange(rows) % CLASSES}


def start(seed: int, rows: int = ROWS) -> Tensor:
    """Noise of its own, `[rows, 64]`: none that a training draws."""
    return random.normal(rows, SIZE, step=dr.Step(0, seed=seed), name="held out")


def train(
    objective: dr.Objective,
    steps: int,
    batch_of: Callable[[dr.Step], diffusion.Batch],
    *,
    seed: int,
    rates: Mapping[str, float],
    watch: Callable[[int], None] | None = None,
) -> dict[str, torch.optim.Optimizer]:
    """Every turn with Adam and a rate that falls along a cosine to 0; gives the optimisers.

    Args:
        objective: What is trained.
        steps: Of the run.
        batch_of: The batch of a step.
        seed: Of everything drawn.
        rates: Highest learning rate of each turn.
        watch: Called after every step with its index.
    """
    # Without momentum, as score identity distillation and self-forcing are trained: the critic's target moves.
    optimisers: dict[str, torch.optim.Optimizer] = {
        turn: torch.optim.Adam(group, rates[turn], betas=(0.0, 0.999))
        for turn, group in objective.parameter_groups().items()
    }
    for index in range(steps):
        step = dr.Step(index, seed=seed, total=steps)
        batch = batch_of(step)
        for turn in objective.turns(step):
            optimisers[turn].param_groups[0]["lr"] = rates[turn] * share(index, steps)
            loss = objective(batch, step, turn=turn)
            optimisers[turn].zero_grad()
            loss.total.backward()
            optimisers[turn].step()
        if watch is not None:
            watch(index)
    return optimisers


def share(index: int, steps: int) -> float:
    """Of the highest rate: up in a fiftieth of the run, then down a cosine."""
    return min((index + 1) / max(1, steps / 50), 0.5 * (1 + math.cos(math.pi * index / steps)))


def teacher(seed: int, path: schedule.Path = PATH, steps: int = TEACHER_STEPS) -> Net:
    """A class-conditional network that is trained on the digits, kept for all proofs.

    Args:
        seed: Of the parameters and the batches.
        path: `PATH`, or `EDM` with its own law and weight.
        steps: Of the training; few for a deliberately bad one.
    """
    network = Net(seed)
    kind = type(path).__name__
    file = CELLS / "distmatch" / "teachers" / f"{kind}-{steps}-{seed}-{source_fingerprint(Path(__file__))}.safetensors"
    if not file.exists():
        _train_teacher(network, path, steps, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".tmp")
        safetensors.torch.save_file(network.state_dict(), draft)
        draft.replace(file)
    network.load_state_dict(safetensors.torch.load_file(file))
    return network.eval().requires_grad_(False)


def _train_teacher(network: Net, path: schedule.Path, steps: int, seed: int) -> None:
    # A critic of the data is a teacher.
    settings: dict[str, Any] = {"law": schedule.Uniform(0.001, 1.0)}
    if isinstance(path, schedule.EDM):
        law, weight = schedule.LogNormal(-1.2, 1.2, path=path), schedule.PreconditionedWeight()
        settings = {"law": law, "compare": "x0", "weight": weight}
    fitted = diffusion.Critic(adapter(network, path), kind_of(path), **settings)
    optimiser = torch.optim.Adam(network.parameters(), TEACHER_RATE)
    batch_of = examples(seed, 2 * BATCH)
    for index in range(steps):
        step = dr.Step(index, seed=seed, total=steps)
        batch = batch_of(step)
        assert batch.x0 is not None
        label = batch.condition["label"].clone()
        label[random.uniform(len(label), step=step, name="dropped") < DROPPED] = NONE
        rolled = diffusion.Rolled(batch.x0, torch.ones(len(label), dtype=torch.float64))
        optimiser.param_groups[0]["lr"] = TEACHER_RATE * share(index, steps)
        optimiser.zero_grad()
        fitted.fit(path, rolled, {"label": label}, step).mean().backward()
        optimiser.step()


def kind_of(path: schedule.Path) -> schedule.Kind:
    """What networks of a path predict here."""
    return "F" if isinstance(path, schedule.EDM) else "v"


def adapter(network: nn.Module, path: schedule.Path) -> diffusion.Network:
    """With the input and the clock that networks of the path have in the recipes."""
    if not isinstance(path, schedule.EDM):
        return diffusion.Network(network, times="t")
    return diffusion.Network(network, times="t", clock="log_sigma", clock_factor=0.25, path=path, scale_input=True)


def many_steps(
    seed: int, steps: int = 50, path: schedule.Path = PATH, trained: int = TEACHER_STEPS
) -> dict[str, float]:
    """Measures of a teacher's own samples, by Euler steps of its estimates of data and noise (DDIM): equal, or EDM's.

    Args:
        seed: Of teacher and noise.
        steps: Of the sampler.
        path: Of the teacher.
        trained: Steps of the teacher's training.
    """
    grid = schedule.karras(steps, path=path) if isinstance(path, schedule.EDM) else schedule.spaced(steps, path)
    flow = diffusion.StateMap(adapter(teacher(seed, path, trained), path), path, diffusion.Jump(kind_of(path)))
    return quality(sample(flow, start(seed), grid.times[:-1].tolist(), "ode"))


@torch.no_grad()
def sample(
    flow: diffusion.StateMap,
    noise: Tensor,
    times: Sequence[float],
    method: diffusion.SamplerMethod = "renoise",
) -> Tensor:
    """A student's samples, class after class.

    Args:
        flow: Its map.
        noise: ``[n, 64]``.
        times: Of its calls, from noise; the data come after the last.
        method: What is between two calls.
    """
    grid = schedule.Grid([*times, 0.0], flow.path)
    return diffusion.sample(flow, noise, grid, labels(len(noise)), method=method, step=dr.Step(0, seed=1))


@cache
def classifier() -> nn.Module:
    """The fixed classifier whose hidden layer, 64 wide, samples are looked at with; no loss ever does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = nn.Sequential(nn.Linear(SIZE, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU())
        last = nn.Linear(64, CLASSES)
    x, y, _, _ = digits()
    optimiser = torch.optim.Adam([*hidden.parameters(), *last.parameters()], 2e-3)
    for index in range(600):
        step = dr.Step(index)
        rows = random.integers(BATCH, len(x), step=step, name="classifier")
        # A little noise: features are to tell digits apart, not the rows that it has seen.
        seen = x[rows] + 0.25 * random.normal(BATCH, SIZE, step=step, name="classifier")
        loss = nn.functional.cross_entropy(last(hidden(seen)), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return hidden.requires_grad_(False)


def quality(samples: Tensor) -> dict[str, float]:
    """Measures of samples in the classifier's features.

    `DFD` is the Frechet distance from the training digits, as such distances are published; `held out` that from the
    others. Precision, recall and coverage are among the held-out digits, three neighbours.
    """
    x, _, other, _ = digits()
    found, own, held = (classifier()(part) for part in (samples, x, other))
    near = generation.neighbourhood_scores(found, held, k=3)
    return {
        "DFD": generation.frechet_distance(found, own),
        "held out": generation.frechet_distance(found, held),
        "precision": near.precision,
        "recall": near.recall,
        "coverage": near.coverage,
    }


def column(runs: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """One figure of every seed."""
    return [run[name] for run in runs]


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Of the means."""
    return fmean(values) / fmean(others)


def all_below(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether each value is below its partner: a margin of means is to have one sign in every seed."""
    return all(value < other for value, other in zip(values, others, strict=True))
