"""Factors of the terms that follow from their values or gradients, beside their fixed scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from distillrs.checks import check_number, check_text
from distillrs.errors import argument_error
from distillrs.knowledge.numerics import is_number
from distillrs.knowledge.taps import find_module


class Balance(Protocol):
    """Factors of the terms at one step."""

    def __call__(self, values: Mapping[str, Tensor], student: nn.Module) -> Mapping[str, float | Tensor]:
        """A factor for each term, without a graph.

        Args:
            values: The scaled terms, each a number with its graph.
            student: The network.
        """
        ...


@dataclass(frozen=True, slots=True)
class LossRatio:
    """Every other term is brought to a share of a reference term's size: ``factor = ratio |reference| / |term|``.

    Sizes are those after the terms' scales, so a reference whose scale falls takes the others along; where the
    reference has no part in a stage, or a scale of 0, all factors are 1. Under gradient accumulation the ratio is that
    of each micro-batch.

    Attributes:
        reference: Name of the term that keeps factor 1.
        ratio: Of all others, or for each by name (1 where it is not named).
        epsilon: Least size of a term.
    """

    reference: str
    ratio: float | Mapping[str, float] = 1.0
    epsilon: float = 1e-12

    def __post_init__(self) -> None:
        check_text("reference", self.reference, "the name of a term")
        check_number("epsilon", self.epsilon, "a number above 0", above=0)
        ratios = self.ratio.values() if isinstance(self.ratio, Mapping) else [self.ratio]
        if not all(is_number(ratio) and ratio >= 0 for ratio in ratios):
            raise argument_error("ratio", self.ratio, "finite numbers from 0")

    def __call__(self, values: Mapping[str, Tensor], student: nn.Module) -> dict[str, float | Tensor]:
        """See :class:`Balance`."""
        if self.reference not in values:
            return dict.fromkeys(values, 1.0)
        size = values[self.reference].detach().abs()
        factors: dict[str, float | Tensor] = {}
        for name, value in values.items():
            ratio = self.ratio.get(name, 1.0) if isinstance(self.ratio, Mapping) else self.ratio
            factors[name] = (
                1.0 if name == self.reference else ratio * size / value.detach().abs().clamp(min=self.epsilon)
            )
        return factors


@dataclass(frozen=True, slots=True)
class GradientBalance:
    """Every term moves one layer equally fast: ``factor = mean of the norms / norm`` of its gradient by that layer.

    It costs one backward pass through what lies behind the layer for each term. A term without a gradient there keeps
    factor 1 and does not count in the mean.

    Attributes:
        layer: Path of the module whose parameters are looked at, usually the last that all terms share.
        epsilon: Norm up to which a gradient counts as none: that of a term over rows of which a batch has none.
    """

    layer: str
    epsilon: float = 1e-12

    def __post_init__(self) -> None:
        check_text("layer", self.layer, "the path of a module, such as 'model.layers.5'")
        check_number("epsilon", self.epsilon, "a number from 0", least=0)

    def __call__(self, values: Mapping[str, Tensor], student: nn.Module) -> dict[str, float | Tensor]:
        """See :class:`Balance`."""
        module = find_module(student, self.layer, "student")
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise argument_error("layer", self.layer, "a module with parameters that are trained")
        norms: dict[str, Tensor] = {}
        for name, value in values.items():
            if not value.requires_grad:
                continue
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            present = [gradient for gradient in gradients if gradient is not None]
            if present:
                norms[name] = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in present]))
        factors: dict[str, float | Tensor] = dict.fromkeys(values, 1.0)
        if norms:
            found = torch.stack(list(norms.values()))
            there = found > self.epsilon
            mean = found.where(there, 0.0).sum() / there.sum().clamp(min=1)
            factors |= dict(zip(norms, (mean / found).where(there, 1.0).unbind(), strict=True))
        return factors
