"""Facility location."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from distillrs import _core
from distillrs.checks import check_choice
from distillrs.errors import argument_error
from distillrs.select._groups import Rows
from distillrs.select._partitioned import Shortlist, Values, check_partitions, shortlist, shortlist_of_all
from distillrs.select._picks import Picks, greedy
from distillrs.select._points import Integers, Matrix, Points, as_tensor, copied_bytes, kept_bytes, whole
from distillrs.select._processes import Part, Peers, greedy_sharded, replicas

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MOST_KEPT = 2**26


def facility_location(
    points: Points,
    k: int | Mapping[int, int] | None = None,
    *,
    fraction: float | None = None,
    similarity: Literal["euclidean"] = "euclidean",
    method: Literal["lazy", "stochastic", "partitioned"] = "lazy",
    sample: int | None = None,
    neighbours: int | None = None,
    partitions: int | None = None,
    groups: Integers | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    process_group: ProcessGroup | None = None,
    replicated: bool = False,
) -> Picks:
    r"""Picks points so that every point has a pick near it, greedily.

    The value of picks :math:`S` is :math:`\sum_i \max_{j \in S} (M - \lVert x_i - x_j \rVert^2)`; each pick is the
    point that adds most. The greedy value is at least :math:`1 - 1/e` of the largest (Nemhauser, Wolsey and Fisher
    1978). The constant :math:`M` is :math:`(2 \max_i \lVert x_i - \mu \rVert)^2`, :math:`\mu` the mean: at least the
    largest squared distance, for which other libraries look at every pair. A larger constant adds to the first gain and
    changes no pick.

    "lazy" gives the picks of plain greedy: a gain only falls as others are picked, so stale gains are upper bounds and
    few are computed anew (Minoux 1978); the first pick is the point nearest to the mean. "stochastic" takes the best of
    a few random candidates for each pick (Mirzasoleiman and others 2015). "partitioned" takes two rounds (Mirzasoleiman
    and others 2013): every part of the points picks ``k`` for itself, and lazy greedy picks among those, each standing
    for the points of its part that are nearest to it; as the parts' picks depend on ``k``, the first of them are not
    what a smaller ``k`` gives. None of them holds a matrix of similarities.

    With ``process_group`` every process passes its own rows, some of them none, in the order of the ranks, and the same
    other arguments; rows are counted over all processes. All get all picks, and with "lazy" and "stochastic" they and
    their gains are those of one process with all rows, to the last bit, since gains are sums of whole numbers of a tiny
    unit. "partitioned" lets the processes talk once for each group.

    Args:
        points: ``[n, ...]``, floating point, finite; float16 and bfloat16 are taken as float32.
        k: Number of picks, from 0 to ``n``; with groups the number for each, or a mapping from group to number.
        fraction: Share of the points (of each group) to pick instead, from 0 to 1, rounded to the nearest number.
        similarity: "euclidean", a constant minus the squared distance.
        method: "lazy", "stochastic" or "partitioned".
        sample: Candidates for each pick of "stochastic"; ``None`` takes ``n / k * log(10)``, for which the expected
            value is at least 1 - 1/e - 0.1 of the largest. As it depends on ``k``, only picks with a ``sample`` that is
            given are prefixes of more picks.
        neighbours: Count the similarity of a point only to its ``neighbours`` nearest points, itself among them; to all
            others it is zero, as if they were as far away as two points can be. Memory then grows with ``n`` times
            ``neighbours``, and a candidate's gain costs a look at the few points that it is near to. With ``n`` the
            picks are those without. Only with "lazy", in one process.
        partitions: Parts of the points of each group for "partitioned", consecutive rows of about equal number; with
            ``process_group`` the rows of a process are a part.
        groups: Integers ``[n]``: points of different groups (classes, say) are picked apart.
        seed: Seed of the random candidates.
        memory_budget: Bytes that the work may take beside the points; ``None`` sets no limit. The work takes about one
            float32 copy of the points, and keeps up to 64 MiB of intermediate results in what is left.
        process_group: Processes that hold the points together; ``None`` for this one alone, whatever is initialised.
        replicated: Every process of ``process_group`` has all points instead; whole groups are shared out over them.

    Returns:
        The picks; gains are what each added to the value, and their sum is the value, with "partitioned" as far as its
        second round sees it. Of equal gains the lowest point is picked.

    Raises:
        ArgumentError: For points that are not finite (the message has the row), a number or name out of range, groups
            of another length, a budget that is too small, or processes whose arguments disagree.
    """
    if not isinstance(similarity, str) or similarity != "euclidean":
        raise argument_error("similarity", similarity, "'euclidean'")
    check_choice("method", method, ("lazy", "stochastic", "partitioned"))
    check_partitions(partitions, method == "partitioned", process_group, replicated)
    if sample is not None:
        if method != "stochastic":
            raise argument_error("sample", sample, "None, or a number together with method='stochastic'")
        sample = whole("sample", sample, 1, 2**63 - 1)
    if neighbours is not None:
        if method != "lazy":
            raise argument_error("neighbours", neighbours, "None, or a number together with method='lazy'")
        neighbours = whole("neighbours", neighbours, 1)
        if process_group is not None and not replicated:
            raise argument_error("neighbours", neighbours, "None together with process_group, unless replicated")
    seed = whole("seed", seed, 0, 2**64 - 1)

    def needed(n: int, d: int, k: int) -> int:
        listed = (partitions or 1) * k * (16 * d + 64) if method == "partitioned" else 0
        return listed + (
            _bytes_needed(n, d, k) if neighbours is None else _bytes_needed_sparse(n, d, k, min(neighbours, n))
        )

    def candidates(part: Matrix, count: int, place: int) -> tuple[Rows, Values]:
        ids, gains = np.empty(count, np.int64), np.empty(count, np.float64)
        _core.facility_location(part.data, None, seed, place, 0, None, ids.data, gains.data)
        owners, distances = np.empty((len(part), min(1, count)), np.int64), np.empty((len(part), min(1, count)))
        _core.nearest(part.data, np.ascontiguousarray(part[ids]).data, min(1, count), owners.data, distances.data)
        return ids, np.bincount(owners.ravel(), minlength=count).astype(np.float64)

    def among(found: Shortlist, ids: Rows, gains: Values) -> None:
        _core.facility_location_weighted(found.matrix.data, found.weights.data, ids.data, gains.data)
        ids[:] = found.places[ids]

    settings = (k, fraction, method, sample, neighbours, seed)
    if process_group is not None and not replicated:
        peers = Peers(process_group)

        def sharded(matrix: Matrix, group: int, part: Part, ids: Rows, gains: Values) -> None:
            if method == "partitioned":
                among(shortlist_of_all(matrix, len(ids), peers, candidates, part.first), ids, gains)
                return
            drawn = _drawn(sample, part.total, len(ids)) if method == "stochastic" else None
            unit = group % 2**64
            _core.facility_location_sharded(
                matrix.data, part.first, part.total, peers.count, peers.gather, drawn, seed, unit, ids.data, gains.data
            )

        return greedy_sharded(points, k, fraction, groups, memory_budget, needed, sharded, peers, settings=settings)

    def work(
        matrix: Matrix, group: int, rows: Rows | None, ids: Rows, gains: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> None:
        if method == "partitioned":
            among(shortlist(matrix, len(ids), min(partitions or 1, max(1, len(matrix))), candidates), ids, gains)
            return
        drawn = _drawn(sample, len(matrix), len(ids)) if method == "stochastic" else None
        if neighbours is not None and neighbours > len(matrix):
            where = "" if rows is None else f" for group {group}"
            raise argument_error("neighbours", f"{neighbours}{where}", f"from 1 to its number of points, {len(matrix)}")
        copy = copied_bytes(as_tensor("points", points)) + (matrix.nbytes if rows is not None else 0)
        kept = kept_bytes(memory_budget, copy + needed(*matrix.shape, len(ids)) + 2**16, MOST_KEPT)
        _core.facility_location(matrix.data, drawn, seed, group % 2**64, kept, neighbours, ids.data, gains.data)

    peers_of_all = None if process_group is None else replicas(process_group, points, groups, settings)
    return greedy(points, k, fraction, groups, memory_budget, needed, work, peers=peers_of_all)


def _drawn(sample: int | None, n: int, k: int) -> int:
    return max(1, math.ceil(n / max(1, k) * math.log(10))) if sample is None else sample


def _bytes_needed(n: int, d: int, k: int) -> int:
    # A copy of 32 bits, what is known of every point, candidates in tiles, and the moments of the points.
    return 4 * (n + 32) * d + 200 * n + 2**20 + 2**10 * d + 48 * min(d, 512) ** 2 + 48 * k


def _bytes_needed_sparse(n: int, d: int, k: int, neighbours: int) -> int:
    # Ids and similarities as found, both again by candidate; what is known of every point; the search's parts.
    return 28 * n * neighbours + 80 * n + 2**14 * (48 * neighbours + 64) + 2**16 * d + 2**18 * d + 48 * k
