"""Divergences of dense rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda import _parts, _statistics
from distillrs.ops._cuda._launcher import TYPES, active, layout_arguments
from distillrs.ops._layout import row_layout
from distillrs.ops._rows import DivergenceStatistics, Rows, side_statistics


def refusal(student: Tensor, rows: Rows) -> tuple[str, str] | None:
    """Why this backend cannot serve a call, and what it could; ``None`` if it can."""
    if student.device.type != active().device_type:
        return f"tensors on {student.device}", "tensors on a CUDA device"
    for tensor in (student, rows.teacher):
        if tensor.dtype not in TYPES:
            return f"{tensor.dtype}", "float32, bfloat16 or float16"
    return _parts.refusal(rows.divergence)


def prepare(student: Tensor, rows: Rows) -> None:
    """Compiles what a call needs.

    Raises:
        ArgumentError: The backend is not there.
        KernelCompileError: The compiler refuses a source.
    """
    active().module("row_divergence", _types(student, rows), student.device)


def divergence_rows(
    student: Tensor, rows: Rows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    """The loss of every row, and their sum; the gradient is written to ``gradient``.

    Args:
        student: ``[*shape, columns]``, detached, of a layout that ``row_layout`` knows.
        rows: The rest.
        gradient: ``[*shape, columns]`` of the student's dtype and such a layout, or ``None``. It may be ``student``.
        with_statistics: Whether to give statistics too.
    """
    teacher = rows.teacher if row_layout(rows.teacher) is not None else rows.teacher.contiguous()
    device, columns = student.device, student.shape[-1]
    losses, divergences = torch.empty(2, rows.count, dtype=torch.float64, device=device)
    # Before the launch, which may overwrite the logits.
    sides = side_statistics(_statistics.row_summary, student, teacher, rows) if with_statistics else None
    arguments = {
        **layout_arguments("student", student, row_layout(student)),
        **layout_arguments("teacher", teacher, row_layout(teacher)),
        **layout_arguments("gradient", gradient, None if gradient is None else row_layout(gradient)),
        "rows": np.int64(rows.count),
        "columns": np.uint32(columns),
        "vocabulary": np.uint32(rows.vocabulary),
        "student_temperature": rows.student_temperature.contiguous(),
        "teacher_temperature": rows.teacher_temperature.contiguous(),
        "divergence_scale": rows.divergence_scale.contiguous(),
        "label_scale": rows.label_scale.contiguous(),
        "labels": None if rows.labels is None else rows.labels.contiguous(),
        **_parts.part_arguments(rows.divergence, rows.shape, device),
        "losses": losses,
        "divergences": divergences,
    }
    active().launch_rows("row_divergence", _types(student, rows), device, rows.count, columns, arguments)
    dtype = rows.compute_dtype
    statistics = DivergenceStatistics(divergences.to(dtype), *sides) if sides is not None else None
    return losses.to(dtype), losses.sum().to(dtype), statistics


def _types(student: Tensor, rows: Rows) -> dict[str, torch.dtype]:
    return {"STUDENT": student.dtype, "TEACHER": rows.teacher.dtype}
