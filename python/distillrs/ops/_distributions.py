"""The kinds of distributions over a vocabulary that :func:`distillrs.ops.divergence` takes; the third is ``TopK``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.ops._rows import LOGIT_DTYPES, check_logits


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A distribution of which every entry is known.

    Attributes:
        logits: ``[..., vocabulary]``; log-probabilities are logits too.

    Raises:
        ArgumentError: No tensor of logits.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        check_logits("logits", self.logits)


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """A distribution of which only its probabilities at some draws are known.

    Draws are independent, with replacement, so an entry may come several times. They are fixed at the temperature (and
    truncation) that they were drawn with: no other can be had from them.

    Attributes:
        ids: int64 or int32 ``[..., draws]``: entries, at least one for each row.
        log_probs: ``[..., draws]``: natural logarithms of this distribution's probabilities of them.
        drawn: ``[..., draws]``: those of the distribution that the entries were drawn from, which must be able to give
            all that either side can; ``None`` where that is this one. No gradient goes there.

    Raises:
        ArgumentError: Tensors of other shapes or dtypes.
    """

    ids: Tensor
    log_probs: Tensor
    drawn: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ids, Tensor) or self.ids.dtype not in (torch.int64, torch.int32):
            raise argument_error("ids", _what(self.ids), "an int64 or int32 tensor [..., draws]")
        if self.ids.dim() == 0 or self.ids.shape[-1] == 0:
            raise argument_error("ids", f"the shape {list(self.ids.shape)}", "[..., draws] with at least one draw")
        for name, value in (("log_probs", self.log_probs), ("drawn", self.drawn)):
            if value is None and name == "drawn":
                continue
            if not isinstance(value, Tensor) or value.dtype not in LOGIT_DTYPES:
                raise argument_error(name, _what(value), "a tensor of float64, float32, bfloat16 or float16")
            if value.shape != self.ids.shape or value.device != self.ids.device:
                got = f"the shape {list(value.shape)} on {value.device}"
                raise argument_error(name, got, f"that of the ids, {list(self.ids.shape)} on {self.ids.device}")


def _what(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
