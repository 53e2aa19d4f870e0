"""Metrics: how far a prediction is from its target, one number for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from distillrs.checks import check_number
from distillrs.diffusion.heads import Head
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Kind, Path

Metric: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``metric(prediction, target)``: two ``[n, ...]`` to ``[n]``. Any function of that form is one, a perceptual distance
for example; the target carries no graph."""

Reduction: TypeAlias = Literal["mean", "sum"]
"""Over the elements of a row; they differ by its number of elements."""


@dataclass(frozen=True, slots=True)
class SquaredError:
    """``|d|^2``, or its mean over the elements.

    Attributes:
        reduction: Over the elements of a row.
    """

    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        _check(self.reduction)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``[n]``."""
        squares = _rows(prediction, target).square()
        return squares.mean(1) if self.reduction == "mean" else squares.sum(1)


@dataclass(frozen=True, slots=True)
class PseudoHuber:
    """``sqrt(|d|^2 + c^2) - c`` of the whole row, or that over its number of elements ``D``.

    ``c = factor sqrt(D)`` with factor 0.00054 in Song and Dhariwal, "Improved techniques for training consistency
    models" (2023); the code of Lee, Lin, Fanti, "Improving the training of rectified flows" (2024), has
    ``growth="linear"``, ``c = factor D``, and divides by ``D``.

    Attributes:
        factor: Of ``c``.
        growth: Of ``c`` with ``D``: ``root``, ``linear``, or ``none``.
        reduction: ``sum`` for the formula, ``mean`` for the formula over ``D``.
    """

    factor: float = 0.00054
    growth: Literal["root", "linear", "none"] = "root"
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        _check(self.reduction)
        if self.growth not in ("root", "linear", "none"):
            raise unknown_name_error("growth", self.growth, ["root", "linear", "none"])
        check_number("factor", self.factor, "a positive number", above=0)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``[n]``."""
        difference = _rows(prediction, target)
        size = difference.shape[1]
        c = self.factor * {"root": size**0.5, "linear": float(size), "none": 1.0}[self.growth]
        squares = difference.square().sum(1)
        # sqrt(s + c^2) - c without its cancellation.
        value: Tensor = squares / ((squares + c * c).sqrt() + c)
        return value / size if self.reduction == "mean" else value


@dataclass(frozen=True, slots=True)
class Cosine:
    """``1 - cos`` of the angle between two rows.

    Attributes:
        floor: Least product of the norms.
    """

    floor: float = 1e-8

    def __post_init__(self) -> None:
        check_number("floor", self.floor, "a positive number", above=0)

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``[n]``."""
        _rows(prediction, target)
        wide = torch.promote_types(prediction.dtype, torch.float32)
        first, second = prediction.flatten(1).to(wide), target.flatten(1).to(wide)
        similarity: Tensor = functional.cosine_similarity(first, second, dim=1, eps=self.floor)
        return 1 - similarity


@dataclass(frozen=True, slots=True)
class KindMetric:
    """A metric of predictions of one kind, with a weight of the time.

    Attributes:
        kind: What is compared: the data, say, for a perceptual distance.
        metric: Compares it.
        weight: float64 ``[n]`` of the times ``[n]``; ``None`` for 1.
    """

    kind: Kind
    metric: Metric
    weight: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise unknown_name_error("kind", self.kind, list(get_args(Kind)))


@dataclass(frozen=True, slots=True)
class InKinds:
    """``sum weight(t) metric(prediction, target)``, each in a kind of its own, whatever the network predicts.

    For the diagonal residual, whose prediction is one of the flow at a state.

    Attributes:
        parts: The terms.
    """

    parts: tuple[KindMetric, ...]

    def __post_init__(self) -> None:
        if (
            not isinstance(self.parts, tuple)
            or not self.parts
            or not all(isinstance(part, KindMetric) for part in self.parts)
        ):
            raise argument_error("parts", self.parts, "one or more of KindMetric")

    def compare(self, prediction: Tensor, target: Tensor, x: Tensor, t: Tensor, head: Head, path: Path) -> Tensor:
        """The rows' distances, ``[n]``.

        Args:
            prediction: Output of the network on the diagonal, ``[n, ...]``.
            target: Likewise, without a graph.
            x: The states.
            t: Their times, float64 ``[n]``.
            head: What the output is of.
            path: Likewise.
        """
        both = [head.velocity(path, value, x, t) for value in (prediction, target)]
        total = torch.zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for part in self.parts:
            own = [path.convert(value, x, t, kind="velocity", to=part.kind) for value in both]
            loss = part.metric(own[0], own[1])
            total = total + (loss if part.weight is None else loss * part.weight(t).to(loss))
        return total


def _rows(prediction: Tensor, target: Tensor) -> Tensor:
    if prediction.shape != target.shape:
        raise argument_error("target", f"shape {tuple(target.shape)}", f"the prediction's, {tuple(prediction.shape)}")
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return (prediction.to(wide) - target.to(wide)).flatten(1)


def _check(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise unknown_name_error("reduction", reduction, ["mean", "sum"])
