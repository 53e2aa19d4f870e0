"""Teachers from the student's own past: its weights, or its predictions by example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillrs.checks import check_choice, check_size, check_text
from distillrs.errors import argument_error
from distillrs.frozen import Frozen
from distillrs.knowledge.alignments import Side
from distillrs.knowledge.inputs import IGNORED
from distillrs.knowledge.ranks import Ranks, latest
from distillrs.knowledge.taps import OneTap, Output, copied, record, tap_name, unwrapped
from distillrs.knowledge.targets import check_labels
from distillrs.knowledge.teachers import Request, Teacher, add_member
from distillrs.step import Step


class SnapshotRing(Teacher):
    """The student as it was: a ring of its most recent weights, kept every so many steps.

    At the first call of step 0, ``every``, 2 ``every``, ... the weights that the step starts from are kept, so no hook
    after the optimiser is needed, and micro-batches of one step keep them once. Several snapshots are combined as in
    :class:`~distillrs.knowledge.Ensemble`. They run in evaluation mode, with the running statistics of their time, and
    are saved with the objective. In an evaluation before the first training call the student stands in as it is.

    Args:
        count: How many snapshots are kept.
        every: Steps between two.
        how: "probability", "logit" or "vote".

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self, count: int = 1, every: int = 1, how: Literal["probability", "logit", "vote"] = "probability"
    ) -> None:
        super().__init__()
        for name, value in (("count", count), ("every", every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "a positive integer")
        check_choice("how", how, ("probability", "logit", "vote"))
        self.count = count
        self.every = every
        self.how: Literal["probability", "logit", "vote"] = how
        self.taken_at: list[int] = []
        self._states: list[dict[str, Tensor]] = []
        self._skeleton: Frozen | None = None

    def before(self, step: Step, student: nn.Module) -> None:
        """See :class:`~distillrs.knowledge.Teacher`."""
        is_due = step.index % self.every == 0 and step.index not in self.taken_at
        if not is_due and self._states:
            return
        self._states.append({name: value.clone() for name, value in _tensors(student).items()})
        self.taken_at.append(step.index)
        del self._states[: -self.count], self.taken_at[: -self.count]

    def answers(self, request: Request) -> dict[OneTap, Side]:
        """See :class:`~distillrs.knowledge.Teacher`.

        Raises:
            ArgumentError: A tap of a module with more than one snapshot.
        """
        states = self._states or [_tensors(request.student)]
        if self.count > 1:
            for tap in request.taps:
                if not isinstance(tap, Output):
                    raise argument_error("teacher", f"the tap {tap_name(tap)!r} of several snapshots", "an Output(...)")
        if self._skeleton is None:
            with torch.no_grad():
                self._skeleton = Frozen(copied(request.student))
        module = self._skeleton.module
        combined: dict[OneTap, Tensor] = {}
        for state in states:
            module.load_state_dict(state, strict=False)
            found = record(module, request.taps, request.inputs, who="snapshot")
            if len(states) == 1 and self.how != "vote":
                return {tap: value.detach() for tap, value in found.values.items()}
            for tap, logits in found.values.items():
                combined[tap] = add_member(combined.get(tap), logits.detach(), 1 / len(states), self.how)
        return {tap: total.log() if self.how == "vote" else total for tap, total in combined.items()}

    def get_extra_state(self) -> dict[str, Any]:
        """The snapshots and their steps."""
        return {"taken_at": list(self.taken_at), "states": [dict(state) for state in self._states]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores :meth:`get_extra_state`.

        Raises:
            ArgumentError: A state that is not a ring's; nothing is changed then.
        """
        try:
            taken_at = [int(index) for index in state["taken_at"]]
            states = [{str(name): value.clone() for name, value in each.items()} for each in state["states"]]
        except (KeyError, TypeError, ValueError, AttributeError) as failure:
            got = f"a mapping of {sorted(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
            allowed = "what get_extra_state of a SnapshotRing gave: taken_at and states"
            raise argument_error("state", got, allowed) from failure
        self.taken_at, self._states = taken_at, states

    def _apply(self, fn: Any, recurse: bool = True) -> SnapshotRing:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in torch
        self._states = [{name: fn(value) for name, value in state.items()} for state in self._states]
        if self._skeleton is not None:
            self._skeleton._apply(fn, recurse)
        return self


def _tensors(student: nn.Module) -> dict[str, Tensor]:
    """The state of a network without its wrappers, as it is."""
    state = unwrapped(student).state_dict()
    return {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}


class SnapshotTable(Teacher):
    """The student's own prediction on the same example when it last saw it, in a table by stable id.

    An example that was not seen yet has its label, one-hot, or the same share of every class if the label is ignored.
    A training call reads its rows and then writes the student's softmax of this batch, at temperature 1 and in the
    student's own mode: under augmentation that is the prediction on the view of that time. A mixture of examples has
    no row: give such batches another teacher. With a ``process_group`` every process writes the predictions of all,
    so that the tables are one, as in the authors' code; without, each has its own, which fits processes that see the
    same examples in every epoch. The table is saved with the objective; of several processes the trainers' hooks save
    the first one's. Source: Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021.

    Args:
        examples: How many there are; ids are from 0 to that less 1.
        classes: Of the logits.
        ids: The batch entry of the ids.
        labels: The batch entry of the labels.
        process_group: The processes whose predictions are gathered; ``None`` for this one's alone.

    Raises:
        ArgumentError: Sizes that are not positive, or no group.
    """

    table: Tensor
    seen: Tensor

    def __init__(
        self, examples: int, classes: int, *, ids: str = "ids", labels: str = "labels", process_group: Any = None
    ) -> None:
        super().__init__()
        for name, value in (("examples", examples), ("classes", classes)):
            check_size(name, value, "a positive integer")
        for name, entry in (("ids", ids), ("labels", labels)):
            check_text(name, entry, "the name of an entry of the batch")
        self.ids = ids
        self.labels = labels
        self.ranks = Ranks(process_group)
        self.register_buffer("table", torch.zeros(examples, classes))
        self.register_buffer("seen", torch.zeros(examples, dtype=torch.bool))

    def student_taps(self, taps: tuple[OneTap, ...]) -> tuple[OneTap, ...]:
        """The one output whose predictions are kept.

        Raises:
            ArgumentError: Several, or a tap of a module.
        """
        unique = tuple(dict.fromkeys(taps))
        if len(unique) != 1 or not isinstance(unique[0], Output):
            raise argument_error(
                "teacher", [tap_name(tap) for tap in unique], "one Output(...) for a table of predictions"
            )
        return unique

    def answers(self, request: Request) -> dict[OneTap, Side]:
        """See :class:`~distillrs.knowledge.Teacher`."""
        (tap,) = self.student_taps(request.taps)
        ids = self._ids(request)
        labels, past = request.inputs.tensor(self.labels), self.table[ids]
        check_labels(labels, past, f"batch[{self.labels!r}]")
        first = nn.functional.one_hot(labels.clamp(min=0), past.shape[1]).to(past)
        first = first.masked_fill((labels == IGNORED)[:, None], 1 / past.shape[1])
        return {tap: torch.where(self.seen[ids, None], past, first).log()}

    def after(self, request: Request) -> None:
        """Writes the student's predictions."""
        assert request.record is not None
        (tap,) = self.student_taps(request.taps)
        logits = request.record.values[tap].detach()
        ids = self._ids(request)
        if tuple(logits.shape) != (len(ids), self.table.shape[1]):
            raise argument_error("student", f"logits {tuple(logits.shape)}", f"[{len(ids)}, {self.table.shape[1]}]")
        wide = logits if logits.dtype == torch.float64 else logits.float()
        ids, now = self.ranks.gathered(ids, wide.softmax(1).to(self.table))
        last = latest(ids)
        self.table[ids[last]] = now[last]
        self.seen[ids] = True

    def _ids(self, request: Request) -> Tensor:
        ids, examples = request.inputs.tensor(self.ids), len(self.table)
        if ids.dtype != torch.int64 or ids.ndim != 1:
            got = f"{ids.dtype} {tuple(ids.shape)}"
            raise argument_error(f"batch[{self.ids!r}]", got, "int64 [B]: one id for each example, none for mixtures")
        if ids.device.type == "cpu" and len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < examples:
            raise argument_error(
                f"batch[{self.ids!r}]", f"{int(ids.min())} to {int(ids.max())}", f"ids below {examples}"
            )
        return ids
