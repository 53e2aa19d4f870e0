"""How the core numbers the rows of a tensor."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

RowLayout: TypeAlias = tuple[int, int, int, int, int]

CORE_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def row_layout(tensor: Tensor) -> RowLayout | None:
    """Address, columns, rows in a run, elements between runs, elements between rows.

    Two strides are enough for any view of a matrix and for a slice of a batch of sequences, such as ``logits[:, :-1]``.

    Args:
        tensor: ``[..., columns]``.

    Returns:
        The layout, or ``None`` if the columns are not contiguous or more strides would be needed.
    """
    columns = tensor.shape[-1]
    if columns > 1 and tensor.stride(-1) != 1:
        return None
    runs: list[tuple[int, int]] = []
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    if len(runs) > 2:
        return None
    inner, inner_stride = runs[-1] if runs else (1, 0)
    outer_stride = runs[0][1] if len(runs) == 2 else 0
    return tensor.data_ptr(), columns, max(inner, 1), outer_stride, inner_stride


def vector(tensor: Tensor) -> tuple[int, int]:
    """Address and length of a contiguous tensor."""
    return tensor.data_ptr(), tensor.numel()
