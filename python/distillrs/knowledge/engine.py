"""The objective: terms of stages over one student and named teachers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.checks import check_names, check_text
from distillrs.errors import argument_error, unknown_name_error
from distillrs.frozen import Frozen
from distillrs.knowledge.alignments import Side
from distillrs.knowledge.balance import Balance, LossRatio
from distillrs.knowledge.forms.protocol import begin_step
from distillrs.knowledge.inputs import IGNORED, Inputs, InputsFunction, read_batch
from distillrs.knowledge.rows import Labelled, Shifted, at_step, row_parts
from distillrs.knowledge.stages import Stage, checked_stages, stage_at
from distillrs.knowledge.taps import OneTap, Record, plain_parameters, record
from distillrs.knowledge.teachers import Request, Teacher, ask, named_teachers
from distillrs.knowledge.terms import Term
from distillrs.step import Loss, Step

TURN = "student"


class Objective(nn.Module):
    """Smaller or other models: a sum of terms, each of which matches what the student gives with what a teacher gives.

    ``total = sum_i scale_i(step) term_i``. Every network runs once per call: teachers without a graph and in evaluation
    mode, the student as it is. ``terms`` of the returned loss are the terms before their scales, and ``factor/name``
    where a balance is used; over micro-batches of one step they add up as the total does.

    The objective owns what its parts train (projectors, banks, tables), and neither the student nor frozen teachers,
    which are not among its parameters and not in its state. Frozen teachers follow its ``.to()``.

    With ``step.items`` every term is brought to a global count of items: a term over just the rows that are counted is
    its local sum by ``items``, any other its local mean times the local share of the items. So gradients of
    micro-batches and of ranks add up to those of one batch; relations within a batch remain those of the micro-batch,
    and so do means over rows that a mask leaves. Items are labels that are not ignored, or examples if the batch has
    no class labels.

    Args:
        student: The network to train; a call may override it with the same one wrapped.
        teachers: ``dr.Frozen(module)`` or a teacher, which terms know as "main", or several by name; ``None`` if no
            term needs one.
        terms: What is minimised. Either these or ``stages``.
        stages: Terms one after the other.
        balance: Factors beside the scales; ``None`` for none.
        inputs: Reads a batch of a user's own form; ``None`` reads mappings, pairs, triples and tensors.
        labels: Name of the labels in the batch.
        ids: Name of the examples' ids.
        withheld: Further entries of a mapping that the networks do not get.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Parts that are not allowed or do not fit each other.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Any = None,
        terms: Sequence[Term] | None = None,
        *,
        stages: Sequence[Stage] | None = None,
        balance: Balance | None = None,
        inputs: InputsFunction | None = None,
        labels: str = "labels",
        ids: str = "ids",
        withheld: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(student, nn.Module) or isinstance(student, Frozen):
            raise argument_error("student", type(student).__name__, "a module that is to be trained")
        if (terms is None) == (stages is None):
            raise argument_error("terms", terms, "a list of terms, or stages=[...] instead")
        self.stages = checked_stages(stages if stages is not None else [Stage(terms if terms is not None else ())])
        self.teachers = nn.ModuleDict(named_teachers(teachers))
        if isinstance(balance, LossRatio):
            names = [term.label for term in self._all_terms()]
            if balance.reference not in names:
                raise unknown_name_error("reference", balance.reference, names)
        for name, given in (("balance", balance), ("inputs", inputs)):
            if given is not None and not callable(given):
                raise argument_error(name, given, "None or a function; see the parts of distillrs.knowledge")
        for name, entry in (("labels", labels), ("ids", ids)):
            check_text(name, entry, "the name of an entry of the batch")
        entries: Any = withheld
        is_list = isinstance(entries, Iterable) and not isinstance(entries, str | Tensor)
        withheld = tuple(entries) if is_list else entries
        check_names("withheld", withheld)
        self.balance = balance
        self.inputs = inputs
        self.labels = labels
        self.ids = ids
        self.withheld = (*withheld, *(name for teacher in self._teachers().values() for name in teacher.withheld))
        self.seed = Step(0, seed=seed).seed
        self._shifted = any(isinstance(part, Shifted) for part in self._label_parts())
        # Kept outside the module registry: given, not owned.
        object.__setattr__(self, "_student", student)
        self._stage: int | None = None
        self._given_gradients: dict[str, bool] | None = None
        self._names: dict[Term, str] = {}
        parts: list[nn.Module] = []
        for term in self._all_terms():
            self._names[term] = self._unique(term.label)
            if term.teacher_taps and term.teacher_name not in self.teachers:
                raise unknown_name_error("teacher_name", term.teacher_name, list(self.teachers))
            owned = (term.align, term.divergence, term.target, term.scale, *row_parts(term.rows))
            parts += [
                part for part in owned if isinstance(part, nn.Module) and all(part is not other for other in parts)
            ]
        self.parts = nn.ModuleList({id(part): part for part in parts}.values())

    @property
    def student(self) -> nn.Module:
        """The network that was given."""
        student: nn.Module = object.__getattribute__(self, "_student")
        return student

    def forward(
        self, batch: Any, step: Step | int = 0, *, turn: str | None = None, student: nn.Module | None = None
    ) -> Loss:
        """The loss of a batch at a step.

        Args:
            batch: A mapping, of which the networks get all but labels, ids and what is withheld as named arguments;
                ``(inputs, labels)`` or ``(inputs, labels, ids)``, of which they get the first; or a tensor.
            step: Of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "student".
            student: Takes the place of the one from construction: the same network, wrapped.

        Raises:
            ArgumentError: A batch, a tap or shapes that do not fit; the message names which.
        """
        if turn is not None and (not isinstance(turn, str) or turn != TURN):
            raise argument_error("turn", turn, f"None or {TURN!r}")
        step = Step.of(step, self.seed)
        network = self.student if student is None else student
        if not isinstance(network, nn.Module):
            raise argument_error("student", type(network).__name__, "None or the student, wrapped")
        inputs = self._read(batch)
        number, local = stage_at(self.stages, step)
        self._enter(number, network)
        scales = {id(term): at_step("scale", term.scale, local) for term in self.stages[number].terms}
        terms = [term for term in self.stages[number].terms if scales[id(term)] != 0]
        begin_step(network, step)
        found, answers = self._run(terms, inputs, step, network)
        values = {}
        for term in terms:
            values[self._names[term]] = term.value(
                _side(term.student_taps, found.values),
                _side(term.teacher_taps, answers.get(term.teacher_name, {})),
                inputs,
                step,
                local,
                self.labels,
                step.items if term.counts(self.labels, self._shifted) else None,
            )
        return self._sum(terms, values, scales, found, inputs, step, network)

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "student", steps all groups.

        Raises:
            ArgumentError: No step.
        """
        Step.of(step)
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The student's parameters that require a gradient, as "student", and the objective's own, as "objective".

        With stages the student's are all that some stage trains.
        """
        self._restore(self.student)
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = {TURN: [parameter for parameter in self.student.parameters() if parameter.requires_grad]}
        return groups | ({"objective": own} if own else {})

    def _teachers(self) -> dict[str, Teacher]:
        return {name: each for name, each in self.teachers.items() if isinstance(each, Teacher)}

    def _all_terms(self) -> list[Term]:
        return list({id(term): term for stage in self.stages for term in stage.terms}.values())

    def _unique(self, label: str) -> str:
        taken = set(self._names.values())
        number, name = 2, label
        while name in taken:
            name, number = f"{label}#{number}", number + 1
        return name

    def _run(
        self, terms: list[Term], inputs: Inputs, step: Step, network: nn.Module
    ) -> tuple[Record, dict[str, dict[OneTap, Side]]]:
        """The student's record and the answers of every teacher that a term asks."""
        asked: dict[str, tuple[OneTap, ...]] = {}
        for term in terms:
            if term.teacher_taps:
                asked[term.teacher_name] = asked.get(term.teacher_name, ()) + term.teacher_taps
        teachers = {name: self._teachers()[name] for name in asked}
        is_training = torch.is_grad_enabled()
        if is_training:
            for teacher in self._teachers().values():
                teacher.before(step, network)
        answers = {
            name: ask(teacher, Request(inputs, asked[name], step, network))
            for name, teacher in teachers.items()
            # Before the student, so that their activations do not lie beside its graph.
            if not teacher.from_student
        }
        taps = [tap for term in terms for tap in term.student_taps]
        for name, teacher in teachers.items():
            taps += teacher.student_taps(asked[name])
        found = record(network, taps, inputs, who="student")
        requests = {name: Request(inputs, asked[name], step, network, found) for name in teachers}
        for name, teacher in teachers.items():
            if teacher.from_student:
                answers[name] = ask(teacher, requests[name])
        if is_training:
            for name, teacher in teachers.items():
                teacher.after(requests[name])
        return found, answers

    def _sum(
        self,
        terms: list[Term],
        values: dict[str, Tensor],
        scales: dict[int, float],
        found: Record,
        inputs: Inputs,
        step: Step,
        network: nn.Module,
    ) -> Loss:
        if step.items is not None:
            counted = self._counted(inputs)
            for term in terms:
                if isinstance(term.normaliser, str) and not term.counts(self.labels, self._shifted):
                    value = values[self._names[term]]
                    values[self._names[term]] = value * (counted.to(value) / step.items)
        scaled = {self._names[term]: scales[id(term)] * values[self._names[term]] for term in terms}
        factors = self.balance(scaled, network) if self.balance is not None and scaled else {}
        total: Tensor | None = None
        for name, part in scaled.items():
            part = part * factors[name] if name in factors else part
            total = part if total is None else total + part
        logged = {name: value.detach() for name, value in values.items()}
        for name, factor in factors.items():
            logged[f"factor/{name}"] = torch.as_tensor(factor, device=scaled[name].device).detach()
        if total is None:
            # Of nothing, but with a graph: a trainer may call backward() at every step.
            total = _first_tensor(found.output).flatten()[:0].sum()
        return Loss(total, logged)

    def count_items(self, batch: Any) -> Tensor:
        """The items of a batch: what ``step.items`` counts over all micro-batches and processes.

        Labels that are not ignored, without the first of each row where a term shifts them; examples if the batch has
        no class labels.

        Args:
            batch: As for a call.

        Returns:
            int64 [].
        """
        return self._counted(self._read(batch))

    def _read(self, batch: Any) -> Inputs:
        if self.inputs is None:
            return read_batch(batch, self.labels, self.ids, self.withheld)
        found: Any = self.inputs(batch)
        if not isinstance(found, Inputs):
            raise argument_error("inputs", f"a function that gives {type(found).__name__}", "one that gives Inputs")
        return found

    def _counted(self, inputs: Inputs) -> Tensor:
        labels = inputs.fields.get(self.labels)
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            return torch.tensor(inputs.examples)
        if self._shifted:
            labels = labels[..., 1:]
        counts = torch.ones_like(labels, dtype=torch.bool)
        for mark in {part.ignore_index for part in self._label_parts()} | {IGNORED}:
            counts &= labels != mark
        return counts.sum()

    def _label_parts(self) -> list[Shifted | Labelled]:
        """What the terms take for rows with a label, of the labels that are counted."""
        parts = [part for term in self._all_terms() for part in row_parts(term.rows)]
        return [part for part in parts if isinstance(part, Shifted | Labelled) and part.name == self.labels]

    def _enter(self, number: int, network: nn.Module) -> None:
        if number == self._stage:
            return
        self._restore(network)
        stage = self.stages[number]
        if stage.trainable is not None:
            named = plain_parameters(network)
            # By identity: one that is shared goes by several names, of which one is enough.
            chosen = {id(named[name]) for name in stage.trains(network)}
            self._given_gradients = {name: parameter.requires_grad for name, parameter in named.items()}
            for parameter in named.values():
                parameter.requires_grad_(id(parameter) in chosen)
                if id(parameter) not in chosen:
                    # A gradient of the stage before would be stepped again.
                    parameter.grad = None
        self._stage = number

    def _restore(self, network: nn.Module) -> None:
        """Gives the student's parameters back the flags that they came with."""
        if self._given_gradients is not None:
            for name, parameter in plain_parameters(network).items():
                parameter.requires_grad_(self._given_gradients.get(name, parameter.requires_grad))
        self._given_gradients = None
        self._stage = None


def _side(taps: tuple[OneTap, ...], values: Any) -> Side:
    if not taps:
        return None
    return values[taps[0]] if len(taps) == 1 else tuple(values[tap] for tap in taps)


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for value in output.values() if hasattr(output, "values") else output:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise argument_error(
        "student", type(output).__name__, "a network that returns a tensor, a tuple or a mapping of some"
    )
