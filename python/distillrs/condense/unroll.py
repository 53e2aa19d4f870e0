"""Training inside the objective: a network takes some steps on synthetic examples, and the result is differentiated.

Inner training, from ``theta_0`` on, for i = 0 .. T-1, with x_i = A_i(X[b_i]) and y_i = Y[b_i]::

    g_i = grad_theta  scale * loss(network(theta_i, x_i), y_i)
    v_{i+1} = momentum * v_i + g_i                               v_0 = 0
    theta_{i+1} = theta_i - rate * v_{i+1}

Its loss is a weighted distance to points that it should pass, ``L = sum_j w_j |theta_j - target_j|^2 / D_j``
(Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, with j = T alone).

Three ways to differentiate L in X, Y, the rate and theta_0:

- ``"full"``: autograd through all steps. Memory grows with T graphs.
- ``"adjoint"``: exact, with few steps' graphs at a time. With e_j = 2 w_j (theta_j - target_j) / D_j (zero where there
  is no target), lambda_T = e_T and kappa_T = 0, for i = T-1 .. 0::

      kappa_i = lambda_{i+1} + momentum * kappa_{i+1}
      grad X, Y  -= rate * d/d(X, Y) <g_i, kappa_i>
      grad rate  -= <g_i, kappa_i>
      lambda_i    = lambda_{i+1} - rate * d/dtheta <g_i, kappa_i> + e_i

  and lambda_0 is the gradient in theta_0. Without momentum kappa_i is lambda_{i+1}. Automatic differentiation of one
  step forms just this; it may as well take a few at a time, see :mod:`distillrs.condense.segments`.
- ``"truncated"``: the same without the term d/dtheta, every theta_i inside g_i held fixed, as the public code of TESLA
  computes it (Cui et al., "Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory", ICML 2023). NOT exact:
  it misses how an example moves the later steps' gradients. Kept for comparison; a little cheaper than the adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from distillrs.checks import check_number
from distillrs.condense.inner import InnerTraining, Network, State, StepTransform, Target, ambient_autocast
from distillrs.condense.segments import Wanted, differentiate
from distillrs.errors import DistillrsError, argument_error, unknown_name_error
from distillrs.training import LossFunction, classification_loss

Gradient = Literal["full", "adjoint", "truncated"]


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
        gradient: ``"adjoint"`` (exact, few steps' graphs at a time), ``"full"`` (exact, all graphs at once) or
            ``"truncated"`` (inexact).
        momentum: Of the inner steps, from 0 to below 1.
        graph_steps: For "adjoint" and "truncated": of how many steps the graphs are held at a time. ``None`` is as many
            as fit into 64 MiB, at most 6 and at least 1: small networks are quicker so, and large ones take no more
            memory than they must.
        checkpoint_every: For "adjoint" and "truncated": keep states at least so many steps apart and recompute those
            between, at the price of one more pass without a graph. ``None`` keeps all T / graph_steps that are needed.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    steps: int
    gradient: Gradient = "adjoint"
    momentum: float = 0.0
    graph_steps: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise argument_error("steps", self.steps, "a positive integer")
        if not isinstance(self.gradient, str) or self.gradient not in get_args(Gradient):
            raise unknown_name_error("gradient", str(self.gradient), list(get_args(Gradient)))
        check_number("momentum", self.momentum, "a number from 0 to below 1", least=0, below=1)
        for name in ("graph_steps", "checkpoint_every"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "None or a positive number of steps")
            if self.gradient == "full":
                raise argument_error(name, value, "None with gradient='full', which keeps all its graphs")

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
            rate: Learning rate of the inner steps, a scalar; or one for each parameter, [P].
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
        wanted = Wanted(start.requires_grad, images.requires_grad, labels.requires_grad, rate.requires_grad)
        graph = torch.is_grad_enabled() and wanted != Wanted(False, False, False, False)
        whole = self.gradient == "full"
        inner = InnerTraining(
            network=network,
            images=images if whole else images.detach(),
            labels=labels if whole else labels.detach(),
            batches=batches,
            transform=transform,
            loss=loss,
            scale=scale,
            momentum=self.momentum,
            fixed=self.gradient == "truncated",
            autocast=ambient_autocast(start.device.type),
        )
        if whole or not graph:
            return self._at_once(inner, State(start), rate, targets, graph)
        found = differentiate(
            inner,
            start.detach(),
            rate.detach(),
            self.steps,
            targets,
            wanted,
            graph_steps=self.graph_steps,
            checkpoint_every=self.checkpoint_every,
        )
        value = _weighted(found.terms, targets)
        attached: Tensor = _Precomputed.apply(value, *found.gradients, start, images, labels, rate)
        return Unrolled(attached, found.terms, found.final)

    def _at_once(
        self, inner: InnerTraining, state: State, rate: Tensor, targets: Mapping[int, Target], graph: bool
    ) -> Unrolled:
        terms: dict[int, Tensor] = {}
        for i in range(self.steps):
            state = inner.step(i, state, *inner.batch(i), rate, graph=graph)
            if i + 1 in targets:
                terms[i + 1] = targets[i + 1].distance(state.theta)
        value = _weighted(terms, targets)
        # Without a graph there is nothing to differentiate, whatever requires a gradient.
        value = value if graph else value.detach()
        return Unrolled(value, {step: term.detach() for step, term in terms.items()}, state.theta.detach())

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
        if isinstance(rate, Tensor) and rate.ndim != 0 and rate.shape != start.shape:
            raise argument_error(
                "rate", tuple(rate.shape), f"a scalar, or one for each parameter, {tuple(start.shape)}"
            )
        if not targets:
            raise argument_error("targets", dict(targets), "a target for at least one step")
        for step, target in targets.items():
            if not 1 <= step <= self.steps:
                raise argument_error("targets", f"one at step {step}", f"steps from 1 to {self.steps}")
            if target.vector.shape != start.shape:
                raise argument_error("targets", tuple(target.vector.shape), f"vectors of shape {tuple(start.shape)}")
            parts = (target.vector, target.normaliser)
            if self.gradient != "full" and any(isinstance(part, Tensor) and part.requires_grad for part in parts):
                raise argument_error(
                    "targets", f"one at step {step} that requires a gradient", "detached ones, or gradient='full'"
                )
        if batches is not None and len(batches) != self.steps:
            raise argument_error("batches", f"{len(batches)} batches", f"one for each of {self.steps} steps")


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


def _weighted(terms: Mapping[int, Tensor], targets: Mapping[int, Target]) -> Tensor:
    return torch.stack([targets[step].weight * term for step, term in sorted(terms.items())]).sum()


def memory_of_states(unroll: Unroll, parameters: int, itemsize: int = 4) -> int:
    """Bytes of the states that "adjoint" and "truncated" hold beside the graphs, at most.

    Args:
        unroll: The settings.
        parameters: P.
        itemsize: Bytes of one number.
    """
    length = unroll.graph_steps or 1
    segments = math.ceil(unroll.steps / length)
    between = math.ceil((unroll.checkpoint_every or length) / length)
    states = math.ceil(segments / between) + between - 1
    return states * parameters * itemsize * (2 if unroll.momentum else 1)
