"""Students whose weights lie on few levels."""

from __future__ import annotations

import copy
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distillrs.checks import check_callable, check_choice, check_instance, check_path, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.forms import packed, parametrized
from distillrs.knowledge.forms.levels import (
    LevelQuantiser,
    Quantiser,
    UniformQuantiser,
    bits_by_gradient,
)
from distillrs.knowledge.forms.protocol import Form
from distillrs.knowledge.taps import unwrapped


@dataclass(frozen=True, slots=True)
class _FewLevels(Form):
    """What the forms with weights on few levels share.

    Attributes:
        bits: Of a code, 1 to 8: for all, or by patterns of parameters' names ("layer1.*"), of which the first that
            fits counts; a parameter that none fits stays as it is.
        bucket: Elements that share smallest and largest value; ``None`` for the whole tensor.
    """

    bits: int | Mapping[str, int] = 2
    bucket: int | None = 256

    def __post_init__(self) -> None:
        for name, bits in self.bits.items() if isinstance(self.bits, Mapping) else [("", self.bits)]:
            if not isinstance(name, str):
                raise argument_error("bits", f"the name {name!r}", "patterns of parameters' names")
            if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
                raise argument_error("bits", f"{bits} for {name!r}" if name else bits, "whole numbers from 1 to 8")
        if self.bucket is not None:
            check_whole("bucket", self.bucket, "None or a positive number of elements", least=1)

    @abstractmethod
    def _quantiser(self, name: str, weight: Tensor, bits: int) -> Quantiser:
        """The parametrization of one weight."""

    def bits_of(self, name: str, weight: Tensor) -> int | None:
        """Bits of a parameter, ``None`` for one that stays as it is: biases, and scales of normalisations.

        Args:
            name: The parameter's, in the unwrapped network.
            weight: The parameter.
        """
        if isinstance(self.bits, Mapping):
            return next((bits for pattern, bits in self.bits.items() if fnmatchcase(name, pattern)), None)
        return self.bits if weight.ndim >= 2 and weight.is_floating_point() else None

    def apply(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`. Tied parameters stay tied: both places see the same levels.

        Raises:
            ArgumentError: A network that already has such a form, or patterns that no parameter's name fits.
        """
        plain = unwrapped(module, "module")
        if any(True for _ in _quantised(plain)):
            raise argument_error("module", "a network with weights on few levels", "one without")
        found = [
            (path, name, weight, bits)
            for path, name, weight in _parameters(plain)
            if (bits := self.bits_of(f"{path}.{name}" if path else name, weight)) is not None
        ]
        if not found:
            raise argument_error("bits", self.bits, "patterns, or a network, with parameters that they fit")
        made: dict[int, Quantiser] = {}
        for path, name, weight, bits in found:
            if id(weight) not in made:
                # Before registration, which changes what the name means; the same for all places of a tied parameter.
                made[id(weight)] = self._quantiser(f"{path}.{name}" if path else name, weight, bits)
        for path, name, weight, _ in found:
            quantiser = made[id(weight)]
            parametrized.register(plain.get_submodule(path), name, quantiser)
        return module

    def remove(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`."""
        _strip(module)
        return module

    def materialise(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`."""
        plain = copy.deepcopy(unwrapped(module, "module"))
        values = [
            (weight, quantiser.encode(weight).decode(weight.shape, weight.dtype).detach())
            for _, _, weight, quantiser in _present(plain)
        ]
        _strip(plain)
        with torch.no_grad():
            for weight, value in values:
                weight.copy_(value)
        return plain

    def export(self, module: nn.Module, path: str | os.PathLike[str]) -> int:
        """See :class:`Form`: codes by Huffman's method or in as many bits, smallest values, distances and levels."""
        check_path("path", path)
        plain = unwrapped(module, "module")
        codes = {
            f"{place}.{name}" if place else name: (quantiser, quantiser.encode(weight.detach()), weight)
            for place, name, weight, quantiser in _present(plain)
        }
        state = {name: each for name, each in self.materialise(plain).state_dict().items() if isinstance(each, Tensor)}
        same = packed.shared_names(state, codes)
        codes = {name: each for name, each in codes.items() if name not in same}
        entries = [
            packed.Entry(
                name,
                tuple(weight.shape),
                str(weight.dtype).removeprefix("torch."),
                quantiser.bits,
                found.codes.shape[1],
                isinstance(quantiser, LevelQuantiser),
            )
            for name, (quantiser, found, weight) in codes.items()
        ]
        rest = {name: tensor for name, tensor in state.items() if name not in codes and name not in same}
        return packed.write(path, entries, [found for _, found, _ in codes.values()], rest, same)

    def restore(self, module: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
        """See :class:`Form`."""
        check_path("path", path)
        plain = copy.deepcopy(unwrapped(module, "module"))
        state = packed.read(path)
        own = plain.state_dict()
        names = {name for name, value in own.items() if isinstance(value, Tensor)}
        if names != state.keys():
            differing = sorted(names ^ state.keys())
            raise argument_error("module", f"a network that differs in {differing[:3]}", f"the network of {path}")
        for name, value in state.items():
            if own[name].shape != value.shape:
                got = f"{name!r} of shape {list(own[name].shape)}"
                raise argument_error("module", got, f"shape {list(value.shape)}, as in {path}")
        plain.load_state_dict(state)
        return plain


@dataclass(frozen=True, slots=True)
class Quantised(_FewLevels):
    """Weights on evenly spaced levels between the smallest and the largest of each bucket, trained straight through.

    The optimiser updates full-precision weights; every forward pass uses the quantised ones, and the gradient is taken
    there. Evaluation, :meth:`materialise` and :meth:`export` round to the nearest level. Source: Polino, Pascanu and
    Alistarh, Model compression via distillation and quantization, ICLR 2018.

    Attributes:
        bits: Of a code, 1 to 8: for all parameters with two or more dimensions, or by patterns of names ("layer1.*"),
            of which the first that fits counts; a parameter that none fits stays as it is.
        bucket: Elements that share smallest and largest value; ``None`` for the whole tensor.
        rounding: "nearest", or in training "stochastic": up with the probability of the distance from below.

    Raises:
        ArgumentError: Values that are not allowed.
    """

    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        _FewLevels.__post_init__(self)
        check_choice("rounding", self.rounding, ("nearest", "stochastic"))

    def _quantiser(self, name: str, weight: Tensor, bits: int) -> Quantiser:
        return UniformQuantiser(bits, self.bucket, self.rounding == "stochastic", name, weight.numel())


@dataclass(frozen=True, slots=True)
class LearnedLevels(_FewLevels):
    """Weights on levels whose positions are trained; the weights themselves are not.

    Each tensor has its own levels, shared by its buckets, which begin at the quantiles of its scaled weights. The
    parameters under the form stop requiring gradients until it is taken off. Source: as of :class:`Quantised`.

    Attributes:
        bits: As of :class:`Quantised`.
        bucket: As of :class:`Quantised`.

    Raises:
        ArgumentError: Values that are not allowed.
    """

    def apply(self, module: nn.Module) -> nn.Module:
        """See :class:`Form`."""
        _FewLevels.apply(self, module)
        for _, _, weight, _ in _present(unwrapped(module, "module")):
            weight.requires_grad_(False)
        return module

    def _quantiser(self, name: str, weight: Tensor, bits: int) -> Quantiser:
        return LevelQuantiser(weight, bits, self.bucket).to(weight.device)


def gradient_bits(
    network: nn.Module, loss: Callable[[], Tensor], bits: float, lowest: int = 1, highest: int = 8
) -> dict[str, int]:
    """Bits for each parameter with two or more dimensions, by the length of its gradient; for ``bits=`` of a form.

    See :func:`~distillrs.knowledge.forms.bits_by_gradient`.

    Args:
        network: The plain network; its gradients are left as they are.
        loss: Its loss on some batch, with a graph.
        bits: Mean bits of an element, at most.
        lowest: Bits that each has.
        highest: Bits that none exceeds.

    Returns:
        Bits by the parameter's name.

    Raises:
        ArgumentError: A network without such parameters, or bits that do not fit each other.
    """
    check_instance("network", network, nn.Module, "a network with weights that are trained")
    check_callable("loss", loss, "a function that gives the loss of some batch")
    chosen = {name: each for name, each in network.named_parameters() if each.ndim >= 2 and each.requires_grad}
    if not chosen:
        raise argument_error("network", type(network).__name__, "a network with weights that are trained")
    value: Any = loss()
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise argument_error("loss", f"a function that gives {got}", "one that gives one number, with a graph")
    gradients = torch.autograd.grad(value.sum(), list(chosen.values()), allow_unused=True)
    norms = [0.0 if gradient is None else math.sqrt(float(gradient.double().square().sum())) for gradient in gradients]
    sizes = {name: each.numel() for name, each in chosen.items()}
    return bits_by_gradient(dict(zip(chosen, norms, strict=True)), sizes, bits, lowest, highest)


def _parameters(network: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    for path, module in network.named_modules():
        if isinstance(module, parametrize.ParametrizationList | Quantiser):
            continue
        for name, weight in module.named_parameters(recurse=False):
            yield path, name, weight


def _quantised(network: nn.Module) -> Iterator[tuple[str, str, Any]]:
    for path, module in network.named_modules():
        lists: Any = getattr(module, "parametrizations", {})
        for name in list(lists):
            if any(isinstance(step, Quantiser) for step in lists[name]):
                yield path, name, lists[name]


def _present(network: nn.Module) -> list[tuple[str, str, nn.Parameter, Quantiser]]:
    """Module's path, parameter's name, full-precision parameter and quantiser.

    Raises:
        ArgumentError: A network without the form, or with another one on the same parameter.
    """
    found = []
    for path, name, steps in _quantised(network):
        if len(steps) != 1:
            raise argument_error("module", f"several forms on {path}.{name}", "weights on few levels alone")
        found.append((path, name, steps.original, steps[0]))
    if not found:
        raise argument_error("module", "a network without this form", "one that apply() returned")
    return found


def _strip(network: nn.Module) -> None:
    plain = unwrapped(network, "module")
    for path, name, weight, quantiser in _present(plain):
        parametrized.remove(plain.get_submodule(path), name)
        if isinstance(quantiser, LevelQuantiser):
            weight.requires_grad_(quantiser.was_trained)
