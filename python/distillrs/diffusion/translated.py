"""A network that was trained on one path, used on another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from distillrs.diffusion.checks import check_adapter, is_number
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Kind, Path
from distillrs.schedule.path import check_path


@dataclass(frozen=True, slots=True)
class Translated:
    """A network of one path and kind as a network of another: a student that begins as a teacher of another family.

    The state moves to the network's own path at equal log-SNR, its prediction is turned into the data, and that into
    the other kind at the state that was given. From a denoiser of EDM to a velocity of the rectified flow this is
    ``v = (x_t - D(x_t / (1 - t); t / (1 - t))) / t``: Lee, Lin, Fanti, "Improving the training of rectified flows"
    (2024). It is a network adapter of one time.

    Attributes:
        network: In its adapter, on its own path.
        own: That path.
        kind: What the network predicts there.
        path: The path that it is used on.
        to: What it is to predict there.
        least: Times nearer to the data than this are told as this one: a velocity divides by them. Times whose noise is
            beyond the network's own are told as its last; for a prediction of noise or a score on a path that leaves
            nothing of the data there, as one that much before its last.
    """

    network: NetworkAdapter
    own: Path
    kind: Kind
    path: Path
    to: Kind = "velocity"
    least: float = 1e-5

    def __post_init__(self) -> None:
        check_adapter("network", self.network)
        for name in ("own", "path"):
            check_path(name, getattr(self, name))
        for name in ("kind", "to"):
            if getattr(self, name) not in get_args(Kind):
                raise unknown_name_error(name, getattr(self, name), list(get_args(Kind)))
        if not (is_number(self.least) and 0 < self.least < 1):
            raise argument_error("least", self.least, "a time above 0, below 1")

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.network.module

    @property
    def two_times(self) -> bool:
        """The second time does not reach it."""
        return False

    @property
    def _last(self) -> float:
        """Of its own path; a noise prediction says nothing of the data where there is no signal."""
        blind = self.kind in ("noise", "score") and float(self.own.alpha(1.0)) < 1e-9
        return 1 - self.least if blind else 1.0

    def replaced(self, module: nn.Module) -> Any:
        """The same around another module."""
        return replace(self, network=self.network.replaced(module))

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """See :class:`NetworkAdapter`; ``r`` does not enter."""
        here = t.clamp(min=self.least)
        reach = self.path.time_of_log_snr(self.own.log_snr(self._last)).to(here.device)
        moved, there = self.path.move(x, torch.minimum(here, reach), self.own)
        value = self.network(moved, there, there, condition)
        data = self.own.convert(value, moved, there, kind=self.kind, to="x0")
        return self.path.convert(data, x, here, kind="x0", to=self.to)
