"""Divergences of dense rows from a top-k teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda import _parts
from distillrs.ops._cuda._launcher import TYPES, active, layout_arguments
from distillrs.ops._layout import row_layout
from distillrs.ops._rows import DivergenceStatistics

if TYPE_CHECKING:
    from distillrs.ops._sparse import SparseRows

# One bit for each column, in what every block can have of dynamic shared memory beside the kernel's own.
MAX_VOCABULARY = 8 * (40 << 10)


def refusal(student: Tensor, sparse: SparseRows) -> tuple[str, str] | None:
    """Why this backend cannot serve a call, and what it could; ``None`` if it can."""
    if student.device.type != active().device_type:
        return f"tensors on {student.device}", "tensors on a CUDA device"
    if student.dtype not in TYPES:
        return f"{student.dtype}", "float32, bfloat16 or float16"
    if sparse.rows.vocabulary > MAX_VOCABULARY:
        return f"{sparse.rows.vocabulary} columns", f"at most {MAX_VOCABULARY} columns"
    return _parts.refusal(sparse.rows.divergence)


def prepare(student: Tensor) -> None:
    """Compiles what a call needs.

    Raises:
        ArgumentError: The backend is not there.
        KernelCompileError: The compiler refuses a source.
    """
    active().module("sparse_divergence", {"STUDENT": student.dtype}, student.device)


def sparse_rows(
    student: Tensor, sparse: SparseRows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    """The loss of every row, and their sum; the gradient is written to ``gradient``.

    Args:
        student: ``[*shape, columns]``, detached, of a layout that ``row_layout`` knows.
        sparse: The rest.
        gradient: ``[*shape, columns]`` of the student's dtype and such a layout, or ``None``. It may be ``student``.
        with_statistics: Not used: there are none.
    """
    rows, top = sparse.rows, sparse.top
    device, k = student.device, top.ids.shape[-1]
    losses = torch.empty(rows.count, dtype=torch.float64, device=device)
    words = -(-rows.vocabulary // 32)
    columns = student.shape[-1]
    arguments = {
        **layout_arguments("student", student, row_layout(student)),
        **layout_arguments("gradient", gradient, None if gradient is None else row_layout(gradient)),
        "rows": np.int64(rows.count),
        "columns": np.uint32(columns),
        "vocabulary": np.uint32(rows.vocabulary),
        "k": np.uint32(k),
        "words": np.uint32(words),
        "ids": top.ids.reshape(rows.count, k).to(torch.int64).contiguous(),
        "log_probs": top.log_probs.reshape(rows.count, k).to(torch.float32).contiguous(),
        "tail_log_mass": top.tail_log_mass.reshape(rows.count).to(torch.float32).contiguous(),
        "temperatures": rows.student_temperature.contiguous(),
        "scales": rows.divergence_scale.contiguous(),
        **_parts.part_arguments(rows.divergence, rows.shape, device),
        "losses": losses,
    }
    types = {"STUDENT": student.dtype}
    active().launch_rows("sparse_divergence", types, device, rows.count, columns, arguments, 4 * words)
    return losses.to(rows.compute_dtype), losses.sum().to(rows.compute_dtype), None
