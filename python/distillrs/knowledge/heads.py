"""Logits that are not formed: what goes into a network's linear head, and the head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.errors import argument_error


@dataclass(frozen=True, slots=True)
class Head:
    """The logits of a network's linear head, of which a term forms some rows at a time.

    While the network is called, its head hands on what it gets, so the network forms no logits; the term then takes
    :func:`distillrs.ops.linear_row_divergence` over the head's weight. A network whose logits are not just what its
    head gives (a softcap, a scale) is refused. Where another term needs the logits themselves they are formed after
    all.

    Attributes:
        path: The path of an ``nn.Linear`` in the unwrapped network, tied to the embedding or not.
        chunk_bytes: Most bytes of logits, of both sides together, at a time; that of the student's head counts.
    """

    path: str = "lm_head"
    chunk_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise argument_error("path", self.path, "the path of the head's module, such as 'lm_head'")
        if isinstance(self.chunk_bytes, bool) or not isinstance(self.chunk_bytes, int) or self.chunk_bytes <= 0:
            raise argument_error("chunk_bytes", self.chunk_bytes, "a positive integer")

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, eq=False)
class Projected:
    """Logits ``hidden @ weight.T + bias`` that are not formed.

    Attributes:
        hidden: ``[..., features]``.
        weight: ``[vocabulary, features]``.
        bias: ``[vocabulary]`` or ``None``.
        chunk_bytes: Most bytes of logits at a time.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    chunk_bytes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logits."""
        return (*self.hidden.shape[:-1], len(self.weight))

    def detach(self) -> Projected:
        """The same without a graph."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)

    def as_computed(self) -> Projected:
        """The same in the dtype that the head itself would have computed in: autocast's, where that is on."""
        kind = self.hidden.device.type
        if not torch.is_autocast_enabled(kind) or self.hidden.dtype == torch.float64:
            return self
        dtype = torch.get_autocast_dtype(kind)
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, hidden=self.hidden.to(dtype), weight=self.weight.to(dtype), bias=bias)


class StandIn:
    """What takes the place of a head's forward during one call of its network.

    Args:
        tap: Whose head.
        module: The head.
        name: What messages call it.
        forms_logits: Whether the network is to get the logits all the same.

    Raises:
        ArgumentError: A module that is not a plain linear layer with weights of its own.
    """

    def __init__(self, tap: Head, module: nn.Module, name: str, forms_logits: bool) -> None:
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            raise argument_error(name, type(module).__name__, "an nn.Linear, or Output('logits')")
        if "forward" in vars(module):
            raise argument_error(name, "a module whose forward was replaced", "one as it was made, or Output('logits')")
        if hasattr(module.weight, "placements") or module.weight.dim() != 2:
            raise argument_error(name, "a weight in shards", "a head that is not sharded, or Output('logits')")
        self.tap = tap
        self.module = module
        self.name = name
        self.forms_logits = forms_logits
        self.seen: list[Tensor] = []

    def __call__(self, hidden: Tensor) -> Tensor:
        """The logits, or what goes into the head, in whose graph the head's parameters stand all the same."""
        if self.forms_logits:
            self.seen.append(hidden)
            return nn.Linear.forward(self.module, hidden)
        handed = _HandedOn.apply(hidden, *self.module.parameters())
        self.seen.append(handed)
        return handed  # type: ignore[no-any-return]  # torch does not type it

    def value(self, logits: Tensor | None) -> Projected:
        """The projection.

        Args:
            logits: What the network returned as such; ``None`` if it was to form them.

        Raises:
            ArgumentError: The head was not called once, or the network changed what it gave.
        """
        if len(self.seen) != 1:
            remedy = "a head that the network calls once in a forward pass"
            raise argument_error(self.name, f"{len(self.seen)} calls in one forward pass", remedy)
        hidden = self.seen[0]
        if logits is not None:
            if not _is_same(hidden, logits):
                got = "a network that changes what this head gives before it returns it as its logits"
                raise argument_error(self.name, got, "one that returns it as it is, or Output('logits')")
            # What a wrapper put around its outputs stays in the graph.
            hidden = logits if logits.dtype == hidden.dtype else hidden
        weight, bias = self.module.weight, self.module.bias
        return Projected(hidden, weight, bias, self.tap.chunk_bytes)


@contextlib.contextmanager
def standing_in(stand_ins: list[StandIn]) -> Iterator[None]:
    """Heads replaced for one call of their network.

    Args:
        stand_ins: One for each head.
    """
    placed: list[nn.Module] = []
    try:
        for each in stand_ins:
            # On the instance: hooks, and whatever looks at the module's class, stay.
            vars(each.module)["forward"] = each.__call__
            placed.append(each.module)
        yield
    finally:
        for module in placed:
            del vars(module)["forward"]


def _is_same(hidden: Tensor, logits: Tensor) -> bool:
    if logits is hidden or (logits.data_ptr() == hidden.data_ptr() and logits.shape == hidden.shape):
        return True
    return logits.shape == hidden.shape and torch.equal(logits, hidden.to(logits.dtype))


class _HandedOn(torch.autograd.Function):
    """The first argument; the others stand in its graph without a gradient.

    DistributedDataParallel with ``find_unused_parameters`` looks for parameters in the graph of the outputs, and would
    take a head's for unused that is used afterwards.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (upstream[0], *(None for _ in range(ctx.count)))
