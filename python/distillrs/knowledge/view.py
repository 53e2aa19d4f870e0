"""What one term knows at one step: handed to row weights, targets, divergences and functions of a user's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distillrs.errors import argument_error
from distillrs.knowledge.inputs import Inputs
from distillrs.ops import RowStatistics, row_statistics
from distillrs.step import Step


@dataclass(slots=True, eq=False)
class View:
    """One term at one step.

    Attributes:
        inputs: The batch.
        step: Of the run: for draws.
        local: Of the stage: for ramps.
        student: The student's aligned tensor, with its graph.
        teacher: The teacher's, or an ``ops.TopK``; ``None`` for a term without a teacher.
        temperature: Of the student: a number or one for each row.
        teacher_temperature: Of the teacher.
        labels: int64 labels of the rows, where the term has some.
        losses: The rows' losses without a graph, for row weights that ask for them.
        present: Rows that the alignment found; ``None`` for all.
    """

    inputs: Inputs
    step: Step
    local: Step
    student: Any
    teacher: Any = None
    temperature: float | Tensor = 1.0
    teacher_temperature: float | Tensor = 1.0
    labels: Tensor | None = None
    losses: Tensor | None = None
    present: Tensor | None = None
    _statistics: dict[str, RowStatistics] = field(default_factory=dict)

    def statistics(self, side: str) -> RowStatistics:
        """Log-sum-exp, entropy and arg max of one side's rows at temperature 1, without a gradient; computed once.

        Args:
            side: "student" or "teacher".

        Raises:
            ArgumentError: Another side, or one that is no tensor of logits.
        """
        if side not in ("student", "teacher"):
            raise argument_error("side", side, "'student' or 'teacher'")
        if side not in self._statistics:
            logits = self.student if side == "student" else self.teacher
            if not isinstance(logits, Tensor):
                raise argument_error(side, type(logits).__name__, "a tensor of logits")
            self._statistics[side] = row_statistics(logits.detach())
        return self._statistics[side]

    def required_labels(self, who: str) -> Tensor:
        """The labels, shaped as the rows.

        Args:
            who: The part that needs them, for the message.

        Raises:
            ArgumentError: The term has none.
        """
        if self.labels is None:
            raise argument_error(
                "batch", f"no labels for {who}", "one with labels: (inputs, labels), or {'labels': ...}"
            )
        return self.labels
