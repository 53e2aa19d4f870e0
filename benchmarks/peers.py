"""Divergences between rows of logits as most code writes them: the peers of the fused ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from distillrs import ops

BETA = 0.5
SKEW = 0.1
ALPHA = 0.5

DIVERGENCES: dict[str, ops.RowDivergence] = {
    "forward KL": ops.ForwardKL(),
    "reverse KL": ops.ReverseKL(),
    "Jensen-Shannon": ops.JensenShannon(BETA),
    "skew KL": ops.SkewKL(SKEW),
    "skew reverse KL": ops.SkewReverseKL(SKEW),
    "total variation": ops.TotalVariation(),
    "alpha 0.5": ops.Alpha(ALPHA),
    "mixture of forward and reverse KL": ops.Mixture({ops.ForwardKL(): 0.5, ops.ReverseKL(): 0.5}),
}

_kl = partial(torch.nn.functional.kl_div, reduction="none", log_target=True)


def _mixed(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """The logarithm of ``share p + (1 - share) q``."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_m = _mixed(log_p, log_q, BETA)
    return BETA * _kl(log_m, log_p) + (1 - BETA) * _kl(log_m, log_q)


def _alpha(log_p: Tensor, log_q: Tensor) -> Tensor:
    # The column's share of the 1 that is taken off is p.
    return ((ALPHA * log_p + (1 - ALPHA) * log_q).exp() - log_p.exp()) / (ALPHA * (ALPHA - 1))


_ENTRIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward KL": lambda log_p, log_q: _kl(log_q, log_p),
    "reverse KL": lambda log_p, log_q: _kl(log_p, log_q),
    "Jensen-Shannon": _jensen_shannon,
    "skew KL": lambda log_p, log_q: _kl(_mixed(log_p, log_q, SKEW), log_p),
    "skew reverse KL": lambda log_p, log_q: _kl(_mixed(log_q, log_p, SKEW), log_q),
    "total variation": lambda log_p, log_q: 0.5 * (log_p.exp() - log_q.exp()).abs(),
    "alpha 0.5": _alpha,
    "mixture of forward and reverse KL": lambda log_p, log_q: 0.5 * (_kl(log_q, log_p) + _kl(log_p, log_q)),
}


def rows(name: str, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The divergence of each row, ``[rows]``.

    Args:
        name: A key of ``DIVERGENCES``.
        student: Its logits, ``[rows, columns]``.
        teacher: As many.
        temperature: Of both.
    """
    log_q = (student.float() / temperature).log_softmax(-1)
    log_p = (teacher.float() / temperature).log_softmax(-1)
    return _ENTRIES[name](log_p, log_q).sum(-1)


def gradient(loss: Callable[..., Tensor], student: Tensor, *rest: Tensor) -> Tensor:
    """The gradient of a loss with respect to its first argument."""
    student = student.detach().requires_grad_()
    return torch.autograd.grad(loss(student, *rest), student)[0]
