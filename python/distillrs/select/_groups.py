"""Points of several groups, each treated apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from distillrs.checks import is_number
from distillrs.errors import argument_error
from distillrs.select._points import Integers, integers, whole

Rows: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


class Members(dict[int, Rows | None]):
    """The rows of each group, the lowest group first; all rows (``None``) under one name without groups."""

    def __init__(self, n: int, rows: Mapping[int, Rows | None]) -> None:
        super().__init__(rows)
        self.n = n

    @property
    def grouped(self) -> bool:
        """Whether there are groups."""
        return not (len(self) == 1 and next(iter(self.values())) is None)

    @property
    def nbytes(self) -> int:
        """Bytes that telling the groups apart takes: their numbers, the rows in their order, and both sorted."""
        return 32 * self.n if self.grouped else 0

    def size(self, group: int) -> int:
        """How many points the group has."""
        rows = self[group]
        return self.n if rows is None else len(rows)


def members_of(groups: Integers | None, n: int) -> Members:
    """The members of each group.

    Raises:
        ArgumentError: For groups of another kind or length.
    """
    if groups is None:
        return Members(n, {0: None})
    values = integers("groups", groups, (n,), f"None or integers of shape ({n},)")
    order = np.argsort(values, kind="stable")
    names, firsts = np.unique(values[order], return_index=True)
    return Members(n, {int(name): rows for name, rows in zip(names, np.split(order, firsts[1:]), strict=bool(n))})


def counts_of(
    k: int | Mapping[int, int] | None,
    members: Members,
    *,
    least: int,
    fraction: float | None = None,
    taken: Mapping[int, int] | None = None,
) -> dict[int, int]:
    """How many of each group.

    Args:
        k: The number for each group, or a mapping from group to number.
        members: The groups.
        least: The smallest number allowed.
        fraction: Share of each group instead of a number, rounded to the nearest, halves up.
        taken: Points of each group that cannot be picked.

    Raises:
        ArgumentError: For numbers out of range, a mapping without groups or with other groups, and for both of ``k``
            and ``fraction`` or neither.
    """
    if (k is None) == (fraction is None):
        raise argument_error("k", "neither k nor fraction" if k is None else "k and fraction", "one of the two")
    most = {group: members.size(group) - (taken or {}).get(group, 0) for group in members}
    if fraction is not None:
        if not is_number(fraction) or not 0 <= fraction <= 1:
            raise argument_error("fraction", fraction, "a number from 0 to 1")
        wanted = {group: math.floor(fraction * members.size(group) + 0.5) for group in members}
        for group, count in wanted.items():
            if not least <= count <= most[group]:
                where = f" in group {group}" if members.grouped else ""
                allowed = f"a share that gives from {least} to {most[group]} points"
                raise argument_error("fraction", f"{fraction}, {count} points{where}", allowed)
        return wanted
    if isinstance(k, Mapping):
        if not members.grouped:
            raise argument_error("k", "a mapping", "an integer, or a mapping together with groups")
        if set(k) != set(members):
            raise argument_error(
                "k", f"a mapping with the groups {sorted(k, key=str)}", f"one with the groups {sorted(members)}"
            )
        return {group: _count(k[group], least, most[group], group) for group in members}
    if k is None or not members.grouped:
        return {group: whole("k", k, least, most[group]) for group in members}  # type: ignore[arg-type]  # not None
    return {group: _count(k, least, most[group], group) for group in members}


def group_of_each(counts: Mapping[int, int], device: torch.device) -> Tensor:
    """int64 ``[sum of counts]``: each group as often as it counts."""
    names = torch.tensor(list(counts), dtype=torch.int64, device=device)
    return names.repeat_interleave(torch.tensor(list(counts.values()), dtype=torch.int64, device=device))


def _count(k: int, least: int, most: int, group: int) -> int:
    try:
        return whole("k", k, least, most)
    except ValueError:
        allowed = f"from {least} to its number of points, {most}"
        raise argument_error("k", f"{k!r} for group {group}", allowed) from None
