"""What the student is to match: the teacher, the labels, or a mix of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.knowledge.heads import Projected
from distillrs.knowledge.inputs import IGNORED
from distillrs.knowledge.numerics import is_number, wide
from distillrs.knowledge.rows import PerRow, at_step
from distillrs.knowledge.view import View
from distillrs.schedule import Ramp

Share: TypeAlias = float | Ramp | Tensor | PerRow


class Target(ABC):
    """A distribution for each row, without a gradient. Subclass it for one of your own."""

    __slots__ = ()

    needs_teacher: bool = False
    """Whether a teacher is to be asked."""

    needs_labels: bool = False
    """Whether rows without a label cannot count."""

    @abstractmethod
    def log_probs(self, view: View) -> Tensor:
        """Logarithms of the target's probabilities.

        Args:
            view: The term's view; what it has of a temperature is the teacher's alone.

        Returns:
            ``[..., vocabulary]``; minus infinity for what is excluded.
        """


@dataclass(frozen=True, slots=True)
class FromTeacher(Target):
    """The teacher's distribution at its temperature."""

    needs_teacher = True

    def log_probs(self, view: View) -> Tensor:
        """See :class:`Target`."""
        if not isinstance(view.teacher, Tensor):
            raise argument_error("target", type(view.teacher).__name__, "a teacher's logits; a top-k cannot be mixed")
        logits, temperature = wide(view.teacher.detach()), view.teacher_temperature
        divisor = temperature.to(logits)[..., None] if isinstance(temperature, Tensor) else temperature
        return (logits / divisor).log_softmax(-1)


@dataclass(frozen=True, slots=True)
class Labels(Target):
    """The labels of the rows, smoothed or not: ``(1 - smoothing) onehot + smoothing / vocabulary``.

    They are those of the term's ``rows`` where these are ``Shifted`` or ``Labelled``, else the batch's own. With
    ``ops.ForwardKL()`` and no smoothing this is the cross-entropy.

    Attributes:
        smoothing: From 0 to below 1.
    """

    smoothing: float = 0.0
    needs_labels = True

    def __post_init__(self) -> None:
        if not (is_number(self.smoothing) and 0 <= self.smoothing < 1):
            raise argument_error("smoothing", self.smoothing, "a number from 0 to below 1")

    def log_probs(self, view: View) -> Tensor:
        """See :class:`Target`."""
        labels = view.required_labels("the target Labels")
        logits = wide(view.student)
        vocabulary = logits.shape[-1]
        check_labels(labels, logits)
        # Rows whose label is ignored have weight 0: any entry will do there.
        onehot = torch.zeros_like(logits).scatter(-1, labels.clamp(min=0)[..., None], 1.0)
        return ((1 - self.smoothing) * onehot + self.smoothing / vocabulary).log()


_LABELS = Labels()
_TEACHER = FromTeacher()


class Mix(Target):
    """A mix of two targets; what its kinds share."""

    __slots__ = ()

    share: Share
    first: Target
    second: Target

    def __post_init__(self) -> None:
        _check_share(self.share)
        for name in ("first", "second"):
            if not isinstance(getattr(self, name), Target):
                raise argument_error(name, getattr(self, name), "a target, such as Labels()")

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]  # a property where the others have a constant
        """Whether either part does."""
        return self.first.needs_teacher or self.second.needs_teacher

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]  # a property where the others have a constant
        """Whether either part does."""
        return self.first.needs_labels or self.second.needs_labels


@dataclass(frozen=True, slots=True)
class Arithmetic(Mix):
    """``(1 - share) first + share second``, of probabilities.

    Attributes:
        share: Of the second, from 0 to 1 at every step: a number, a ramp of the step, a tensor with one for each row,
            or ``PerRow``.
        first: A target.
        second: A target.
    """

    share: Share
    first: Target = _LABELS
    second: Target = _TEACHER

    def log_probs(self, view: View) -> Tensor:
        """See :class:`Target`."""
        first, second = self.first.log_probs(view), self.second.log_probs(view)
        share = _share(self.share, view, first)
        return torch.logaddexp(first + (1 - share).log(), second + share.log())


@dataclass(frozen=True, slots=True)
class Geometric(Mix):
    """``first^(1 - share) second^share``, normalised.

    A part that excludes an entry excludes it from the mix, unless its share is 0.

    Attributes:
        share: See :class:`Arithmetic`.
        first: A target.
        second: A target.
    """

    share: Share
    first: Target
    second: Target = _TEACHER

    def log_probs(self, view: View) -> Tensor:
        """See :class:`Target`."""
        first, second = self.first.log_probs(view), self.second.log_probs(view)
        share = _share(self.share, view, first)
        zero = torch.zeros((), dtype=first.dtype, device=first.device)
        mixed = torch.where(share == 1, zero, (1 - share) * first) + torch.where(share == 0, zero, share * second)
        return mixed.log_softmax(-1)


def optimal_weight(truth: Tensor, truth_only: Tensor, teacher_only: Tensor) -> float:
    """The share of the ground truth that makes the best mix of two fits, on validation data.

    A fit to ``a truth + (1 - a) teacher`` is affine in a where fits are linear in their targets, ``a u + (1 - a) v``,
    so the squared error has its least value at ``a = <y - v, u - v> / |u - v|^2``, cut to [0, 1]. Setting: Borup and
    Andersen, Even your Teacher Needs Guidance, NeurIPS 2021; the closed form is a projection.

    Args:
        truth: y, of any shape.
        truth_only: u, the prediction of what was fitted to the truth alone.
        teacher_only: v, of what was fitted to the teacher alone.

    Returns:
        The share of the truth; 1 if both fits predict the same.

    Raises:
        ArgumentError: Something else than tensors, or shapes that differ.
    """
    for name, each in (("truth", truth), ("truth_only", truth_only), ("teacher_only", teacher_only)):
        if not isinstance(each, Tensor):
            raise argument_error(name, type(each).__name__, "a tensor")
    if truth.shape != truth_only.shape or truth.shape != teacher_only.shape:
        got = f"shapes {tuple(truth.shape)}, {tuple(truth_only.shape)}, {tuple(teacher_only.shape)}"
        raise argument_error("truth", got, "three tensors of one shape")
    y, u, v = (each.detach().double() for each in (truth, truth_only, teacher_only))
    length = (u - v).square().sum()
    if float(length) == 0:
        return 1.0
    return min(max(float(((y - v) * (u - v)).sum() / length), 0.0), 1.0)


def check_labels(labels: Tensor, logits: Tensor | Projected, name: str = "labels") -> None:
    """Raises unless the labels are classes of the rows of logits, or ignored.

    Args:
        labels: int64 ``[*rows]``.
        logits: ``[*rows, classes]``.
        name: The argument's, for the message.

    Raises:
        ArgumentError: They are not.
    """
    shape = tuple(logits.shape[:-1])
    if labels.dtype != torch.int64 or tuple(labels.shape) != shape:
        raise argument_error(name, f"{labels.dtype} {tuple(labels.shape)}", f"int64 of the rows' shape {shape}")
    # On a device the look would wait for it.
    if labels.device.type != "cpu":
        return
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= logits.shape[-1])]
    if wrong.numel():
        allowed = f"classes from 0 to {logits.shape[-1] - 1}, or {IGNORED} for none"
        raise argument_error(name, int(wrong[0]), allowed)


def _check_share(share: Share) -> None:
    if not isinstance(share, Tensor | PerRow) and not callable(share) and not (is_number(share) and 0 <= share <= 1):
        raise argument_error("share", share, "a number from 0 to 1, a ramp, a tensor or PerRow(...)")


def _share(share: Share, view: View, like: Tensor) -> Tensor:
    """Of each row, ``[..., 1]``."""
    allowed = "numbers from 0 to 1"
    if isinstance(share, Tensor | PerRow):
        value = share if isinstance(share, Tensor) else share.numbers(view)
        if value.is_complex() or value.layout != torch.strided:
            raise argument_error("share", f"{value.dtype}, {value.layout}", allowed)
        # On a device the look would wait for it.
        if value.device.type == "cpu" and not ((value >= 0) & (value <= 1)).all():
            raise argument_error("share", f"{float(value.min()):g} to {float(value.max()):g}", allowed)
    else:
        number = at_step("share", share, view.local)
        if not 0 <= number <= 1:
            raise argument_error("share", number, f"{allowed} at every step; this is step {view.local.index}")
        value = torch.tensor(number)
    if value.ndim and tuple(value.shape) != tuple(like.shape[: value.ndim]):
        raise argument_error("share", f"shape {tuple(value.shape)}", f"a number for each row, {tuple(like.shape[:-1])}")
    value = value.detach().to(like)
    return value.reshape(*value.shape, *(1 for _ in range(like.ndim - value.ndim))) if value.ndim else value
