"""The whole configuration of ``distillrs distill-sampler``, as ``config.toml`` holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distillrs.cli.settings import NetworkSettings, at_least
from distillrs.errors import argument_error

FORMAT = 1


@dataclass(frozen=True)
class SamplerMethod:
    """How the sampler is distilled.

    Attributes:
        name: "flow-map" or "dmd2".
        options: Of its recipe.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher is trained, by flow matching.

    Attributes:
        steps: Steps of the optimiser.
        batch_size: Examples in each.
        learning_rate: Of Adam at the start; it falls along half a cosine to 0.
        average: Decay of the moving average of the weights, which is the teacher.
        sampling_steps: Euler steps of its samples, which are the reference.
    """

    steps: int
    batch_size: int
    learning_rate: float
    average: float = 0.995
    sampling_steps: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "sampling_steps"):
            at_least(name, getattr(self, name), 1)
        _rate("learning_rate", self.learning_rate)
        _decay(self.average)


@dataclass(frozen=True)
class StudentSettings:
    """How the student is trained.

    Attributes:
        steps: Steps of the run; a critic's own steps count.
        batch_size: Examples in each.
        rates: Learning rate of Adam for each turn of the objective ("student", or "generator" and "critic"); each
            falls along half a cosine to 0.
        average: Decay of the moving average of the weights, which is the student.
        check_every: Steps between two looks at its distance from the teacher.
    """

    steps: int
    batch_size: int
    rates: dict[str, float]
    average: float = 0.995
    check_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "check_every"):
            at_least(name, getattr(self, name), 1)
        for name, rate in self.rates.items():
            _rate(f"rates.{name}", rate)
        _decay(self.average)


@dataclass(frozen=True)
class JudgeSettings:
    """How samples are judged.

    Attributes:
        samples: Of each sampler; at most as many real examples are compared with.
        neighbours: Which neighbour makes the balls of precision, recall and coverage.
    """

    samples: int = 1000
    neighbours: int = 5

    def __post_init__(self) -> None:
        at_least("neighbours", self.neighbours, 1)
        at_least("samples", self.samples, self.neighbours + 1)


@dataclass(frozen=True)
class SamplerSettings:
    """Everything that decides the result of ``distillrs distill-sampler``, and where it is written.

    Attributes:
        data: Name of a data set or path.
        steps: Number of steps of the student.
        method: How it is distilled.
        network: Of the teacher and of the student: "mlp" or "unet".
        teacher: How the teacher is trained.
        student: How the student is trained.
        evaluation: How samples are judged.
        transform: What a network sees of a raw example.
        duplicates: What happens to training examples that also stand in the test set.
        seed: Of everything that is drawn.
        device: Where networks live: "cpu", "cuda", "cuda:1".
        threads: Threads for computing; part of the configuration because sums depend on it in the last bit.
        out: Folder for the results.
        limit: At most so many training examples, stratified by class.
        format: Version of this file's format.
    """

    data: str
    steps: int
    method: SamplerMethod
    network: NetworkSettings
    teacher: TeacherSettings
    student: StudentSettings
    evaluation: JudgeSettings
    transform: Literal["identity", "standardise"]
    duplicates: Literal["refuse", "drop"]
    seed: int
    device: str
    threads: int
    out: str
    limit: int | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        at_least("threads", self.threads, 1)
        at_least("steps", self.steps, 1)
        if self.steps > self.teacher.sampling_steps:
            allowed = f"at most the teacher's {self.teacher.sampling_steps} (teacher.sampling_steps)"
            raise argument_error("steps", self.steps, allowed)
        if self.limit is not None:
            at_least("limit", self.limit, 1)
        if not 0 <= self.seed < 2**63:
            raise argument_error("seed", self.seed, "an integer from 0 to 2**63 - 1")
        if self.format != FORMAT:
            raise argument_error("format", self.format, f"{FORMAT}, the only one that this version reads")

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of steps at which the student is judged: powers of two up to its own, and its own."""
        powers = [2**power for power in range(self.steps.bit_length()) if 2**power < self.steps]
        return (*powers, self.steps)


def check_rates(rates: Mapping[str, float], turns: tuple[str, ...]) -> None:
    """Refuses rates for other turns than an objective has."""
    if set(rates) != set(turns):
        raise argument_error("student.rates", sorted(rates), f"one for each of {', '.join(turns)}")


def _rate(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise argument_error(name, value, "a finite number above 0")


def _decay(value: float) -> None:
    if not 0 <= value < 1:
        raise argument_error("average", value, "a number from 0 to below 1")
