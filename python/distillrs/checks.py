"""Refusals of what is no number, truth value or name, or out of its range, by the argument's name."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import torch

from distillrs.errors import argument_error


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is one finite number of Python or numpy, and no truth value."""
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def numbers(name: str, values: object) -> tuple[float, ...]:
    """A sequence of finite numbers as Python's own; a text is not read letter by letter.

    Args:
        name: The argument, as the caller wrote it.
        values: What was passed: a sequence, or a tensor of one axis.

    Raises:
        ArgumentError: It is no such sequence.
    """
    # What is plainly right is not taken apart: a tensor's items would be tensors.
    if isinstance(values, torch.Tensor) and values.ndim == 1 and values.is_floating_point() and not values.is_meta:
        values = values.tolist()
    if isinstance(values, list | tuple) and set(map(type, values)) == {float} and all(map(math.isfinite, values)):
        return tuple(values)
    try:
        items: tuple[object, ...] = tuple(values)  # type: ignore[arg-type]  # what has no items is refused below
        # Not float() alone: it reads texts, too.
        texts = isinstance(values, str | bytes) or any(isinstance(value, str) for value in items)
        found = None if texts else tuple(map(float, items))  # type: ignore[arg-type]  # likewise
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is a tensor's of several numbers
        found = None
    if found is None:
        raise argument_error(name, values, "a sequence of numbers")
    for value in found:
        check_number(name, value, "a sequence of finite numbers")
    return found


def check_number(
    name: str,
    value: object,
    allowed: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuses what is not a finite number within its bounds: a text, a truth value, a tensor, an infinity.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        allowed: What would have been accepted, in words.
        least: Smallest value.
        above: Bound that it must exceed.
        most: Largest value.
        below: Bound that it must stay under.

    Raises:
        ArgumentError: It is not.
    """
    if not is_number(value) or not (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        raise argument_error(name, value, allowed)


def check_whole(name: str, value: object, allowed: str, *, least: int, most: int | None = None) -> None:
    """Refuses what is not a whole number within its bounds; arguments are those of :func:`check_number`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise argument_error(name, value, allowed)
    if value < least or (most is not None and value > most):
        raise argument_error(name, value, allowed)


def check_size(name: str, value: object, allowed: str = "a positive number", *, least: int = 1) -> None:
    """Refuses what is no size of a tensor's axis; 2^31 is more than any has, and less than what torch cannot read.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        allowed: What would have been accepted, in words.
        least: Smallest size.

    Raises:
        ArgumentError: It is not.
    """
    check_whole(name, value, f"{allowed}, at most 2**31", least=least, most=2**31)


def check_flag(name: str, value: object) -> None:
    """Refuses what is neither true nor false; "no" would count as true.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.

    Raises:
        ArgumentError: It is neither.
    """
    if not isinstance(value, bool | np.bool_):
        raise argument_error(name, value, "True or False")


def check_instance(name: str, value: object, kind: type, allowed: str) -> None:
    """Refuses what is of another class, by the name of what it is: a module's own text can fill pages.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        kind: The class, or one that it must derive from.
        allowed: What would have been accepted, in words.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(value, kind):
        shown = value if isinstance(value, bool | int | float | str | None) else type(value).__name__
        raise argument_error(name, shown, allowed)


def described(value: object) -> object:
    """What stands in a refusal for a value: a tensor or array by type and shape, anything large by its class."""
    if isinstance(value, torch.Tensor | np.ndarray):
        layout = f" {value.layout}" if isinstance(value, torch.Tensor) and value.layout != torch.strided else ""
        on_meta = " without values" if isinstance(value, torch.Tensor) and value.is_meta else ""
        return f"{value.dtype} {tuple(value.shape)}{layout}{on_meta}"
    return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


def check_floating(
    name: str, value: object, allowed: str, *, axes: int | None = None, least_axes: int = 0, rows: int = 0
) -> None:
    """Refuses what is no dense tensor of floating-point values: an array, integers, a sparse one.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        allowed: What would have been accepted, in words.
        axes: How many; ``None`` for any.
        least_axes: At least so many.
        rows: Least length of the first axis.

    Raises:
        ArgumentError: It is not.
    """
    if (
        not isinstance(value, torch.Tensor)
        or not value.is_floating_point()
        or value.layout != torch.strided
        or value.is_meta
        or (axes is not None and value.ndim != axes)
        or value.ndim < least_axes
        or (rows and (not value.ndim or len(value) < rows))
    ):
        raise argument_error(name, described(value), allowed)


def check_turn(turn: object, *names: str) -> None:
    """Refuses a turn that an objective has not.

    Args:
        turn: What was passed; ``None`` is the first.
        names: The turns.

    Raises:
        ArgumentError: It is none of them.
    """
    if turn is not None and (not isinstance(turn, str) or turn not in names):
        raise argument_error("turn", turn, " or ".join(["None", *map(repr, names)]))


def check_text(name: str, value: object, allowed: str = "a string that is not empty") -> None:
    """Refuses what is not a string with at least one character.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        allowed: What would have been accepted, in words.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(value, str) or not value:
        raise argument_error(name, value, allowed)


def check_names(name: str, value: object, allowed: str = "a list of names") -> None:
    """Refuses what is not a sequence of strings; a single string would count as one name a letter.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        allowed: What would have been accepted, in words.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(each, str) for each in value):
        raise argument_error(name, value, allowed)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuses what is none of some words, an array of them, too.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        choices: At least two words that would have been accepted.

    Raises:
        ArgumentError: It is none.
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = map(repr, choices)
        raise argument_error(name, value, f"{', '.join(others)} or {last}")


def check_callable(name: str, value: object, allowed: str) -> None:
    """Refuses what cannot be called.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.
        allowed: What would have been accepted, in words.

    Raises:
        ArgumentError: It cannot.
    """
    if not callable(value):
        raise argument_error(name, value, allowed)


def check_path(name: str, value: object) -> None:
    """Refuses what cannot be the path of a file or folder.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.

    Raises:
        ArgumentError: It cannot.
    """
    if not isinstance(value, str | os.PathLike):
        raise argument_error(name, value, "a path: a string or a pathlib.Path")


def device_of(name: str, value: object) -> torch.device:
    """The device that was named; ``None`` is the CPU.

    Args:
        name: The argument, as the caller wrote it.
        value: What was passed.

    Raises:
        ArgumentError: It names none.
    """
    if value is None:
        return torch.device("cpu")
    if isinstance(value, bool) or not isinstance(value, str | int | torch.device):
        raise argument_error(name, value, "None or a device, such as 'cpu' or 'cuda:0'")
    try:
        found = torch.device(value)
    except (RuntimeError, ValueError) as failure:  # the second is a number beyond 64 bits
        raise argument_error(name, value, "None or a device, such as 'cpu' or 'cuda:0'") from failure
    if found.type == "cuda" and (found.index or 0) >= (there := torch.cuda.device_count()):
        raise argument_error(name, str(value), f"a device of this machine, which has {there} of CUDA")
    return found
