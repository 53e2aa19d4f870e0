"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from distillrs.knowledge import MSE, AnyTap, AttentionMap, Chain, Objective, Pooled, Term
from distillrs.recipes._networks import LOGITS, answering, layer_taps, task
from distillrs.registry import recipe


@recipe(
    id="attention-transfer",
    source="Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017",
    equation="CE(s, y) + beta sum_j mean (Q_S^j / |Q_S^j| - Q_T^j / |Q_T^j|)^2, Q = sum_c |A_c|^p",
    deviations=[
        "The mean of the squared differences, as in the authors' code (the paper writes beta / 2 times their norm).",
        "Maps of different sizes are averaged to the smaller one.",
    ],
    optimisers={"student": {"lr": 0.1, "momentum": 0.9}},
    engine="knowledge",
)
def attention_transfer(
    student: nn.Module,
    teacher: nn.Module,
    layers: Sequence[tuple[str, str]],
    beta: float = 1000.0,
    p: float = 2.0,
    task_weight: float = 1.0,
    logits: AnyTap = LOGITS,
) -> Objective:
    """Spatial attention maps of chosen layers are brought together.

    Args:
        student: The network to train.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        layers: Pairs of paths (student's, teacher's) of modules that give maps ``[B, C, H, W]``.
        beta: Weight of the sum over layers.
        p: Power of the activations.
        task_weight: Of the cross-entropy with the labels.
        logits: Where the student's logits are.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    terms = [
        Term(first, second, Chain(Pooled(), AttentionMap(p)), MSE(), scale=beta, name=f"attention/{first}")
        for first, second in layer_taps(layers)
    ]
    return Objective(student, answering(teacher), [*terms, *task(logits, task_weight)])
