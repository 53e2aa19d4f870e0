"""One divergence for every kind of distribution on either side."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from distillrs.checks import is_number
from distillrs.errors import argument_error
from distillrs.ops import _backends
from distillrs.ops._distributions import Dense, Sampled
from distillrs.ops._divergences import RowDivergence
from distillrs.ops._estimates import Drawer, check_drawn
from distillrs.ops._opaque import opaque
from distillrs.ops._row_divergence import apply, row_divergence
from distillrs.ops._rows import Reduction, Rows, TemperatureRule, check_logits, prepare
from distillrs.ops._sampled import DrawnRows, KnownSlopes, drawn_rows, known_rows
from distillrs.ops._sparse import sparse_row_divergence, split_events
from distillrs.ops._top_k import TopK

Distribution: TypeAlias = Tensor | Dense | TopK | Sampled

_KINDS = "logits, an ops.Dense, an ops.TopK or an ops.Sampled"


@opaque
def divergence(
    student: Distribution,
    teacher: Distribution,
    divergence: RowDivergence,
    *,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    temperature_rule: TemperatureRule = "none",
    weight: float | Tensor | None = None,
    vocabulary: int | None = None,
    reduction: Reduction = "mean",
    normaliser: float | Tensor | Literal["rows", "weights"] | None = None,
    consume_logits: bool = False,
    backend: _backends.Backend = "auto",
) -> Tensor:
    """The divergence of rows of distributions that are known in whole, by their top-k, or by draws.

    ============  ===============================  =========================  =====================================
    student       teacher ``Dense``                teacher ``TopK``           teacher ``Sampled``
    ============  ===============================  =========================  =====================================
    ``Dense``     exact                            over k + 1 events          an estimate from the teacher's draws
    ``TopK``      over k + 1 events                over them, of equal ids    refused
    ``Sampled``   an estimate from the student's   refused                    an estimate from draws that both know
    ============  ===============================  =========================  =====================================

    The first two are :func:`row_divergence` and :func:`sparse_row_divergence`. An estimate is unbiased, its gradient
    too. With m the distribution that drew, it is the mean over the draws of ``d(log p, log q) / m``, after what the
    draws cannot show was taken off at its known price: ``f'(inf) + (d - f'(inf) q) / p`` for draws of the teacher,
    ``f(0) + (d - f(0) p) / q`` for draws of the student, where D is ``sum p f(q / p)``. The derivative with respect to
    ``log q`` is that of ``d / m`` with m held fixed, which for draws of the student is the score-function estimate
    ``(h / q - f'(1)) grad log q``. A divergence whose price is infinite is refused: the reverse KL from draws of the
    teacher, the forward KL from those of the student. Sources: Liese and Vajda (2006) for the prices, Williams (1992)
    for the baseline f'(1).

    Where both sides are ``Sampled``, their ids are the same, and the one that did not draw says so:
    ``Sampled(ids, log_p, drawn=log_q.detach())`` for a teacher asked about the student's draws. With ``drawn`` of a
    third distribution, such as the student before some steps, every divergence is served, by ``d / m``.

    Args:
        student: Logits ``[..., vocabulary]`` or any kind. The gradient goes into its logits or log-probabilities.
        teacher: Logits or any kind, of the same rows; no gradient goes there.
        divergence: Which one; p is the teacher, q the student.
        temperature: Divides the student's logits. A ``TopK`` can serve those whose log-partition it keeps, a
            ``Sampled`` 1 alone.
        teacher_temperature: The same of the teacher; ``None`` takes the student's.
        temperature_rule: "squared" multiplies each row's divergence by T^2; it needs equal temperatures.
        weight: A number for each row, ``[...]``; rows of weight 0 are skipped.
        vocabulary: How many columns of dense logits count, from the first.
        reduction: "mean", "sum" or "none".
        normaliser: What "mean" divides by, as in :func:`row_divergence`.
        consume_logits: Write the gradient over the student's logits; for a dense student alone.
        backend: As in the function that serves the kinds; estimates are torch's.

    Returns:
        The loss in float32 (float64 for float64 inputs): a number, or ``[...]`` with "none".

    Raises:
        ArgumentError: For an argument that is not allowed, kinds that do not go together, or a divergence that the
            draws cannot give.
    """
    student, teacher = _kind("student", student), _kind("teacher", teacher)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "teacher_temperature": teacher_temperature,
        "temperature_rule": temperature_rule,
        "weight": weight,
        "vocabulary": vocabulary,
        "reduction": reduction,
        "normaliser": normaliser,
    }
    if isinstance(student, Dense) and isinstance(teacher, Dense):
        over_logits: dict[str, Any] = {**settings, "consume_logits": consume_logits, "backend": backend}
        dense: Tensor = row_divergence(student.logits, teacher.logits, divergence, **over_logits)
        return dense
    if isinstance(student, Dense) and isinstance(teacher, TopK):
        both = _number("teacher", "TopK", settings)
        other = settings.pop("teacher_temperature")
        if isinstance(other, Tensor) or other not in (None, both):
            raise argument_error(
                "teacher_temperature", teacher_temperature, f"None or the student's, {both}, for a TopK"
            )
        over_logits = {**settings, "consume_logits": consume_logits, "backend": backend}
        sparse: Tensor = sparse_row_divergence(student.logits, teacher, divergence, **over_logits)
        return sparse
    _backends.check(backend)
    if backend not in ("auto", "torch"):
        got = f"{backend!r} with {type(student).__name__} and {type(teacher).__name__}"
        raise argument_error("backend", got, "'auto' or 'torch'")
    if isinstance(student, Dense):
        assert isinstance(teacher, Sampled)
        return _from_draws(student.logits, teacher, divergence, consume_logits, settings)
    if consume_logits:
        raise argument_error("consume_logits", f"True with {type(student).__name__}", "False: there are no logits")
    if isinstance(student, TopK):
        return _of_events(student, teacher, divergence, settings)
    return _of_draws(student, teacher, divergence, settings)


def _from_draws(
    student: Tensor, teacher: Sampled, divergence: RowDivergence, consume: bool, settings: dict[str, Any]
) -> Tensor:
    _as_drawn("teacher", settings)
    drawer: Drawer = "teacher" if teacher.drawn is None else "other"
    # The student stands in for the teacher's logits, so that the same arguments get the same checks.
    rows = prepare(student, student, divergence, **_PLAIN, **{**settings, "teacher_temperature": 1.0})
    check_drawn(divergence, drawer)
    flat = _same_rows("teacher", teacher, rows, student)
    _check_ids("teacher", flat, rows)
    drawn = teacher.log_probs if teacher.drawn is None else teacher.drawn
    problem = DrawnRows(
        rows,
        flat.long(),
        teacher.log_probs.detach().reshape(flat.shape),
        drawn.detach().reshape(flat.shape),
        drawer,
    )
    return apply(student, problem, drawn_rows, settings["reduction"] == "none", consume)


def _of_draws(student: Sampled, teacher: Distribution, divergence: RowDivergence, settings: dict[str, Any]) -> Tensor:
    if isinstance(teacher, TopK):
        got, allowed = (
            "a TopK beside a Sampled student",
            "a Dense, or a Sampled of the same ids: draws may miss the top-k",
        )
        raise argument_error("teacher", got, allowed)
    _as_drawn("student", settings)
    if isinstance(teacher, Dense):
        rows = prepare(_stand_in(student.log_probs, teacher.logits), teacher.logits, divergence, **_PLAIN, **settings)
        drawer: Drawer = "student" if student.drawn is None else "other"
        drawn = student.log_probs if student.drawn is None else student.drawn
        ids = _same_rows("student", student, rows, teacher.logits)
        _check_ids("student", ids, rows)
        log_p = _chosen(teacher.logits, ids.long(), rows)
    else:
        assert isinstance(teacher, Sampled)
        _as_drawn("teacher", settings)
        stand_in = _stand_in(student.log_probs, None)
        settings = {**settings, "vocabulary": None, "teacher_temperature": 1.0}
        rows = prepare(stand_in, stand_in, divergence, **_PLAIN, **settings)
        ids = _same_rows("student", student, rows, student.log_probs)
        if not torch.equal(ids.long(), _same_rows("teacher", teacher, rows, student.log_probs).long()):
            raise argument_error("teacher.ids", "other draws than the student's", "the same ids on both sides")
        drawer, drawn = _who_drew(student, teacher)
        log_p = teacher.log_probs.detach().reshape(ids.shape)
    check_drawn(divergence, drawer)
    log_q = student.log_probs
    known = known_rows(log_q.detach().reshape(ids.shape), log_p, drawn.detach().reshape(ids.shape), drawer, rows)
    return _reduced(log_q, known, rows, settings["reduction"])


def _of_events(student: TopK, teacher: Distribution, divergence: RowDivergence, settings: dict[str, Any]) -> Tensor:
    if isinstance(teacher, Sampled):
        got, allowed = "a Sampled beside a TopK student", "a Dense, or a TopK of the same ids: draws may miss the top-k"
        raise argument_error("teacher", got, allowed)
    temperature = _number("student", "TopK", settings)
    tempered = student.at(temperature)
    logits = teacher.logits if isinstance(teacher, Dense) else None
    stand_in = _stand_in(tempered.log_probs, logits)
    if logits is None:
        settings = {**settings, "vocabulary": None}
    rows = prepare(stand_in, stand_in if logits is None else logits, divergence, **_PLAIN, **settings)
    ids = _same_rows("student", tempered, rows, stand_in)
    present = _present(tempered)
    if logits is not None:
        _check_ids("student", present, rows, least=-1)
        log_p = _events(logits, present.long(), rows)
    else:
        assert isinstance(teacher, TopK)
        other = settings["teacher_temperature"]
        matched = teacher.at(temperature if other is None else _number("teacher", "TopK", {"temperature": other}))
        _same_rows("teacher", matched, rows, stand_in)
        if not torch.equal(present.long(), _present(matched).long()):
            raise argument_error("teacher.ids", "other entries than the student's", "the same ids on both sides")
        log_p = torch.cat([matched.log_probs.reshape(ids.shape), matched.tail_log_mass.reshape(-1, 1)], -1)
    log_q = torch.cat([tempered.log_probs, tempered.tail_log_mass[..., None].to(tempered.log_probs)], -1)
    # What is no entry is in the tail.
    absent = torch.nn.functional.pad(present < 0, (0, 1))
    log_p = log_p.detach().masked_fill(absent, -torch.inf)
    events = log_q.masked_fill(absent.reshape(log_q.shape), -torch.inf)
    known = known_rows(events.detach().reshape(log_p.shape), log_p, None, "other", rows)
    return _reduced(events, known, rows, settings["reduction"])


# What the other kinds have no part in.
_PLAIN: dict[str, Any] = {"labels": None, "label_weight": 0.0, "ignore_index": -100}


def _kind(name: str, side: Distribution) -> Dense | TopK | Sampled:
    if isinstance(side, Tensor):
        check_logits(name, side)
        return Dense(side)
    if not isinstance(side, Dense | TopK | Sampled):
        raise argument_error(name, type(side).__name__, _KINDS)
    return side


def _number(side: str, kind: str, settings: dict[str, Any]) -> float:
    """The temperature of a side that can only serve some."""
    value = settings["temperature"]
    if not is_number(value):
        raise argument_error("temperature", type(value).__name__, f"one number for all rows, as the {side} is a {kind}")
    return float(value)


def _as_drawn(side: str, settings: dict[str, Any]) -> None:
    """Raises unless that side is taken as it was drawn."""
    name = "temperature"
    if side == "teacher" and settings["teacher_temperature"] is not None:
        name = "teacher_temperature"
    value = settings[name]
    if not is_number(value) or value != 1:
        got = "a tensor" if isinstance(value, Tensor) else value
        remedy = " (with another temperature of the student, teacher_temperature=1.0)" if side == "teacher" else ""
        raise argument_error(name, got, f"1 for a {side} that is Sampled: draws keep the temperature they had{remedy}")


def _same_rows(name: str, side: TopK | Sampled, rows: Rows, like: Tensor) -> Tensor:
    """[n, entries] The ids, if they are of these rows."""
    if tuple(side.ids.shape[:-1]) != rows.shape:
        raise argument_error(name, f"rows {tuple(side.ids.shape[:-1])}", f"those of the other side, {rows.shape}")
    if side.ids.device != like.device:
        raise argument_error(name, f"ids on {side.ids.device}", f"ids on the other side's device, {like.device}")
    return side.ids.reshape(rows.count, side.ids.shape[-1])


def _check_ids(name: str, ids: Tensor, rows: Rows, least: int = 0) -> None:
    counted = ids[rows.divergence_scale != 0] if ids.device.type == "cpu" else ids[:0]
    if counted.numel():
        low, high = (int(value) for value in counted.aminmax())
        if low < least or high >= rows.vocabulary:
            got = low if low < least else high
            raise argument_error(f"{name}.ids", got, f"entries from 0 to {rows.vocabulary - 1}")


def _stand_in(log_probs: Tensor, logits: Tensor | None) -> Tensor:
    """Logits without memory of the rows of a side that has none, so that the same arguments get the same checks."""
    columns = 1 if logits is None else logits.shape[-1]
    return log_probs.detach().new_zeros(()).expand(*log_probs.shape[:-1], columns)


def _who_drew(student: Sampled, teacher: Sampled) -> tuple[Drawer, Tensor]:
    if student.drawn is None and teacher.drawn is None:
        got = "two Sampled that both say that they drew the ids"
        allowed = "drawn=, with the other's log_probs, on the side that did not: Sampled(ids, log_p, drawn=log_q)"
        raise argument_error("teacher", got, allowed)
    by_student = student.log_probs if student.drawn is None else student.drawn
    by_teacher = teacher.log_probs if teacher.drawn is None else teacher.drawn
    close = by_student.device.type != "cpu" or torch.allclose(
        by_student.detach().double(), by_teacher.detach().double(), rtol=1e-2, atol=1e-2
    )
    if not close:
        got, allowed = "the two sides name different distributions", "log-probabilities of the one that drew the ids"
        raise argument_error("drawn", got, allowed)
    if student.drawn is None:
        return "student", student.log_probs
    return ("teacher", teacher.log_probs) if teacher.drawn is None else ("other", student.drawn)


def _present(top: TopK) -> Tensor:
    """[n, k] The ids, -1 where there is no entry."""
    return top.ids.masked_fill(top.log_probs == -torch.inf, -1).reshape(-1, top.ids.shape[-1])


def _tempered(logits: Tensor, rows: Rows) -> Tensor:
    """[n, vocabulary] The teacher's logits over its temperature."""
    flat = logits.detach().reshape(rows.count, logits.shape[-1])[:, : rows.vocabulary].to(rows.compute_dtype)
    return (flat - flat.amax(-1, keepdim=True)) / rows.teacher_temperature[:, None].to(flat)


def _chosen(logits: Tensor, ids: Tensor, rows: Rows) -> Tensor:
    """[n, draws] The teacher's log-probabilities of some entries."""
    tempered = _tempered(logits, rows)
    counted = (rows.divergence_scale != 0)[:, None]
    return tempered.gather(-1, torch.where(counted, ids, 0)) - tempered.logsumexp(-1, keepdim=True)


def _events(logits: Tensor, ids: Tensor, rows: Rows) -> Tensor:
    """[n, k + 1] The teacher's log-probabilities of the student's entries, and of the rest."""
    counted = (rows.divergence_scale != 0)[:, None]
    entries, outside = split_events(_tempered(logits, rows).log_softmax(-1), torch.where(counted, ids, -1))
    return torch.cat([entries, outside.logsumexp(-1, keepdim=True)], -1)


def _reduced(log_q: Tensor, known: tuple[Tensor, Tensor], rows: Rows, reduction: Reduction) -> Tensor:
    losses: Tensor = KnownSlopes.apply(log_q, *known)
    losses = losses if reduction == "none" else losses.sum()
    return losses.to(rows.compute_dtype)
