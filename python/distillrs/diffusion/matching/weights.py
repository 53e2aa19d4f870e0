"""Weights of a gap: how strongly it moves each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from distillrs.diffusion.checks import is_number
from distillrs.diffusion.matching.gaps import GapView
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Kind, LossWeight, Path, error_scale


@runtime_checkable
class GapWeight(Protocol):
    """A factor for each row; several are multiplied."""

    def weigh(self, view: GapView) -> tuple[Tensor, dict[str, Tensor]]:
        """``[n]``, at least float32, and what is to be reported."""
        ...


@dataclass(frozen=True, slots=True)
class MeanAbsolute:
    """``1 / max(mean |x - R_w|, floor)`` over the elements of a row, or over those of a group of rows.

    Yin et al., "One-step diffusion with distribution matching distillation" (2024). Code differs in the floor: none
    there, 1e-5 in score identity distillation, 0.1 in continuous-time matching. Rows at the floor are reported as
    ``floor``, as a share.

    Attributes:
        floor: Least mean.
        group: Consecutive rows (by their global ids) that share a mean, as several samples of one condition do.
    """

    floor: float = 0.0
    group: int = 1

    def __post_init__(self) -> None:
        if not (is_number(self.floor) and self.floor >= 0):
            raise argument_error("floor", self.floor, "a number from 0")
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 1:
            raise argument_error("group", self.group, "a positive number of rows")

    def weigh(self, view: GapView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        distance = (view.x - view.real.guided).detach().abs().flatten(1).mean(1)
        if self.group > 1:
            if len(distance) % self.group or view.first_unit % self.group:
                got = f"{len(distance)} rows from {view.first_unit} on"
                raise argument_error("group", got, f"whole groups of {self.group} rows")
            distance = distance.reshape(-1, self.group).mean(1).repeat_interleave(self.group)
        low = distance <= self.floor
        return 1 / distance.clamp(min=self.floor), {"floor": low.double().mean() if len(low) else low.double().sum()}


@dataclass(frozen=True, slots=True)
class LevelWeight:
    """A function of the level alone: what an error of the clean state is as an error of another kind, to a power.

    ``noise`` is ``alpha / sigma``: to the power 1 the gap of two noise predictions, as variational score distillation
    has it; to the power 2 the gradient of the KL divergence at the level. ``score`` is ``alpha / sigma^2``, to the
    power 2 for second-order gaps.

    Attributes:
        kind: The other kind.
        power: Its power.
        rate: Whether half the diffusion's rate multiplies it, ``g^2 / 2`` with ``g^2 = -sigma^2 d log SNR / dt``: the
            integrals over levels of second-order gaps are then divergences of the data themselves.
        weight: A weight of squared errors instead of the kind, as one of x0.
    """

    kind: Kind = "noise"
    power: float = 1.0
    rate: bool = False
    weight: LossWeight | None = field(default=None)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name_error("kind", self.kind, list(get_args(Kind)))
        if not is_number(self.power):
            raise argument_error("power", self.power, "a finite number")
        if self.weight is not None and not isinstance(self.weight, LossWeight):
            raise argument_error("weight", self.weight, "a LossWeight or None")

    def weigh(self, view: GapView) -> tuple[Tensor, dict[str, Tensor]]:
        """See the class."""
        return self.at(view.path, view.t), {}

    def at(self, path: Path, t: Tensor) -> Tensor:
        """float64, of the times' shape."""
        if self.weight is not None:
            found = self.weight.at(path, t, "x0")
        else:
            found = error_scale(path, t, kind="x0", to=self.kind).abs() ** self.power
        if self.rate:
            sigma, alpha = path.sigma(t), path.alpha(t)
            growth = path.sigma_derivative(t) - sigma * path.alpha_derivative(t) / alpha
            found = found * sigma * growth
        return torch.as_tensor(found)
