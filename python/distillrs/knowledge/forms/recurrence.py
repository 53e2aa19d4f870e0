"""Causal attention without a softmax: a memory of fixed size that every token reads and writes.

``S_t = a_t S_(t-1) + k_t v_t^T``, ``o_t = q_t^T S_t``, with a decay ``a_t`` from 0 to 1. Within a chunk of tokens the
sum is written as masked products of matrices, between chunks the memory is handed on (Hua et al., Transformer Quality
in Linear Time, ICML 2022; with decays Dao and Gu, Transformers are SSMs, ICML 2024). Memory and time are linear in the
length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from distillrs.checks import check_instance, check_whole
from distillrs.errors import argument_error

CHUNK = 64
"""Tokens whose products are formed at once."""


def chunked_recurrence(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    log_decay: Tensor | None = None,
    segments: Tensor | None = None,
    memory: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """All outputs of the recurrence, and the memory after the last token.

    Args:
        queries: ``[B, H, L, F]``; H is a multiple of G, and head h reads the memory of group ``h // (H / G)``.
        keys: ``[B, G, L, F]``.
        values: ``[B, G, L, D]``.
        log_decay: ``[B, G, L]``, at most 0: the logarithm of ``a_t``; ``None`` for a decay of 1.
        segments: int64 ``[B, L]``, not falling: a token reads what tokens of its own segment wrote. ``None`` for one.
        memory: ``[B, G, F, D]`` from the tokens before, which belong to the first token's segment; ``None`` for none.
        chunk: Tokens at once, from 1; it changes rounding and speed, not what is computed.

    Returns:
        Outputs ``[B, H, L, D]``, and the memory ``[B, G, F, D]`` of the last token's segment.

    Raises:
        ArgumentError: Shapes that do not fit, or a chunk below 1.
    """
    batch, groups, length, features = _checked(queries, keys, values, chunk)
    heads, width = queries.shape[1], values.shape[-1]
    for name, given, shape in (
        ("log_decay", log_decay, (batch, groups, length)),
        ("segments", segments, (batch, length)),
        ("memory", memory, (batch, groups, features, width)),
    ):
        _check_shape(name, given, shape)
    if segments is not None and (segments.is_floating_point() or segments.is_complex()):
        raise argument_error("segments", segments.dtype, "whole numbers, such as int64")
    if memory is None:
        memory = values.new_zeros(batch, groups, features, width)
    if length == 0:
        return values.new_zeros(batch, heads, 0, width), memory
    size = min(chunk, length)
    rest = -length % size
    count = (length + rest) // size
    if rest:
        queries, keys, values = (functional.pad(each, (0, 0, 0, rest)) for each in (queries, keys, values))
        log_decay = None if log_decay is None else functional.pad(log_decay, (0, rest))
        if segments is not None:
            segments = torch.cat([segments, segments[:, -1:].expand(-1, rest)], 1)
    queries = queries.reshape(batch, groups, heads // groups, count, size, features)
    keys = keys.reshape(batch, groups, count, size, features)
    values = values.reshape(batch, groups, count, size, width)
    # Of the chunk's tokens up to each one, its own included.
    decay = None if log_decay is None else log_decay.reshape(batch, groups, count, size).cumsum(-1)
    marks = None if segments is None else segments.reshape(batch, 1, count, size)
    # The segment that the memory belongs to when it reaches a chunk.
    held = None if marks is None else torch.cat([marks[..., :1, 0], marks[..., :-1, -1]], -1)[..., None]

    visible = torch.ones(size, size, dtype=torch.bool, device=queries.device).tril()
    if marks is not None:
        visible = visible & (marks[..., :, None] == marks[..., None, :])
    scores = torch.einsum("bgrncf,bgnkf->bgrnck", queries, keys)
    if decay is None:
        scores = scores.masked_fill(~(visible if marks is None else visible[:, :, None]), 0)
    else:
        # The exponent is masked and not the exponential, which may overflow where nothing is visible.
        exponent = (decay[..., :, None] - decay[..., None, :]).masked_fill(~visible, -torch.inf)
        scores = scores * exponent.exp()[:, :, None]
    within = torch.einsum("bgrnck,bgnkd->bgrncd", scores, values)

    kept = None if decay is None else (decay[..., -1:] - decay).exp()
    kept = _and(kept, None if marks is None else marks == marks[..., -1:], values)
    written = torch.einsum("bgncf,bgncd->bgnfd", keys if kept is None else keys * kept[..., None], values)
    passed = None if decay is None else decay[..., -1].exp()
    passed = _and(passed, None if marks is None or held is None else marks[..., -1] == held[..., 0], values)
    before, memory = _handed_on(written, passed, memory)

    read = None if decay is None else decay.exp()
    read = _and(read, None if marks is None or held is None else marks == held, values)
    across = torch.einsum("bgrncf,bgnfd->bgrncd", queries, before)
    outputs = within + (across if read is None else across * read[:, :, None, ..., None])
    return outputs.reshape(batch, heads, count * size, width)[:, :, :length], memory


def _handed_on(written: Tensor, passed: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The memory before each chunk ``[B, G, N, F, D]``, and after the last."""
    if passed is None:
        total = torch.cat([memory[:, :, None], written], 2).cumsum(2)
        return total[:, :, :-1], total[:, :, -1]
    before = []
    for number in range(written.shape[2]):
        before.append(memory)
        memory = passed[:, :, number, None, None] * memory + written[:, :, number]
    return torch.stack(before, 2), memory


def _and(factor: Tensor | None, same: Tensor | None, like: Tensor) -> Tensor | None:
    if same is None:
        return factor
    return same.to(like) if factor is None else factor * same


def _check_shape(name: str, given: Tensor | None, shape: tuple[int, ...]) -> None:
    if given is None:
        return
    check_instance(name, given, Tensor, f"None or a tensor {list(shape)}")
    if tuple(given.shape) != shape:
        raise argument_error(name, f"shape {tuple(given.shape)}", f"None or a tensor {list(shape)}")


def _checked(queries: Tensor, keys: Tensor, values: Tensor, chunk: int) -> tuple[int, int, int, int]:
    check_whole("chunk", chunk, "a positive number of tokens", least=1)
    for name, given in (("queries", queries), ("keys", keys), ("values", values)):
        check_instance(name, given, Tensor, "a tensor of four axes")
    fits = queries.ndim == keys.ndim == values.ndim == 4 and keys.shape[:3] == values.shape[:3]
    if not fits or queries.shape[::2] != keys.shape[::2] or queries.shape[3] != keys.shape[3]:
        got = f"shapes {tuple(queries.shape)}, {tuple(keys.shape)}, {tuple(values.shape)}"
        raise argument_error("queries, keys, values", got, "[B, H, L, F], [B, G, L, F] and [B, G, L, D]")
    batch, groups, length, features = keys.shape
    if groups == 0 or queries.shape[1] % groups:
        raise argument_error("queries", f"{queries.shape[1]} heads", f"a multiple of the keys' {groups}")
    return batch, groups, length, features
