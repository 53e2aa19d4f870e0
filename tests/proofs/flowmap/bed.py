"""What the proofs of flow maps share: digits whose flow is known exactly, small networks, training and its measures.

All digits are 64 standardised pixels; `exact` is their kernel density, whose velocity needs no network, and `teacher` a
network that is trained on it once per seed and kept beside the proofs' cells.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import distillrs as dr
from distillrs import diffusion, random, schedule
from distillrs.evaluate import beds, generation
from distillrs.schedule import VP, Grid, RectifiedFlow
from proofs.ledger import CELLS, source_fingerprint

SIZE, CLASSES, NONE = 64, 10, 10
BATCH = 128
TEACHER_STEPS = 2500
RATE = 2e-3

CHOOSING_SEED = 100
"""Of the runs that choose settings; none of a proof's own seeds."""

PATHS: Mapping[str, tuple[schedule.Path, schedule.Kind]] = {
    "flow": (RectifiedFlow(), "velocity"),
    "cosine": (VP.cosine(), "v"),
}


@cache
def exact() -> beds.KernelDensity:
    """The kernel density of the digits: its flow is smooth and known."""
    return beds.digits_kde()


class Net(nn.Module):
    """A residual perceptron of 64 pixels, one or two times, and, where it is told them, a class and a guidance.

    Args:
        times: How many; the second does not count at first, so that a network of one time can be continued.
        seed: Of the parameters.
        width: Of the hidden layers.
        blocks: Residual blocks of two layers.
        guided: Whether it is told a guidance, which does not count at first.
    """

    def __init__(self, times: int = 1, seed: int = 0, width: int = 192, blocks: int = 3, guided: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # Low frequencies: what differentiates by time is to see a smooth function of it.
            self.frequencies: Tensor
            self.register_buffer("frequencies", 2 * math.pi * torch.tensor([0.25, 0.5, 1.0, 2.0]))
            features = 2 * len(self.frequencies)
            self.first = nn.Linear(SIZE, width)
            self.clocks = nn.ModuleList([nn.Linear(features, width) for _ in range(times)])
            self.classes = nn.Embedding(CLASSES + 1, width)
            self.scale = nn.Linear(2, width) if guided else None
            self.blocks = nn.ModuleList(
                [nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)]) for _ in range(blocks)]
            )
            self.last = nn.Linear(width, SIZE)
        for extra in [*self.clocks[1:], *([self.scale] if guided else [])]:
            nn.init.zeros_(extra.weight)
            nn.init.zeros_(extra.bias)
        for block in self.blocks:
            nn.init.zeros_(block[1].weight)
            nn.init.zeros_(block[1].bias)

    def forward(self, x: Tensor, *times: Tensor, label: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        hidden = self.first(x)
        for clock, time in zip(self.clocks, times, strict=True):
            angles = time[:, None] * self.frequencies
            hidden = hidden + clock(torch.cat([angles.sin(), angles.cos()], 1))
        if label is not None:
            hidden = hidden + self.classes(label)
        if guidance is not None and self.scale is not None:
            told = guidance[:, None].to(x)
            hidden = hidden + self.scale(torch.cat([told / 4, torch.log1p(told)], 1))
        for one, other in self.blocks:
            hidden = hidden + other(nn.functional.silu(one(nn.functional.silu(hidden))))
        return self.last(nn.functional.silu(hidden))

    def continued(self, times: int = 1, guided: bool = False) -> Net:
        """A network that begins as this one, whatever else it is told."""
        found = Net(times, width=self.first.out_features, blocks=len(self.blocks), guided=guided)
        found.load_state_dict(self.state_dict(), strict=False)
        return found


def kept(name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors that are computed once for each version of the sources, beside the proofs' cells.

    Args:
        name: Of the file; it says all that the result depends on, but for this file and the library.
        compute: Gives them.
    """
    file = CELLS / "flowmap" / f"{name}-{source_fingerprint(Path(__file__))}.safetensors"
    if not file.exists():
        found = {key: value.contiguous() for key, value in compute().items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        safetensors.torch.save_file(found, draft)
        draft.replace(file)
    return safetensors.torch.load_file(file)


@cache
def real() -> Tensor:
    """Draws of the density, `[6000, 64]`, that no training sees: what Frechet distances are taken from."""
    return exact().sample(6000, step=dr.Step(0, seed=0), name="real")


def batches(seed: int, rows: int = BATCH, classes: tuple[int, ...] | None = None) -> Callable[[dr.Step], Tensor]:
    """Fresh draws of the digits' density, `[rows, 64]` in float32, a function of the step."""
    density = exact() if classes is None else beds.digits_kde(classes=classes)
    return lambda step: density.sample(rows, step=dr.Step(step.index, seed=seed), name="digits").float()


def labelled(seed: int, rows: int = BATCH) -> Callable[[dr.Step], tuple[Tensor, Tensor]]:
    """Fresh draws with their classes."""
    density = exact()

    def draw(step: dr.Step) -> tuple[Tensor, Tensor]:
        at = dr.Step(step.index, seed=seed)
        chosen = random.integers(rows, len(density.data), step=at, name="digits")
        noise = random.normal(rows, SIZE, step=at, name="digits")
        return density.data[chosen].float() + density.bandwidth * noise, density.labels[chosen]

    return draw


def train(
    objective: dr.Objective,
    steps: int,
    batch_of: Callable[[dr.Step], diffusion.Batch],
    *,
    seed: int = 0,
    rates: float | Mapping[str, float] = RATE,
    optimiser: type[torch.optim.Optimizer] = torch.optim.Adam,
    clip: float | None = None,
    learned_share: float = 1.0,
    watch: Callable[[int], None] | None = None,
) -> list[float]:
    """Every turn with a learning rate that falls along a cosine to 0; gives the gradient norms of the first turns.

    Args:
        objective: What is trained.
        steps: Of the run.
        batch_of: The batch of a step.
        seed: Of everything drawn.
        rates: Highest learning rate, of each turn or of all.
        optimiser: Of every turn; parameters that a turn's loss does not reach stay.
        clip: Largest gradient norm of a turn's networks; `None` for no clipping.
        learned_share: Of the student's rate, for a learned weight of its losses.
        watch: Called after every step with its index.
    """
    groups = objective.parameter_groups()
    learned = groups.pop("balance", [])
    highest = {turn: rates[turn] if isinstance(rates, Mapping) else rates for turn in groups}
    # One kernel for all parameters: a loop over two dozen small ones costs as much as the gradient.
    fast: dict[str, Any] = {"fused": True} if optimiser is torch.optim.Adam else {"foreach": True}
    parts = {turn: [{"params": group, "share": 1.0}] for turn, group in groups.items()}
    if learned:
        parts["student"].append({"params": learned, "share": learned_share})
    optimisers = {turn: optimiser(part, lr=highest[turn], **fast) for turn, part in parts.items()}
    norms = []
    for index in range(steps):
        step = dr.Step(index, seed=seed, total=steps)
        batch = batch_of(step)
        for place, turn in enumerate(objective.turns(step)):
            share = min((index + 1) / max(1, steps / 50), 0.5 * (1 + math.cos(math.pi * index / steps)))
            for part in optimisers[turn].param_groups:
                part["lr"] = highest[turn] * share * part["share"]
            loss = objective(batch, step, turn=turn)
            optimisers[turn].zero_grad()
            loss.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(groups[turn], math.inf if clip is None else clip)
            optimisers[turn].step()
            if place == 0:
                norms.append(float(norm))
        if watch is not None:
            watch(index)
    return norms


def teacher(seed: int, path: str = "flow", steps: int = TEACHER_STEPS) -> Net:
    """A class-conditional network of a path, trained on the digits' density; kept for all proofs.

    Args:
        seed: Of the parameters and the batches.
        path: "flow", which predicts a velocity, or "cosine", which predicts v.
        steps: Of the training.
    """
    own, kind = PATHS[path]
    network = Net(seed=seed)

    def trained() -> dict[str, Tensor]:
        objective = diffusion.FlowMap(
            diffusion.Network(network, times="t"),
            path=own,
            head=diffusion.Jump(kind),
            residual=diffusion.Diagonal(diffusion.Data()),
            pairs=schedule.Triangle(diagonal=1.0, diagonal_law=schedule.Uniform(0.001, 0.999)),
            condition_dropout=0.2,
            seed=seed,
        )
        draw = labelled(seed, 2 * BATCH)

        def batch_of(step: dr.Step) -> diffusion.Batch:
            x0, label = draw(step)
            return diffusion.Batch(x0, {"label": label}, {"label": torch.full_like(label, NONE)})

        train(objective, steps, batch_of, seed=seed)
        return network.state_dict()

    network.load_state_dict(kept(f"teacher-{path}-{steps}-{seed}", trained))
    return network.eval().requires_grad_(False)


def score_of(network: Net, path: str = "flow", guidance: float = 1.0) -> diffusion.Score:
    """A teacher as a score, guided by `u + w (c - u)` unless w is 1; its null condition comes with the batch."""
    score = diffusion.Teacher(diffusion.Network(dr.Frozen(network), times="t"), PATHS[path][1])
    return score if guidance == 1 else diffusion.Guided(score, guidance)


def start(rows: int, seed: int, name: str = "held out", dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise of its own, `[rows, 64]`: none that a training draws."""
    return random.normal(rows, SIZE, step=dr.Step(0, seed=seed), name=name, dtype=torch.float64).to(dtype)


@cache
def reference(rows: int, seed: int) -> Tensor:
    """Where the exact flow carries `start(rows, seed)`: 40 steps of Heun in float64."""
    return exact().on(RectifiedFlow()).endpoints(start(rows, seed, dtype=torch.float64))


@torch.no_grad()
def one_call(flow: diffusion.StateMap, noise: Tensor, condition: Mapping[str, Tensor] | None = None) -> Tensor:
    """The end of the map from pure noise to the data in one call."""
    return diffusion.sample(flow, noise, Grid([1.0, 0.0], flow.path), condition)


@torch.no_grad()
def walk(
    score: diffusion.Score,
    path: schedule.Path,
    noise: Tensor,
    steps: int,
    condition: Mapping[str, Tensor] | None = None,
    *,
    solver: schedule.Solver = "heun",
    every: bool = False,
) -> Tensor:
    """Where a score's flow carries noise, `[n, 64]`, in equal steps of time; with `every` all states on the way."""
    inner = score
    if isinstance(score, diffusion.Guided):
        assert condition is not None
        inner = score.score
        null = condition | {"label": torch.full_like(condition["label"], NONE)}
        score = diffusion.Guided(inner, score.scale, score.convention, null)
    kind = inner.kind if isinstance(inner, diffusion.Teacher) else "x0"
    grid = schedule.spaced(steps, path)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return score.predict(x, t.double().expand(len(x)), condition).value

    return schedule.integrate(
        grid, (float(grid.sigmas[0]) * noise).to(noise.dtype), predict, solver=solver, kind=kind, every=every
    )


def bend(states: Tensor) -> float:
    """How far paths are from straight: the mean of ``|v - (x_1 - x_0)|^2`` over a rectified flow's equal steps.

    Args:
        states: `[steps + 1, n, 64]`, from noise to data.
    """
    steps = len(states) - 1
    return float(((states[:-1] - states[1:]) * steps - (states[0] - states[-1])).square().mean())


def labels(rows: int) -> dict[str, Tensor]:
    """One class after another."""
    return {"label": torch.arange(rows) % CLASSES}


def paired(samples: Tensor, ends: Tensor) -> float:
    """Paired root mean squared error, in deviations of all pixels."""
    return generation.paired_rmse(samples, ends)


def frechet(samples: Tensor, others: Tensor | None = None) -> float:
    """Distance of the raw pixels' means and covariances from those of other samples, or of the density's."""
    return generation.frechet_distance(samples, real() if others is None else others)


def neighbourhoods(samples: Tensor) -> generation.Neighbourhoods:
    """Precision, recall, density and coverage among the digits, five neighbours."""
    return generation.neighbourhood_scores(samples, exact().data)


def classes_off(samples: Tensor) -> float:
    """Total variation between the classes of the samples, by their nearest digits, and those of the digits."""
    density = exact()
    wanted = torch.bincount(density.labels).double() / len(density.labels)
    return generation.total_variation(generation.class_histogram(samples, density.data, density.labels), wanted)


def spikiness(norms: Sequence[float]) -> float:
    """The 99th percentile of gradient norms over their median, after the first tenth of the run."""
    later = list(norms[len(norms) // 10 :])
    return quantiles(later, n=100)[98] / quantiles(later, n=2)[0]


def below(values: Sequence[float], others: Sequence[float]) -> float:
    """How far the mean of values is below that of the others, as a share of it."""
    return 1 - fmean(values) / fmean(others)


def average_of(network: nn.Module, rate: float) -> tuple[nn.Module, Callable[[int], None]]:
    """A moving average of a network and what moves it, to be called after every step."""
    average = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def move(index: int) -> None:
        for mean, value in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, 1 - rate)

    return average, move


def same_sign(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether each value is below its partner."""
    return all(value < other for value, other in zip(values, others, strict=True))
