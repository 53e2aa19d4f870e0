"""Bringing a student's and a teacher's tensor to one shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_flag, check_size
from distillrs.errors import argument_error
from distillrs.knowledge.inputs import Inputs
from distillrs.step import Step

Side: TypeAlias = Any
"""A tensor, a tuple of tensors for a term with several taps, or an ``ops.TopK``."""


class Alignment(Protocol):
    """Maps both sides to the same index set; one that is a module has its parameters trained and then discarded."""

    def __call__(self, student: Side, teacher: Side) -> tuple[Side, Side]:
        """Both sides, aligned."""
        ...


class Aligned(NamedTuple):
    """An aligned pair.

    Attributes:
        student: The student's side.
        teacher: The teacher's.
        present: Booleans ``[*rows]``, or of their leading axes: rows that there are at all; ``None`` for all.
    """

    student: Side
    teacher: Side
    present: Tensor | None = None


class BatchAlignment(ABC):
    """An alignment that also reads the batch, and says which rows there are. Subclass it for one of your own."""

    @abstractmethod
    def of_batch(self, student: Side, teacher: Side, inputs: Inputs) -> Aligned:
        """Both sides, aligned.

        Args:
            student: The student's side, with its graph.
            teacher: The teacher's.
            inputs: The batch.
        """

    def __call__(self, student: Side, teacher: Side) -> tuple[Side, Side]:
        """Refused: outside of a term there is no batch to read.

        Raises:
            ArgumentError: Always.
        """
        name = type(self).__name__
        raise argument_error("align", f"{name} called without a batch", f"{name}.of_batch(student, teacher, inputs)")


def aligned(alignment: Alignment, student: Side, teacher: Side, inputs: Inputs) -> Aligned:
    """Both sides through an alignment of either kind.

    Args:
        alignment: The alignment.
        student: The student's side.
        teacher: The teacher's.
        inputs: The batch.

    Raises:
        ArgumentError: It gives something else than both sides.
    """
    if isinstance(alignment, Chain):
        found = Aligned(student, teacher)
        for part in alignment.parts:
            after = aligned(part, found.student, found.teacher, inputs)
            both = [each.present for each in (found, after) if each.present is not None]
            found = after._replace(present=both[0] & both[1] if len(both) == 2 else (both[0] if both else None))
        return found
    if isinstance(alignment, BatchAlignment):
        given: Any = alignment.of_batch(student, teacher, inputs)
        if not isinstance(given, Aligned):
            got = f"a {type(given).__name__} from {type(alignment).__name__}.of_batch"
            raise argument_error("align", got, "one whose of_batch gives an Aligned")
        return given
    pair: Any = alignment(student, teacher)
    if not isinstance(pair, tuple) or len(pair) not in (2, 3):
        got = f"a {type(pair).__name__} from {_name_of(alignment)}"
        raise argument_error("align", got, "a function that gives both sides: (student, teacher)")
    return Aligned(*pair)


def _name_of(alignment: object) -> str:
    return str(getattr(alignment, "__name__", type(alignment).__name__))


def identity(student: Side, teacher: Side) -> tuple[Side, Side]:
    """Both sides as they are."""
    return student, teacher


class Projector(nn.Module):
    """A trained linear map of the student's features to the teacher's width, thrown away after training.

    Drawn from U(-1/sqrt(in), 1/sqrt(in)) by the library's own randomness, so that every rank and every run has the same
    one. Of maps ``[B, C, H, W]`` it maps the channels, as a convolution of size 1 does.

    Args:
        in_features: The student's width.
        out_features: The teacher's.
        bias: Whether to add one.
        axis: The axis of the features; ``None`` is 1 for tensors of four or more axes and the last for others.
        seed: Of the draw.

    Raises:
        ArgumentError: Widths that are not positive.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, axis: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            check_size(name, value, "a positive integer")
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise argument_error("axis", axis, "None or the number of an axis")
        check_flag("bias", bias)
        self.axis = axis
        bound = 1 / math.sqrt(in_features)
        drawn = random.uniform(out_features, in_features + 1, step=Step(0, seed=seed), name="projector")
        drawn = (2 * drawn - 1) * bound
        self.weight = nn.Parameter(drawn[:, :-1].clone())
        self.bias = nn.Parameter(drawn[:, -1].clone()) if bias else None

    def project(self, features: Tensor) -> Tensor:
        """The student's features at the teacher's width.

        Args:
            features: ``[..., in]``, or ``[B, in, ...]`` with the axis 1.

        Raises:
            ArgumentError: They have another width.
        """
        axis = self.axis if self.axis is not None else (1 if features.ndim >= 4 else -1)
        if not -features.ndim <= axis < features.ndim or features.shape[axis] != self.weight.shape[1]:
            allowed = f"{self.weight.shape[1]} features on axis {axis}, as the Projector was made"
            raise argument_error("student", f"shape {tuple(features.shape)}", allowed)
        moved = features.movedim(axis, -1)
        if not torch.is_autocast_enabled(features.device.type):
            moved = moved.to(self.weight.dtype)
        projected: Tensor = nn.functional.linear(moved, self.weight, self.bias)
        return projected.movedim(-1, axis)

    def forward(self, student: Tensor, teacher: Side) -> tuple[Tensor, Side]:
        """The student's side projected, the teacher's as it is."""
        return self.project(student), teacher

    def extra_repr(self) -> str:
        """The widths."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


class Through(nn.Module):
    """Each side through a module of its own: a regressor, an embedding head.

    Args:
        student: For the student's side; ``None`` leaves it.
        teacher: For the teacher's. It is trained too, so a divergence of distances alone would let both collapse: it is
            for contrastive ones.
    """

    def __init__(self, student: nn.Module | None = None, teacher: nn.Module | None = None) -> None:
        super().__init__()
        for name, module in (("student", student), ("teacher", teacher)):
            if module is not None and not isinstance(module, nn.Module):
                raise argument_error(name, type(module).__name__, "None or a module")
        self.student = student
        self.teacher = teacher

    def forward(self, student: Side, teacher: Side) -> tuple[Side, Side]:
        """Both sides through their modules."""
        return (
            student if self.student is None else self.student(student),
            teacher if self.teacher is None else self.teacher(teacher),
        )


class Chain(nn.Module):
    """Alignments one after the other: ``Chain(Pooled(), Projector(16, 32))``.

    Args:
        *parts: The alignments, in order.
    """

    def __init__(self, *parts: Alignment) -> None:
        super().__init__()
        if not parts or not all(callable(part) for part in parts):
            raise argument_error("parts", parts, "at least one alignment")
        self.parts = list(parts)
        self.trained = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def forward(self, student: Side, teacher: Side) -> tuple[Side, Side]:
        """Both sides after all parts."""
        for part in self.parts:
            student, teacher = part(student, teacher)
        return student, teacher


class Pooled:
    """Maps ``[B, C, ...]`` averaged to a common spatial size: the smaller of both sides in each axis, or a given one.

    Args:
        size: Of each spatial axis; ``None`` takes the smaller one, 1 the mean over all places.

    Raises:
        ArgumentError: Sizes that are not positive.
    """

    def __init__(self, size: int | Sequence[int] | None = None) -> None:
        sizes = [size] if isinstance(size, int) else [1] if size is None else size
        is_list = isinstance(sizes, list | tuple) and 1 <= len(sizes) <= 3
        if not is_list or not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in sizes):
            raise argument_error("size", size, "None, a positive integer, or one for each of up to three axes")
        self.size = size

    def __call__(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides at the common size.

        Raises:
            ArgumentError: Sides without spatial axes, or with different numbers of them.
        """
        axes = student.ndim - 2
        if axes not in (1, 2, 3) or teacher.ndim != student.ndim:
            got = f"shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
            raise argument_error("student", got, "maps with one to three spatial axes on both sides")
        if self.size is None:
            size = [min(pair) for pair in zip(student.shape[2:], teacher.shape[2:], strict=True)]
        else:
            size = [self.size] * axes if isinstance(self.size, int) else list(self.size)
            if len(size) != axes:
                raise argument_error("size", self.size, f"one for each of {axes} spatial axes")
        return _pooled(student, size), _pooled(teacher, size)


def _pooled(maps: Tensor, size: list[int]) -> Tensor:
    if list(maps.shape[2:]) == size:
        return maps
    pool: Any = (
        nn.functional.adaptive_avg_pool1d,
        nn.functional.adaptive_avg_pool2d,
        nn.functional.adaptive_avg_pool3d,
    )[len(size) - 1]
    pooled: Tensor = pool(maps, size)
    return pooled


def layer_pairs(
    student_layers: int, teacher_layers: int, how: Literal["uniform", "last", "first"] | list[int] = "uniform"
) -> list[tuple[int, int]]:
    """Which teacher layer each student layer follows, from 0.

    Args:
        student_layers: How many the student has.
        teacher_layers: How many the teacher has, at least as many.
        how: "uniform": student layer i follows teacher layer ``(i + 1) t / s - 1`` rounded down, so the last ones
            belong together (TinyBERT's map); "last" or "first": the teacher's last or first ones; or a list.

    Returns:
        Pairs (student layer, teacher layer).

    Raises:
        ArgumentError: Counts or a map that make no sense.
    """
    for name, count in (("student_layers", student_layers), ("teacher_layers", teacher_layers)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise argument_error(name, count, "a positive number of layers")
    if not 1 <= student_layers <= teacher_layers:
        raise argument_error("student_layers", student_layers, f"a number from 1 to the teacher's, {teacher_layers}")
    if not isinstance(how, str | list):
        raise argument_error("how", type(how).__name__, "'uniform', 'last', 'first' or a list of layers")
    if how == "uniform":
        chosen = [(i + 1) * teacher_layers // student_layers - 1 for i in range(student_layers)]
    elif how == "last":
        chosen = list(range(teacher_layers - student_layers, teacher_layers))
    elif how == "first":
        chosen = list(range(student_layers))
    else:
        chosen = list(how) if isinstance(how, list) else []
        places = range(teacher_layers)
        if len(chosen) != student_layers or not all(type(layer) is int and layer in places for layer in chosen):
            raise argument_error(
                "how", how, f"'uniform', 'last', 'first' or {student_layers} layers below {teacher_layers}"
            )
    return list(enumerate(chosen))
