"""The arguments of a row divergence, checked once and brought into the form that every backend takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from distillrs.checks import check_choice, check_number, check_whole
from distillrs.errors import argument_error
from distillrs.ops._divergences import Mixture, RowDivergence

Reduction = Literal["mean", "sum", "none"]
TemperatureRule = Literal["none", "squared"]

LOGIT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class DivergenceStatistics(NamedTuple):
    """What a row divergence knows of each row anyway, without gradient; shaped as the rows.

    Rows that were skipped have 0, and -1 for the arg max. Everything but the arg max is at the row's temperatures.

    Attributes:
        divergence: The divergence itself, before weight, temperature rule and labels.
        student_logsumexp: Natural log-sum-exp of the student's logits.
        teacher_logsumexp: The teacher's.
        student_entropy: Entropy of the student's distribution, in nats.
        teacher_entropy: The teacher's.
        student_argmax: int64: the student's most likely entry.
        teacher_argmax: int64: the teacher's.
    """

    divergence: Tensor
    student_logsumexp: Tensor
    teacher_logsumexp: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    student_argmax: Tensor
    teacher_argmax: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """A row divergence with everything but the student's logits; n rows stand for all leading axes.

    The loss of a row is ``divergence_scale D + label_scale (-log softmax(student)[label])``. A row whose scales are
    both 0 is not looked at.

    Numbers per row are float64 where the device has it.

    Attributes:
        teacher: ``[*shape, columns]``, detached.
        divergence: D.
        vocabulary: Columns that count.
        shape: Leading axes.
        student_temperature: ``[n]``.
        teacher_temperature: ``[n]``.
        divergence_scale: ``[n]``.
        label_scale: ``[n]``.
        labels: int64 ``[n]``; any number where the label's scale is 0.
        compute_dtype: What the arithmetic is in.
    """

    teacher: Tensor
    divergence: RowDivergence
    vocabulary: int
    shape: tuple[int, ...]
    student_temperature: Tensor
    teacher_temperature: Tensor
    divergence_scale: Tensor
    label_scale: Tensor
    labels: Tensor | None
    compute_dtype: torch.dtype

    @property
    def count(self) -> int:
        """How many rows."""
        return math.prod(self.shape)

    def scaled(self, factor: Tensor) -> Rows:
        """The same with every row's loss multiplied.

        Args:
            factor: ``[n]``.
        """
        factor = factor.to(self.divergence_scale)
        # A row that was skipped stays so, even under an upstream gradient that is not finite.
        scales = (self.divergence_scale, self.label_scale)
        divergence_scale, label_scale = (torch.where(scale == 0, scale, scale * factor) for scale in scales)
        return replace(self, divergence_scale=divergence_scale, label_scale=label_scale)


def check_real(name: str, value: Tensor) -> None:
    """Raises unless this is a dense tensor of real numbers that the backends know.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(value, Tensor):
        raise argument_error(name, type(value).__name__, "a tensor")
    if value.dtype not in LOGIT_DTYPES:
        raise argument_error(name, value.dtype, "a tensor of float64, float32, bfloat16 or float16")
    if value.layout != torch.strided:
        raise argument_error(name, value.layout, "a dense tensor: to_dense()")


def check_logits(name: str, logits: Tensor) -> None:
    """Raises unless this is a tensor of logits.

    Raises:
        ArgumentError: It is not.
    """
    check_real(name, logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise argument_error(name, f"the shape {tuple(logits.shape)}", "[..., vocabulary] with at least one entry")


def prepare(
    student: Tensor,
    teacher: Tensor,
    divergence: RowDivergence,
    *,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor | None,
    temperature_rule: TemperatureRule,
    weight: float | Tensor | None,
    labels: Tensor | None,
    label_weight: float | Tensor,
    ignore_index: int,
    vocabulary: int | None,
    reduction: Reduction,
    normaliser: float | Tensor | Literal["rows", "weights"] | None,
) -> Rows:
    """Checks the arguments of ``row_divergence``.

    Raises:
        ArgumentError: For the first that is not allowed.
    """
    check_logits("student", student)
    check_logits("teacher", teacher)
    if not isinstance(divergence, RowDivergence):
        raise argument_error("divergence", divergence, "an instance of a RowDivergence, such as ForwardKL()")
    if student.device != teacher.device:
        raise argument_error(
            "teacher", f"a tensor on {teacher.device}", f"one on the student's device, {student.device}"
        )
    shape = tuple(student.shape[:-1])
    if tuple(teacher.shape[:-1]) != shape:
        raise argument_error("teacher", f"rows {tuple(teacher.shape[:-1])}", f"the student's rows, {shape}")
    columns = _vocabulary(student, teacher, vocabulary)
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    # Numbers per row cost nothing: they are float64 where the device has it.
    like = torch.empty(0, dtype=torch.float32 if student.device.type == "mps" else torch.float64, device=student.device)
    student_temperature = _positive("temperature", temperature, shape, like)
    equal = teacher_temperature is None or teacher_temperature is temperature
    teacher_rows = (
        student_temperature
        if teacher_temperature is None
        else _positive("teacher_temperature", teacher_temperature, shape, like)
    )
    check_choice("temperature_rule", temperature_rule, ("none", "squared"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if normaliser is not None and reduction != "mean":
        raise argument_error("normaliser", normaliser, f"None with reduction={reduction!r}; it divides the mean only")
    _check_mixture(divergence, shape)
    check_whole("ignore_index", ignore_index, "a whole number", least=-(2**63), most=2**63 - 1)
    label_scale = _per_row("label_weight", label_weight, shape, like)
    active = None
    if labels is not None:
        labels, active = _labels(labels, shape, ignore_index, columns, student.device)
    elif isinstance(label_weight, Tensor) or label_weight != 0:
        raise argument_error("labels", None, "a tensor of labels where label_weight is not 0")
    scale = like.new_ones(math.prod(shape))
    if weight is not None:
        scale = _per_row("weight", weight, shape, like)
    if active is not None:
        # Not a product: a weight that is not a number must not get into the rows that are ignored.
        scale = torch.where(active, scale, 0.0)
    if reduction == "mean":
        scale = _normalised(scale, active, normaliser)
    label_scale = torch.zeros_like(scale) if labels is None else scale * label_scale
    if temperature_rule == "squared":
        if not equal and not torch.equal(student_temperature, teacher_rows):
            got = "'squared' with different temperatures for student and teacher"
            raise argument_error("temperature_rule", got, "'none', or equal temperatures: T^2 has no meaning otherwise")
        scale = scale * student_temperature.square()
    return Rows(
        teacher=teacher.detach(),
        divergence=divergence,
        vocabulary=columns,
        shape=shape,
        student_temperature=student_temperature,
        teacher_temperature=teacher_rows,
        divergence_scale=scale,
        label_scale=label_scale,
        labels=labels,
        compute_dtype=dtype,
    )


def side_statistics(
    summary: Callable[[Tensor, int, Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor]],
    student: Tensor,
    teacher: Tensor,
    rows: Rows,
) -> list[Tensor]:
    """Log-sum-exps, entropies and arg maxima, student's before teacher's; nothing of the rows that are skipped.

    Args:
        summary: A backend's ``row_summary``.
        student: ``[*shape, columns]``: logits.
        teacher: ``[*shape, columns]``: logits.
        rows: The rest.
    """
    skipped = (rows.divergence_scale == 0) & (rows.label_scale == 0)
    sides = []
    for logits, temperature in ((student, rows.student_temperature), (teacher, rows.teacher_temperature)):
        logsumexp, entropy, argmax, _ = summary(logits, rows.vocabulary, temperature, 0)
        values = [value.masked_fill(skipped, 0).to(rows.compute_dtype) for value in (logsumexp, entropy)]
        sides.append([*values, argmax.masked_fill(skipped, -1)])
    return [value for pair in zip(*sides, strict=True) for value in pair]


def _vocabulary(student: Tensor, teacher: Tensor, vocabulary: int | None) -> int:
    sizes = (student.shape[-1], teacher.shape[-1])
    if vocabulary is None:
        if sizes[0] != sizes[1]:
            raise argument_error(
                "teacher",
                f"{sizes[1]} columns beside the student's {sizes[0]}",
                "equal vocabularies, or vocabulary= with the number of columns, from the first, that both share",
            )
        return sizes[0]
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 1 <= vocabulary <= min(sizes):
        raise argument_error("vocabulary", vocabulary, f"None or an integer from 1 to {min(sizes)}")
    return vocabulary


def _per_row(name: str, value: float | Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """[n] One number for each row."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise argument_error(name, value.dtype, "real numbers")
        if tuple(value.shape) not in ((), shape):
            raise argument_error(
                name, f"the shape {tuple(value.shape)}", f"a number or one for each row, shape {shape}"
            )
        return value.detach().to(like).expand(shape).reshape(-1)
    check_number(name, value, f"a finite number or a tensor with one for each row, shape {shape}")
    return like.new_full((math.prod(shape),), float(value))


def _positive(name: str, value: float | Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    values = _per_row(name, value, shape, like)
    # On a GPU a look at the values would wait for it; there a wrong one shows as a loss that is not a number.
    looked_at = values[:1] if not isinstance(value, Tensor) else values
    if values.device.type == "cpu" and not bool(((looked_at > 0) & looked_at.isfinite()).all()):
        got = value if not isinstance(value, Tensor) else f"values down to {float(values.min())}"
        raise argument_error(name, got, "positive, finite numbers")
    return values


def _labels(
    labels: Tensor, shape: tuple[int, ...], ignore_index: int, columns: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """[n] The labels, and which rows have one that is not to be ignored."""
    allowed = f"an int64 tensor of the rows' shape, {shape}, on {device}"
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise argument_error("labels", labels.dtype if isinstance(labels, Tensor) else type(labels).__name__, allowed)
    if tuple(labels.shape) != shape or labels.device != device:
        raise argument_error("labels", f"the shape {tuple(labels.shape)} on {labels.device}", allowed)
    flat = labels.reshape(-1)
    active = flat != ignore_index
    if device.type == "cpu":
        wrong = flat[active & ((flat < 0) | (flat >= columns))]
        if len(wrong):
            raise argument_error(
                "labels", int(wrong[0]), f"{ignore_index} (ignored) or an entry from 0 to {columns - 1}"
            )
    return flat, active


def _normalised(scale: Tensor, active: Tensor | None, normaliser: float | Tensor | str | None) -> Tensor:
    allowed = "None, 'rows', 'weights' or a positive, finite number"
    if isinstance(normaliser, str) and normaliser not in ("rows", "weights"):
        raise argument_error("normaliser", normaliser, allowed)
    if normaliser is None or (isinstance(normaliser, str) and normaliser == "rows"):
        count = active.sum() if active is not None else scale.new_tensor(len(scale))
        # Without a row that counts the loss is 0, not 0 / 0.
        return scale / count.clamp(min=1)
    if isinstance(normaliser, str):
        # On a GPU a look at the values would wait for it.
        if scale.device.type == "cpu" and bool((scale < 0).any()):
            got = f"weights down to {float(scale.min()):g}"
            raise argument_error("weight", got, "numbers from 0 with normaliser='weights', whose sum may vanish else")
        total = scale.sum()
        return torch.where(scale == 0, 0.0, scale / total)
    if isinstance(normaliser, Tensor):
        if normaliser.dim() or normaliser.is_complex() or normaliser.dtype == torch.bool:
            got = f"{normaliser.dtype} of shape {tuple(normaliser.shape)}"
            raise argument_error("normaliser", got, "a number or a tensor of one without axes")
        divisor = normaliser.detach().to(scale)
    else:
        check_number("normaliser", normaliser, allowed, above=0)
        divisor = scale.new_tensor(float(normaliser))
    if divisor.device.type == "cpu" and not 0 < float(divisor) < math.inf:
        raise argument_error("normaliser", float(divisor), "a positive, finite number")
    return scale / divisor


def _check_mixture(divergence: RowDivergence, shape: tuple[int, ...]) -> None:
    if not isinstance(divergence, Mixture):
        return
    for part, weight in divergence.weights.items():
        if isinstance(weight, Tensor) and tuple(weight.shape) not in ((), shape):
            got = f"the shape {tuple(weight.shape)} for {part}"
            raise argument_error("divergence.weights", got, f"numbers or tensors of the rows' shape, {shape}")
