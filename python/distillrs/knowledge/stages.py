"""What is trained by what, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from distillrs.checks import check_names, check_text
from distillrs.errors import argument_error
from distillrs.knowledge.taps import find_module, plain_parameters
from distillrs.knowledge.terms import Term
from distillrs.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Terms for a number of steps. Ramps in them see the stage's own steps, from 0.

    In ``DistributedDataParallel`` a stage that leaves parameters without a gradient needs
    ``find_unused_parameters=True``.

    Attributes:
        terms: What is minimised.
        steps: Length; ``None``, for the last stage alone, lasts as long as the run.
        trainable: Patterns of parameters' names or paths of modules in the student without its wrappers, outer and
            inner ("layer1", "*.norm.*"); all others require no gradient in this stage. ``None`` leaves the student as
            it was given.
        name: In messages.
    """

    terms: Sequence[Term]
    steps: int | None = None
    trainable: Sequence[str] | None = None
    name: str = "stage"

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Sequence):
            raise argument_error("terms", type(self.terms).__name__, "a list of at least one Term")
        if not self.terms or not all(isinstance(term, Term) for term in self.terms):
            raise argument_error("terms", self.terms, "a list of at least one Term")
        if self.steps is not None and (
            isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1
        ):
            raise argument_error("steps", self.steps, "None or a positive number of steps")
        if self.trainable is not None:
            check_names("trainable", self.trainable, "a sequence of names, or None")
        check_text("name", self.name)

    def trains(self, student: nn.Module) -> set[str]:
        """Names of the parameters that this stage trains, without wrappers.

        Raises:
            UnknownNameError: A pattern that nothing matches.
        """
        names = list(plain_parameters(student))
        chosen: set[str] = set()
        for pattern in self.trainable or ():
            found = {name for name in names if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)}
            if not found:
                find_module(student, pattern, "stage.trainable: student")
                raise argument_error("trainable", pattern, "a pattern that some parameter's name matches")
            chosen |= found
        return chosen


def stage_at(stages: Sequence[Stage], step: Step) -> tuple[int, Step]:
    """The number of the stage that a step is in, and the step within it."""
    begin = 0
    for number, stage in enumerate(stages):
        if stage.steps is None or step.index < begin + stage.steps or number == len(stages) - 1:
            total = stage.steps
            if total is None and step.total is not None:
                total = max(step.total - begin, 1)
            return number, replace(step, index=step.index - begin, total=total)
        begin += stage.steps
    raise argument_error("stages", list(stages), "at least one stage")


def checked_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, of which only the last may have no length.

    Raises:
        ArgumentError: None, something else, or an endless stage before the last.
    """
    if not isinstance(stages, Sequence):
        raise argument_error("stages", type(stages).__name__, "a list of at least one Stage")
    found = tuple(stages)
    if not found or not all(isinstance(stage, Stage) for stage in found):
        raise argument_error("stages", stages, "at least one Stage")
    for stage in found[:-1]:
        if stage.steps is None:
            raise argument_error("steps", f"None in {stage.name!r}", "a length for every stage but the last")
    return found
