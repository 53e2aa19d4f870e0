"""Weights of f-divergences from the ratio of two densities."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from distillrs.diffusion.conditions import Condition
from distillrs.errors import argument_error
from distillrs.ops import RowDivergence, TotalVariation


@runtime_checkable
class LogRatio(Protocol):
    """Whatever knows ``log r``, ``r = p_t / q_t``: the density of noised data over that of noised samples."""

    def log_ratio(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        """``[n]`` for states ``[n, ...]`` at times float64 ``[n]``, differentiable in the states."""
        ...


class RatioWeights(NamedTuple):
    """Of an f-divergence at a ratio.

    Attributes:
        weight: ``phi = r^2 f''(r)``, ``[n]``: 1 for the reverse KL divergence, ``r`` for the forward one.
        slope: ``d phi / d log r``, ``[n]``.
    """

    weight: Tensor
    slope: Tensor


def ratio_weights(divergence: RowDivergence, log_ratio: Tensor) -> RatioWeights:
    """``phi = r^2 f''(r)`` and its slope, of any divergence of :mod:`distillrs.ops`.

    ``D(p, q) = sum q f(p / q)``, so its derivative ``h`` by ``log q`` is, at ``q = 1``, ``f(r) - r f'(r)``, and
    ``d h / d log r = -r^2 f''(r)``. Xu et al., "One-step diffusion models with f-divergence distribution matching"
    (2025) name the weight ``h``; "Uni-Instruct" (2025) needs its slope too.

    Args:
        divergence: p is the data, q the samples. Its factor counts: ``JensenShannon()`` has ``phi = r / (2 (1 + r))``.
        log_ratio: ``[n]``.

    Returns:
        Both ``[n]``, differentiable.

    Raises:
        ArgumentError: For a divergence whose f has no second derivative, or ratios that are no tensor.
    """
    if not isinstance(divergence, RowDivergence) or isinstance(divergence, TotalVariation):
        raise argument_error("divergence", divergence, "a divergence of ops whose f is twice differentiable")
    if not isinstance(log_ratio, Tensor) or not log_ratio.is_floating_point():
        got = f"a tensor of {log_ratio.dtype}" if isinstance(log_ratio, Tensor) else type(log_ratio).__name__
        raise argument_error("log_ratio", got, "a floating-point tensor [n]")

    def negative(log_p: Tensor) -> Tensor:
        return -divergence.derivative(log_p, torch.zeros_like(log_p))

    def weight(log_p: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(negative, (log_p,), (torch.ones_like(log_p),))[1]
        return found

    both: tuple[Tensor, Tensor] = torch.func.jvp(weight, (log_ratio,), (torch.ones_like(log_ratio),))[:2]
    return RatioWeights(*both)
