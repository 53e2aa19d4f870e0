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

# A tile stays in the second cache from one step to the next.
_ROWS_AT_ONCE = 512
_PAIRS_AT_ONCE = 2**17


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
    differences; where a gradient is wanted it is formed with the sum, of the same products. The CUDA kernels take all
    distances from differences, in float32, and sum over the pairs in float64; points nearer than 1e-19 coincide for
    them; they form the gradient on the way back. Both sets may be one; a second derivative is refused.

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
    kind = _OnDevice if _takes_cuda(backend, rows, others, kernel) else _InTorch
    wanted = tuple(torch.is_grad_enabled() and points.requires_grad for points in (rows, others))
    total: Tensor = kind.apply(rows, others, kernel, x_weights, y_weights, wanted)
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


class _OnDevice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        kernel: PairKernel,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        _wanted: tuple[bool, bool],
    ) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(x, y, x_weights, y_weights)
        return _cuda_energy.value(x.detach(), y.detach(), kernel, x_weights, y_weights)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, y, x_weights, y_weights = ctx.saved_tensors
        sides = ((x, y, x_weights, y_weights), (y, x, y_weights, x_weights))
        with torch.no_grad():
            found = [
                (upstream * _cuda_energy.slopes(one, other, ctx.kernel, a, b)).to(one.dtype) if is_needed else None
                for (one, other, a, b), is_needed in zip(sides, ctx.needs_input_grad[:2], strict=True)
            ]
        return (*_given_away(found), None, None, None, None)


class _InTorch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        kernel: PairKernel,
        x_weights: Tensor | None,
        y_weights: Tensor | None,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        total, slopes = _sums(_Pairs(x, y, kernel, x_weights, y_weights), wanted)
        ctx.save_for_backward(*slopes)
        ctx.dtypes = (x.dtype, y.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = [
                None if slope is None else (upstream * slope).to(dtype)
                for slope, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
            ]
        return (*_given_away(found), None, None, None, None)


def _given_away(gradients: list[Tensor | None]) -> list[Tensor | None]:
    if not torch.is_grad_enabled():
        return gradients
    return [None if value is None else refuse_second_derivative(value) for value in gradients]


def _sums(pairs: _Pairs, wanted: tuple[bool, bool]) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """The sum over all pairs, and its derivatives with respect to the sets that want them."""
    total = torch.zeros((), dtype=pairs.dtype, device=pairs.x.device)
    by_x, by_y = (
        points.new_zeros(len(points), points.shape[1] + 1) if is_wanted else None
        for points, is_wanted in zip((pairs.x, pairs.y), wanted, strict=True)
    )
    for rows, points, u in pairs.tiles():
        total += pairs.a[rows] @ (pairs.kernel.value(u) @ pairs.b[points])
        if by_x is None and by_y is None:
            continue
        slope = pairs.kernel.derivative(u)
        if by_x is not None:
            by_x[rows].addmm_(slope, _weighted(pairs.y[points], pairs.b[points]))
        if by_y is not None:
            by_y[points].addmm_(slope.mT, _weighted(pairs.x[rows], pairs.a[rows]))
    of_product = pairs.kernel.of_product
    return total, (_derivative(pairs.x, pairs.a, by_x, of_product), _derivative(pairs.y, pairs.b, by_y, of_product))


def _weighted(points: Tensor, weights: Tensor) -> Tensor:
    """What a derivative sums over the other set: its points, and for distances the weights themselves behind them."""
    return torch.cat([points, points.new_ones(len(points), 1)], 1) * weights[:, None]


def _derivative(own: Tensor, weights: Tensor, sums: Tensor | None, of_product: bool) -> Tensor | None:
    """A set's derivative from its sums over the other set, in the set's own memory."""
    if sums is None:
        return None
    others, mass = sums[:, :-1], sums[:, -1:]
    if of_product:
        return own.copy_(others).mul_(weights[:, None])
    # d |x - y|^2 = 2 (x - y).(dx - dy)
    return own.mul_(mass).sub_(others).mul_(2 * weights[:, None])


class _Pairs:
    """Both sets in the precision of sums, about the mean of the first where that changes no distance."""

    def __init__(
        self, x: Tensor, y: Tensor, kernel: PairKernel, x_weights: Tensor | None, y_weights: Tensor | None
    ) -> None:
        self.kernel = kernel
        self.dtype = torch.float32 if x.device.type == "mps" else torch.float64
        # Copies, of which the mean is taken off and over which derivatives are written.
        self.x, self.y = (points.detach().to(self.dtype, copy=True) for points in (x, y))
        if not kernel.of_product and len(x):
            centre = self.x.mean(0)
            self.x -= centre
            self.y -= centre
        self.a, self.b = (
            points.new_ones(len(points)) if weights is None else weights.to(self.dtype)
            for points, weights in ((self.x, x_weights), (self.y, y_weights))
        )

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, points, and what the kernel takes, ``[rows, points]``."""
        square, other = (torch.einsum("nd,nd->n", points, points) for points in (self.x, self.y))
        is_near = torch.finfo(self.dtype).eps ** 0.4
        size = max(1, _PAIRS_AT_ONCE // max(1, min(_ROWS_AT_ONCE, len(self.x))))
        for first in range(0, len(self.x), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            for start in range(0, len(self.y), size):
                points = slice(start, start + size)
                u = self.x[rows] @ self.y[points].mT
                if not self.kernel.of_product:
                    scale = square[rows, None] + other[points]
                    u = torch.add(scale, u, alpha=-2, out=u)
                    # Most tiles have no near points, as their least distance tells; not-a-number tells nothing.
                    if not u.amin() > is_near * (square[rows].amax() + other[points].amax()):
                        self._set_near(u, (u <= scale.mul_(is_near)).nonzero(), rows, points)
                yield rows, points, u

    def _set_near(self, u: Tensor, near: Tensor, rows: slice, points: slice) -> None:
        """Near points from their differences: of their products rounding would leave too few digits."""
        for part in torch.split(near, max(1, _PAIRS_AT_ONCE // max(1, self.x.shape[1]))):
            i, j = part.unbind(1)
            u[i, j] = (self.x[rows][i] - self.y[points][j]).square().sum(1)
