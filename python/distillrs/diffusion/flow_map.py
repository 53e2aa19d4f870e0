"""The objective of flow maps: one map, five residuals, and everything else as a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.diffusion.balance import Balance, MaskNonFinite, Rows
from distillrs.diffusion.checks import check_adapter, is_number
from distillrs.diffusion.conditions import Condition, replace_rows, rows_of, select
from distillrs.diffusion.heads import AverageVelocity, Head
from distillrs.diffusion.metrics import InKinds, Metric, SquaredError
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.diffusion.randomness import Replay
from distillrs.diffusion.residuals import Compared, Diagonal, Eulerian, Problem, Residual
from distillrs.diffusion.sources import AnySource, Averaged, Call, Data, Guided, Self, Source, bound, check_source
from distillrs.diffusion.state_map import StateMap
from distillrs.diffusion.states import Batch, NoisedData, States
from distillrs.errors import argument_error
from distillrs.schedule import PairLaw, Path, Triangle
from distillrs.step import Loss, Step

TURN = "student"


class FlowMap(nn.Module):
    """Trains ``Phi(x, t, r) = A(t, r) x + B(t, r) F(x, t, r)`` to be the map of a flow.

    At each call times are drawn for every row, states are taken at them, and a residual is compared by a metric::

        objective = FlowMap(
            Network(net), path=RectifiedFlow(), source=Guided(Data(), scale=3.0), states=NoisedData(),
            pairs=Triangle(diagonal=0.75), residual=Eulerian(JVP()), balance=AdaptivePower(1.0), condition_dropout=0.1,
        )
        loss = objective(Batch(images, {"label": labels}, {"label": none}), step)

    ``terms`` of the loss: ``loss`` (unweighted), ``weighted``, ``gap`` (mean of ``t - r``), ``masked`` (share of rows
    that :class:`MaskNonFinite` left out), and ``on_diagonal`` and ``off_diagonal`` where two residuals are used.
    Everything that is drawn is a pure function of the step and of a row's global id.

    Args:
        network: ``F`` in its adapter; used, never owned.
        path: The path.
        head: ``A`` and ``B``.
        source: Whose velocity the map follows; ``None`` if no residual asks one.
        states: Where the residual is looked at.
        pairs: Law of the times.
        residual: One of the five, or two with :class:`OnAndOff`.
        metric: Compares prediction and target, row by row.
        balance: Rules, in order.
        condition_dropout: Probability of a row to have the null condition.
        target: What makes the targets of discrete residuals: ``None`` for the present weights, which is what current
            methods do, or the adapter of a moving average, which the trainer updates.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Parts that make no sense together, with the reason.
    """

    def __init__(
        self,
        network: NetworkAdapter,
        *,
        path: Path,
        residual: Residual | None = None,
        source: AnySource | None = None,
        head: Head | None = None,
        states: States | None = None,
        pairs: PairLaw | None = None,
        metric: Metric | InKinds | None = None,
        balance: Balance | Sequence[Balance] = (),
        condition_dropout: float = 0.0,
        target: NetworkAdapter | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # In a tuple: a module that is an attribute would become part of this one's state.
        self._map = (StateMap(network, path, AverageVelocity() if head is None else head),)
        self._target = (target,)
        self.residual = Eulerian() if residual is None else residual
        self._source = (source,)
        self.states = NoisedData() if states is None else states
        self.pairs = Triangle() if pairs is None else pairs
        self.metric = SquaredError() if metric is None else metric
        rules = tuple(balance) if isinstance(balance, Sequence) else (balance,)
        for rule in rules:
            if not isinstance(rule, Balance):
                raise argument_error("balance", rule, "rules of balance")
        self._rules = rules
        self.learned = nn.ModuleList([rule for rule in rules if isinstance(rule, nn.Module)])
        self.condition_dropout = condition_dropout
        self.seed = seed
        self._check()

    @property
    def map(self) -> StateMap:
        """The student's map, for samplers."""
        return self._map[0]

    def forward(
        self, batch: Batch, step: Step | int, *, turn: str | None = None, student: nn.Module | None = None
    ) -> Loss:
        """The loss at a step.

        Args:
            batch: The rows.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "student".
            student: A wrapped network (data parallel, compiled) in place of the one from construction.

        Returns:
            ``total`` is the sum of the rows' weighted losses over ``step.items``, or over the rows.

        Raises:
            ArgumentError: A batch that lacks what the parts need; a network without a forward derivative, by its part.
        """
        if turn not in (None, TURN):
            raise argument_error("turn", turn, f"None or {TURN!r}")
        if not isinstance(batch, Batch):
            raise argument_error("batch", type(batch).__name__, "a diffusion.Batch")
        step = Step.of(step, self.seed)
        count = batch.rows
        times = self.pairs.draw(count, step=step, name="t")
        on, off = self.residual.parts()
        # Times are drawn on the CPU, so the rows are split without waiting for a device.
        diagonal = (times.t == times.r).cpu() if on is not None else None
        problem, call = self._problem(batch, times, step, self.map.replaced(student))
        if on is None or diagonal is None:
            raw, weighted, finite = self._rows(off, problem, call)
            terms: dict[str, Tensor] = {}
        else:
            raw, weighted, finite, terms = self._split(on, off, problem, call, diagonal)
        total = weighted.sum() / (step.items or max(count, 1))
        seen = _seen(finite, count)
        terms |= {
            "loss": raw.detach().sum() / seen,
            "weighted": weighted.detach().sum() / seen,
            "gap": (problem.t - problem.r).sum() / max(count, 1),
        }
        if finite is not None:
            terms["masked"] = (~finite).double().sum() / max(count, 1)
        return Loss(total, terms)

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "student"."""
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The network's parameters under "student", those of learned weights under "balance"."""
        groups = {TURN: [value for value in self.map.network.module.parameters() if value.requires_grad]}
        learned = list(self.parameters())
        return groups | ({"balance": learned} if learned else {})

    def _problem(self, batch: Batch, times: Any, step: Step, student: StateMap) -> tuple[Problem, Call]:
        device = _device(batch)
        end = student.head.end(student.path)
        if end is not None:
            times = times._replace(r=torch.minimum(torch.full_like(times.r, end), times.t))
        drawn = self.states.draw(batch, type(times)(*(_to(time, device) for time in times)), student.path, step)
        r = drawn.r if end is None else torch.minimum(torch.full_like(drawn.r, end), drawn.t)
        middle = drawn.middle if end is None or drawn.middle is None else torch.maximum(drawn.middle, r)
        condition, dropped = self._dropout(batch, step, drawn.x.device)
        replay = Replay(student.network.module, drawn.x.device)
        call = Call(student, replay, drawn.x0, drawn.noise, batch.null_condition, dropped)
        target = self._target[0]
        target_map = student if target is None else StateMap(target, student.path, student.head)
        units = torch.arange(step.first_unit, step.first_unit + batch.rows)
        return (
            Problem(student, target_map, None, replay, drawn.x, drawn.t, r, middle, drawn.end, condition, step, units),
            call,
        )

    def _dropout(self, batch: Batch, step: Step, device: torch.device) -> tuple[Condition, Tensor | None]:
        if not self.condition_dropout:
            return batch.condition, None
        if batch.condition is None or batch.null_condition is None:
            raise argument_error("null_condition", batch.null_condition, "a condition and its null to drop it")
        share = random.uniform(batch.rows, step=step, name="condition_dropout", dtype=torch.float64)
        dropped = (share < self.condition_dropout).to(device)
        return replace_rows(batch.condition, batch.null_condition, dropped), dropped

    def _rows(self, residual: Residual, problem: Problem, call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
        source = residual.source if residual.source is not None else self._source[0]
        score = bound(source, call) if source is not None and residual.needs_source else None
        prediction, target = residual.compare(replace(problem, source=score))
        prediction, target, finite = self._balanced(Compared(prediction, target.detach()))
        if isinstance(self.metric, InKinds):
            raw = self.metric.compare(prediction, target, problem.x, problem.t, problem.map.head, problem.path)
        else:
            raw = self.metric(prediction, target)
        if raw.shape != (len(prediction),):
            raise argument_error(
                "metric", f"a result of shape {tuple(raw.shape)}", f"one number a row, [{len(prediction)}]"
            )
        weighted = raw
        for rule in self._rules:
            weighted = rule.weigh(weighted, Rows(problem.path, problem.t, problem.r, problem.middle))
        if finite is not None:
            weighted = torch.where(finite, weighted, torch.zeros_like(weighted))
            raw = torch.where(finite, raw, torch.zeros_like(raw))
        return raw, weighted, finite

    def _balanced(self, compared: Compared) -> tuple[Tensor, Tensor, Tensor | None]:
        prediction, target = compared
        finite = None
        if not self._rules:
            return prediction, target, finite
        here = prediction.detach()
        tangent = target - here
        if any(isinstance(rule, MaskNonFinite) for rule in self._rules):
            finite = tangent.flatten(1).isfinite().all(1)
            mask = finite.reshape(-1, *(1,) * (tangent.dim() - 1))
            tangent = torch.where(mask, tangent, torch.zeros_like(tangent))
            # A prediction that is not finite would give gradients that are not, even at weight 0.
            prediction = torch.where(mask, prediction, torch.zeros_like(prediction))
            here = prediction.detach()
        changed = tangent
        for rule in self._rules:
            changed = rule.tangent(changed)
        return prediction, target if changed is tangent and finite is None else here + changed, finite

    def _split(
        self, on: Residual, off: Residual, problem: Problem, call: Call, diagonal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
        pieces, terms = [], {}
        for name, residual, chosen in (("on_diagonal", on, diagonal), ("off_diagonal", off, ~diagonal)):
            rows = chosen.nonzero()[:, 0]
            if not len(rows):
                continue
            there = rows.to(problem.x.device)
            piece = self._rows(residual, _rows_of(problem, there, rows), call.rows(there))
            terms[name] = piece[0].detach().sum() / _seen(piece[2], len(rows))
            pieces.append(piece)
        if not pieces:
            return (*self._rows(off, problem, call), terms)
        # In another order than the batch's; only sums are taken of them.
        raws, weighteds, finites = zip(*pieces, strict=True)
        known = [finite for finite in finites if finite is not None]
        return torch.cat(raws), torch.cat(weighteds), torch.cat(known) if known else None, terms

    def _check(self) -> None:
        path, head = self.map.path, self.map.head
        for name, value, kind in (
            ("residual", self.residual, Residual),
            ("states", self.states, States),
            ("pairs", self.pairs, PairLaw),
        ):
            if not isinstance(value, kind):
                raise argument_error(name, value, f"a {kind.__name__}")
        if not isinstance(self.metric, InKinds) and not callable(self.metric):
            raise argument_error("metric", self.metric, "a function of prediction and target, or InKinds(...)")
        if self._target[0] is not None:
            check_adapter("target", self._target[0])
        if not (is_number(self.condition_dropout) and 0 <= self.condition_dropout <= 1):
            raise argument_error("condition_dropout", self.condition_dropout, "a probability")
        for residual in (part for part in self.residual.parts() if part is not None):
            if isinstance(self.metric, InKinds) and not isinstance(residual, Diagonal):
                allowed = f"InKinds with Diagonal() alone: what {type(residual).__name__} compares is of no kind"
                raise argument_error("metric", self.metric, allowed)
            if residual.needs_any_end and head.end(path) is not None:
                allowed = "Eulerian or Endpoint: the map of this head ends at one time and cannot be moved or cut"
                raise argument_error("residual", residual, allowed)
            if residual.needs_end_state and not self.states.may_know_ends:
                raise argument_error("states", self.states, "TeacherPath, or NoisedData with the noise of each example")
            residual.check(path, head)
            if residual.needs_source:
                self._check_source(residual, residual.source if residual.source is not None else self._source[0])

    def _check_source(self, residual: Residual, source: AnySource | None) -> None:
        if source is None:
            raise argument_error("source", None, f"whose velocity {type(residual).__name__} follows")
        check_source("source", source)
        inner = source.score if isinstance(source, Guided) else source
        if isinstance(inner, Data) and not self.states.knows_noise:
            allowed = "a teacher, Self() or Averaged(): these states are not noised data, whose velocity alone is known"
            raise argument_error("source", source, allowed)
        if residual.needs_anywhere and isinstance(source, Source) and not source.anywhere:
            allowed = (
                "a teacher, Self() or Averaged(): this residual asks at states that are no noised examples; along the "
                "example's own velocity every way is the straight chord, and no curvature is learnt"
            )
            raise argument_error("source", source, allowed)
        asks_student = isinstance(inner, (Self, Averaged)) or (isinstance(source, Guided) and isinstance(inner, Data))
        if asks_student and self.map.head.end(self.map.path) is not None:
            raise argument_error("source", source, "another source: the map of this head has no velocity of its own")


def _rows_of(problem: Problem, rows: Tensor, on_cpu: Tensor) -> Problem:
    return replace(
        problem,
        x=problem.x[rows],
        t=problem.t[rows],
        r=problem.r[rows],
        middle=rows_of(problem.middle, rows),
        end=rows_of(problem.end, rows),
        condition=select(problem.condition, rows),
        units=problem.units[on_cpu],
    )


def _seen(finite: Tensor | None, rows: int) -> Tensor | int:
    """How many rows count, at least 1; all of them where none is masked."""
    return max(rows, 1) if finite is None else finite.sum().clamp(min=1)


def _device(batch: Batch) -> torch.device | None:
    for value in (batch.x0, batch.noise, batch.path_states):
        if value is not None:
            return value.device
    return None


def _to(time: Tensor | None, device: torch.device | None) -> Tensor | None:
    return time if time is None or device is None else time.to(device)
