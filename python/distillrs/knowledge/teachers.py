"""Where a term's other side comes from: teachers, each of which answers once per batch, without a graph."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_choice, check_text, numbers
from distillrs.errors import argument_error
from distillrs.frozen import Frozen
from distillrs.knowledge.alignments import Side
from distillrs.knowledge.inputs import Inputs
from distillrs.knowledge.numerics import wide
from distillrs.knowledge.taps import OneTap, Output, Record, record, tap_name
from distillrs.step import Step
from distillrs.trajectory import TeacherCache


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a teacher is asked.

    Attributes:
        inputs: The batch.
        taps: What the terms want of it.
        step: Of the run.
        student: The student as it is now.
        record: What the student gave for this batch, for teachers with ``from_student``.
    """

    inputs: Inputs
    taps: tuple[OneTap, ...]
    step: Step
    student: nn.Module
    record: Record | None = None


class Teacher(nn.Module, ABC):
    """Answers a batch. Subclass it for one of your own: :meth:`answers` is enough.

    It is called under ``torch.no_grad()``. Networks that it holds belong into :class:`distillrs.Frozen`, so that they
    follow the objective's ``.to()`` and stay out of its parameters and state; buffers are saved with the objective.
    """

    from_student: bool = False
    """Whether the student's own tensors are needed, so that it runs first."""

    withheld: tuple[str, ...] = ()
    """Entries of the batch that are for the teacher alone."""

    @abstractmethod
    def answers(self, request: Request) -> dict[OneTap, Side]:
        """A tensor, or an ``ops.TopK``, for each tap."""

    def student_taps(self, taps: tuple[OneTap, ...]) -> tuple[OneTap, ...]:
        """What to take of the student for these taps."""
        return ()

    def before(self, step: Step, student: nn.Module) -> None:
        """Called before the student's forward pass of a training step."""

    def after(self, request: Request) -> None:
        """Called after all answers of a training step, with the student's record."""


class FrozenTeacher(Teacher):
    """A trained network, always in evaluation mode.

    Args:
        network: ``dr.Frozen(module)``.
        inputs: What it is called with, as a function of the student's inputs; ``None`` for the same.

    Raises:
        ArgumentError: A network that is not frozen.
    """

    def __init__(self, network: Frozen, inputs: Callable[[Inputs], Inputs] | None = None) -> None:
        super().__init__()
        if not isinstance(network, Frozen):
            raise argument_error("network", type(network).__name__, "dr.Frozen(module)")
        if inputs is not None and not callable(inputs):
            raise argument_error("inputs", inputs, "None or a function of the student's Inputs, such as Prefixed(...)")
        self.network = network
        self.inputs = inputs

    def answers(self, request: Request) -> dict[OneTap, Side]:
        """See :class:`Teacher`."""
        module = self.network.module
        if any(each.training for each in module.modules()):
            # Somebody's train() on a network that holds it: dropout would blur its answers and move its statistics.
            module.eval()
        inputs = request.inputs if self.inputs is None else self.inputs(request.inputs)
        found = record(module, request.taps, inputs, who="teacher")
        return {tap: value.detach() for tap, value in found.values.items()}


def random_teacher(factory: Callable[[], nn.Module], seed: int = 0) -> FrozenTeacher:
    """A network that was never trained, the same in every run.

    Source: Sarnthein et al., Random Teachers are Good Teachers, ICML 2023.

    Args:
        factory: Makes the network, drawing from torch's global generator, which is left as it was.
        seed: Of the draw.

    Raises:
        ArgumentError: Something that makes no network.
    """
    if not callable(factory) or isinstance(factory, nn.Module):
        raise argument_error("factory", factory, "a function that makes a network")
    with torch.random.fork_rng(devices=[]):
        # The CPU's alone: torch.manual_seed would seed every device, and nothing gives those back.
        torch.default_generator.manual_seed(random.generator_seed(Step(0, seed=seed), "random teacher"))
        network = factory()
    if not isinstance(network, nn.Module):
        raise argument_error("factory", f"a function that gives {type(network).__name__}", "one that gives a module")
    return FrozenTeacher(Frozen(network))


class SelfTeacher(Teacher):
    """The student itself in the same forward pass: a deeper exit, an average over views, without a gradient.

    What the terms tap of this teacher is taken of the student.
    """

    from_student = True

    def student_taps(self, taps: tuple[OneTap, ...]) -> tuple[OneTap, ...]:
        """The same taps."""
        return taps

    def answers(self, request: Request) -> dict[OneTap, Side]:
        """See :class:`Teacher`."""
        assert request.record is not None
        return {tap: request.record.values[tap].detach() for tap in request.taps}


class Ensemble(Teacher):
    """Several teachers as one, for outputs alone.

    The combined distribution is given as log-probabilities at temperature 1; a term's temperature tempers the
    combination, not the members.

    Args:
        members: Frozen networks or teachers.
        how: "probability": the mean of the softmaxes; "logit": the mean of the logits; "vote": the share of members
            whose most likely class it is.
        weights: Of the members, not negative, normalised here; ``None`` for equal ones.

    Raises:
        ArgumentError: No members, or weights that do not fit.
    """

    def __init__(
        self,
        members: Sequence[Teacher | Frozen],
        how: Literal["probability", "logit", "vote"] = "probability",
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(members, Sequence) or not members:
            got = members if isinstance(members, Sequence) else type(members).__name__
            raise argument_error("members", got, "a list of at least one teacher")
        check_choice("how", how, ("probability", "logit", "vote"))
        shares = [1.0] * len(members) if weights is None else [*numbers("weights", weights)]
        if len(shares) != len(members) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise argument_error("weights", weights, f"{len(members)} numbers from 0, not all 0")
        self.members = nn.ModuleList([as_teacher("members", member) for member in members])
        self.how = how
        self.weights = [share / sum(shares) for share in shares]

    @property
    def teachers(self) -> list[Teacher]:
        """The members."""
        return [member for member in self.members if isinstance(member, Teacher)]

    @property
    def from_student(self) -> bool:  # type: ignore[override]  # a property where the others have a constant
        """Whether a member needs the student."""
        return any(member.from_student for member in self.teachers)

    @property
    def withheld(self) -> tuple[str, ...]:  # type: ignore[override]  # a property where the others have a constant
        """Of all members."""
        return tuple(name for member in self.teachers for name in member.withheld)

    def student_taps(self, taps: tuple[OneTap, ...]) -> tuple[OneTap, ...]:
        """Of all members."""
        return tuple(tap for member in self.teachers for tap in member.student_taps(taps))

    def before(self, step: Step, student: nn.Module) -> None:
        """Passed on to the members."""
        for member in self.teachers:
            member.before(step, student)

    def after(self, request: Request) -> None:
        """Passed on to the members."""
        for member in self.teachers:
            member.after(request)

    def answers(self, request: Request) -> dict[OneTap, Side]:
        """See :class:`Teacher`.

        Raises:
            ArgumentError: A tap of a module, or members of which one is a cache.
        """
        for tap in request.taps:
            if not isinstance(tap, Output):
                raise argument_error("teacher", f"the tap {tap_name(tap)!r} of an ensemble", "an Output(...)")
        combined: dict[OneTap, Tensor] = {}
        for member, weight in zip(self.teachers, self.weights, strict=True):
            for tap, logits in member.answers(request).items():
                if not isinstance(logits, Tensor):
                    raise argument_error("members", type(logits).__name__, "teachers that give logits")
                combined[tap] = add_member(combined.get(tap), logits, weight, self.how)
        return {tap: total.log() if self.how == "vote" else total for tap, total in combined.items()}


def add_member(
    total: Tensor | None, logits: Tensor, weight: float, how: Literal["probability", "logit", "vote"]
) -> Tensor:
    """Adds one member to an ensemble's sum of probabilities, kept as its logarithm, or of logits or votes.

    Args:
        total: ``[..., vocabulary]`` so far, or ``None``.
        logits: ``[..., vocabulary]`` of the member.
        weight: Of the member.
        how: What is added up.
    """
    share = wide(logits)
    if how == "probability":
        # In logarithms: a sum of probabilities would lose the rare ones.
        share = share.log_softmax(-1) + (math.log(weight) if weight else -math.inf)
        return share if total is None else torch.logaddexp(total, share)
    if how == "vote":
        share = nn.functional.one_hot(share.argmax(-1), share.shape[-1]).to(share.dtype)
    return weight * share if total is None else total + weight * share


class Cached(Teacher):
    """Answers that were written down before: the most likely tokens and the mass of the rest.

    The term's divergence is then one of ``ops`` over k + 1 events; see
    :func:`distillrs.ops.sparse_row_divergence`. Rows without an answer weigh nothing.

    Args:
        cache: An open cache.
        rows: The batch entry with the cache's row for each row of logits, int64, -1 for none.
    """

    def __init__(self, cache: TeacherCache, rows: str = "teacher_rows") -> None:
        super().__init__()
        if not isinstance(cache, TeacherCache):
            raise argument_error("cache", type(cache).__name__, "a trajectory.TeacherCache")
        check_text("rows", rows, "the name of an entry of the batch")
        self.cache = cache
        self.rows = rows
        self.withheld = (rows,)

    def answers(self, request: Request) -> dict[OneTap, Side]:
        """See :class:`Teacher`.

        Raises:
            ArgumentError: Another tap than ``Output("logits")``.
        """
        for tap in request.taps:
            if tap != Output("logits"):
                raise argument_error("teacher", f"the tap {tap_name(tap)!r} of a cache", "Output('logits')")
        rows = request.inputs.tensor(self.rows)
        top = self.cache.gather(rows, device=rows.device)
        return dict.fromkeys(request.taps, top)


def as_teacher(name: str, teacher: Any) -> Teacher:
    """A teacher, or a frozen network as one.

    Args:
        name: The argument's, for the message.
        teacher: What was given.

    Raises:
        ArgumentError: Neither; a network that is not frozen would be trained or stay in training mode.
    """
    if isinstance(teacher, Frozen):
        return FrozenTeacher(teacher)
    if isinstance(teacher, Teacher):
        return teacher
    raise argument_error(name, type(teacher).__name__, "dr.Frozen(module), or one of knowledge's teachers")


def named_teachers(teachers: Any) -> dict[str, Teacher]:
    """Teachers by name; a single one is "main".

    Raises:
        ArgumentError: Something that is none.
    """
    if teachers is None:
        return {}
    if isinstance(teachers, Mapping):
        for name in teachers:
            # What a ModuleDict cannot hold.
            if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
                allowed = "names that are words without a dot and no attribute of torch.nn.ModuleDict"
                raise argument_error("teachers", name, allowed)
        return {name: as_teacher(f"teachers[{name!r}]", each) for name, each in teachers.items()}
    return {"main": as_teacher("teachers", teachers)}


@torch.no_grad()
def ask(teacher: Teacher, request: Request) -> dict[OneTap, Side]:
    """A teacher's answers, none with a graph.

    Raises:
        ArgumentError: It left a tap without an answer.
    """
    found = teacher.answers(replace(request, taps=tuple(dict.fromkeys(request.taps))))
    for tap in request.taps:
        if tap not in found:
            raise argument_error("teacher", f"no answer for {tap_name(tap)!r}", "one for each tap")
    return {tap: value.detach() if isinstance(value, Tensor) else value for tap, value in found.items()}
