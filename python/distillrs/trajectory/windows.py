"""Which windows of which trajectories a step of training reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import floor

import torch

from distillrs import random
from distillrs.checks import is_number
from distillrs.errors import DataError, argument_error
from distillrs.random import Units
from distillrs.step import Step

Starts = range | Callable[[Step], range | float | int] | None


def check_span(span: int) -> int:
    """The span itself, if it is one.

    Raises:
        ArgumentError: It is not a whole number of at least 1.
    """
    if not isinstance(span, int) or isinstance(span, bool) or span < 1:
        raise argument_error("span", span, "a number of steps of at least 1")
    return span


def starts_at(start: Starts, step: Step) -> range | None:
    """The range of starts at a step; ``None`` is every start there is.

    Args:
        start: A range, or a curriculum: a function of the step that gives a range or an excluded upper end.
        step: Where the run stands.

    Raises:
        ArgumentError: The range is empty, goes backwards or begins below 0.
    """
    allowed = "a non-empty rising range from 0, or a function of the step that gives one (or its excluded end)"
    found = start(step) if callable(start) else start
    if found is None:
        return None
    if is_number(found) and callable(start):
        found = range(floor(found))
    if not isinstance(found, range) or len(found) == 0 or found.step < 1 or found.start < 0:
        raise argument_error("start", found, allowed)
    return found


def window_choices(
    lengths: Mapping[str, int], missing: Callable[[str], Sequence[int]], span: int, allowed: range | None
) -> list[tuple[str, Sequence[int]]]:
    """Each trajectory that holds whole windows, with the starts of those that begin in ``allowed``.

    Args:
        lengths: Steps of each trajectory, in a fixed order of keys.
        missing: Steps of a trajectory that cannot be read.
        span: Steps from a window's first to its last record.
        allowed: See :func:`starts_at`.

    Raises:
        ArgumentError: No trajectory holds a window that begins in ``allowed``.
        DataError: There is no trajectory.
    """
    check_span(span)
    if not lengths:
        raise DataError(
            "store: it holds no complete trajectory; record one (leave the writer's block without an error)"
        )
    choices = [
        (key, candidates)
        for key, length in lengths.items()
        if (candidates := _starts(length, missing(key), span, allowed))
    ]
    if not choices:
        longest = max(lengths.values())
        if longest <= span:
            raise argument_error("span", span, f"at most {longest - 1} (the longest trajectory has {longest} steps)")
        raise argument_error(
            "start",
            allowed,
            f"starts from 0 to {longest - 1 - span} whose records are there "
            f"(start + span must exist; the longest trajectory has {longest} steps)",
        )
    return choices


def draw_windows(
    choices: Sequence[tuple[str, Sequence[int]]], units: Units, step: Step, name: str
) -> list[tuple[str, int]]:
    """Draws windows: a trajectory uniformly, then one of its starts uniformly.

    The draw for a unit depends on the step, the seed, the unit's global id and the choices; ranks and restarts that see
    the same store agree.

    Args:
        choices: See :func:`window_choices`.
        units: How many windows, or their global ids.
        step: Where the run stands.
        name: Name of the draw; two samplers with different names draw independently.

    Returns:
        For each unit a key and the step at which its window begins.
    """
    which = random.integers(units, len(choices), step=step, name=f"{name}.trajectory").tolist()
    where = random.uniform(units, step=step, name=f"{name}.start", dtype=torch.float64).tolist()
    windows = []
    for index, position in zip(which, where, strict=True):
        key, candidates = choices[index]
        windows.append((key, candidates[int(position * len(candidates))]))
    return windows


def _starts(length: int, missing: Sequence[int], span: int, allowed: range | None) -> Sequence[int]:
    """Starts in ``allowed`` whose first and last records are there."""
    present = range(max(0, length - span))
    if allowed is None:
        candidates: Sequence[int] = present
    else:
        candidates = range(allowed.start, min(allowed.stop, present.stop), allowed.step)
    if missing:
        gone = set(missing)
        candidates = [start for start in candidates if start not in gone and start + span not in gone]
    return candidates
