"""k-medoids."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._groups import counts_of, group_of_each, members_of
from distillrs.select._k_means import Clusters
from distillrs.select._picks import rows_of
from distillrs.select._points import (
    Integers,
    Points,
    as_matrix,
    as_tensor,
    check_memory,
    copied_bytes,
    kept_bytes,
    whole,
    width_of,
)

MOST_KEPT = 2**28


def k_medoids(
    points: Points,
    k: int | Mapping[int, int] | None = None,
    *,
    fraction: float | None = None,
    start: Integers | None = None,
    iterations: int = 100,
    groups: Integers | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
) -> Clusters:
    """Clusters points around some of them, by FasterPAM's eager swaps (Schubert and Rousseeuw 2021).

    The candidates come in the order of the rows, again and again; one that lowers the sum of the distances of all
    points to their nearest medoid is swapped in at once, for the medoid with which the sum falls most. It ends when no
    single swap lowers the sum. For each candidate only the points that can be nearer to it than to their second medoid
    are looked at; products of all pairs tell which those are. Up to 256 MiB of products are kept from pass to pass, if
    the budget has room for them; with more points they are made again, and memory grows with the points alone.

    Args:
        points: ``[n, ...]``, floating point, finite; float16 and bfloat16 are taken as float32.
        k: Number of clusters, from 1 to ``n``; with groups the number for each, or a mapping from group to number.
        fraction: Share of the points (of each group) instead, from 0 to 1, rounded to the nearest number.
        start: Integers ``[k]``: rows to start from, with groups those of the lowest group first; drawn without.
        iterations: Most passes over the candidates.
        groups: Integers ``[n]``: points of different groups (classes, say) are clustered apart.
        seed: Seed of the drawn start.
        memory_budget: Bytes that the work may take beside the points; ``None`` sets no limit. The work takes about one
            float32 copy of the points, and keeps products in what is left.

    Returns:
        The clusters; ``centres`` are the medoids' own points, and ``inertia`` is the sum of the distances, which are
        not squared here. With groups one after the other, the lowest group first.

    Raises:
        ArgumentError: For points that are not finite (the message has the row), a number out of range, a ``start`` that
            is not ``k`` distinct rows of the groups, groups of another length, or a budget that is too small.
    """
    tensor = as_tensor("points", points)
    iterations = whole("iterations", iterations, 0, 2**63 - 1)
    seed = whole("seed", seed, 0, 2**64 - 1)
    members = members_of(groups, len(tensor))
    counts = counts_of(k, members, least=1, fraction=fraction)
    total = sum(counts.values())
    n, columns = len(tensor), math.prod(tensor.shape[1:])
    largest = max(map(members.size, members), default=0) if members.grouped else 0
    copy = members.nbytes + copied_bytes(tensor) + largest * columns * width_of(tensor, None)
    # A copy of 32 bits, products of a block of candidates, and what is known of every point.
    needed = copy + (4 * columns + 400) * (n + 32) + 2**14 * columns + 64 * total * columns + 2**16
    check_memory(memory_budget, needed)
    kept = kept_bytes(memory_budget, needed, MOST_KEPT)
    starts = None if start is None else rows_of("start", start, n)
    if starts is not None and len(starts) != total:
        raise argument_error("start", f"{len(starts)} rows", f"k = {total} rows")
    matrix = as_matrix(tensor)
    if members.grouped:
        # A group alone would be told of its own rows, not of the caller's.
        _core.check_points(matrix.data)

    labels, medoids = np.empty(n, np.int64), np.empty(total, np.int64)
    loss, first, most = 0.0, 0, 0
    for group, count in counts.items():
        rows = members[group]
        part = slice(first, first + count)
        own_start = None if starts is None else starts[part]
        if own_start is not None and rows is not None:
            places = np.searchsorted(rows, own_start)
            if np.any(rows[np.minimum(places, len(rows) - 1)] != own_start):
                raise argument_error("start", f"rows {own_start.tolist()} for group {group}", "rows of that group")
            own_start = places.astype(np.int64)
        own = matrix if rows is None else matrix[rows]
        own_labels = np.empty(len(own), np.int64)
        # The group's number, not its place: other groups that come or go do not change this one's start.
        unit = group % 2**64
        data = None if own_start is None else own_start.data
        out = (medoids[part].data, own_labels.data)
        own_loss, swaps = _core.k_medoids(own.data, data, iterations, seed, unit, kept, *out)
        loss, most = loss + own_loss, max(most, swaps)
        if rows is None:
            labels = own_labels
        else:
            labels[rows] = own_labels + first
            medoids[part] = rows[medoids[part]]
        first += count
    device = tensor.device
    ids = torch.from_numpy(medoids).to(device)
    return Clusters(
        centres=tensor[ids],
        labels=torch.from_numpy(labels).to(device),
        inertia=loss,
        medoids=ids,
        groups=None if groups is None else group_of_each(counts, device),
        iterations=most,
    )
