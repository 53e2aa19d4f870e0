"""Clusters of equal size."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.select._points import Points, as_matrix, as_tensor, check_memory, copied_bytes, whole


def balanced_partition(points: Points, k: int, *, iterations: int = 20, memory_budget: int | None = None) -> Tensor:
    r"""Cuts points into parts of equal size whose points lie near each other.

    The points are halved again and again. In each halving two centres :math:`a` and :math:`b` and the assignment of
    fixed sizes to them take turns: the points with the smallest
    :math:`\lVert x - a \rVert^2 - \lVert x - b \rVert^2` go to :math:`a`, which of all halves of that size gives the
    least sum of squared distances to the centres. The first centres are the point farthest from the mean and the one
    farthest from it. Nothing is drawn.

    Args:
        points: ``[n, ...]``, floating point, finite; float16 and bfloat16 are taken as float32.
        k: Number of parts, from 1 to ``n``. The first ``n % k`` parts have one point more than the others.
        iterations: Most rounds of a halving.
        memory_budget: Bytes that the work may take beside the points; ``None`` sets no limit.

    Returns:
        int64 ``[n]``: each point's part, on the points' device.

    Raises:
        ArgumentError: For points that are not finite (the message has the row), a number out of range, or a budget that
            is too small.
    """
    tensor = as_tensor("points", points)
    k = whole("k", k, 1, len(tensor))
    iterations = whole("iterations", iterations, 0, 2**63 - 1)
    columns = math.prod(tensor.shape[1:])
    check_memory(memory_budget, copied_bytes(tensor) + 80 * len(tensor) + 64 * columns + 64 * k + 2**16)
    matrix = as_matrix(tensor)
    labels = np.empty(len(matrix), np.int64)
    _core.balanced_partition(matrix.data, k, iterations, labels.data)
    return torch.from_numpy(labels).to(tensor.device)
