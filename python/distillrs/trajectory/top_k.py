"""The largest probabilities of a teacher's rows, with the mass of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distillrs.errors import argument_error


class TopK(NamedTuple):
    """Rows of a teacher's distribution: some ids with their probabilities, and one bucket for all others.

    Entries without probability (padding, and rows that are none) have a log-probability of minus infinity; their id
    means nothing.

    Attributes:
        ids: [..., k] Distinct ids, integers.
        log_probs: [..., k] Their natural log-probabilities.
        tail_log_mass: [...] Log of the probability of all other ids.
        log_partition: For each temperature T that is known, [...] ``log sum_v p_v^(1/T)`` over the whole vocabulary, p
            being this very distribution; 0 at T = 1.
    """

    ids: Tensor
    log_probs: Tensor
    tail_log_mass: Tensor
    log_partition: Mapping[float, Tensor]

    def at(self, temperature: float) -> TopK:
        """The same rows at another temperature: ``log p_v / T - log sum_u p_u^(1/T)``.

        The sum runs over the whole vocabulary, and what lies in the tail is not known one by one: so it can only be had
        for temperatures that were known when the rows were made.

        Args:
            temperature: One of :attr:`log_partition`'s.

        Returns:
            Rows whose entries and tail add up to one; they cannot be brought to a third temperature.

        Raises:
            ArgumentError: The temperature is not among those known; the message lists them.
        """
        if temperature not in self.log_partition:
            known = ", ".join(str(each) for each in self.log_partition)
            raise argument_error(
                "temperature", temperature, f"one of {known}: a tail cannot be brought to others after the fact"
            )
        if temperature == 1.0:
            return self
        partition = self.log_partition[temperature].unsqueeze(-1)
        log_probs = self.log_probs / temperature - partition
        tail = log1mexp(torch.logsumexp(log_probs.double(), -1)).to(self.tail_log_mass.dtype)
        return TopK(self.ids, log_probs, tail, {1.0: torch.zeros_like(tail)})


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - e^x)`` without cancellation; minus infinity from 0 on.

    Martin Maechler, "Accurately computing log(1 - exp(-|a|))", 2012.

    Args:
        x: [...] Logs of masses.
    """
    x = x.clamp(max=0.0)
    near = x > -0.6931471805599453
    # Each branch sees only what it is for, so that no gradient of the other one is infinite or not a number.
    low = torch.where(near, torch.full_like(x, -1.0), x)
    high = torch.where(near, x, torch.full_like(x, -0.5))
    return torch.where(near, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))


def top_k_of(logits: Tensor, k: int, temperatures: Sequence[float] = (1.0,), ids: Tensor | None = None) -> TopK:
    """The plain form of what a cache stores, on any device and in any floating type.

    Args:
        logits: [..., vocabulary]
        k: Entries of a row.
        temperatures: Those whose log-partition is wanted.
        ids: [..., k] The ids to take instead of the k largest.

    Returns:
        Rows sorted by falling probability; of equal ones ``torch.topk`` decides.
    """
    values = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    log_probs = torch.log_softmax(values, -1)
    chosen, ids = log_probs.topk(k, -1) if ids is None else (log_probs.gather(-1, ids), ids)
    order = chosen.argsort(dim=-1, descending=True, stable=True)
    chosen, ids = chosen.gather(-1, order), ids.gather(-1, order)
    # The sum of what was not chosen, never a difference: a small tail is then exact, too.
    tail = torch.logsumexp(log_probs.scatter(-1, ids, -torch.inf), -1)
    partition = {T: torch.logsumexp(log_probs / T, -1) if T != 1.0 else torch.zeros_like(tail) for T in temperatures}
    return TopK(ids, chosen, tail, partition)
