"""The check of a selector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.select import Picks
from distillrs.step import Step


def check_selector(
    selector: Callable[[Tensor, int], Picks],
    *,
    count: int = 40,
    width: int = 3,
    k: int = 12,
    least: int = 0,
    seed: int = 0,
) -> None:
    """Checks a selector of points.

    Picks are different rows, with a gain each, in an order whose beginning is what a smaller number would have given;
    the same points give the same picks, whatever their layout and whether they come in float32 or the same numbers in
    float64; the points are left as they were; no pick, and all of them, may be asked for; more, a negative number, and
    points that are not finite are refused.

    Args:
        selector: Called with points ``[count, width]`` and a number; bind other settings with ``functools.partial``.
        count: Points to try.
        width: Their columns.
        k: Picks to try, below ``count``.
        least: Smallest number of picks that it takes.
        seed: Of the points.

    Raises:
        AssertionError: The selector breaks one of these promises.
    """
    points = random.normal(count, width, step=Step(0, seed=seed), name="check.points", dtype=torch.float32)
    before = points.clone()
    found = _checked(selector(points, k), count, k)
    assert torch.equal(points, before), "the points were changed"
    again = selector(points, k)
    assert torch.equal(again.ids, found.ids), "the same points give other picks"
    assert torch.equal(again.gains, found.gains), "the same points give other gains"
    wide = torch.zeros(count, 2 * width)
    wide[:, ::2] = points
    assert torch.equal(selector(wide[:, ::2], k).ids, found.ids), "the layout of the points changes the picks"
    assert torch.equal(selector(points.double(), k).ids, found.ids), "the same numbers in float64 give other picks"
    for fewer in sorted({least, 1, k // 2, k - 1} - set(range(least))):
        first = _checked(selector(points, fewer), count, fewer)
        assert torch.equal(first.ids, found.prefix(fewer).ids), f"{fewer} picks are not the first of {k}"
        close = torch.allclose(first.gains, found.prefix(fewer).gains, rtol=1e-9, atol=1e-12, equal_nan=True)
        assert close, f"the gains of {fewer} picks are not the first of {k}"
    _checked(selector(points, count), count, count)
    _check_refusals(selector, points, count)


def _checked(picks: Picks, count: int, k: int) -> Picks:
    assert isinstance(picks, Picks), f"a {type(picks).__name__} and no select.Picks"
    assert picks.ids.dtype == torch.int64, f"ids are {picks.ids.dtype}, not int64"
    assert tuple(picks.ids.shape) == (k,), f"{k} picks were asked for, ids have the shape {tuple(picks.ids.shape)}"
    assert picks.gains.dtype == torch.float64, f"gains are {picks.gains.dtype}, not float64"
    assert picks.gains.shape == picks.ids.shape, f"gains have the shape {tuple(picks.gains.shape)} for {k} picks"
    assert not bool(picks.gains.isnan().any()), "a gain is not a number"
    assert bool(((picks.ids >= 0) & (picks.ids < count)).all()), "an id is no row of the points"
    assert len(set(picks.ids.tolist())) == k, "a point is picked twice"
    return picks


def _check_refusals(selector: Callable[[Tensor, int], Picks], points: Tensor, count: int) -> None:
    infinite = points.clone()
    infinite[3, 0] = torch.inf
    for name, given, number in (
        ("more picks than points", points, count + 1),
        ("a negative number of picks", points, -1),
        ("a point that is not finite", infinite, 2),
    ):
        try:
            selector(given, number)
        except ArgumentError:
            continue
        raise AssertionError(f"{name}: taken, and not refused by an ArgumentError")
