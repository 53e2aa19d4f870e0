"""Gaps: how far what the real score says is from what the critic says, as a field on the samples."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distillrs.diffusion.checks import is_number
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.matching.ratios import LogRatio, RatioWeights, ratio_weights
from distillrs.diffusion.matching.reals import RealView, as_x0, predict_real
from distillrs.diffusion.scores import Score
from distillrs.diffusion.sources import Guided
from distillrs.errors import argument_error
from distillrs.ops import ForwardKL, RowDivergence
from distillrs.schedule import Path


class GapView:
    """A noised sample and what the scores say of it; each is asked at most once, and only if something looks.

    Args:
        path: The path.
        x: Samples, ``[n, ...]``.
        x_t: The noised ones.
        t: float64 ``[n]``.
        condition: Of the rows.
        null_condition: What stands for none.
        real: The real score.
        critic: The fake one; ``None`` where none is needed.
        ratio: Ratio of the densities, likewise.
        limit: Bound of the ratio's logarithm.
        first_unit: Global id of the first row.
    """

    def __init__(
        self,
        path: Path,
        x: Tensor,
        x_t: Tensor,
        t: Tensor,
        condition: Condition = None,
        null_condition: Condition = None,
        *,
        real: Score | None = None,
        critic: Score | None = None,
        ratio: LogRatio | None = None,
        limit: float | None = None,
        first_unit: int = 0,
    ) -> None:
        self.path, self.t, self.x_t = path, t, x_t
        self.x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.condition, self.null_condition = condition, null_condition
        self.first_unit = first_unit
        self._real, self._critic, self._ratio, self._limit = real, critic, ratio, limit

    @functools.cached_property
    def real(self) -> RealView:
        """What the real score says of the clean state."""
        assert self._real is not None
        return predict_real(self._real, self.path, self.x_t, self.t, self.condition, self.null_condition)

    @functools.cached_property
    def fake(self) -> Tensor:
        """What the critic says of it, ``[n, ...]``."""
        assert self._critic is not None
        return as_x0(self._critic.predict(self.x_t, self.t, self.condition), self.path, self.x_t, self.t)

    @functools.cached_property
    def log_ratio(self) -> Tensor:
        """``log p_t / q_t`` within its bound, ``[n]``."""
        assert self._ratio is not None
        found = self._ratio.log_ratio(self.x_t, self.t, self.condition)
        if found.shape != (len(self.x_t),):
            raise argument_error("ratio", f"a result of shape {tuple(found.shape)}", f"[{len(self.x_t)}]")
        return found if self._limit is None else found.clamp(-self._limit, self._limit)

    def weights(self, divergence: RowDivergence) -> RatioWeights:
        """Of a divergence, shaped to multiply ``[n, ...]``."""
        shape = (-1, *(1,) * (self.x.dim() - 1))
        weight, slope = ratio_weights(divergence, self.log_ratio)
        return RatioWeights(weight.reshape(shape), slope.reshape(shape))


class Gap(ABC):
    """A field on samples, in terms of clean states: R what the real score says, F what the critic says.

    A score is ``(alpha x0 - x_t) / sigma^2``, so a difference of scores is that of the clean states times
    ``alpha / sigma^2``. First-order gaps are directions ``g`` against which a sample moves; second-order ones are
    integrands that are differentiated through the states, and so through both networks' inputs.
    """

    __slots__ = ()

    second_order = False
    needs_critic = True
    needs_ratio = False
    needs_guidance = False

    @abstractmethod
    def field(self, view: GapView) -> Tensor:
        """The direction or the integrand, ``[n, ...]``."""


@dataclass(frozen=True, slots=True)
class DistributionGap(Gap):
    """``phi(r) (F - R_w)``: distribution matching.

    With the weight ``alpha^2 / sigma^2`` (:class:`LevelWeight` of ``noise``, power 2) it is exactly the gradient of the
    divergence between the noised distributions: Luo et al., "Diff-Instruct" (2023) for the reverse KL divergence, whose
    ``phi`` is 1; Xu et al. (2025) for others, which need the ratio ``r``.

    Attributes:
        divergence: ``None`` for the reverse KL divergence.
        guided: Whether R is guided; without, the guidance can be a term of its own (:class:`GuidanceGap`).
    """

    divergence: RowDivergence | None = None
    guided: bool = True

    def __post_init__(self) -> None:
        _check_divergence(self.divergence, True)

    @property
    def needs_ratio(self) -> bool:  # type: ignore[override]  # a constant of most gaps
        """For all but the reverse KL divergence."""
        return self.divergence is not None

    def field(self, view: GapView) -> Tensor:
        """See the class."""
        gap = view.fake - (view.real.guided if self.guided else view.real.conditional)
        return gap if self.divergence is None else view.weights(self.divergence).weight.to(gap) * gap


@dataclass(frozen=True, slots=True)
class GuidanceGap(Gap):
    """``R_c - R_w = (w - 1) (R_u - R_c)``: what guidance adds, apart from distribution matching.

    ``DistributionGap(guided=False)`` and this one add up to the guided gap; apart they can be looked at other levels:
    "Decoupled DMD" (2025), which takes this one below the level of the generator's input (``within="below"``; the
    paper's time runs from noise).
    """

    needs_critic = False
    needs_guidance = True

    def field(self, view: GapView) -> Tensor:
        """See the class."""
        return view.real.conditional - view.real.guided


@dataclass(frozen=True, slots=True)
class SampleGap(Gap):
    """``x - R_w``: score distillation, the gap of a critic that knows each sample by heart (Poole et al., 2022).

    Without a critic samples gather at modes.
    """

    needs_critic = False

    def field(self, view: GapView) -> Tensor:
        """See the class."""
        return view.x - view.real.guided


@dataclass(frozen=True, slots=True)
class FisherGap(Gap):
    """``(R - F) (R - x) - a (R - F)^2``: score identity distillation, Zhou et al. (2024).

    With ``d`` the real minus the fake score and the weight ``alpha^2 / sigma^4`` (:class:`LevelWeight` of ``score``,
    power 2) this is ``d (s_real - s(x_t | x)) - a |d|^2``. Its gradient, both networks frozen, is that of half the
    Fisher divergence for ``a = 0.5``; ``a = 1`` is score implicit matching (Luo et al., 2024), 1.2 overshoots.

    Attributes:
        a: See above.
    """

    a: float = 1.2

    second_order = True

    def __post_init__(self) -> None:
        if not is_number(self.a):
            raise argument_error("a", self.a, "a finite number")

    def field(self, view: GapView) -> Tensor:
        """See the class."""
        real = view.real.guided
        gap = real - view.fake
        return gap * (real - view.x) - self.a * gap.square()


@dataclass(frozen=True, slots=True)
class ExpandedGap(Gap):
    """``(phi - phi') (R - F)^2 + 2 phi (R - F) (F - x)``: "Uni-Instruct" (2025).

    An f-divergence between data and samples is ``integral of g^2 / 2 E_q[phi(r) |d|^2] dt``, ``g^2`` the diffusion's
    rate; with the weight ``alpha^2 / sigma^4`` (:class:`LevelWeight` of ``score``, power 2) the gradient of this
    integrand, all networks frozen, is that of ``E_q[phi(r) |d|^2]``. ``phi'`` is the slope by ``log r``; for the
    forward KL divergence the first term vanishes.

    Attributes:
        divergence: p is the data, q the samples.
    """

    divergence: RowDivergence = field(default_factory=ForwardKL)

    second_order = True
    needs_ratio = True

    def __post_init__(self) -> None:
        _check_divergence(self.divergence, False)

    def field(self, view: GapView) -> Tensor:
        """See the class."""
        gap = view.real.guided - view.fake
        weight, slope = (part.to(gap) for part in view.weights(self.divergence))
        return (weight - slope) * gap.square() + 2 * weight * gap * (view.fake - view.x)


def check_gap(gap: Gap, real: object, critics: bool) -> None:
    """Refuses a gap whose scores are not there."""
    if gap.needs_critic and not critics:
        raise argument_error("critic", None, f"a critic, which {type(gap).__name__} compares with")
    scores = getattr(real, "scores", [real])
    if gap.needs_guidance and not all(isinstance(score, Guided) for score in scores):
        raise argument_error("real", type(real).__name__, f"Guided(...): {type(gap).__name__} is what guidance adds")


def _check_divergence(divergence: RowDivergence | None, optional: bool) -> None:
    if divergence is not None or not optional:
        ratio_weights(divergence, torch.zeros(1, dtype=torch.float64))  # type: ignore[arg-type]  # refused there
