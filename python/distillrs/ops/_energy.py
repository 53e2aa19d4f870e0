"""Sums of a kernel over all pairs of two sets of points, without a matrix of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.ops import _backends
from distillrs.ops._cuda import _energy as _cuda_energy
from distillrs.ops._kernels import PairKernel
from distillrs.ops._opaque import opaque
from distillrs.ops._row_divergence import refuse_second_derivative
from distillrs.ops._rows import check_real

_ROWS_AT_ONCE = 256
_PAIRS_AT_ONCE = 2**19


@opaque
def energy(
    x: Tensor,
    y: Tensor,
    kernel: PairKernel,
    *,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    backend: _backends.Backend = "auto",
) -> Tensor:
    """``sum_ij a_i b_j k(x_i, y_j)``, tile by tile: memory grows with the points, never with the pairs.

    With weights ``a_i = 1/n`` and ``b_j = 1/m`` these sums compose what is usually asked for:

    - squared maximum mean discrepancy (Gretton et al., 2012):
      ``energy(x, x, k) + energy(y, y, k) - 2 energy(x, y, k)``. This is biased, and never negative for a positive
      definite kernel; the unbiased estimate leaves the pairs ``i = j`` out: subtract their sum and divide by
      ``n (n - 1)``.
    - energy distance (Szekely and Rizzo, 2013): the same with ``NegativeDistance()``.

    The torch backend's arithmetic is in float64 where the device has it, with distances of near points from their
    differences. The CUDA kernels take all distances from differences, in float32, and sum over the pairs in float64;
    points nearer than 1e-19 coincide for them. The gradient with respect to both sets, which may be one, is formed on
    the way back, tile by tile; a second derivative is refused.

    Args:
        x: ``[n, *features]``: float64, float32, bfloat16 or float16.
        y: ``[m, *features]``.
        kernel: Which: ``Gaussian``, ``Laplacian``, ``NegativeDistance``, ``InverseMultiquadric``, ``Polynomial`` or one
            of your own.
        x_weights: ``[n]``: a; any numbers, ``None`` for ones. No gradient goes there.
        y_weights: ``[m]``: b.
        backend: "torch" (the reference, any device and kernel), "cuda" (float32, bfloat16 and float16 on a CUDA device,
            kernels of this module) or "auto".

    Returns:
        A number in float32 (float64 for float64 points).

    Raises:
        ArgumentError: For an argument that is not allowed, or a backend that cannot serve the others.
        KernelCompileError: The CUDA backend was named, and its compiler refuses a source.
    """
    for name, value in (("x", x), ("y", y)):
        check_real(name, value)
        if value.dim() == 0:
            raise argument_error(name, "a tensor without axes", "[points, *features]")
    if y.shape[1:] != x.shape[1:] or y.device != x.device:
        got = f"points of the shape {tuple(y.shape[1:])} on {y.device}"
        raise argument_error("y", got, f"those of x, {tuple(x.shape[1:])} on {x.device}")
    if not isinstance(kernel, PairKernel):
        raise argument_error("kernel", kernel, "an instance of a PairKernel, such as Gaussian()")
    for name, weights, points in (("x_weights", x_weights, x), ("y_weights", y_weights, y)):
        _check_weights(name, weights, points)
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    # Not -1 for the features: with no points it would be any number.
    width = x.shape[1:].numel()
    rows, others = x.reshape(len(x), width), y.reshape(len(y), width)
    on_device = _takes_cuda(backend, rows, others, kernel)
    total: Tensor = _Energy.apply(rows, others, kernel, x_weights, y_weights, on_device)
    return total.to(dtype)


def _takes_cuda(backend: _backends.Backend, x: Tensor, y: Tensor, kernel: PairKernel) -> bool:
    _backends.check(backend)
    if backend == "rust":
        raise argument_error("backend", "'rust'", "'auto', 'torch' or 'cuda'")
    refusal = _cuda_energy.refusal(x, y, kernel)
    return _backends.takes_cuda(backend, x.device, refusal, lambda: _cuda_energy.prepare(x, y))


def _check_weights(name: str, weights: Tensor | None, points: Tensor) -> None:
    if weights is None:
        return
    allowed = f"a floating-point tensor [{len(points)}] on {points.device} that requires no gradient"
    if not isinstance(weights, Tensor) or not weights.dtype.is_floating_point:
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise argument_error(name, got, allowed)
    if weights.shape != points.shape[:1] or weights.device != points.device:
        raise argument_error(name, f"the shape {tuple(weights.shape)} on {weights.device}", allowed)
    if torch.is_grad_enabled() and weights.requires_grad:
        raise argument_error(name, "a tensor that requires gradients", allowed)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        kernel: PairKernel,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        on_device: bool,
    ) -> Tensor:
        ctx.kernel, ctx.on_device = kernel, on_device
        ctx.save_for_backward(x, y, x_weights, y_weights)
        if on_device:
            return _cuda_energy.value(x.detach(), y.detach(), kernel, x_weights, y_weights)
        pairs = _Pairs(x, y, kernel, x_weights, y_weights)
        total = torch.zeros((), dtype=pairs.dtype, device=x.device)
        for rows, points, u in pairs.tiles():
            total += pairs.a[rows] @ kernel.value(u) @ pairs.b[points]
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, x_weights, y_weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        found: list[Tensor | None] = [None, None]
        with torch.no_grad():
            if ctx.on_device:
                sides = ((x, y, x_weights, y_weights), (y, x, y_weights, x_weights))
                slopes = [
                    _cuda_energy.slopes(one, other, ctx.kernel, a, b) if is_needed else None
                    for (one, other, a, b), is_needed in zip(sides, needed, strict=True)
                ]
            else:
                slopes = list(_slopes(_Pairs(x, y, ctx.kernel, x_weights, y_weights)))
            for side, (points, slope) in enumerate(zip((x, y), slopes, strict=True)):
                found[side] = None if slope is None else (upstream * slope).to(points.dtype)
        if torch.is_grad_enabled():
            found = [None if value is None else refuse_second_derivative(value) for value in found]
        return found[0], found[1], None, None, None, None


def _slopes(pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """The derivatives with respect to both sets."""
    by_x, by_y = torch.zeros_like(pairs.x), torch.zeros_like(pairs.y)
    for rows, points, u in pairs.tiles():
        slope = pairs.kernel.derivative(u) * pairs.a[rows, None] * pairs.b[points]
        if pairs.kernel.of_product:
            by_x[rows] += slope @ pairs.y[points]
            by_y[points] += slope.mT @ pairs.x[rows]
            continue
        # d |x - y|^2 = 2 (x - y).(dx - dy)
        by_x[rows] += 2 * (slope.sum(1, keepdim=True) * pairs.x[rows] - slope @ pairs.y[points])
        by_y[points] += 2 * (slope.sum(0)[:, None] * pairs.y[points] - slope.mT @ pairs.x[rows])
    return by_x, by_y


class _Pairs:
    """Both sets in the precision of sums, about the mean of the first where that changes no distance."""

    def __init__(
        self, x: Tensor, y: Tensor, kernel: PairKernel, x_weights: Tensor | None, y_weights: Tensor | None
    ) -> None:
        self.kernel = kernel
        self.dtype = torch.float32 if x.device.type == "mps" else torch.float64
        self.x, self.y = x.detach().to(self.dtype), y.detach().to(self.dtype)
        if not kernel.of_product and len(x):
            centre = self.x.mean(0)
            self.x, self.y = self.x - centre, self.y - centre
        self.a, self.b = (
            points.new_ones(len(points)) if weights is None else weights.to(self.dtype)
            for points, weights in ((self.x, x_weights), (self.y, y_weights))
        )

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, points, and what the kernel takes, ``[rows, points]``."""
        square, other = self.x.square().sum(1), self.y.square().sum(1)
        size = max(1, _PAIRS_AT_ONCE // max(1, min(_ROWS_AT_ONCE, len(self.x))))
        for first in range(0, len(self.x), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            for start in range(0, len(self.y), size):
                points = slice(start, start + size)
                u = self.x[rows] @ self.y[points].mT
                if not self.kernel.of_product:
                    scale = square[rows, None] + other[points]
                    u = torch.add(scale, u, alpha=-2)
                    self._set_near(u, scale, rows, points)
                yield rows, points, u

    def _set_near(self, u: Tensor, scale: Tensor, rows: slice, points: slice) -> None:
        """Near points from their differences: of their products rounding would leave too few digits."""
        near = (u <= torch.finfo(self.dtype).eps ** 0.4 * scale).nonzero()
        for part in near.split(max(1, _PAIRS_AT_ONCE // max(1, self.x.shape[1]))):
            i, j = part.unbind(1)
            u[i, j] = (self.x[rows][i] - self.y[points][j]).square().sum(1)
