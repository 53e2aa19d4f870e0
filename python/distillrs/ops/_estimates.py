"""Unbiased estimates of a divergence and of its gradient from draws.

With ``D = sum_v d(log p_v, log q_v)`` and entries drawn from m, ``d / m`` has the expectation D. With ``h`` the
derivative of d by ``log q``, the expectation of ``(h / m) grad log q`` is the gradient of D, also where q itself drew:
the density of the draws is held fixed. What m cannot give is missed. Every divergence here is ``sum p f(q / p)`` with a
convex f of ``f(1) = 0``, for which D is ``sum_{p > 0} p f(q / p) + f'(inf) Q(p = 0)``, and alike with ``f(0) P(q =
0)`` (Liese and Vajda, On Divergences and Informations in Statistics and Information Theory, IEEE Transactions on
Information Theory, 2006). So

- draws of p give ``f'(inf) + (d - f'(inf) q) / p``, if ``f'(inf)``, the price of what only the student does, is finite;
- draws of q give ``f(0) + (d - f(0) p) / q``, if ``f(0)``, the price of what only the teacher does, is finite;
- draws of another distribution give ``d / m``, if it can give whatever either of the two can.

For draws of q the slope is ``h / q - f'(1)``: the constant changes no expectation, as probabilities add up to 1 (the
baseline of Williams, Simple Statistical Gradient-Following Algorithms, 1992), and it makes the slope 0 where p = q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.ops._divergences import (
    Alpha,
    ForwardKL,
    JensenShannon,
    Mixture,
    ReverseKL,
    RowDivergence,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

Drawer: TypeAlias = Literal["teacher", "student", "other"]

_KNOWN = (ForwardKL, ReverseKL, JensenShannon, SkewKL, SkewReverseKL, TotalVariation, Alpha)


@dataclass(frozen=True, slots=True)
class Generator:
    """What the ends of f say.

    Attributes:
        at_zero: ``f(0)``.
        slope_at_infinity: ``f'(inf)``.
        slope_at_one: ``f'(1)``.
    """

    at_zero: float
    slope_at_infinity: float
    slope_at_one: float


def generator(divergence: RowDivergence) -> Generator | None:
    """The ends of a divergence's f; ``None`` for one of a user's own."""
    # A subclass may have changed the formulas.
    if type(divergence) not in _KNOWN:
        return None
    match divergence:
        case ForwardKL() | SkewKL(alpha=0):
            return Generator(math.inf, 0.0, -1.0)
        case ReverseKL() | SkewReverseKL(alpha=0):
            return Generator(0.0, math.inf, 1.0)
        case JensenShannon(beta):
            return Generator(-beta * math.log(beta), -(1 - beta) * math.log1p(-beta), 0.0)
        case SkewKL(alpha):
            return Generator(-math.log(alpha), 0.0, alpha - 1)
        case SkewReverseKL(alpha):
            return Generator(0.0, -math.log(alpha), 1 - alpha)
        case Alpha(a):
            return Generator(1 / (1 - a) if a < 1 else math.inf, 1 / a if a > 0 else math.inf, 0.0)
    return Generator(0.5, 0.5, 0.0)


def check_drawn(divergence: RowDivergence, drawer: Drawer) -> None:
    """Raises unless draws of that side give the divergence.

    Raises:
        ArgumentError: They do not; the message says which would.
    """
    if drawer == "other":
        return
    for part, weight in parts_of(divergence).items():
        if not isinstance(weight, Tensor) and weight == 0:
            continue
        ends = generator(part)
        if ends is None:
            got = f"{type(part).__name__} with draws of the {drawer}"
            raise argument_error(
                "divergence", got, "one of distillrs.ops, or draws with drawn=, of another distribution"
            )
        if math.isinf(_price(ends, drawer)):
            other = "student" if drawer == "teacher" else "teacher"
            known = "JensenShannon, TotalVariation, " + ("ForwardKL" if drawer == "teacher" else "ReverseKL")
            got = f"{part} with draws of the {drawer}, which do not show where the {other} alone has mass"
            raise argument_error("divergence", got, f"one that is finite there ({known}, ...), or draws of the {other}")


def estimate(
    divergence: RowDivergence, log_p: Tensor, log_q: Tensor, drawn: Tensor, drawer: Drawer
) -> tuple[Tensor, Tensor]:
    """Means over the draws.

    Args:
        divergence: One that :func:`check_drawn` takes; of these rows.
        log_p: ``[rows, draws]``: the teacher's log-probabilities.
        log_q: ``[rows, draws]``: the student's.
        drawn: ``[rows, draws]``: those of the distribution that drew.
        drawer: Which that is.

    Returns:
        ``[rows]``: the divergence; ``[rows, draws]``: its derivative with respect to ``log_q``, draws' density fixed.
    """
    draws = log_p.shape[-1]
    absent = (log_p == -torch.inf) & (log_q == -torch.inf)
    value = divergence.value(log_p, log_q).masked_fill(absent, 0)
    slope = divergence.derivative(log_p, log_q).masked_fill(absent, 0)
    importance = (-drawn).exp()
    if drawer == "other":
        return (value * importance).mean(-1), slope * importance / draws
    price = _of_rows(divergence, lambda ends: _price(ends, drawer), log_p)
    if drawer == "teacher":
        mass = price * log_q.exp()
        return ((value - mass) * importance).mean(-1) + price[:, 0], (slope - mass) * importance / draws
    found = ((value - price * log_p.exp()) * importance).mean(-1) + price[:, 0]
    return found, (slope * importance - _of_rows(divergence, lambda ends: ends.slope_at_one, log_p)) / draws


def parts_of(divergence: RowDivergence) -> dict[RowDivergence, float | Tensor]:
    """The parts of a mixture with their weights; another divergence alone, with 1."""
    return dict(divergence.weights) if isinstance(divergence, Mixture) else {divergence: 1.0}


def _price(ends: Generator, drawer: Drawer) -> float:
    """Of mass that the draws cannot show."""
    return ends.slope_at_infinity if drawer == "teacher" else ends.at_zero


def _of_rows(divergence: RowDivergence, number: Callable[[Generator], float], like: Tensor) -> Tensor:
    """[rows, 1] A number of each part, weighted."""
    total = like.new_zeros(len(like), 1)
    for part, weight in parts_of(divergence).items():
        if not isinstance(weight, Tensor) and weight == 0:
            continue
        ends = generator(part)
        assert ends is not None
        total = total + number(ends) * (weight.to(like).reshape(-1, 1) if isinstance(weight, Tensor) else weight)
    return total
