"""A term: one gap, at levels of its own, with weights of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from distillrs.diffusion.checks import is_number
from distillrs.diffusion.matching.gaps import DistributionGap, Gap, GapView
from distillrs.diffusion.matching.levels import WITHIN, Within, draw_noised
from distillrs.diffusion.matching.ratios import LogRatio
from distillrs.diffusion.matching.scene import RESERVED, Scene, check_scale, mean_of
from distillrs.diffusion.matching.weights import GapWeight
from distillrs.diffusion.metrics import Metric, Reduction
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Ramp, TimeLaw, Uniform


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """``0.5 |x - sg(x - W g)|^2`` with a gap ``g`` looked at the sample noised to levels of the term's own.

    With the mean over elements its gradient on a sample is ``W g / D``, ``D`` the number of elements; with the sum it
    is ``W g``. Second-order gaps are integrands: their loss is ``W`` times their mean or sum.

    Attributes:
        gap: The gap.
        weights: Factors of ``W``.
        law: Of the levels.
        within: Their bounds.
        critic: Which of several critics.
        ratio: Ratio of the densities; ``None`` takes that of the matcher's adversary.
        ratio_limit: Bound of the ratio's logarithm; ``None`` for none.
        metric: Compares ``x`` with ``x - W g`` instead: a :class:`PseudoHuber` bounds how far a row moves.
        reduction: Over the elements of a row, without a metric. Losses that are sums do not share weights with means.
        scale: Factor, a number or a ramp; a term of scale 0 is not computed.
        mask_non_finite: Whether rows whose gap or weight is not finite count nothing; their share is reported.
        name: In the loss's terms, and of the draws.
    """

    gap: Gap = field(default_factory=DistributionGap)
    weights: GapWeight | Sequence[GapWeight] = ()
    law: TimeLaw = field(default_factory=lambda: Uniform(0.02, 0.98))
    within: Within = "all"
    critic: str = "critic"
    ratio: LogRatio | None = None
    ratio_limit: float | None = None
    metric: Metric | None = None
    reduction: Reduction = "mean"
    scale: float | Ramp = 1.0
    mask_non_finite: bool = False
    name: str = "match"

    def __post_init__(self) -> None:
        if not isinstance(self.gap, Gap):
            raise argument_error("gap", self.gap, "a gap")
        weights = tuple(self.weights) if isinstance(self.weights, Sequence) else (self.weights,)
        for weight in weights:
            if not isinstance(weight, GapWeight):
                raise argument_error("weights", weight, "weights of a gap (MeanAbsolute, LevelWeight)")
        object.__setattr__(self, "weights", weights)
        if not isinstance(self.law, TimeLaw):
            raise argument_error("law", self.law, "a law of time")
        if self.within not in WITHIN:
            raise unknown_name_error("within", self.within, list(WITHIN))
        if self.ratio is not None and not isinstance(self.ratio, LogRatio):
            raise argument_error("ratio", self.ratio, "an object with log_ratio(x, t, condition), or None")
        if self.ratio_limit is not None and not (is_number(self.ratio_limit) and self.ratio_limit > 0):
            raise argument_error("ratio_limit", self.ratio_limit, "a positive number or None")
        if self.reduction not in ("mean", "sum"):
            raise unknown_name_error("reduction", self.reduction, ["mean", "sum"])
        if self.metric is not None and self.gap.second_order:
            raise argument_error("metric", self.metric, "None: a second-order gap is an integrand, not a target")
        if self.metric is not None and not callable(self.metric):
            raise argument_error("metric", self.metric, "a function of prediction and target, or None")
        if not isinstance(self.name, str) or not self.name or self.name in RESERVED:
            raise argument_error("name", self.name, f"a name other than {', '.join(map(repr, RESERVED))}")
        check_scale("scale", self.scale)

    def on_sample(self, scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
        """The rows' losses before the scale, ``[n]``, with a graph to the samples; and what is reported."""
        batch, rolled = scene.batch, scene.rolled
        differentiate = self.gap.second_order
        counted: list[Tensor] = []
        if differentiate and self.mask_non_finite and rolled.x.requires_grad:
            # 0 times a derivative that is no number is none either: rows left out are taken out of the gradient, too.
            with torch.enable_grad():
                x = rolled.x.view_as(rolled.x)
            leave_out = functools.partial(_left_out, counted)
            x.register_hook(leave_out)  # type: ignore[no-untyped-call]  # untyped in torch
            rolled = replace(rolled, x=x)
        x = rolled.x
        with torch.set_grad_enabled(differentiate):
            drawn = draw_noised(scene.path, rolled, self.law, self.within, scene.step, f"term/{self.name}")
            view = GapView(
                scene.path,
                x,
                drawn.x_t,
                drawn.t,
                batch.condition,
                batch.null_condition,
                real=scene.real,
                critic=scene.critics.get(self.critic),
                ratio=scene.ratio if self.ratio is None else self.ratio,
                limit=self.ratio_limit,
                first_unit=scene.step.first_unit,
            )
            found = self.gap.field(view)
        weight, terms = self._weight(view, found)
        found, weight, masked = self._finite(found, weight, counted)
        terms |= masked
        if differentiate:
            elements = (weight * found).flatten(1)
            rows = elements.mean(1) if self.reduction == "mean" else elements.sum(1)
        else:
            terms["gap"] = (found.square().sum() / max(found.numel(), 1)).sqrt()
            # The difference of x and its target, exact: x - (x - g) would keep x's rounding errors.
            move = weight * found + (x - x.detach())
            rows = self._compare(move)
        return rows, {self.name: mean_of(rows)} | {f"{self.name}/{key}": value for key, value in terms.items()}

    def _weight(self, view: GapView, found: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weight = torch.ones(len(found), dtype=found.dtype, device=found.device)
        terms: dict[str, Tensor] = {}
        assert isinstance(self.weights, tuple)
        with torch.no_grad():
            for rule in self.weights:
                factor, reported = rule.weigh(view)
                weight = weight * factor.to(weight)
                terms |= reported
        return weight.reshape(-1, *(1,) * (found.dim() - 1)), terms

    def _finite(self, found: Tensor, weight: Tensor, counted: list[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if not self.mask_non_finite:
            return found, weight, {}
        finite = (found.detach() * weight).flatten(1).isfinite().all(1)
        mask = finite.reshape(weight.shape)
        counted.append(mask)
        found = torch.where(mask, found, torch.zeros_like(found))
        return found, torch.where(mask, weight, torch.zeros_like(weight)), {"masked": mean_of((~finite).double())}

    def _compare(self, move: Tensor) -> Tensor:
        if self.metric is not None:
            return self.metric(move, torch.zeros_like(move))
        squares = move.square().flatten(1)
        return (squares.mean(1) if self.reduction == "mean" else squares.sum(1)) / 2


def _left_out(counted: Sequence[Tensor], slope: Tensor) -> Tensor:
    return torch.where(counted[0], slope, torch.zeros_like(slope))
