"""The torch backend: it says what the others mean.

Plain formulas on a few rows at a time, in float32 (float64 if an input is), on any device. Nothing is differentiated
automatically; the gradient is the closed form of ``distillrs.ops.RowDivergence``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs.ops._divergences import Mixture
from distillrs.ops._rows import DivergenceStatistics, Rows

_ELEMENTS_AT_ONCE = 2**20


def divergence_rows(
    student: Tensor, rows: Rows, gradient: Tensor | None, with_statistics: bool
) -> tuple[Tensor, DivergenceStatistics | None]:
    """The loss of every row; its gradient is written to ``gradient``.

    Args:
        student: ``[n, columns]``, detached.
        rows: The rest.
        gradient: ``[n, columns]`` of the student's dtype, or ``None``. It may be ``student``.
        with_statistics: Whether to give statistics too.

    Returns:
        ``[n]`` and the statistics, also ``[n]``.
    """
    count = len(student)
    teacher = rows.teacher.reshape(count, rows.teacher.shape[-1])
    losses = student.new_zeros(count, dtype=rows.compute_dtype)
    statistics = _empty_statistics(losses) if with_statistics else None
    active = ((rows.divergence_scale != 0) | (rows.label_scale != 0)).nonzero()[:, 0]
    for chosen in torch.split(active, max(1, _ELEMENTS_AT_ONCE // rows.vocabulary)):
        part_gradient = _some_rows(student, teacher, rows, chosen, losses, statistics, gradient is not None)
        if gradient is not None and part_gradient is not None:
            gradient[chosen, : rows.vocabulary] = part_gradient.to(gradient.dtype)
    if gradient is not None:
        gradient[:, rows.vocabulary :] = 0
        skipped = torch.ones(count, dtype=torch.bool, device=student.device)
        skipped[active] = False
        gradient[skipped] = 0
    return losses, statistics


def _some_rows(
    student: Tensor,
    teacher: Tensor,
    rows: Rows,
    chosen: Tensor,
    losses: Tensor,
    statistics: DivergenceStatistics | None,
    with_gradient: bool,
) -> Tensor | None:
    dtype = rows.compute_dtype
    divergence = rows.divergence.of_rows(chosen) if isinstance(rows.divergence, Mixture) else rows.divergence
    logits = student[chosen, : rows.vocabulary].to(dtype)
    temperature = rows.student_temperature[chosen, None].to(dtype)
    teacher_logits = teacher[chosen, : rows.vocabulary].to(dtype)
    teacher_temperature = rows.teacher_temperature[chosen, None].to(dtype)
    log_q, log_p = _log_softmax(logits, temperature), _log_softmax(teacher_logits, teacher_temperature)
    absent = (log_q == -torch.inf) & (log_p == -torch.inf)
    value = divergence.value(log_p, log_q).masked_fill(absent, 0).sum(-1)
    scale, label_scale = rows.divergence_scale[chosen].to(dtype), rows.label_scale[chosen].to(dtype)
    losses[chosen] = torch.where(scale == 0, 0.0, scale * value)
    labels = rows.labels[chosen, None] if rows.labels is not None else None
    log_soft = logits.log_softmax(-1) if labels is not None else None
    labelled = label_scale != 0
    if labels is not None and log_soft is not None:
        labels = labels.where(labelled[:, None], 0)
        losses[chosen] -= torch.where(labelled, label_scale * log_soft.gather(-1, labels)[:, 0], 0.0)
    if statistics is not None:
        _fill(statistics, chosen, value, logits / temperature, teacher_logits / teacher_temperature, log_q, log_p)
    if not with_gradient:
        return None
    derivative = divergence.derivative(log_p, log_q).masked_fill(absent, 0)
    slope = derivative - log_q.exp() * derivative.sum(-1, keepdim=True)
    gradient = torch.where(scale[:, None] == 0, 0.0, scale[:, None] / temperature * slope)
    if labels is not None and log_soft is not None:
        excess = log_soft.exp().scatter_add(-1, labels, -torch.ones_like(labels, dtype=dtype))
        gradient += torch.where(labelled[:, None], label_scale[:, None] * excess, 0.0)
    return gradient


def _log_softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    # The largest is taken off first: a common offset would otherwise cost digits in the division.
    return ((logits - logits.amax(-1, keepdim=True)) / temperature).log_softmax(-1)


def _empty_statistics(like: Tensor) -> DivergenceStatistics:
    zeros = [torch.zeros_like(like) for _ in range(5)]
    places = [torch.full_like(like, -1, dtype=torch.int64) for _ in range(2)]
    return DivergenceStatistics(*zeros, *places)


def _fill(
    statistics: DivergenceStatistics,
    chosen: Tensor,
    value: Tensor,
    student: Tensor,
    teacher: Tensor,
    log_q: Tensor,
    log_p: Tensor,
) -> None:
    statistics.divergence[chosen] = value
    statistics.student_logsumexp[chosen] = student.logsumexp(-1)
    statistics.teacher_logsumexp[chosen] = teacher.logsumexp(-1)
    statistics.student_entropy[chosen] = entropy(log_q)
    statistics.teacher_entropy[chosen] = entropy(log_p)
    statistics.student_argmax[chosen] = student.argmax(-1)
    statistics.teacher_argmax[chosen] = teacher.argmax(-1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of each row in nats.

    Args:
        log_probabilities: ``[rows, vocabulary]``.
    """
    probabilities = log_probabilities.exp()
    return -torch.where(probabilities == 0, 0.0, probabilities * log_probabilities).sum(-1)
