"""Real examples on which a signal is measured, drawn class by class."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_floating
from distillrs.condense.labels import check_classes
from distillrs.condense.signals import Examples
from distillrs.errors import DataError, argument_error
from distillrs.step import Step


class RealExamples:
    """A data set from which each step draws as many examples of every class.

    Args:
        x: [n, ...] In the network's input space, floating.
        y: int64 [n] classes.
        per_class: Examples of each class in a draw; a class with fewer gives all that it has.
        classes: Number of classes; ``None`` takes the largest class number + 1.

    Raises:
        ArgumentError: Arrays that do not fit, or a value that is not allowed.
        DataError: A class without an example.
    """

    def __init__(self, x: Tensor, y: Tensor, *, per_class: int = 256, classes: int | None = None) -> None:
        check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
        check_classes("y", y, len(x), classes)
        if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
            raise argument_error("per_class", per_class, "a positive integer")
        self.classes = int(y.max()) + 1 if classes is None else int(classes)
        self.x, self.y, self.per_class = x, y, per_class
        if self.classes > len(y):
            raise DataError(f"y: {len(y)} examples of {self.classes} classes; allowed is at least one of each")
        self._members = [(y == label).nonzero()[:, 0] for label in range(self.classes)]
        for label, members in enumerate(self._members):
            if not len(members):
                raise DataError(f"y: class {label} has none of the {len(y)} examples; allowed is at least one of each")

    def draw(self, step: Step | int, *, name: str = "real examples") -> Examples:
        """Rows drawn without replacement, class after class: a pure function of (seed, name, step).

        Args:
            step: Step of the run.
            name: Of the draw.
        """
        rows = []
        for label, members in enumerate(self._members):
            count = min(self.per_class, len(members))
            drawn = random.choice(len(members), count, step=step, name=f"{name}/{label}")
            rows.append(members[drawn.to(members.device)])
        chosen = torch.cat(rows)
        return Examples(self.x[chosen.to(self.x.device)], self.y[chosen], self.classes)
