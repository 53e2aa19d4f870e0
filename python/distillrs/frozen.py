"""Networks that are used and not trained: for good, or for a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from distillrs.errors import argument_error


class Frozen(nn.Module):
    """Holds a network that follows ``.to()`` but is neither trained nor saved.

    The network stays in evaluation mode, its parameters require no gradient, and it is absent from
    ``parameters()``, ``buffers()`` and ``state_dict()``, so an optimiser or a checkpoint never picks it up.

    Args:
        module: The network. It is put into evaluation mode and its parameters stop requiring gradients.

    Raises:
        ArgumentError: Something else than a module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise argument_error("module", type(module).__name__, "a torch.nn.Module")
        # Kept outside the module registry: that is what hides it from parameters() and state_dict().
        object.__setattr__(self, "_held", module.eval().requires_grad_(False))

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        held: nn.Module = object.__getattribute__(self, "_held")
        return held

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the network. Gradients still flow to the inputs; only the parameters are frozen."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Frozen:
        """Keeps the network in evaluation mode, whatever ``mode`` says."""
        self.training = False
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        self.module._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields nothing: a frozen network owns no trainable parameter."""
        return iter(())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]  # narrower on purpose
        """An empty state: whoever gave the network saves it."""
        return kwargs.get("destination") or {}


@contextmanager
def kept_modes(*networks: nn.Module) -> Iterator[None]:
    """After the block every module is in the mode that it had, also one that differed from its network's own."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block; see :func:`kept_modes`."""
    with kept_modes(*networks):
        for network in networks:
            network.eval()
        yield
