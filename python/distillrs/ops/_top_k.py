"""A distribution known by its most likely entries and the mass of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillrs.checks import check_number, is_number, numbers
from distillrs.errors import argument_error
from distillrs.ops._rows import check_logits


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """Entries of each row with their log-probabilities, and the log-mass of all others.

    The mass of the rest at another temperature does not follow from what is kept, so the log-partition at each
    temperature that will be used is kept too: ``log sum_v p_v^(1 / T)``.

    Attributes:
        ids: int64 or int32 ``[..., k]``, distinct in a row; -1 where a row has fewer.
        log_probs: ``[..., k]``: natural logarithms; minus infinity where there is no entry, whatever the id.
        tail_log_mass: ``[...]``: logarithm of the probability of all other entries.
        log_partition: For each temperature other than 1 that can be asked for, ``[...]``.
    """

    ids: Tensor
    log_probs: Tensor
    tail_log_mass: Tensor
    log_partition: Mapping[float, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("ids", self.ids), ("log_probs", self.log_probs), ("tail_log_mass", self.tail_log_mass)):
            if not isinstance(value, Tensor):
                raise argument_error(name, type(value).__name__, "a tensor")
            if name != "ids" and not value.is_floating_point():
                raise argument_error(name, value.dtype, "a floating-point tensor of natural logarithms")
        if not isinstance(self.log_partition, Mapping):
            raise argument_error("log_partition", type(self.log_partition).__name__, "a tensor for each temperature")
        if self.ids.dtype not in (torch.int64, torch.int32) or self.ids.dim() == 0:
            got = f"{self.ids.dtype} {list(self.ids.shape)}"
            raise argument_error("ids", got, "an int64 or int32 tensor [..., k]")
        if self.log_probs.shape != self.ids.shape:
            raise argument_error(
                "log_probs", list(self.log_probs.shape), f"the shape of the ids, {list(self.ids.shape)}"
            )
        rows: list[tuple[Any, Any]] = [("tail_log_mass", self.tail_log_mass), *self.log_partition.items()]
        for key, kept in rows:
            if not isinstance(kept, Tensor):
                allowed = "a tensor of the rows' shape for each temperature"
                raise argument_error("log_partition", f"{type(kept).__name__} for {key}", allowed)
            if kept.shape != self.ids.shape[:-1]:
                raise argument_error(str(key), list(kept.shape), f"the rows' shape, {list(self.ids.shape[:-1])}")

    @classmethod
    def from_logits(cls, logits: Tensor, k: int, temperatures: Sequence[float] = (1.0,)) -> TopK:
        """The most likely entries of rows of logits.

        Args:
            logits: ``[..., vocabulary]``.
            k: How many, from 1 to the vocabulary.
            temperatures: Those that can be asked for later, beside 1.

        Raises:
            ArgumentError: For an argument that is not allowed.
        """
        check_logits("logits", logits)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= logits.shape[-1]:
            raise argument_error("k", k, f"an integer from 1 to {logits.shape[-1]}")
        kept = numbers("temperatures", temperatures)
        for temperature in kept:
            check_number("temperatures", temperature, "positive, finite numbers", above=0)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_probs = logits.detach().to(dtype).log_softmax(-1)
        top, ids = log_probs.topk(k)
        rest = log_probs.scatter(-1, ids, -torch.inf).logsumexp(-1)
        return cls(ids, top, rest, {t: (log_probs / t).logsumexp(-1) for t in kept if t != 1})

    def at(self, temperature: float) -> TopK:
        """The same rows at another temperature, whose log-partition is kept.

        Args:
            temperature: 1 or one of ``log_partition``.

        Raises:
            ArgumentError: For any other, with the list.
        """
        given: Any = temperature
        if isinstance(given, Tensor) and given.numel() == 1 and not given.is_complex():
            given = given.item()
        if not is_number(given):
            got = given if isinstance(given, int | float) else type(given).__name__
            raise argument_error("temperature", got, "one finite number for all rows")
        temperature = float(given)
        if temperature == 1:
            return self
        partition = self.log_partition.get(float(temperature))
        if partition is None:
            known = ", ".join(str(value) for value in sorted({1.0, *self.log_partition}))
            raise argument_error("temperature", temperature, f"one whose log-partition is kept: {known}")
        log_probs = self.log_probs / temperature - partition[..., None]
        tail = log1mexp(log_probs.double().logsumexp(-1)).to(self.tail_log_mass.dtype)
        # What has no mass has none at any temperature; entries that were rounded do not sum to 1.
        tail = tail.masked_fill(self.tail_log_mass == -math.inf, -math.inf)
        return TopK(self.ids, log_probs, tail)


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - e^x)`` without cancellation; minus infinity from 0 on, where rounding may bring a sum of masses.

    Martin Maechler, "Accurately computing log(1 - exp(-|a|))", 2012.

    Args:
        x: ``[...]``: logarithms of masses.
    """
    x = x.clamp(max=0.0)
    near = x > -math.log(2)
    # Each branch sees only what it is for, so that no gradient of the other one is infinite or not a number.
    low = torch.where(near, torch.full_like(x, -1.0), x)
    high = torch.where(near, x, torch.full_like(x, -0.5))
    return torch.where(near, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))
