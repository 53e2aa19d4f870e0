"""Contrastive representation distillation."""

from __future__ import annotations

from torch import Tensor, nn

from distillrs.checks import check_whole
from distillrs.knowledge import AnyTap, NoiseContrast, Objective, Term, Through
from distillrs.recipes._networks import LOGITS, answering, check_widths, embedding, task
from distillrs.registry import recipe


@recipe(
    id="contrastive-kd",
    source="Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020",
    equation="CE(s, y) + beta (NCE(s_i; M_T) + NCE(t_i; M_S)): i against K others in memories of both",
    deviations=["Negatives of other classes are drawn exactly evenly, by the example's id and the step."],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}, "objective": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def contrastive_kd(
    student: nn.Module,
    teacher: nn.Module,
    features: AnyTap,
    student_width: int,
    teacher_width: int,
    examples: int,
    teacher_features: AnyTap | None = None,
    labels: Tensor | None = None,
    beta: float = 0.8,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
    width: int = 128,
    task_weight: float = 1.0,
    logits: AnyTap = LOGITS,
    seed: int = 0,
) -> Objective:
    """The student's embedding of an example singles out the teacher's, and the other way round.

    Batches have ids: ``(inputs, labels, ids)``, or an entry "ids".

    Args:
        student: The network to train.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        features: The student's embedding, usually what goes into its classifier.
        student_width: Its number of features, flattened.
        teacher_width: The teacher's.
        examples: Size of the training set.
        teacher_features: The teacher's embedding; ``None`` for the same tap.
        labels: int64 ``[examples]`` by id: negatives are of other classes; ``None`` takes all others.
        beta: Weight of the contrast.
        negatives: K.
        temperature: Of the scores.
        momentum: Of the memories.
        width: Features after the two linear embedding heads, which are trained and discarded.
        task_weight: Of the cross-entropy with the labels.
        logits: Where the student's logits are.
        seed: Of the heads' and memories' first values.

    Returns:
        The objective; its groups are "student" and "objective" (the heads).

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_widths(student_width=student_width, teacher_width=teacher_width, width=width)
    check_whole("examples", examples, "an integer from 2", least=2, most=2**40)
    contrast = NoiseContrast(
        examples, width, negatives=negatives, temperature=temperature, momentum=momentum, labels=labels, seed=seed
    )
    heads = [
        embedding(size, width, f"{side} head", seed)
        for side, size in (("student", student_width), ("teacher", teacher_width))
    ]
    term = Term(features, teacher_features, Through(*heads), contrast, scale=beta, name="contrast")
    return Objective(student, answering(teacher), [term, *task(logits, task_weight)])
