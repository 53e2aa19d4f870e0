"""The Rust backend, for the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs import _core
from distillrs.ops import _parts
from distillrs.ops._layout import CORE_DTYPES, row_layout, vector
from distillrs.ops._rows import DivergenceStatistics, Rows, side_statistics


def refusal(student: Tensor, rows: Rows) -> tuple[str, str] | None:
    """Why this backend cannot serve a call, and what it could; ``None`` if it can."""
    if student.device.type != "cpu":
        return f"tensors on {student.device}", "tensors on the CPU"
    for tensor in (student, rows.teacher):
        if tensor.dtype not in CORE_DTYPES:
            return f"{tensor.dtype}", "float32, bfloat16 or float16"
    return _parts.refusal(rows.divergence)


def divergence_rows(
    student: Tensor, rows: Rows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    """The loss of every row, and their sum; the gradient is written to ``gradient``.

    Args:
        student: ``[*shape, columns]``, detached, of a layout that :func:`row_layout` knows.
        rows: The rest.
        gradient: ``[*shape, columns]`` of the student's dtype and such a layout, or ``None``. It may be ``student``.
        with_statistics: Whether to give statistics too.
    """
    teacher = rows.teacher
    teacher_layout = row_layout(teacher)
    if teacher_layout is None:
        teacher = teacher.contiguous()
        teacher_layout = row_layout(teacher)
    student_layout = row_layout(student)
    assert student_layout is not None
    assert teacher_layout is not None
    losses, divergences = torch.empty(2, rows.count, dtype=torch.float64)
    labels = rows.labels.contiguous() if rows.labels is not None else None
    # Names, because the core gets addresses: what is not held here would be gone.
    temperatures = (rows.student_temperature.contiguous(), rows.teacher_temperature.contiguous())
    scales = (rows.divergence_scale.contiguous(), rows.label_scale.contiguous())
    parts = {part: held(weight, rows) for part, weight in _parts.parts_of(rows.divergence).items()}
    # Before the call, which may overwrite the logits.
    sides = side_statistics(row_summary, student, teacher, rows) if with_statistics else None
    total = _core.row_divergence(
        (CORE_DTYPES[student.dtype], CORE_DTYPES[teacher.dtype]),
        student_layout,
        teacher_layout,
        rows.vocabulary,
        [(type(part).__name__, _parts.parameter_of(part), *weight_argument(weight)) for part, weight in parts.items()],
        (vector(temperatures[0]), vector(temperatures[1])),
        (vector(scales[0]), vector(scales[1])),
        None if labels is None else vector(labels),
        None if gradient is None else row_layout(gradient),
        vector(losses),
        vector(divergences),
    )
    dtype = rows.compute_dtype
    statistics = DivergenceStatistics(divergences.to(dtype), *sides) if sides is not None else None
    return losses.to(dtype), torch.tensor(total, dtype=dtype), statistics


def row_summary(
    logits: Tensor, vocabulary: int, temperature: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp and entropy (float64 ``[n]``), arg max (int64 ``[n]``) and the ids of the largest (``[n, top_k]``).

    Args:
        logits: ``[*shape, columns]`` of a layout that :func:`row_layout` knows.
        vocabulary: Columns that count.
        temperature: float64 ``[n]``.
        top_k: How many of the largest.
    """
    layout = row_layout(logits)
    assert layout is not None
    count = len(temperature)
    temperature = temperature.contiguous()
    logsumexp, entropy = torch.empty(2, count, dtype=torch.float64)
    argmax = torch.empty(count, dtype=torch.int64)
    top = torch.empty(count, top_k, dtype=torch.int64)
    _core.row_statistics(
        CORE_DTYPES[logits.dtype],
        layout,
        vocabulary,
        vector(temperature),
        vector(logsumexp),
        vector(entropy),
        vector(argmax),
        top_k,
        vector(top),
    )
    return logsumexp, entropy, argmax, top


def held(weight: float | Tensor, rows: Rows) -> float | Tensor:
    return _parts.row_weights(weight, rows.shape, "cpu").contiguous() if isinstance(weight, Tensor) else weight


def weight_argument(weight: float | Tensor) -> tuple[float, tuple[int, int] | None]:
    return (0.0, vector(weight)) if isinstance(weight, Tensor) else (weight, None)
