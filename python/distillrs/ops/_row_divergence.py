"""Divergences between rows of logits, with their gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

from distillrs.checks import check_flag
from distillrs.errors import DistillrsError, argument_error
from distillrs.ops import _backends
from distillrs.ops._divergences import RowDivergence
from distillrs.ops._layout import row_layout
from distillrs.ops._opaque import apply as apply_function
from distillrs.ops._opaque import opaque
from distillrs.ops._rows import DivergenceStatistics, Reduction, TemperatureRule, prepare

# Of a temporary in float32 beside a gradient in half precision.
_ELEMENTS_AT_ONCE = 2**22


@overload
def row_divergence(
    student: Tensor,
    teacher: Tensor,
    divergence: RowDivergence,
    *,
    temperature: float | Tensor = ...,
    teacher_temperature: float | Tensor | None = ...,
    temperature_rule: TemperatureRule = ...,
    weight: float | Tensor | None = ...,
    labels: Tensor | None = ...,
    label_weight: float | Tensor = ...,
    ignore_index: int = ...,
    vocabulary: int | None = ...,
    reduction: Reduction = ...,
    normaliser: float | Tensor | Literal["rows", "weights"] | None = ...,
    consume_logits: bool = ...,
    return_statistics: Literal[False] = ...,
    backend: _backends.Backend = ...,
) -> Tensor: ...


@overload
def row_divergence(
    student: Tensor,
    teacher: Tensor,
    divergence: RowDivergence,
    *,
    temperature: float | Tensor = ...,
    teacher_temperature: float | Tensor | None = ...,
    temperature_rule: TemperatureRule = ...,
    weight: float | Tensor | None = ...,
    labels: Tensor | None = ...,
    label_weight: float | Tensor = ...,
    ignore_index: int = ...,
    vocabulary: int | None = ...,
    reduction: Reduction = ...,
    normaliser: float | Tensor | Literal["rows", "weights"] | None = ...,
    consume_logits: bool = ...,
    return_statistics: Literal[True],
    backend: _backends.Backend = ...,
) -> tuple[Tensor, DivergenceStatistics]: ...


# The kernels are opaque to the compiler. An autograd.Function outside of its graphs, not a custom operator, because an
# operator's result may not share memory with its arguments: the gradient formed on the way forward would be copied on
# the way back, and could not take the logits' place.
@opaque
def row_divergence(
    student: Tensor,
    teacher: Tensor,
    divergence: RowDivergence,
    *,
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
    consume_logits: bool = False,
    return_statistics: bool = False,
    backend: _backends.Backend = "auto",
) -> Tensor | tuple[Tensor, DivergenceStatistics]:
    """The divergence of the student's rows from the teacher's, differentiable in the student's logits.

    The loss of row r is ``w (c D(softmax(teacher / T'), softmax(student / T)) + l CE(student, label))`` with the
    cross-entropy at temperature 1 and c = 1 or T^2; all of these are the row's own. Rows whose label is
    ``ignore_index`` and rows of weight 0 are skipped: their logits may hold anything. Arithmetic is in float32 (float64
    for float64 logits), with safe log-sum-exps; not-a-number in a row that counts makes its loss and gradient
    not-a-number. An entry that is minus infinity on both sides does not count.

    With "mean" and "sum" the gradient is formed on the way forward and scaled on the way back; with "none" it is formed
    on the way back, from the logits. Both are exact under any upstream gradient. A second derivative is refused. Under
    ``torch.compile`` the call runs as it is, between compiled parts; ``fullgraph=True`` and transforms of
    ``torch.func`` are refused.

    Args:
        student: ``[..., vocabulary]``: logits; float64, float32, bfloat16 or float16, in any layout.
        teacher: ``[..., vocabulary]``: logits with the same leading axes; no gradient goes there.
        divergence: Which one; p is the teacher, q the student.
        temperature: Divides the student's logits: a number or one for each row, shaped as the leading axes.
        teacher_temperature: Divides the teacher's; ``None`` takes the student's.
        temperature_rule: "squared" multiplies each row's divergence, not its cross-entropy, by T^2, which keeps the
            size of its gradient (Hinton et al., 2015); it needs equal temperatures.
        weight: A number for each row, from 0 where they are the normaliser; ``None`` is 1.
        labels: int64, shaped as the leading axes.
        label_weight: Weight of the cross-entropy with ``labels``, for all rows or each. With 0, labels only say which
            rows are ignored.
        ignore_index: The label of rows to skip.
        vocabulary: How many columns count, from the first; the gradient is 0 beyond. Needed where the two have
            different numbers of columns.
        reduction: "mean" and "sum" give a number, "none" a loss for each row.
        normaliser: What "mean" divides by: the rows that are not ignored ("rows" or ``None``), the sum of their weights
            ("weights"), or a positive, finite number, such as the count over all ranks and accumulated batches.
        consume_logits: Write the gradient over the student's logits, which nobody may use afterwards. They must not be
            a leaf. What an earlier backward pass through the same loss gave for the logits changes with a later one.
        return_statistics: Also give :class:`DivergenceStatistics`.
        backend: "torch" (the reference), "rust" (CPU; float32, bfloat16, float16; built-in divergences), "cuda" (the
            same on a GPU), or "auto".

    Returns:
        The loss in float32 (float64 for float64 logits): a number, or ``[...]`` with "none". If no row counts it is 0,
        with a graph.

    Raises:
        ArgumentError: For an argument that is not allowed, or a backend that cannot serve the others.
        KernelCompileError: The CUDA backend was named, and its compiler refuses the source.
    """
    loss, statistics = _evaluate(
        student,
        teacher,
        divergence,
        consume_logits,
        return_statistics,
        backend,
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
    return loss if statistics is None else (loss, statistics)


def _evaluate(
    student: Tensor,
    teacher: Tensor,
    divergence: RowDivergence,
    consume: bool,
    with_statistics: bool,
    backend: _backends.Backend,
    **arguments: Any,
) -> tuple[Tensor, DivergenceStatistics | None]:
    check_flag("return_statistics", with_statistics)
    rows = prepare(student, teacher, divergence, **arguments)
    chosen = _backends.choose(backend, student, rows)
    call = _Call(rows, chosen, arguments["reduction"] == "none", consume, with_statistics)
    loss = _run(student, call)
    statistics = call.statistics
    if statistics is not None:
        statistics = DivergenceStatistics(*(value.reshape(rows.shape) for value in statistics))
    return loss, statistics


def apply(student: Tensor, rows: Any, evaluate: Callable[..., Any], per_row: bool, consume: bool) -> Tensor:
    """The loss of other rows than those of dense logits, with the same promises on gradients and memory.

    Args:
        student: ``[..., columns]``: logits.
        rows: All the rest; its ``shape`` are the leading axes, its ``scaled(factor)`` multiplies every row's loss.
        evaluate: ``(logits, rows, gradient, with_statistics) -> losses [n], their sum, None``.
        per_row: Whether to return a loss for each row instead of the sum.
        consume: Whether the gradient goes over the logits.
    """
    return _run(student, _Call(rows, evaluate, per_row, consume, False))


def _run(student: Tensor, call: _Call) -> Tensor:
    check_flag("consume_logits", call.consume)
    if call.consume and student.requires_grad and torch.is_grad_enabled() and student.is_leaf:
        raise argument_error("consume_logits", "True with a leaf", "False, or logits that a network computed")
    loss: Tensor = apply_function(_RowDivergence, "student", student, call)
    return loss


class _Call:
    """One call's settings, and the statistics that come back beside the differentiable result."""

    __slots__ = ("backend", "consume", "per_row", "rows", "statistics", "with_statistics")

    def __init__(
        self, rows: Any, backend: Callable[..., Any], per_row: bool, consume: bool, with_statistics: bool
    ) -> None:
        self.rows = rows
        self.backend = backend
        self.per_row = per_row
        self.consume = consume
        self.with_statistics = with_statistics
        self.statistics: DivergenceStatistics | None = None


class _RowDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, call: _Call) -> Tensor:
        rows = call.rows
        ctx.call = call
        logits = _numbered(student.detach())
        gradient = None
        if ctx.needs_input_grad[0] and not call.per_row:
            gradient = _gradient_memory(logits, student, call.consume)
        losses, total, call.statistics = call.backend(logits, rows, gradient, call.with_statistics)
        if gradient is not None:
            if call.consume:
                torch.autograd.graph.increment_version(student)
            ctx.save_for_backward(gradient)
            ctx.applied = 1.0
        elif ctx.needs_input_grad[0]:
            ctx.save_for_backward(student)
        loss: Tensor = losses.reshape(rows.shape) if call.per_row else total
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None]:
        (saved,) = ctx.saved_tensors
        call: _Call = ctx.call
        with torch.no_grad():
            gradient = _from_rows(call, saved, upstream) if call.per_row else _scaled(ctx, saved, upstream)
        if torch.is_grad_enabled():
            # Whoever asked for a graph gets one that says why it ends here.
            gradient = refuse_second_derivative(gradient)
        return gradient, None


def _from_rows(call: _Call, student: Tensor, upstream: Tensor) -> Tensor:
    logits = _numbered(student.detach())
    gradient = _gradient_memory(logits, student, call.consume)
    call.backend(logits, call.rows.scaled(upstream.reshape(-1)), gradient, False)
    if call.consume:
        torch.autograd.graph.increment_version(student)
    return gradient


def _scaled(ctx: Any, gradient: Tensor, upstream: Tensor) -> Tensor:
    if upstream.device.type != "cpu":
        return _scaled_on_device(ctx, gradient, upstream)
    factor = float(upstream)
    if factor == ctx.applied:
        return gradient
    if not ctx.call.consume or factor == 0:
        scaled: Tensor = gradient * (factor / ctx.applied)
        return scaled
    # The logits' memory is ours: no second one is taken. `data` leaves the version alone, for a later pass.
    gradient.data.mul_(factor / ctx.applied)
    ctx.applied = factor
    return gradient


def _scaled_on_device(ctx: Any, gradient: Tensor, upstream: Tensor) -> Tensor:
    """The same without a look at the factor, which would wait for the device.

    After an upstream gradient of 0 consumed logits hold nothing that could be scaled: a later pass through the same
    loss gives not-a-number.
    """
    # Not in half precision: a loss scale of 65536 would be infinite, and one of 1/3 rounded for all entries alike.
    factor = upstream / ctx.applied
    out = gradient.data if ctx.call.consume else torch.empty_like(gradient)
    size = max(1, _ELEMENTS_AT_ONCE * len(gradient) // max(1, gradient.numel()))
    for part, target in zip(torch.split(gradient.data, size), torch.split(out, size), strict=True):
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        target.copy_(wide * factor.to(wide.dtype))
    if ctx.call.consume:
        ctx.applied = upstream
        return gradient
    return out


def _numbered(logits: Tensor) -> Tensor:
    """The logits, copied if their rows cannot be numbered by two strides."""
    return logits if row_layout(logits) is not None else logits.contiguous()


def _gradient_memory(logits: Tensor, student: Tensor, consume: bool) -> Tensor:
    """Where the gradient goes: over the logits if they are to be consumed or a copy, else new."""
    is_copy = logits.data_ptr() != student.data_ptr()
    if (consume or is_copy) and _is_dense(logits):
        return logits
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _is_dense(logits: Tensor) -> bool:
    """Whether no two elements share memory, as they do in an expanded tensor."""
    return not any(stride == 0 and size > 1 for stride, size in zip(logits.stride(), logits.shape, strict=True))


def refuse_second_derivative(gradient: Tensor) -> Tensor:
    """The same values, with a graph that says why it ends here."""
    refusing: Tensor = _Once.apply(gradient.detach().requires_grad_())
    return refusing


class _Once(torch.autograd.Function):
    """The identity, whose derivative is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        raise DistillrsError(
            "row_divergence: its gradient cannot be differentiated again; "
            "for second derivatives write the divergence with torch's log_softmax"
        )
