"""The synthetic set: what is learned."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import (
    check_choice,
    check_flag,
    check_floating,
    check_instance,
    check_number,
    described,
    numbers,
)
from distillrs.condense.factors import Factors
from distillrs.condense.file import CondensedSet
from distillrs.condense.labels import HardLabels, Labels, SoftLabels, check_classes
from distillrs.errors import DataError, DistillrsError, argument_error
from distillrs.step import Step

if TYPE_CHECKING:
    from distillrs.training import TrainingSettings
    from distillrs.transforms import Transform

Bound = float | Tensor


class Synthetic(nn.Module):
    """A small set of examples with labels and the learning rate it is to be trained with.

    Its parameters are ``images`` (and those of ``factors``), the labels' logits if they are learned, and ``inner_lr``.
    All of them are trained as they are, so a paper's learning rates mean here what they mean there. What must stay
    inside bounds (the box, a positive rate) is projected back after the optimiser's step: objectives do it at each
    call, and :meth:`after_step` does it at once.

    Args:
        images: [N, ...] Start values in the network's input space, any shape of example, floating.
        labels: :class:`HardLabels` or :class:`SoftLabels` of as many rows as there are examples.
        inner_lr: Start value of the inner learning rate.
        learn_inner_lr: Whether the objective trains it.
        inner_lr_bounds: Smallest and largest value that the learned rate may take; both above 0.
        box: Smallest and largest value of an image, numbers or tensors that broadcast to an example ([C, 1, 1] for
            channels); ``None`` leaves the images free.
        average: Decay d of a moving average ``mean <- d mean + (1 - d) images`` that starts at the first images;
            ``None`` keeps none. What is evaluated and saved is then the average.
        factors: How the stored images become examples; ``None`` takes them as they are.
        learn_images: Whether the stored images are trained; ``False`` leaves only the parameters of ``factors`` to the
            group "images".

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
    """

    images: Tensor
    inner_lr: Tensor

    def __init__(
        self,
        images: Tensor,
        labels: Labels,
        *,
        inner_lr: float = 0.01,
        learn_inner_lr: bool = True,
        inner_lr_bounds: tuple[float, float] = (1e-6, 1e3),
        box: tuple[Bound, Bound] | None = None,
        average: float | None = None,
        factors: Factors | None = None,
        learn_images: bool = True,
    ) -> None:
        super().__init__()
        check_floating("images", images, "floating examples [N, ...], N >= 1", least_axes=2, rows=1)
        if not bool(torch.isfinite(images).all()):
            raise argument_error("images", "a value that is not finite", "finite values")
        if not isinstance(labels, HardLabels | SoftLabels):
            raise argument_error("labels", type(labels).__name__, "HardLabels or SoftLabels")
        low, high = _bounds(inner_lr_bounds)
        check_number("inner_lr", inner_lr, f"a rate within inner_lr_bounds, {low} to {high}", least=low, most=high)
        if average is not None:
            check_number("average", average, "None or a decay from 0 to below 1", least=0, below=1)
        if factors is not None:
            check_instance("factors", factors, Factors, "None or Factors")
        for name, value in (("learn_inner_lr", learn_inner_lr), ("learn_images", learn_images)):
            check_flag(name, value)
        self.inner_lr_bounds = (float(low), float(high))
        self.learn_inner_lr = learn_inner_lr
        self.decay = average
        if not learn_images and (factors is None or not list(factors.parameters())):
            raise argument_error("learn_images", learn_images, "True for a set without factors that could be trained")
        if learn_images:
            self.images = nn.Parameter(images.detach().clone())
        else:
            self.register_buffer("images", images.detach().clone())
        self.labels = labels
        self.factors = factors
        rate = torch.tensor(inner_lr, dtype=images.dtype, device=images.device)
        if learn_inner_lr:
            self.inner_lr = nn.Parameter(rate)
        else:
            self.register_buffer("inner_lr", rate)
        self._set_box(box)
        self.project()
        self._followed = False
        for name, parameter in self._averaged():
            self.register_buffer(f"mean_{name}", parameter.detach().clone())
        with torch.no_grad():
            examples = self.examples()
        if len(examples) != len(labels):
            raise argument_error("labels", f"{len(labels)} rows", f"as many as there are examples, {len(examples)}")
        self.example_shape = tuple(examples.shape[1:])

    @classmethod
    def from_real(
        cls,
        x: Tensor,
        y: Tensor,
        per_class: int,
        labels: Literal["hard", "soft"] = "hard",
        seed: int = 0,
        *,
        classes: int | None = None,
        confidence: float = 0.9,
        **options: Any,
    ) -> Synthetic:
        """Starts from real examples drawn at random, class after class.

        Args:
            x: [n, ...] Real examples in the network's input space.
            y: [n] int64 classes.
            per_class: Examples of each class.
            labels: "hard", or "soft": logits that are learned, see :meth:`SoftLabels.from_classes`.
            seed: Of the draw.
            classes: Number of classes; ``None`` takes the largest class number + 1.
            confidence: Of soft labels.
            options: Of :class:`Synthetic`.

        Raises:
            ArgumentError: A value that is not allowed.
            DataError: A class has fewer than ``per_class`` examples.
        """
        check_choice("labels", labels, ("hard", "soft"))
        check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
        rows = draw_per_class(y, per_class, seed=seed, classes=classes)
        if len(x) != len(y):
            raise argument_error("x", f"{len(x)} examples", f"as many as y, {len(y)}")
        count = len(rows) // per_class
        chosen = y[rows]
        kind = (
            HardLabels(chosen, count)
            if labels == "hard"
            else SoftLabels.from_classes(chosen, count, confidence=confidence)
        )
        return cls(x[rows], kind, **options)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.labels.classes

    def examples(self, *, averaged: bool = False) -> Tensor:
        """The examples that a network sees, with their graph.

        Args:
            averaged: From the moving average instead of the present values, without a graph.

        Returns:
            [M, ...]

        Raises:
            ArgumentError: No average is kept.
            DistillrsError: The images were trained, but :meth:`after_step` was never called.
        """
        if not averaged:
            return self.images if self.factors is None else self.factors(self.images)
        if self.decay is None:
            raise argument_error("averaged", averaged, "False for a synthetic set that keeps no average")
        self._require_average()
        with torch.no_grad():
            if self.factors is None:
                return self.get_buffer("mean_images").clone()
            parameters = {name: self._mean(f"factors.{name}") for name, _ in self.factors.named_parameters()}
            examples: Tensor = torch.func.functional_call(self.factors, parameters, (self._mean("images"),))
            return examples

    def targets(self) -> Tensor:
        """What the loss takes: int64 [M], or probabilities [M, C] with their graph."""
        return self.labels()  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by what they are: "images", "labels" if learned, "inner_lr" if learned."""
        images = [self.images] if isinstance(self.images, nn.Parameter) else []
        groups = {"images": [*images, *(self.factors.parameters() if self.factors is not None else ())]}
        if learned := list(self.labels.parameters()):
            groups["labels"] = learned
        if isinstance(self.inner_lr, nn.Parameter):
            groups["inner_lr"] = [self.inner_lr]
        return groups

    @torch.no_grad()
    def project(self) -> None:
        """Brings the rate back into its bounds and the images into their box. Twice is the same as once."""
        # Through .data, because every objective's call comes here: a graph of an earlier call that is still held must
        # not be told that its leaves changed when they did not. When they did, the optimiser has told it already.
        self.inner_lr.data.clamp_(*self.inner_lr_bounds)
        if self._boxed:
            self.images.data.clamp_(self.get_buffer("box_low"), self.get_buffer("box_high"))

    @torch.no_grad()
    def after_step(self) -> None:
        """To be called once after each step of the optimiser: projects, then updates the moving average."""
        self.project()
        self._followed = True
        if self.decay is not None:
            for name, parameter in self._averaged():
                self._mean(name).lerp_(parameter, 1 - self.decay)

    def condensed(
        self,
        *,
        transform: Transform | None = None,
        training: TrainingSettings | None = None,
        classes: list[str] | None = None,
    ) -> CondensedSet:
        """What is evaluated and saved: a copy, detached, of the average if one is kept.

        Args:
            transform: How raw examples map to these; ``None`` for the identity.
            training: How a network is to be trained on them.
            classes: Names of the classes, for pictures and reports.

        Raises:
            ArgumentError: ``classes`` are not as many as the classes.
            DistillrsError: The images were trained, but :meth:`after_step` was never called to average them.
        """
        # The optimiser may have been the last to touch the parameters.
        self.project()
        self._require_average()
        images = self._mean("images") if self.decay is not None else self.images
        factors = None
        if self.factors is not None:
            tensors = self.factors.tensors()
            if self.decay is not None:
                tensors |= {name: self._mean(f"factors.{name}") for name, _ in self.factors.named_parameters()}
            tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            factors = type(self.factors).restore(self.factors.describe(), tensors)
        labels = self.labels
        return CondensedSet(
            stored=images.detach().clone(),
            labels=labels.indices.clone() if isinstance(labels, HardLabels) else None,
            logits=labels.logits.detach().clone() if isinstance(labels, SoftLabels) else None,
            inner_lr=float(self.inner_lr.detach()),
            class_count=self.classes,
            classes=classes,
            transform=transform,
            training=training,
            factors=factors,
        )

    def save(
        self,
        path: str | os.PathLike[str],
        transform: Transform | None = None,
        training: TrainingSettings | None = None,
        classes: list[str] | None = None,
    ) -> None:
        """Writes the set into a safetensors file, whole or not at all. See :meth:`condensed` for the arguments.

        Args:
            path: The file, or a folder in which it will be called ``condensed.safetensors``.
            transform: How raw examples map to these; ``None`` for the identity.
            training: How a network is to be trained on them.
            classes: Names of the classes.
        """
        self.condensed(transform=transform, training=training, classes=classes).save(path)

    def _averaged(self) -> list[tuple[str, Tensor]]:
        if self.decay is None:
            return []
        parts: list[tuple[str, Tensor]] = [("images", self.images)]
        if self.factors is not None:
            parts += [(f"factors.{name}", parameter) for name, parameter in self.factors.named_parameters()]
        # Dots separate modules in a state_dict, so a buffer's name may not hold one.
        return [(name.replace(".", "_"), parameter) for name, parameter in parts]

    def _require_average(self) -> None:
        # Without this, a loop that leaves after_step() out would save the first images as if they were trained.
        if self._followed:
            return
        if any(not torch.equal(parameter, self._mean(name)) for name, parameter in self._averaged()):
            raise DistillrsError(
                "average: the images were trained, but after_step() was never called, so their average still is the "
                "first images; call synthetic.after_step() after each step of the optimiser, as distillrs.fit does"
            )

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        # A state brings an average of its own.
        self._followed = True

    def _mean(self, name: str) -> Tensor:
        return self.get_buffer(f"mean_{name.replace('.', '_')}")

    def _set_box(self, box: tuple[Bound, Bound] | None) -> None:
        self._boxed = box is not None
        if box is None:
            return
        allowed = "None, or two numbers or tensors that broadcast to an example"
        if not isinstance(box, list | tuple) or len(box) != 2:
            raise argument_error("box", described(box), allowed)
        for bound in box:
            if isinstance(bound, Tensor):
                check_floating("box", bound, allowed)
            elif bound not in (-math.inf, math.inf):
                check_number("box", bound, allowed)
        low, high = (torch.as_tensor(bound, dtype=self.images.dtype, device=self.images.device) for bound in box)
        for name, bound in (("box_low", low), ("box_high", high)):
            try:
                bound.expand(self.images.shape[1:])
            except RuntimeError as failure:
                allowed = f"a number or a tensor that broadcasts to {tuple(self.images.shape[1:])}"
                raise argument_error("box", tuple(bound.shape), allowed) from failure
            # Given at construction, so no part of the state.
            self.register_buffer(name, bound.detach().clone(), persistent=False)
        if not bool((low <= high).all()):
            raise argument_error("box", box, "(low, high) with low <= high")


def _bounds(inner_lr_bounds: object) -> tuple[float, float]:
    allowed = "(low, high), finite numbers with 0 < low <= high"
    try:
        low, high = numbers("inner_lr_bounds", inner_lr_bounds)
    except ValueError as failure:  # other than two, or no numbers
        raise argument_error("inner_lr_bounds", described(inner_lr_bounds), allowed) from failure
    if not 0 < low <= high:
        raise argument_error("inner_lr_bounds", inner_lr_bounds, allowed)
    return low, high


def draw_per_class(y: Tensor, per_class: int, *, seed: int = 0, classes: int | None = None) -> Tensor:
    """Rows of ``per_class`` examples of each class, drawn at random without replacement, class after class.

    Args:
        y: [n] int64 classes.
        per_class: Examples of each class.
        seed: Of the draw.
        classes: Number of classes; ``None`` takes the largest class number + 1.

    Returns:
        int64 [classes * per_class]

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has fewer than ``per_class`` examples; names it and the counts.
    """
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise argument_error("per_class", per_class, "a positive integer")
    check_classes("y", y, len(y) if isinstance(y, Tensor) and y.ndim else 1, classes)
    classes = int(y.max()) + 1 if classes is None else classes
    if classes > len(y):
        raise DataError(f"y: {len(y)} examples of {classes} classes; allowed is at least {per_class} of each")
    step = Step(0, seed=seed)
    rows = []
    for label in range(classes):
        members = (y == label).nonzero()[:, 0]
        if len(members) < per_class:
            raise DataError(
                f"per_class: got {per_class}, but class {label} has {len(members)} of the {len(y)} examples; "
                "allowed is at most the size of the smallest class"
            )
        order = random.permutation(len(members), step=step, name=f"initial/{label}")
        rows.append(members[order[:per_class].to(members.device)])
    return torch.cat(rows)
