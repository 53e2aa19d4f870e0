"""Divergences between the outputs of two linear heads, without the logits of all rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from distillrs.checks import check_whole
from distillrs.errors import argument_error
from distillrs.ops import _backends
from distillrs.ops._divergences import Mixture, RowDivergence
from distillrs.ops._row_divergence import refuse_second_derivative
from distillrs.ops._rows import Reduction, Rows, TemperatureRule, check_real, prepare

# Of a product that is rounded to half precision before it is added to the float32 gradient of a weight.
_PRODUCT_ELEMENTS = 2**21

# Bytes of a row beside its logits, which count among the chunk's: temperatures, scales, a label, a loss.
_NUMBERS_OF_ROW = 256

# Gradients of rows that count at least so much are far from the least float32.
_LEAST_SCALE = 2.0**-40


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch does not type it
def linear_row_divergence(
    student: Tensor,
    student_weight: Tensor,
    teacher: Tensor,
    teacher_weight: Tensor,
    divergence: RowDivergence,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    temperature_rule: TemperatureRule = "none",
    weight: float | Tensor | None = None,
    labels: Tensor | None = None,
    label_weight: float | Tensor = 0.0,
    ignore_index: int = -100,
    vocabulary: int | None = None,
    reduction: Reduction = "mean",
    normaliser: float | Tensor | Literal["rows", "weights"] | None = None,
    chunk_bytes: int = 256 << 20,
    backend: _backends.Backend = "auto",
) -> Tensor:
    """:func:`row_divergence` of ``student @ student_weight.T + student_bias`` and the teacher's, some rows at a time.

    The logits of a few rows are made, compared, overwritten with their gradient and multiplied back, so that beside the
    gradients at most ``chunk_bytes`` are held at any number of rows (the reference backend adds its own temporaries).
    Rows that do not count (weight 0, an ignored label) are left out before the heads, the teacher's too. With "mean"
    and "sum" the gradients are formed on the way forward and given away on the way back; with "none", and a second time
    through a retained graph, the logits are made again on the way back. Either is exact under any upstream gradient; a
    second derivative is refused. Gradients of weight and bias are added up in float32 (float64), in half precision at
    the size of the heaviest row, so that nothing underflows before the upstream gradient, which may be a loss scale, is
    there. Another ``chunk_bytes`` changes results by rounding only.

    Args:
        student: ``[..., student features]``: what goes into the student's head; float64, float32, bfloat16 or float16.
        student_weight: ``[student columns, student features]`` of the same dtype.
        teacher: ``[..., teacher features]`` with the same leading axes; no gradient goes there.
        teacher_weight: ``[teacher columns, teacher features]`` of the teacher's dtype; no gradient goes there.
        divergence: Which one; p is the teacher, q the student.
        student_bias: ``[student columns]`` of the student's dtype.
        teacher_bias: ``[teacher columns]`` of the teacher's dtype; no gradient goes there.
        temperature: As in :func:`row_divergence`, and so the following.
        teacher_temperature: Divides the teacher's logits; ``None`` takes the student's.
        temperature_rule: "squared" multiplies each row's divergence by T^2.
        weight: A number for each row, ``[...]``.
        labels: int64 ``[...]``.
        label_weight: Weight of the cross-entropy with ``labels``.
        ignore_index: The label of rows to skip.
        vocabulary: How many columns count, from the first.
        reduction: "mean", "sum" or "none".
        normaliser: What "mean" divides by.
        chunk_bytes: Most bytes for the logits of both sides together, and 256 for each row; at least one row is taken
            at a time.
        backend: Of the divergence: "torch", "rust" or "auto"; the products are torch's.

    Returns:
        The loss in float32 (float64 for float64 inputs): a number, or ``[...]`` with "none".

    Raises:
        ArgumentError: For an argument that is not allowed, or a backend that cannot serve the others.
    """
    _check_head("student", student, student_weight, student_bias)
    _check_head("teacher", teacher, teacher_weight, teacher_bias)
    check_whole("chunk_bytes", chunk_bytes, "a positive integer of 63 bits", least=1, most=2**63 - 1)
    # Stand-ins without memory, so that the same arguments get the same checks.
    likes = [
        side.detach().new_zeros(()).expand(*side.shape[:-1], len(head))
        for side, head in ((student, student_weight), (teacher, teacher_weight))
    ]
    rows = prepare(
        likes[0],
        likes[1],
        divergence,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        temperature_rule=temperature_rule,
        weight=weight,
        labels=labels,
        label_weight=label_weight,
        ignore_index=ignore_index,
        vocabulary=vocabulary,
        reduction=reduction,
        normaliser=normaliser,
    )
    evaluate = _backends.choose(backend, likes[0], rows)
    bytes_of_row = rows.vocabulary * (student.element_size() + teacher.element_size()) + _NUMBERS_OF_ROW
    heads = _Heads(
        rows=rows,
        evaluate=evaluate,
        teacher=teacher.detach().reshape(rows.count, teacher.shape[-1]),
        teacher_weight=teacher_weight.detach()[: rows.vocabulary],
        teacher_bias=None if teacher_bias is None else teacher_bias.detach()[: rows.vocabulary],
        chunk_rows=max(1, chunk_bytes // bytes_of_row),
        per_row=reduction == "none",
    )
    flat = student.reshape(rows.count, student.shape[-1])
    loss: Tensor = _LinearRowDivergence.apply(flat, student_weight, student_bias, heads)
    return loss


def _check_head(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    head = {side: hidden, f"{side}_weight": weight} | ({} if bias is None else {f"{side}_bias": bias})
    for name, value in head.items():
        check_real(name, value)
        if value.dtype != hidden.dtype or value.device != hidden.device:
            got = f"{value.dtype} on {value.device}"
            raise argument_error(name, got, f"the dtype and device of {side}, {hidden.dtype} on {hidden.device}")
    if hidden.dim() == 0:
        raise argument_error(side, "a tensor without axes", "[..., features]")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or not len(weight):
        got = f"the shape {tuple(weight.shape)}"
        raise argument_error(f"{side}_weight", got, f"[columns, {hidden.shape[-1]}], the features of {side}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise argument_error(f"{side}_bias", f"the shape {tuple(bias.shape)}", f"[{len(weight)}], as {side}_weight")


@dataclass(frozen=True, slots=True)
class _Heads:
    """One call with everything but the student.

    Attributes:
        rows: All but the logits.
        evaluate: The backend.
        teacher: ``[n, features]``, detached.
        teacher_weight: ``[vocabulary, features]``, detached.
        teacher_bias: ``[vocabulary]`` or ``None``.
        chunk_rows: How many rows at a time, at most.
        per_row: Whether the result is a loss for each row.
    """

    rows: Rows
    evaluate: _backends.DivergenceRows
    teacher: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    chunk_rows: int
    per_row: bool

    def chunks(self, rows: Rows) -> Iterator[tuple[Tensor | slice, Rows]]:
        """Rows that count, some at a time, and their divergence without a teacher yet."""
        active = ((rows.divergence_scale != 0) | (rows.label_scale != 0)).nonzero()[:, 0]
        # As many chunks as there must be, of one size: the last one would leave memory of the others unused.
        chunks = max(1, -(-len(active) // self.chunk_rows))
        for chosen in torch.split(active, max(1, -(-len(active) // chunks))):
            if not len(chosen):
                continue
            divergence = rows.divergence.of_rows(chosen) if isinstance(rows.divergence, Mixture) else rows.divergence
            part = replace(
                rows,
                divergence=divergence,
                shape=(len(chosen),),
                student_temperature=rows.student_temperature[chosen],
                teacher_temperature=rows.teacher_temperature[chosen],
                divergence_scale=rows.divergence_scale[chosen],
                label_scale=rows.label_scale[chosen],
                labels=None if rows.labels is None else rows.labels[chosen],
            )
            # Neighbours need not be copied.
            first = int(chosen[0])
            together = len(active) == rows.count
            yield (slice(first, first + len(chosen)) if together else chosen), part


@dataclass(slots=True)
class _Gradients:
    """Gradients with respect to the student's side, where they are wanted.

    Attributes:
        hidden: ``[n, features]`` of its dtype.
        weight: ``[columns, features]`` in the precision of sums.
        bias: ``[columns]`` in the precision of sums.
        is_empty: Whether ``weight`` is memory that nothing has been written to: the product of the first rows goes
            there as it is, without zeros to be added to.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    is_empty: bool = True

    def add(self, chosen: Tensor | slice, slope: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Adds those of some rows.

        Args:
            chosen: Which.
            slope: ``[rows, vocabulary]``: gradient with respect to their logits.
            hidden: ``[rows, features]``.
            weight: ``[vocabulary, features]``.
        """
        if self.hidden is not None:
            if isinstance(chosen, slice):
                torch.mm(slope, weight, out=self.hidden[chosen])
            else:
                self.hidden[chosen] = slope @ weight
        if self.bias is not None:
            self.bias[: len(weight)] += slope.sum(0, dtype=self.bias.dtype)
        if self.weight is None:
            return
        total = self.weight[: len(weight)]
        first_rows, self.is_empty = self.is_empty, False
        if first_rows:
            self.weight[len(weight) :].zero_()
        if slope.dtype == total.dtype:
            if first_rows:
                torch.mm(slope.mT, hidden, out=total)
            else:
                total.addmm_(slope.mT, hidden)
            return
        if first_rows:
            total.zero_()
        step = max(1, _PRODUCT_ELEMENTS // max(1, hidden.shape[1]))
        for first in range(0, len(weight), step):
            total[first : first + step] += slope[:, first : first + step].mT @ hidden

    def scale(self, factor: Tensor) -> None:
        """Multiplies all by a number."""
        for value in (self.hidden, self.weight, self.bias):
            if value is not None:
                value.mul_(factor.to(value.device))

    def finish(self) -> _Gradients:
        """Itself, with zeros where there were no rows."""
        if self.weight is not None and self.is_empty:
            self.weight.zero_()
        return self


class _LinearRowDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, weight: Tensor, bias: Tensor | None, heads: _Heads) -> Tensor:
        ctx.heads = heads
        wanted = ctx.needs_input_grad[:3]
        now = any(wanted) and not heads.per_row
        losses, unit, gradients = _run(student, weight, bias, heads, heads.rows, wanted if now else (False,) * 3)
        ctx.made = (unit, gradients) if now else None
        ctx.dtype = student.dtype
        if any(wanted):
            ctx.save_for_backward(student, weight, bias)
        if heads.per_row:
            return losses.reshape(heads.rows.shape)
        return losses.sum(dtype=losses.dtype if losses.device.type == "mps" else torch.float64).to(losses.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        heads: _Heads = ctx.heads
        # Given away scaled in place, because a copy of a head's gradient takes as long as a product: whoever comes back
        # through a retained graph has them made again.
        made, ctx.made = ctx.made, None
        with torch.no_grad():
            if made is None:
                student, weight, bias = ctx.saved_tensors
                rows = heads.rows.scaled(upstream.reshape(-1)) if heads.per_row else heads.rows
                _, *made = _run(student, weight, bias, heads, rows, ctx.needs_input_grad[:3])
            unit, gradients = made
            factor = unit if heads.per_row else unit * upstream.to(unit)
            # On a device the look would wait for it.
            if factor.device.type != "cpu" or factor != 1:
                gradients.scale(factor)
            found = (gradients.hidden, gradients.weight, gradients.bias)
            scaled = [None if value is None else value.to(ctx.dtype) for value in found]
        if torch.is_grad_enabled():
            scaled = [None if value is None else refuse_second_derivative(value) for value in scaled]
        return (*scaled, None)


def _run(
    student: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    heads: _Heads,
    rows: Rows,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor, _Gradients]:
    """[n] Losses; the unit that gradients are in, a number; gradients."""
    unit = _unit(rows, student.dtype)
    wide = rows.compute_dtype
    gradients = _Gradients(
        hidden=torch.zeros_like(student) if wanted[0] else None,
        weight=torch.empty(weight.shape, dtype=wide, device=weight.device) if wanted[1] else None,
        bias=torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if wanted[2] and bias is not None else None,
    )
    losses = torch.zeros(rows.count, dtype=wide, device=student.device)
    head = weight.detach()[: rows.vocabulary]
    offset = None if bias is None else bias.detach()[: rows.vocabulary]
    with torch.autocast(student.device.type, enabled=False):
        memory = [side.new_empty(0) for side in (student, heads.teacher)]
        for chosen, part in heads.chunks(rows.scaled(1 / unit.expand(rows.count))):
            hidden = student.detach()[chosen]
            if not memory[0].numel():
                memory = [side.new_empty(len(hidden), rows.vocabulary) for side in memory]
            logits = _product(hidden, head, offset, memory[0][: len(hidden)])
            other = _product(heads.teacher[chosen], heads.teacher_weight, heads.teacher_bias, memory[1][: len(hidden)])
            slope = logits if any(wanted) else None
            part_losses, _, _ = heads.evaluate(logits, replace(part, teacher=other), slope, False)
            losses[chosen] = part_losses.to(wide)
            if slope is not None:
                gradients.add(chosen, slope, hidden, head)
    return losses * unit.to(wide), unit, gradients.finish()


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(hidden, weight.mT, out=out)
    return torch.addmm(bias, hidden, weight.mT, out=out)


def _unit(rows: Rows, dtype: torch.dtype) -> Tensor:
    """A power of two near the largest scale of a row: products with it round nothing.

    In single precision it is 1 for any scale that leaves room on either side, so that nothing is to be multiplied back.
    """
    largest = torch.zeros((), dtype=rows.divergence_scale.dtype, device=rows.divergence_scale.device)
    for scale in (rows.divergence_scale, rows.label_scale):
        if len(scale):
            largest = torch.maximum(largest, scale.abs().max())
    known = largest.isfinite() & (largest > 0)
    if dtype in (torch.float32, torch.float64):
        known &= (largest < _LEAST_SCALE) | (largest > 1 / _LEAST_SCALE)
    return torch.where(known, torch.exp2(torch.where(known, largest, 1.0).log2().ceil()), 1.0)
