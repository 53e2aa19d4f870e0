"""k-means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._groups import Members, counts_of, group_of_each, members_of
from distillrs.select._points import (
    Integers,
    Matrix,
    Points,
    as_matrix,
    as_tensor,
    check_memory,
    copied_bytes,
    whole,
    width_of,
)


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """A clustering of ``n`` points into ``k`` clusters, on the points' device.

    Attributes:
        centres: ``[k, ...]``, in the dtype of the points (labels and inertia belong to them before that rounding).
        labels: int64 ``[n]``: the nearest centre of each point, with groups among those of its own.
        inertia: Sum of the squared distances of the points to their centres.
        medoids: int64 ``[k]``: the point nearest to each centre, with groups among those of its own; where that is the
            medoid of an earlier centre already, the next one. No point comes twice.
        groups: int64 ``[k]``: the group of each centre, rising; ``None`` without groups.
        iterations: Rounds that were run, of k-medoids swaps that were made; with groups the most of any.
    """

    centres: Tensor
    labels: Tensor
    inertia: float
    medoids: Tensor
    groups: Tensor | None = None
    iterations: int = 0


def k_means(
    points: Points,
    k: int | Mapping[int, int] | None = None,
    *,
    fraction: float | None = None,
    start: Points | None = None,
    iterations: int = 100,
    groups: Integers | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
) -> Clusters:
    """Clusters points by Lloyd's rounds from a k-means++ start.

    Each round gives every point to its nearest centre and moves every centre to the mean of its points, until no point
    changes its centre (Lloyd 1982). The start draws points with probability in proportion to the squared distance from
    those already drawn (Arthur and Vassilvitskii 2007). A cluster that loses all its points starts again at the point
    farthest from its own centre; with fewer distinct points than clusters some centres coincide with others and stay
    without points.

    Args:
        points: ``[n, ...]``, floating point, finite; float16 and bfloat16 are taken as float32.
        k: Number of clusters, from 1 to ``n``; with groups the number for each, or a mapping from group to number.
        fraction: Share of the points (of each group) instead, from 0 to 1, rounded to the nearest number.
        start: ``[k, ...]``: centres to start from, with groups those of the lowest group first.
        iterations: Most rounds.
        groups: Integers ``[n]``: points of different groups are clustered apart (classes, say).
        seed: Seed of the start.
        memory_budget: Bytes that the work may take beside the points; ``None`` sets no limit. The work takes about one
            float32 copy of the points.

    Returns:
        The clusters; with groups one after the other, the lowest group first.

    Raises:
        ArgumentError: For points that are not finite (the message has the row), a ``k`` out of range, a ``start`` of
            another shape, groups of another length, or a budget that is too small.
    """
    tensor = as_tensor("points", points)
    iterations = whole("iterations", iterations, 0, 2**63 - 1)
    seed = whole("seed", seed, 0, 2**64 - 1)
    members = members_of(groups, len(tensor))
    counts = counts_of(k, members, least=1, fraction=fraction)
    total = sum(counts.values())
    check_memory(memory_budget, _bytes_needed(tensor, total, members))
    matrix = as_matrix(tensor)
    if members.grouped:
        # A group alone would be told of its own rows, not of the caller's.
        _core.check_points(matrix.data)
    starts = None if start is None else _starts(start, total, tensor)

    centres = np.empty((total, matrix.shape[1]), np.float64)
    labels, medoids = np.empty(len(matrix), np.int64), np.empty(total, np.int64)
    inertia, first, most = 0.0, 0, 0
    for group, count in counts.items():
        rows = members[group]
        own = matrix if rows is None else matrix[rows]
        part = slice(first, first + count)
        own_labels = np.empty(len(own), np.int64)
        own_start = None if starts is None else starts[part].data
        # The group's number, not its place: other groups that come or go do not change this one's start.
        unit = group % 2**64
        own_inertia, rounds = _core.k_means(
            own.data, count, own_start, iterations, seed, unit, centres[part].data, own_labels.data, medoids[part].data
        )
        inertia, most = inertia + own_inertia, max(most, rounds)
        if rows is None:
            labels = own_labels
        else:
            labels[rows] = own_labels + first
            medoids[part] = rows[medoids[part]]
        first += count
    device = tensor.device
    return Clusters(
        centres=torch.from_numpy(centres).to(device=device, dtype=tensor.dtype).reshape(total, *tensor.shape[1:]),
        labels=torch.from_numpy(labels).to(device),
        inertia=inertia,
        medoids=torch.from_numpy(medoids).to(device),
        groups=None if groups is None else group_of_each(counts, device),
        iterations=most,
    )


def _starts(start: Points, total: int, points: Tensor) -> Matrix:
    tensor = as_tensor("start", start)
    if tensor.shape != (total, *points.shape[1:]):
        raise argument_error("start", f"the shape {tuple(tensor.shape)}", f"the shape {(total, *points.shape[1:])}")
    return as_matrix(tensor.to(torch.float64))


def _bytes_needed(points: Tensor, k: int, members: Members) -> int:
    n, d = len(points), math.prod(points.shape[1:])
    largest = max(map(members.size, members), default=0) if members.grouped else 0
    # A float32 copy, and one more for the search of medoids, a part at a time; bounds on 16 groups of centres; sums and
    # bookkeeping of a round; the threads' sums, which take sixteen points for each cluster.
    copies = 5 * n * d + 4 * min(n, 2**14) * d + largest * d * width_of(points, None)
    return members.nbytes + copied_bytes(points) + copies + 160 * n + 64 * k * d + 2**16
