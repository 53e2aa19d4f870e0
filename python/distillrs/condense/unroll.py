"""Training inside the objective: a network takes some steps on synthetic examples, and the result is differentiated.

Inner training, from ``theta_0`` on, for i = 0 .. T-1, with x_i = A_i(X[b_i]) and y_i = Y[b_i]::

    g_i = grad_theta  scale * loss(network(theta_i, x_i), y_i)
    v_{i+1} = momentum * v_i + g_i                               v_0 = 0
    theta_{i+1} = theta_i - rate * v_{i+1}

Its loss is a weighted distance to points that it should pass, ``L = sum_j w_j |theta_j - target_j|^2 / D_j``
(Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, with j = T alone).

Three ways to differentiate L in X, Y, the rate and theta_0:

- ``"full"``: autograd through all steps. Memory grows with T graphs.
- ``"adjoint"``: exact, with one step's graph at a time. With e_j = 2 w_j (theta_j - target_j) / D_j (zero where there
  is no target), lambda_T = e_T and kappa_T = 0, for i = T-1 .. 0::

      kappa_i = lambda_{i+1} + momentum * kappa_{i+1}
      grad X, Y  -= rate * d/d(X, Y) <g_i, kappa_i>
      grad rate  -= <g_i, kappa_i>
      lambda_i    = lambda_{i+1} - rate * d/dtheta <g_i, kappa_i> + e_i

  and lambda_0 is the gradient in theta_0. Without momentum kappa_i is lambda_{i+1}. Velocities need not be kept: the
  term of the rate, sum_i <v_{i+1}, lambda_{i+1}>, is the same sum ordered by g_i.
- ``"truncated"``: the same without the term d/dtheta, every theta_i inside g_i held fixed, as the public code of TESLA
  computes it (Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023). NOT exact:
  it misses how an example moves the later steps' gradients. Kept for comparison; a little cheaper than the adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from distillrs.condense.functional import FunctionalNetwork
from distillrs.errors import DistillrsError, argument_error, unknown_name_error
from distillrs.training import LossFunction, classification_loss

Gradient = Literal["full", "adjoint", "truncated"]
Network = Callable[[Tensor, Tensor], Tensor]
StepTransform = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class Target:
    """A point that the unrolled training should pass.

    Attributes:
        vector: [P] The point.
        normaliser: D, what the squared distance is divided by: a positive number or a scalar tensor.
        weight: Factor of this term of the loss.
    """

    vector: Tensor
    normaliser: Tensor | float = 1.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Unrolled:
    """What an unrolled training gives.

    Attributes:
        loss: Scalar with its graph.
        distances: For each target's step the detached ``|theta_j - target_j|^2 / D_j``, unweighted.
        final: [P] theta_T, detached.
    """

    loss: Tensor
    distances: dict[int, Tensor]
    final: Tensor


@dataclass(frozen=True, slots=True)
class Unroll:
    """Some steps of gradient descent, differentiable; the module's text has the equations.

    Under ``torch.autocast`` with bfloat16 the inner forward passes run in it, the same way each time they are replayed.
    float16 is refused: a second derivative through it underflows, and a loss scale cannot undo that, because the inner
    gradients are used as they are.

    Attributes:
        steps: T, from 1.
        gradient: ``"adjoint"`` (exact, one step's graph at a time), ``"full"`` (exact, all graphs at once) or
            ``"truncated"`` (inexact).
        momentum: Of the inner steps, from 0 to below 1.
        checkpoint_every: For "adjoint" and "truncated": keep the state of every so many steps only and recompute the
            others, so that T/k + k states are held instead of T. ``None`` keeps all.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    steps: int
    gradient: Gradient = "adjoint"
    momentum: float = 0.0
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise argument_error("steps", self.steps, "a positive integer")
        if self.gradient not in get_args(Gradient):
            raise unknown_name_error("gradient", str(self.gradient), list(get_args(Gradient)))
        if not 0 <= self.momentum < 1:
            raise argument_error("momentum", self.momentum, "a number from 0 to below 1")
        if self.checkpoint_every is not None:
            if self.checkpoint_every < 1:
                raise argument_error("checkpoint_every", self.checkpoint_every, "None or a positive number of steps")
            if self.gradient == "full":
                raise argument_error(
                    "checkpoint_every", self.checkpoint_every, "None with gradient='full', which keeps all its graphs"
                )

    def __call__(
        self,
        network: Network,
        start: Tensor,
        images: Tensor,
        labels: Tensor,
        rate: Tensor | float,
        targets: Mapping[int, Target],
        *,
        batches: Sequence[Tensor] | Tensor | None = None,
        transform: StepTransform | None = None,
        loss: LossFunction = classification_loss,
        scale: float = 1.0,
    ) -> Unrolled:
        """Trains from ``start`` and measures the distance to the targets.

        The loss can be differentiated in ``start``, ``images``, floating ``labels`` and ``rate``; any factor that later
        stands before it is exact. Only "full" can be differentiated twice.

        Args:
            network: ``network(vector [P], inputs [n, ...]) -> logits``, a function of nothing else.
            start: [P] theta_0.
            images: [N, ...] Examples, floating.
            labels: [N] int64 classes, or [N, C] floating probabilities.
            rate: Learning rate of the inner steps, a scalar.
            targets: For steps from 1 to T the points to pass; at least one.
            batches: One int64 tensor of rows for each step; ``None`` takes all examples in every step.
            transform: ``transform(examples [n, ...], i)``, applied to the batch of step i, differentiable. It may be
                called twice for a step and must do the same both times.
            loss: Inner loss of (logits, labels), a scalar.
            scale: Factor of the inner loss.

        Raises:
            ArgumentError: Arguments that do not fit each other, or an ambient float16 autocast.
            DistillrsError: In the backward pass, when "adjoint" or "truncated" is to be differentiated twice.
        """
        self._check(start, images, labels, rate, targets, batches)
        rate = torch.as_tensor(rate, dtype=start.dtype, device=start.device)
        device = start.device.type
        inner = _Inner(network, batches, transform, loss, scale, _ambient_autocast(device), device)
        if self.gradient == "full":
            return self._full(inner, start, images, labels, rate, targets)
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (start, images, labels, rate))
        value, distances, final, gradients = self._stepwise(inner, start, images, labels, rate, targets, wanted)
        if wanted:
            value = _Precomputed.apply(value, *gradients, start, images, labels, rate)
        return Unrolled(value, distances, final)

    def _full(
        self, inner: _Inner, start: Tensor, images: Tensor, labels: Tensor, rate: Tensor, targets: Mapping[int, Target]
    ) -> Unrolled:
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (start, images, labels, rate))
        theta, velocity = start, None
        terms: dict[int, Tensor] = {}
        for i in range(self.steps):
            with torch.enable_grad():
                # The inner gradient needs a graph in theta even where nobody differentiates the outer loss.
                here = theta if theta.requires_grad else theta.detach().requires_grad_()
                value = inner.loss_at(i, inner.split(here), *inner.batch(i, images, labels))
                with inner.backward():
                    (gradient,) = torch.autograd.grad(value, here, create_graph=differentiable)
            velocity = gradient if velocity is None else self.momentum * velocity + gradient
            theta = theta - rate * (velocity if self.momentum else gradient)
            if i + 1 in targets:
                terms[i + 1] = _distance(theta, targets[i + 1])
        total = torch.stack([targets[j].weight * term for j, term in terms.items()]).sum()
        return Unrolled(total, {j: term.detach() for j, term in terms.items()}, theta.detach())

    def _stepwise(
        self,
        inner: _Inner,
        start: Tensor,
        images: Tensor,
        labels: Tensor,
        rate: Tensor,
        targets: Mapping[int, Target],
        wanted: bool,
    ) -> tuple[Tensor, dict[int, Tensor], Tensor, tuple[Tensor | None, ...]]:
        needs = _Needs(start.requires_grad, images.requires_grad, labels.requires_grad, rate.requires_grad)
        start, images, labels, rate = start.detach(), images.detach(), labels.detach(), rate.detach()
        every = self.checkpoint_every or 1
        kept: dict[int, _State] = {}
        pulls: dict[int, Tensor] = {}
        distances: dict[int, Tensor] = {}
        state = _State(start, None)
        for i in range(self.steps):
            if wanted and i % every == 0:
                kept[i] = state
            state = self._step(inner, i, state, images, labels, rate)
            if i + 1 in targets:
                target = targets[i + 1]
                with torch.no_grad():
                    distances[i + 1] = _distance(state.theta, target)
                    if wanted:
                        pulls[i + 1] = (2 * target.weight / target.normaliser) * (state.theta - target.vector)
        value = torch.stack([targets[j].weight * distance for j, distance in distances.items()]).sum()
        if not wanted:
            return value, distances, state.theta, (None,) * 4
        gradients = self._backward(inner, kept, pulls, images, labels, rate, needs)
        return value, distances, state.theta, gradients

    def _step(self, inner: _Inner, i: int, state: _State, images: Tensor, labels: Tensor, rate: Tensor) -> _State:
        with torch.enable_grad():
            leaves = inner.leaves(state.theta)
            pieces = inner.gradient(inner.loss_at(i, leaves, *inner.batch(i, images, labels)), leaves)
        with torch.no_grad():
            gradient = _flat(pieces)
            if not self.momentum:
                return _State(torch.addcmul(state.theta, rate, gradient, value=-1), None)
            velocity = gradient if state.velocity is None else gradient.add(state.velocity, alpha=self.momentum)
            return _State(torch.addcmul(state.theta, rate, velocity, value=-1), velocity)

    def _backward(
        self,
        inner: _Inner,
        kept: dict[int, _State],
        pulls: dict[int, Tensor],
        images: Tensor,
        labels: Tensor,
        rate: Tensor,
        needs: _Needs,
    ) -> tuple[Tensor | None, ...]:
        grad_images = torch.zeros_like(images) if needs.images else None
        grad_labels = torch.zeros_like(labels) if needs.labels else None
        grad_rate = torch.zeros_like(rate) if needs.rate else None
        adjoint = pulls[max(pulls)].clone()
        kappa = torch.zeros_like(adjoint)
        last = max(pulls)
        segment: list[_State] = []
        every = self.checkpoint_every or 1
        # Steps after the last target move nothing that is measured.
        for i in reversed(range(last)):
            if i + 1 in pulls and i + 1 != last:
                adjoint = adjoint + pulls[i + 1]
            kappa = adjoint if not self.momentum else adjoint + self.momentum * kappa
            if not segment:
                first = i - i % every
                segment = [kept.pop(first)]
                while len(segment) <= i - first:
                    segment.append(self._step(inner, first + len(segment) - 1, segment[-1], images, labels, rate))
            theta = segment.pop().theta
            with torch.enable_grad():
                leaves = inner.leaves(theta)
                x, y = inner.batch(i, images, labels)
                x, y = x.detach().requires_grad_(needs.images), y.detach().requires_grad_(needs.labels)
                gradient = inner.gradient(inner.loss_at(i, leaves, x, y), leaves, create_graph=True)
            through = leaves if self.gradient == "adjoint" and (i > 0 or needs.start) else []
            sources = [*through, *([x] if needs.images else []), *([y] if needs.labels else [])]
            found = inner.vector_products(gradient, inner.split(kappa), sources)
            with torch.no_grad():
                if grad_labels is not None:
                    inner.scatter(i, grad_labels, found.pop() * -rate)
                if grad_images is not None:
                    inner.scatter(i, grad_images, found.pop() * -rate)
                if found:
                    adjoint = torch.addcmul(adjoint, rate, _flat(found), value=-1)
                if grad_rate is not None:
                    grad_rate -= torch.dot(_flat(gradient), kappa)
        return (adjoint if needs.start else None), grad_images, grad_labels, grad_rate

    def _check(
        self,
        start: Tensor,
        images: Tensor,
        labels: Tensor,
        rate: Tensor | float,
        targets: Mapping[int, Target],
        batches: Sequence[Tensor] | Tensor | None,
    ) -> None:
        if start.ndim != 1 or not start.is_floating_point():
            raise argument_error("start", f"{start.dtype} {tuple(start.shape)}", "a floating vector [P]")
        if not images.is_floating_point() or images.ndim < 2:
            raise argument_error("images", f"{images.dtype} {tuple(images.shape)}", "floating examples [N, ...]")
        if images.dtype != start.dtype:
            raise argument_error("images", str(images.dtype), f"the type of start, {start.dtype}")
        if len(labels) != len(images):
            raise argument_error("labels", f"{len(labels)} rows", f"as many as images, {len(images)}")
        if isinstance(rate, Tensor) and rate.ndim != 0:
            raise argument_error("rate", tuple(rate.shape), "a scalar")
        if not targets:
            raise argument_error("targets", dict(targets), "a target for at least one step")
        for step, target in targets.items():
            if not 1 <= step <= self.steps:
                raise argument_error("targets", f"one at step {step}", f"steps from 1 to {self.steps}")
            if target.vector.shape != start.shape:
                raise argument_error("targets", tuple(target.vector.shape), f"vectors of shape {tuple(start.shape)}")
        if batches is not None and len(batches) != self.steps:
            raise argument_error("batches", f"{len(batches)} batches", f"one for each of {self.steps} steps")


@dataclass(frozen=True, slots=True)
class _Needs:
    """Of which inputs the gradient is wanted."""

    start: bool
    images: bool
    labels: bool
    rate: bool


@dataclass(frozen=True, slots=True)
class _State:
    theta: Tensor
    velocity: Tensor | None


@dataclass(frozen=True, slots=True)
class _Inner:
    """One step's loss as a function of its parameters and its batch."""

    network: Network
    batches: Sequence[Tensor] | Tensor | None
    transform: StepTransform | None
    loss: LossFunction
    scale: float
    autocast: torch.dtype | None
    device: str

    def batch(self, i: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.batches is None:
            return images, labels
        rows = self.batches[i]
        return images[rows], labels[rows]

    def split(self, theta: Tensor) -> list[Tensor]:
        """The parameters one by one, where the network can tell them apart."""
        return self.network.split(theta) if isinstance(self.network, FunctionalNetwork) else [theta]

    def leaves(self, theta: Tensor) -> list[Tensor]:
        # Leaves of their own and not views of one: a step's graph is then a third smaller.
        return [piece.detach().requires_grad_() for piece in self.split(theta)]

    def logits(self, pieces: list[Tensor], x: Tensor) -> Tensor:
        network = self.network
        return network.call(pieces, x) if isinstance(network, FunctionalNetwork) else network(pieces[0], x)

    def loss_at(self, i: int, pieces: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        if self.transform is not None:
            x = self.transform(x, i)
        if self.autocast is None:
            value = self.loss(self.logits(pieces, x), y)
        else:
            # The cache would hand the graph-free casts of one pass to the next pass, which needs their graph.
            with torch.autocast(self.device, dtype=self.autocast, cache_enabled=False):
                value = self.loss(self.logits(pieces, x), y)
        if value.ndim:
            raise argument_error("loss", f"a value of shape {tuple(value.shape)}", "a scalar for each batch")
        return value if self.scale == 1.0 else self.scale * value

    def gradient(self, value: Tensor, leaves: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
        with self.backward():
            return list(torch.autograd.grad(value, leaves, create_graph=create_graph, materialize_grads=True))

    def vector_products(self, gradient: list[Tensor], vector: list[Tensor], sources: list[Tensor]) -> list[Tensor]:
        """The derivatives of <gradient, vector> in each source."""
        pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
        if not sources or not pairs:
            return [torch.zeros_like(source) for source in sources]
        outputs, weights = zip(*pairs, strict=True)
        with self.backward():
            return list(torch.autograd.grad(outputs, sources, weights, materialize_grads=True))

    def backward(self) -> AbstractContextManager[object]:
        # Outside autocast, as torch advises: each operation repeats the type of its forward pass.
        return nullcontext() if self.autocast is None else torch.autocast(self.device, enabled=False)

    def scatter(self, i: int, into: Tensor, rows: Tensor) -> None:
        if self.batches is None:
            into += rows
        else:
            into.index_add_(0, self.batches[i], rows)


class _Precomputed(torch.autograd.Function):
    """A value whose gradients are known: the backward pass only multiplies them by what comes from above."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        grad_start: Tensor | None,
        grad_images: Tensor | None,
        grad_labels: Tensor | None,
        grad_rate: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(grad_start, grad_images, grad_labels, grad_rate)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DistillrsError(
                "gradient: 'adjoint' and 'truncated' have first derivatives only; "
                "use Unroll(gradient='full') for a backward pass with create_graph=True"
            )
        known = ctx.saved_tensors
        return (None,) * 5 + tuple(None if gradient is None else gradient * upstream[0] for gradient in known)


def _flat(pieces: list[Tensor]) -> Tensor:
    return torch.cat([piece.detach().reshape(-1) for piece in pieces])


def _distance(theta: Tensor, target: Target) -> Tensor:
    return (theta - target.vector).square().sum() / target.normaliser


def _ambient_autocast(device_type: str) -> torch.dtype | None:
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


def memory_of_states(steps: int, parameters: int, itemsize: int = 4, checkpoint_every: int | None = None) -> int:
    """Bytes of the states that "adjoint" and "truncated" hold beside one step's graph, without momentum.

    Args:
        steps: T.
        parameters: P.
        itemsize: Bytes of one number.
        checkpoint_every: As in :class:`Unroll`.
    """
    every = checkpoint_every or 1
    return (math.ceil(steps / every) + (every - 1)) * parameters * itemsize
