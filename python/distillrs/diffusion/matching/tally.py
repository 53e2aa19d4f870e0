"""How often each network was asked: rows forward, rows backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.diffusion.scores import Score
from distillrs.diffusion.sources import Guided
from distillrs.schedule import Prediction


class Evaluations(NamedTuple):
    """What a network was asked.

    Attributes:
        forward: Rows that went through it; guidance asks for two of each example.
        backward: Those of them whose pass is differentiated, for its parameters or for its input.
    """

    forward: int
    backward: int


class Tally:
    """Counts rows by the role of the network that they went through."""

    def __init__(self, counts: Mapping[str, tuple[int, int]] | None = None) -> None:
        self.counts = {role: Evaluations(*pair) for role, pair in (counts or {}).items()}

    def add(self, role: str, rows: int, differentiated: bool) -> None:
        """One call of so many rows."""
        before = self.counts.get(role, Evaluations(0, 0))
        self.counts[role] = Evaluations(before.forward + rows, before.backward + rows * differentiated)

    def merge(self, other: Tally) -> None:
        """Takes in another tally."""
        for role, pair in other.counts.items():
            before = self.counts.get(role, Evaluations(0, 0))
            self.counts[role] = Evaluations(before.forward + pair.forward, before.backward + pair.backward)

    def terms(self, rows: int, device: torch.device) -> dict[str, Tensor]:
        """The passes of one example: ``evaluations`` forward and ``backwards`` of them differentiated."""
        forward = sum(pair.forward for pair in self.counts.values())
        backward = sum(pair.backward for pair in self.counts.values())
        whole = max(rows, 1)
        return {
            "evaluations": torch.full((), forward / whole, device=device),
            "backwards": torch.full((), backward / whole, device=device),
        }


@dataclass(frozen=True, slots=True, eq=False)
class CountedNetwork:
    """A network's adapter that counts its calls."""

    adapter: NetworkAdapter
    tally: Tally
    role: str

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.adapter.module

    @property
    def two_times(self) -> bool:
        """As the adapter."""
        return self.adapter.two_times

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """See :class:`NetworkAdapter`."""
        value = self.adapter(x, t, r, condition)
        self.tally.add(self.role, len(x), value.requires_grad)
        return value

    def replaced(self, module: nn.Module) -> CountedNetwork:
        """The same around another module."""
        return replace(self, adapter=self.adapter.replaced(module))


@dataclass(frozen=True, slots=True, eq=False)
class _CountedScore:
    score: Score
    tally: Tally
    role: str

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        found = self.score.predict(x, t, condition)
        self.tally.add(self.role, len(x), found.value.requires_grad)
        return found


def counted(score: Score, tally: Tally, role: str) -> Score:
    """The score with its calls counted; of a guided one both predictions."""
    if isinstance(score, Guided):
        assert isinstance(score.score, Score)
        return replace(score, score=_CountedScore(score.score, tally, role))
    return _CountedScore(score, tally, role)
