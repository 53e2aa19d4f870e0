"""Statistics of the gradients that single examples would give a classifier's head, and the subspace they move in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from distillrs.checks import check_floating, check_number, check_whole
from distillrs.condense.signals import wide
from distillrs.errors import argument_error


class Moments(NamedTuple):
    """Mean and variance over examples.

    Attributes:
        mean: [...].
        variance: [...], divided by the number of examples.
    """

    mean: Tensor
    variance: Tensor


def head_gradients(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each example's cross-entropy in the weights and biases of a linear head, with its graph.

    ``(softmax(z) - onehot(y)) (h, 1)'`` for ``z = W h + b``: formed from logits and features, so that it can be
    differentiated once more without a second pass.

    Args:
        logits: [n, C].
        features: [n, D] What goes into the head.
        labels: int64 [n], from 0 to C - 1.

    Returns:
        [n, C, D + 1], the last column of the biases.

    Raises:
        ArgumentError: Shapes or labels that do not fit each other.
    """
    if logits.ndim != 2 or features.ndim != 2 or len(features) != len(logits):
        got = f"shapes {tuple(logits.shape)} and {tuple(features.shape)}"
        raise argument_error("logits", got, "logits [n, C] and features [n, D]")
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        raise argument_error("labels", f"{labels.dtype} {tuple(labels.shape)}", f"int64 [{len(logits)}]")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        got = f"{int(labels.min())} to {int(labels.max())}"
        raise argument_error("labels", got, f"class numbers from 0 to {logits.shape[1] - 1}")
    errors = logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1]).to(logits)
    extended = torch.cat([features, features.new_ones(len(features), 1)], 1)
    return errors[:, :, None] * extended[:, None, :]


def moments(gradients: Tensor) -> Moments:
    """Mean and variance over the first axis.

    Args:
        gradients: [n, ...], n >= 1.

    Returns:
        In 32 bits at least.
    """
    if not len(gradients):
        raise argument_error("gradients", tuple(gradients.shape), "[n, ...], n >= 1")
    # Squares of small gradients vanish in 16 bits.
    variance, mean = torch.var_mean(wide(gradients), dim=0, correction=0)
    return Moments(mean, variance)


class RunningMoments(nn.Module):
    """A moving average of moments, through whose newest share the gradient flows.

    ``m_t = d m_{t-1} + (1 - d) new``, ``m_{t-1}`` a constant, divided by ``1 - d^t``: without that the first values are
    near zero, however large what is averaged.

    Args:
        shape: Of mean and variance.
        decay: d, from 0 to below 1.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], *, decay: float = 0.95) -> None:
        super().__init__()
        check_number("decay", decay, "a number from 0 to below 1", least=0, below=1)
        self.decay = decay
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.zeros(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def ahead(self, new: Moments) -> Moments:
        """The average with new moments in it, with their graph; nothing is kept yet."""
        total = 1 - self.decay ** (int(self.count) + 1)
        return Moments(
            *(self._mixed(old, each) / total for old, each in zip((self.mean, self.variance), new, strict=True))
        )

    @torch.no_grad()
    def keep(self, new: Moments) -> None:
        """Takes new moments in."""
        self.mean.copy_(self._mixed(self.mean, new.mean))
        self.variance.copy_(self._mixed(self.variance, new.variance))
        self.count += 1

    def _mixed(self, old: Tensor, new: Tensor) -> Tensor:
        return self.decay * old.to(new) + (1 - self.decay) * new


class Subspace(nn.Module):
    """The directions in which the last vectors lie: projects onto them, once there are enough.

    A ring holds the last vectors; at every ``every``-th its singular vectors are formed, and as many kept as hold
    ``energy`` of the sum of squares. Before the first time every vector is its own projection.

    Args:
        size: Length of a vector.
        held: Vectors in the ring, fewer than ``size``, so that the directions never are all there are; ``None`` takes
            0.8 of ``size``, at most 300.
        every: Vectors from one decomposition to the next; ``None`` for a whole ring.
        energy: Share of the sum of squares, above 0, at most 1.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    ring: Tensor
    basis: Tensor
    count: Tensor
    rank: Tensor

    def __init__(self, size: int, *, held: int | None = None, every: int | None = None, energy: float = 0.98) -> None:
        super().__init__()
        check_whole("size", size, "a whole number from 2", least=2, most=2**40)
        held = min(max(1, size * 4 // 5), 300) if held is None else held
        check_whole("held", held, f"None or a whole number from 1 to {size - 1}", least=1, most=size - 1)
        every = held if every is None else every
        check_whole("every", every, "None or a positive integer", least=1)
        check_number("energy", energy, "a number above 0, at most 1", above=0, most=1)
        self.every, self.energy = every, energy
        self.register_buffer("ring", torch.zeros(held, size))
        # As wide as it can become, so that a state always has the same shapes; columns beyond the rank are 0.
        self.register_buffer("basis", torch.zeros(size, held))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("rank", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def keep(self, vector: Tensor) -> None:
        """Takes a vector [size] in.

        Raises:
            ArgumentError: For one of another length.
        """
        size = self.ring.shape[1]
        check_floating("vector", vector, f"floating [{size}]", axes=1)
        if len(vector) != size:
            raise argument_error("vector", tuple(vector.shape), f"({size},)")
        held = len(self.ring)
        self.ring[int(self.count) % held] = vector.detach().to(self.ring)
        self.count += 1
        if int(self.count) >= held and not int(self.count) % self.every:
            self._decompose()

    def project(self, vectors: Tensor) -> Tensor:
        """Projections of vectors [..., size], with their graph.

        Raises:
            ArgumentError: For vectors of another length.
        """
        size = self.ring.shape[1]
        check_floating("vectors", vectors, f"floating [..., {size}]", least_axes=1)
        if vectors.shape[-1] != size:
            raise argument_error("vectors", tuple(vectors.shape), f"[..., {size}]")
        if not int(self.rank):
            return vectors
        basis = self.basis.to(vectors)
        projected: Tensor = vectors @ basis @ basis.T
        return projected

    def _decompose(self) -> None:
        directions, values, _ = torch.linalg.svd(self.ring.T.double(), full_matrices=False)
        squares = values.square()
        total = squares.sum()
        if not bool(total > 0):
            return
        rank = min(int((squares.cumsum(0) / total < self.energy).sum()) + 1, len(squares))
        self.basis.zero_()
        self.basis[:, :rank] = directions[:, :rank].to(self.basis)
        self.rank.fill_(rank)
