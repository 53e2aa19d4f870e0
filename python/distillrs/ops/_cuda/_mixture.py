"""Posterior moments of a finite data set under Gaussian noise.

The kernels give sums over parts of the points, each relative to its own largest closeness; they are brought together
here. Distances are taken in float32 from differences, so no float64 unit is needed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda._launcher import TYPES, active
from distillrs.ops._cuda._module import Argument
from distillrs.ops._mixture_reference import Posterior

# As in cuda/mixture_denoiser.cu.
ROWS = 32
POINTS = 64
THREADS = 128
# Blocks that keep any GPU busy; not its own number of processors, so that results do not depend on that.
_BLOCKS = 512
_VALUES_AT_ONCE = 2**24


def refusal(x: Tensor, data: Tensor) -> tuple[str, str] | None:
    """Why this backend cannot serve a call, and what it could; ``None`` if it can."""
    if x.device.type != active().device_type:
        return f"tensors on {x.device}", "tensors on a CUDA device"
    for value in (x, data):
        if value.dtype not in TYPES:
            return f"{value.dtype}", "float32, bfloat16 or float16"
    return None


def prepare(x: Tensor, data: Tensor) -> None:
    """Compiles what a call needs.

    Raises:
        ArgumentError: The backend is not there.
        KernelCompileError: The compiler refuses the source.
    """
    active().module("mixture_denoiser", _types(x, data), x.device)


def posterior(x: Tensor, alpha: Tensor, variance: Tensor, data: Tensor, weights: Tensor | None) -> Posterior:
    """As :func:`distillrs.ops._mixture_reference.posterior`; ``best`` is the largest ``-|x - alpha y|^2``.

    A point whose weight is below 1e-38 of the largest counts as one without.

    Args:
        x: ``[n, d]``.
        alpha: float64 ``[n]``.
        variance: float64 ``[n]``.
        data: ``[m, d]``.
        weights: ``[m]`` or ``None``.
    """
    call = _Call(x, alpha, variance, data, weights)
    parts, (rows, width) = call.parts, x.shape
    sums = torch.zeros(parts, rows, width, dtype=torch.float32, device=x.device)
    bests = torch.empty(parts, rows, dtype=torch.float32, device=x.device)
    totals, distances, squares = torch.empty(3, parts, rows, dtype=torch.float64, device=x.device)
    outputs = {"sums": sums, "best": bests, "totals": totals, "distances": distances, "squares": squares}
    call.launch("mixture_posterior", outputs)
    best = bests.amax(0)
    scale = ((bests - best) * call.factor).exp2()
    total, distance, square = ((values * scale).sum(0) for values in (totals, distances, squares))
    mean = torch.bmm(scale.T[:, None], sums.transpose(0, 1))[:, 0] / total.float()[:, None]
    wide_mean, wide_best = mean.double(), best.double()
    apart = x.double() - alpha[:, None] * (wide_mean + call.centre)
    # Both are the spread; where squares are large, the other one's differences cancel less.
    about_centre = square / total - wide_mean.square().sum(1)
    about_row = (distance / total - apart.square().sum(1)) / alpha.square()
    is_near = distance < alpha.square() * square
    spread = torch.where(is_near, about_row, about_centre).clamp(min=0)
    log_sum = total.log() + call.log_heaviest + wide_best / (2 * variance)
    return Posterior(mean + call.centre, spread, log_sum, wide_best, total)


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
        x: ``[n, d]``.
        alpha: float64 ``[n]``.
        variance: float64 ``[n]``.
        data: ``[m, d]``.
        weights: ``[m]`` or ``None``.
        known: What :func:`posterior` gave.
        direction: float64 ``[n, d + 1]``.
    """
    call = _Call(x, alpha, variance, data, weights)
    parts, (rows, width) = call.parts, x.shape
    mean = known.mean - call.centre
    # Directions grow like 1 / variance^2, beyond what float32 holds.
    size = direction.abs().amax(1, keepdim=True) if rows else direction[:, :1]
    along = (direction / torch.where(size == 0, 1.0, size)).float()
    sums = torch.zeros(parts, rows, width, dtype=torch.float32, device=x.device)
    steps, squares, spreads = torch.empty(3, parts, rows, dtype=torch.float64, device=x.device)
    arguments = {
        "mean": mean.contiguous(),
        "best": known.best.float(),
        "first_direction": along[:, :-1].contiguous(),
        "second_direction": along[:, -1].contiguous(),
        "sums": sums,
        "steps": steps,
        "squares": squares,
        "spreads": spreads,
    }
    call.launch("mixture_covariance", arguments)
    total = known.total
    step, square, spread = (values.sum(0) / total for values in (steps, squares, spreads))
    by_mean = sums.sum(0, dtype=torch.float64) / total[:, None] - step[:, None] * mean
    return size * torch.cat([by_mean, (square - step * spread)[:, None]], 1)


class _Call:
    """What both kernels take."""

    def __init__(self, x: Tensor, alpha: Tensor, variance: Tensor, data: Tensor, weights: Tensor | None) -> None:
        self.x, self.data, self.alpha = x.contiguous(), data.contiguous(), alpha.contiguous()
        self.centre = _centre(data, weights)
        # Without noise a large finite number: every difference is decisive, equality stays.
        self.factor = (1 / (2 * math.log(2) * variance)).clamp(max=1e38).float()
        self.weights: Tensor | None = None
        self.log_heaviest: Tensor | float = 0.0
        if weights is not None:
            wide = weights.double()
            heaviest = wide.max()
            self.weights, self.log_heaviest = (wide / heaviest).float(), heaviest.log()
        self.parts = parts_of(len(x), len(data))

    def launch(self, kernel: str, more: dict[str, Argument]) -> None:
        """Starts a kernel of the source; no rows start nothing."""
        rows, points = len(self.x), len(self.data)
        arguments: dict[str, Argument] = {
            "x": self.x,
            "data": self.data,
            "centre": self.centre,
            "alpha": self.alpha,
            "factor": self.factor,
            "weights": self.weights,
            "rows": np.int64(rows),
            "points": np.int64(points),
            "points_at_once": np.int64(-(-points // (self.parts * POINTS)) * POINTS),
            "width": np.uint32(self.x.shape[1]),
            **more,
        }
        grid = (-(-rows // ROWS), self.parts, 1)
        types = _types(self.x, self.data)
        active().launch("mixture_denoiser", kernel, types, self.x.device, grid, (THREADS, 1, 1), arguments)


def parts_of(rows: int, points: int) -> int:
    """Parts of the points, each for blocks of its own.

    Few rows alone would leave most of a GPU idle. What the parts sum is at most half of what the points take, or one
    part's.

    Args:
        rows: How many.
        points: How many.
    """
    tiles = max(1, -(-rows // ROWS))
    return max(1, min(_BLOCKS // tiles, -(-points // POINTS), points // (2 * max(1, rows))))


def _centre(data: Tensor, weights: Tensor | None) -> Tensor:
    """float32 ``[d]``: near the points' mean; how near does not matter."""
    if weights is None:
        return data.mean(0, dtype=torch.float32)
    share = (weights / weights.sum()).float()
    size = max(1, _VALUES_AT_ONCE // data.shape[1])
    total = torch.zeros(data.shape[1], dtype=torch.float32, device=data.device)
    for part, points in zip(torch.split(share, size), torch.split(data, size), strict=True):
        total += part @ points.float()
    return total


def _types(x: Tensor, data: Tensor) -> dict[str, torch.dtype]:
    return {"ROWS": x.dtype, "POINTS": data.dtype}
