"""What makes an expert's trajectory flat or smooth: rules that form one training step's gradient.

Each rule wraps another one, so they compose: ``SharpnessAware(0.01, rule=ClippedLoss())``. All return the loss on the
minibatch itself, without factor or penalty, so that the curves of differently trained experts compare.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distillrs.checks import check_flag, check_number, check_whole
from distillrs.training import LossFunction, Position, StepRule, plain


@dataclass(frozen=True, slots=True)
class SharpnessAware:
    """Steps along a gradient that is taken, in part, at the worst point nearby.

    With g the gradient at θ, ε the ascent and g_s the gradient at θ + ε, on the same minibatch, the step goes along

        (1 - mix) g + mix g_s - surrogate_gap g_perp,    g_perp = g - (<g, g_s> / <g_s, g_s>) g_s.

    - ``mix=1``, ``surrogate_gap=0``: sharpness-aware minimisation with ε = radius g / ‖g‖ (P. Foret et al., ICLR 2021).
    - ``adaptive``: ε = radius θ² g / ‖ |θ| g ‖, elementwise products (J. Kwon et al., "ASAM", ICML 2021).
    - ``surrogate_gap`` > 0: surrogate gap minimisation (J. Zhuang et al., "GSAM", ICLR 2022); FTD's code uses it with
      the adaptive ascent.
    - 0 < ``mix`` < 1: the gradient of L(θ) + mix (L(θ + ε) - L(θ)), as FTD's paper writes its objective.

    The second pass sees the same augmented examples and the same dropout masks, and leaves running statistics as the
    first one left them.

    Attributes:
        radius: Length of the ascent, above 0.
        adaptive: Scale the ascent by the weights.
        surrogate_gap: Weight of the part of g that is perpendicular to g_s, from 0.
        mix: Weight of g_s, above 0 and at most 1.
        rule: How each of the two gradients is formed.
    """

    radius: float
    adaptive: bool = False
    surrogate_gap: float = 0.0
    mix: float = 1.0
    rule: StepRule = plain

    def __post_init__(self) -> None:
        check_number("radius", self.radius, "a finite number above 0", above=0)
        check_flag("adaptive", self.adaptive)
        check_number("surrogate_gap", self.surrogate_gap, "a finite number from 0", least=0)
        check_number("mix", self.mix, "a share above 0, at most 1", above=0, most=1)

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, loss: LossFunction, position: Position
    ) -> Tensor:
        """See :class:`~distillrs.training.StepRule`."""
        draws = _DrawState(images.device)
        value = self.rule(network, images, labels, loss, position)
        parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
        here = _gradients(parameters)
        start = [parameter.detach().clone() for parameter in parameters]
        ascent = self._ascent(start, here)
        try:
            with torch.no_grad():
                for parameter, offset in zip(parameters, ascent, strict=True):
                    parameter.add_(offset)
            network.zero_grad(set_to_none=True)
            with draws.replayed(), kept_buffers(network):
                self.rule(network, images, labels, loss, position)
        finally:
            with torch.no_grad():
                for parameter, origin in zip(parameters, start, strict=True):
                    # Copied back, because adding and subtracting would not round to the same weights.
                    parameter.copy_(origin)
        there = _gradients(parameters)
        for parameter, direction in zip(parameters, self._direction(here, there), strict=True):
            parameter.grad = direction
        return value

    def _ascent(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        if self.adaptive:
            length = _norm([weight.abs() * gradient for weight, gradient in zip(weights, gradients, strict=True)])
            offsets = [weight.square() * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        else:
            length = _norm(gradients)
            offsets = gradients
        # Where the gradient vanishes there is no direction to ascend in: the offset is then zero, not 0 / 0.
        scale = torch.where(length > 0, self.radius / length, 0)
        return [offset * scale for offset in offsets]

    def _direction(self, here: list[Tensor], there: list[Tensor]) -> list[Tensor]:
        if self.mix == 1.0 and self.surrogate_gap == 0.0:
            return there
        square = _dot(there, there)
        share = _dot(here, there) / square.clamp_min(torch.finfo(square.dtype).tiny)
        gap = self.surrogate_gap
        return [
            (1 - self.mix) * first + self.mix * second - gap * (first - share * second)
            for first, second in zip(here, there, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class ClippedLoss:
    """Weighs the loss down at first: times ``start + increment * epoch`` for the first ``epochs`` epochs, then times 1.

    The clipping loss of AST (J. Shen et al., "Efficient Dataset Distillation through Alignment with Smooth and
    High-Quality Expert Trajectories", 2023), with its code's values as defaults: .5, .55, ..., .95, 1, 1, ...

    Attributes:
        start: Factor in epoch 0, above 0.
        increment: Added with each epoch, from 0.
        epochs: How many epochs are weighed down.
        rule: How the gradient of the weighed loss is formed.
    """

    start: float = 0.5
    increment: float = 0.05
    epochs: int = 10
    rule: StepRule = plain

    def __post_init__(self) -> None:
        check_number("start", self.start, "a factor above 0, at most 1", above=0, most=1)
        check_number("increment", self.increment, "a finite number from 0", least=0)
        check_whole("epochs", self.epochs, "a number of epochs from 0", least=0)

    def factor(self, epoch: int) -> float:
        """Factor of the loss in an epoch, counted from 0; never above 1."""
        return min(1.0, self.start + self.increment * epoch) if epoch < self.epochs else 1.0

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, loss: LossFunction, position: Position
    ) -> Tensor:
        """See :class:`~distillrs.training.StepRule`."""
        factor = self.factor(position.epoch)

        def weighed(logits: Tensor, labels: Tensor) -> Tensor:
            return factor * loss(logits, labels)

        return self.rule(network, images, labels, weighed, position) / factor


@dataclass(frozen=True, slots=True)
class InputGradientPenalty:
    """Adds ``weight`` times the mean of (‖∂x Σ_k f_k(x)‖ - 1)² over examples and places, f_k the logits.

    x is the minibatch before augmentation and the norm runs over axis 1 alone, as in AST's code: over the channels of
    each pixel of an image ``[n, C, H, W]``, giving a mean over n H W norms, and over the whole of a vector ``[n, d]``,
    giving one norm for each example (there axis 1 is all there is; this is the form of Wasserstein critics). In images
    of one channel the norm is a plain absolute value. The extra pass leaves running statistics as they were.

    Attributes:
        weight: Factor of the penalty, from 0.
        rule: How the gradient of the loss is formed; the penalty's is added to it.
    """

    weight: float = 2.0
    rule: StepRule = plain

    def __post_init__(self) -> None:
        check_number("weight", self.weight, "a finite number from 0", least=0)

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, loss: LossFunction, position: Position
    ) -> Tensor:
        """See :class:`~distillrs.training.StepRule`."""
        value = self.rule(network, images, labels, loss, position)
        if self.weight == 0:
            return value
        clean = images if position.unaugmented is None else position.unaugmented
        with kept_buffers(network):
            penalty = input_gradient_penalty(network, clean)
            (self.weight * penalty).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return value


def input_gradient_penalty(network: nn.Module, examples: Tensor) -> Tensor:
    """Mean of (‖∂x Σ_k f_k(x)‖ - 1)², norm over axis 1; differentiable in the network's parameters.

    Args:
        network: Gives logits ``[n, C]``.
        examples: ``[n, d]`` or ``[n, channels, ...]``, floating.

    Returns:
        Scalar.
    """
    leaves = examples.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network(leaves).sum(), leaves, create_graph=True)
    penalty: Tensor = (torch.linalg.vector_norm(slope, dim=1) - 1).square().mean()
    return penalty


@contextlib.contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    """Restores a network's buffers (running statistics) at the end of a block."""
    kept = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


class _DrawState:
    """Where torch's own generators stood, so that a second pass draws the same dropout masks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        devices = [] if self._cuda is None else [self._device]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    # A parameter that only the first pass reached has no gradient in the second; that is a gradient of zero.
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach() for parameter in parameters
    ]


def _dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in tensors]))
    return norm
