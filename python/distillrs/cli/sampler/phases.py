"""The two phases that train: the teacher, and the student that is distilled from it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import distillrs as dr
from distillrs import configuration, evaluate, fitting, random, schedule
from distillrs.cli import interrupt
from distillrs.cli.folder import Folder
from distillrs.cli.progress import Progress
from distillrs.cli.sampler.plan import Prepared
from distillrs.cli.settings import identity, same_identity
from distillrs.diffusion import Batch, Data, Diagonal, FlowMap, Network
from distillrs.errors import ArgumentError, TrainingDivergedError
from distillrs.objective import Objective
from distillrs.schedule import Cosine, RectifiedFlow, Triangle, Uniform

_SAVE_SECONDS = 15.0
# Noises from which the student is compared with the teacher on the way.
_LOOKED_AT = 200


@dataclass
class Record:
    """What was seen in a phase.

    Attributes:
        losses: Of each step at which the network moved; where several turns moved, of the last of them.
        checks: (step, figure) of each look; step n is the state before the n-th step.
    """

    losses: list[float] = field(default_factory=list)
    checks: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    """One phase's training.

    Attributes:
        name: Of the phase.
        title: For the progress.
        objective: What is minimised.
        networks: All that is trained, by name.
        averaged: Name of the one whose moving average is the result.
        moved: The turn at which it moves.
        steps: Length.
        batch_size: Examples in each step.
        rates: Learning rate at the start, by turn.
        average: Decay.
        check_every: Steps between two looks.
        figure: What is looked at: of the moving average.
        shown: Its name.
    """

    name: str
    title: str
    objective: Objective
    networks: dict[str, nn.Module]
    averaged: str
    moved: str
    steps: int
    batch_size: int
    rates: Mapping[str, float]
    average: float
    check_every: int
    figure: Callable[[nn.Module], float]
    shown: str


def train_teacher(prepared: Prepared, folder: Folder, progress: Progress) -> tuple[nn.Module, Record]:
    """Trains a velocity by flow matching; its moving average is the teacher.

    Args:
        prepared: See :func:`distillrs.cli.sampler.plan.prepare`.
        folder: Where the state is kept.
        progress: Where to report.
    """
    settings = prepared.settings.teacher
    network = prepared.network()

    def matching(module: nn.Module) -> FlowMap:
        return FlowMap(
            Network(module, times="t"),
            path=RectifiedFlow(),
            residual=Diagonal(Data()),
            pairs=Triangle(diagonal=1.0, diagonal_law=Uniform()),
        )

    x, label = _examples(prepared, prepared.bundle.x_val, prepared.bundle.y_val)
    held_out = _batch(x[:512], label[:512])

    def validation(module: nn.Module) -> float:
        with torch.no_grad():
            step = dr.Step(0, seed=_seed(prepared, "validation"))
            return float(matching(module)(held_out, step).total)

    run = _Run(
        "teacher",
        "teacher",
        matching(network),
        {"teacher": network},
        "teacher",
        "student",
        settings.steps,
        settings.batch_size,
        {"student": settings.learning_rate},
        settings.average,
        max(1, settings.steps // 6),
        validation,
        "validation",
    )
    return _train(prepared, folder, progress, run)


def distil(
    prepared: Prepared, teacher: nn.Module, folder: Folder, progress: Progress
) -> tuple[nn.Module, Record, dict[str, int]]:
    """Trains the student by the method's recipe; its moving average is the result.

    Args:
        prepared: See :func:`distillrs.cli.sampler.plan.prepare`.
        teacher: The trained teacher.
        folder: Where the state is kept.
        progress: Where to report.

    Returns:
        The student, what was seen, and the number of trained values of each network.
    """
    settings, method = prepared.settings.student, prepared.method
    options = method.arguments(prepared.settings.method.options)
    began = method.begin(teacher.eval().requires_grad_(False), prepared.bundle.shape, prepared.settings.steps, options)
    noise, labels = draw(prepared, _LOOKED_AT, "check")
    target = prepared.teacher(teacher).run(noise, labels, steps=prepared.settings.teacher.sampling_steps)

    def distance(module: nn.Module) -> float:
        found = prepared.student(module).run(noise, labels, steps=prepared.settings.steps)
        return evaluate.generation.paired_rmse(found, target)

    run = _Run(
        "student",
        "distil",
        began.objective,
        began.networks,
        "student",
        began.moved,
        settings.steps,
        settings.batch_size,
        settings.rates,
        settings.average,
        settings.check_every,
        distance,
        "distance",
    )
    network, record = _train(prepared, folder, progress, run)
    sizes = {name: sum(value.numel() for value in each.parameters()) for name, each in began.networks.items()}
    return network, record, sizes


def draw(prepared: Prepared, count: int, name: str) -> tuple[Tensor, Tensor]:
    """Noise ``[count, ...]`` and labels ``[count]`` in the shares of the training examples, on the device."""
    step = dr.Step(0, seed=prepared.settings.seed)
    noise = random.normal(count, *prepared.bundle.shape, step=step, name=f"{name}/noise", device=prepared.device)
    rows = random.integers(count, len(prepared.bundle.y_train), step=step, name=f"{name}/labels")
    return noise, prepared.bundle.y_train[rows].to(prepared.device)


def _train(prepared: Prepared, folder: Folder, progress: Progress, run: _Run) -> tuple[nn.Module, Record]:
    """Runs a phase; its state is written from time to time and at an interruption, and the same call goes on from it.

    What comes out is the same, bit for bit, as of a run that was never interrupted.

    Raises:
        TrainingDivergedError: A loss that is not finite.
    """
    average = copy.deepcopy(run.networks[run.averaged]).eval().requires_grad_(False)
    record, state = _restore(prepared, folder, run, average)
    first = 0 if state is None else int(state["next"])
    x, y = _examples(prepared, prepared.bundle.x_train, prepared.bundle.y_train)
    fade = Cosine(1.0, 0.0, steps=run.steps)
    groups = run.objective.parameter_groups()
    optimisers = {turn: torch.optim.Adam(groups[turn], lr=rate * fade(first)) for turn, rate in run.rates.items()}

    def batch(step: dr.Step) -> Batch:
        rows = random.integers(run.batch_size, len(x), step=step, name="batch").to(prepared.device)
        return _batch(x[rows], y[rows])

    with interrupt.deferred() as request, progress.phase(run.title, run.steps, "steps", start=first) as phase:
        saved = time.monotonic()

        def after_step(at: fitting.Progress) -> None:
            nonlocal saved
            done, loss = at.step.index + 1, float(at.loss.total.detach())
            if not math.isfinite(loss):
                key = "student.rates" if run.name == "student" else "teacher.learning_rate"
                raise TrainingDivergedError(
                    f"the {run.name}'s training diverged: the loss is {loss} at step {done}; a smaller {key} usually "
                    "helps, with --overwrite",
                    step=at.step.index,
                )
            if run.moved in run.objective.turns(at.step):
                # Young averages forget faster, or the first weights would stay in them.
                moves = len(record.losses) + 1
                _follow(average, run.networks[run.averaged], min(run.average, (1 + moves) / (10 + moves)))
                record.losses.append(loss)
            for turn, optimiser in optimisers.items():
                for group in optimiser.param_groups:
                    group["lr"] = run.rates[turn] * fade(done)
            if done % run.check_every == 0 or done == run.steps:
                record.checks.append((done, run.figure(average)))
            now, asked = time.monotonic(), request.signal is not None
            if asked or done == run.steps or now - saved >= _SAVE_SECONDS:
                saved = now
                _save(prepared, folder, run, average, record, at.state())
            figures = {run.shown: record.checks[-1][1]} if record.checks else {}
            phase.update(done, loss=record.losses[-1] if record.losses else math.nan, **figures)
            if asked:  # one that comes after the state was written waits for the next step
                request.obey()

        if first < run.steps:
            seed = _seed(prepared, run.name)
            dr.fit(run.objective, optimisers, run.steps, seed=seed, batches=batch, callback=after_step, state=state)
        phase.update(run.steps, **({run.shown: record.checks[-1][1]} if record.checks else {}))
        request.obey()
    return average, record


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, value in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(value, 1 - decay)


def _save(
    prepared: Prepared, folder: Folder, run: _Run, average: nn.Module, record: Record, state: dict[str, Any]
) -> None:
    folder.save_state(
        {
            "identity": configuration.to_toml(identity(prepared.settings)),
            "fit": state,
            "networks": {name: network.state_dict() for name, network in run.networks.items()},
            "average": average.state_dict(),
            "record": asdict(record),
        },
        run.name,
    )


def _restore(prepared: Prepared, folder: Folder, run: _Run, average: nn.Module) -> tuple[Record, dict[str, Any] | None]:
    state = folder.load_state(run.name)
    if state is None:
        return Record(), None
    if not same_identity(state.get("identity"), prepared.settings):
        raise ArgumentError(
            f"out: the unfinished run in {folder.path} has another configuration; allowed is the same, or --overwrite"
        )
    for name, network in run.networks.items():
        network.load_state_dict(state["networks"][name])
    average.load_state_dict(state["average"])
    checks = [(int(step), float(value)) for step, value in state["record"]["checks"]]
    return Record(list(state["record"]["losses"]), checks), state["fit"]


def _examples(prepared: Prepared, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return prepared.transform.forward(x).to(prepared.device), y.to(prepared.device)


def _batch(x: Tensor, label: Tensor) -> Batch:
    return Batch(x, {"label": label})


def _seed(prepared: Prepared, name: str) -> int:
    # Of its own for each phase, or all would draw the same noise and times.
    return random.generator_seed(dr.Step(0, seed=prepared.settings.seed), name) >> 1


def trajectories(prepared: Prepared, teacher: nn.Module) -> schedule.Trajectories:
    """Some of the teacher's own ways from noise to data, from which `distillrs schedule` chooses times."""
    sampler = prepared.teacher(teacher)
    grid = sampler.grid(prepared.settings.teacher.sampling_steps)
    values = (grid.steps + 1) * math.prod(prepared.bundle.shape)
    noise, labels = draw(prepared, min(64, max(4, 2**20 // values)), "trajectories")

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return sampler.map.predict(x, t.to(x.device).expand(len(x)), sampler.condition(labels)).value

    return schedule.Trajectories.record(grid, noise, velocity, solver="euler")
