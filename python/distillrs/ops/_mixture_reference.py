"""Posterior moments of a finite data set under Gaussian noise: the torch backend, which says what the others mean.

Row x is ``alpha y_i + n`` with ``n ~ N(0, variance I)`` and i drawn with probability ``w_i``. With ``r_i`` the
posterior probability of i given x, everything below is a sum over i that is taken tile by tile with a running maximum,
so that no matrix of rows times points exists. Arithmetic is in float64 where the device has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_ROWS_AT_ONCE = 256
_PAIRS_AT_ONCE = 2**19


class Posterior(NamedTuple):
    """What is known of each row, in the arithmetic's precision.

    ``best`` and ``total`` are the running maximum and the sum at its end: with the closeness
    ``c_i = alpha x'.y'_i - alpha^2 |y'_i|^2 / 2``, where x' and y' are relative to the points' mean,
    ``r_i = w_i exp((c_i - best) / variance) / total``.

    Attributes:
        mean: ``[n, d]``: ``sum_i r_i y_i``.
        spread: ``[n]``: ``sum_i r_i |y_i - mean|^2``.
        log_sum: ``[n]``: ``log sum_i w_i exp(-|x - alpha y_i|^2 / (2 variance))``.
        best: ``[n]``: the largest closeness of a point with a weight.
        total: ``[n]``: relative to it.
    """

    mean: Tensor
    spread: Tensor
    log_sum: Tensor
    best: Tensor
    total: Tensor


def posterior(x: Tensor, alpha: Tensor, variance: Tensor, data: Tensor, weights: Tensor | None) -> Posterior:
    """Moments of the posterior.

    At variance 0 only the nearest points count, and equally near ones by their weights. At alpha 0 all count by their
    weights, at any variance.

    Args:
        x: ``[n, d]``, detached.
        alpha: ``[n]``.
        variance: ``[n]``.
        data: ``[m, d]``.
        weights: ``[m]``, not negative; ``None`` for equal ones.
    """
    dtype = arithmetic(x)
    centre = _centre(data, weights, dtype)
    parts = []
    for rows in torch.split(torch.arange(len(x), device=x.device), _ROWS_AT_ONCE):
        near = _Near(x[rows], alpha[rows], variance[rows], centre)
        # The lowest number, not minus infinity: the difference of two of those is none.
        best = torch.full_like(near.square, torch.finfo(dtype).min)
        total = torch.zeros_like(best)
        moments = torch.zeros(len(rows), data.shape[1] + 1, dtype=dtype, device=x.device)
        for features, share, closeness in near.tiles(data, weights):
            higher = torch.maximum(best, closeness.amax(1))
            kept = near.mass(best[:, None], higher, None)
            mass = near.mass(closeness, higher, share)
            total = total * kept[:, 0] + mass.sum(1)
            moments = torch.addmm(moments * kept, mass, features)
            best = higher
        moments = moments / total[:, None]
        mean = moments[:, :-1]
        spread = (moments[:, -1] - mean.square().sum(1)).clamp(min=0)
        log_sum = total.log() + (best - near.square / 2) / variance[rows].to(dtype)
        parts.append(Posterior(mean + centre, spread, log_sum, best, total))
    if not parts:
        empty = torch.zeros(0, dtype=dtype, device=x.device)
        return Posterior(empty.new_zeros(0, data.shape[1]), empty, empty, empty, empty)
    return Posterior(*(torch.cat(values) for values in zip(*parts, strict=True)))


def covariance(
    x: Tensor,
    alpha: Tensor,
    variance: Tensor,
    data: Tensor,
    weights: Tensor | None,
    known: Posterior,
    direction: Tensor,
) -> Tensor:
    """``Cov_r(f, f . direction)`` of the features ``f_i = (y_i - mean, |y_i - mean|^2)``.

    The posterior's logarithm is linear in these features, so this symmetric matrix is all that its derivatives need,
    forwards and backwards.

    Args:
        x: ``[n, d]``, detached.
        alpha: ``[n]``.
        variance: ``[n]``.
        data: ``[m, d]``.
        weights: ``[m]`` or ``None``.
        known: What :func:`posterior` gave for the same rows.
        direction: ``[n, d + 1]``.

    Returns:
        ``[n, d + 1]``.
    """
    dtype = arithmetic(x)
    centre = _centre(data, weights, dtype)
    parts = [direction.new_zeros(0, direction.shape[1], dtype=dtype)]
    for rows in torch.split(torch.arange(len(x), device=x.device), _ROWS_AT_ONCE):
        near = _Near(x[rows], alpha[rows], variance[rows], centre)
        mean = known.mean[rows].to(dtype) - centre
        square = mean.square().sum(1, keepdim=True)
        along = direction[rows].to(dtype)
        # |y - mean|^2 = |y|^2 - 2 mean.y + |mean|^2, so along (y, |y|^2) the direction is another.
        along = torch.cat([along[:, :-1] - 2 * mean * along[:, -1:], along[:, -1:]], 1)
        base = (along[:, :-1] * mean).sum(1, keepdim=True) + along[:, -1:] * square
        sums = torch.zeros(len(rows), data.shape[1] + 2, dtype=dtype, device=x.device)
        for features, share, closeness in near.tiles(data, weights):
            step = near.mass(closeness, known.best[rows], share).mul_(along @ features.T - base)
            sums.addmm_(step, torch.nn.functional.pad(features, (0, 1), value=1.0))
        sums /= known.total[rows, None]
        products, squares, steps = sums[:, :-2], sums[:, -2:-1], sums[:, -1:]
        second = squares - 2 * (products * mean).sum(1, keepdim=True)
        second += steps * (square - known.spread[rows, None])
        parts.append(torch.cat([products - steps * mean, second], 1))
    return torch.cat(parts)


def arithmetic(x: Tensor) -> torch.dtype:
    """What the sums over points are taken in: differences of large squares need float64 where the noise is small."""
    return torch.float32 if x.device.type == "mps" else torch.float64


class _Near:
    """Some rows, ready to be compared with points."""

    def __init__(self, x: Tensor, alpha: Tensor, variance: Tensor, centre: Tensor) -> None:
        dtype = centre.dtype
        limit = torch.finfo(dtype)
        self.centre = centre
        self.alpha = alpha.to(dtype)[:, None]
        self.rows = x.to(dtype) - self.alpha * centre
        self.square = self.rows.square().sum(1)
        variance = variance.to(dtype)
        # A finite stand-in for 1 / 0: it makes every difference decisive and leaves equality alone.
        self.inverse = torch.where(variance == 0, limit.max**0.5, 1 / variance.clamp(min=limit.tiny))
        # Without noise, rounding would choose one of equally near points.
        self.slack = torch.where(variance == 0, 64 * limit.eps, 0.0)

    def tiles(self, data: Tensor, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """[points, d + 1] Points about the centre beside their squares; weights; closeness ``[rows, points]``.

        Closeness is ``(|x|^2 - |x - alpha y|^2) / 2``, and minus infinity for points without weight.
        """
        size = max(1, _PAIRS_AT_ONCE // max(1, len(self.rows)))
        for start in range(0, len(data), size):
            points = data[start : start + size].to(self.centre.dtype) - self.centre
            square = points.square().sum(1)
            closeness = torch.addmm(self.alpha * (square / -2), self.rows, points.T).mul_(self.alpha)
            share = None
            if weights is not None:
                share = weights[start : start + size].to(self.centre.dtype)
                closeness.masked_fill_(share == 0, -torch.inf)
            yield torch.cat([points, square[:, None]], 1), share, closeness

    def mass(self, closeness: Tensor, best: Tensor, share: Tensor | None) -> Tensor:
        """``w exp((closeness - best) / variance)`` for ``[rows, points]`` and ``[rows]``."""
        slack = self.slack * (self.square + 2 * best.abs())
        mass = ((closeness - (best - slack)[:, None]).clamp_(max=0) * self.inverse[:, None]).exp_()
        return mass if share is None else mass * share


def _centre(data: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[d] The points' mean: squares about it cancel less. A point without weight may lie anywhere."""
    if weights is None:
        return data.mean(0, dtype=dtype)
    share = weights.to(dtype)
    total = data.new_zeros(data.shape[1], dtype=dtype)
    for part, points in zip(torch.split(share, _ROWS_AT_ONCE), torch.split(data, _ROWS_AT_ONCE), strict=True):
        total += part @ points.to(dtype)
    return total / share.sum()
