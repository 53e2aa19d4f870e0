"""Knowledge distillation of softened outputs."""

from __future__ import annotations

from torch import nn

from distillrs import ops
from distillrs.checks import check_number
from distillrs.knowledge import AnyTap, Objective, Term
from distillrs.recipes._networks import LOGITS, answering, task
from distillrs.registry import recipe


@recipe(
    id="hinton",
    source="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, NIPS workshop 2014",
    equation="w T^2 KL(softmax(t/T) || softmax(s/T)) + (1 - w) CE(s, y)",
    deviations=["The KL in place of the cross-entropy of soft targets: the gradient is the same."],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def hinton(
    student: nn.Module, teacher: nn.Module, temperature: float = 4.0, weight: float = 0.9, logits: AnyTap = LOGITS
) -> Objective:
    """The student matches the teacher's softened distribution and, a little, the labels.

    Args:
        student: The network to train.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        temperature: T of both sides.
        weight: w, from 0 to 1; with 1 no labels are needed.
        logits: Where the logits are, on both sides.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_number("weight", weight, "a number from 0 to 1", least=0, most=1)
    soft = Term(
        logits,
        divergence=ops.ForwardKL(),
        temperature=temperature,
        temperature_rule="squared",
        scale=weight,
        name="distillation",
    )
    return Objective(student, answering(teacher), [soft, *task(logits, 1 - weight)])
