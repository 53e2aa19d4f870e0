"""Losses of whole lists: the order that a teacher's scores give, under the student's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.checks import check_text
from distillrs.errors import argument_error
from distillrs.knowledge.divergences import Divergence, paired
from distillrs.knowledge.view import View


@dataclass(frozen=True, slots=True)
class ListMLE(Divergence):
    """Mean over a list's items i, the teacher's best first, of ``log sum_{j >= i} exp s_j - s_i``.

    It is the negative log-likelihood of the teacher's order under the Plackett-Luce model with the student's scores,
    by item. Items that the teacher scores alike keep their order in the list. Only the order of the teacher's scores
    counts, so any rising function of them gives the same loss. Source: Xia and others, Listwise Approach to Learning to
    Rank, ICML 2008.

    Attributes:
        mask: The batch entry ``[..., items]`` that marks the items that are there with other than 0; ``None`` if all
            are. A list without items has the loss 0.
    """

    mask: str | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:
            check_text("mask", self.mask, "None or the name of an entry of the batch")

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`.

        Raises:
            ArgumentError: A mask of another shape.
        """
        first, second = paired(student, teacher.detach(), student.ndim - 1)
        there = torch.ones_like(first, dtype=torch.bool)
        if self.mask is not None:
            there = view.inputs.tensor(self.mask) != 0
            if there.shape != first.shape:
                got = f"shape {tuple(there.shape)}"
                raise argument_error(f"batch[{self.mask!r}]", got, f"the scores' shape {tuple(first.shape)}")
        order = second.sort(dim=-1, descending=True, stable=True).indices
        # Then, in that order, what is there before what is not, whatever the teacher says of it.
        order = order.gather(-1, there.gather(-1, order).int().sort(dim=-1, descending=True, stable=True).indices)
        ranked, scores = there.gather(-1, order), first.gather(-1, order)
        if not scores.shape[-1]:
            return scores.sum(-1)
        # Far below all others instead of minus infinity, whose sums have no gradient; e^-200 of a sum is nothing of it.
        least = scores.detach().masked_fill(~ranked, torch.inf).amin(-1, keepdim=True)
        scores = torch.where(ranked, scores, torch.where(least.isfinite(), least - 200, 0.0))
        remaining = scores.flip(-1).logcumsumexp(-1).flip(-1)
        losses = torch.where(ranked, remaining - scores, 0.0)
        return losses.sum(-1) / ranked.sum(-1).clamp(min=1)
