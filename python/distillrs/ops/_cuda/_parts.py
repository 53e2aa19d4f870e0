"""A divergence as the kernels take it: kinds, parameters and weights of its parts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda._module import Argument
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

# As in cuda/divergences.cuh.
MAX_PARTS = 16
_FORWARD, _REVERSE = 0, 1
_KINDS = {
    ForwardKL: (_FORWARD, None),
    ReverseKL: (_REVERSE, None),
    JensenShannon: (2, "beta"),
    SkewKL: (3, "alpha"),
    SkewReverseKL: (4, "alpha"),
    TotalVariation: (5, None),
    Alpha: (6, "a"),
}


def refusal(divergence: RowDivergence) -> tuple[str, str] | None:
    """Why the kernels cannot serve a divergence, and what they could; ``None`` if they can."""
    parts = _parts(divergence)
    for part in parts:
        # A subclass may have changed the formulas.
        if type(part) not in _KINDS:
            return f"the divergence {part}", "the divergences of distillrs.ops"
    if len(parts) > MAX_PARTS:
        return f"a mixture of {len(parts)} divergences", f"a mixture of at most {MAX_PARTS}"
    return None


def part_arguments(divergence: RowDivergence, shape: tuple[int, ...], device: torch.device) -> dict[str, Argument]:
    """The parameters ``kinds`` to ``parts`` of the kernels.

    Args:
        divergence: One that is not refused.
        shape: Leading axes of the rows.
        device: Where they will run.
    """
    parts = _parts(divergence)
    kinds = tuple(_kind(part) for part in parts)
    if any(isinstance(weight, Tensor) for weight in parts.values()):
        rows = [_row_weights(weight, shape, device) for weight in parts.values()]
        weights = torch.stack(rows)
        strides = (weights.stride(0), 1)
    else:
        weights = _constants(tuple(float(weight) for weight in parts.values()), torch.float64, device)
        strides = (1, 0)
    return {
        "kinds": _constants(tuple(kind for kind, _ in kinds), torch.int32, device),
        "parameters": _constants(tuple(parameter for _, parameter in kinds), torch.float32, device),
        "weights": weights,
        "weight_part_stride": np.int64(strides[0]),
        "weight_row_stride": np.int64(strides[1]),
        "parts": np.int32(len(parts)),
    }


def _parts(divergence: RowDivergence) -> dict[RowDivergence, float | Tensor]:
    return dict(divergence.weights) if type(divergence) is Mixture else {divergence: 1.0}


def _kind(part: RowDivergence) -> tuple[int, float]:
    kind, name = _KINDS[type(part)]
    parameter = float(getattr(part, name)) if name is not None else 0.0
    # Without the other side's share, a skewed divergence is the plain one, whose sums are free.
    if parameter == 0 and isinstance(part, SkewKL | SkewReverseKL):
        return (_FORWARD if isinstance(part, SkewKL) else _REVERSE), 0.0
    return kind, parameter


def _row_weights(weight: float | Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if not isinstance(weight, Tensor):
        return torch.full(shape, weight, dtype=torch.float64, device=device).reshape(-1)
    return weight.to(device, torch.float64).expand(shape).reshape(-1)


@lru_cache(maxsize=256)
def _constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, because bringing a few numbers to a GPU makes the processor wait for it."""
    return torch.tensor(values, dtype=dtype, device=device)
