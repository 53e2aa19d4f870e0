"""What the recipes over a student and a teacher share."""

from __future__ import annotations

from torch import nn

from distillrs.frozen import Frozen
from distillrs.knowledge import AnyTap, Labels, Output, Term

LOGITS = Output("logits")


def task(logits: AnyTap, scale: float) -> list[Term]:
    """Cross-entropy with the labels, where it counts at all.

    Args:
        logits: The student's.
        scale: Factor.
    """
    return [Term(logits, target=Labels(), scale=scale, name="task")] if scale else []


def frozen(teacher: nn.Module) -> Frozen:
    """The teacher, frozen if it is not yet."""
    return teacher if isinstance(teacher, Frozen) else Frozen(teacher)
