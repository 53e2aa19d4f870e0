"""Picks, and what every greedy selector does around its core."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._groups import Members, Rows, counts_of, group_of_each, members_of
from distillrs.select._points import (
    Integers,
    Matrix,
    Points,
    Prepare,
    as_matrix,
    as_tensor,
    check_memory,
    integers,
    prepared_bytes,
    whole,
    width_of,
)

if TYPE_CHECKING:
    from distillrs.select._processes import Peers


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """Points in the order in which they were picked, on the points' device.

    Attributes:
        ids: int64 ``[k]``: rows of the points, each at most once. With groups one group after the other, the lowest
            first.
        gains: float64 ``[k]``: what each pick was worth when it was made, by the selector's own measure.
        groups: int64 ``[k]``: the group of each pick; ``None`` without groups.
    """

    ids: Tensor
    gains: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def prefix(self, j: int) -> Picks:
        """The first ``j`` picks, with groups the first ``j`` of each: those that ``k = j`` would have given.

        Not so for picks that were made with ``k`` in view: those of "partitioned", of "stochastic" without ``sample``,
        and of :func:`stratified`, whose first ``j`` are part of another choice.

        Args:
            j: How many, at most the number of picks; with groups at most that of the largest group, and groups with
                fewer picks keep all of theirs.

        Raises:
            ArgumentError: For a ``j`` out of range.
        """
        if self.groups is None:
            part: Tensor | slice = slice(whole("j", j, 0, len(self.ids)))
        else:
            _, sizes = torch.unique_consecutive(self.groups, return_counts=True)
            firsts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
            places = torch.arange(len(self.ids), device=self.ids.device) - firsts
            part = places < whole("j", j, 0, int(sizes.max()) if len(sizes) else 0)
        return Picks(self.ids[part], self.gains[part], None if self.groups is None else self.groups[part])


class Work(Protocol):
    """Picks among the points of one group.

    Args:
        matrix: The group's points.
        group: Its number, 0 without groups.
        rows: Its rows among all points; ``None`` for all of them.
        ids: Filled with rows of ``matrix``.
        gains: Filled.
    """

    def __call__(
        self,
        matrix: Matrix,
        group: int,
        rows: Rows | None,
        ids: Rows,
        gains: np.ndarray[tuple[int], np.dtype[np.float64]],
    ) -> None: ...


def greedy(
    points: Points,
    k: int | Mapping[int, int] | None,
    fraction: float | None,
    groups: Integers | None,
    memory_budget: int | None,
    bytes_needed: Callable[[int, int, int], int],
    work: Work,
    *,
    prepare: Prepare | None = None,
    taken: Callable[[Members], Mapping[int, int]] = lambda members: {},
    peers: Peers | None = None,
) -> Picks:
    """Runs ``work`` on every group.

    Args:
        points: ``[n, ...]``.
        k: Number of picks, or of each group's.
        fraction: Share of the points instead.
        groups: Integers ``[n]`` or ``None``.
        memory_budget: Bytes allowed.
        bytes_needed: Bytes that a group of ``n`` points with ``d`` columns takes for ``k`` picks.
        work: What picks.
        prepare: Changes all points first, into float64.
        taken: Points of each group that cannot be picked.
        peers: Processes that have the same points and share the groups out.
    """
    tensor = as_tensor("points", points)
    members = members_of(groups, len(tensor))
    counts = counts_of(k, members, least=0, fraction=fraction, taken=taken(members))
    if memory_budget is not None:
        columns = math.prod(tensor.shape[1:])
        sizes = [(members.size(group), columns, count) for group, count in counts.items()]
        largest = max((n for n, _, _ in sizes), default=0) if members.grouped else 0
        held = members.nbytes + prepared_bytes(tensor, prepare) + largest * columns * width_of(tensor, prepare)
        check_memory(memory_budget, held + max((bytes_needed(*size) for size in sizes), default=0) + 2**16)
    matrix = as_matrix(tensor) if prepare is None else prepare(as_matrix(tensor))
    if members.grouped:
        # A group alone would be told of its own rows, not of the caller's.
        _core.check_points(matrix.data)
    total = sum(counts.values())
    ids, gains = np.full(total, -1, np.int64), np.zeros(total, np.float64)
    # A pick looks at its whole group, more or less.
    costs = {group: float(members.size(group)) * (1 + count) for group, count in counts.items()}
    own = set(counts) if peers is None else peers.share(costs)
    first = 0
    for group, count in counts.items():
        rows = members[group]
        part = slice(first, first + count)
        first += count
        if group not in own:
            continue
        work(matrix if rows is None else matrix[rows], group, rows, ids[part], gains[part])
        if rows is not None:
            ids[part] = rows[ids[part]]
    if peers is not None:
        peers.merge(ids, gains)
    return Picks(
        ids=torch.from_numpy(ids).to(tensor.device),
        gains=torch.from_numpy(gains).to(tensor.device),
        groups=None if groups is None else group_of_each(counts, tensor.device),
    )


def rows_of(name: str, rows: Integers | None, n: int) -> Rows:
    """Distinct rows as int64 on the CPU; none for ``None``.

    Raises:
        ArgumentError: For anything but integers ``[m]``, distinct rows from 0 to ``n - 1``.
    """
    allowed = f"None or integers [m], distinct rows from 0 to {n} - 1"
    if rows is None:
        return np.empty(0, np.int64)
    values = integers(name, rows, (None,), allowed)
    outside = (values < 0) | (values >= n)
    if outside.any():
        raise argument_error(name, int(values[outside][0]), allowed)
    _, repeats = np.unique(values, return_counts=True)
    if (repeats > 1).any():
        raise argument_error(name, "a row that comes twice", allowed)
    return values
