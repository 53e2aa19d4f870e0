"""What the recipes over a student and a teacher share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_number, check_whole
from distillrs.errors import argument_error
from distillrs.frozen import Frozen
from distillrs.knowledge import AnyTap, Labels, Output, Teacher, Term
from distillrs.step import Step

LOGITS = Output("logits")


def task(logits: AnyTap, scale: float) -> list[Term]:
    """Cross-entropy with the labels, where it counts at all.

    Args:
        logits: The student's.
        scale: Factor.

    Raises:
        ArgumentError: A factor that is no number.
    """
    if not callable(scale):
        check_number("task_weight", scale, "a finite number")
    return [Term(logits, target=Labels(), scale=scale, name="task")] if scale else []


def frozen(teacher: nn.Module, name: str = "teacher") -> Frozen:
    """The teacher, frozen if it is not yet.

    Args:
        teacher: A network, which the recipe looks into.
        name: The argument's, for the message.

    Raises:
        ArgumentError: Something else than a network.
    """
    if not isinstance(teacher, nn.Module) or isinstance(teacher, Teacher):
        raise argument_error(name, type(teacher).__name__, "a torch.nn.Module that is a network")
    return teacher if isinstance(teacher, Frozen) else Frozen(teacher)


def answering(teacher: nn.Module, name: str = "teacher") -> Frozen | Teacher:
    """The teacher as an objective takes it: one of knowledge's own stays as it is, a network is frozen.

    Args:
        teacher: Either.
        name: The argument's, for the message.

    Raises:
        ArgumentError: Neither.
    """
    return teacher if isinstance(teacher, Teacher) else frozen(teacher, name)


def layer_taps(layers: Any) -> list[tuple[AnyTap, AnyTap]]:
    """Pairs of a student's and a teacher's layer.

    Args:
        layers: What the user gave.

    Raises:
        ArgumentError: No pairs, or something else in their place.
    """
    allowed = "pairs (student's layer, teacher's layer), at least one"
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise argument_error("layers", layers, allowed)
    for pair in layers:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise argument_error("layers", pair, allowed)
    return [(student, teacher) for student, teacher in layers]


def check_widths(**widths: int) -> None:
    """Refuses what is no number of features, by the argument's name.

    Raises:
        ArgumentError: One of them is none.
    """
    for name, width in widths.items():
        check_whole(name, width, "a positive number of features", least=1, most=2**31)


class Embedding(nn.Sequential):
    """A linear head over flattened features, in the head's own precision.

    Args:
        size: Features, flattened.
        width: Of the embedding.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(size, width))

    def forward(self, features: Tensor) -> Tensor:
        """``[B, ...]`` to ``[B, width]``."""
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(next(self.parameters()).dtype)
        embedded: Tensor = super().forward(features)  # type: ignore[no-untyped-call]  # untyped in torch
        return embedded


def embedding(size: int, width: int, name: str, seed: int) -> nn.Module:
    """A linear head over flattened features, the same in every run.

    Args:
        size: Features, flattened.
        width: Of the embedding.
        name: What it is for: heads of other names are other draws.
        seed: Of the draw.
    """
    with torch.random.fork_rng(devices=[]):
        # The CPU's alone: torch.manual_seed would seed every device, and nothing gives those back.
        torch.default_generator.manual_seed(random.generator_seed(Step(0, seed=seed), name))
        return Embedding(size, width)
