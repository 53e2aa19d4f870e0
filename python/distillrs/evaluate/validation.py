"""Choices are made on validation examples only, and the type says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Generic, TypeVar

from torch import Tensor

from distillrs.errors import DataError, argument_error
from distillrs.evaluate.data.rows import check_examples, check_labels, rows_among
from distillrs.transforms import Transform

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Validation:
    """Examples on which settings, checkpoints and rates may be chosen.

    Accuracies that are maxima over checkpoints on the test set are the field's common mistake; a function that chooses
    takes this type and nothing else.

    Attributes:
        x: Examples [N, ...], N >= 1, floating.
        y: int64 [N].
        test: Given at construction only: the test examples [M, ...] that none of ``x`` may be among.

    Raises:
        ArgumentError: Arrays that do not fit.
        DataError: Examples that also stand in the test set, by hash.
    """

    x: Tensor
    y: Tensor
    test: InitVar[Tensor | None] = None

    def __post_init__(self, test: Tensor | None) -> None:
        check_examples("x", self.x)
        check_labels("y", self.y, len(self.x))
        if len(self.x) == 0:
            raise argument_error("x", "no example", "at least one")
        if test is not None:
            shared = int(rows_among(self.x, test).sum())
            if shared:
                raise DataError(
                    f"{shared} of {len(self.x)} validation examples also stand in the test set; "
                    "leave them out, or load the data with duplicates='drop'"
                )

    def __len__(self) -> int:
        return len(self.x)

    def through(self, transform: Transform) -> Validation:
        """The same examples as a network sees them."""
        return Validation(transform.forward(self.x), self.y)


@dataclass(frozen=True)
class Choice(Generic[T]):
    """What was chosen, and from what.

    Attributes:
        best: The chosen candidate.
        index: Its number.
        scores: Of all candidates, in their order.
    """

    best: T
    index: int
    scores: tuple[float, ...]


def choose_best(
    candidates: Sequence[T], validation: Validation, measure: Callable[[T, Validation], float]
) -> Choice[T]:
    """The candidate with the highest score on validation examples.

    Args:
        candidates: Networks, rates, checkpoints; at least one.
        validation: What the choice is made on. Test arrays, tuples and bundles are refused.
        measure: Score of a candidate, higher is better; one that is not a number never wins.

    Returns:
        The choice; the first of equals.

    Raises:
        ArgumentError: No candidate, or anything but a :class:`Validation`.
        DataError: No candidate has a score.
    """
    if not isinstance(validation, Validation):
        raise argument_error("validation", type(validation).__name__, "a Validation: choices are made on nothing else")
    if not candidates:
        raise argument_error("candidates", "none", "at least one")
    scores = tuple(float(measure(candidate, validation)) for candidate in candidates)
    if all(math.isnan(score) for score in scores):
        raise DataError(f"none of the {len(scores)} candidates has a score that is a number")
    index = max(range(len(scores)), key=lambda one: -math.inf if math.isnan(scores[one]) else scores[one])
    return Choice(candidates[index], index, scores)
