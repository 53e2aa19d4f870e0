"""Relational knowledge distillation: distances and angles between examples."""

from __future__ import annotations

from torch import nn

from distillrs.knowledge import AnyTap, Objective, PairDistances, SmoothL1, Term, TripletAngles
from distillrs.recipes._networks import LOGITS, answering, task
from distillrs.registry import recipe


@recipe(
    id="relational-kd",
    source="Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019",
    equation="l_D huber(d_S - d_T) + l_A huber(cos_S - cos_T) + CE(s, y), d: pairs, over their mean; cos: triplets",
    deviations=["Relations are those within one micro-batch."],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def relational_kd(
    student: nn.Module,
    teacher: nn.Module,
    features: AnyTap,
    teacher_features: AnyTap | None = None,
    distance: float = 25.0,
    angle: float = 50.0,
    task_weight: float = 1.0,
    logits: AnyTap = LOGITS,
) -> Objective:
    """The examples of a batch stand to each other as they do for the teacher; widths may differ.

    Args:
        student: The network to train.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        features: The student's embedding ``[B, ...]``, usually what goes into its classifier.
        teacher_features: The teacher's; ``None`` for the same tap.
        distance: Weight of the distances; 0 leaves them out.
        angle: Weight of the angles; 0 leaves them out. They take memory of B^3.
        task_weight: Of the cross-entropy with the labels.
        logits: Where the student's logits are.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    terms = [
        Term(features, teacher_features, PairDistances(), SmoothL1(), scale=distance, name="distance"),
        Term(features, teacher_features, TripletAngles(), SmoothL1(), scale=angle, name="angle"),
    ]
    return Objective(student, answering(teacher), [*terms, *task(logits, task_weight)])
