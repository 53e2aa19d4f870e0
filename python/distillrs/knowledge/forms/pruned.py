"""Students without some of their parts."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from distillrs.checks import check_instance, check_path
from distillrs.errors import ArgumentError, DataError, argument_error
from distillrs.files import write_whole
from distillrs.knowledge.forms.gates import is_gated
from distillrs.knowledge.forms.packed import shared_names
from distillrs.knowledge.forms.protocol import Form
from distillrs.knowledge.forms.structure import Masks, Structure, ungate
from distillrs.knowledge.taps import unwrapped

KIND = "parts"
VERSION = "0"


@dataclass(frozen=True, slots=True, eq=False)
class Pruned(Form):
    """A transformer that computes without the parts whose masks are 0; what they leave keeps its place and is trained.

    :meth:`materialise` gives the smaller network, which computes the same; :meth:`export` writes its parameters and
    which parts it has.

    Attributes:
        structure: The parts.
        masks: Zeros and ones.
    """

    structure: Structure
    masks: Masks

    def __post_init__(self) -> None:
        check_instance("structure", self.structure, Structure, "Structure.of(network)")
        self.structure.check(self.masks)

    def apply(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`."""
        if is_gated(unwrapped(module, "module")):
            raise argument_error("module", "a network with masks", "one without")
        self.structure.gate(module, self.masks)
        return module

    def remove(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`."""
        self._check(module)
        ungate(module)
        return module

    def materialise(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`."""
        self._check(module)
        plain = copy.deepcopy(unwrapped(module, "module"))
        ungate(plain)
        return self.structure.slice(plain, self.masks)

    def export(self, module: nn.Module, path: str | os.PathLike[str]) -> int:
        """See :class:`Form`."""
        check_path("path", path)
        tensors = {
            name: each for name, each in self.materialise(module).state_dict().items() if isinstance(each, Tensor)
        }
        same = shared_names(tensors, ())
        kept: dict[str, Any] = {
            "heads": [mask.nonzero().flatten().tolist() for mask in self.masks.heads],
            "neurons": [mask.nonzero().flatten().tolist() for mask in self.masks.neurons],
        }
        for name, mask in (("channels", self.masks.channels), ("layers", self.masks.layers)):
            kept[name] = None if mask is None else mask.nonzero().flatten().tolist()
        about = {"distillrs.form": KIND, "version": VERSION, "kept": json.dumps(kept), "same": json.dumps(same)}
        content = save({n: each.detach().cpu().contiguous() for n, each in tensors.items() if n not in same}, about)
        write_whole(Path(path), content)
        return len(content)

    def restore(self, module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
        """See :class:`Form`. The file's own parts count, and not those of this form."""
        check_path("path", path)
        content = Path(path).read_bytes()
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata() or {}
            tensors = load(content)
            kept, same = _parts(about)
            masks = _masks(self.structure, kept)
            tensors |= {name: tensors[other] for name, other in same.items()}
        except DataError as failure:
            raise DataError(f"{path}: {failure}") from failure
        except (safetensors.SafetensorError, ArgumentError, ValueError, KeyError, TypeError, RecursionError) as failure:
            raise DataError(f"{path}: damaged ({failure})") from failure
        small = self.structure.slice(unwrapped(module, "module"), masks)
        own = {name: each.shape for name, each in small.state_dict().items() if isinstance(each, Tensor)}
        got = {name: each.shape for name, each in tensors.items()}
        if own != got:
            differing = sorted(name for name in own.keys() | got.keys() if own.get(name) != got.get(name))
            raise argument_error("module", f"a network that differs in {differing[:3]}", f"the network of {path}")
        small.load_state_dict(tensors)
        return small

    def _check(self, module: nn.Module) -> None:
        if not is_gated(unwrapped(module, "module")):
            raise argument_error("module", "a network without masks", "one that apply() returned")


def _parts(about: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    if about.get("distillrs.form") != KIND:
        raise DataError("no file of a network without some of its parts")
    if about.get("version") != VERSION:
        raise DataError(f"version {about.get('version')!r}, and this build reads {VERSION}")
    kept, same = json.loads(about["kept"]), json.loads(about["same"])
    if not isinstance(kept, dict) or not isinstance(same, dict):
        raise DataError("parts that are no names")
    return kept, same


def _masks(structure: Structure, kept: dict[str, Any]) -> Masks:
    heads, neurons = (
        tuple(_mask(places, size) for places, size in zip(kept[name], sizes, strict=True))
        for name, sizes in (
            ("heads", [unit.heads for unit in structure.attention]),
            ("neurons", [part.neurons for part in structure.feed_forward]),
        )
    )
    channels, layers = (
        None if kept[name] is None else _mask(kept[name], size)
        for name, size in (("channels", structure.width), ("layers", len(structure.layers)))
    )
    masks = Masks(heads, neurons, channels, layers)
    structure.check(masks)
    return masks


def _mask(places: Any, size: int) -> Tensor:
    if not isinstance(places, list) or not all(type(place) is int and 0 <= place < size for place in places):
        raise DataError(f"parts that are not among {size}")
    mask = torch.zeros(size)
    mask[torch.tensor(places, dtype=torch.int64)] = 1
    return mask
