"""Sets of items that occur together often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.select._min_hash import elements_of
from distillrs.select._points import whole


@dataclass(frozen=True, slots=True, eq=False)
class FrequentSets:
    """Sets of items with how often each occurs, on the CPU.

    Attributes:
        offsets: int64 ``[sets + 1]``: where each set's members begin, and where the last one's end.
        members: int64 ``[members]``, rising within a set.
        supports: int64 ``[sets]``: in how many of the given sets all of its members are.
    """

    offsets: Tensor
    members: Tensor
    supports: Tensor

    def __len__(self) -> int:
        return len(self.supports)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        index = whole("index", index, 0, len(self) - 1)
        return tuple(self.members[int(self.offsets[index]) : int(self.offsets[index + 1])].tolist())


def frequent_sets(
    sets: Sequence[Iterable[int]], support: int, *, largest: int | None = None, most: int = 2**20
) -> FrequentSets:
    """Finds every set of items that is contained in at least so many of the given sets.

    Depth first, a set's rows kept as bits, so that one more item is an intersection (Zaki, "Scalable Algorithms for
    Association Mining", 2000); the sets and supports are those of any exact method, FP-growth among them.

    Args:
        sets: ``n`` sets of whole numbers of 64 bits; repeated elements count once.
        support: Least number of sets, at least 1.
        largest: Most members of a found set; ``None`` sets no limit.
        most: Most sets that may be found: ``m`` items that always come together are ``2**m - 1`` sets.

    Returns:
        The sets, not the empty one: the most frequent first, of equals the smaller, then those with lower members.

    Raises:
        ArgumentError: For elements of another kind (the message has the set's place), a number out of range, or more
            than ``most`` sets.
    """
    support = whole("support", support, 1)
    most = whole("most", most, 0)
    largest = None if largest is None else whole("largest", largest, 0)
    rows: dict[int, int] = {}
    for place, members in elements_of(sets):
        for element in members:
            if isinstance(element, bool) or not isinstance(element, int | np.integer) or not _fits(int(element)):
                raise argument_error("sets", f"{element!r} in the set at {place}", "whole numbers of 64 bits")
            rows[int(element)] = rows.get(int(element), 0) | 1 << place
    frequent = sorted((item, bits) for item, bits in rows.items() if bits.bit_count() >= support)
    found: list[tuple[int, int, tuple[int, ...]]] = []
    # A set, its rows, and the higher items that may join it. A stack of our own: sets can be larger than Python's.
    stack: list[tuple[tuple[int, ...], list[tuple[int, int]]]] = [((), frequent)]
    while stack:
        known, joining = stack.pop()
        if largest is not None and len(known) == largest:
            continue
        for place, (item, bits) in enumerate(joining):
            one = (*known, item)
            found.append((-bits.bit_count(), len(one), one))
            if len(found) > most:
                raise argument_error("most", most, f"a larger support than {support}, or a limit by largest=")
            further = [
                (other, both) for other, of in joining[place + 1 :] if (both := bits & of).bit_count() >= support
            ]
            if further:
                stack.append((one, further))
    found.sort()
    ends = np.cumsum([0, *(size for _, size, _ in found)])
    return FrequentSets(
        torch.tensor(ends, dtype=torch.int64),
        torch.tensor([item for *_, one in found for item in one], dtype=torch.int64),
        torch.tensor([-count for count, *_ in found], dtype=torch.int64),
    )


def _fits(element: int) -> bool:
    return -(2**63) <= element < 2**63
