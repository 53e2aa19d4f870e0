"""The kernel density of a finite data set: the teacher that needs no training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_number
from distillrs.errors import argument_error
from distillrs.evaluate.beds.exact import ExactScore
from distillrs.ops import mixture_denoiser
from distillrs.random import Units
from distillrs.schedule import Path
from distillrs.step import Step


class KernelDensity:
    """Equal Gaussians around the examples of a data set, for all of them or for those of a class.

    Args:
        data: ``[n, ...]``, floating point and finite.
        bandwidth: Standard deviation of every Gaussian; 0 is the data set itself, whose flow is discontinuous.
        labels: int64 ``[n]`` from 0, for conditions; ``None`` for none.

    Raises:
        ArgumentError: For data that are not finite, a negative bandwidth, or labels of another length.
    """

    __slots__ = ("_rows", "bandwidth", "data", "labels")

    def __init__(self, data: Tensor, bandwidth: float, labels: Tensor | None = None) -> None:
        if not isinstance(data, Tensor):
            raise argument_error("data", type(data).__name__, "finite floating-point examples [n, ...], one or more")
        if data.dim() < 2 or not len(data) or not data.is_floating_point() or not bool(data.isfinite().all()):
            got = f"shape {tuple(data.shape)} of {data.dtype}"
            raise argument_error("data", got, "finite floating-point examples [n, ...], one or more")
        check_number("bandwidth", bandwidth, "a number from 0", least=0)
        if labels is not None and not isinstance(labels, Tensor):
            raise argument_error("labels", type(labels).__name__, f"int64 [{len(data)}]")
        if labels is not None and (labels.shape != data.shape[:1] or labels.dtype != torch.int64):
            raise argument_error("labels", f"shape {tuple(labels.shape)} of {labels.dtype}", f"int64 [{len(data)}]")
        self.data, self.bandwidth, self.labels = data, bandwidth, labels
        classes = 0 if labels is None else int(labels.max()) + 1
        self._rows = [] if labels is None else [(labels == label).nonzero()[:, 0] for label in range(classes)]

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self._rows)

    def on(self, path: Path, *, guidance: float = 1.0) -> ExactScore:
        """Its exact score on a path.

        Args:
            path: The path.
            guidance: Scale ``w`` of ``u + w (c - u)`` where a condition is given.
        """
        if guidance != 1 and self.labels is None:
            raise argument_error("guidance", guidance, "1: these data have no labels")
        return ExactScore(self, path, guidance)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """The exact denoiser, of all examples or of those with a row's label; see :class:`ExactScore`."""
        if tuple(x.shape[1:]) != tuple(self.data.shape[1:]):
            raise argument_error("x", f"shape {tuple(x.shape)}", f"[n, {', '.join(map(str, self.data.shape[1:]))}]")
        flat, data = x.flatten(1), self.data.flatten(1).to(x)
        if condition is None:
            found: Tensor = mixture_denoiser(flat, data, alpha, sigma, bandwidth=self.bandwidth)
            return found.reshape(x.shape)
        label = self._label(condition, len(x))
        if not len(x):
            return x
        parts, places = [], []
        for value in sorted(set(label.tolist())):
            place = (label == value).nonzero()[:, 0]
            own = data if value < 0 else data[self._rows[value].to(data.device)]
            parts.append(mixture_denoiser(flat[place], own, alpha[place], sigma[place], bandwidth=self.bandwidth))
            places.append(place)
        # Put back by a permutation: that can be differentiated in every mode.
        order = torch.cat(places).argsort()
        return torch.cat(parts)[order].reshape(x.shape)

    def sample(self, units: Units, *, step: Step | int, name: str = "sample") -> Tensor:
        """Draws ``[len(units), ...]`` in float64."""
        rows = random.integers(units, len(self.data), step=step, name=name)
        noise = random.normal(units, *self.data.shape[1:], step=step, name=name, dtype=torch.float64)
        return self.data.double().cpu()[rows] + self.bandwidth * noise

    def _label(self, condition: Mapping[str, Any], count: int) -> Tensor:
        unknown = set(condition) - {"label"}
        if unknown or "label" not in condition:
            raise argument_error("condition", sorted(condition), "{'label': int64 [n]}")
        if self.labels is None:
            raise argument_error("condition", sorted(condition), "None: these data have no labels")
        label: Tensor = condition["label"]
        if not isinstance(label, Tensor):
            raise argument_error("condition", f"a label of {type(label).__name__}", f"int64 [{count}]")
        if tuple(label.shape) != (count,) or label.dtype != torch.int64:
            raise argument_error(
                "condition", f"a label of shape {tuple(label.shape)} {label.dtype}", f"int64 [{count}]"
            )
        if count and not -1 <= int(label.min()) <= int(label.max()) < self.classes:
            got = f"labels from {int(label.min())} to {int(label.max())}"
            raise argument_error("condition", got, f"labels from 0 to {self.classes - 1}, or -1 for every class")
        empty = [value for value in sorted(set(label.tolist())) if value >= 0 and not len(self._rows[value])]
        if empty:
            raise argument_error("condition", f"the label {empty[0]}", "labels of which there are examples")
        return label
