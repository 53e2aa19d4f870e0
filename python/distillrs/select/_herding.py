"""Herding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distillrs import _core
from distillrs.select._groups import Rows
from distillrs.select._picks import Picks, greedy
from distillrs.select._points import Integers, Matrix, Points


def herding(
    points: Points,
    k: int | Mapping[int, int] | None = None,
    *,
    fraction: float | None = None,
    groups: Integers | None = None,
    memory_budget: int | None = None,
) -> Picks:
    r"""Picks points whose mean follows the mean of all (Welling 2009).

    With :math:`\mu` the mean of all points and :math:`S` the sum of the :math:`t` picks so far, the next pick is the
    point :math:`x` with the smallest :math:`\lVert (t + 1) \mu - S - x \rVert`, each point at most once. With groups
    (classes, say) the means are those of the groups. Nothing is drawn.

    Args:
        points: ``[n, ...]``, floating point, finite; float16 and bfloat16 are taken as float32.
        k: Number of picks, from 0 to ``n``; with groups the number for each, or a mapping from group to number.
        fraction: Share of the points (of each group) to pick instead, from 0 to 1, rounded to the nearest number.
        groups: Integers ``[n]``: points of different groups are picked apart.
        memory_budget: Bytes that the work may take beside the points; ``None`` sets no limit. The work takes about half
            of a float32 copy of the points.

    Returns:
        The picks; the gain of pick ``j`` is the distance of the mean of the first ``j + 1`` picks from the mean of all,
        so small is good.

    Raises:
        ArgumentError: For points that are not finite (the message has the row), a number out of range, groups of
            another length, or a budget that is too small.
    """

    def work(
        matrix: Matrix, group: int, rows: Rows | None, ids: Rows, gains: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> None:
        _core.herding(matrix.data, ids.data, gains.data)

    return greedy(
        points, k, fraction, groups, memory_budget, lambda n, d, k: 2 * (n + 32) * d + 16 * n + 128 * d + 48 * k, work
    )
