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

  and lambda_0 is the gradient in theta_0. Without momentum kappa_i is lambda_{i+1}. It is formed by automatic
  differentiation of ``graph_steps`` steps at a time, from the state before them, which the first, graph-free pass kept.
- ``"truncated"``: the same without the term d/dtheta, every theta_i inside g_i held fixed, as the public code of TESLA
  computes it (Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023). NOT exact:
  it misses how an example moves the later steps' gradients. Kept for comparison; a little cheaper than the adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

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
        graph_steps: For "adjoint" and "truncated": how many steps' graphs are held at a time. More than 1 is a little
            faster for networks so small that calls cost more than numbers (and the last ones are never run twice).
        checkpoint_every: For "adjoint" and "truncated": keep the state of every so many steps only, a multiple of
            ``graph_steps``, and recompute those between, at the price of one more graph-free pass. ``None`` keeps the
            T / graph_steps states that are needed.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    steps: int
    gradient: Gradient = "adjoint"
    momentum: float = 0.0
    graph_steps: int = 1
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise argument_error("steps", self.steps, "a positive integer")
        if self.gradient not in get_args(Gradient):
            raise unknown_name_error("gradient", str(self.gradient), list(get_args(Gradient)))
        if not 0 <= self.momentum < 1:
            raise argument_error("momentum", self.momentum, "a number from 0 to below 1")
        if isinstance(self.graph_steps, bool) or not isinstance(self.graph_steps, int) or self.graph_steps < 1:
            raise argument_error("graph_steps", self.graph_steps, "a positive integer")
        every = self.checkpoint_every
        if every is not None and (every < 1 or every % self.graph_steps):
            allowed = f"None or a positive multiple of graph_steps, {self.graph_steps}"
            raise argument_error("checkpoint_every", every, allowed)
        if self.gradient == "full" and (self.graph_steps != 1 or self.checkpoint_every is not None):
            name = "graph_steps" if self.graph_steps != 1 else "checkpoint_every"
            raise argument_error(name, getattr(self, name), "no value with gradient='full', which keeps all its graphs")

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
        if not wanted:
            with torch.no_grad():
                return self._full(inner, start, images, labels, rate, targets)
        value, result, gradients = self._in_segments(inner, start, images, labels, rate, targets)
        attached: Tensor = _Precomputed.apply(value, *gradients, start, images, labels, rate)
        return Unrolled(attached, result.distances, result.final)

    def _full(
        self, inner: _Inner, start: Tensor, images: Tensor, labels: Tensor, rate: Tensor, targets: Mapping[int, Target]
    ) -> Unrolled:
        graph = torch.is_grad_enabled() and any(x.requires_grad for x in (start, images, labels, rate))
        state, terms = _State(start, None), dict[int, Tensor]()
        for i in range(self.steps):
            state = self._step(inner, i, state, *inner.batch(i, images, labels), rate, graph=graph)
            if i + 1 in targets:
                terms[i + 1] = _distance(state.theta, targets[i + 1])
        return Unrolled(_weighted(terms, targets), _detached(terms), state.theta.detach())

    def _step(self, inner: _Inner, i: int, state: _State, x: Tensor, y: Tensor, rate: Tensor, *, graph: bool) -> _State:
        theta = state.theta
        with torch.enable_grad():
            # Without a graph to the start, and in the truncated gradient, theta inside g is a point of its own.
            within = graph and theta.requires_grad and self.gradient != "truncated"
            here = theta if within else theta.detach().requires_grad_()
            value = inner.loss_at(i, here, x, y)
            with inner.backward():
                (gradient,) = torch.autograd.grad(value, here, create_graph=graph)
        if not graph:
            with torch.no_grad():
                velocity = gradient if state.velocity is None else gradient.add_(state.velocity, alpha=self.momentum)
                return _State(torch.addcmul(theta, rate, velocity, value=-1), velocity if self.momentum else None)
        velocity = gradient if state.velocity is None else torch.add(gradient, state.velocity, alpha=self.momentum)
        return _State(torch.addcmul(theta, rate, velocity, value=-1), velocity if self.momentum else None)

    def _in_segments(
        self, inner: _Inner, start: Tensor, images: Tensor, labels: Tensor, rate: Tensor, targets: Mapping[int, Target]
    ) -> tuple[Tensor, Unrolled, list[Tensor | None]]:
        sums = _Sums.like(start, images, labels, rate)
        start, images, labels, rate = start.detach(), images.detach(), labels.detach(), rate.detach()
        last = max(targets)
        firsts = list(range(0, last, self.graph_steps))
        every = self.checkpoint_every or self.graph_steps
        kept: dict[int, _State] = {}
        terms: dict[int, Tensor] = {}
        state = _State(start, None)
        for i in range(firsts[-1]):
            if i % every == 0:
                kept[i] = state
            state = self._step(inner, i, state, *inner.batch(i, images, labels), rate, graph=False)
            if i + 1 in targets:
                terms[i + 1] = _distance(state.theta, targets[i + 1])
        # The last segment's state is at hand: its graph is formed at once.
        kept[firsts[-1]] = state
        pull: _State | None = None
        final = state
        for first in reversed(firsts):
            begin = self._state_at(inner, first, kept, images, labels, rate)
            end = min(first + self.graph_steps, last)
            own = {j: targets[j] for j in range(first + 1, end + 1) if j in targets}
            pull, reached, passed = self._segment(inner, first, end, begin, pull, images, labels, rate, own, sums)
            if first == firsts[-1]:
                final = reached
            terms |= passed
        for i in range(last, self.steps):
            final = self._step(inner, i, final, *inner.batch(i, images, labels), rate, graph=False)
        assert pull is not None
        terms = {j: terms[j] for j in sorted(terms)}
        if sums.start is not None:
            sums.start += pull.theta
        return _weighted(terms, targets), Unrolled(start, terms, final.theta), sums.gradients()

    def _state_at(
        self, inner: _Inner, first: int, kept: dict[int, _State], images: Tensor, labels: Tensor, rate: Tensor
    ) -> _State:
        """A state that was kept, or one recomputed from the nearest before it; those on the way are kept too."""
        if first not in kept:
            near = max(i for i in kept if i < first)
            state = kept[near]
            for i in range(near, first):
                state = self._step(inner, i, state, *inner.batch(i, images, labels), rate, graph=False)
                if (i + 1) % self.graph_steps == 0:
                    kept[i + 1] = state
        return kept.pop(first)

    def _segment(
        self,
        inner: _Inner,
        first: int,
        end: int,
        begin: _State,
        pull: _State | None,
        images: Tensor,
        labels: Tensor,
        rate: Tensor,
        targets: Mapping[int, Target],
        sums: _Sums,
    ) -> tuple[_State, _State, dict[int, Tensor]]:
        """Runs some steps with their graph, and takes the derivatives in the state after them to the one before."""
        with torch.enable_grad():
            through = first > 0 or sums.start is not None
            state = before = _leaf(begin, through)
            beta = rate.detach().requires_grad_(sums.rate is not None)
            batches, terms = list[tuple[Tensor, Tensor]](), dict[int, Tensor]()
            for i in range(first, end):
                if batches and inner.batches is None:
                    x, y = batches[0]
                else:
                    x, y = inner.batch(i, images, labels)
                    x = x.detach().requires_grad_(sums.images is not None)
                    y = y.detach().requires_grad_(sums.labels is not None)
                    batches.append((x, y))
                state = self._step(inner, i, state, x, y, beta, graph=True)
                if i + 1 in targets:
                    terms[i + 1] = _distance(state.theta, targets[i + 1])
            outputs, weights = [], []
            if pull is not None:
                outputs, weights = [state.theta], [pull.theta]
                if state.velocity is not None and pull.velocity is not None:
                    outputs, weights = [*outputs, state.velocity], [*weights, pull.velocity]
            if terms:
                value = _weighted(terms, targets)
                outputs, weights = [*outputs, value], [*weights, torch.ones_like(value)]
        sources = [each for each in (before.theta, before.velocity, beta) if each is not None and each.requires_grad]
        sources += [each for pair in batches for each in pair if each.requires_grad]
        with inner.backward():
            found = iter(torch.autograd.grad(outputs, sources, weights, materialize_grads=True))
        theta = next(found) if through else begin.theta
        velocity = next(found) if before.velocity is not None and before.velocity.requires_grad else None
        if sums.rate is not None:
            sums.rate += next(found)
        for place in range(len(batches)):
            inner.scatter(first + place, sums.images, found)
            inner.scatter(first + place, sums.labels, found)
        reached = _State(state.theta.detach(), None if state.velocity is None else state.velocity.detach())
        return _State(theta, velocity), reached, _detached(terms)

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
class _State:
    """Parameters and velocity; also their derivatives. Without momentum there is no velocity."""

    theta: Tensor
    velocity: Tensor | None


@dataclass(slots=True)
class _Sums:
    """The gradients that are wanted, added up in place; ``None`` for what needs none."""

    start: Tensor | None
    images: Tensor | None
    labels: Tensor | None
    rate: Tensor | None

    @classmethod
    def like(cls, *inputs: Tensor) -> _Sums:
        return cls(*(torch.zeros_like(each, requires_grad=False) if each.requires_grad else None for each in inputs))

    def gradients(self) -> list[Tensor | None]:
        return [self.start, self.images, self.labels, self.rate]


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

    def loss_at(self, i: int, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self.transform is not None:
            x = self.transform(x, i)
        if self.autocast is None:
            value = self.loss(self.network(theta, x), y)
        else:
            # The cache would hand the graph-free casts of one pass to the next pass, which needs their graph.
            with torch.autocast(self.device, dtype=self.autocast, cache_enabled=False):
                value = self.loss(self.network(theta, x), y)
        if value.ndim:
            raise argument_error("loss", f"a value of shape {tuple(value.shape)}", "a scalar for each batch")
        return value if self.scale == 1.0 else self.scale * value

    def backward(self) -> AbstractContextManager[object]:
        # Outside autocast, as torch advises: each operation repeats the type of its forward pass.
        return nullcontext() if self.autocast is None else torch.autocast(self.device, enabled=False)

    def scatter(self, i: int, into: Tensor | None, rows: Iterator[Tensor]) -> None:
        if into is None:
            return
        if self.batches is None:
            into += next(rows)
        else:
            into.index_add_(0, self.batches[i], next(rows))


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


def _leaf(state: _State, through: bool) -> _State:
    velocity = None if state.velocity is None else state.velocity.detach().requires_grad_(through)
    return _State(state.theta.detach().requires_grad_(through), velocity)


def _weighted(terms: Mapping[int, Tensor], targets: Mapping[int, Target]) -> Tensor:
    return torch.stack([targets[j].weight * term for j, term in terms.items()]).sum()


def _detached(terms: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {j: term.detach() for j, term in terms.items()}


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


def memory_of_states(unroll: Unroll, parameters: int, itemsize: int = 4) -> int:
    """Bytes of the states that "adjoint" and "truncated" hold beside the graphs.

    Args:
        unroll: The settings.
        parameters: P.
        itemsize: Bytes of one number.
    """
    segments = math.ceil(unroll.steps / unroll.graph_steps)
    between = (unroll.checkpoint_every or unroll.graph_steps) // unroll.graph_steps
    states = math.ceil(segments / between) + between - 1
    return states * parameters * itemsize * (2 if unroll.momentum else 1)
