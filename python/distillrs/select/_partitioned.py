"""Two rounds: every part of the points picks for itself, then picks are made among those."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from distillrs.checks import check_flag
from distillrs.errors import argument_error
from distillrs.select._groups import Rows
from distillrs.select._points import Matrix, whole

if TYPE_CHECKING:
    from distillrs.select._processes import Peers

Values: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]


class Shortlist(NamedTuple):
    """What the parts picked.

    Attributes:
        places: Rows of all points, part after part.
        matrix: Their coordinates, float64.
        weights: How many points each stands for.
    """

    places: Rows
    matrix: Matrix
    weights: Values


def check_partitions(partitions: int | None, is_partitioned: bool, process_group: object, replicated: bool) -> None:
    """Refuses a number of parts where there is no use for one, or none where one is needed.

    Raises:
        ArgumentError: For those, and for ``replicated`` without processes.
    """
    check_flag("replicated", replicated)
    if replicated and process_group is None:
        raise argument_error("replicated", True, "False, or True together with process_group")
    is_sharded = process_group is not None and not replicated
    if not is_partitioned or is_sharded:
        if partitions is not None:
            allowed = (
                "None: with process_group a process's rows are a part"
                if is_sharded
                else "None, or a number with method='partitioned'"
            )
            raise argument_error("partitions", partitions, allowed)
    elif partitions is None:
        raise argument_error("partitions", None, "a number of parts, with method='partitioned'")
    else:
        whole("partitions", partitions, 1)


def shortlist(
    matrix: Matrix, k: int, partitions: int, pick: Callable[[Matrix, int, int], tuple[Rows, Values]], *, first: int = 0
) -> Shortlist:
    """Picks within consecutive parts of the points, of about equal size.

    Args:
        matrix: The points.
        k: Picks of each part; all of its points, where it has fewer.
        partitions: How many parts.
        pick: Given a part, a number and the part's place, rows of the part and how many points each stands for.
        first: Row of the first point among all.
    """
    found = []
    edges = [len(matrix) * part // partitions for part in range(partitions + 1)]
    for part, (start, end) in enumerate(pairwise(edges)):
        rows, weights = pick(matrix[start:end], min(k, end - start), part)
        found.append((rows + (first + start), matrix[start + rows].astype(np.float64), weights))
    return Shortlist(*(np.concatenate(values) for values in zip(*found, strict=True)))


def shortlist_of_all(
    matrix: Matrix, k: int, peers: Peers, pick: Callable[[Matrix, int, int], tuple[Rows, Values]], first: int
) -> Shortlist:
    """The same with the points of each process as a part."""
    rows, weights = pick(matrix, min(k, len(matrix)), peers.rank)
    found = peers.gather_objects((rows + first, matrix[rows].astype(np.float64), weights))
    return Shortlist(*(np.concatenate(values) for values in zip(*found, strict=True)))
