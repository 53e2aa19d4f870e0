"""Posterior moments of a finite data set under Gaussian noise: the Rust backend, for float32 on the CPU.

Only what the denoiser needs: log-sum and spread are not formed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillrs import _core
from distillrs.ops._layout import vector
from distillrs.ops._mixture_reference import Posterior


def refusal(x: Tensor, data: Tensor) -> tuple[str, str] | None:
    """Why this backend cannot serve a call, and what it could; ``None`` if it can."""
    if x.device.type != "cpu":
        return f"tensors on {x.device}", "tensors on the CPU"
    for value in (x, data):
        if value.dtype != torch.float32:
            return f"{value.dtype}", "float32"
    return None


def posterior(x: Tensor, alpha: Tensor, variance: Tensor, data: Tensor, weights: Tensor | None) -> Posterior:
    """As :func:`distillrs.ops._mixture_reference.posterior`, without spread and log-sum.

    Args:
        x: float32 ``[n, d]``.
        alpha: float64 ``[n]``.
        variance: float64 ``[n]``.
        data: float32 ``[m, d]``.
        weights: ``[m]`` or ``None``.
    """
    held, of = _mixture(x, alpha, variance, data, weights)
    mean = torch.empty(x.shape, dtype=torch.float32)
    best, total = torch.empty(2, len(x), dtype=torch.float64)
    _core.mixture_mean(of, vector(mean), vector(best), vector(total))
    del held
    unknown = torch.full_like(best, torch.nan)
    return Posterior(mean, unknown, unknown.clone(), best, total)


def covariance(
    x: Tensor,
    alpha: Tensor,
    variance: Tensor,
    data: Tensor,
    weights: Tensor | None,
    known: Posterior,
    direction: Tensor,
) -> Tensor:
    """As :func:`distillrs.ops._mixture_reference.covariance`.

    Args:
        x: float32 ``[n, d]``.
        alpha: float64 ``[n]``.
        variance: float64 ``[n]``.
        data: float32 ``[m, d]``.
        weights: ``[m]`` or ``None``.
        known: What :func:`posterior` gave.
        direction: float64 ``[n, d + 1]``.
    """
    held, of = _mixture(x, alpha, variance, data, weights)
    mean, best, total = known.mean.contiguous(), known.best.contiguous(), known.total.contiguous()
    along = direction.contiguous()
    out = torch.empty(direction.shape, dtype=torch.float64)
    _core.mixture_covariance(of, vector(mean), vector(best), vector(total), vector(along), vector(out))
    del held
    return out


def _mixture(
    x: Tensor, alpha: Tensor, variance: Tensor, data: Tensor, weights: Tensor | None
) -> tuple[list[Tensor], Any]:
    """Tensors to hold until the call is over, and their addresses."""
    held = [value.contiguous() for value in (x, alpha, variance, data)]
    addresses: list[Any] = [vector(value) for value in held]
    addresses.append(None)
    if weights is not None:
        held.append(weights.to(torch.float64).contiguous())
        addresses[-1] = vector(held[-1])
    return held, (*addresses, x.shape[1])
