"""How much a transformer's answers change when one of its parts is left out, and which parts a budget pays for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillrs import _core, ops, random
from distillrs.checks import check_instance, check_number, check_text, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.forms.gates import is_gated
from distillrs.knowledge.forms.structure import Masks, Structure, ungate
from distillrs.knowledge.inputs import Inputs
from distillrs.knowledge.numerics import products, unit, wide
from distillrs.knowledge.taps import Output, Record, Tap, record
from distillrs.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """What leaving out a part changes, for all parts.

    Parts are the query heads that share keys and values, and groups of neurons.

    Attributes:
        heads: float64 ``[key-value heads]`` for each attention.
        neurons: float64 ``[groups]`` for each feed-forward part.
        group: Neurons of a group; the last one of a part may have fewer.
    """

    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]
    group: int = 1

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(each, Tensor) and each.ndim == 1 for each in values):
                raise argument_error(name, values, "a tuple of tensors of one axis, one for each layer")
        check_whole("group", self.group, "a positive number of neurons", least=1)

    def add(self, other: Importance, scale: float) -> Importance:
        """``self + scale * other``, of the same parts.

        Raises:
            ArgumentError: Something else, or other parts.
        """
        check_instance("other", other, Importance, "an Importance")
        check_number("scale", scale, "a finite number")
        own, given = ([each.shape for each in (*one.heads, *one.neurons)] for one in (self, other))
        if own != given or self.group != other.group:
            raise argument_error("other", "importances of other parts", "those of the same parts")
        heads = tuple(a + float(scale) * b for a, b in zip(self.heads, other.heads, strict=True))
        neurons = tuple(a + float(scale) * b for a, b in zip(self.neurons, other.neurons, strict=True))
        return Importance(heads, neurons, self.group)

    def total(self) -> float:
        """The sum over all parts."""
        return sum(float(each.sum()) for each in (*self.heads, *self.neurons))


@torch.no_grad()
def output_changes(
    network: nn.Module,
    inputs: Inputs,
    structure: Structure | None = None,
    *,
    tokens: int = 768,
    group: int = 1,
    temperature: float = 4.0,
    mask: str = "attention_mask",
    seed: int = 0,
) -> tuple[Importance, Importance]:
    """Leaves out each part alone and compares features and logits with those of the whole network.

    Features: the sum over the part's own layer and all later ones of ``|M - M'|^2``, Frobenius, with M the cosines
    between ``tokens`` drawn tokens of the layer's output. Logits: ``T^2 KL(softmax(z / T) || softmax(z' / T))``, mean
    over the tokens. One forward pass for each part; every mask is set anew for each. Source: Khaki and Plataniotis,
    The Need for Speed: Pruning Transformers with One Recipe, ICLR 2024.

    Args:
        network: The plain network; it is left as it is.
        inputs: Of the calibration batch.
        structure: Its parts; ``None`` finds them.
        tokens: Tokens that are drawn, at most all that the mask leaves.
        group: Neurons of a group.
        temperature: T.
        mask: The batch's entry that is 0 at padding, where there is one.
        seed: Of the draw.

    Returns:
        By features, and by logits.

    Raises:
        ArgumentError: A network with masks, or numbers that are not allowed.
    """
    check_instance("network", network, nn.Module, "a transformer")
    check_instance("inputs", inputs, Inputs, "Inputs(args, kwargs, fields)")
    structure = Structure.of(network) if structure is None else structure
    check_instance("structure", structure, Structure, "None or Structure.of(network)")
    for name, value in (("tokens", tokens), ("group", group)):
        check_whole(name, value, "a positive integer", least=1)
    check_text("mask", mask, "the name of an entry of the batch")
    if is_gated(network):
        raise argument_error("network", "a network with masks", "a plain one; ungate() it first")
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        compare = _Comparison(network, inputs, structure, tokens, temperature, mask, seed)
        found = [compare(masks, layer) for layer, masks in _without_each(structure, group)]
    finally:
        ungate(network)
        for module, mode in modes.items():
            module.training = mode
    rest = iter(found)
    values = [
        torch.tensor([next(rest) for _ in range(count)], dtype=torch.float64).view(-1, 2)
        for count in _counts(structure, group)
    ]
    heads, neurons = values[: len(structure.attention)], values[len(structure.attention) :]
    features, logits = (
        Importance(tuple(each[:, kind] for each in heads), tuple(each[:, kind] for each in neurons), group)
        for kind in range(2)
    )
    return features, logits


def masks_within(structure: Structure, importance: Importance, share: float, length: int) -> Masks:
    """The most important parts that a share of the multiplications pays for.

    For every number of kept head groups the rest is spent on the best neurons; the number with the largest sum of
    importances wins. Every layer keeps its best head group and its best neurons.

    Args:
        structure: The parts.
        importance: Of each, at least 0.
        share: Of the layers' multiplications, above 0 and at most 1.
        length: Tokens of a text.

    Returns:
        Masks of zeros and ones.

    Raises:
        ArgumentError: A share that does not pay for what every layer keeps, or importances of other parts.
    """
    check_instance("structure", structure, Structure, "Structure.of(network)")
    check_instance("importance", importance, Importance, "an Importance, such as output_changes gives")
    check_number("share", share, "a number above 0, at most 1", above=0, most=1)
    check_whole("length", length, "a positive number of tokens, at most 2**31", least=1, most=2**31)
    due = _counts(structure, importance.group)
    if [len(each) for each in (*importance.heads, *importance.neurons)] != due:
        raise argument_error("importance", "other parts", f"values for parts by layer: {due}")
    seen = length + 1 if structure.causal else 2 * length
    head_costs, neuron_costs = [], []
    for attention in structure.attention:
        each = attention.heads // attention.shared
        cost = attention.size * (2 * structure.width * (each + 1) + each * seen)
        head_costs += [cost] * attention.shared
    for part in structure.feed_forward:
        sizes = [end - begin for begin, end in _groups(part.neurons, importance.group)]
        neuron_costs += [structure.width * part.matrices * size for size in sizes]
    limit = int(share * structure.macs(length))
    (_, _, first), (_, _, second) = parts = (
        _parts(importance.heads, head_costs),
        _parts(importance.neurons, neuron_costs),
    )
    due_cost = sum(cost for cost, is_due in zip([*head_costs, *neuron_costs], [*first, *second], strict=True) if is_due)
    if due_cost > limit:
        allowed = f"at least {due_cost / structure.macs(length):.6g}, what one head group and one group of neurons of "
        raise argument_error("share", share, f"{allowed}every layer take")
    kept = _core.best_of_two_kinds(*parts, limit)
    heads, neurons = (
        _marks(chosen, [len(each) for each in values])
        for chosen, values in zip(kept, (importance.heads, importance.neurons), strict=True)
    )
    return Masks(
        tuple(
            mark.repeat_interleave(each.heads // each.shared)
            for mark, each in zip(heads, structure.attention, strict=True)
        ),
        tuple(
            mark.repeat_interleave(importance.group)[: part.neurons]
            for mark, part in zip(neurons, structure.feed_forward, strict=True)
        ),
    )


class _Comparison:
    """The whole network's features and logits, and how far others are from them."""

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs,
        structure: Structure,
        tokens: int,
        temperature: float,
        mask: str,
        seed: int,
    ) -> None:
        self.network = network
        self.inputs = inputs
        self.structure = structure
        self.temperature = temperature
        self.taps = [Tap(path) for path in structure.layers]
        whole = self._record()
        self.logits = wide(whole.values[Output("logits")]).clone()
        there: Any = inputs.fields.get(mask)
        self.rows = torch.ones(self.logits.shape[:-1], dtype=torch.bool, device=self.logits.device)
        if isinstance(there, Tensor) and there.shape == self.rows.shape:
            self.rows = there != 0
        places = self.rows.flatten().nonzero().flatten()
        chosen = random.choice(len(places), min(tokens, len(places)), step=Step(0, seed=seed), name="calibration")
        self.places = places[chosen.to(places.device)]
        self.grams = [self._gram(whole, layer) for layer in range(len(self.taps))]

    def __call__(self, masks: Masks, layer: int) -> tuple[float, float]:
        """Distances of features and of logits under masks that touch a layer."""
        self.structure.gate(self.network, masks)
        found = self._record()
        features = sum(
            float((self._gram(found, later) - self.grams[later]).square().sum())
            for later in range(layer, len(self.taps))
        )
        logits = ops.row_divergence(
            wide(found.values[Output("logits")])[self.rows],
            self.logits[self.rows],
            ops.ForwardKL(),
            temperature=self.temperature,
            temperature_rule="squared",
            reduction="mean",
        )
        # A difference of logarithms may be a little below 0 where nothing changes.
        return features, max(float(logits), 0.0)

    def _record(self) -> Record:
        return record(self.network, [*self.taps, Output("logits")], self.inputs)

    def _gram(self, found: Record, layer: int) -> Tensor:
        vectors = unit(wide(found.values[self.taps[layer]]).flatten(0, -2)[self.places])
        return products(vectors, vectors.mT)


def _without_each(structure: Structure, group: int) -> Iterator[tuple[int, Masks]]:
    """For every part its layer and masks that leave out nothing else."""
    full = structure.full()
    for layer, attention in enumerate(structure.attention):
        each = attention.heads // attention.shared
        for begin in range(0, attention.heads, each):
            mask = full.heads[layer].clone()
            mask[begin : begin + each] = 0
            yield layer, Masks((*full.heads[:layer], mask, *full.heads[layer + 1 :]), full.neurons)
    for layer, part in enumerate(structure.feed_forward):
        for begin, end in _groups(part.neurons, group):
            mask = full.neurons[layer].clone()
            mask[begin:end] = 0
            yield layer, Masks(full.heads, (*full.neurons[:layer], mask, *full.neurons[layer + 1 :]))


def _groups(neurons: int, group: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + group, neurons)) for begin in range(0, neurons, group)]


def _counts(structure: Structure, group: int) -> list[int]:
    """Parts of every attention, then of every feed-forward part."""
    groups = [-(-part.neurons // group) for part in structure.feed_forward]
    return [unit.shared for unit in structure.attention] + groups


def _parts(values: tuple[Tensor, ...], costs: list[int]) -> tuple[Any, Any, list[bool]]:
    """What the core takes of one kind; every layer's best part is required, the first of equal ones."""
    required = []
    for each in values:
        marks = [False] * len(each)
        if marks:
            marks[int(each.argmax())] = True
        required += marks
    joined = torch.cat([each.double().cpu() for each in values])
    return np.ascontiguousarray(joined.numpy()).data, np.array(costs, np.uint64).data, required


def _marks(chosen: list[int], sizes: list[int]) -> list[Tensor]:
    marks = torch.zeros(sum(sizes))
    marks[torch.tensor(chosen, dtype=torch.int64)] = 1
    return list(torch.split(marks, sizes))
