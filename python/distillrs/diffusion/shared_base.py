"""One frozen network in several roles, each with a low-rank adapter of its own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.errors import argument_error, unknown_name_error
from distillrs.frozen import Frozen
from distillrs.low_rank import LowRank
from distillrs.step import Step


class SharedBase(nn.Module):
    """A frozen network that is called with or without an adapter: ``base(x, t, adapter="critic")``.

    Every adapter has a view, a module of its own whose layers hold the base's very parameters and the adapter's::

        base = SharedBase(teacher, {"student": LowRank(32), "critic": LowRank(64)})
        real = Teacher(Network(base.view(None), times="t"), "velocity")
        critic = Critic(Network(base.view("critic"), times="t"), "velocity")

    Which adapter a call takes is thus in the modules that run, not in a switch: what activation checkpointing computes
    again long after the call computes it with the same adapter, and the view without one is the base itself, bit for
    bit. The state holds adapters only.

    Shard or move the base before it is wrapped; ``.to()`` of this module moves base, views and adapters.

    Args:
        base: The network; it is frozen.
        adapters: By name.

    Raises:
        ArgumentError: Names that are not allowed, or targets that no layer has.
    """

    def __init__(self, base: nn.Module, adapters: Mapping[str, LowRank]) -> None:
        super().__init__()
        if not isinstance(base, nn.Module):
            raise argument_error("base", type(base).__name__, "a torch module")
        if not isinstance(adapters, Mapping):
            raise argument_error("adapters", type(adapters).__name__, "adapters by name: {'critic': LowRank(64)}")
        for name, adapter in adapters.items():
            if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
                raise argument_error("adapters", name, "names without dots, none of them a word of nn.ModuleDict")
            if not isinstance(adapter, LowRank):
                raise argument_error("adapters", f"{name}: {type(adapter).__name__}", "LowRank(rank) for each name")
        base = base.module if isinstance(base, Frozen) else base
        object.__setattr__(self, "_base", Frozen(base))
        self.ranks = {name: adapter.rank for name, adapter in adapters.items()}
        views: dict[str, AdaptedView] = {}
        self.adapters = nn.ModuleDict()
        for name, adapter in adapters.items():
            view = _view(base, name, adapter)
            views[name] = view
            self.adapters[name] = nn.ModuleDict(
                {path.replace(".", "/"): part.delta for path, part in view.adapted.items()}
            )
        # Outside the registry: views hold what is registered already, and the base.
        object.__setattr__(self, "_views", views)

    def forward(self, *args: Any, adapter: str | None = None, **kwargs: Any) -> Any:
        """Calls the network, with an adapter or without."""
        return self.view(adapter)(*args, **kwargs)

    def view(self, adapter: str | None) -> nn.Module:
        """The network with one adapter as a module of its own; ``None`` for the base.

        Its trainable parameters are the adapter's.

        Raises:
            UnknownNameError: For another adapter.
        """
        if adapter is None:
            frozen: nn.Module = object.__getattribute__(self, "_base")
            return frozen
        views: dict[str, AdaptedView] = object.__getattribute__(self, "_views")
        if adapter not in views:
            raise unknown_name_error("adapter", adapter, sorted(views))
        return views[adapter]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SharedBase:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        self.view(None)._apply(fn, recurse)  # type: ignore[no-untyped-call]  # likewise
        for name in self.ranks:
            view = self.view(name)
            assert isinstance(view, AdaptedView)
            view.follow(self.view(None).module)  # type: ignore[arg-type]  # a Frozen's
        return self


class AdaptedView(nn.Module):
    """A network with an adapter in its layers; made by :class:`SharedBase`.

    Args:
        network: The network's structure, with the base's parameters in it.
        adapted: Its adapted layers by name.
        rank: The adapter's.
    """

    def __init__(self, network: nn.Module, adapted: dict[str, Adapted], rank: int) -> None:
        super().__init__()
        self.module = network
        object.__setattr__(self, "_adapted", adapted)
        self.rank = rank

    @property
    def adapted(self) -> dict[str, Adapted]:
        """The adapted layers by name."""
        found: dict[str, Adapted] = object.__getattribute__(self, "_adapted")
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the network with the adapter."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> AdaptedView:
        """Keeps the network in evaluation mode, whatever ``mode`` says: its buffers are the base's."""
        self.training = mode
        return self

    def follow(self, base: nn.Module) -> None:
        """Takes over the base's tensors where a move has replaced them."""
        places = dict(self.module.named_modules())
        for name, part in base.named_modules():
            place = places[name]
            place = place.layer if isinstance(place, Adapted) else place
            for key, parameter in part._parameters.items():
                place._parameters[key] = parameter
            for key, buffer in part._buffers.items():
                place._buffers[key] = buffer


class Adapted(nn.Module):
    """A layer with a low-rank change.

    Args:
        layer: A linear layer or a convolution.
        delta: The change.
        factor: Of the change.
    """

    def __init__(self, layer: nn.Module, delta: nn.Sequential, factor: float) -> None:
        super().__init__()
        self.layer, self.delta, self.factor = layer, delta, factor

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output plus the change."""
        found: Tensor = self.layer(x) + self.factor * self.delta(x)
        return found

    @property
    def weight(self) -> Tensor:
        """The layer's weight with the change in it: attention, for one, takes weights without calling their layer."""
        down, up = (part.weight for part in self.delta)
        own = self.layer.weight
        assert isinstance(own, Tensor)
        assert isinstance(down, Tensor)
        assert isinstance(up, Tensor)
        return own + self.factor * (up.flatten(1) @ down.flatten(1)).reshape(own.shape)

    def __getattr__(self, name: str) -> Any:
        """What else networks ask their layers for (``bias``, ``in_features``) is the layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _view(base: nn.Module, name: str, adapter: LowRank) -> AdaptedView:
    # What is in the memo is not copied: the structure is new, the tensors are the base's.
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*base.parameters(), *base.buffers()]}
    network = copy.deepcopy(base, shared)
    adapted: dict[str, Adapted] = {}
    made: dict[int, Adapted] = {}
    # A layer that stands in several places is one layer in all of them, under the first one's name.
    for path, layer in list(network.named_modules(remove_duplicate=False)):
        if not adapter.fits(path) or not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
            continue
        if id(layer) not in made:
            made[id(layer)] = Adapted(layer, _delta(layer, adapter, f"{name}/{path}"), adapter.factor)
            adapted[path or "network"] = made[id(layer)]
        part = made[id(layer)]
        if not path:
            network = part
        else:
            owner, _, key = path.rpartition(".")
            network.get_submodule(owner)._modules[key] = part
    if not adapted:
        got = "every layer" if adapter.targets is None else adapter.targets
        raise argument_error("targets", got, "names of linear layers or convolutions of the base")
    return AdaptedView(network, adapted, adapter.rank)


def _delta(layer: nn.Module, adapter: LowRank, name: str) -> nn.Sequential:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    made: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": weight.dtype}
    down: nn.Module
    up: nn.Module
    if isinstance(layer, nn.Linear):
        down = nn.Linear(layer.in_features, adapter.rank, **made)
        up = nn.Linear(adapter.rank, layer.out_features, **made)
    else:
        assert isinstance(layer, _CONVOLUTIONS)
        kind: Any = type(layer)
        if layer.groups != 1:
            raise argument_error("targets", f"a convolution in {layer.groups} groups", "one without groups")
        down = kind(
            layer.in_channels, adapter.rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            padding_mode=layer.padding_mode, **made,
        )  # fmt: skip
        up = kind(adapter.rank, layer.out_channels, 1, **made)
    first, last = down.weight, up.weight
    assert isinstance(first, Tensor)
    assert isinstance(last, Tensor)
    with torch.no_grad():
        drawn = random.normal(range(1), *first.shape, step=Step(0, seed=adapter.seed), name=f"adapter/{name}")[0]
        first.copy_(drawn / math.sqrt(first[0].numel()))
        last.zero_()
    return nn.Sequential(down, up)


def check_ranks(student: nn.Module, critic: nn.Module) -> None:
    """Warns of a critic's adapter of a lower rank than the student's, which cannot follow it."""
    if isinstance(student, AdaptedView) and isinstance(critic, AdaptedView) and critic.rank < student.rank:
        message = f"the critic's adapter has rank {critic.rank}, the student's {student.rank}: it cannot follow it"
        warnings.warn(message, UserWarning, stacklevel=4)
