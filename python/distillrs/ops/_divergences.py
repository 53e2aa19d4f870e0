"""Divergences of two distributions over a vocabulary that are sums over its entries.

A separable divergence is ``D(p, q) = sum_v d(log p_v, log q_v)``: p is the teacher, q the student. With
``h_v = dd/d(log q_v)`` its gradient with respect to the student's logits s, at temperature T, is
``(h_v - q_v sum_u h_u) / T``. So two elementwise functions, ``d`` (``value``) and ``h`` (``derivative``), are all that
a kernel needs. ``h`` equals ``q dD/dq``, which stays finite where q is 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distillrs.checks import check_number, is_number
from distillrs.errors import argument_error


class RowDivergence(ABC):
    """A divergence that is a sum over the entries of the vocabulary.

    Subclass it for one of your own: the two methods are enough, and the torch backend serves it. Either logarithm may
    be minus infinity; entries where both are count as 0 and whatever the methods return there is ignored.
    """

    __slots__ = ()

    @abstractmethod
    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The entry's share ``d`` of the divergence.

        Args:
            log_p: ``[rows, vocabulary]``: the teacher's log-probabilities.
            log_q: ``[rows, vocabulary]``: the student's.

        Returns:
            ``[rows, vocabulary]``.
        """

    @abstractmethod
    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The derivative of ``d`` with respect to ``log_q``, which is q times the derivative with respect to q.

        Args:
            log_p: ``[rows, vocabulary]``: the teacher's log-probabilities.
            log_q: ``[rows, vocabulary]``: the student's.

        Returns:
            ``[rows, vocabulary]``.
        """


@dataclass(frozen=True, slots=True)
class ForwardKL(RowDivergence):
    """KL(p || q) = sum p (log p - log q): the student must cover what the teacher does."""

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``p (log p - log q)``."""
        return _weighted(log_p.exp(), log_p - log_q)

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``-p``."""
        return -log_p.exp()


@dataclass(frozen=True, slots=True)
class ReverseKL(RowDivergence):
    """KL(q || p) = sum q (log q - log p): the student may choose among the teacher's modes.

    It is infinite where the teacher excludes what the student does not.
    """

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``q (log q - log p)``."""
        return _weighted(log_q.exp(), log_q - log_p)

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``q (log q - log p + 1)``."""
        return _weighted(log_q.exp(), log_q - log_p + 1)


@dataclass(frozen=True, slots=True)
class JensenShannon(RowDivergence):
    """beta KL(p || M) + (1 - beta) KL(q || M) with M = beta p + (1 - beta) q; at most log 2.

    At beta = 0 and beta = 1 this is 0 for all p and q, so the ends are refused: many libraries jump to a
    Kullback-Leibler divergence there. The limits are ``JensenShannon(beta) / beta -> KL(p || q)`` as beta goes to 0 and
    ``JensenShannon(beta) / (1 - beta) -> KL(q || p)`` as it goes to 1. The convention is that of Agarwal et al.,
    On-Policy Distillation of Language Models (ICLR 2024).

    Attributes:
        beta: The teacher's share of the mixture, between 0 and 1.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        allowed = "a number above 0 and below 1 (at the ends it is 0: see ForwardKL and ReverseKL)"
        check_number("beta", self.beta, allowed, above=0, below=1)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``beta p log(p / M) + (1 - beta) q log(q / M)``."""
        log_m = _log_mixture(log_p, log_q, self.beta)
        teacher = _weighted(log_p.exp(), log_p - log_m)
        return self.beta * teacher + (1 - self.beta) * _weighted(log_q.exp(), log_q - log_m)

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``(1 - beta) q log(q / M)``."""
        log_m = _log_mixture(log_p, log_q, self.beta)
        return (1 - self.beta) * _weighted(log_q.exp(), log_q - log_m)


@dataclass(frozen=True, slots=True)
class SkewKL(RowDivergence):
    """KL(p || M) with M = alpha p + (1 - alpha) q (Ko et al., DistiLLM, ICML 2024); finite for any p and q.

    Attributes:
        alpha: The teacher's share of the mixture, from 0 (the forward KL) to below 1.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_skew(self.alpha)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``p log(p / M)``."""
        return _weighted(log_p.exp(), log_p - _log_mixture(log_p, log_q, self.alpha))

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``-(1 - alpha) p q / M``."""
        log_m = _log_mixture(log_p, log_q, self.alpha)
        return -(1 - self.alpha) * _weighted(log_p.exp(), (log_q - log_m).exp())


@dataclass(frozen=True, slots=True)
class SkewReverseKL(RowDivergence):
    """KL(q || M) with M = (1 - alpha) p + alpha q (Ko et al., DistiLLM, ICML 2024); finite for any p and q.

    Attributes:
        alpha: The student's share of the mixture, from 0 (the reverse KL) to below 1.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_skew(self.alpha)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``q log(q / M)``."""
        return _weighted(log_q.exp(), log_q - _log_mixture(log_p, log_q, 1 - self.alpha))

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``q (log(q / M) + 1 - alpha q / M)``."""
        log_ratio = log_q - _log_mixture(log_p, log_q, 1 - self.alpha)
        # Without a share of the student the ratio is unbounded, and its exponential may overflow.
        share = self.alpha * log_ratio.exp() if self.alpha else 0.0
        return _weighted(log_q.exp(), log_ratio + 1 - share)


@dataclass(frozen=True, slots=True)
class TotalVariation(RowDivergence):
    """sum |p - q| / 2. Where p equals q the derivative is taken as 0."""

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``|p - q| / 2``."""
        return (log_p.exp() - log_q.exp()).abs() / 2

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``q sign(q - p) / 2``."""
        q = log_q.exp()
        difference = q - log_p.exp()
        # torch's sign of not-a-number is 0; the product keeps it.
        return (q * difference.sign() + 0 * difference) / 2


@dataclass(frozen=True, slots=True)
class Alpha(RowDivergence):
    """(sum p^a q^(1 - a) - 1) / (a (a - 1)): tends to KL(p || q) as a goes to 1 and to KL(q || p) as it goes to 0.

    Its rounding error grows like 1 / |a (a - 1)|. Source: Amari, alpha-divergence is unique
    (2009), with a = (1 - alpha) / 2.

    Attributes:
        a: Any number but 0 and 1. Above 1 it is infinite where the student excludes what the teacher does not, below 0
            in the opposite case.
    """

    a: float

    def __post_init__(self) -> None:
        if not is_number(self.a) or self.a in (0, 1):
            allowed = "a finite number other than 0 (ReverseKL) and 1 (ForwardKL)"
            raise argument_error("a", self.a, allowed)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``(p^a q^(1 - a) - a p - (1 - a) q) / (a (a - 1))``: the linear terms add up to -1."""
        linear = self.a * log_p.exp() + (1 - self.a) * log_q.exp()
        return (self._power(log_p, log_q) - linear) / (self.a * (self.a - 1))

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``(q - p^a q^(1 - a)) / a``."""
        return (log_q.exp() - self._power(log_p, log_q)) / self.a

    def _power(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (self.a * log_p + (1 - self.a) * log_q).exp()


@dataclass(frozen=True, slots=True, eq=False)
class Mixture(RowDivergence):
    """A weighted sum of divergences, the same for all rows or different for each: ``Mixture({ForwardKL(): 0.3, ...})``.

    Attributes:
        weights: For each divergence a number, or a tensor with one number for each row, shaped as the logits without
            their last axis. No gradient goes into the weights.
    """

    weights: Mapping[RowDivergence, float | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping) or not self.weights:
            raise argument_error("weights", self.weights, "a mapping from at least one divergence to its weight")
        for part, weight in self.weights.items():
            if not isinstance(part, RowDivergence) or isinstance(part, Mixture):
                raise argument_error("weights", part, "divergences other than mixtures as keys")
            is_real = not weight.is_complex() if isinstance(weight, Tensor) else is_number(weight)
            if not is_real:
                raise argument_error("weights", weight, "finite numbers or tensors with one number for each row")
        detached = {part: w.detach() if isinstance(w, Tensor) else float(w) for part, w in self.weights.items()}
        object.__setattr__(self, "weights", detached)

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The weighted sum of the parts' values."""
        return self._sum({part: part.value(log_p, log_q) for part in self.weights})

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The weighted sum of the parts' derivatives."""
        return self._sum({part: part.derivative(log_p, log_q) for part in self.weights})

    def of_rows(self, rows: Tensor) -> Mixture:
        """The mixture of some rows.

        Args:
            rows: int64 ``[n]``: their indices when all leading axes are flattened.

        Raises:
            ArgumentError: Something else.
        """
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1:
            got = f"{rows.dtype} of shape {list(rows.shape)}" if isinstance(rows, Tensor) else rows
            raise argument_error("rows", got, "int64 [n]")
        chosen = {
            part: weight.reshape(-1)[rows] if isinstance(weight, Tensor) and weight.dim() else weight
            for part, weight in self.weights.items()
        }
        return Mixture(chosen)

    def _sum(self, terms: dict[RowDivergence, Tensor]) -> Tensor:
        total: Tensor | None = None
        for part, weight in self.weights.items():
            factor = weight.to(terms[part])[..., None] if isinstance(weight, Tensor) else weight
            # A part with weight 0 takes no part, even where it is infinite.
            share = (
                torch.where(factor == 0, 0.0, factor * terms[part])
                if isinstance(factor, Tensor)
                else factor * terms[part]
            )
            if not isinstance(factor, Tensor) and factor == 0:
                share = torch.zeros_like(terms[part])
            total = share if total is None else total + share
        assert total is not None
        return total


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """The product; 0 where the weight is 0, whatever the value. Not-a-number in the weight stays."""
    return torch.where(weight == 0, 0.0, weight * value)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """The logarithm of ``share p + (1 - share) q``."""
    if share == 0:
        return log_q
    if share == 1:
        return log_p
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _check_skew(alpha: float) -> None:
    check_number("alpha", alpha, "a number from 0 to below 1", least=0, below=1)
