"""A network as a function of one flat vector."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from distillrs.errors import ArgumentError, argument_error
from distillrs.frozen import Frozen
from distillrs.trajectory import ParameterLayout

_REMEDY = (
    "a network whose forward pass leaves no trace: trajectories hold parameters only, so running statistics would "
    "belong to other weights than those on the path; use GroupNorm, InstanceNorm, or "
    "BatchNorm(track_running_stats=False)"
)


class FunctionalNetwork(nn.Module):
    """Calls a network's architecture on a flat vector of parameters.

    The network itself is copied once and never touched. The copy stays in evaluation mode, so dropout is off in the
    unrolled training: an inner step must be the same function when it is replayed. Buffers are those of the copy; they
    follow the vector's dtype and must not change in a call.

    Args:
        network: Any module whose output is logits; wrappers of ``torch.compile`` and data parallelism are taken off.
        layout: How its parameters lie in the vector; ``None`` takes all of them in ``named_parameters()`` order.

    Raises:
        ArgumentError: The network keeps running statistics, or lacks a parameter of the layout.
    """

    def __init__(self, network: nn.Module, layout: ParameterLayout | None = None) -> None:
        super().__init__()
        network = _unwrapped(network)
        statistics = ParameterLayout.of(network, dtype=torch.float32).running_statistics
        if statistics:
            raise argument_error("network", f"a module that updates {statistics[0]!r}", _REMEDY)
        self.layout = ParameterLayout.of(network) if layout is None else layout
        self.layout.unflatten(torch.empty(self.layout.size, device="meta"), network)
        self.skeleton = Frozen(copy.deepcopy(network))

    @property
    def size(self) -> int:
        """Number of elements of a vector."""
        return self.layout.size

    def forward(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """The network's output with the vector's values as its parameters.

        Args:
            vector: [size] Parameters; gradients of any order flow through.
            inputs: [n, ...] A batch of examples.

        Returns:
            What the network returns, [n, classes] for a classifier.

        Raises:
            ArgumentError: The call changed a buffer.
        """
        module = self.skeleton.module
        buffers = {
            name: buffer.to(vector.dtype) if buffer.is_floating_point() else buffer
            for name, buffer in module.named_buffers()
        }
        before = [buffer._version for buffer in buffers.values()]
        output = torch.func.functional_call(module, (self.layout.unflatten(vector), buffers), (inputs,))
        for (name, buffer), version in zip(buffers.items(), before, strict=True):
            if buffer._version != version:
                raise argument_error("network", f"a module that updates {name!r}", _REMEDY)
        return cast(Tensor, output)


def require_layout(recorded: object, layout: ParameterLayout) -> None:
    """Checks that a store's trajectories have a network's layout.

    Args:
        recorded: What the store's metadata says under "layout"; ``None`` is accepted.
        layout: The layout of the network to be used.

    Raises:
        SchemaMismatch: The trajectories were recorded from another architecture.
        ArgumentError: The metadata do not describe a layout.
    """
    if recorded is None:
        return
    if not isinstance(recorded, dict):
        raise argument_error(
            "store", f"metadata['layout'] of type {type(recorded).__name__}", "ParameterLayout.to_dict()"
        )
    try:
        theirs = ParameterLayout.from_dict(recorded)
    except ArgumentError as failure:
        raise argument_error(
            "store", f"metadata['layout'] that is none ({failure})", "ParameterLayout.to_dict()"
        ) from failure
    layout.require_same(theirs)


def _unwrapped(network: nn.Module) -> nn.Module:
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner
