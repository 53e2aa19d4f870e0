"""Divergences of which only draws are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distillrs.ops._chunks import in_chunks
from distillrs.ops._divergences import Mixture, RowDivergence
from distillrs.ops._estimates import Drawer, estimate
from distillrs.ops._row_divergence import refuse_second_derivative
from distillrs.ops._rows import DivergenceStatistics, Rows


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Draws of a teacher, beside everything but the student's logits.

    Attributes:
        rows: All but the teacher.
        ids: int64 ``[n, draws]``.
        log_p: ``[n, draws]``: the teacher's log-probabilities.
        drawn: ``[n, draws]``: those of the distribution that drew.
        drawer: Which that is.
    """

    rows: Rows
    ids: Tensor
    log_p: Tensor
    drawn: Tensor
    drawer: Drawer

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes."""
        return self.rows.shape

    def scaled(self, factor: Tensor) -> DrawnRows:
        """The same with every row's loss multiplied.

        Args:
            factor: ``[n]``.
        """
        return replace(self, rows=self.rows.scaled(factor))


def drawn_rows(
    student: Tensor, problem: DrawnRows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    """The estimate of every row, and their sum; the gradient is written to ``gradient``.

    Args:
        student: ``[*shape, columns]``, detached.
        problem: The rest.
        gradient: ``[*shape, columns]`` of the student's dtype, or ``None``. It may be ``student``.
        with_statistics: Not used: there are none.
    """
    return in_chunks(_some_rows, student, problem, gradient)


def known_rows(log_q: Tensor, log_p: Tensor, drawn: Tensor | None, drawer: Drawer, rows: Rows) -> tuple[Tensor, Tensor]:
    """Losses of rows whose events are known on both sides, and their derivative with respect to the student's.

    Args:
        log_q: ``[n, events]``: the student's.
        log_p: ``[n, events]``: the teacher's.
        drawn: ``[n, events]``: those of the distribution that drew; ``None`` where the events are all there are.
        drawer: Which that is.
        rows: The rest.

    Returns:
        ``[n]`` and ``[n, events]`` in the precision of numbers per row.
    """
    wide = rows.divergence_scale.dtype
    losses, slopes = log_q.new_zeros(rows.count, dtype=wide), log_q.new_zeros(log_q.shape, dtype=wide)
    # Rows that do not count may hold anything.
    active = rows.divergence_scale.nonzero()[:, 0]
    divergence = _of_rows(rows.divergence, active)
    p, q = log_p[active].to(wide), log_q[active].to(wide)
    if drawn is None:
        absent = (p == -torch.inf) & (q == -torch.inf)
        value = divergence.value(p, q).masked_fill(absent, 0).sum(-1)
        slope = divergence.derivative(p, q).masked_fill(absent, 0)
    else:
        value, slope = estimate(divergence, p, q, drawn[active].to(wide), drawer)
    scale = rows.divergence_scale[active]
    losses[active], slopes[active] = scale * value, scale[:, None] * slope
    return losses, slopes


class KnownSlopes(torch.autograd.Function):
    """Losses whose derivative with respect to log-probabilities ``[*shape, events]`` is known."""

    @staticmethod
    def forward(ctx: Any, log_q: Tensor, losses: Tensor, slopes: Tensor) -> Tensor:
        """``losses``, shaped as the rows."""
        ctx.save_for_backward(slopes)
        ctx.like = (log_q.shape, log_q.dtype)
        return losses.reshape(log_q.shape[:-1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """Of the log-probabilities."""
        (slopes,) = ctx.saved_tensors
        shape, dtype = ctx.like
        with torch.no_grad():
            factor = upstream.reshape(-1, 1).to(slopes.dtype)
            # A row that was skipped stays so, even under an upstream gradient that is not finite.
            gradient = torch.where(slopes == 0, 0.0, slopes * factor).reshape(shape).to(dtype)
        return (refuse_second_derivative(gradient) if torch.is_grad_enabled() else gradient), None, None


def _some_rows(flat: Tensor, problem: DrawnRows, chosen: Tensor, losses: Tensor, with_gradient: bool) -> Tensor | None:
    rows = problem.rows
    dtype, wide = rows.compute_dtype, rows.divergence_scale.dtype
    temperature = rows.student_temperature[chosen, None].to(dtype)
    logits = flat[chosen, : rows.vocabulary].to(dtype)
    log_q = ((logits - logits.amax(-1, keepdim=True)) / temperature).log_softmax(-1)
    ids = problem.ids[chosen]
    value, slope = estimate(
        _of_rows(rows.divergence, chosen),
        problem.log_p[chosen].to(wide),
        log_q.gather(-1, ids).to(wide),
        problem.drawn[chosen].to(wide),
        problem.drawer,
    )
    scale = rows.divergence_scale[chosen]
    losses[chosen] = (scale * value).to(dtype)
    if not with_gradient:
        return None
    slope = (scale[:, None] * slope).to(dtype)
    full = (-log_q.exp() * slope.sum(-1, keepdim=True)).scatter_add(-1, ids, slope)
    return full / temperature


def _of_rows(divergence: RowDivergence, chosen: Tensor) -> RowDivergence:
    return divergence.of_rows(chosen) if isinstance(divergence, Mixture) else divergence
