"""k-center."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from distillrs import _core, random
from distillrs.checks import check_choice
from distillrs.errors import argument_error
from distillrs.ops import _backends
from distillrs.ops._cuda import _farthest
from distillrs.select._groups import Members, Rows, counts_of
from distillrs.select._partitioned import Shortlist, Values, check_partitions, shortlist, shortlist_of_all
from distillrs.select._picks import Picks, greedy, rows_of
from distillrs.select._points import Integers, Matrix, Points, as_tensor, check_memory, directions, integers, whole
from distillrs.select._processes import Part, Peers, greedy_sharded, replicas
from distillrs.step import Step

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def k_center(
    points: Points,
    k: int | Mapping[int, int] | None = None,
    *,
    fraction: float | None = None,
    chosen: Integers | None = None,
    start: int | Mapping[int, int] | None = None,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    method: Literal["exact", "partitioned"] = "exact",
    partitions: int | None = None,
    groups: Integers | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    process_group: ProcessGroup | None = None,
    replicated: bool = False,
) -> Picks:
    """Picks points farthest-first: each is the one farthest from all picks before it (Gonzalez 1985).

    The largest distance that is left from a point to its nearest pick is at most twice the smallest possible one. The
    picks are exactly those of the plain rule; but a point's distance is brought up to date only when it could win,
    since a stale one is an upper bound. float32, bfloat16 and float16 points on a CUDA device stay there, with the
    euclidean metric and without groups: each pick is one pass of a kernel over them, which may choose another of points
    that are equally far but for the last bits of a float64 sum.

    "partitioned" takes two rounds: every part of the points picks ``k`` for itself, and those are picked among. The
    largest distance left is then at most four times the smallest possible one (Malkomes and others 2015), and processes
    talk once for each group instead of once for each pick. As the parts' picks depend on ``k``, the first of them are
    not what a smaller ``k`` gives.

    With ``process_group`` every process passes its own rows, some of them none, in the order of the ranks, and the same
    other arguments; rows are counted over all processes. All get all picks, and with "exact" they are those of one
    process with all rows, to the last bit.

    The first pick is ``start`` where it is given; else, where points are ``chosen``, the one farthest from those; else
    one that is drawn from all points, each as likely, by ``seed`` and the group's number.

    Args:
        points: ``[n, ...]``, floating point, finite; float16 and bfloat16 are taken as float32.
        k: Number of picks, from 0 to the points that are not chosen; with groups the number for each, or a mapping
            from group to number.
        fraction: Share of the points (of each group) to pick instead, from 0 to 1, rounded to the nearest number.
        chosen: Integers ``[m]``: rows that count as picked before; they are not picked again.
        start: The first pick; with groups a mapping from group to row, for any of them.
        metric: "euclidean", or "cosine" for 1 minus the cosine between two points.
        method: "exact" or "partitioned", which takes neither ``chosen`` nor ``start``.
        partitions: Parts of the points of each group for "partitioned", consecutive rows of about equal number; with
            ``process_group`` the rows of a process are a part.
        groups: Integers ``[n]``: points of different groups (classes, say) are picked apart.
        seed: Seed of the drawn first picks.
        memory_budget: Bytes that the work may take beside the points; ``None`` sets no limit. The work takes about one
            float32 copy of the points.
        process_group: Processes that hold the points together; ``None`` for this one alone, whatever is initialised.
        replicated: Every process of ``process_group`` has all points instead; whole groups are shared out over them.

    Returns:
        The picks; a gain is the pick's distance to the nearest point picked or chosen before it, infinite for a first
        pick. Gains never rise.

    Raises:
        ArgumentError: For points that are not finite or, with "cosine", zero (the message has the row), a number out
            of range, rows that are not there, groups of another length, a budget that is too small, or processes whose
            arguments disagree.
    """
    check_choice("method", method, ("exact", "partitioned"))
    check_partitions(partitions, method == "partitioned", process_group, replicated)
    for name, value in (("chosen", chosen), ("start", start)):
        if method == "partitioned" and value is not None:
            raise argument_error(name, "a value with method='partitioned'", "None, or method='exact'")
    check_choice("metric", metric, ("euclidean", "cosine"))
    seed = whole("seed", seed, 0, 2**64 - 1)
    prepare = directions if metric == "cosine" else None
    # Whether they are rows is looked at below, where it is known how many rows there are.
    listed = [] if chosen is None else integers("chosen", chosen, (None,), "None or integers [m]").tolist()

    def needed(n: int, d: int, k: int) -> int:
        cosine = 2**17 * (metric == "cosine")
        return 4 * n * d + 64 * n + ((partitions or 1) * k + len(listed) + 32) * (12 * d + 16) + cosine

    def finish(gains: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
        if metric == "cosine":
            # Unit vectors: |a - b|^2 = 2 - 2 cos.
            np.divide(np.square(gains), 2, out=gains)

    def candidates(part: Matrix, count: int, place: int) -> tuple[Rows, Values]:
        ids, gains = np.empty(count, np.int64), np.empty(count, np.float64)
        _core.k_center(part.data, np.empty(0, np.int64).data, None, seed, place, ids.data, gains.data)
        return ids, gains

    def among(found: Shortlist, ids: Rows, gains: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
        start = 0 if len(ids) else None
        _core.k_center(found.matrix.data, np.empty(0, np.int64).data, start, seed, 0, ids.data, gains.data)
        ids[:] = found.places[ids]
        finish(gains)

    settings = (k, fraction, start, metric, method, seed, listed)
    if process_group is not None and not replicated:
        peers = Peers(process_group)

        def named(n: int, members: Members) -> tuple[Rows, list[int]]:
            return rows_of("chosen", chosen, n), list(_starts(start, groups, n, members).values())

        def sharded(
            matrix: Matrix, group: int, part: Part, ids: Rows, gains: np.ndarray[tuple[int], np.dtype[np.float64]]
        ) -> None:
            if method == "partitioned":
                among(shortlist_of_all(matrix, len(ids), peers, candidates, part.first), ids, gains)
                return
            first = start.get(group) if isinstance(start, Mapping) else start
            if first is not None and first not in part.places:
                raise argument_error("start", f"the row {first} for group {group}", "a row of that group")
            own = np.array([part.places[row] for row in listed if row in part.places], np.int64)
            at = None if first is None else part.places[first]
            unit = group % 2**64
            _core.k_center_sharded(
                matrix.data,
                part.first,
                part.total,
                peers.count,
                peers.gather,
                own.data,
                at,
                seed,
                unit,
                ids.data,
                gains.data,
            )
            finish(gains)

        return greedy_sharded(
            points,
            k,
            fraction,
            groups,
            memory_budget,
            needed,
            sharded,
            peers,
            settings=settings,
            prepare=prepare,
            named=named,
        )

    tensor = as_tensor("points", points)
    n = len(tensor)
    before_rows = rows_of("chosen", chosen, n)
    alone = process_group is None and groups is None and method == "exact" and metric == "euclidean"
    if alone and _farthest.is_served(tensor):
        slower = f"k_center brings the points from {tensor.device} to the CPU, which is slower"
        if _backends.is_ready(lambda: _farthest.prepare(tensor), slower):
            first = _starts(start, None, n, Members(n, {0: None})).get(0)
            return _on_device(tensor, k, fraction, before_rows, first, seed, memory_budget)
    starts: dict[int, int] = {}

    def taken(members: Members) -> dict[int, int]:
        starts.update(_starts(start, groups, n, members))
        return {group: len(_inside(before_rows, rows)) for group, rows in members.items()}

    def work(
        matrix: Matrix, group: int, rows: Rows | None, ids: Rows, gains: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> None:
        if method == "partitioned":
            among(shortlist(matrix, len(ids), min(partitions or 1, max(1, len(matrix))), candidates), ids, gains)
            return
        own = _inside(before_rows, rows)
        first = starts.get(group)
        if first is not None and rows is not None:
            place = int(np.searchsorted(rows, first))
            if place == len(rows) or rows[place] != first:
                raise argument_error("start", f"the row {first} for group {group}", "a row of that group")
            first = place
        # The group's number, not its place: other groups that come or go do not change this one's first pick.
        _core.k_center(matrix.data, own.data, first, seed, group % 2**64, ids.data, gains.data)
        finish(gains)

    return greedy(
        points,
        k,
        fraction,
        groups,
        memory_budget,
        needed,
        work,
        prepare=prepare,
        taken=taken,
        peers=None if process_group is None else replicas(process_group, points, groups, settings),
    )


def _on_device(
    points: Tensor,
    k: int | Mapping[int, int] | None,
    fraction: float | None,
    chosen: Rows,
    start: int | None,
    seed: int,
    memory_budget: int | None,
) -> Picks:
    n = len(points)
    count = counts_of(k, Members(n, {0: None}), least=0, fraction=fraction, taken={0: len(chosen)})[0]
    if start is not None and start in chosen:
        raise argument_error("start", start, f"a row from 0 to {n} - 1 that is not chosen")
    flat = points.reshape(n, math.prod(points.shape[1:]))
    copy = 0 if flat.is_contiguous() and flat.data_ptr() == points.data_ptr() else flat.nbytes
    check_memory(memory_budget, copy + _farthest.bytes_needed(n))
    flat = flat.contiguous()
    wrong = (~flat.isfinite()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise argument_error("points", f"{float(flat[row, column])} in row {row}, column {column}", "finite values")
    if start is None and not len(chosen) and count:
        # As the core draws it.
        start = int(random.integers(range(1), n, step=Step(0, seed=seed), name="k-center start"))
    return Picks(*_farthest.traverse(flat, chosen.tolist(), start, count))


def _starts(start: int | Mapping[int, int] | None, groups: Integers | None, n: int, members: Members) -> dict[int, int]:
    if start is None:
        return {}
    if isinstance(start, Mapping):
        if groups is None:
            raise argument_error("start", "a mapping", "a row, or a mapping together with groups")
        unknown = set(start) - set(members)
        if unknown:
            raise argument_error("start", f"the group {min(unknown, key=str)}", f"the groups {sorted(members)}")
        return {group: whole("start", row, 0, n - 1) for group, row in start.items()}
    if groups is not None:
        raise argument_error("start", start, "a mapping from group to row, as there are groups")
    return {0: whole("start", start, 0, n - 1)}


def _inside(chosen: Rows, rows: Rows | None) -> Rows:
    """Places of the chosen rows within a group's rows, which rise."""
    if rows is None:
        return chosen
    own = chosen[np.isin(chosen, rows)]
    return np.searchsorted(rows, own).astype(np.int64)
