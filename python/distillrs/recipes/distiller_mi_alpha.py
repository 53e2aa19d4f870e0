"""Distiller: intermediate layers by a bound on their mutual information, beside the outputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from distillrs import ops
from distillrs.checks import check_number
from distillrs.knowledge import AnyTap, MutualInformation, Objective, Term, Through
from distillrs.recipes._networks import LOGITS, answering, check_widths, embedding, layer_taps, task
from distillrs.registry import recipe


@recipe(
    id="distiller-mi-alpha",
    source="He, Shi, Mueller, Zha, Li, Karypis: Distiller: A Systematic Study of Model Distillation Methods, 2021",
    equation="w T^2 KL(p_T || p_S) - beta sum_j I_alpha(h_S^j; h_T^j) + CE(s, y), I_alpha = 1 + E log r - E_product r",
    deviations=[
        "Both expectations leave one row of the batch out, so that I_alpha is a bound for a finite batch too.",
        "The KL in place of the cross-entropy of soft targets: the gradient is the same.",
        "alpha, the width of the critic and the weights are starting points of this library: the paper searches them.",
        "The regressor from a task to a configuration is left out; knowledge.Evolution searches configurations.",
    ],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}, "objective": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def distiller_mi_alpha(
    student: nn.Module,
    teacher: nn.Module,
    layers: Sequence[tuple[AnyTap, AnyTap]],
    student_width: int,
    teacher_width: int,
    alpha: float = 0.9,
    beta: float = 1.0,
    width: int = 64,
    temperature: float = 4.0,
    weight: float = 1.0,
    task_weight: float = 1.0,
    logits: AnyTap = LOGITS,
    key: str = "ids",
    seed: int = 0,
) -> Objective:
    """What the student's layers say of the teacher's is made to grow, by a bound between low bias and low variance.

    The critic of a pair of layers is the inner product of two linear embeddings; see
    :class:`distillrs.knowledge.MutualInformation`. Rows of a batch are its samples: of sequences tap a summary of each,
    not every token. With an entry of ids in the batch an example that comes twice is not its own negative.

    Args:
        student: The network to train.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        layers: Pairs (student's tap, teacher's tap) of features ``[B, ...]``, flattened by the embeddings.
        student_width: Features of each of the student's layers, flattened.
        teacher_width: Of the teacher's.
        alpha: From 0 (low bias) to 1 (low variance, at most the logarithm of the batch less one).
        beta: Weight of the bounds.
        width: Features after the embeddings, which are trained and discarded.
        temperature: T of the outputs.
        weight: w of the outputs' distillation; 0 leaves it out.
        task_weight: Of the cross-entropy with the labels; 0 leaves it out.
        logits: Where the logits are, on both sides.
        key: The batch entry that tells examples apart.
        seed: Of the embeddings' first values.

    Returns:
        The objective; its groups are "student" and "objective" (embeddings and baselines).

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_widths(student_width=student_width, teacher_width=teacher_width, width=width)
    check_number("weight", weight, "a finite number")
    terms = []
    for number, (first, second) in enumerate(layer_taps(layers)):
        heads = [
            embedding(size, width, f"critic {number}/{side}", seed)
            for side, size in (("student", student_width), ("teacher", teacher_width))
        ]
        bound = MutualInformation(width, alpha, key=key)
        terms.append(Term(first, second, Through(*heads), bound, scale=beta, name=f"information/{number}"))
    if weight:
        soft = Term(
            logits,
            divergence=ops.ForwardKL(),
            temperature=temperature,
            temperature_rule="squared",
            scale=weight,
            name="distillation",
        )
        terms.append(soft)
    return Objective(student, answering(teacher), [*terms, *task(logits, task_weight)], ids=key)
