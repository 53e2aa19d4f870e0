"""A divergence as the kernels take it: kinds, parameters and weights of its parts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda._module import Argument
from distillrs.ops._divergences import ForwardKL, ReverseKL, RowDivergence, SkewKL, SkewReverseKL
from distillrs.ops._parts import PARAMETERS, parameter_of, parts_of, row_weights
from distillrs.ops._parts import refusal as unknown

# As in cuda/divergences.cuh.
MAX_PARTS = 16
# Kinds, as in the same place.
KINDS = {part: kind for kind, part in enumerate(PARAMETERS)}


def refusal(divergence: RowDivergence) -> tuple[str, str] | None:
    """Why the kernels cannot serve a divergence, and what they could; ``None`` if they can."""
    reason = unknown(divergence)
    if reason is not None:
        return reason
    parts = parts_of(divergence)
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
    parts = parts_of(divergence)
    kinds = tuple(_kind(part) for part in parts)
    if any(isinstance(weight, Tensor) for weight in parts.values()):
        rows = [row_weights(weight, shape, device) for weight in parts.values()]
        weights = torch.stack(rows)
        strides = (weights.stride(0), 1)
    else:
        weights = constants(tuple(float(weight) for weight in parts.values()), torch.float64, device)
        strides = (1, 0)
    return {
        "kinds": constants(tuple(kind for kind, _ in kinds), torch.int32, device),
        "parameters": constants(tuple(parameter for _, parameter in kinds), torch.float32, device),
        "weights": weights,
        "weight_part_stride": np.int64(strides[0]),
        "weight_row_stride": np.int64(strides[1]),
        "parts": np.int32(len(parts)),
    }


def _kind(part: RowDivergence) -> tuple[int, float]:
    parameter = parameter_of(part)
    # Without the other side's share, a skewed divergence is the plain one, whose sums are free.
    if parameter == 0 and isinstance(part, SkewKL | SkewReverseKL):
        return KINDS[ForwardKL if isinstance(part, SkewKL) else ReverseKL], 0.0
    return KINDS[type(part)], parameter


@lru_cache(maxsize=256)
def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A few numbers on a device; kept, because bringing them to a GPU makes the processor wait for it.

    Args:
        values: The numbers.
        dtype: Theirs.
        device: Where they are read.
    """
    return torch.tensor(values, dtype=dtype, device=device)
