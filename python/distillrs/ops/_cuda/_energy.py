"""Sums of a kernel over pairs of points.

The kernels give sums for each row and part of the points; weights of the rows are brought in here. The gradient of the
other set is that of the first with both exchanged.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda._launcher import TYPES, active
from distillrs.ops._cuda._mixture import parts_of
from distillrs.ops._cuda._module import Argument
from distillrs.ops._cuda._parts import constants
from distillrs.ops._kernels import Gaussian, InverseMultiquadric, Laplacian, NegativeDistance, PairKernel, Polynomial

# As in cuda/energy.cu.
ROWS = 32
POINTS = 64
THREADS = 128
KINDS: dict[type[PairKernel], int] = {
    Gaussian: 0,
    Laplacian: 1,
    NegativeDistance: 2,
    InverseMultiquadric: 3,
    Polynomial: 4,
}


def refusal(x: Tensor, y: Tensor, kernel: PairKernel) -> tuple[str, str] | None:
    """Why this backend cannot serve a call, and what it could; ``None`` if it can."""
    if x.device.type != active().device_type:
        return f"tensors on {x.device}", "tensors on a CUDA device"
    for value in (x, y):
        if value.dtype not in TYPES:
            return f"{value.dtype}", "float32, bfloat16 or float16"
    if type(kernel) not in KINDS:
        return f"the kernel {kernel!r}", "one of distillrs.ops"
    return None


def prepare(x: Tensor, y: Tensor) -> None:
    """Compiles what a call needs.

    Raises:
        ArgumentError: The backend is not there.
        KernelCompileError: The compiler refuses the source.
    """
    for one, other in ((x, y), (y, x)):
        active().module("energy", _types(one, other), x.device)


def value(x: Tensor, y: Tensor, kernel: PairKernel, x_weights: Tensor | None, y_weights: Tensor | None) -> Tensor:
    """``sum_ij a_i b_j k(x_i, y_j)``, float64.

    Args:
        x: ``[n, d]``.
        y: ``[m, d]``.
        kernel: One that is not refused.
        x_weights: ``[n]``: a, or ``None``.
        y_weights: ``[m]``: b, or ``None``.
    """
    parts = parts_of(len(x), len(y))
    sums = torch.zeros(parts, len(x), dtype=torch.float64, device=x.device)
    _launch("energy_values", x, y, kernel, y_weights, parts, sums)
    rows = sums.sum(0)
    return rows.sum() if x_weights is None else x_weights.double() @ rows


def slopes(x: Tensor, y: Tensor, kernel: PairKernel, x_weights: Tensor | None, y_weights: Tensor | None) -> Tensor:
    """The derivative of :func:`value` with respect to x, float64 ``[n, d]``.

    Args:
        x: ``[n, d]``.
        y: ``[m, d]``.
        kernel: One that is not refused.
        x_weights: ``[n]``: a, or ``None``.
        y_weights: ``[m]``: b, or ``None``.
    """
    parts = parts_of(len(x), len(y))
    sums = torch.zeros(parts, *x.shape, dtype=torch.float64, device=x.device)
    _launch("energy_slopes", x, y, kernel, y_weights, parts, sums)
    # d |x - y|^2 = 2 (x - y).dx; the kernel's y has the other sign where u is a product.
    total = sums.sum(0) * (-1 if kernel.of_product else 2)
    return total if x_weights is None else x_weights.double()[:, None] * total


def _launch(
    name: str, x: Tensor, y: Tensor, kernel: PairKernel, y_weights: Tensor | None, parts: int, sums: Tensor
) -> None:
    degree, numbers = _numbers(kernel)
    arguments: dict[str, Argument] = {
        "x": x.contiguous(),
        "y": y.contiguous(),
        "weights": None if y_weights is None else y_weights.double().contiguous(),
        "rows": np.int64(len(x)),
        "points": np.int64(len(y)),
        "points_at_once": np.int64(-(-len(y) // (parts * POINTS)) * POINTS),
        "width": np.uint32(x.shape[1]),
        "kind": np.int32(KINDS[type(kernel)]),
        "degree": np.int32(degree),
        "numbers": constants(numbers, torch.float64, x.device),
        "count": np.int32(len(numbers)),
        "sums": sums,
    }
    grid = (-(-len(x) // ROWS), parts, 1)
    active().launch("energy", name, _types(x, y), x.device, grid, (THREADS, 1, 1), arguments)


def _numbers(kernel: PairKernel) -> tuple[int, tuple[float, ...]]:
    """The degree and the numbers of a kernel, as the source has them."""
    match kernel:
        case Gaussian():
            return 0, kernel.rates()
        case Laplacian():
            return 0, (1 / kernel.bandwidth,)
        case InverseMultiquadric():
            return 0, (1 / kernel.bandwidth**2, float(kernel.exponent))
        case Polynomial():
            return kernel.degree, (float(kernel.scale), float(kernel.offset))
    # A pointer to something.
    return 0, (0.0,)


def _types(x: Tensor, y: Tensor) -> dict[str, torch.dtype]:
    return {"ROWS": x.dtype, "POINTS": y.dtype}
