"""One term: an aligned pair of tapped tensors under a divergence, with row weights, temperatures and a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from distillrs.checks import check_choice, check_text
from distillrs.errors import argument_error
from distillrs.knowledge.alignments import Alignment, Side, aligned, identity
from distillrs.knowledge.divergences import Divergence
from distillrs.knowledge.heads import Head, Projected
from distillrs.knowledge.inputs import IGNORED, Inputs
from distillrs.knowledge.numerics import is_number
from distillrs.knowledge.rows import (
    EntropyFilter,
    Labelled,
    PerRow,
    Rows,
    RowWeights,
    SelfPaced,
    Shifted,
    at_step,
    row_parts,
    weigh,
)
from distillrs.knowledge.taps import AnyTap, OneTap, as_taps, tap_name
from distillrs.knowledge.targets import FromTeacher, Labels, Target, check_labels
from distillrs.knowledge.view import View
from distillrs.ops import (
    ForwardKL,
    Mixture,
    RowDivergence,
    TopK,
    linear_row_divergence,
    row_divergence,
    row_statistics,
    sparse_row_divergence,
)
from distillrs.schedule import Ramp
from distillrs.step import Step

Temperature: TypeAlias = float | Tensor | Ramp | PerRow

_FORWARD = ForwardKL()
_NOTHING = Mixture({_FORWARD: 0.0})
_TEACHER = FromTeacher()


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A term matches the student's tapped tensor with the teacher's.

    Its value is ``sum_r w_r loss_r / normaliser`` over the rows r of the aligned pair.

    Attributes:
        student: What of the student: a module's path, a :class:`Tap`, an :class:`Output`, a function of a
            :class:`Run`, or several of these for an alignment that takes a tuple. A :class:`Head` stands for the logits
            without forming them; then the teacher's is one too, or the target is ``Labels()``.
        teacher: What of the teacher; ``None`` for the same as of the student.
        align: Brings both sides to one shape; what it trains belongs to the objective.
        divergence: Of ``ops`` for rows of logits, or of this module.
        target: What the student's distribution is to match; the teacher's by default. With another target than the
            teacher's the divergence is one of ``ops``.
        rows: Which rows count and how much; ``None`` for all alike.
        temperature: Divides the student's logits: a number, a tensor with one for each row, a ramp, or
            :class:`PerRow`.
        teacher_temperature: Divides the teacher's; ``None`` takes the student's.
        temperature_rule: "squared" multiplies each row's loss by T^2, which keeps the size of its gradient; it needs
            equal temperatures. "none" does not.
        scale: Factor of the term in the sum, a number or a ramp; a term of scale 0 is not computed.
        normaliser: "rows": the rows that masks leave; "weights": the sum of the weights; or a number.
        teacher_name: Which of the objective's teachers.
        name: In the loss's terms; ``None`` makes one.

    Raises:
        ArgumentError: A part that is not allowed.
    """

    student: AnyTap
    teacher: AnyTap | None = None
    align: Alignment = identity
    divergence: RowDivergence | Divergence = _FORWARD
    target: Target = _TEACHER
    rows: Rows = None
    temperature: Temperature = 1.0
    teacher_temperature: Temperature | None = None
    temperature_rule: Literal["none", "squared"] = "none"
    scale: float | Ramp = 1.0
    normaliser: Literal["rows", "weights"] | float = "rows"
    teacher_name: str = "main"
    name: str | None = None

    def __post_init__(self) -> None:
        as_taps("student", self.student)
        if self.teacher is not None:
            as_taps("teacher", self.teacher)
        if not callable(self.align):
            raise argument_error("align", self.align, "an alignment, such as Projector(64, 128)")
        if not isinstance(self.divergence, RowDivergence | Divergence):
            raise argument_error("divergence", self.divergence, "an ops.RowDivergence or a knowledge.Divergence")
        if not isinstance(self.target, Target):
            raise argument_error("target", self.target, "a target, such as Labels()")
        if isinstance(self.divergence, Divergence) and not isinstance(self.target, FromTeacher):
            raise argument_error("target", self.target, f"FromTeacher() with {type(self.divergence).__name__}")
        if not self.target.needs_teacher and self.align is not identity:
            got, allowed = (
                type(self.align).__name__,
                "no alignment with a target that needs no teacher: tap what it is for",
            )
            raise argument_error("align", got, allowed)
        check_choice("temperature_rule", self.temperature_rule, ("none", "squared"))
        is_tempered = isinstance(self.divergence, RowDivergence) or self.divergence.tempered
        if self.temperature_rule == "squared" and not is_tempered:
            got = f"'squared' with {type(self.divergence).__name__}, which divides nothing by a temperature"
            raise argument_error("temperature_rule", got, "'none'")
        row_parts(self.rows)
        for name in ("temperature", "teacher_temperature"):
            value = getattr(self, name)
            if value is None and name == "teacher_temperature":
                continue
            if not (is_number(value) and value > 0) and not isinstance(value, Tensor | PerRow) and not callable(value):
                raise argument_error(name, value, "a positive number, a tensor, a ramp or PerRow(...)")
        same = self.teacher_temperature is None or self.teacher_temperature is self.temperature
        numbers = isinstance(self.temperature, int | float) and isinstance(self.teacher_temperature, int | float)
        if (
            self.temperature_rule == "squared"
            and not same
            and not (numbers and self.temperature == self.teacher_temperature)
        ):
            got = "'squared' with different temperatures for student and teacher"
            raise argument_error("temperature_rule", got, "'none', or equal temperatures: T^2 has no meaning otherwise")
        if isinstance(self.divergence, Divergence) and not self.divergence.reads_temperature:
            for name, value in (("temperature", self.temperature), ("teacher_temperature", self.teacher_temperature)):
                if value is not None and not (is_number(value) and value == 1):
                    got = f"{value!r} with {type(self.divergence).__name__}, which divides nothing by a temperature"
                    raise argument_error(name, got, "1, the default; what a divergence has of its own it takes itself")
        if not callable(self.scale) and not is_number(self.scale):
            raise argument_error("scale", self.scale, "a finite number or a ramp")
        normaliser: Any = self.normaliser
        is_name = isinstance(normaliser, str) and normaliser in ("rows", "weights")
        if not is_name and not (is_number(normaliser) and normaliser > 0):
            raise argument_error("normaliser", self.normaliser, "'rows', 'weights' or a positive number")
        check_text("teacher_name", self.teacher_name, "the name of one of the objective's teachers")
        if self.name is not None:
            check_text("name", self.name, "None or a string that is not empty")
        if any(isinstance(tap, Head) for tap in (*self.student_taps, *self.teacher_taps)):
            self._check_heads()

    def _check_heads(self) -> None:
        """Raises unless the fused head serves the term.

        Raises:
            ArgumentError: It does not.
        """
        for name, taps in (("student", self.student_taps), ("teacher", self.teacher_taps)):
            if taps and not (len(taps) == 1 and isinstance(taps[0], Head)):
                got = f"{', '.join(tap_name(tap) for tap in taps)} beside a Head"
                raise argument_error(name, got, "one Head(...) on both sides, or Output('logits') on both")
        if self.align is not identity:
            raise argument_error("align", type(self.align).__name__, "no alignment with a Head, or Output('logits')")
        if not isinstance(self.divergence, RowDivergence):
            got = f"{type(self.divergence).__name__} with a Head"
            raise argument_error("divergence", got, "a divergence of distillrs.ops, or Output('logits')")
        is_plain = isinstance(self.target, Labels) and self.target.smoothing == 0 and self.divergence == _FORWARD
        if not isinstance(self.target, FromTeacher) and not (is_plain and self.temperature == 1):
            got = f"{self.target} with a Head"
            raise argument_error("target", got, "FromTeacher(), or Labels() at temperature 1, or Output('logits')")

    @property
    def student_taps(self) -> tuple[OneTap, ...]:
        """What is taken of the student."""
        return as_taps("student", self.student)

    @property
    def teacher_taps(self) -> tuple[OneTap, ...]:
        """What is taken of the teacher; nothing if the target needs none."""
        if not self.target.needs_teacher:
            return ()
        return as_taps("teacher", self.student if self.teacher is None else self.teacher)

    @property
    def label(self) -> str:
        """The name, or one made of the divergence and the tap."""
        if self.name is not None:
            return self.name
        what = type(self.divergence if self.target.needs_teacher else self.target).__name__
        return f"{what}({', '.join(tap_name(tap) for tap in self.student_taps)})"

    def counts(self, items: str, shifted: bool) -> bool:
        """Whether the term's rows are the items that a global count counts.

        Args:
            items: The batch entry whose labels are counted.
            shifted: Whether they are counted without the first of each row.
        """
        parts = row_parts(self.rows)
        labelled = [part for part in parts if isinstance(part, Shifted | Labelled)]
        # Any other part may be a mask, which leaves rows out of the mean.
        weighed = [part for part in parts if isinstance(part, EntropyFilter | SelfPaced)]
        if self.normaliser != "rows" or len(labelled) + len(weighed) < len(parts):
            return False
        if labelled:
            return all(part.name == items and isinstance(part, Shifted) == shifted for part in labelled)
        return self._needs_labels and not shifted

    @property
    def _needs_labels(self) -> bool:
        return self.target.needs_labels or (isinstance(self.divergence, Divergence) and self.divergence.needs_labels)

    def value(
        self, student: Side, teacher: Side, inputs: Inputs, step: Step, local: Step, labels: str, items: float | None
    ) -> Tensor:
        """The term before its scale, with its graph.

        Args:
            student: The tapped tensor, or a tuple of several.
            teacher: The teacher's, or an ``ops.TopK``; ``None`` without a teacher.
            inputs: The batch.
            step: Of the run.
            local: Of the stage.
            labels: Name of the batch entry of labels.
            items: What to divide by instead of the normaliser.

        Raises:
            ArgumentError: Parts that do not fit each other or the batch.
        """
        present: Tensor | None = None
        if teacher is not None:
            student, teacher, present = aligned(self.align, student, teacher, inputs)
        if not isinstance(student, Tensor | Projected):
            raise argument_error(
                "align", f"a {type(student).__name__} for the student", "an alignment that gives a tensor"
            )
        view = View(inputs, step, local, student, teacher, present=present)
        view.labels = self._labels(view, labels)
        view.temperature = _temperature("temperature", self.temperature, view)
        view.teacher_temperature = (
            view.temperature
            if self.teacher_temperature is None
            else _temperature("teacher_temperature", self.teacher_temperature, view)
        )
        if isinstance(self.divergence, RowDivergence):
            return self._row_divergence(view, items)
        return self._features(view, self.divergence, items)

    def _labels(self, view: View, name: str) -> Tensor | None:
        for part in row_parts(self.rows):
            if isinstance(part, Shifted | Labelled):
                return part.labels(view)
        found = view.inputs.fields.get(name)
        return found if isinstance(found, Tensor) else None

    def _row_divergence(self, view: View, items: float | None) -> Tensor:
        assert isinstance(self.divergence, RowDivergence)
        student = view.student
        shape = tuple(student.shape[:-1])
        parts = row_parts(self.rows)
        late = [part for part in parts if getattr(part, "needs_losses", False)]
        early = [part for part in parts if part not in late]
        if isinstance(view.teacher, TopK):
            early.append(_is_present)
        if view.present is not None:
            early.append(_is_aligned)
        if self._needs_labels:
            early.append(_is_labelled)
        weights = weigh(early, view, shape)
        by_losses = late or (self._is_cross_entropy(view) and not isinstance(student, Projected))
        if not by_losses:
            divisor = items if items is not None else self._divisor(weights, shape)
            return self._rows(view, weights.weight, "mean", divisor)
        kept = None if weights.weight is None else (weights.weight != 0).to(torch.float32)
        losses = self._rows(view, kept, "none", None)
        view.losses = losses.detach()
        if late:
            weights = _product(weights, weigh(late, view, shape))
        return self._reduced(losses, weights, shape, items)

    def _is_cross_entropy(self, view: View) -> bool:
        is_plain = isinstance(self.target, Labels) and self.target.smoothing == 0
        return is_plain and isinstance(self.divergence, ForwardKL) and not isinstance(view.temperature, Tensor)

    def _rows(
        self, view: View, weight: Tensor | None, reduction: Literal["mean", "none"], divisor: float | Tensor | None
    ) -> Tensor:
        """The divergence of the rows by whichever function serves it; [] or [*rows]."""
        if isinstance(view.student, Projected):
            return self._fused(view, weight, reduction, divisor)
        assert isinstance(self.divergence, RowDivergence)
        student, temperature = view.student, view.temperature
        if isinstance(self.target, FromTeacher):
            if isinstance(view.teacher, TopK):
                other = view.teacher_temperature
                if isinstance(temperature, Tensor) or isinstance(other, Tensor) or other != temperature:
                    raise argument_error("temperature", "one for each row or side", "one number for a cached teacher")
                factor = temperature**2 if self.temperature_rule == "squared" else 1.0
                sparse: Tensor = sparse_row_divergence(
                    student,
                    view.teacher,
                    self.divergence,
                    temperature=temperature,
                    weight=weight,
                    reduction=reduction,
                    normaliser=divisor,
                )
                return factor * sparse
            loss: Tensor = row_divergence(
                student,
                view.teacher,
                self.divergence,
                temperature=temperature,
                teacher_temperature=view.teacher_temperature,
                temperature_rule=self.temperature_rule,
                weight=weight,
                reduction=reduction,
                normaliser=divisor,
            )
            return loss
        square = temperature**2 if self.temperature_rule == "squared" else 1.0
        if self._is_cross_entropy(view) and reduction == "none":
            labels = view.required_labels("the target Labels")
            check_labels(labels, student)
            assert not isinstance(temperature, Tensor)
            if weight is not None:
                # Rows that do not count may hold anything, and have any label.
                student = torch.where(weight[..., None] != 0, student, 0.0)
            chosen = row_statistics(student, labels.clamp(min=0), temperature=temperature).chosen
            assert chosen is not None
            losses: Tensor = -square * chosen
            return losses
        scaled = square if weight is None else weight * square
        mixed: Tensor = row_divergence(
            student,
            self.target.log_probs(view),
            self.divergence,
            temperature=temperature,
            teacher_temperature=1.0,
            weight=scaled,
            reduction=reduction,
            normaliser=divisor,
        )
        return mixed

    def _fused(
        self, view: View, weight: Tensor | None, reduction: Literal["mean", "none"], divisor: float | Tensor | None
    ) -> Tensor:
        """The same of logits that are not formed."""
        assert isinstance(self.divergence, RowDivergence)
        student: Projected = view.student.as_computed()
        arguments: dict[str, Any] = {"student_bias": student.bias, "weight": weight, "chunk_bytes": student.chunk_bytes}
        arguments |= {"reduction": reduction, "normaliser": divisor}
        if isinstance(self.target, FromTeacher):
            if not isinstance(view.teacher, Projected):
                got = f"{type(view.teacher).__name__} beside a student's Head"
                raise argument_error("teacher", got, "a teacher that is a network, or Output('logits')")
            teacher = view.teacher.as_computed()
            divergence, other = self.divergence, (teacher.hidden, teacher.weight)
            arguments |= {
                "teacher_bias": teacher.bias,
                "temperature": view.temperature,
                "teacher_temperature": view.teacher_temperature,
                "temperature_rule": self.temperature_rule,
            }
        else:
            labels = view.required_labels("the target Labels")
            check_labels(labels, view.student)
            # A teacher that takes no part, of one feature.
            divergence = _NOTHING
            other = (student.hidden.detach()[..., :1], torch.zeros_like(student.weight.detach()[:, :1]))
            arguments |= {"labels": labels, "label_weight": 1.0, "ignore_index": IGNORED}
        loss: Tensor = linear_row_divergence(student.hidden, student.weight, *other, divergence, **arguments)
        return loss

    def _features(self, view: View, divergence: Divergence, items: float | None) -> Tensor:
        shape = divergence.leading(view.student)
        parts = row_parts(self.rows)
        late = [part for part in parts if getattr(part, "needs_losses", False)]
        early = [part for part in parts if part not in late]
        if view.present is not None:
            early.append(_is_aligned)
        if self._needs_labels:
            early.append(_is_labelled)
        weights = weigh(early, view, shape)
        student, teacher = view.student, view.teacher
        if divergence.rowwise and weights.weight is not None:
            keep = weights.weight != 0
            student, teacher = (
                torch.where(_broad(keep, each), each, 0.0) if isinstance(each, Tensor) else each
                for each in (student, teacher)
            )
        losses = divergence.rows(student, teacher, view)
        if tuple(losses.shape) != shape:
            got = f"losses of shape {tuple(losses.shape)} from {type(divergence).__name__}"
            raise argument_error("divergence", got, f"one for each row, {shape}")
        if self.temperature_rule == "squared":
            losses = losses * _broad_number(view.temperature, losses) ** 2
        view.losses = losses.detach()
        if late:
            weights = _product(weights, weigh(late, view, shape))
        return self._reduced(losses, weights, shape, items)

    def _reduced(self, losses: Tensor, weights: RowWeights, shape: tuple[int, ...], items: float | None) -> Tensor:
        divisor = items if items is not None else self._divisor(weights, shape)
        if weights.weight is None:
            return losses.sum() / divisor
        weight = weights.weight.to(losses.dtype)
        return torch.where(weight == 0, torch.zeros_like(losses), weight * losses).sum() / divisor

    def _divisor(self, weights: RowWeights, shape: tuple[int, ...]) -> float | Tensor:
        """What the weighted sum is divided by; never 0, so that no row at all gives 0."""
        if not isinstance(self.normaliser, str):
            return float(self.normaliser)
        given = weights.mask if self.normaliser == "rows" else weights.weight
        if given is None:
            return float(max(math.prod(shape), 1))
        total = given.sum(dtype=torch.float32) if given.dtype in (torch.float16, torch.bfloat16) else given.sum()
        return (
            total.clamp(min=1) if self.normaliser == "rows" else torch.where(total > 0, total, torch.ones_like(total))
        )


def _temperature(name: str, value: Temperature, view: View) -> float | Tensor:
    if isinstance(value, PerRow | Tensor):
        given = value if isinstance(value, Tensor) else value.numbers(view)
        if given.is_complex() or given.layout != torch.strided:
            raise argument_error(name, f"{given.dtype}, {given.layout}", "positive, finite numbers")
        # On a device the look would wait for it.
        if given.device.type == "cpu" and not ((given > 0) & given.isfinite()).all():
            raise argument_error(name, f"values down to {float(given.min())}", "positive, finite numbers")
        return given
    number = at_step(name, value, view.local)
    if not 0 < number < math.inf:
        raise argument_error(name, number, f"positive numbers at every step; this is step {view.local.index}")
    return number


def _is_present(view: View) -> Tensor:
    """Rows that a cache has; the others have no entries."""
    top: TopK = view.teacher
    return (top.log_probs > -torch.inf).any(-1)


def _is_aligned(view: View) -> Tensor:
    """Rows that the alignment found."""
    assert view.present is not None
    return view.present


def _is_labelled(view: View) -> Tensor:
    """Rows whose label is not ignored, as the loss functions of torch leave them out."""
    return view.required_labels("the term's target or divergence") != IGNORED


def _product(first: RowWeights, second: RowWeights) -> RowWeights:
    masks = [each.mask for each in (first, second) if each.mask is not None]
    mask = masks[0] & masks[1] if len(masks) == 2 else (masks[0] if masks else None)
    given = [each.weight for each in (first, second) if each.weight is not None]
    if len(given) < 2:
        return RowWeights(mask, given[0] if given else None)
    # Chosen, not multiplied: where either is 0 the other may be anything.
    product = torch.where((given[0] == 0) | (given[1] == 0), torch.zeros_like(given[0]), given[0] * given[1])
    return RowWeights(mask, product)


def _broad(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(*rows.shape, *(1 for _ in range(like.ndim - rows.ndim)))


def _broad_number(value: float | Tensor, like: Tensor) -> float | Tensor:
    return value.to(like) if isinstance(value, Tensor) else value
