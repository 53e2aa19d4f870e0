"""One step of the inner training, with or without its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.checks import check_floating, check_number
from distillrs.errors import argument_error
from distillrs.training import LossFunction

Network = Callable[[Tensor, Tensor], Tensor]
StepTransform = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Target:
    """A point that the unrolled training should pass.

    Attributes:
        vector: [P] The point.
        normaliser: D, what the squared distance is divided by: a positive number, a scalar tensor, or a tensor [P] that
            divides the squares one by one.
        weight: Factor of this term of the loss.
    """

    vector: Tensor
    normaliser: Tensor | float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_floating("vector", self.vector, "floating [P]", axes=1)
        if isinstance(self.normaliser, Tensor):
            allowed = f"a number above 0, or a tensor without axes or of shape {tuple(self.vector.shape)}"
            if self.normaliser.ndim and self.normaliser.shape != self.vector.shape:
                raise argument_error("normaliser", tuple(self.normaliser.shape), allowed)
            check_floating("normaliser", self.normaliser, allowed)
        else:
            check_number("normaliser", self.normaliser, "a number above 0, or a tensor", above=0)
        check_number("weight", self.weight, "a finite number")

    def distance(self, theta: Tensor) -> Tensor:
        """``|theta - vector|^2 / D``, without the weight."""
        squares = (theta - self.vector).square()
        if isinstance(self.normaliser, Tensor) and self.normaliser.ndim:
            return (squares / self.normaliser).sum()
        return squares.sum() / (self.normaliser if isinstance(self.normaliser, Tensor) else float(self.normaliser))


@dataclass(frozen=True, slots=True)
class State:
    """Where the inner training stands; also the derivatives of something in that.

    Attributes:
        theta: [P] Parameters.
        velocity: [P], or ``None`` before the first step and without momentum.
    """

    theta: Tensor
    velocity: Tensor | None = None

    def leaf(self, requires_grad: bool) -> State:
        """The same values, cut off from their graph."""
        velocity = None if self.velocity is None else self.velocity.detach().requires_grad_(requires_grad)
        return State(self.theta.detach().requires_grad_(requires_grad), velocity)


@dataclass(frozen=True, slots=True)
class InnerTraining:
    """The steps of an unrolled training: see :mod:`distillrs.condense.unroll` for the equations.

    Attributes:
        network: ``network(vector [P], inputs [n, ...]) -> logits``.
        images: [N, ...]
        labels: [N] or [N, C]
        batches: The rows of each step, or ``None`` for all.
        transform: Applied to the examples of a step.
        loss: Of (logits, labels).
        scale: Factor of the loss.
        momentum: Of the steps.
        fixed: Whether theta is a constant inside each gradient, as the truncated derivative has it.
        autocast: Type of the ambient autocast, ``None`` without one.
    """

    network: Network
    images: Tensor
    labels: Tensor
    batches: Sequence[Tensor] | Tensor | None
    transform: StepTransform | None
    loss: LossFunction
    scale: float
    momentum: float
    fixed: bool
    autocast: torch.dtype | None

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        """Examples and labels of step i."""
        if self.batches is None:
            return self.images, self.labels
        rows = self.batches[i]
        return self.images[rows], self.labels[rows]

    def run(self, state: State, first: int, end: int, rate: Tensor) -> State:
        """Some steps without a graph."""
        for i in range(first, end):
            state = self.step(i, state, *self.batch(i), rate, graph=False)
        return state

    def step(self, i: int, state: State, x: Tensor, y: Tensor, rate: Tensor, *, graph: bool) -> State:
        """One step on the batch (x, y).

        Args:
            i: Number of the step.
            state: Before it.
            x: [n, ...]
            y: [n] or [n, C]
            rate: Scalar, or [P].
            graph: Whether the state after it can be differentiated in the state before it, x, y and the rate.
        """
        theta = state.theta
        with torch.enable_grad():
            here = theta if graph and theta.requires_grad and not self.fixed else theta.detach().requires_grad_()
            value = self._loss(i, here, x, y)
            with self.outside_autocast():
                (gradient,) = torch.autograd.grad(value, here, create_graph=graph)
        with nullcontext() if graph else torch.no_grad():
            velocity = gradient
            if state.velocity is not None:
                velocity = torch.add(gradient, state.velocity, alpha=self.momentum)
            after = torch.addcmul(theta, rate, velocity, value=-1)
        return State(after, velocity if self.momentum else None)

    def outside_autocast(self) -> AbstractContextManager[object]:
        """For backward passes, as torch advises: each operation repeats the type of its forward pass."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.images.device.type, enabled=False)

    def _loss(self, i: int, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self.transform is not None:
            x = self.transform(x, i)
        if self.autocast is None:
            value = self.loss(self.network(theta, x), y)
        else:
            # The cache would hand the graph-free casts of one pass to the next pass, which needs their graph.
            with torch.autocast(x.device.type, dtype=self.autocast, cache_enabled=False):
                value = self.loss(self.network(theta, x), y)
        if value.ndim:
            raise argument_error("loss", f"a value of shape {tuple(value.shape)}", "a scalar for each batch")
        return value if self.scale == 1.0 else self.scale * value


def ambient_autocast(device_type: str) -> torch.dtype | None:
    """The type of the autocast around this call.

    Raises:
        ArgumentError: It is float16.
    """
    if not torch.is_autocast_enabled(device_type):
        return None
    dtype = torch.get_autocast_dtype(device_type)
    if dtype == torch.float16:
        raise argument_error(
            "autocast",
            "float16",
            "bfloat16 or none: second derivatives underflow in float16, and no loss scale reaches the inner gradients",
        )
    return dtype
