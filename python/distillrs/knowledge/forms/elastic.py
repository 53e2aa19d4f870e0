"""One network that holds smaller ones: nested sizes, of which each step trains one and each budget gets its own."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import nn

from distillrs.checks import check_flag, check_number, check_path, check_whole, is_number
from distillrs.errors import DataError, argument_error
from distillrs.files import write_whole
from distillrs.knowledge.forms.protocol import Form
from distillrs.knowledge.forms.router import AXES, Router, Sizes
from distillrs.knowledge.forms.structure import Structure, ungate
from distillrs.knowledge.taps import unwrapped
from distillrs.schedule import LinearRamp, Ramp

_ANNEALED = LinearRamp(1.0, 0.1)
_NAME = "elastic"
_FORMAT = "distillrs elastic 1"


@dataclass(frozen=True, slots=True)
class Elastic(Form):
    """A network of nested parts that runs at one of several budgets.

    Parts stand in the order of their importance (:func:`nested`), so that every size of an axis is a prefix. A
    :class:`~distillrs.knowledge.forms.router.Router` inside the network scores the sizes for each budget. While the
    network trains, each step draws a budget and sizes for it; in evaluation it runs at the budget that :meth:`choose`
    was given last, the largest at first. The cost of a submodel is its share of the multiplications and additions of a
    token, by :meth:`Structure.macs`.

    Steps of the budget 1 leave the router without a gradient: ``DistributedDataParallel`` needs
    ``find_unused_parameters=True``. Source: NVIDIA, Nemotron Elastic, 2025.

    Attributes:
        budgets: Shares of the full cost, above 0 to 1.
        order: Layers from the one to keep longest to the one to leave out first (:func:`layer_order`); ``None`` keeps
            the first layers.
        channels: Shares of the channels that are allowed, from above 0 to 1; 1 is always allowed.
        heads: Shares of the heads; heads that share keys and values stay together.
        neurons: Shares of the neurons.
        layers: Shares of the layers.
        temperature: Of the draws of sizes: a number above 0 or a ramp.
        weights: How likely each budget is drawn, numbers or ramps; ``None`` for equally.
        hard: Whether a draw is one size, with the gradient of the soft mixture, or the soft mixture itself.
        length: Tokens of a text, for the cost.
        head: Whether the output head counts to the cost.
        tolerance: How far from its budget a submodel may be, relative to the budget.
    """

    budgets: tuple[float, ...] = (1.0, 0.75, 0.5)
    order: tuple[int, ...] | None = None
    channels: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875)
    heads: tuple[float, ...] = (0.5, 0.75)
    neurons: tuple[float, ...] = tuple(part / 32 for part in range(4, 32))
    layers: tuple[float, ...] = ()
    temperature: float | Ramp = _ANNEALED
    weights: tuple[float | Ramp, ...] | None = None
    hard: bool = True
    length: int = 1024
    head: bool = False
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        for name in ("budgets", *AXES):
            if not isinstance(getattr(self, name), list | tuple):
                raise argument_error(name, getattr(self, name), "a tuple of shares, above 0 to 1")
        if not self.budgets or not all(_is_share(budget) for budget in self.budgets):
            raise argument_error("budgets", self.budgets, "shares of the full cost, above 0 to 1")
        if len(set(self.budgets)) != len(self.budgets):
            raise argument_error("budgets", self.budgets, "each budget once")
        for name in AXES:
            if not all(_is_share(share) for share in getattr(self, name)):
                raise argument_error(name, getattr(self, name), "shares of the full size, above 0 to 1")
        if self.weights is not None and not (
            isinstance(self.weights, list | tuple)
            and len(self.weights) == len(self.budgets)
            and all(callable(each) or (is_number(each) and each >= 0) for each in self.weights)
        ):
            allowed = f"{len(self.budgets)} numbers from 0 or ramps, one for each budget"
            raise argument_error("weights", self.weights, allowed)
        if self.order is not None and not (
            isinstance(self.order, list | tuple) and all(type(layer) is int and layer >= 0 for layer in self.order)
        ):
            raise argument_error("order", self.order, "None or numbers of layers, from 0")
        if not callable(self.temperature):
            check_number("temperature", self.temperature, "a number above 0, or a ramp", above=0)
        check_number("tolerance", self.tolerance, "a number above 0", above=0)
        check_whole("length", self.length, "a positive number of tokens", least=1)
        for name in ("hard", "head"):
            check_flag(name, getattr(self, name))

    def apply(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`. The network's parts must already stand in order: see :func:`nested`.

        Raises:
            ArgumentError: A network of another kind, one that has this form, an order that is none of its layers, or a
                budget that no sizes meet.
        """
        plain = unwrapped(module, "module")
        if _NAME in plain._modules or any(hasattr(each, "parametrizations") for each in plain.modules()):
            raise argument_error("module", f"{type(plain).__name__} with a form", "the plain network")
        structure = Structure.of(plain)
        if not structure.residual:
            raise argument_error("module", type(plain).__name__, "one with Llama's or GPT-2's names")
        router = Router(
            structure,
            self.budgets,
            self._allowed(structure),
            self._order(structure),
            self.temperature,
            self.weights,
            self.hard,
            self.length,
            self.head,
        )
        for place, budget in enumerate(self.budgets):
            self._check_met(router, place, budget)
        like = next(plain.parameters())
        plain.add_module(_NAME, router.to(like.device).train(plain.training))
        plain.register_forward_pre_hook(_take_masks)
        # All that the form adds is there from now on, for optimisers and checkpoints.
        structure.gate(plain, router.masks_of(router.configuration(router.chosen)))
        return module

    def remove(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`."""
        plain = unwrapped(module)
        router_of(plain)
        ungate(plain)
        for key in [key for key, hook in plain._forward_pre_hooks.items() if hook is _take_masks]:
            del plain._forward_pre_hooks[key]
        del plain._modules[_NAME]
        return module

    def choose(self, module: nn.Module, budget: float) -> nn.Module:
        """Sets the budget that the network runs at in evaluation, and that it is materialised and exported at.

        Args:
            module: A network with this form.
            budget: One of the budgets.

        Returns:
            The same object.

        Raises:
            ArgumentError: Another number.
        """
        router_of(module).chosen = self._place(budget)
        return module

    def materialise(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`: the submodel of the chosen budget.

        Raises:
            ArgumentError: A network without this form, or scores that no longer lead to sizes within the tolerance.
        """
        router = router_of(module)
        self._check_met(router, router.chosen, router.budgets[router.chosen])
        masks = router.masks_of(router.configuration(router.chosen))
        with torch.no_grad():
            plain = self.remove(copy.deepcopy(unwrapped(module)))
        return Structure.of(plain).slice(plain, masks)

    def export(self, module: nn.Module, path: str | os.PathLike[str]) -> int:
        """See :class:`Form`: safetensors of the submodel's parameters, with its sizes."""
        check_path("path", path)
        router = router_of(module)
        sizes = router.configuration(router.chosen)
        kept = sorted(router.order[: sizes.layers])
        header = {
            "format": _FORMAT,
            "budget": repr(router.budgets[router.chosen]),
            "channels": str(sizes.channels),
            "heads": json.dumps([sizes.heads[layer] for layer in kept]),
            "neurons": json.dumps([sizes.neurons[layer] for layer in kept]),
            "layers": json.dumps(kept),
        }
        # Tied tensors share their memory, which a file cannot.
        tensors = {name: value.detach().cpu().clone() for name, value in self.materialise(module).state_dict().items()}
        content = save({name: value.contiguous() for name, value in tensors.items()}, header)
        write_whole(Path(path), content)
        return len(content)

    def restore(self, module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
        """See :class:`Form`."""
        check_path("path", path)
        structure = Structure.of(unwrapped(module, "module"))
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            if header.get("format") != _FORMAT:
                raise DataError(f"{path} is no file of an elastic submodel: its format is {header.get('format')!r}")
            layers, channels = [int(each) for each in json.loads(header["layers"])], int(header["channels"])
            given = {name: [int(each) for each in json.loads(header[name])] for name in ("heads", "neurons")}
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as failure:
            if isinstance(failure, FileNotFoundError | DataError):
                raise
            raise DataError(f"{path} is damaged: {failure}") from failure
        heads = [torch.arange(unit.heads) for unit in structure.attention]
        neurons = [torch.arange(part.neurons) for part in structure.feed_forward]
        same = len(layers) == len(given["heads"]) == len(given["neurons"])
        if not same or not set(layers) <= set(range(len(heads))):
            raise argument_error("module", f"{len(heads)} layers", f"the network that {path} was made of")
        for layer, head, neuron in zip(layers, given["heads"], given["neurons"], strict=True):
            heads[layer], neurons[layer] = heads[layer][:head], neurons[layer][:neuron]
        smaller = structure.take(module, heads, neurons, torch.arange(structure.width)[:channels], torch.tensor(layers))
        own = {name: tuple(value.shape) for name, value in smaller.state_dict().items()}
        if own != {name: tuple(value.shape) for name, value in tensors.items()}:
            raise argument_error("module", type(module).__name__, f"the network that {path} was made of")
        smaller.load_state_dict(tensors)
        return smaller

    def _allowed(self, structure: Structure) -> dict[str, tuple[int, ...]]:
        units, parts = structure.attention, structure.feed_forward
        if len({unit.heads for unit in units}) > 1 or len({part.neurons for part in parts}) > 1:
            raise argument_error("module", "layers of different sizes", "layers of one size")
        group = units[0].heads // units[0].shared
        full = {
            "channels": (structure.width, 1),
            "heads": (units[0].heads, group),
            "neurons": (parts[0].neurons, 1),
            "layers": (len(structure.layers), 1),
        }
        found = {}
        for name, (size, least) in full.items():
            counts = {max(round(share * size / least), 1) * least for share in getattr(self, name)}
            found[name] = tuple(sorted(counts | {size}))
        return found

    def _order(self, structure: Structure) -> tuple[int, ...]:
        layers = range(len(structure.layers))
        if self.order is not None and sorted(self.order) != list(layers):
            raise argument_error("order", self.order, f"each of 0 to {len(layers) - 1} once")
        return tuple(layers) if self.order is None else tuple(self.order)

    def _check_met(self, router: Router, place: int, budget: float) -> None:
        cost = router.cost(router.configuration(place))
        if abs(cost - budget) > self.tolerance * budget:
            allowed = f"budgets that the allowed sizes meet within {self.tolerance:.1%}: allow more sizes"
            raise argument_error("budgets", f"{budget}, to which {cost:.4f} is nearest", allowed)

    def sizes(self, module: nn.Module, budget: float) -> Sizes:
        """The sizes of a budget's submodel.

        Args:
            module: A network with this form.
            budget: One of the budgets.

        Raises:
            ArgumentError: Another number.
        """
        place = self._place(budget)
        return router_of(module).configuration(place)

    def _place(self, budget: float) -> int:
        if not is_number(budget) or budget not in self.budgets:
            raise argument_error("budget", budget, f"one of {self.budgets}")
        return self.budgets.index(budget)


def router_of(module: nn.Module) -> Router:
    """The router inside a network with the elastic form.

    Args:
        module: The network, also wrapped.

    Raises:
        ArgumentError: It has none.
    """
    router = unwrapped(module, "module")._modules.get(_NAME)
    if not isinstance(router, Router):
        raise argument_error("module", type(module).__name__, "a network after Elastic(...).apply(network)")
    return router


def _take_masks(module: nn.Module, args: tuple[Any, ...]) -> None:
    router = router_of(module)
    router.structure.gate(module, router.masks())


def _is_share(value: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
