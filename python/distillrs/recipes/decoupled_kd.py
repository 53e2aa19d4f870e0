"""Decoupled knowledge distillation: the label's probability and the rest, weighed apart."""

from __future__ import annotations

from torch import nn

from distillrs.checks import check_whole
from distillrs.knowledge import AnyTap, DecoupledKL, Objective, Term
from distillrs.recipes._networks import LOGITS, answering, task
from distillrs.registry import recipe
from distillrs.schedule import Constant, Ramp, WarmUp


@recipe(
    id="decoupled-kd",
    source="Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022",
    equation="CE(s, y) + T^2 (alpha KL(b_T || b_S) + beta KL(p^_T || p^_S)), b = (p_y, 1 - p_y), p^ among the others",
    deviations=["The warm-up grows with the step, from 0, and not once an epoch."],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def decoupled_kd(
    student: nn.Module,
    teacher: nn.Module,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    warmup_steps: int = 0,
    task_weight: float = 1.0,
    logits: AnyTap = LOGITS,
) -> Objective:
    """What the teacher knows beside the label no longer fades where it is sure of the label.

    Args:
        student: The network to train.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        alpha: Weight of the binary part.
        beta: Weight of the part among the other classes; the paper chooses it by data set, from 0.1 to 8.
        temperature: T of both sides.
        warmup_steps: Steps over which the distillation grows to its weight; the paper's 20 epochs for CIFAR-100.
        task_weight: Of the cross-entropy with the labels.
        logits: Where the logits are, on both sides.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_whole("warmup_steps", warmup_steps, "a number of steps from 0", least=0)
    scale: Ramp = WarmUp(Constant(1.0), warmup_steps) if warmup_steps else Constant(1.0)
    decoupled = Term(
        logits,
        divergence=DecoupledKL(alpha, beta),
        temperature=temperature,
        temperature_rule="squared",
        scale=scale,
        name="distillation",
    )
    return Objective(student, answering(teacher), [decoupled, *task(logits, task_weight)])
