"""Farthest-first picks of texts and of anything else that has distances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Literal, TypeVar, cast

import numpy as np
import torch

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._picks import Picks
from distillrs.select._points import whole

Item = TypeVar("Item")
_NAMED = ("levenshtein", "normalised_levenshtein")


def max_min(
    items: Sequence[Item],
    k: int,
    *,
    metric: Literal["levenshtein", "normalised_levenshtein"] | Callable[[Item, Item], float] = "levenshtein",
    start: int | None = None,
    seed: int = 0,
) -> Picks:
    """Picks items farthest-first: each is the one whose nearest pick so far is farthest (Gonzalez 1985).

    A distance is asked for only between a pick and an item whose last known distance could still win; the picks are
    those of the plain rule. Of items equally far the lowest is picked.

    Args:
        items: ``n`` items; texts for "levenshtein".
        k: Number of picks, from 0 to ``n``.
        metric: "levenshtein", the fewest insertions, deletions and replacements of characters that turn one text into
            the other; "normalised_levenshtein", that by the length of the longer one (0 for two empty texts); or a
            function of an item and a pick that gives their distance, at least 0. The triangle inequality is not needed.
        start: The first pick; drawn without, each item as likely.
        seed: Seed of the drawn first pick.

    Returns:
        The picks, on the CPU; a gain is the pick's distance to the nearest pick before it, infinite for the first.

    Raises:
        ArgumentError: For items that are no texts where "levenshtein" is asked for, a number out of range, or a metric
            that gives something else than a distance. What a metric raises arrives as it is.
    """
    n = _length(items)
    if not callable(metric) and not (isinstance(metric, str) and metric in _NAMED):
        raise argument_error("metric", metric, "'levenshtein', 'normalised_levenshtein' or a function of two items")
    k = whole("k", k, 0, n)
    seed = whole("seed", seed, 0, 2**64 - 1)
    first = None if start is None else whole("start", start, 0, n - 1)
    ids, gains = np.empty(k, np.int64), np.empty(k, np.float64)
    if isinstance(metric, str):
        for place, item in enumerate(items):
            if not isinstance(item, str):
                raise argument_error("items", f"{type(item).__name__} at {place}", f"texts, as the metric is {metric}")
            try:
                item.encode()
            except UnicodeEncodeError as failure:
                raise argument_error("items", f"a lone surrogate at {place}", "texts of characters") from failure
    if metric == "levenshtein":
        _core.max_min_texts(list(cast(Sequence[str], items)), first, seed, ids.data, gains.data)
    else:
        measure = cast(Callable[[Item, Item], float], normalised_levenshtein if isinstance(metric, str) else metric)

        def distance(item: int, pick: int) -> float:
            found = measure(items[item], items[pick])
            try:
                return float(found)
            except (TypeError, ValueError):
                raise argument_error("metric", f"{found!r} between items {item} and {pick}", "numbers") from None

        _core.max_min_items(n, distance, first, seed, ids.data, gains.data)
    return Picks(torch.from_numpy(ids), torch.from_numpy(gains))


def _length(items: object) -> int:
    """How many items; a single text is not read letter by letter.

    Raises:
        ArgumentError: For what has no items in an order.
    """
    is_one = isinstance(items, str | bytes | Mapping)
    if isinstance(items, Sized) and hasattr(type(items), "__getitem__") and not is_one:
        try:
            return len(items)
        except TypeError:  # a tensor without axes
            pass
    raise argument_error("items", items if isinstance(items, str) else type(items).__name__, "a sequence of items")


def normalised_levenshtein(left: str, right: str) -> float:
    """Edits from one text to the other by the characters of the longer one, from 0 to 1; 0 for two empty texts."""
    ids, gains = np.empty(2, np.int64), np.empty(2, np.float64)
    # The second pick of two texts is the other one, and its gain their distance.
    _core.max_min_texts([left, right], 0, 0, ids.data, gains.data)
    return float(gains[1]) / max(len(left), len(right), 1)
