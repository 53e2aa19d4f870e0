"""k-center."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from distillrs import _core, random
from distillrs.errors import argument_error
from distillrs.ops import _backends
from distillrs.ops._cuda import _farthest
from distillrs.select._groups import Members, Rows, counts_of
from distillrs.select._picks import Picks, greedy, rows_of
from distillrs.select._points import Matrix, Points, as_tensor, check_memory, directions, whole
from distillrs.step import Step


def k_center(
    points: Points,
    k: int | Mapping[int, int] | None = None,
    *,
    fraction: float | None = None,
    chosen: Tensor | None = None,
    start: int | Mapping[int, int] | None = None,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    groups: Tensor | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
) -> Picks:
    """Picks points farthest-first: each is the one farthest from all picks before it (Gonzalez 1985).

    The largest distance that is left from a point to its nearest pick is at most twice the smallest possible one. The
    picks are exactly those of the plain rule; but a point's distance is brought up to date only when it could win,
    since a stale one is an upper bound. float32, bfloat16 and float16 points on a CUDA device stay there, with the
    euclidean metric and without groups: each pick is one pass of a kernel over them, which may choose another of points
    that are equally far but for the last bits of a float64 sum.

    The first pick is ``start`` where it is given; else, where points are ``chosen``, the one farthest from those; else
    one that is drawn from all points, each as likely, by ``seed`` and the group's number.

    Args:
        points: ``[n, ...]``, floating point, finite; float16 and bfloat16 are taken as float32.
        k: Number of picks, from 0 to the points that are not chosen; with groups the number for each, or a mapping
            from group to number.
        fraction: Share of the points (of each group) to pick instead, from 0 to 1, rounded to the nearest number.
        chosen: int64 ``[m]``: rows that count as picked before; they are not picked again.
        start: The first pick; with groups a mapping from group to row, for any of them.
        metric: "euclidean", or "cosine" for 1 minus the cosine between two points.
        groups: int64 ``[n]``: points of different groups (classes, say) are picked apart.
        seed: Seed of the drawn first picks.
        memory_budget: Bytes that the work may take beside the points; ``None`` sets no limit. The work takes about one
            float32 copy of the points.

    Returns:
        The picks; a gain is the pick's distance to the nearest point picked or chosen before it, infinite for a first
        pick. Gains never rise.

    Raises:
        ArgumentError: For points that are not finite or, with "cosine", zero (the message has the row), a number out
            of range, rows that are not there, groups of another length, or a budget that is too small.
    """
    if metric not in ("euclidean", "cosine"):
        raise argument_error("metric", metric, "'euclidean' or 'cosine'")
    tensor = as_tensor("points", points)
    n, seed = len(tensor), whole("seed", seed, 0, 2**64 - 1)
    before = rows_of("chosen", chosen, n)
    starts = _starts(start, groups, n)
    if metric == "euclidean" and groups is None and _farthest.is_served(tensor):
        slower = f"k_center brings the points from {tensor.device} to the CPU, which is slower"
        if _backends.is_ready(lambda: _farthest.prepare(tensor), slower):
            return _on_device(tensor, k, fraction, before, starts.get(0), seed, memory_budget)

    def taken(members: Members) -> dict[int, int]:
        unknown = set(starts) - set(members)
        if unknown:
            raise argument_error("start", f"the group {min(unknown)}", f"the groups {sorted(members)}")
        return {group: len(_inside(before, rows)) for group, rows in members.items()}

    def work(
        matrix: Matrix, group: int, rows: Rows | None, ids: Rows, gains: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> None:
        own = _inside(before, rows)
        first = starts.get(group)
        if first is not None and rows is not None:
            place = int(np.searchsorted(rows, first))
            if place == len(rows) or rows[place] != first:
                raise argument_error("start", f"the row {first} for group {group}", "a row of that group")
            first = place
        # The group's number, not its place: other groups that come or go do not change this one's first pick.
        _core.k_center(matrix.data, own.data, first, seed, group % 2**64, ids.data, gains.data)
        if metric == "cosine":
            # Unit vectors: |a - b|^2 = 2 - 2 cos.
            np.divide(np.square(gains), 2, out=gains)

    return greedy(
        points,
        k,
        fraction,
        groups,
        memory_budget,
        lambda n, d, k: (
            4 * n * d + 64 * n + (len(before) + k + 32) * (12 * d + 16) + (2**17 + 8 * n * d) * (metric == "cosine")
        ),
        work,
        prepare=directions if metric == "cosine" else lambda matrix: matrix,
        taken=taken,
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


def _starts(start: int | Mapping[int, int] | None, groups: Tensor | None, n: int) -> dict[int, int]:
    if start is None:
        return {}
    if isinstance(start, Mapping):
        if groups is None:
            raise argument_error("start", "a mapping", "a row, or a mapping together with groups")
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
