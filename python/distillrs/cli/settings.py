"""The whole configuration of ``distillrs condense``, as ``config.toml`` holds it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distillrs.configuration import to_dict, to_toml
from distillrs.errors import argument_error
from distillrs.training import TrainingSettings

FORMAT = 1

# What may differ between two runs that are the same: where they write.
_WHERE = ("out", "store")


@dataclass(frozen=True)
class NetworkSettings:
    """Which architecture is used for experts, distillation and evaluation.

    Attributes:
        name: "mlp", "convnet", "linear", or ``package.module:function``.
        options: Its options ("width", "depth", "widths").
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodSettings:
    """Which recipe, and its options.

    Attributes:
        name: Its id, or ``package.module:function``.
        options: Of the recipe.
        experts: Of its way to train experts.
        initial: Of its way to choose the first synthetic set.
        views: Of the views that its labels belong to; ``None`` for a recipe whose labels belong to images.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    experts: dict[str, Any] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    views: dict[str, Any] | None = None


@dataclass(frozen=True)
class ExpertSettings:
    """Which trajectories are recorded.

    Attributes:
        count: Number of experts.
        training: How each is trained.
        codec: How the store keeps their parameters: "raw", "lossless", "half-delta", "delta-int8".
    """

    count: int
    training: TrainingSettings
    codec: str = "raw"

    def __post_init__(self) -> None:
        at_least("count", self.count, 1)


@dataclass(frozen=True)
class OptimiserSettings:
    """Stochastic gradient descent, or Adam, on one group of parameters.

    Attributes:
        lr: Learning rate at the start.
        momentum: From 0 to below 1.
        betas: Of Adam, which is then taken; ``None`` takes gradient descent.
        schedule: "cosine" lets the rate fall to 0 at the last step along half a cosine; ``None`` keeps it.
    """

    lr: float
    momentum: float = 0.0
    betas: tuple[float, float] | None = None
    schedule: Literal["cosine"] | None = None

    def __post_init__(self) -> None:
        if not (self.lr >= 0 and math.isfinite(self.lr)):
            raise argument_error("lr", self.lr, "a finite number from 0")
        if not 0 <= self.momentum < 1:
            raise argument_error("momentum", self.momentum, "a number from 0 to below 1")
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise argument_error("betas", self.betas, "two numbers from 0 to below 1")


@dataclass(frozen=True)
class DistillationSettings:
    """How the synthetic set is moved.

    Attributes:
        steps: Steps of the optimisers.
        optimisers: For each group of parameters of the objective ("images", "labels", "inner_lr").
        validate_every: Steps between two checks on the validation examples; the best checked set is kept.
        validation_networks: Fresh networks that are trained at each check; their mean accuracy counts.
    """

    steps: int
    optimisers: dict[str, OptimiserSettings]
    validate_every: int
    validation_networks: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "validate_every", "validation_networks"):
            at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class EvaluationSettings:
    """How sets are judged.

    Attributes:
        seeds: One fresh network for each, for every set.
        training: How a network is trained on the distilled and on the random real set.
        learning_rates: Rates that are tried for both sets alike, on the validation examples; the distilled set's own
            learned rate is tried for both, too. Empty: the rate of ``training``, without a choice.
        full_data: How a network is trained on all of the training examples.
    """

    seeds: tuple[int, ...]
    training: TrainingSettings
    full_data: TrainingSettings
    learning_rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise argument_error("seeds", self.seeds, "at least one seed from 0, each once")
        for rate in self.learning_rates:
            if not (rate > 0 and math.isfinite(rate)):
                raise argument_error("learning_rates", self.learning_rates, "finite numbers above 0")


@dataclass(frozen=True)
class CondenseSettings:
    """Everything that decides the result of ``distillrs condense``, and where it is written.

    Attributes:
        data: Name of a data set or path.
        per_class: Examples per class in the condensed set.
        method: The recipe.
        network: The architecture.
        experts: The trajectories.
        distillation: How the synthetic set is moved.
        evaluation: How it is judged.
        transform: What a network sees of a raw example: "identity", "standardise" (per channel) or "zca".
        limit: At most so many training examples, stratified by class.
        duplicates: What happens to training examples that also stand in the test set.
        seed: Of everything that is drawn.
        device: Where networks live: "cpu", "cuda", "cuda:1".
        threads: Threads for computing; part of the configuration because sums depend on it in the last bit.
        out: Folder for the results.
        store: Folder for the experts' stores; ``None``: ``experts`` within ``out``.
        format: Version of this file's format.
    """

    data: str
    per_class: int
    method: MethodSettings
    network: NetworkSettings
    experts: ExpertSettings
    distillation: DistillationSettings
    evaluation: EvaluationSettings
    transform: Literal["identity", "standardise", "zca"]
    duplicates: Literal["refuse", "drop"]
    seed: int
    device: str
    threads: int
    out: str
    limit: int | None = None
    store: str | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        at_least("per_class", self.per_class, 1)
        at_least("threads", self.threads, 1)
        if self.limit is not None:
            at_least("limit", self.limit, 1)
        if not 0 <= self.seed < 2**63:
            raise argument_error("seed", self.seed, "an integer from 0 to 2**63 - 1")
        if self.format != FORMAT:
            raise argument_error("format", self.format, f"{FORMAT}, the only one that this version reads")


def identity(settings: object) -> dict[str, Any]:
    """All that decides the result: a configuration without the places it is written to."""
    return without_places(to_dict(settings))


def same_identity(kept: object, settings: object) -> bool:
    """Whether a TOML text of an identity is that of these settings.

    Compared as values: a file may say 1 where the settings say 1.0.
    """
    try:
        return isinstance(kept, str) and tomllib.loads(kept) == tomllib.loads(to_toml(identity(settings)))
    except tomllib.TOMLDecodeError:
        return False


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a mapping, without the places that it is written to."""
    return {name: value for name, value in values.items() if name not in _WHERE}


def at_least(name: str, value: int, least: int) -> None:
    """Refuses what is not a whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise argument_error(name, value, f"a whole number from {least}")
