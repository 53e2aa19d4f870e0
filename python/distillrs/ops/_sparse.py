"""Divergences of dense rows of a student from a teacher's top-k."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.ops import _backends, _cuda, _rust, _sparse_rust
from distillrs.ops._chunks import in_chunks
from distillrs.ops._divergences import Mixture, RowDivergence
from distillrs.ops._opaque import opaque
from distillrs.ops._row_divergence import apply
from distillrs.ops._rows import DivergenceStatistics, Reduction, Rows, TemperatureRule, prepare
from distillrs.ops._top_k import TopK


@opaque
def sparse_row_divergence(
    student: Tensor,
    teacher: TopK,
    divergence: RowDivergence,
    *,
    temperature: float = 1.0,
    temperature_rule: TemperatureRule = "none",
    weight: float | Tensor | None = None,
    vocabulary: int | None = None,
    reduction: Reduction = "mean",
    normaliser: float | Tensor | Literal["rows", "weights"] | None = None,
    consume_logits: bool = False,
    backend: _backends.Backend = "auto",
) -> Tensor:
    """The divergence of the student's rows from a teacher of which the top-k and the mass of the rest are known.

    Both distributions are taken over k + 1 events: the k entries, and all others together. By the data processing
    inequality that is a lower bound of the full divergence (for f-divergences), and it is 0 for equal distributions;
    nothing is renormalised, so the student is charged for mass outside the set. With ``h_j`` the derivative by ``log
    Q_j`` of event j, the gradient with respect to a logit is ``(h_j q_v / Q_j - q_v sum h) / T`` for the event j that
    holds v. It is formed on the way forward and exact under any upstream gradient.

    Args:
        student: ``[..., vocabulary]``: logits; float64, float32, bfloat16 or float16, in any layout.
        teacher: Top-k of the same rows. A row without entries (all ids -1) still has its tail.
        divergence: Which one; p is the teacher, q the student.
        temperature: Of both sides; other than 1 it must be one whose log-partition the teacher keeps.
        temperature_rule: "squared" multiplies each row's divergence by T^2.
        weight: A number for each row, ``[...]``; rows of weight 0 are skipped.
        vocabulary: How many columns count, from the first.
        reduction: "mean", "sum" or "none".
        normaliser: What "mean" divides by, as in :func:`row_divergence`.
        consume_logits: Write the gradient over the student's logits; they must not be a leaf.
        backend: "torch" (the reference), "rust" (CPU; float32, bfloat16, float16; built-in divergences), "cuda" (the
            same on a GPU), or "auto".

    Returns:
        The loss in float32 (float64 for float64 logits): a number, or ``[...]`` with "none".

    Raises:
        ArgumentError: For an argument that is not allowed, or a temperature that the teacher cannot serve.
        KernelCompileError: The CUDA backend was named, and its compiler refuses the source.
    """
    if not isinstance(teacher, TopK):
        raise argument_error("teacher", type(teacher).__name__, "an ops.TopK")
    _backends.check(backend)
    tempered = teacher.at(temperature)
    # The student stands in for the teacher's logits, so that the same arguments get the same checks.
    rows = prepare(
        student,
        student,
        divergence,
        temperature=temperature,
        teacher_temperature=None,
        temperature_rule=temperature_rule,
        weight=weight,
        labels=None,
        label_weight=0.0,
        ignore_index=-100,
        vocabulary=vocabulary,
        reduction=reduction,
        normaliser=normaliser,
    )
    if tuple(tempered.ids.shape[:-1]) != rows.shape:
        raise argument_error("teacher", f"rows {tuple(tempered.ids.shape[:-1])}", f"the student's rows, {rows.shape}")
    if tempered.ids.device != student.device:
        raise argument_error("teacher", f"a top-k on {tempered.ids.device}", f"one on {student.device}")
    if student.device.type == "cpu" and tempered.ids.numel():
        low, high = (int(value) for value in tempered.ids.aminmax())
        if low < -1 or high >= rows.vocabulary:
            got = low if low < -1 else high
            raise argument_error("teacher.ids", got, f"-1 (no entry) or an entry from 0 to {rows.vocabulary - 1}")
    sparse = SparseRows(rows, tempered)
    evaluate = _evaluate
    if backend != "torch":
        refusal = _cuda.sparse_refusal(student, sparse)
        if _backends.takes_cuda(backend, student.device, refusal, lambda: _cuda.prepare_sparse(student)):
            evaluate = _cuda.sparse_rows
        elif _backends.takes_rust(backend, _rust.refusal(student, rows)):
            evaluate = _sparse_rust.sparse_rows
    return apply(student, sparse, evaluate, reduction == "none", consume_logits)


@dataclass(frozen=True, slots=True)
class SparseRows:
    """A sparse divergence with everything but the student's logits.

    Attributes:
        rows: All but the teacher.
        top: The teacher, at the temperature.
    """

    rows: Rows
    top: TopK

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes."""
        return self.rows.shape

    def scaled(self, factor: Tensor) -> SparseRows:
        """The same with every row's loss multiplied.

        Args:
            factor: ``[n]``.
        """
        return replace(self, rows=self.rows.scaled(factor))


def _evaluate(
    student: Tensor, sparse: SparseRows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, Tensor, DivergenceStatistics | None]:
    return in_chunks(_some_rows, student, sparse, gradient)


def _some_rows(flat: Tensor, sparse: SparseRows, chosen: Tensor, losses: Tensor, with_gradient: bool) -> Tensor | None:
    rows, top = sparse.rows, sparse.top
    dtype, k = rows.compute_dtype, top.ids.shape[-1]
    divergence = rows.divergence.of_rows(chosen) if isinstance(rows.divergence, Mixture) else rows.divergence
    temperature = rows.student_temperature[chosen, None].to(dtype)
    logits = flat[chosen, : rows.vocabulary].to(dtype)
    log_q = ((logits - logits.amax(-1, keepdim=True)) / temperature).log_softmax(-1)
    ids = top.ids.reshape(rows.count, k)[chosen].long()
    log_probs = top.log_probs.reshape(rows.count, k)[chosen].to(dtype)
    missing = (ids < 0) | (log_probs == -torch.inf)
    entries, outside = split_events(log_q, ids.masked_fill(missing, -1))
    # From the entries themselves: one less the sum of the others would lose a small tail to rounding.
    events_q = torch.cat([entries, outside.logsumexp(-1, keepdim=True)], -1)
    events_p = torch.cat(
        [log_probs.masked_fill(missing, -torch.inf), top.tail_log_mass.reshape(rows.count, 1)[chosen].to(dtype)], -1
    )
    absent = (events_q == -torch.inf) & (events_p == -torch.inf)
    scale = rows.divergence_scale[chosen].to(dtype)
    losses[chosen] = scale * divergence.value(events_p, events_q).masked_fill(absent, 0).sum(-1)
    if not with_gradient:
        return None
    derivative = divergence.derivative(events_p, events_q).masked_fill(absent, 0)
    # The tail's derivative is shared among its entries by their probabilities within it.
    inside = torch.where(outside == -torch.inf, 0.0, (outside - events_q[:, -1:]).exp())
    places = ids.masked_fill(missing, rows.vocabulary)
    slope = torch.nn.functional.pad(inside * derivative[:, -1:], (0, 1)).scatter_add(-1, places, derivative[:, :-1])
    slope = slope[:, :-1] - log_q.exp() * derivative.sum(-1, keepdim=True)
    return scale[:, None] / temperature * slope


def split_events(log_probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of some entries, and all with these left out.

    Args:
        log_probs: ``[rows, vocabulary]``.
        ids: int64 ``[rows, k]``; -1 for no entry.

    Returns:
        ``[rows, k]`` and ``[rows, vocabulary]``, minus infinity where there is none.
    """
    # An absent entry must not touch column 0: a column beyond the last takes what is written for it.
    places = ids.masked_fill(ids < 0, log_probs.shape[-1])
    padded = torch.nn.functional.pad(log_probs, (0, 1), value=-torch.inf)
    return padded.gather(-1, places), padded.scatter(-1, places, -torch.inf)[:, :-1]
