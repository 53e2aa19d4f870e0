"""Masks on a network: it computes what a smaller one would, and its parameters stay as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distillrs.errors import argument_error
from distillrs.knowledge.forms import parametrized
from distillrs.knowledge.forms.structure import Masks, Slot, Structure
from distillrs.knowledge.numerics import wide
from distillrs.knowledge.taps import unwrapped

_SHARE = "kept_share"


class _Live:
    """A mask with a graph, which belongs to one step: copies of the module go without."""

    __slots__ = ("mask",)

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask

    def __deepcopy__(self, memo: dict[int, Any]) -> _Live:
        return _Live()


def _hold(module: nn.Module, name: str, mask: Tensor) -> None:
    """Puts a mask into a buffer, and its graph beside it: torch refuses to copy a tensor with a graph."""
    live = mask.requires_grad
    # A copy: what writes to buffers (data parallel) must not touch what the graph has kept.
    setattr(module, name, mask.detach().clone() if live else mask)
    setattr(module, f"_live_{name}", _Live(mask if live else None))


def _held(module: nn.Module, name: str) -> Tensor | None:
    live: _Live | None = getattr(module, f"_live_{name}", None)
    found: Tensor | None = getattr(module, name) if live is None or live.mask is None else live.mask
    return found


class Gate(nn.Module):
    """Scales a parameter along its dimensions; a parametrization.

    Args:
        ndim: Dimensions of the parameter.
    """

    def __init__(self, ndim: int) -> None:
        super().__init__()
        for dim in range(ndim):
            self.register_buffer(f"mask{dim}", None)

    def mask(self, dim: int) -> Tensor | None:
        """The factors along a dimension."""
        return _held(self, f"mask{dim}")

    def forward(self, weight: Tensor) -> Tensor:
        """``weight[i, j] * mask0[i] * mask1[j]``."""
        for dim in range(weight.ndim):
            mask = self.mask(dim)
            if mask is not None:
                weight = weight * mask.view(-1, *[1] * (weight.ndim - dim - 1)).to(weight.dtype)
        return weight


def gate(structure: Structure, network: nn.Module, masks: Masks) -> None:
    """See :meth:`Structure.gate`."""
    plain = unwrapped(network)
    structure.check(masks)
    for unit, mask in zip(structure.attention, masks.heads, strict=True):
        _set(plain, unit.outputs, mask.repeat_interleave(unit.size))
    for part, mask in zip(structure.feed_forward, masks.neurons, strict=True):
        _set(plain, part.outputs, mask)
    if masks.channels is not None:
        for path in structure.norms:
            _check_norm(path, plain.get_submodule(path))
        _set(plain, structure.written, masks.channels)
        for path in structure.norms:
            norm = plain.get_submodule(path)
            names = [name for name in ("weight", "bias") if getattr(norm, name, None) is not None]
            _set(plain, tuple(Slot(f"{path}.{name}", 0) for name in names), masks.channels)
            if _narrow_norm not in norm._forward_hooks.values():
                norm.register_forward_hook(_narrow_norm)
    if masks.layers is not None:
        for path, share in zip(structure.layers, masks.layers.unbind(), strict=True):
            layer = plain.get_submodule(path)
            if _SHARE not in layer._buffers:
                layer.register_buffer(_SHARE, None)
                layer.register_forward_hook(_partial_layer, with_kwargs=True)
            _hold(layer, _SHARE, share)


def ungate(network: nn.Module) -> None:
    """See :func:`distillrs.knowledge.forms.structure.ungate`."""
    for module in list(network.modules()):
        _drop_hooks(module)
        module._buffers.pop(_SHARE, None)
        module.__dict__.pop(f"_live_{_SHARE}", None)
        lists: Any = getattr(module, "parametrizations", {})
        for name in list(lists):
            steps = lists[name]
            places = [place for place, step in enumerate(steps) if isinstance(step, Gate)]
            if places and len(steps) == 1:
                parametrized.remove(module, name)
            elif places:
                del steps[places[0]]


def is_gated(network: nn.Module) -> bool:
    """Whether a network has masks."""
    return any(isinstance(module, Gate) for module in network.modules())


def _drop_hooks(module: nn.Module) -> None:
    for key in [key for key, hook in module._forward_hooks.items() if hook in (_narrow_norm, _partial_layer)]:
        del module._forward_hooks[key]
        module._forward_hooks_with_kwargs.pop(key, None)


def _set(network: nn.Module, slots: tuple[Slot, ...], mask: Tensor) -> None:
    for slot in slots:
        path, _, name = slot.name.rpartition(".")
        module: Any = network.get_submodule(path)
        steps: Any = module.parametrizations[name] if parametrize.is_parametrized(module, name) else ()
        own = next((step for step in steps if isinstance(step, Gate)), None)
        tensor = steps.original if own is not None else getattr(module, name)
        if own is None:
            own = Gate(tensor.ndim)
            parametrized.register(module, name, own)
        mask_at_home = mask.to(device=tensor.device, dtype=wide(mask).dtype)
        _hold(own, f"mask{slot.dim}", mask_at_home)


def _channels(module: Any) -> Tensor:
    steps = module.parametrizations["weight"]
    mask: Tensor | None = next(step.mask(0) for step in steps if isinstance(step, Gate))
    assert mask is not None
    return mask


def _narrow_norm(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The normalisation over the channels that are there. The input has zeros in place of the others."""
    return _normalised(module, args[0], _channels(module)).to(output.dtype)


def _normalised(module: Any, x: Tensor, mask: Tensor) -> Tensor:
    x = wide(x)
    count = mask.sum()
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    epsilon = torch.finfo(x.dtype).eps if epsilon is None else epsilon
    if isinstance(module, nn.LayerNorm):
        x = (x - x.sum(-1, keepdim=True) / count) * mask
    x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) / count + epsilon)
    bias: Tensor | None = getattr(module, "bias", None)
    scaled: Tensor = x * module.weight
    return scaled if bias is None else scaled + bias


@torch.no_grad()
def _check_norm(path: str, module: Any) -> None:
    """Refuses a normalisation of another formula, which masks would change."""
    weight = module.weight
    if parametrize.is_parametrized(module, "weight") and _narrow_norm in module._forward_hooks.values():
        return
    probe = torch.linspace(-1.0, 2.0, len(weight), device=weight.device, dtype=weight.dtype)[None]
    ours = _normalised(module, probe, torch.ones(len(weight), device=weight.device))
    if not torch.allclose(ours, wide(module(probe)), rtol=0.02, atol=0.02):
        raise argument_error("network", f"{type(module).__name__} at {path!r}", "LayerNorm or RMSNorm over channels")


def _partial_layer(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    before = args[0] if args else next(iter(kwargs.values()))
    after = output[0] if isinstance(output, tuple) else output
    share = _held(module, _SHARE)
    assert share is not None
    share = share.to(device=after.device, dtype=after.dtype)
    # lerp is exact at both ends.
    mixed = torch.lerp(before, after, share)
    return (mixed, *output[1:]) if isinstance(output, tuple) else mixed
