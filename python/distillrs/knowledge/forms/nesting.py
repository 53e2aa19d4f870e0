"""How much the parts of a transformer matter, by what they give on calibration text, and networks in that order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.checks import check_instance
from distillrs.errors import argument_error
from distillrs.knowledge.forms.structure import Masks, Structure, ungate
from distillrs.knowledge.inputs import Inputs, read_batch
from distillrs.knowledge.numerics import wide
from distillrs.knowledge.taps import OneTap, Output, Tap, record, unwrapped


@dataclass(frozen=True, slots=True, eq=False)
class ActivationImportance:
    """A number from 0 for each part; the larger, the more it matters. Numbers of different kinds do not compare.

    Attributes:
        channels: float64 ``[width]``; ``None`` if channels cannot be left out.
        heads: float64 ``[heads]`` for each attention.
        neurons: float64 ``[neurons]`` for each feed-forward part.
    """

    channels: Tensor | None
    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(each, Tensor) for each in values):
                raise argument_error(name, values, "a tuple of tensors, one for each layer")
        if self.channels is not None:
            check_instance("channels", self.channels, Tensor, "None or a tensor")


@torch.no_grad()
def activation_importance(network: nn.Module, batches: Iterable[Any]) -> ActivationImportance:
    """Means over tokens of what the parts give.

    Channels: the absolute value after a normalisation, summed over all of them. Neurons: the absolute value of what
    enters the output projection. Heads: the length of what enters theirs. Source: Muralidharan et al., Compact Language
    Models via Pruning and Knowledge Distillation, NeurIPS 2024, which takes neurons before their activation.

    Args:
        network: A transformer that :meth:`Structure.of` knows, of Llama's or GPT-2's names; it is run in evaluation
            mode.
        batches: As an objective takes them. Tokens where ``attention_mask`` is 0 do not count.

    Raises:
        ArgumentError: No batch, or a network of another kind.
    """
    plain = unwrapped(network)
    structure = Structure.of(plain)
    _check_batches(batches)
    norms = [Tap(path) for path in structure.norms]
    heads = [Tap(unit.outputs[0].name.rpartition(".")[0], "input") for unit in structure.attention]
    neurons = [Tap(part.outputs[0].name.rpartition(".")[0], "input") for part in structure.feed_forward]
    sums: dict[OneTap, Tensor] = {}
    tokens = 0.0
    for inputs, found in _runs(plain, batches, [*norms, *heads, *neurons]):
        there = _there(inputs, found[neurons[0]])
        tokens += float(there.sum())
        for tap, value in found.items():
            size = value.double().abs()
            if tap in heads:
                unit = structure.attention[heads.index(tap)]
                size = value.double().reshape(*value.shape[:-1], unit.heads, unit.size).norm(dim=-1)
            total = (size * there[..., None]).flatten(0, -2).sum(0)
            sums[tap] = total if tap not in sums else sums[tap] + total
    if not tokens:
        raise argument_error("batches", "no tokens", "at least one")
    means = {tap: total / tokens for tap, total in sums.items()}
    channels = sum((means[tap] for tap in norms), torch.zeros(())) if structure.residual else None
    return ActivationImportance(channels, tuple(means[tap] for tap in heads), tuple(means[tap] for tap in neurons))


@torch.no_grad()
def layer_order(network: nn.Module, batches: Iterable[Any], output: Output = Output("logits")) -> tuple[int, ...]:  # noqa: B008  # frozen
    """The layers from the one to keep longest to the one to leave out first.

    Again and again that layer goes whose removal from what is left changes the output least:
    ``|y_full - y_without|^2 / |y_full|^2``, over all batches. Source: NVIDIA, Nemotron Elastic, 2025.

    Args:
        network: A transformer that :meth:`Structure.of` knows; it is run in evaluation mode, and left as it was.
        batches: As an objective takes them; gone through once for every layer that is tried.
        output: y.

    Raises:
        ArgumentError: No batch, a network of another kind, or one that has masks.
    """
    plain = unwrapped(network)
    if any(name.endswith("parametrizations") for name, _ in plain.named_modules()):
        raise argument_error("network", "one with masks or another form", "the plain network")
    structure = Structure.of(plain)
    _check_batches(batches)
    check_instance("output", output, Output, "Output('logits')")
    kept_batches = list(batches)
    if not kept_batches:
        raise argument_error("batches", "none", "at least one")
    full = _outputs(plain, kept_batches, output)
    size = sum(float(each.square().sum()) for each in full)
    ones = structure.full()
    share = torch.ones(len(structure.layers))
    gone: list[int] = []
    try:
        while len(gone) < len(structure.layers):
            errors = {}
            for layer in (int(each) for each in share.nonzero()):
                tried = share.clone()
                tried[layer] = 0
                structure.gate(plain, Masks(ones.heads, ones.neurons, None, tried))
                found = _outputs(plain, kept_batches, output)
                difference = sum(float((a - b).square().sum()) for a, b in zip(full, found, strict=True))
                errors[layer] = difference / size if size else 0.0
            # Of equals the later one goes.
            least = min(errors, key=lambda layer: (errors[layer], -layer))
            share[least] = 0
            gone.append(least)
    finally:
        ungate(plain)
    return tuple(reversed(gone))


def nested(network: nn.Module, importance: ActivationImportance) -> nn.Module:
    """A copy whose heads, neurons and channels stand in the order of their importance: prefixes are smaller networks.

    It computes what the network does. Heads stay with the others that share their keys and values; these groups are
    ordered by their sums.

    Args:
        network: The plain network; left as it is.
        importance: Of its parts, from :func:`activation_importance` or a user's own.

    Raises:
        ArgumentError: ActivationImportance that does not fit the network.
    """
    structure = Structure.of(network)
    check_instance("importance", importance, ActivationImportance, "what activation_importance gives")
    due = [(f"heads[{i}]", unit.heads) for i, unit in enumerate(structure.attention)]
    due += [(f"neurons[{i}]", part.neurons) for i, part in enumerate(structure.feed_forward)]
    given = [*importance.heads, *importance.neurons]
    if importance.channels is not None:
        due, given = [*due, ("channels", structure.width if structure.residual else 0)], [*given, importance.channels]
    if len(due) != len(given):
        raise argument_error("importance", f"{len(given)} tensors", f"{len(due)}: for {', '.join(n for n, _ in due)}")
    for (name, size), values in zip(due, given, strict=True):
        if list(values.shape) != [size] or not bool(values.isfinite().all()):
            raise argument_error(f"importance.{name}", f"shape {list(values.shape)}", f"{size} finite numbers")
    heads = [
        _by_groups(values, unit.heads // unit.shared)
        for unit, values in zip(structure.attention, importance.heads, strict=True)
    ]
    neurons = [_falling(values) for values in importance.neurons]
    channels = None if importance.channels is None else _falling(importance.channels)
    return structure.take(network, heads, neurons, channels)


def _check_batches(batches: object) -> None:
    if isinstance(batches, str | bytes | Tensor | Mapping) or not isinstance(batches, Iterable):
        raise argument_error("batches", type(batches).__name__, "a list of batches, as an objective takes them")


def _falling(values: Tensor) -> Tensor:
    return values.argsort(descending=True, stable=True)


def _by_groups(values: Tensor, size: int) -> Tensor:
    groups = values.view(-1, size)
    within = groups.argsort(stable=True, dim=1, descending=True)
    order = _falling(groups.sum(1))
    ordered: Tensor = order[:, None] * size + within[order]
    return ordered.flatten()


def _runs(network: nn.Module, batches: Iterable[Any], taps: list[Any]) -> Iterable[tuple[Inputs, dict[OneTap, Tensor]]]:
    was_training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        for batch in batches:
            inputs = read_batch(batch, "labels", "ids", ())
            yield inputs, dict(record(network, taps, inputs).values)
    finally:
        for module, mode in was_training.items():
            module.training = mode


def _outputs(network: nn.Module, batches: list[Any], output: Output) -> list[Tensor]:
    found = []
    for inputs, values in _runs(network, batches, [output]):
        value = wide(values[output])
        found.append(value * _there(inputs, value)[..., None])
    return found


def _there(inputs: Inputs, like: Tensor) -> Tensor:
    """Ones for the tokens that are there, ``[B, L]``."""
    mask = inputs.fields.get("attention_mask", inputs.kwargs.get("attention_mask"))
    rows = like.shape[:-1]
    if isinstance(mask, Tensor) and mask.shape == rows:
        return (mask != 0).double()
    return torch.ones(rows, dtype=torch.float64, device=like.device)
