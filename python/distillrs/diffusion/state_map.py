"""A network on a path as a map between times."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from distillrs.diffusion.checks import check_adapter
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.heads import AverageVelocity, Head
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.errors import argument_error
from distillrs.schedule import Path, Prediction, Residual
from distillrs.schedule.path import check_path


@dataclass(frozen=True, slots=True)
class StateMap:
    """``Phi(x, t, r) = A(t, r) x + B(t, r) F(x, t, r)``: where the flow carries a state from ``t`` to ``r``.

    A map whose head has a diagonal is also a :class:`Score`: its velocity there.

    Attributes:
        network: ``F``, in its adapter.
        path: The path.
        head: ``A`` and ``B``.
    """

    network: NetworkAdapter
    path: Path
    head: Head = field(default_factory=AverageVelocity)

    def __post_init__(self) -> None:
        check_adapter("network", self.network)
        check_path("path", self.path)
        if not isinstance(self.head, Head):
            raise argument_error("head", self.head, "a head (Jump(kind), AverageVelocity(), ...)")
        if isinstance(self.path, Residual):
            raise argument_error("path", self.path, "a path between data and noise: maps have no reference")

    def output(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """``F``, of the shape of ``x`` ``[n, ...]``, at float64 times ``[n]``."""
        return self.network(x, t, r, condition)

    def join(self, output: Tensor, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The map's value from the network's output."""
        state, network = self.head.weights(self.path, t, r)
        return per_row(state, x) * x + per_row(network, x) * output

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, condition: Condition = None) -> Tensor:
        """The state at ``r``, ``[n, ...]``."""
        return self.join(self.output(x, t, r, condition), x, t, r)

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        """The velocity on the diagonal; see :class:`Score`.

        Raises:
            ArgumentError: For a head whose map ends at one time only.
        """
        return Prediction(self.head.velocity(self.path, self.output(x, t, t, condition), x, t), "velocity")

    def check_start(self, t: float, r: float) -> None:
        """Refuses a way that begins where the head is not finite.

        Raises:
            ArgumentError: For a head that reads the data out of a noise prediction where no signal is left.
        """
        start, end = (torch.tensor([time], dtype=torch.float64) for time in (t, r))
        if not all(bool(weight.isfinite().all()) for weight in self.head.weights(self.path, start, end)):
            allowed = f"one that is finite at time {t:g}, where nothing of the data is left ('velocity', 'v', 'x0')"
            raise argument_error("head", self.head, f"{allowed}, or a way that begins below")

    def replaced(self, module: nn.Module | None) -> StateMap:
        """The same map of a wrapped network; ``None`` for the map itself."""
        return self if module is None else replace(self, network=self.network.replaced(module))


def per_row(coefficient: Tensor, like: Tensor) -> Tensor:
    """A float64 coefficient ``[n]`` shaped to multiply ``[n, ...]``; half precision is multiplied in float32."""
    dtype = like.dtype if like.dtype == torch.float32 else torch.promote_types(like.dtype, torch.float32)
    return coefficient.to(device=like.device, dtype=dtype).reshape(-1, *(1,) * (like.dim() - 1))
