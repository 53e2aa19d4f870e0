"""The torch backend of divergences whose other side is not a matrix of logits: some rows of the student at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from distillrs.ops._rows import Rows

_ELEMENTS_AT_ONCE = 2**20


class HasRows(Protocol):
    """A divergence with everything but the student's logits."""

    @property
    def rows(self) -> Rows:
        """All but the teacher."""
        ...


T = TypeVar("T", bound=HasRows)


def in_chunks(
    some_rows: Callable[[Tensor, T, Tensor, Tensor, bool], Tensor | None],
    student: Tensor,
    problem: T,
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor, None]:
    """The loss of every row and their sum; the gradient is written to ``gradient``.

    Args:
        some_rows: ``(logits [n, columns], problem, chosen, losses [n], with_gradient)`` writes the losses of the chosen
            rows and gives their gradient, ``[chosen, vocabulary]``.
        student: ``[*shape, columns]``, detached.
        problem: The rest.
        gradient: ``[*shape, columns]`` of the student's dtype, or ``None``. It may be ``student``.
    """
    rows = problem.rows
    count = rows.count
    flat = student.reshape(count, student.shape[-1])
    losses = student.new_zeros(count, dtype=rows.compute_dtype)
    # Written apart and copied, because rows of a strided tensor may not be numbered by one stride.
    out = torch.zeros_like(flat, memory_format=torch.contiguous_format) if gradient is not None else None
    active = rows.divergence_scale.nonzero()[:, 0]
    for chosen in torch.split(active, max(1, _ELEMENTS_AT_ONCE // rows.vocabulary)):
        part = some_rows(flat, problem, chosen, losses, out is not None)
        if out is not None and part is not None:
            out[chosen, : rows.vocabulary] = part.to(out.dtype)
    if gradient is not None and out is not None:
        gradient.copy_(out.reshape(gradient.shape))
    return losses, losses.sum(), None
