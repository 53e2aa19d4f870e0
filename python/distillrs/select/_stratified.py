"""The best item of each stretch of a sequence."""

from __future__ import annotations

import torch

from distillrs.errors import argument_error
from distillrs.select._picks import Picks
from distillrs.select._points import Points, as_tensor, whole


def stratified(scores: Points, k: int) -> Picks:
    """Cuts a sequence into ``k`` stretches of equal length and picks the best item of each.

    Stretch ``i`` holds the items from ``i n // k`` to ``(i + 1) n // k - 1``, so that lengths differ by one at most.
    With ``k = 1`` it is the best item of all. A smaller ``k`` has other stretches: picks have no prefix property.

    Args:
        scores: ``[n]``, finite: more is better; of equal ones the first is picked.
        k: Number of picks, from 0 to ``n``.

    Returns:
        The picks in the sequence's order, on the scores' device; a gain is the pick's score.

    Raises:
        ArgumentError: For scores of another kind, one that is not finite (the message has its place), or a ``k`` out of
            range.
    """
    values = as_tensor("scores", scores, axes=1).double()
    n = len(values)
    k = whole("k", k, 0, n)
    wrong = (~values.isfinite()).nonzero()
    if len(wrong):
        place = int(wrong[0, 0])
        raise argument_error("scores", f"{float(values[place])} at {place}", "finite values")
    ends = torch.arange(k + 1, device=values.device) * n // max(k, 1)
    stretch = torch.searchsorted(ends, torch.arange(n if k else 0, device=values.device), right=True) - 1
    used = values[: len(stretch)]
    best = used.new_full((k,), -torch.inf).scatter_reduce(0, stretch, used, "amax")
    places = torch.arange(len(stretch), device=values.device).where(used == best[stretch], n)
    ids = torch.full((k,), n, device=values.device).scatter_reduce(0, stretch, places, "amin")
    return Picks(ids, best)
