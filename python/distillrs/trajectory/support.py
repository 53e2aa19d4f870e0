"""Which tokens of a teacher's distribution a cache keeps: those that the teacher, the student or both chose."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from distillrs.errors import SchemaMismatch, argument_error
from distillrs.ops import TopK
from distillrs.ops._sparse import split_events
from distillrs.trajectory.store import Store

Support: TypeAlias = Literal["teacher", "student", "union"]

SUPPORTS: tuple[str, ...] = get_args(Support)


def union_support(teacher: Tensor | TopK, student: Tensor | TopK) -> Tensor:
    """The ids that either side chose, each once: the teacher's first, then the student's others.

    The teacher's alone leave the student's own tokens to the tail, the student's alone the teacher's modes. For a
    :class:`TeacherCache` of ``support="union"`` whose ``k`` is the sum of both.

    Args:
        teacher: int64 or int32 ``[..., a]``, -1 for none, or a top-k.
        student: int64 or int32 ``[..., b]`` of the same rows, or a top-k.

    Returns:
        int64 ``[..., a + b]``, -1 behind the last.

    Raises:
        ArgumentError: Neither ids nor a top-k, or other rows or another device on one side.
    """
    first, second = _ids("teacher", teacher), _ids("student", student)
    if first.shape[:-1] != second.shape[:-1] or first.device != second.device:
        got = f"ids {list(second.shape)} on {second.device}"
        raise argument_error("student", got, f"ids of the teacher's rows, {list(first.shape[:-1])} on {first.device}")
    both = torch.cat([first, second], -1)
    ordered = both.sort(dim=-1, stable=True)
    repeats = torch.zeros_like(both, dtype=torch.bool)
    repeats[..., 1:] = ordered.values[..., 1:] == ordered.values[..., :-1]
    # Stable, so that of equal ids the first one stays.
    both = both.masked_fill(torch.zeros_like(repeats).scatter(-1, ordered.indices, repeats), -1)
    return both.gather(-1, (both < 0).to(torch.int8).sort(dim=-1, stable=True).indices)


def top_k_of(logits: Tensor, ids: Tensor, temperatures: tuple[float, ...]) -> TopK:
    """A teacher's distribution at ids that somebody chose, computed where the logits are.

    Args:
        logits: ``[rows, vocabulary]``, floating.
        ids: int64 ``[rows, k]``, distinct in a row, from 0 to the vocabulary less 1; -1 for none.
        temperatures: Those whose log-partition is kept, beside 1.
    """
    log_probs = logits.detach().float().log_softmax(-1)
    entries, outside = split_events(log_probs, ids.to(logits.device))
    partitions = {each: (log_probs / each).logsumexp(-1) for each in temperatures if each != 1}
    return TopK(ids.to(logits.device), entries, outside.logsumexp(-1), partitions)


def check_support(support: object, k: int) -> None:
    """Refuses what names no support, and one that somebody chooses where nothing is kept.

    Raises:
        ArgumentError: Either.
    """
    if not isinstance(support, str) or support not in SUPPORTS:
        raise argument_error("support", support, '"teacher", "student" or "union"')
    if k == 0 and support != "teacher":
        raise argument_error("support", support, '"teacher" with k=0, which keeps the sampled token only')


def check_same_support(store: Store, metadata: str, support: str) -> None:
    """Refuses to join a cache of another support.

    Args:
        store: The one that is there.
        metadata: The entry of its metadata with the settings.
        support: The one asked for.

    Raises:
        SchemaMismatch: They differ.
    """
    form: Any = store.metadata.get(metadata)
    there = form.get("support", "teacher") if isinstance(form, dict) else support
    if there != support:
        raise SchemaMismatch(f"support of {store.path} differs: {there!r} there, {support!r} in use")


def check_ids(ids: Tensor | None, support: str, vocabulary: int) -> None:
    """Refuses ids where the teacher chooses, their absence where somebody else does, and ids that are none.

    Args:
        ids: int64 ``[rows, k]`` on the CPU, or ``None``.
        support: Of the cache.
        vocabulary: Of the cache.

    Raises:
        ArgumentError: They do not fit.
    """
    if support == "teacher" and ids is not None:
        allowed = 'None in a cache of support="teacher", which keeps the k largest; create it with "student" or "union"'
        raise argument_error("ids", "ids", allowed)
    if support != "teacher" and ids is None:
        whose = "the student's ids" if support == "student" else "those of union_support(teacher, student)"
        raise argument_error("ids", None, f'{whose}, [tokens, k], in a cache of support="{support}"')
    if ids is None or not ids.numel():
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < -1 or high >= vocabulary:
        raise argument_error("ids", low if low < -1 else high, f"ids from 0 to {vocabulary - 1}, or -1 for none")


def _ids(name: str, side: Tensor | TopK) -> Tensor:
    if isinstance(side, TopK):
        return side.ids.masked_fill(side.log_probs == -torch.inf, -1).long()
    if not isinstance(side, Tensor) or side.dtype not in (torch.int64, torch.int32) or not side.ndim:
        got = f"{side.dtype} {list(side.shape)}" if isinstance(side, Tensor) else type(side).__name__
        raise argument_error(name, got, "int64 or int32 ids [..., k], or an ops.TopK")
    return side.detach().long().clamp(min=-1)
