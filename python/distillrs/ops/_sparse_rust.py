"""Divergences from a top-k teacher, and rankings: the Rust backend, for the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillrs import _core
from distillrs.ops import _parts
from distillrs.ops._layout import CORE_DTYPES, row_layout, vector
from distillrs.ops._rows import DivergenceStatistics, Rows
from distillrs.ops._rust import held, weight_argument

if TYPE_CHECKING:
    from distillrs.ops._ranking import RankedRows
    from distillrs.ops._sparse import SparseRows


def sparse_rows(
    student: Tensor, sparse: SparseRows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    """The loss of every row, and their sum; the gradient is written to ``gradient``.

    Args:
        student: ``[*shape, columns]``, detached, of a layout that :func:`row_layout` knows.
        sparse: The rest.
        gradient: ``[*shape, columns]`` of the student's dtype and such a layout, or ``None``. It may be ``student``.
        with_statistics: Not used: there are none.
    """
    rows, top = sparse.rows, sparse.top
    layout = row_layout(student)
    assert layout is not None
    # Names, because the core gets addresses: what is not held here would be gone.
    ids = top.ids.to(torch.int64).contiguous()
    log_probs, tail = (value.to(torch.float64).contiguous() for value in (top.log_probs, top.tail_log_mass))
    temperature, scale = rows.student_temperature.contiguous(), rows.divergence_scale.contiguous()
    parts = {part: held(weight, rows) for part, weight in _parts.parts_of(rows.divergence).items()}
    losses = torch.empty(rows.count, dtype=torch.float64)
    total = _core.sparse_row_divergence(
        CORE_DTYPES[student.dtype],
        layout,
        rows.vocabulary,
        ids.shape[-1],
        (vector(ids), vector(log_probs), vector(tail)),
        [(type(part).__name__, _parts.parameter_of(part), *weight_argument(weight)) for part, weight in parts.items()],
        vector(temperature),
        vector(scale),
        None if gradient is None else row_layout(gradient),
        vector(losses),
    )
    return losses.to(rows.compute_dtype), torch.tensor(total, dtype=rows.compute_dtype), None


def ranked_rows(
    student: Tensor, ranked: RankedRows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    """The loss of every ranking, and their sum; the gradient is written to ``gradient``.

    Args:
        student: ``[*shape, classes]``, detached, of a layout that :func:`row_layout` knows.
        ranked: The rest.
        gradient: ``[*shape, classes]`` of the student's dtype and such a layout, or ``None``. It may be ``student``.
        with_statistics: Not used: there are none.
    """
    rows: Rows = ranked.rows
    teacher = rows.teacher if row_layout(rows.teacher) is not None else rows.teacher.contiguous()
    layouts = row_layout(student), row_layout(teacher)
    assert layouts[0] is not None
    assert layouts[1] is not None
    assert rows.labels is not None
    labels = rows.labels.contiguous()
    temperature, scale = rows.student_temperature.contiguous(), rows.divergence_scale.contiguous()
    losses = torch.empty(rows.count, dtype=torch.float64)
    total = _core.plackett_luce(
        (CORE_DTYPES[student.dtype], CORE_DTYPES[teacher.dtype]),
        layouts[0],
        layouts[1],
        vector(temperature),
        vector(scale),
        vector(labels),
        None if gradient is None else row_layout(gradient),
        vector(losses),
    )
    return losses.to(rows.compute_dtype), torch.tensor(total, dtype=rows.compute_dtype), None
