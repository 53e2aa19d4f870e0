"""Differentiable siamese augmentation, as data that can be replayed.

The strategies are those of B. Zhao and H. Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML
2021. An :class:`Augmentation` is drawn into an :class:`AugmentationPlan`, a handful of numbers per example, and a plan
is applied to images. Because the plan is data, the same transformation can be replayed in a backward pass without
keeping the augmented images, and shared between a real and a synthetic set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import (
    check_choice,
    check_flag,
    check_floating,
    check_instance,
    check_number,
    check_whole,
    device_of,
)
from distillrs.errors import argument_error, unknown_name_error
from distillrs.step import Step

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Draw:
    """One operation with its parameters.

    Attributes:
        operation: Name of the operation.
        parameters: float64 ``[m, k]``, one row for each image that is transformed, or one for all.
        rows: int64 ``[m]``, which images are transformed; ``None`` for all of them.
    """

    operation: str
    parameters: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AugmentationPlan:
    """What one draw of an augmentation does, as numbers that do not depend on the images.

    Attributes:
        draws: What is done, in order.
        rows: Number of images that the plan is for; ``None`` for any number of images that share one draw.
        shape: ``(channels, height, width)`` for which the plan was drawn.
    """

    draws: tuple[Draw, ...]
    rows: int | None
    shape: Shape

    def to(self, device: torch.device | str) -> AugmentationPlan:
        """The same plan with its tensors on a device, so that applying it there copies nothing."""
        moved = (
            Draw(each.operation, each.parameters.to(device), None if each.rows is None else each.rows.to(device))
            for each in self.draws
        )
        return replace(self, draws=tuple(moved))


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A strategy of differentiable augmentation.

    The strategy joins names with an underscore, as the field writes it: ``"color_crop_cutout_flip_scale_rotate"``. With
    ``combine="one"`` each draw picks one of them (the published default, mode S; there the pick is common to the batch,
    here every example has its own unless ``siamese``, so that it does not depend on how batches are cut); with
    ``"all"`` all of them are applied in the order written (mode M). With r uniform in [0, 1) and a separate r for each
    parameter, an image x of height H and width W becomes:

    - ``color``: x + brightness (r - 1/2); then mean over channels + saturation r (x - that mean); then mean over the
      image + (r + contrast) (x - that mean).
    - ``crop``: x shifted by whole pixels, uniform in [-s, s] for s = round(crop H) and round(crop W), zeros outside.
    - ``cutout``: zero in a rectangle of round(cutout H) by round(cutout W) whose centre is uniform over the image.
    - ``flip``: mirrored left to right with probability ``flip``.
    - ``scale``: height and width each magnified by 1/u, u uniform in [1/scale, scale), about the centre.
    - ``rotate``: turned about the centre by rotate (2 r - 1) degrees.
    - ``resizedcrop``: a rectangle of the image, blown up to the whole. Its area is a share of the image's, uniform in
      [resizedcrop, 1); height over width, beside those of the image, is exp of a number uniform in [-log 4/3, log 4/3);
      its place is uniform. A side that would be too long is that of the image.

    Scaling and rotation sample bilinearly between pixel centres, with zeros outside; a resized crop has no outside.
    Every operation is linear in x, but for the constant that brightness adds, so gradients of any order exist.

    Attributes:
        strategy: Names joined with an underscore; empty for the identity.
        siamese: One draw for every example of a call, instead of one for each.
        combine: ``"one"`` or ``"all"``.
        brightness: Width of the interval from which brightness is added.
        saturation: Upper end of the saturation factor.
        contrast: Lower end of the contrast factor, whose interval has width 1.
        crop: Largest shift as a share of each side.
        cutout: Side of the zeroed rectangle as a share of each side.
        flip: Probability of mirroring.
        scale: Largest factor of scaling, at least 1.
        rotate: Largest angle in degrees.
        resizedcrop: Smallest share of the area that a resized crop has, above 0.
    """

    strategy: str
    siamese: bool = False
    combine: Literal["one", "all"] = "one"
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    resizedcrop: float = 0.08
    operations: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_instance("strategy", self.strategy, str, "the operations' names, joined by '_', or ''")
        names = tuple(self.strategy.split("_")) if self.strategy else ()
        for name in names:
            if name not in _OPERATIONS:
                raise unknown_name_error("strategy", name, list(_OPERATIONS))
        if len(set(names)) != len(names):
            raise argument_error("strategy", self.strategy, "each operation at most once")
        check_choice("combine", self.combine, ("one", "all"))
        check_flag("siamese", self.siamese)
        for name in ("brightness", "saturation", "contrast", "rotate"):
            check_number(name, getattr(self, name), "a finite number from 0", least=0)
        for name in ("crop", "cutout", "flip"):
            check_number(name, getattr(self, name), "a share from 0 to 1", least=0, most=1)
        check_number("scale", self.scale, "a finite factor from 1", least=1)
        check_number("resizedcrop", self.resizedcrop, "a share above 0, at most 1", above=0, most=1)
        object.__setattr__(self, "operations", names)

    def plan(
        self,
        units: int | range | Tensor,
        *,
        step: Step | int,
        shape: tuple[int, ...],
        name: str = "augment",
        device: torch.device | str | None = None,
    ) -> AugmentationPlan:
        """Draws what happens to each example: a pure function of the step's seed and index, the name and the unit.

        Args:
            units: Number of examples (their global ids follow ``step.first_unit``), or the ids as a range or an int64
                tensor ``[n]``. What happens to one id does not depend on which others are drawn with it.
            step: Step of the run.
            shape: ``(channels, height, width)`` of one example.
            name: Name of the draw; two draws at one step need two names.
            device: Where the plan's tensors are put.

        Raises:
            ArgumentError: ``shape`` is not that of an image.
        """
        size = _image_shape(shape)
        if not isinstance(units, int | range | Tensor):
            raise argument_error("units", type(units).__name__, "a number of examples, a range, or int64 ids [n]")
        if device is not None:
            device_of("device", device)
        # One row that everybody shares does not depend on who asks for it.
        step = replace(Step.of(step), first_unit=0) if self.siamese else step
        ids = 1 if self.siamese else units
        rows = ids if isinstance(ids, int) else len(ids)
        picked: Tensor | None = None
        if self.combine == "one" and len(self.operations) > 1:
            picked = random.integers(ids, len(self.operations), step=step, name=f"{name}/operation")
        draws = []
        for place, operation in enumerate(self.operations):
            chosen = None if picked is None else (picked == place).nonzero()[:, 0]
            if chosen is not None and not len(chosen):
                continue
            count, draw, _ = _OPERATIONS[operation]
            unit = random.uniform(ids, count, step=step, name=f"{name}/{operation}", dtype=torch.float64)
            unit = unit if chosen is None else unit[chosen]
            draws.append(Draw(operation, draw(self, unit, size), None if self.siamese else chosen))
        plan = AugmentationPlan(tuple(draws), None if self.siamese else rows, size)
        return plan if device is None else plan.to(device)

    def apply(self, images: Tensor, plan: AugmentationPlan) -> Tensor:
        """Transforms images by a plan, differentiably (of any order) in the images.

        Args:
            images: ``[n, channels, height, width]``, floating.
            plan: A plan of ``n`` rows, or of one row that every image shares.

        Returns:
            ``[n, channels, height, width]`` of the same dtype and device; the images themselves when the strategy is
            empty.

        Raises:
            ArgumentError: The images do not have the plan's shape or number.
        """
        return apply(images, plan)


def apply(images: Tensor, plan: AugmentationPlan) -> Tensor:
    """See :meth:`Augmentation.apply`; a plan holds all that is needed."""
    check_instance("plan", plan, AugmentationPlan, "an AugmentationPlan")
    check_floating("images", images, "floating images [n, channels, height, width]")
    if not plan.draws:
        return images
    if images.ndim != 4 or tuple(images.shape[1:]) != plan.shape:
        raise argument_error("images", tuple(images.shape), f"[n, {', '.join(map(str, plan.shape))}], as the plan")
    if plan.rows is not None and plan.rows != images.shape[0]:
        raise argument_error("images", f"{images.shape[0]} images", f"{plan.rows}, as many as the plan was drawn for")
    plan = plan.to(images.device)
    for draw in plan.draws:
        transform = _OPERATIONS[draw.operation][2]
        if draw.rows is None:
            images = transform(images, draw.parameters)
        else:
            images = images.index_copy(0, draw.rows, transform(images[draw.rows], draw.parameters))
    return images


def _image_shape(shape: tuple[int, ...]) -> Shape:
    allowed = "(channels, height, width): augmentation is for images; leave it out for vectors"
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        raise argument_error("shape", shape, allowed)
    for side in shape:
        check_whole("shape", side, allowed, least=1)
    channels, height, width = shape
    return int(channels), int(height), int(width)


def _draw_color(augmentation: Augmentation, unit: Tensor, shape: Shape) -> Tensor:
    scale = unit.new_tensor([augmentation.brightness, augmentation.saturation, 1.0])
    shift = unit.new_tensor([-augmentation.brightness / 2, 0.0, augmentation.contrast])
    return unit * scale + shift


def _apply_color(images: Tensor, parameters: Tensor) -> Tensor:
    brightness, saturation, contrast = parameters.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = grey + saturation * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (images - mean)


def _share(share: float, side: int) -> int:
    # Half a pixel counts as one, as the published code has it; Python's round() would send it to the even number.
    return math.floor(share * side + 0.5)


def _draw_crop(augmentation: Augmentation, unit: Tensor, shape: Shape) -> Tensor:
    largest = unit.new_tensor([_share(augmentation.crop, side) for side in shape[1:]])
    return torch.floor(unit * (2 * largest + 1)) - largest


def _apply_crop(images: Tensor, parameters: Tensor) -> Tensor:
    rows, columns = _pixels(images)
    shift = parameters[:, :, None, None]
    return _gather(images, rows + shift[:, 0].long(), columns + shift[:, 1].long())


def _draw_cutout(augmentation: Augmentation, unit: Tensor, shape: Shape) -> Tensor:
    side = unit.new_tensor([_share(augmentation.cutout, side) for side in shape[1:]])
    # An even rectangle has its centre between pixels, so one more place for it.
    places = unit.new_tensor(shape[1:]) + (side + 1) % 2
    first = torch.floor(unit * places) - torch.div(side, 2, rounding_mode="floor")
    return torch.cat([first, first + side], dim=1)


def _apply_cutout(images: Tensor, parameters: Tensor) -> Tensor:
    rows, columns = _pixels(images)
    top, left, bottom, right = parameters[:, :, None, None].unbind(1)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return images.masked_fill(inside[:, None], 0)


def _draw_flip(augmentation: Augmentation, unit: Tensor, shape: Shape) -> Tensor:
    return (unit < augmentation.flip).to(unit.dtype)


def _apply_flip(images: Tensor, parameters: Tensor) -> Tensor:
    return torch.where(parameters[:, :, None, None] > 0, images.flip(3), images)


def _draw_scale(augmentation: Augmentation, unit: Tensor, shape: Shape) -> Tensor:
    low, high = 1 / augmentation.scale, augmentation.scale
    return low + (high - low) * unit


def _apply_scale(images: Tensor, parameters: Tensor) -> Tensor:
    rows, columns = _centred(images)
    stretch = parameters[:, :, None, None]
    return _bilinear(images, rows * stretch[:, 0], columns * stretch[:, 1])


def _draw_rotate(augmentation: Augmentation, unit: Tensor, shape: Shape) -> Tensor:
    return (2 * unit - 1) * math.radians(augmentation.rotate)


def _apply_rotate(images: Tensor, parameters: Tensor) -> Tensor:
    rows, columns = _centred(images)
    angle = parameters[:, :, None]
    sine, cosine = angle.sin(), angle.cos()
    return _bilinear(images, rows * cosine + columns * sine, columns * cosine - rows * sine)


def _draw_resized_crop(augmentation: Augmentation, unit: Tensor, shape: Shape) -> Tensor:
    sides = unit.new_tensor(shape[1:])
    area = augmentation.resizedcrop + (1 - augmentation.resizedcrop) * unit[:, :1]
    ratio = torch.exp((2 * unit[:, 1:2] - 1) * math.log(4 / 3))
    size = (torch.cat([area * ratio, area / ratio], dim=1).sqrt()).clamp(max=1) * sides
    return torch.cat([unit[:, 2:] * (sides - size), size], dim=1)


def _apply_resized_crop(images: Tensor, parameters: Tensor) -> Tensor:
    rows, columns = _pixels(images)
    height, width = images.shape[2:]
    top, left, tall, wide = parameters[:, :, None, None].unbind(1)
    # From pixel centre to pixel centre, held inside: half a pixel outside the rectangle may be outside the image.
    down = (top + (rows + 0.5) * (tall / height) - 0.5).clamp(0, height - 1)
    across = (left + (columns + 0.5) * (wide / width) - 0.5).clamp(0, width - 1)
    return _bilinear(images, down - (height - 1) / 2, across - (width - 1) / 2)


def _pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    return rows, columns


def _centred(images: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = _pixels(images)
    height, width = images.shape[2:]
    return rows.double() - (height - 1) / 2, columns.double() - (width - 1) / 2


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels ``[n, c, h, w]`` at integer places ``[n or 1, h, w]`` (broadcast), zero outside."""
    number, channels, height, width = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    place = place.reshape(-1, 1, height * width).expand(number, channels, -1)
    taken = images.flatten(2).gather(2, place).view(images.shape)
    return taken * inside[:, None].to(images.dtype)


def _bilinear(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The images sampled at places measured from the centre in pixels, between the four nearest pixels.

    Built of gathers because the double backward of torch's own sampler is missing in releases that we support.
    """
    height, width = images.shape[2:]
    # Places are in double precision whatever the images' type: half precision cannot tell neighbouring pixels apart.
    rows, columns = rows + (height - 1) / 2, columns + (width - 1) / 2
    top, left = rows.floor(), columns.floor()
    below, right = (rows - top).to(images.dtype)[:, None], (columns - left).to(images.dtype)[:, None]
    top, left = top.long(), left.long()
    return (
        _gather(images, top, left) * ((1 - below) * (1 - right))
        + _gather(images, top, left + 1) * ((1 - below) * right)
        + _gather(images, top + 1, left) * (below * (1 - right))
        + _gather(images, top + 1, left + 1) * (below * right)
    )


_OPERATIONS: dict[
    str, tuple[int, Callable[[Augmentation, Tensor, Shape], Tensor], Callable[[Tensor, Tensor], Tensor]]
] = {
    "color": (3, _draw_color, _apply_color),
    "crop": (2, _draw_crop, _apply_crop),
    "cutout": (2, _draw_cutout, _apply_cutout),
    "flip": (1, _draw_flip, _apply_flip),
    "scale": (2, _draw_scale, _apply_scale),
    "rotate": (1, _draw_rotate, _apply_rotate),
    "resizedcrop": (4, _draw_resized_crop, _apply_resized_crop),
}
