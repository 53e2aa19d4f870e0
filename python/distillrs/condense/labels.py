"""The labels of a synthetic set: fixed classes, or free logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distillrs.errors import argument_error


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
    if y.dtype != torch.int64 or y.shape != (count,) or not count:
        raise argument_error(name, f"{y.dtype} {tuple(y.shape)}", f"int64 [{max(count, 1)}], one for each example")
    low, high = int(y.min()), int(y.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "class numbers from 0" if classes is None else f"class numbers from 0 to {classes - 1}"
        raise argument_error(name, f"{low} to {high}", allowed)


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
        if indices.dtype != torch.int64 or indices.ndim != 1 or not len(indices):
            raise argument_error("indices", f"{indices.dtype} {tuple(indices.shape)}", "int64 [N], N >= 1")
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
        if not logits.is_floating_point() or logits.itemsize < 2 or logits.ndim != 2 or logits.numel() == 0:
            got = f"{logits.dtype} {tuple(logits.shape)}"
            raise argument_error("logits", got, "floating [N, C] of 16 bits or more, N and C >= 1")
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
        indices = HardLabels(indices, classes).indices
        if classes < 2:
            raise argument_error("classes", classes, "at least 2")
        if not 1 / classes < confidence < 1:
            raise argument_error("confidence", confidence, f"a probability above 1/{classes} and below 1")
        height = math.log(confidence * (classes - 1) / (1 - confidence))
        logits = torch.zeros(len(indices), classes, device=indices.device)
        logits[torch.arange(len(indices), device=indices.device), indices] = height
        return cls(logits, learn)

    def forward(self) -> Tensor:
        """The probabilities, [N, C]."""
        return self.logits.softmax(1)
