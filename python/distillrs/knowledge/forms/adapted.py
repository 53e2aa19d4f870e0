"""Students that are a frozen network and a small low-rank change of its weights."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_instance, check_path
from distillrs.errors import DataError, argument_error
from distillrs.files import write_whole
from distillrs.knowledge.forms import parametrized
from distillrs.knowledge.forms.protocol import Form
from distillrs.knowledge.numerics import products, wide
from distillrs.knowledge.taps import unwrapped
from distillrs.low_rank import LowRank
from distillrs.step import Step
from distillrs.trajectory import Fingerprint

KIND = "low rank"
VERSION = "0"
_TRAINED = "_trained_before_adapters"


@dataclass(frozen=True, slots=True)
class Adapted(Form):
    """A frozen network whose layers learn a low-rank change: ``W + alpha / rank B A``, with B = 0 at first.

    All parameters but the adapters stop requiring gradients until the form is taken off; what is made to require one
    again is trained and exported beside them. Adapters are kept in float32, or float64 for a network in float64: steps
    that are small beside the weight would be lost in half precision. The change is rounded to the weight's type once,
    here as in :meth:`materialise`, so both compute the same bits. Linear layers, convolutions and Hugging Face's
    ``Conv1D`` are adapted; a weight that stands in several places has one change. Source: Hu et al., LoRA, ICLR 2022.

    Attributes:
        adapter: Rank, factor, targets and seed.
    """

    adapter: LowRank

    def __post_init__(self) -> None:
        check_instance("adapter", self.adapter, LowRank, "LowRank(rank)")

    def apply(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`.

        Raises:
            ArgumentError: A network that already has a form, or targets that are none of its layers.
        """
        plain = unwrapped(module, "module")
        if any(hasattr(each, "parametrizations") for each in plain.modules()):
            raise argument_error("module", f"{type(plain).__name__} with a form", "a plain network")
        found = [
            (path, layer)
            for path, layer in plain.named_modules(remove_duplicate=False)
            if self.adapter.fits(path) and _is_layer(layer)
        ]
        if not found:
            got = "every layer" if self.adapter.targets is None else self.adapter.targets
            raise argument_error("adapter", f"the targets {got}", "endings of names of linear layers or convolutions")
        trained = frozenset(name for name, each in plain.named_parameters() if each.requires_grad)
        made: dict[int, Delta] = {}
        for path, layer in found:
            weight: Any = layer._parameters["weight"]
            if id(weight) not in made:
                made[id(weight)] = Delta(weight, self.adapter, f"adapter {path}", type(layer).__name__ == "Conv1D")
        # An embedding that shares its weight with an adapted head has the change, too: it is one weight.
        places = [
            (layer, path, name, made[id(each)])
            for path, layer in plain.named_modules()
            for name, each in layer._parameters.items()
            if id(each) in made
        ]
        for _, path, name, _ in places:
            if name != "weight":
                got = f"a weight that is {name!r} of {path!r}, too"
                raise argument_error("adapter", got, "weights that are called so everywhere")
        for layer, _, _, delta in places:
            parametrized.register(layer, "weight", delta)
        object.__setattr__(plain, _TRAINED, trained)
        own = {id(each) for delta in made.values() for each in delta.parameters()}
        for parameter in plain.parameters():
            parameter.requires_grad_(id(parameter) in own)
        return module

    def remove(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`: the network as it was before the adapters."""
        plain = unwrapped(module, "module")
        _check(plain)
        for layer, _ in list(_deltas(plain)):
            parametrized.remove(layer, "weight")
        trained: frozenset[str] = plain.__dict__.pop(_TRAINED)
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(name in trained)
        return module

    def materialise(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`: the changes are added to the weights."""
        plain = copy.deepcopy(unwrapped(module, "module"))
        _check(plain)
        with torch.no_grad():
            values = [(weight, delta(weight)) for weight, delta in _weights(plain)]
            self.remove(plain)
            for weight, value in values:
                weight.copy_(value)
        return plain

    def export(self, module: nn.Module, path: str | os.PathLike[str]) -> int:
        """See :class:`Form`: adapters, buffers and what else requires a gradient, and a digest of all other weights."""
        check_path("path", path)
        plain = unwrapped(module, "module")
        _check(plain)
        deltas = _named(plain)
        tensors: dict[str, Tensor] = {f"up.{name}": delta.up for name, delta in deltas.items()}
        tensors |= {f"down.{name}": delta.down for name, delta in deltas.items()}
        free = {id(each) for each in plain.parameters() if each.requires_grad}
        whole = {name: each for name, each in _originals(plain).items() if id(each) in free}
        tensors |= {f"whole.{name}": each for name, each in whole.items()}
        bare = self.remove(copy.deepcopy(plain))
        names = dict(bare.named_parameters(remove_duplicate=False))
        buffers = {name: each for name, each in bare.state_dict().items() if name not in names}
        tensors |= {f"buffer.{name}": each for name, each in buffers.items() if isinstance(each, Tensor)}
        about = {
            "distillrs.form": KIND,
            "version": VERSION,
            "factors": json.dumps({name: delta.factor for name, delta in deltas.items()}),
            "base": _digest({name: each for name, each in _originals(plain).items() if name not in whole}),
        }
        content = save({name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}, about)
        write_whole(Path(path), content)
        return len(content)

    def restore(self, module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
        """See :class:`Form`. The file's own adapters count, and not those of this form.

        Raises:
            DataError: A file that is damaged or of another kind.
            ArgumentError: Another network than the one that was adapted, or the same one with other weights.
        """
        check_path("path", path)
        plain = copy.deepcopy(unwrapped(module, "module"))
        content = Path(path).read_bytes()
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata() or {}
            tensors = load(content)
            factors, parts = _parts(about, tensors)
        except DataError as failure:
            raise DataError(f"{path}: {failure}") from failure
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as failure:
            raise DataError(f"{path}: damaged ({failure})") from failure
        own = dict(plain.named_parameters(remove_duplicate=False))
        state = {name: each for name, each in plain.state_dict().items() if isinstance(each, Tensor)}
        same = parts["buffer"].keys() == state.keys() - own.keys()
        same = same and all(state[name].shape == each.shape for name, each in parts["buffer"].items())
        same = same and all(name in own and own[name].shape == each.shape for name, each in parts["whole"].items())
        for name in factors:
            rows, columns = len(parts["up"][name]), parts["down"][name].shape[1]
            same = same and name in own and (len(own[name]), math.prod(own[name].shape[1:])) == (rows, columns)
        if not same:
            raise argument_error("module", type(plain).__name__, f"the network that {path} was made of")
        trained = {id(own[name]) for name in parts["whole"]}
        if about["base"] != _digest({name: each for name, each in own.items() if id(each) not in trained}):
            raise argument_error("module", "other weights", f"those that the adapters of {path} belong to")
        with torch.no_grad():
            for name, value in (parts["whole"] | parts["buffer"]).items():
                state[name].copy_(value)
            for name, factor in factors.items():
                weight = own[name]
                up, down = (parts[side][name].to(weight.device) for side in ("up", "down"))
                weight.copy_(_changed(weight, up, down, factor))
        return plain


class Delta(nn.Module):
    """A low-rank change of a weight; a parametrization.

    Args:
        weight: Which; its axes but the first count as one.
        adapter: Rank, factor and seed.
        name: Of the draw.
        transposed: Whether the first axis of the weight is that of the inputs.
    """

    def __init__(self, weight: Tensor, adapter: LowRank, name: str, transposed: bool) -> None:
        super().__init__()
        rows, columns = len(weight), math.prod(weight.shape[1:])
        like = wide(weight.detach()[:0])
        bound = 1 / math.sqrt(max(rows if transposed else columns, 1))
        drawn = random.uniform(rows if transposed else columns, adapter.rank, step=Step(0, adapter.seed), name=name)
        drawn = ((2 * drawn - 1) * bound).to(like)
        self.up = nn.Parameter(drawn if transposed else like.new_zeros(rows, adapter.rank))
        self.down = nn.Parameter(like.new_zeros(adapter.rank, columns) if transposed else drawn.mT.contiguous())
        self.factor = adapter.factor

    def forward(self, weight: Tensor) -> Tensor:
        """``weight + factor up down``."""
        return _changed(weight, self.up, self.down, self.factor)


def _changed(weight: Tensor, up: Tensor, down: Tensor, factor: float) -> Tensor:
    change = factor * products(up, down).reshape(weight.shape)
    return (wide(weight) + change).to(weight.dtype)


def _is_layer(module: nn.Module) -> bool:
    is_known = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or type(module).__name__ == "Conv1D"
    return is_known and module._parameters.get("weight") is not None


def _deltas(network: nn.Module) -> Iterator[tuple[nn.Module, Delta]]:
    for module in network.modules():
        steps: Any = getattr(module, "parametrizations", {})
        if "weight" in steps and isinstance(steps["weight"][0], Delta):
            yield module, steps["weight"][0]


def _weights(network: nn.Module) -> list[tuple[nn.Parameter, Delta]]:
    found: Any = {id(delta): (layer.parametrizations["weight"].original, delta) for layer, delta in _deltas(network)}  # type: ignore[index,union-attr]  # untyped in torch
    return list(found.values())


def _check(network: nn.Module) -> None:
    if _TRAINED not in network.__dict__ or next(_deltas(network), None) is None:
        raise argument_error("module", "a network without adapters", "one that apply() returned")


def _originals(network: nn.Module) -> dict[str, Tensor]:
    """The network's own parameters by all their names without adapters."""
    found: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if ".parametrizations.weight.0." not in f".{name}":
            found[name.replace("parametrizations.weight.original", "weight")] = parameter
    return found


def _named(network: nn.Module) -> dict[str, Delta]:
    """The changes by the names of their weights, of several the first in the alphabet."""
    own = {id(weight): delta for weight, delta in _weights(network)}
    found: dict[int, str] = {}
    originals = _originals(network)
    for name in sorted(originals):
        if id(originals[name]) in own:
            found.setdefault(id(originals[name]), name)
    return {name: own[key] for key, name in found.items()}


def _digest(parameters: dict[str, Any]) -> str:
    """Of the values; of several names of one tensor the first in the alphabet counts."""
    first: dict[int, str] = {}
    for name in sorted(parameters):
        first.setdefault(id(parameters[name]), name)
    kept = {name: parameters[name] for name in first.values()}
    return Fingerprint.of(kept).teacher if kept else "none"


def _parts(about: dict[str, str], tensors: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, dict[str, Tensor]]]:
    if about.get("distillrs.form") != KIND:
        raise DataError("no file of adapters")
    if about.get("version") != VERSION:
        raise DataError(f"version {about.get('version')!r}, and this build reads {VERSION}")
    factors = json.loads(about["factors"])
    is_known = isinstance(factors, dict) and all(type(each) in (int, float) for each in factors.values())
    if not is_known or not isinstance(about["base"], str):
        raise DataError("factors that are no numbers by name")
    parts: dict[str, dict[str, Tensor]] = {"up": {}, "down": {}, "whole": {}, "buffer": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind not in parts:
            raise DataError(f"the tensor {name!r}")
        parts[kind][rest] = tensor
    if not factors.keys() == parts["up"].keys() == parts["down"].keys():
        raise DataError("adapters that lack a side")
    for name in factors:
        up, down = parts["up"][name], parts["down"][name]
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != len(down) or not up.is_floating_point():
            raise DataError(f"the adapter of {name!r}: {list(up.shape)} and {list(down.shape)}")
        if up.dtype != down.dtype:
            raise DataError(f"the adapter of {name!r}: {up.dtype} and {down.dtype}")
    return {name: float(factor) for name, factor in factors.items()}, parts
