"""DisWOT: students are scored beside a teacher without training either."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from distillrs.errors import argument_error
from distillrs.frozen import evaluating
from distillrs.knowledge import MSE, AnyTap, ClassGradients, Entry, Gram, Objective, Tap, Term
from distillrs.knowledge.taps import as_taps
from distillrs.recipes._networks import LOGITS, answering, task
from distillrs.registry import recipe


@recipe(
    id="diswot",
    source="Dong, Li, Wei: DisWOT: Student Architecture Search for Distillation WithOut Training, CVPR 2023",
    equation="score = -|G_t - G_s|^2 / B^2 - |C_t - C_s|^2 / K^2, G: rows of F F^T, C: of A A^T, A = dCE/dW, length 1",
    deviations=[
        "A A^T relates classes, not the channels of one class: those have rank one, and need equal widths.",
        "The gradient of the classifier is formed from its input and its errors, not by a backward pass.",
        "Both terms are always added; the authors' scripts use one of them in places.",
    ],
    engine="knowledge",
)
def diswot(
    student: nn.Module,
    teacher: nn.Module,
    features: AnyTap,
    classifier: str,
    teacher_features: AnyTap | None = None,
    teacher_classifier: str | None = None,
    relation: float = 1.0,
    semantic: float = 1.0,
    task_weight: float = 0.0,
    logits: AnyTap = LOGITS,
    labels: str = "labels",
) -> Objective:
    """How a batch's examples, and its classes, stand to each other in the student and in the teacher.

    Its value for networks that were never trained is minus the score of :func:`diswot_score`; for trained ones it is a
    loss of distillation, best beside a task. Widths may differ.

    Args:
        student: The network to train or to score.
        teacher: The other one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`. For scores it is as
            random as the student.
        features: The student's features ``[B, ...]`` before they are pooled.
        classifier: Path of its last, linear layer.
        teacher_features: The teacher's; ``None`` for the same tap.
        teacher_classifier: The teacher's; ``None`` for the same path.
        relation: Weight of the examples' relations; 0 leaves them out.
        semantic: Weight of the classes' relations; 0 leaves them out.
        task_weight: Of the cross-entropy with the labels.
        logits: Where the logits are, on both sides.
        labels: The batch entry of the labels.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    taps = [
        (*as_taps("logits", logits), Tap(path, "input"), Entry(labels))
        for path in (classifier, classifier if teacher_classifier is None else teacher_classifier)
    ]
    terms = [
        Term(features, teacher_features, Gram("examples", "rows"), MSE(), scale=relation, name="relation"),
        Term(taps[0], taps[1], ClassGradients(), MSE(), scale=semantic, name="semantic"),
    ]
    return Objective(student, answering(teacher), [*terms, *task(logits, task_weight)], labels=labels)


@torch.no_grad()
def diswot_score(student: nn.Module, teacher: nn.Module, batch: Any, **options: Any) -> float:
    """How well a student fits a teacher before either is trained; more is better.

    It costs a forward pass of both, in evaluation mode: dropout draws nothing, and the statistics of normalisations
    neither move nor are those of the batch for one of them alone. The weights that were drawn move it a lot: the mean
    over a few pairs of networks ranks better than one. With :class:`distillrs.knowledge.Evolution` it searches a space
    of students::

        def score(candidate):
            return recipes.diswot_score(build(candidate), teacher, batch, features="body", classifier="head")

        best = knowledge.Evolution(draw, mutate, score, cost=parameters, budget=50_000).run(500)

    Args:
        student: A network with random weights; it stays as it is, its mode too.
        teacher: Another.
        batch: As for :func:`diswot`, with labels.
        **options: Of :func:`diswot`.

    Returns:
        From about -8 to 0.

    Raises:
        ArgumentError: As of :func:`diswot`, or a score that is not finite.
    """
    if not isinstance(student, nn.Module):
        raise argument_error("student", type(student).__name__, "a module")
    with evaluating(student):
        score = -float(diswot(student, teacher, **options)(batch).total)
    if not math.isfinite(score):
        raise argument_error("student", f"a score of {score}", "a network whose features and logits are finite")
    return score
