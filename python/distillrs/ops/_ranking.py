"""List-wise distillation of a ranking."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.ops import _backends, _rust, _sparse_rust
from distillrs.ops._divergences import ForwardKL
from distillrs.ops._opaque import opaque
from distillrs.ops._row_divergence import apply
from distillrs.ops._rows import Reduction, Rows, check_logits, prepare


# What torch compiles may not hold the core's call.
@opaque
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
    backend: _backends.Backend = "auto",
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
        backend: "torch" (differentiable any number of times), "rust" (CPU; float32, bfloat16, float16; once), or
            "auto".

    Returns:
        The loss in float32 (float64 for float64 scores): a number, or ``[...]`` with "none".

    Raises:
        ArgumentError: For an argument that is not allowed, or a backend that cannot serve the others.
    """
    check_logits("student", student)
    check_logits("teacher", teacher)
    if not isinstance(labels, Tensor):
        raise argument_error("labels", type(labels).__name__, "an int64 tensor of the rows' shape")
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
    _backends.check(backend)
    if backend == "cuda":
        raise argument_error("backend", backend, "'auto', 'torch' or 'rust'")
    if backend != "torch" and _backends.takes_rust(backend, _rust.refusal(student, rows)):
        return apply(student, RankedRows(rows), _sparse_rust.ranked_rows, reduction == "none", consume=False)
    dtype = rows.compute_dtype
    flat, guide = (values.reshape(rows.count, values.shape[-1]).to(dtype) for values in (student, rows.teacher))
    scale = rows.divergence_scale.to(dtype)
    assert rows.labels is not None
    counted = scale != 0
    # Rows that do not count may hold anything, and 0 times what is no number is none.
    flat, guide = (torch.where(counted[:, None], values, 0.0) for values in (flat, guide))
    first = rows.labels.where(counted, 0)[:, None]
    # Stable, so that equal scores keep the order of their classes on every device.
    order = torch.sort(guide.scatter(-1, first, torch.inf), dim=-1, descending=True, stable=True).indices
    shares = (guide / rows.student_temperature[:, None].to(dtype)).softmax(-1).gather(-1, order)
    ranked = flat.gather(-1, order)
    remaining = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    positions = torch.where(counted[:, None], shares * (remaining - ranked), 0.0)
    losses = scale * positions.sum(-1)
    return losses.reshape(rows.shape) if reduction == "none" else losses.sum()


@dataclass(frozen=True, slots=True)
class RankedRows:
    """Rankings with everything but the student's scores.

    Attributes:
        rows: The teacher's scores and temperature, the labels, and each row's scale as that of its divergence.
    """

    rows: Rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes."""
        return self.rows.shape

    def scaled(self, factor: Tensor) -> RankedRows:
        """The same with every row's loss multiplied.

        Args:
            factor: ``[n]``.
        """
        return replace(self, rows=self.rows.scaled(factor))
