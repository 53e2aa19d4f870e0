"""Conditions of a batch: dictionaries of tensors whose first axis is the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from distillrs.errors import argument_error

Condition: TypeAlias = Mapping[str, Any] | None
"""Keyword arguments of a network; tensors have the batch as their first axis, other values belong to the call."""


def check_condition(name: str, value: object) -> None:
    """Refuses what is neither a dictionary nor ``None``."""
    if value is not None and not isinstance(value, Mapping):
        raise argument_error(name, type(value).__name__, "the network's keyword arguments by name, or None")


def rows_of(value: Tensor | None, rows: Tensor) -> Tensor | None:
    """Some rows of what may not be there."""
    return None if value is None else value[rows]


def select(condition: Condition, rows: Tensor) -> Condition:
    """The condition of some rows."""
    if condition is None:
        return None
    return {name: value[rows] if isinstance(value, Tensor) else value for name, value in condition.items()}


def join(first: Condition, second: Condition) -> Condition:
    """The condition of one batch followed by another's.

    Raises:
        ArgumentError: If they have other names, or values that do not belong to rows and differ.
    """
    _same_names(first, second)
    if first is None or second is None:
        return None
    joined = {}
    for name, value in first.items():
        other = second[name]
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            joined[name] = torch.cat([value, other])
        elif value is other or value == other:
            joined[name] = value
        else:
            raise argument_error("null_condition", f"another {name!r}", "the same value, unless it is a tensor of rows")
    return joined


def replace_rows(condition: Condition, null: Condition, rows: Tensor) -> Condition:
    """The condition with that of some rows replaced.

    Args:
        condition: Of the batch.
        null: What stands in its place.
        rows: bool ``[n]``.
    """
    _same_names(condition, null)
    if condition is None or null is None:
        return None
    replaced = {}
    for name, value in condition.items():
        if isinstance(value, Tensor):
            mask = rows.to(value.device).reshape(-1, *(1,) * (value.dim() - 1))
            replaced[name] = torch.where(mask, null[name], value)
        else:
            replaced[name] = value
    return replaced


def _same_names(first: Condition, second: Condition) -> None:
    if set(first or ()) != set(second or ()) or (first is None) != (second is None):
        got = None if second is None else sorted(second)
        allowed = "the names of the condition, " + (str(sorted(first)) if first is not None else "which is None")
        raise argument_error("null_condition", got, allowed)
