"""List-wise distillation of a ranking."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.ops._divergences import ForwardKL
from distillrs.ops._rows import Reduction, check_logits, prepare


def plackett_luce(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    normaliser: float | Tensor | Literal["rows", "weights"] | None = None,
) -> Tensor:
    """The weighted Plackett-Luce loss of the ranking that a teacher and a label give.

    The label comes first and the other classes follow by falling teacher score, equal ones by index. With pi this
    order and a_k the teacher's probability of pi_k, the loss of a row is ``sum_k a_k (log sum_{l >= k} exp s_{pi_l} -
    s_{pi_k})``: the negative log-likelihood of drawing the ranking without replacement, position by position, each
    weighted by how sure the teacher is. The last position adds 0. Nothing is differentiated but the student. Source:
    PLD: A Choice-Theoretic List-Wise Knowledge Distillation (2025).

    Args:
        student: ``[..., classes]``: scores.
        teacher: ``[..., classes]``: scores of the same shape; no gradient goes there.
        labels: int64 ``[...]``.
        temperature: Divides the teacher's scores in the weights.
        weight: A number for each row, ``[...]``.
        ignore_index: The label of rows to skip.
        reduction: "mean", "sum" or "none".
        normaliser: What "mean" divides by: the rows that are not ignored ("rows" or ``None``), the sum of their weights
            ("weights"), or a number.

    Returns:
        The loss in float32 (float64 for float64 scores): a number, or ``[...]`` with "none"; differentiable any number
        of times.

    Raises:
        ArgumentError: For an argument that is not allowed.
    """
    check_logits("student", student)
    check_logits("teacher", teacher)
    if student.shape != teacher.shape:
        raise argument_error("teacher", tuple(teacher.shape), f"the student's shape, {tuple(student.shape)}")
    rows = prepare(
        student.detach(),
        teacher,
        ForwardKL(),
        temperature=temperature,
        teacher_temperature=None,
        temperature_rule="none",
        weight=weight,
        labels=labels,
        label_weight=0.0,
        ignore_index=ignore_index,
        vocabulary=None,
        reduction=reduction,
        normaliser=normaliser,
    )
    dtype = rows.compute_dtype
    flat, guide = (values.reshape(rows.count, values.shape[-1]).to(dtype) for values in (student, rows.teacher))
    scale = rows.divergence_scale.to(dtype)
    assert rows.labels is not None
    counted = scale != 0
    first = rows.labels.where(counted, 0)[:, None]
    # Stable, so that equal scores keep the order of their classes on every device.
    order = torch.sort(guide.scatter(-1, first, torch.inf), dim=-1, descending=True, stable=True).indices
    shares = (guide / rows.student_temperature[:, None].to(dtype)).softmax(-1).gather(-1, order)
    ranked = flat.gather(-1, order)
    remaining = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    positions = torch.where(counted[:, None], shares * (remaining - ranked), 0.0)
    losses = scale * positions.sum(-1)
    return losses.reshape(rows.shape) if reduction == "none" else losses.sum()
