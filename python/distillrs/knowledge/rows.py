"""Which rows of a term count, and how much.

A part is called with the term's :class:`~distillrs.knowledge.view.View`. What it gives as booleans is a mask: rows that
are there at all, which the mean is taken over. What it gives as numbers are weights of those rows. Several parts
multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from distillrs.checks import check_choice, check_flag, check_text, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.inputs import IGNORED
from distillrs.knowledge.numerics import is_number
from distillrs.knowledge.view import View
from distillrs.schedule import Ramp
from distillrs.step import Step


class RowPart(Protocol):
    """A mask or weights of a term's rows; ``needs_losses = True`` on it asks for the rows' losses in the view."""

    def __call__(self, view: View) -> Tensor:
        """Booleans or non-negative numbers, shaped as the rows or as their leading axes."""
        ...


_ENTRY = "the name of an entry of the batch"

Rows: TypeAlias = RowPart | Callable[[View], Tensor] | Sequence[RowPart | Callable[[View], Tensor]] | None


@dataclass(frozen=True, slots=True)
class Shifted:
    """Rows of next-token predictions that have a label: row t counts if the label at t + 1 is not ignored.

    Attributes:
        name: The batch entry of the labels, ``[B, L]``.
        ignore_index: The label of positions that do not count.
    """

    name: str = "labels"
    ignore_index: int = IGNORED

    def __post_init__(self) -> None:
        _check_labels_of(self.name, self.ignore_index)

    def labels(self, view: View) -> Tensor:
        """The label of each row, -100 where it is ignored and for the last.

        Raises:
            ArgumentError: The labels are not ``[..., L]`` with at least two axes.
        """
        labels = view.inputs.tensor(self.name)
        if labels.ndim < 2:
            got = f"shape {tuple(labels.shape)}"
            raise argument_error(f"batch[{self.name!r}]", got, "[batch, tokens] for shifted labels")
        labels = torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], self.ignore_index)], -1)
        return labels.masked_fill(labels == self.ignore_index, IGNORED)

    def __call__(self, view: View) -> Tensor:
        """Booleans ``[B, L]``."""
        return self.labels(view) != IGNORED


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows whose own label is not ignored.

    Attributes:
        name: The batch entry of the labels, shaped as the rows.
        ignore_index: The label of rows that do not count.
    """

    name: str = "labels"
    ignore_index: int = IGNORED

    def __post_init__(self) -> None:
        _check_labels_of(self.name, self.ignore_index)

    def labels(self, view: View) -> Tensor:
        """The label of each row, -100 where it is ignored."""
        labels = view.inputs.tensor(self.name)
        return labels.masked_fill(labels == self.ignore_index, IGNORED)

    def __call__(self, view: View) -> Tensor:
        """Booleans, shaped as the labels."""
        return self.labels(view) != IGNORED


@dataclass(frozen=True, slots=True)
class Mask:
    """Rows that an entry of the batch marks with other than 0.

    Attributes:
        name: The entry, such as "attention_mask".
    """

    name: str = "attention_mask"

    def __post_init__(self) -> None:
        check_text("name", self.name, _ENTRY)

    def __call__(self, view: View) -> Tensor:
        """Booleans, shaped as the entry."""
        return view.inputs.tensor(self.name) != 0


@dataclass(frozen=True, slots=True)
class Where:
    """Rows of which an entry of the batch has a given value: the examples of one task, or from one source.

    Attributes:
        name: The entry, shaped as the rows or as their leading axes.
        value: Of the rows that are there.
    """

    name: str
    value: int

    def __post_init__(self) -> None:
        check_text("name", self.name, _ENTRY)
        if not isinstance(self.value, bool):
            check_whole("value", self.value, "a whole number", least=-(2**63), most=2**63 - 1)

    def __call__(self, view: View) -> Tensor:
        """Booleans, shaped as the entry."""
        return view.inputs.tensor(self.name) == self.value


@dataclass(frozen=True, slots=True)
class EntropyFilter:
    """Weight 1 for rows whose entropy lies between two limits, 0 for others.

    These are weights, not a mask: under the normaliser "rows" what is filtered out still counts in the mean's
    denominator, under "weights" it does not.

    Attributes:
        of: Whose entropy: "student" or "teacher", at temperature 1, in nats.
        low: Least entropy: a number or a ramp.
        high: Largest entropy.
    """

    of: Literal["student", "teacher"] = "teacher"
    low: float | Ramp = 0.0
    high: float | Ramp = float("inf")

    def __post_init__(self) -> None:
        check_choice("of", self.of, ("student", "teacher"))
        for name in ("low", "high"):
            limit: Any = getattr(self, name)
            if not callable(limit) and not is_number(limit) and not (type(limit) is float and math.isinf(limit)):
                raise argument_error(name, limit, "a number of nats, or a ramp")

    def __call__(self, view: View) -> Tensor:
        """Zeros and ones, shaped as the rows."""
        entropy = view.statistics(self.of).entropy
        kept = (entropy >= at_step("low", self.low, view.local)) & (entropy <= at_step("high", self.high, view.local))
        return kept.to(entropy.dtype)


@dataclass(frozen=True, slots=True)
class SelfPaced:
    """Rows count by how well the student already does: weight ``clip(1 - loss / threshold, 0, 1)``, without a gradient.

    Attributes:
        threshold: The loss from which on a row counts nothing: a number above 0 or a ramp.
        hard: Weight 1 below the threshold instead.
    """

    threshold: float | Ramp
    hard: bool = False
    needs_losses = True

    def __post_init__(self) -> None:
        if not callable(self.threshold) and not (is_number(self.threshold) and self.threshold > 0):
            raise argument_error("threshold", self.threshold, "a number above 0, or a ramp")
        check_flag("hard", self.hard)

    def __call__(self, view: View) -> Tensor:
        """Numbers from 0 to 1, shaped as the rows."""
        assert view.losses is not None
        limit = at_step("threshold", self.threshold, view.local)
        if not limit > 0:
            raise argument_error("threshold", limit, "a number above 0 at every step")
        if self.hard:
            return (view.losses < limit).to(view.losses.dtype)
        return (1 - view.losses / limit).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class PerRow:
    """A number for each row, from a function of the term's view: a temperature or a share that the data decide.

    Attributes:
        function: Gives ``[*rows]``; no gradient goes through it.
    """

    function: Callable[[View], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise argument_error("function", self.function, "a function of a View")

    def numbers(self, view: View) -> Tensor:
        """What the function gives, without a gradient: ``[*rows]``.

        Raises:
            ArgumentError: It gives no tensor.
        """
        given: Any = self.function(view)
        if not isinstance(given, Tensor):
            got = f"{given!r} from PerRow({getattr(self.function, '__name__', type(self.function).__name__)})"
            raise argument_error("function", got, "a tensor with a number for each row")
        return given.detach()


def at_step(name: str, value: float | Ramp, step: Step) -> float:
    """A number, or a ramp's value at a step.

    Args:
        name: The argument's, for the message.
        value: The number or the ramp.
        step: Of the stage.

    Raises:
        ArgumentError: The ramp gives something else than a number.
    """
    if not callable(value):
        return float(value)
    given: Any = value(step)
    one = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    if isinstance(one, bool) or not isinstance(one, Real) or math.isnan(one):
        allowed = f"a function of the step that gives a number; this is step {step.index}"
        raise argument_error(name, one, allowed)
    return float(one)


def _check_labels_of(name: str, ignore_index: int) -> None:
    check_text("name", name, _ENTRY)
    check_whole("ignore_index", ignore_index, "a whole number", least=-(2**63), most=2**63 - 1)


@dataclass(frozen=True, slots=True, eq=False)
class RowWeights:
    """What the parts of a term's rows give together.

    Attributes:
        mask: Booleans ``[*rows]``; ``None`` if every row is there.
        weight: Numbers ``[*rows]``, 0 where the mask is false; ``None`` if every row weighs 1.
    """

    mask: Tensor | None
    weight: Tensor | None


def row_parts(rows: Rows) -> tuple[RowPart | Callable[[View], Tensor], ...]:
    """The parts of a term's rows.

    Raises:
        ArgumentError: Something that is no function of a view.
    """
    if rows is None:
        return ()
    parts = tuple(rows) if isinstance(rows, Sequence) else (rows,)
    for part in parts:
        if not callable(part):
            raise argument_error(
                "rows", part, "Shifted(...), Labelled(...), Mask(...), a function of a View, or several"
            )
    return parts


def weigh(parts: Sequence[RowPart | Callable[[View], Tensor]], view: View, shape: tuple[int, ...]) -> RowWeights:
    """Calls the parts and multiplies what they give.

    Args:
        parts: The parts.
        view: The term's view.
        shape: Of the rows.

    Raises:
        ArgumentError: A part's result does not fit the rows.
    """
    mask: Tensor | None = None
    weight: Tensor | None = None
    for part in parts:
        given = part(view)
        name = f"rows: {getattr(part, '__name__', type(part).__name__)}"
        if not isinstance(given, Tensor):
            raise argument_error(name, type(given).__name__, "a tensor")
        value = _fitted(name, given.detach(), shape)
        # On a device the look would wait for it. What is not a number may stand where a mask leaves the row out.
        if value.device.type == "cpu" and value.dtype != torch.bool and (value < 0).any():
            raise argument_error(name, f"a weight of {float(value.min()):g}", "booleans, or numbers from 0")
        if value.dtype == torch.bool:
            mask = value if mask is None else mask & value
        else:
            weight = value if weight is None else weight * value
    if mask is not None:
        # Chosen, not multiplied: a weight that is not a number must not get into a row that is not there.
        like = weight if weight is not None else torch.ones((), device=mask.device)
        weight = torch.where(mask, like, torch.zeros((), dtype=like.dtype, device=like.device))
    return RowWeights(mask, weight)


def _fitted(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(value.shape) != shape[: value.ndim]:
        raise argument_error(name, f"shape {tuple(value.shape)}", f"the rows' shape {shape}, or its leading axes")
    return value.reshape(*value.shape, *(1 for _ in shape[value.ndim :])).expand(shape)
