"""Accuracy of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillrs.errors import argument_error
from distillrs.evaluate.data.rows import check_labels
from distillrs.frozen import evaluating


def predictions(network: nn.Module, x: Tensor, *, batch: int = 512) -> Tensor:
    """The likeliest class of each example.

    Args:
        network: Gives logits [n, C]; it is run in evaluation mode, and its modules' modes are restored.
        x: Examples in the network's input space, [N, ...].
        batch: Examples in one call.

    Returns:
        int64 [N], on the CPU; the first of equal logits.
    """
    if batch < 1:
        raise argument_error("batch", batch, "a positive integer")
    parameter = next(network.parameters(), None)
    device = x.device if parameter is None else parameter.device
    with torch.inference_mode(), evaluating(network):
        found = [network(piece.to(device)).argmax(1) for piece in torch.split(x, batch)]
    return torch.cat(found).cpu()


def accuracy(network: nn.Module, x: Tensor, y: Tensor, *, batch: int = 512) -> float:
    """Share of examples that a network classifies rightly, in [0, 1].

    Args:
        network: Gives logits [n, C].
        x: Examples in the network's input space, [N, ...], N >= 1.
        y: int64 [N].
        batch: Examples in one call.
    """
    _check(x, y)
    return float((predictions(network, x, batch=batch) == y.cpu()).double().mean())


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: how often an example of the class scores above one that is not, ties counted as half.

    Args:
        scores: [N] Numbers, infinite ones among them.
        positive: bool [N]: the examples of the class; both kinds are there.

    Returns:
        A number in [0, 1].

    Raises:
        ArgumentError: Other shapes, scores that are not numbers, or one kind alone.
    """
    if scores.dim() != 1 or positive.shape != scores.shape or positive.dtype != torch.bool:
        got = f"{positive.dtype} {tuple(positive.shape)} beside scores {tuple(scores.shape)}"
        raise argument_error("positive", got, "bool [N] beside scores [N]")
    if bool(scores.isnan().any()):
        raise argument_error("scores", "a value that is not a number", "numbers")
    count = int(positive.sum())
    if not 0 < count < len(scores):
        raise argument_error("positive", f"{count} of {len(scores)}", "examples of both kinds")
    _, places, sizes = torch.unique(scores, return_inverse=True, return_counts=True)
    # Middle ranks, from 1: of equal scores each has the mean of their places (Mann and Whitney, 1947).
    sizes = sizes.double()
    ranks = (sizes.cumsum(0) - (sizes - 1) / 2)[places]
    below = float(ranks[positive].sum()) - count * (count + 1) / 2
    return below / (count * (len(scores) - count))


def class_accuracies(found: Tensor, y: Tensor, classes: int) -> list[float | None]:
    """Share of each class's examples that were predicted rightly.

    Args:
        found: Predictions, int64 [N].
        y: int64 [N].
        classes: Number of classes.

    Returns:
        One number in [0, 1] per class; ``None`` for a class without an example.
    """
    result: list[float | None] = []
    for label in range(classes):
        rows = y == label
        result.append(float((found[rows] == label).double().mean()) if bool(rows.any()) else None)
    return result


def _check(x: Tensor, y: Tensor) -> None:
    check_labels("y", y, len(x))
    if len(x) == 0:
        raise argument_error("x", "no example", "at least one")
