"""The labels of a synthetic set: fixed classes, or free logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distillrs.checks import check_flag, check_floating, check_number, check_whole, described
from distillrs.errors import argument_error

MOST_CLASSES = 1 << 24


class Labels(nn.Module):
    """What each synthetic example is called. :class:`HardLabels` and :class:`SoftLabels` are the two kinds."""

    classes: int

    def forward(self) -> Tensor:
        """The target of a loss: int64 [N], or probabilities [N, C] with a graph to the logits."""
        raise TypeError(f"{type(self).__name__} is neither HardLabels nor SoftLabels")

    def __len__(self) -> int:
        return len(self.forward())


def check_classes(name: str, y: Tensor, count: int, classes: int | None = None) -> None:
    """Raises unless there is a class number for each example.

    Args:
        name: The argument's, for the message.
        y: int64 [n], from 0.
        count: n, at least 1.
        classes: Number of classes; ``None`` for any.

    Raises:
        ArgumentError: Something else.
    """
    _check_whole_numbers(name, y, f"int64 [{max(count, 1)}], one for each example", count)
    if classes is not None:
        check_whole("classes", classes, f"None or a whole number from 1 to {MOST_CLASSES}", least=1, most=MOST_CLASSES)
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "class numbers from 0" if classes is None else f"class numbers from 0 to {classes - 1}"
        raise argument_error(name, f"{low} to {high}", allowed)


def _check_whole_numbers(name: str, y: object, allowed: str, count: int | None = None) -> None:
    is_dense = isinstance(y, Tensor) and y.layout == torch.strided and not y.is_meta
    if not (is_dense and isinstance(y, Tensor) and y.dtype == torch.int64 and y.ndim == 1 and len(y)):
        raise argument_error(name, described(y), allowed)
    if count is not None and len(y) != count:
        raise argument_error(name, described(y), allowed)


class HardLabels(Labels):
    """One fixed class for each example.

    Args:
        indices: [N] int64 class numbers from 0.
        classes: Number of classes; ``None`` takes the largest class number + 1.

    Raises:
        ArgumentError: Numbers that are no classes.
    """

    indices: Tensor

    def __init__(self, indices: Tensor, classes: int | None = None) -> None:
        super().__init__()
        _check_whole_numbers("indices", indices, "int64 [N], N >= 1")
        if classes is not None:
            allowed = f"None or a whole number from 1 to {MOST_CLASSES}"
            check_whole("classes", classes, allowed, least=1, most=MOST_CLASSES)
        self.classes = int(indices.max()) + 1 if classes is None else int(classes)
        if int(indices.min()) < 0 or int(indices.max()) >= self.classes:
            got = f"{int(indices.min())} to {int(indices.max())}"
            raise argument_error("indices", got, f"class numbers from 0 to {self.classes - 1}")
        self.register_buffer("indices", indices.detach().clone())

    def forward(self) -> Tensor:
        """The class numbers, int64 [N]."""
        return self.indices


class SoftLabels(Labels):
    """Probabilities ``softmax(logits)`` for each example.

    Args:
        logits: [N, C] floating, finite.
        learn: Whether the logits are a parameter that the objective trains.

    Raises:
        ArgumentError: Not such logits.
    """

    logits: Tensor

    def __init__(self, logits: Tensor, learn: bool = True) -> None:
        super().__init__()
        # Torch computes no softmax of numbers of 8 bits.
        allowed = "floating [N, C] of 16 bits or more, N and C >= 1"
        check_floating("logits", logits, allowed, axes=2)
        if logits.itemsize < 2 or logits.numel() == 0:
            raise argument_error("logits", described(logits), allowed)
        check_flag("learn", learn)
        if not bool(torch.isfinite(logits).all()):
            raise argument_error("logits", "a value that is not finite", "finite values")
        self.classes = logits.shape[1]
        self.learn = learn
        values = logits.detach().clone()
        if learn:
            self.logits = nn.Parameter(values)
        else:
            self.register_buffer("logits", values)

    @classmethod
    def from_classes(cls, indices: Tensor, classes: int, *, confidence: float = 0.9, learn: bool = True) -> SoftLabels:
        """Logits that give each example's class the probability ``confidence`` and share the rest evenly.

        Args:
            indices: [N] int64 class numbers.
            classes: C, at least 2.
            confidence: Above 1 / C, below 1.
            learn: See :class:`SoftLabels`.

        Raises:
            ArgumentError: A value that is not allowed.
        """
        check_whole("classes", classes, "a whole number, at least 2", least=2)
        indices = HardLabels(indices, classes).indices
        allowed = f"a probability above 1/{classes} and below 1"
        check_number("confidence", confidence, allowed, above=1 / classes, below=1)
        height = math.log(confidence * (classes - 1) / (1 - confidence))
        logits = torch.zeros(len(indices), classes, device=indices.device)
        logits[torch.arange(len(indices), device=indices.device), indices] = height
        return cls(logits, learn)

    def forward(self) -> Tensor:
        """The probabilities, [N, C]."""
        return self.logits.softmax(1)
