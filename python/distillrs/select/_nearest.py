"""Nearest neighbours."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._points import Points, as_matrix, as_tensor, check_memory, copied_bytes, whole


class Neighbours(NamedTuple):
    """The nearest points of each query, nearest first, on the queries' device.

    Attributes:
        ids: int64 ``[q, k]``: rows of the points.
        distances: float64 ``[q, k]``: Euclidean distances, not squared.
    """

    ids: Tensor
    distances: Tensor


def nearest(queries: Points, points: Points, k: int, *, memory_budget: int | None = None) -> Neighbours:
    """Finds the nearest points of every query, exactly.

    Args:
        queries: ``[q, ...]``, floating point, finite.
        points: ``[n, ...]`` of the same trailing shape, floating point, finite.
        k: How many neighbours, at most ``n``.
        memory_budget: Bytes that the work may take beside its arguments; ``None`` sets no limit.

    Returns:
        Ids and distances; of points equally far the lowest id comes first.

    Raises:
        ArgumentError: For values that are not finite (the message has the row), shapes that differ, a ``k`` out of
            range, or a budget that is too small.
    """
    query_tensor, point_tensor = as_tensor("queries", queries), as_tensor("points", points)
    if query_tensor.shape[1:] != point_tensor.shape[1:]:
        got = f"rows of shape {tuple(query_tensor.shape[1:])}"
        raise argument_error("queries", got, f"rows of the points' shape, {tuple(point_tensor.shape[1:])}")
    k = whole("k", k, 0, len(point_tensor))
    count, columns = len(query_tensor), math.prod(point_tensor.shape[1:])
    copies = copied_bytes(query_tensor) + copied_bytes(point_tensor) + 4 * min(len(point_tensor), 2**14) * columns
    check_memory(memory_budget, copies + count * (64 + 48 * k) + 2**18 * columns)
    query_matrix, point_matrix = as_matrix(query_tensor), as_matrix(point_tensor)
    ids, distances = np.empty((count, k), np.int64), np.empty((count, k), np.float64)
    _core.nearest(query_matrix.data, point_matrix.data, k, ids.data, distances.data)
    device = query_tensor.device
    return Neighbours(torch.from_numpy(ids).to(device), torch.from_numpy(distances).to(device))
