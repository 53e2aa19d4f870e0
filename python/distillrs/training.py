"""How a network is trained on arrays: the settings, the loop, and how one step's gradient is formed.

Experts, evaluations and teachers are all trained here, so a comparison between two sets never differs by its loop.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.errors import TrainingDivergedError, argument_error, unknown_name_error
from distillrs.frozen import evaluating, kept_modes
from distillrs.step import Step

Schedule = Literal["constant", "cosine", "halve", "step"]
LossFunction = Callable[[Tensor, Tensor], Tensor]
EpochCallback = Callable[[int, nn.Module], None]
Views = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained: stochastic gradient descent over shuffled minibatches.

    Attributes:
        epochs: Passes over the examples.
        batch_size: Examples in a minibatch; the last one of an epoch may be smaller.
        learning_rate: Step size at the start.
        momentum: Of ``torch.optim.SGD``.
        weight_decay: Of ``torch.optim.SGD``; added to the gradient.
        schedule: "constant"; "cosine" (half a cosine from the learning rate towards 0, changed once an epoch);
            "halve" (half the rate from half of the epochs on); "step" (times ``drop_factor`` at each of ``drop_at``).
        drop_at: For "step": the moments of the drops as shares of the epochs, rising, in (0, 1).
        drop_factor: For "step": the factor of each drop.
        augmentation: Strategy of :mod:`distillrs.augment` ("color_crop_cutout_flip_scale_rotate"), or ``None``.
            Every example has its own draw in every epoch.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    drop_at: tuple[float, ...] = (0.5,)
    drop_factor: float = 0.1
    augmentation: str | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "a positive integer")
        for name in ("learning_rate", "momentum", "weight_decay", "drop_factor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
                raise argument_error(name, value, "a finite number")
            # Files write 1 where 1.0 is meant; equal settings must also look equal.
            object.__setattr__(self, name, float(value))
        if self.learning_rate <= 0:
            raise argument_error("learning_rate", self.learning_rate, "a number above 0")
        if not 0 <= self.momentum < 1:
            raise argument_error("momentum", self.momentum, "a number from 0 to below 1")
        if self.weight_decay < 0:
            raise argument_error("weight_decay", self.weight_decay, "a number from 0")
        if not 0 < self.drop_factor <= 1:
            raise argument_error("drop_factor", self.drop_factor, "a number above 0, at most 1")
        if self.schedule not in get_args(Schedule):
            raise unknown_name_error("schedule", str(self.schedule), list(get_args(Schedule)))
        try:
            drops = tuple(float(share) for share in self.drop_at)
        except (TypeError, ValueError, OverflowError):
            drops = (math.nan,)
        if any(not 0 < share < 1 for share in drops) or list(drops) != sorted(set(drops)):
            raise argument_error("drop_at", self.drop_at, "rising shares of the epochs, each above 0 and below 1")
        object.__setattr__(self, "drop_at", drops)
        if self.augmentation is not None and not isinstance(self.augmentation, str):
            raise argument_error("augmentation", self.augmentation, "the name of a strategy, or None")

    def rate(self, epoch: int) -> float:
        """Learning rate in an epoch, counted from 0."""
        if not 0 <= epoch < self.epochs:
            raise argument_error("epoch", epoch, f"an epoch from 0 to {self.epochs - 1}")
        share = epoch / self.epochs
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "halve":
            return self.learning_rate * (0.5 if share >= 0.5 else 1.0)
        if self.schedule == "step":
            return float(self.learning_rate * self.drop_factor ** sum(share >= drop for drop in self.drop_at))
        return self.learning_rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values that TOML and JSON can hold; what is ``None`` is left out, because TOML has no null."""
        values = asdict(self) | {"drop_at": list(self.drop_at)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """The settings that :meth:`to_dict` wrote.

        Raises:
            UnknownNameError: A key that no setting has.
            ArgumentError: A value that is not allowed, or a setting without a default that is missing.
        """
        known = [entry.name for entry in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name_error("training setting", name, known)
        for name in ("epochs", "batch_size", "learning_rate"):
            if name not in values:
                raise argument_error(name, None, "a value: it has no default")
        return cls(**values)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        # An integer beyond every float, as a file may hold one.
        return False


@dataclass(frozen=True, slots=True)
class Position:
    """Where in training one step stands, and what it was given.

    Attributes:
        epoch: From 0.
        epochs: How many there are.
        batch: Number of the minibatch in its epoch, from 0.
        batches: How many an epoch has.
        examples: Rows of the training arrays that form the minibatch, int64 [n].
        unaugmented: The minibatch before augmentation, [n, ...]; the same tensor where there is none.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    examples: Tensor | None = field(default=None, compare=False, repr=False)
    unaugmented: Tensor | None = field(default=None, compare=False, repr=False)


class StepRule(Protocol):
    """How one minibatch's gradient is formed.

    A rule is called with gradients cleared, leaves the step's gradient in each parameter's ``.grad`` and returns the
    detached loss. A rule that runs the network twice sees the same augmented minibatch both times.
    """

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, loss: LossFunction, position: Position
    ) -> Tensor:
        """Leaves the gradient of one minibatch.

        Args:
            network: In training mode; gives logits [n, C].
            images: Augmented examples, [n, ...].
            labels: int64 [n], or probabilities [n, C].
            loss: From (logits, labels) to a scalar.
            position: Where in training this is.

        Returns:
            Detached scalar loss.
        """
        ...


def plain(network: nn.Module, images: Tensor, labels: Tensor, loss: LossFunction, position: Position) -> Tensor:
    """The rule of ordinary training: the gradient of the loss on the minibatch; see :class:`StepRule`."""
    value = loss(network(images), labels)
    value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    return value.detach()


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run did.

    Attributes:
        losses: Mean loss over the examples of each epoch that was run.
        steps: Optimiser steps taken.
        seconds: Wall-clock time.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy.

    Args:
        logits: [n, C].
        labels: int64 class numbers [n], or probabilities [n, C] in a floating type; then the loss of a row is
            ``-sum_c p_c log softmax(logits)_c``. Differentiable in both.

    Returns:
        Scalar.

    Raises:
        ArgumentError: Shapes or types that do not fit.
    """
    if logits.ndim != 2:
        raise argument_error("logits", tuple(logits.shape), "a shape [n, C]")
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise argument_error("labels", tuple(labels.shape), f"probabilities of shape {tuple(logits.shape)}")
    elif labels.dtype != torch.int64 or labels.shape != logits.shape[:1]:
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise argument_error("labels", got, f"int64 [{logits.shape[0]}], or probabilities {tuple(logits.shape)}")
    return nn.functional.cross_entropy(logits, labels)


def tempered_loss(temperature: float) -> LossFunction:
    """Cross-entropy with probabilities at a temperature, ``-T^2 sum_c p_c log softmax(logits / T)_c``, row mean.

    T^2 keeps the gradient's size: without it, that of T = 20 is 400 times smaller (Hinton, Vinyals and Dean, 2015).

    Args:
        temperature: T, above 0; the probabilities are already at it.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return temperature**2 * classification_loss(logits / temperature, labels)

    return loss


@contextlib.contextmanager
def module_randomness(step: Step, name: str, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's own generators for a block and restores them after it.

    Dropout and weight initialisation draw from torch's global generators; inside this block their draws are a function
    of (step, name), and a caller's generators come out untouched.

    Args:
        step: Gives seed and index.
        name: Name of the draw.
        device: Device of the modules, where it is not the CPU.
    """
    seed = random.generator_seed(step, name)
    cuda: list[int] = []
    if device is not None and device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            with torch.cuda.device(index):
                torch.cuda.manual_seed(seed)
        yield


def train(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    rule: StepRule = plain,
    loss: LossFunction = classification_loss,
    before_epoch: EpochCallback | None = None,
    after_epoch: EpochCallback | None = None,
    optimiser: torch.optim.Optimizer | None = None,
    first_epoch: int = 0,
    views: Views | None = None,
) -> TrainingResult:
    """Trains a network in place.

    The order of the examples, their augmentation and the network's own draws (dropout) are pure functions of
    (``seed``, epoch), so the same call gives the same weights on the same machine and thread count, and a run that is
    continued at ``first_epoch`` with its weights and its optimiser's state equals one that was never interrupted.

    Args:
        network: Gives logits [n, C]. It is in training mode while an epoch runs; its modules' modes are restored
            afterwards.
        images: Examples in the network's input space, floating, [N, ...].
        labels: int64 [N], or probabilities [N, C].
        settings: How to train.
        seed: Of all draws.
        rule: How one minibatch's gradient is formed.
        loss: From (logits, labels) to a scalar.
        before_epoch: Called with (epoch from 0, network) before each epoch.
        after_epoch: Called with (epoch from 0, network) after each epoch.
        optimiser: Instead of ``torch.optim.SGD`` with the settings' momentum and decay; a caller that checkpoints
            passes its own. Its learning rate is set from the settings each epoch.
        first_epoch: Where to start; the epochs before it are not run.
        views: From an epoch to the examples and labels that stand in for ``images`` and ``labels`` in it, row by row;
            with it the settings have no augmentation.

    Returns:
        Losses, steps and seconds.

    Raises:
        ArgumentError: Arrays or settings that do not fit each other or the network.
        TrainingDivergedError: A loss or a parameter is not finite; names the epoch and the step.
    """
    _check_arrays(images, labels)
    if not 0 <= first_epoch <= settings.epochs:
        raise argument_error("first_epoch", first_epoch, f"an epoch from 0 to {settings.epochs}")
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise argument_error("network", type(network).__name__, "a module with parameters that require gradients")
    device = parameters[0].device
    _check_network(network, images, labels, device)
    if views is not None and settings.augmentation:
        allowed = "None: labels of views belong to the views as they are"
        raise argument_error("augmentation", settings.augmentation, allowed)
    augment = _augmentation(settings.augmentation, images)
    if optimiser is None:
        optimiser = torch.optim.SGD(
            parameters, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    count = len(images)
    batches = math.ceil(count / settings.batch_size)
    started = time.perf_counter()
    epoch_losses: list[float] = []
    with kept_modes(network):
        for epoch in range(first_epoch, settings.epochs):
            if before_epoch is not None:
                before_epoch(epoch, network)
            if views is not None:
                images, labels = views(epoch)
                _check_arrays(images, labels)
                if len(images) != count:
                    raise argument_error("views", f"{len(images)} examples", f"as many as images, {count}")
            network.train()
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(epoch)
            step = Step(epoch, seed=seed)
            order = random.permutation(count, step=step, name="training order")
            values: list[Tensor] = []
            sizes: list[int] = []
            with module_randomness(step, "training modules", device):
                for batch, chosen in enumerate(torch.split(order, settings.batch_size)):
                    rows = chosen.to(images.device)
                    clean = images[rows].to(device)
                    seen = clean if augment is None else augment(clean, chosen, step)
                    position = Position(epoch, settings.epochs, batch, batches, chosen, clean)
                    optimiser.zero_grad(set_to_none=True)
                    values.append(rule(network, seen, labels[chosen.to(labels.device)].to(device), loss, position))
                    sizes.append(len(chosen))
                    optimiser.step()
            epoch_losses.append(_checked_mean(values, sizes, parameters, epoch))
            if after_epoch is not None:
                after_epoch(epoch, network)
    steps = batches * (settings.epochs - first_epoch)
    return TrainingResult(tuple(epoch_losses), steps, time.perf_counter() - started)


def _checked_mean(values: list[Tensor], sizes: list[int], parameters: list[nn.Parameter], epoch: int) -> float:
    # Looked at once an epoch: asking after every step would make the CPU wait for the device each time.
    losses = torch.stack([value.double() for value in values]).cpu()
    finite = torch.isfinite(losses)
    if not bool(finite.all()):
        batch = int((~finite).nonzero()[0])
        raise TrainingDivergedError(
            f"training diverged: the loss is {losses[batch].item()} in epoch {epoch}, step {batch} of it; "
            "a smaller learning rate usually helps",
            epoch=epoch,
            step=batch,
        )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        last = len(values) - 1
        raise TrainingDivergedError(
            f"training diverged: a parameter is not finite after epoch {epoch} ({last + 1} steps); "
            "a smaller learning rate usually helps",
            epoch=epoch,
            step=last,
        )
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float((losses * weights).sum() / weights.sum())


def _check_arrays(images: Tensor, labels: Tensor) -> None:
    if not images.is_floating_point() or images.ndim < 2 or len(images) == 0:
        raise argument_error("images", f"{images.dtype} {tuple(images.shape)}", "floating examples [N, ...], N >= 1")
    if len(labels) != len(images):
        raise argument_error("labels", f"{len(labels)} rows", f"as many rows as images, {len(images)}")
    if labels.is_floating_point():
        if labels.ndim != 2:
            raise argument_error("labels", tuple(labels.shape), "probabilities [N, C]")
        off = (labels.sum(1) - 1).abs()
        # A NaN fails both comparisons, hence the negations.
        if not bool((labels >= 0).all()) or not bool((off < 1e-3).all()):
            raise argument_error("labels", "rows that are no probabilities", "rows from 0 to 1 that sum to 1")
    elif labels.dtype != torch.int64 or labels.ndim != 1:
        raise argument_error("labels", f"{labels.dtype} {tuple(labels.shape)}", "int64 [N], or probabilities [N, C]")
    elif int(labels.min()) < 0:
        raise argument_error("labels", int(labels.min()), "class numbers from 0")


def _check_network(network: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> None:
    try:
        with torch.no_grad(), evaluating(network):
            logits = network(images[:1].to(device))
    except (RuntimeError, TypeError, ValueError) as failure:
        example = f"{images.dtype} {tuple(images.shape[1:])}"
        raise argument_error("network", f"an error on one example {example} ({failure})", "logits [1, C]") from failure
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise argument_error("network", f"an output {got} for one example", "logits [1, C]")
    classes = logits.shape[1]
    if labels.is_floating_point():
        if labels.shape[1] != classes:
            raise argument_error("labels", f"{labels.shape[1]} classes", f"the network's {classes}")
    elif int(labels.max()) >= classes:
        raise argument_error("labels", int(labels.max()), f"class numbers below the network's {classes}")


def _augmentation(strategy: str | None, images: Tensor) -> Callable[[Tensor, Tensor, Step], Tensor] | None:
    if not strategy:
        return None
    from distillrs.augment import Augmentation

    augmentation = Augmentation(strategy)
    shape = tuple(images.shape[1:])

    def apply(clean: Tensor, rows: Tensor, step: Step) -> Tensor:
        plan = augmentation.plan(rows, step=step, name="training augmentation", shape=shape)
        return augmentation.apply(clean, plan)

    return apply
