"""Which tokens are there and which belong together, read from the masks that attention is given.

A memory that all tokens write to can leave tokens out (padding) and can begin anew (packed documents), and no more.
Every other mask is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.checks import check_instance, check_whole
from distillrs.errors import argument_error

_ALLOWED = "a causal mask, with padding and packed documents at most: a memory hides a token from all or none"


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of a batch.

    Attributes:
        there: Booleans ``[B, L]``, false for padding; ``None`` if all are there.
        segments: int64 ``[B, L]``, not falling: the document of each token; ``None`` for one.
    """

    there: Tensor | None = None
    segments: Tensor | None = None

    @staticmethod
    def of_positions(positions: Tensor) -> Tokens:
        """Documents that are packed, by positions that begin anew.

        Args:
            positions: int64 ``[B, L]``.

        Raises:
            ArgumentError: Something else.
        """
        check_instance("positions", positions, Tensor, "int64 [B, L]")
        if positions.ndim != 2 or positions.dtype not in (torch.int64, torch.int32):
            raise argument_error("positions", f"{positions.dtype} {tuple(positions.shape)}", "int64 [B, L]")
        return Tokens(None, torch.diff(positions, prepend=positions[:, :1] - 1).ne(1).cumsum(-1))

    @staticmethod
    def of_mask(mask: Tensor, length: int, seen: int = 0) -> Tokens:
        """What a mask of attention says of the last tokens.

        Args:
            mask: ``[B, tokens]``, 0 for padding; or ``[B, 1, L, tokens]``, of booleans, true for what a row sees, or of
                numbers to be added, 0 for it.
            length: L, how many tokens are asked about.
            seen: Tokens before these.

        Raises:
            ArgumentError: A mask of another shape, or one that says more than padding and packing.
        """
        check_instance("mask", mask, Tensor, "[B, tokens] or [B, 1, L, tokens]")
        for name, count in (("length", length), ("seen", seen)):
            check_whole(name, count, "a number of tokens from 0", least=0)
        if mask.ndim == 2:
            if mask.shape[1] < seen + length:
                got = f"shape {tuple(mask.shape)} for {length} tokens after {seen}"
                raise argument_error("attention_mask", got, "[B, tokens] or [B, 1, L, tokens]")
            return Tokens(mask[:, seen : seen + length] != 0)
        if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] != length or mask.shape[3] < seen + length:
            got = f"shape {tuple(mask.shape)} for {length} tokens after {seen}"
            raise argument_error("attention_mask", got, "[B, tokens] or [B, 1, L, tokens]")
        sees = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
        earlier, sees = sees[..., :seen], sees[..., seen : seen + length]
        there = sees.diagonal(dim1=1, dim2=2)
        # The nearest token before each that is there, which it sees unless it begins a document.
        places = torch.arange(length, device=mask.device).expand_as(there)
        last = torch.where(there, places, -1).cummax(-1).values
        last = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], -1)
        follows = sees.gather(2, last.clamp(min=0)[..., None])[..., 0] | (last < 0)
        segments = (there & ~follows).cumsum(-1)
        same = segments[:, :, None] == segments[:, None, :]
        expected = same & there[:, None, :] & torch.ones_like(same[0]).tril()
        is_plain = ((sees == expected) | ~there[:, :, None]).all()
        if seen:
            # Tokens that go on with a memory see one and the same part of it, whatever its padding.
            rows = torch.where(there[..., None], earlier, earlier.any(1, keepdim=True))
            is_plain = is_plain & (rows == rows[:, :1]).all() & (segments == 0).all()
        if not bool(is_plain):
            raise argument_error("attention_mask", "a mask of another kind", _ALLOWED)
        return Tokens(there, segments if not seen and bool(segments.any()) else None)
