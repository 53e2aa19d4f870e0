"""The same dropout in every call of a network that a residual compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Replay:
    """Runs several functions from one state of torch's generators.

    A difference of two calls with other dropout masks is noise, whatever the derivative. After the last call the
    generators stand where one call leaves them.

    Args:
        module: The network; one in evaluation mode draws nothing, and nothing is stored.
        device: Where it runs.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.get_rng_state() if module.training else None
        self._cuda = torch.cuda.get_rng_state(device) if module.training and device.type == "cuda" else None

    def __call__(self, function: Callable[[], T]) -> T:
        """Runs a function from the stored state."""
        if self._cpu is not None:
            torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self.device)
        return function()
