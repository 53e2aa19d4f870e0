"""Divergences between features, binary events and rankings: a loss for each row, which the term weighs and adds up.

Divergences of distributions over a vocabulary are :class:`distillrs.ops.RowDivergence`; a term takes either kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distillrs import ops
from distillrs.checks import check_choice, check_number, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.numerics import is_number, unit
from distillrs.knowledge.targets import check_labels
from distillrs.knowledge.view import View
from distillrs.ops._top_k import log1mexp


class Divergence(ABC):
    """A loss for each row of an aligned pair. Subclass it for one of your own: one method is enough.

    Rows are the leading axes: all but the last of a tensor ``[..., features]``, the first alone of maps ``[B, C, H,
    W]``, unless ``row_axes`` says otherwise. Whatever holds in a row of weight 0 is put to 0 before the divergence sees
    it, if ``rowwise`` is true.
    """

    __slots__ = ()

    rowwise: bool = True
    """Whether a row's loss depends on that row alone."""

    row_axes: int | None = None
    """How many leading axes number the rows; ``None`` for the rule above."""

    needs_labels: bool = False
    """Whether rows without a label cannot count."""

    tempered: bool = False
    """Whether both sides are divided by the term's temperatures, so that the rule "squared" has a meaning."""

    reads_temperature: bool = True
    """Whether the term's temperatures mean anything here; a term refuses others than 1 where they do not."""

    @abstractmethod
    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """The loss of each row, with a graph to the student.

        Args:
            student: ``[..., features]``.
            teacher: ``[..., features]``; what the alignment trains of it may have a graph, the teacher has none.
            view: All else that the term knows.

        Returns:
            ``[...]``, in float32 or float64.
        """

    def leading(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape of the rows of a tensor."""
        return tuple(tensor.shape[: leading_axes(tensor, self.row_axes)])


def leading_axes(tensor: Tensor, row_axes: int | None) -> int:
    """How many axes of a tensor number its rows."""
    if row_axes is not None:
        check_whole("row_axes", row_axes, "None or a number of axes from 0", least=0)
        return row_axes
    return 1 if tensor.ndim >= 4 else max(tensor.ndim - 1, 0)


def paired(student: Tensor, teacher: Tensor, row_axes: int | None) -> tuple[Tensor, Tensor]:
    """Both sides as ``[*rows, features]`` in one dtype of at least 32 bits.

    Args:
        student: ``[..., features]`` or maps.
        teacher: Of the same shape.
        row_axes: See :class:`Divergence`.

    Raises:
        ArgumentError: The shapes differ, or there are not so many axes.
    """
    if not isinstance(teacher, Tensor):
        raise argument_error("teacher", type(teacher).__name__, "a tensor; only row divergences take a top-k")
    if student.shape != teacher.shape:
        got = f"shape {tuple(teacher.shape)} beside the student's {tuple(student.shape)}"
        raise argument_error(
            "teacher", got, "equal shapes after align=, such as Projector(...), Pooled() or a relation"
        )
    axes = leading_axes(student, row_axes)
    if axes > student.ndim or student.ndim == 0:
        raise argument_error("student", f"shape {tuple(student.shape)}", f"at least {max(axes, 1)} axes")
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    shape = (*student.shape[:axes], -1) if student.numel() else (*student.shape[:axes], student[..., 0:].shape[-1])
    return student.to(dtype).reshape(shape), teacher.to(dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class MSE(Divergence):
    """Mean of the squared differences over a row's features.

    Attributes:
        row_axes: See :class:`Divergence`.
    """

    row_axes: int | None = None
    reads_temperature = False

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        first, second = paired(student, teacher.detach(), self.row_axes)
        return (first - second).square().mean(-1)


@dataclass(frozen=True, slots=True)
class NormalisedMSE(Divergence):
    """Squared difference of the rows after each is brought to length 1: ``|s/|s| - t/|t||^2 = 2 - 2 cos``.

    With "teacher" only the teacher's scale goes: ``|s - t|^2 / |t|^2``.

    Attributes:
        by: What each row is divided by: "both" by their own lengths, "teacher" both by the teacher's.
        row_axes: See :class:`Divergence`.
        epsilon: Least length.
    """

    by: Literal["both", "teacher"] = "both"
    row_axes: int | None = None
    epsilon: float = 1e-12
    reads_temperature = False

    def __post_init__(self) -> None:
        check_choice("by", self.by, ("both", "teacher"))
        check_number("epsilon", self.epsilon, "a number above 0", above=0)

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        first, second = paired(student, teacher.detach(), self.row_axes)
        if self.by == "teacher":
            length = second.square().sum(-1).clamp(min=self.epsilon**2)
            return (first - second).square().sum(-1) / length
        return (unit(first, epsilon=self.epsilon) - unit(second, epsilon=self.epsilon)).square().sum(-1)


@dataclass(frozen=True, slots=True)
class Cosine(Divergence):
    """One less the cosine of the angle between the rows; 1, without a slope, where either is zero.

    Attributes:
        row_axes: See :class:`Divergence`.
    """

    row_axes: int | None = None
    reads_temperature = False

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        first, second = paired(student, teacher.detach(), self.row_axes)
        return 1 - (unit(first) * unit(second)).sum(-1)


@dataclass(frozen=True, slots=True)
class L1(Divergence):
    """Mean of the absolute differences over a row's features.

    Attributes:
        row_axes: See :class:`Divergence`.
    """

    row_axes: int | None = None
    reads_temperature = False

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        first, second = paired(student, teacher.detach(), self.row_axes)
        return (first - second).abs().mean(-1)


@dataclass(frozen=True, slots=True)
class SmoothL1(Divergence):
    """Mean over a row's features of ``d^2 / (2 beta)`` below beta and ``|d| - beta / 2`` above; Huber's loss.

    Attributes:
        beta: Where the parabola ends, above 0.
        row_axes: See :class:`Divergence`.
    """

    beta: float = 1.0
    row_axes: int | None = None
    reads_temperature = False

    def __post_init__(self) -> None:
        if not (is_number(self.beta) and self.beta > 0):
            raise argument_error("beta", self.beta, "a number above 0")

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        first, second = paired(student, teacher.detach(), self.row_axes)
        return torch.nn.functional.smooth_l1_loss(first, second, reduction="none", beta=self.beta).mean(-1)


@dataclass(frozen=True, slots=True)
class Brier(ops.RowDivergence):
    """``sum_v (p_v - q_v)^2`` of the probabilities: bounded by 2, and in no class sharper than in another.

    A mix of targets under it has the gradient of the same mix of losses. Source: Brier, Verification of Forecasts
    Expressed in Terms of Probability, 1950.
    """

    def value(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``(p - q)^2``."""
        return (log_p.exp() - log_q.exp()).square()

    def derivative(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """``2 q (q - p)``."""
        q = log_q.exp()
        return 2 * q * (q - log_p.exp())


@dataclass(frozen=True, slots=True)
class Bernoulli(Divergence):
    """KL between independent yes/no events: ``a log(a/b) + (1-a) log((1-a)/(1-b))``, averaged over a row's events.

    Attributes:
        given: "logits": a = sigmoid(t / T), b = sigmoid(s / T); "log_probabilities": a = exp(t / T), b = exp(s / T) of
            values at most 0, such as log-likelihoods of chunks (ALM; Minixhofer et al., 2025). The gradient scales as
            1 / T, so a change of T calls for a factor T, not T^2.
        row_axes: See :class:`Divergence`.
    """

    given: Literal["logits", "log_probabilities"] = "logits"
    row_axes: int | None = None
    tempered = True

    def __post_init__(self) -> None:
        check_choice("given", self.given, ("logits", "log_probabilities"))

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        first, second = paired(student, teacher.detach(), self.row_axes)
        axes = leading_axes(student, self.row_axes)
        first = first / _over_features(view.temperature, first, axes)
        second = second / _over_features(view.teacher_temperature, second, axes)
        (yes, no), (yes_t, no_t) = self._logarithms(first), self._logarithms(second)
        # An event that is certain adds nothing of its complement.
        share = torch.where(yes_t == -torch.inf, 0.0, yes_t.exp() * (yes_t - yes))
        rest = torch.where(no_t == -torch.inf, 0.0, no_t.exp() * (no_t - no))
        return (share + rest).mean(-1)

    def _logarithms(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.given == "logits":
            return torch.nn.functional.logsigmoid(values), torch.nn.functional.logsigmoid(-values)
        # Kept below 0 by one rounding step: log(1 - e^0) has neither a value nor a slope.
        below = values.clamp(max=-torch.finfo(values.dtype).eps)
        return below, log1mexp(below)


@dataclass(frozen=True, slots=True)
class BernoulliLimit(Divergence):
    """T times :class:`Bernoulli` of log-probabilities, for T to infinity: ``t - s + t (log(-s) - log(-t))``.

    It is the Kullback-Leibler divergence of two Poisson distributions with rates -t and -s: 0 only where they are
    equal. Averaged over a row's events. Source: Minixhofer et al., 2025.

    Attributes:
        row_axes: See :class:`Divergence`.
    """

    row_axes: int | None = None
    reads_temperature = False

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        first, second = paired(student, teacher.detach(), self.row_axes)
        rate = (-first).clamp(min=torch.finfo(first.dtype).eps)
        rate_t = (-second).clamp(min=0)
        return (rate - rate_t + torch.xlogy(rate_t, rate_t) - rate_t * rate.log()).mean(-1)


@dataclass(frozen=True, slots=True)
class PlackettLuce(Divergence):
    """List-wise: how likely the teacher's ranking is under the student; see :func:`distillrs.ops.plackett_luce`.

    The label comes first in the ranking and is needed.
    """

    needs_labels = True

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        if isinstance(view.teacher_temperature, Tensor):
            raise argument_error("teacher_temperature", "a tensor", "a number for PlackettLuce")
        losses: Tensor = ops.plackett_luce(
            student,
            teacher,
            view.required_labels("PlackettLuce"),
            temperature=view.teacher_temperature,
            reduction="none",
        )
        return losses


@dataclass(frozen=True, slots=True)
class DecoupledKL(Divergence):
    """alpha KL of (label, all others) plus beta KL among the others alone, both forward.

    With b = (p_y, 1 - p_y) and p^ the teacher's distribution over the classes other than y, the forward KL is
    ``KL(b || b_s) + (1 - p_y) KL(p^ || q^)``: the second factor falls as the teacher grows confident; here it is beta.
    Source: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022.

    Attributes:
        alpha: Weight of the binary part.
        beta: Weight of the part among the other classes.
    """

    alpha: float = 1.0
    beta: float = 8.0
    needs_labels = True
    tempered = True

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0):
                raise argument_error(name, value, "a number from 0")

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`Divergence`."""
        labels = view.required_labels("DecoupledKL")
        check_labels(labels, student)
        first, second = paired(student, teacher.detach(), student.ndim - 1)
        if first.shape[-1] < 2:
            raise argument_error("student", f"{first.shape[-1]} classes", "at least 2")
        axes = student.ndim - 1
        log_q = (first / _over_features(view.temperature, first, axes)).log_softmax(-1)
        log_p = (second / _over_features(view.teacher_temperature, second, axes)).log_softmax(-1)
        at = labels.clamp(min=0)[..., None]
        own = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, at, True)
        # The others' mass from themselves: one less the label's would lose what a confident teacher leaves them.
        others_p, others_q = (each.masked_fill(own, -torch.inf).logsumexp(-1, keepdim=True) for each in (log_p, log_q))
        label_p, label_q = log_p.gather(-1, at), log_q.gather(-1, at)
        binary = label_p.exp() * (label_p - label_q) + others_p.exp() * (others_p - others_q)
        inside_p, inside_q = log_p - others_p, log_q - others_q
        # The label has no share here, and neither have classes that the teacher excludes.
        absent = own | (inside_p == -torch.inf)
        among = torch.where(absent, 0.0, inside_p.exp() * (inside_p - inside_q)).sum(-1)
        return self.alpha * binary[..., 0] + self.beta * among


def _over_features(value: float | Tensor, like: Tensor, axes: int) -> float | Tensor:
    """A number for each row, to be divided by; [*rows, 1]."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if tuple(value.shape) != tuple(like.shape[:axes]):
        raise argument_error(
            "temperature", f"shape {tuple(value.shape)}", f"one for each row, {tuple(like.shape[:axes])}"
        )
    return value.to(like)[..., None]
