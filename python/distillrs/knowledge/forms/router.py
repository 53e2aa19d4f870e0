"""Which sizes a network of nested parts takes for a budget: learned scores, draws from them, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.errors import argument_error
from distillrs.knowledge.forms.structure import Attention, Masks, Structure
from distillrs.knowledge.rows import at_step
from distillrs.schedule import Ramp
from distillrs.step import Step

AXES = ("channels", "heads", "neurons", "layers")
_TINY = 2.0**-24
# Relative to the budget: where the search for its sizes stops.
_NEAR = 0.005


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one submodel.

    Attributes:
        channels: How many.
        heads: How many in each layer.
        neurons: How many in each layer.
        layers: How many.
    """

    channels: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    layers: int


class Router(nn.Module):
    """Scores of the allowed sizes of every axis, for each budget; masks that are drawn from them.

    A linear map of a one-hot budget is a table: ``scores[axis]`` is ``[budgets, units, sizes]``, where channels and
    depth have one unit, heads and neurons one for each layer. Training draws a size of each unit by a softmax of scores
    and Gumbel noise over a temperature (Jang et al., Maddison et al., ICLR 2017); with ``hard`` the masks are those of
    the drawn size and the gradient is the softmax's. A budget of 1 takes everything and draws nothing.

    Args:
        structure: Of the network, whose prefixes are its submodels.
        budgets: Shares of the full cost, above 0 to 1.
        sizes: For each of ``AXES``, the allowed sizes, rising, the last of them everything.
        order: Layers from the one to keep longest to the one to leave out first.
        temperature: Of the softmax.
        weights: How likely each budget is drawn; ``None`` for equally.
        hard: Whether masks are 0 and 1.
        length: Tokens of a text, for the cost.
        head: Whether the output head counts.
    """

    def __init__(
        self,
        structure: Structure,
        budgets: Sequence[float],
        sizes: Mapping[str, Sequence[int]],
        order: Sequence[int],
        temperature: float | Ramp,
        weights: Sequence[float | Ramp] | None,
        hard: bool,
        length: int,
        head: bool,
    ) -> None:
        super().__init__()
        self.structure = structure
        self.budgets = tuple(budgets)
        self.sizes = {name: tuple(sizes[name]) for name in AXES}
        self.order = tuple(order)
        self.temperature, self.weights = temperature, weights
        self.hard, self.length, self.head = hard, length, head
        self.chosen = max(range(len(budgets)), key=lambda place: budgets[place])
        self._step: Step | None = None
        self._found: dict[int, tuple[tuple[int, ...], Sizes]] = {}
        self.spent: Tensor | None = None
        self.asked: Tensor | None = None
        layers = len(structure.layers)
        units = {"channels": 1, "heads": layers, "neurons": layers, "layers": 1}
        full = {name: values[-1] for name, values in self.sizes.items()}
        self._everything = structure.macs(length, head=head)
        starts = [self._even_share(budget) for budget in self.budgets]
        self.scores = nn.ParameterDict()
        for name in AXES:
            shares = torch.tensor(self.sizes[name]) / full[name]
            rows = [-(((shares - (1.0 if name == "layers" else start)) / 0.1) ** 2) for start in starts]
            self.scores[name] = nn.Parameter(torch.stack(rows)[:, None].repeat(1, units[name], 1))
            # A row for each size: ones up to it.
            places = torch.arange(full[name])
            self.register_buffer(f"{name}_prefix", (places < torch.tensor(self.sizes[name])[:, None]).float(), False)

    def __getstate__(self) -> dict[str, Any]:
        """Copies go without the graph of a step."""
        held = {name: getattr(self, name) for name in ("spent", "asked")}
        return self.__dict__ | {name: None if value is None else value.detach() for name, value in held.items()}

    def begin_step(self, step: Step) -> None:
        """See :class:`Stepped`."""
        self._step = step

    def budget_at(self, step: Step) -> int:
        """The number of the budget that a step draws; every rank and micro-batch draws the same."""
        weights = (
            [1.0] * len(self.budgets)
            if self.weights is None
            else [at_step("weights", each, step) for each in self.weights]
        )
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise argument_error("weights", weights, "numbers from 0, not all 0, at every step")
        drawn = float(random.uniform(range(1), step=step, name="elastic budget", dtype=torch.float64)) * sum(weights)
        for place, weight in enumerate(weights):
            drawn -= weight
            if drawn < 0:
                return place
        return max(place for place, weight in enumerate(weights) if weight > 0)

    def masks(self) -> Masks:
        """The masks of this moment: drawn in training, after :meth:`begin_step`; else those of the chosen budget.

        What they cost is in ``spent``, and their budget in ``asked``, both ``[1, 1]``.
        """
        if self.training and self._step is not None:
            place = self.budget_at(self._step)
            masks = self._drawn(place, self._step) if self.budgets[place] < 1 else self.masks_of(self._full())
        else:
            place = self.chosen
            masks = self.masks_of(self.configuration(place))
        self.spent = self._cost(masks)[None, None]
        self.asked = torch.full_like(self.spent, self.budgets[place]).detach()
        return masks

    def masks_of(self, sizes: Sizes) -> Masks:
        """Zeros and ones of a submodel."""
        heads, neurons = (
            tuple((torch.arange(self.sizes[name][-1], device=self._device) < size).float() for size in given)
            for name, given in (("heads", sizes.heads), ("neurons", sizes.neurons))
        )
        channels = (torch.arange(self.sizes["channels"][-1], device=self._device) < sizes.channels).float()
        layers = torch.zeros(len(self.order), device=self._device)
        layers[list(self.order[: sizes.layers])] = 1
        return Masks(heads, neurons, channels, layers)

    def cost(self, sizes: Sizes) -> float:
        """The share of the full network's multiplications and additions that a submodel needs."""
        total = 0.0
        layers = set(self.order[: sizes.layers])
        for layer, unit in enumerate(self.structure.attention):
            total += (layer in layers) * self._attention(unit, sizes.channels, sizes.heads[layer])
        for layer, part in enumerate(self.structure.feed_forward):
            total += (layer in layers) * sizes.channels * sizes.neurons[layer] * part.matrices
        return (total + self.head * sizes.channels * self.structure.vocabulary) / self._everything

    def configuration(self, place: int) -> Sizes:
        """The sizes for a budget: those of the highest scores, moved until the budget is met.

        One size at a time goes to its neighbour, whichever loses least score for what it brings the cost nearer.

        Args:
            place: Number of the budget.
        """
        version = tuple(table._version for table in self.scores.values())
        if self.budgets[place] >= 1:
            return self._full()
        if place not in self._found or self._found[place][0] != version:
            self._found[place] = (version, self._search(place))
        return self._found[place][1]

    @torch.no_grad()
    def _search(self, place: int) -> Sizes:
        budget = self.budgets[place]
        scores = {name: table[place].double().log_softmax(-1).tolist() for name, table in self.scores.items()}
        start = {name: [max(range(len(row)), key=row.__getitem__) for row in rows] for name, rows in scores.items()}
        chosen, gap = self._descended(start, scores, budget)
        if abs(gap) > _NEAR * budget:
            nearest = chosen, gap
            # No single move helps: one that does not, and on from there, the dearest last.
            for name, unit, moved, _ in sorted(_moves(chosen, scores, (-1, 1)), key=lambda move: move[3]):
                other = {axis: list(places) for axis, places in chosen.items()}
                other[name][unit] = moved
                found, after = self._descended(other, scores, budget)
                if abs(after) <= _NEAR * budget:
                    return self._sizes(found)
                if abs(after) < abs(nearest[1]):
                    nearest = found, after
            chosen = nearest[0]
        return self._sizes(chosen)

    def _descended(
        self, chosen: dict[str, list[int]], scores: Mapping[str, list[list[float]]], budget: float
    ) -> tuple[dict[str, list[int]], float]:
        """Moves to neighbouring sizes while one brings the cost nearer, and how far it then is."""
        gap = self.cost(self._sizes(chosen)) - budget
        while abs(gap) > _NEAR * budget:
            best: tuple[float, str, int, int, float] | None = None
            for name, unit, moved, loss in list(_moves(chosen, scores, (-1,) if gap > 0 else (1,))):
                before, chosen[name][unit] = chosen[name][unit], moved
                after = self.cost(self._sizes(chosen)) - budget
                chosen[name][unit] = before
                gain = abs(gap) - abs(after)
                if gain > 0 and (best is None or loss / gain < best[0]):
                    best = (loss / gain, name, unit, moved, after)
            if best is None:
                break
            _, name, unit, moved, gap = best
            chosen[name][unit] = moved
        return chosen, gap

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.scores["channels"].device
        return device

    def _full(self) -> Sizes:
        layers = len(self.structure.layers)
        largest = {name: values[-1] for name, values in self.sizes.items()}
        return Sizes(largest["channels"], (largest["heads"],) * layers, (largest["neurons"],) * layers, layers)

    def _sizes(self, chosen: Mapping[str, Sequence[int]]) -> Sizes:
        found = {name: [self.sizes[name][each] for each in chosen[name]] for name in AXES}
        return Sizes(found["channels"][0], tuple(found["heads"]), tuple(found["neurons"]), found["layers"][0])

    def _drawn(self, place: int, step: Step) -> Masks:
        temperature = at_step("temperature", self.temperature, step)
        if not temperature > 0:
            raise argument_error("temperature", temperature, "a number above 0 at every step")
        found = {}
        for name in AXES:
            scores = self.scores[name][place]
            chance = random.uniform(range(1), *scores.shape, step=step, name=f"elastic {name}", device=scores.device)[0]
            noise = -(-(chance.clamp(min=_TINY).log())).log()
            shares = ((scores.float() + noise) / temperature).softmax(-1)
            if self.hard:
                picked = torch.zeros_like(shares).scatter_(-1, shares.argmax(-1, keepdim=True), 1.0)
                # The value is that of the pick to the last bit.
                shares = picked + (shares - shares.detach())
            found[name] = shares @ self.get_buffer(f"{name}_prefix")
        depth = torch.zeros_like(found["layers"][0]).index_put(
            (torch.tensor(self.order, device=self._device),), found["layers"][0]
        )
        return Masks(tuple(found["heads"]), tuple(found["neurons"]), found["channels"][0], depth)

    def _even_share(self, budget: float) -> float:
        """The share of channels, heads and neurons alike at which a network of all layers meets a budget."""
        full = self.structure.full()
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            masks = Masks(
                tuple(mask * middle for mask in full.heads),
                tuple(mask * middle for mask in full.neurons),
                torch.full((self.structure.width,), middle),
                torch.ones(len(self.structure.layers)),
            )
            low, high = (middle, high) if float(self._cost(masks)) < budget else (low, middle)
        return high

    def _attention(self, unit: Attention, width: Any, heads: Any) -> Any:
        """Of one attention, of numbers or tensors, with whole groups of heads; see :meth:`Structure.macs`."""
        seen = self.length + 1 if self.structure.causal else 2 * self.length
        return unit.size * heads * (width * 2 * (1 + unit.shared / unit.heads) + seen)

    def _cost(self, masks: Masks) -> Tensor:
        """The share of the full cost, with a graph to the masks."""
        assert masks.channels is not None
        assert masks.layers is not None
        width, total = masks.channels.sum(), masks.channels.new_zeros(())
        for unit, mask, share in zip(self.structure.attention, masks.heads, masks.layers, strict=True):
            total = total + share * self._attention(unit, width, mask.sum())
        for part, mask, share in zip(self.structure.feed_forward, masks.neurons, masks.layers, strict=True):
            total = total + share * width * mask.sum() * part.matrices
        return (total + self.head * width * self.structure.vocabulary) / self._everything


def _moves(
    chosen: Mapping[str, Sequence[int]], scores: Mapping[str, list[list[float]]], steps: Sequence[int]
) -> Iterator[tuple[str, int, int, float]]:
    """Axis, unit, the neighbouring size and what it loses of the score."""
    for name, rows in scores.items():
        for unit, row in enumerate(rows):
            for step in steps:
                moved = chosen[name][unit] + step
                if 0 <= moved < len(row):
                    yield name, unit, moved, row[chosen[name][unit]] - row[moved]
