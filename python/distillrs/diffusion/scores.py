"""Scores: whatever can say something about a noisy state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from distillrs.diffusion.checks import check_adapter
from distillrs.diffusion.conditions import Condition, join
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Kind, Path, Prediction


@runtime_checkable
class Score(Protocol):
    """A prediction of noisy states: exact, of a teacher, of the student itself, or fitted."""

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        """One batched call.

        Args:
            x: States, ``[n, ...]``.
            t: Their times, float64 ``[n]``.
            condition: Of the rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network of one time as a score.

    Attributes:
        network: The network in its adapter; give the adapter a :class:`~distillrs.Frozen` module, so that dropout is
            off and nothing is trained.
        kind: What it predicts.
    """

    network: NetworkAdapter
    kind: Kind

    def __post_init__(self) -> None:
        check_adapter("network", self.network)
        if self.kind not in get_args(Kind):
            raise unknown_name_error("kind", self.kind, list(get_args(Kind)))

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        """See :class:`Score`."""
        return Prediction(self.network(x, t, t, condition), self.kind)


def velocity_of(score: Score, path: Path, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """A score's prediction as the velocity of the flow, ``[n, ...]``."""
    value, kind = score.predict(x, t, condition)
    if value.shape != x.shape:
        raise argument_error("source", f"a prediction of shape {tuple(value.shape)}", f"the states', {tuple(x.shape)}")
    return value if kind == "velocity" else path.convert(value, x, t, kind=kind, to="velocity")


def predict_both(
    score: Score, x: Tensor, t: Tensor, condition: Condition, null: Condition
) -> tuple[Tensor, Tensor, Kind]:
    """Conditional and unconditional prediction in one call of twice the rows."""
    value, kind = score.predict(torch.cat([x, x]), torch.cat([t, t]), join(condition, null))
    conditional, unconditional = value.chunk(2)
    return conditional, unconditional, kind
