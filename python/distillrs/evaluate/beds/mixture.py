"""Mixtures of Gaussians on a line, in every coordinate: score and flow map in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_whole, numbers
from distillrs.errors import argument_error
from distillrs.evaluate.beds.exact import ExactScore, per_row, row_times
from distillrs.random import Units
from distillrs.schedule import Path
from distillrs.schedule.path import check_path
from distillrs.step import Step

# Halvings of a bracket that is some hundred deviations wide, down to the last bit of a double.
_HALVINGS = 90


@dataclass(frozen=True, slots=True)
class LineMixture:
    """Independent coordinates, each ``sum_k weight_k N(mean_k, deviation_k^2)``.

    In two dimensions the modes form a grid. On a line the flow keeps the order of points, so it is the map between
    quantiles, ``F_r^-1(F_t(x))`` with the marginals' distribution functions; coordinates that are independent flow
    independently.

    Attributes:
        means: Of the components.
        deviations: Of the components; positive.
        weights: Of the components, up to a factor; ``None`` for equal ones.
        dimensions: Coordinates.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    weights: tuple[float, ...] | None = None
    dimensions: int = 1

    def __post_init__(self) -> None:
        for name in ("means", "deviations", "weights"):
            if getattr(self, name) is not None or name != "weights":
                object.__setattr__(self, name, numbers(name, getattr(self, name)))
        count = len(self.means)
        for name, values in (("deviations", self.deviations), ("weights", self.weights)):
            if values is not None and (len(values) != count or not all(value > 0 for value in values)):
                raise argument_error(name, values, f"{count} positive numbers, one for each mean")
        if not self.means:
            raise argument_error("means", self.means, "one or more finite numbers")
        check_whole("dimensions", self.dimensions, "a positive integer", least=1)

    def on(self, path: Path) -> ExactScore:
        """Its exact score on a path."""
        return ExactScore(self, path)

    def denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Mapping[str, Any] | None = None) -> Tensor:
        """The components' own denoisers, each by its probability given the coordinate; ``x`` is ``[n, d]``."""
        self._check(x)
        means, deviations, logarithms = self._parts(x)
        a, s = per_row(alpha, x)[..., None], per_row(sigma, x)[..., None]
        variance = (a * deviations) ** 2 + s**2
        away = x[..., None] - a * means
        share = (logarithms - variance.log() / 2 - away**2 / (2 * variance)).softmax(-1)
        return (share * (means + a * deviations**2 / variance * away)).sum(-1)

    def log_density(self, x: Tensor, t: float | Tensor, path: Path) -> Tensor:
        """Logarithm of the marginal's density at a time: ``[n]`` for ``x`` ``[n, d]``."""
        self._check(x)
        centres, spreads, logarithms = self._marginal(x, t, path)
        away = (x[..., None] - centres) / spreads
        terms = logarithms - spreads.log() - away**2 / 2 - math.log(2 * math.pi) / 2
        return terms.logsumexp(-1).sum(-1)

    def flow(self, x: Tensor, t: float | Tensor, r: float | Tensor, path: Path) -> Tensor:
        """The exact flow map from time ``t`` to ``r``; differentiable once in all three.

        A point more than 37 deviations away goes where one at 37 would: its quantile is no double.

        Args:
            x: ``[n, d]``, float64 for full precision.
            t: A number or float64 ``[n]``.
            r: Likewise.
            path: The path.
        """
        self._check(x)
        here, there = self._marginal(x, t, path), self._marginal(x, r, path)
        score = _quantile_score(x, *here)
        with torch.no_grad():
            centres, spreads, _ = (part.detach() for part in there)
            target = score.detach()
            reach = spreads * (target.abs()[..., None] + 2)
            low = (centres - reach).amin(-1).expand_as(x).clone()
            high = (centres + reach).amax(-1).expand_as(x).clone()
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                below = _quantile_score(middle, *(part.detach() for part in there)) < target
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            root = (low + high) / 2
        # One step of Newton's method from the root carries the derivatives: F_r(y) = F_t(x), in the smaller tail.
        below, above = _both_tails(x, *here)
        root_below, root_above = _both_tails(root, *there)
        missing = torch.where(below < above, below - root_below, root_above - above)
        density = _density(root, *(part.detach() for part in there))
        return root + missing / density.clamp(min=torch.finfo(x.dtype).tiny)

    def sample(self, units: Units, *, step: Step | int, name: str = "sample") -> Tensor:
        """Draws ``[len(units), d]`` in float64."""
        noise = random.normal(units, self.dimensions, step=step, name=name, dtype=torch.float64)
        share = random.uniform(units, self.dimensions, step=step, name=name, dtype=torch.float64)
        means, deviations, logarithms = self._parts(noise)
        edges = logarithms.exp().cumsum(0)
        chosen = torch.searchsorted(edges, share, right=True).clamp(max=len(edges) - 1)
        return means[chosen] + deviations[chosen] * noise

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.dimensions:
            raise argument_error("x", f"shape {tuple(x.shape)}", f"[n, {self.dimensions}]")

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = like.new_tensor(self.weights or (1.0,) * len(self.means))
        return like.new_tensor(self.means), like.new_tensor(self.deviations), (weights / weights.sum()).log()

    def _marginal(self, x: Tensor, t: float | Tensor, path: Path) -> tuple[Tensor, Tensor, Tensor]:
        check_path("path", path)
        time = row_times(x, t)
        means, deviations, logarithms = self._parts(x)
        a, s = (per_row(value, x)[..., None] for value in (path.alpha(time), path.sigma(time)))
        return a * means, torch.sqrt((a * deviations) ** 2 + s**2), logarithms


def _both_tails(x: Tensor, centres: Tensor, spreads: Tensor, logarithms: Tensor) -> tuple[Tensor, Tensor]:
    away = (x[..., None] - centres) / spreads
    weights = logarithms.exp()
    # By erfc, which keeps its digits in the tail.
    away = away / math.sqrt(2)
    return (weights * torch.erfc(-away)).sum(-1) / 2, (weights * torch.erfc(away)).sum(-1) / 2


def _quantile_score(x: Tensor, centres: Tensor, spreads: Tensor, logarithms: Tensor) -> Tensor:
    """The normal quantile of the distribution function, from the smaller tail."""
    below, above = _both_tails(x, centres, spreads, logarithms)
    tiny = torch.finfo(x.dtype).tiny
    left, right = torch.special.ndtri(below.clamp(min=tiny)), -torch.special.ndtri(above.clamp(min=tiny))
    score: Tensor = torch.where(below < above, left, right)
    return score


def _density(x: Tensor, centres: Tensor, spreads: Tensor, logarithms: Tensor) -> Tensor:
    away = (x[..., None] - centres) / spreads
    return (logarithms - spreads.log() - away**2 / 2 - math.log(2 * math.pi) / 2).logsumexp(-1).exp()
