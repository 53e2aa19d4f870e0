"""A network as a function of one flat vector."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from distillrs.checks import check_instance
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
        check_instance("network", network, nn.Module, "a module whose output is logits")
        if layout is not None:
            check_instance("layout", layout, ParameterLayout, "None or a ParameterLayout")
        network = _unwrapped(network)
        statistics = ParameterLayout.of(network, dtype=torch.float32).running_statistics
        if statistics:
            raise argument_error("network", f"a module that updates {statistics[0]!r}", _REMEDY)
        self.layout = ParameterLayout.of(network) if layout is None else layout
        self.layout.unflatten(torch.empty(self.layout.size, device="meta"), network)
        module = copy.deepcopy(network)
        self.skeleton = Frozen(module)
        parameters = dict(module.named_parameters())
        owners: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                owners.setdefault(id(parameter), []).append((owner._parameters, name))
        self._owners = [
            (place, *owner)
            for place, slot in enumerate(self.layout.slots)
            for owner in owners[id(parameters[slot.name])]
        ]
        self._recurrent = [owner for owner in module.modules() if isinstance(owner, nn.RNNBase)]
        self._sizes = [slot.size for slot in self.layout.slots]
        self._shapes = [slot.shape for slot in self.layout.slots]
        self._has_buffers = any(True for _ in module.buffers())

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
        if vector.shape != (self.size,):
            raise argument_error("vector", tuple(vector.shape), f"({self.size},)")
        pieces = torch.split(vector, self._sizes)
        values = [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]
        return self._with_buffers(values, inputs) if self._has_buffers else self._call(values, inputs)

    def _call(self, values: list[Tensor], inputs: Tensor) -> Tensor:
        # As torch.func.functional_call, at a quarter of its overhead: the owners of each parameter are known, and the
        # copy is our own. A step of a small network is short enough for that to show. The values go past nn.Module's
        # setter, which takes nothing but parameters where a parameter is registered.
        own = [registry[name] for _, registry, name in self._owners]
        try:
            for place, registry, name in self._owners:
                registry[name] = values[place]
            self._refresh_recurrent()
            output = self.skeleton.module(inputs)
        finally:
            for (_, registry, name), parameter in zip(self._owners, own, strict=True):
                registry[name] = parameter
            self._refresh_recurrent()
        return cast(Tensor, output)

    def _refresh_recurrent(self) -> None:
        # Recurrent modules read their weights from a list of their own.
        for module in self._recurrent:
            module._flat_weights = [module._parameters.get(name) for name in module._flat_weights_names]

    def _with_buffers(self, values: list[Tensor], inputs: Tensor) -> Tensor:
        buffers = dict(self.skeleton.module.named_buffers())
        dtype = values[0].dtype
        if any(each.is_floating_point() and each.dtype != dtype for each in buffers.values()):
            self.skeleton.to(dtype)
            buffers = dict(self.skeleton.module.named_buffers())
        before = [buffer._version for buffer in buffers.values()]
        output = self._call(values, inputs)
        after = dict(self.skeleton.module.named_buffers())
        for (name, buffer), version in zip(buffers.items(), before, strict=True):
            if after.get(name) is not buffer or buffer._version != version:
                raise argument_error("network", f"a module that updates {name!r}", _REMEDY)
        return output


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
