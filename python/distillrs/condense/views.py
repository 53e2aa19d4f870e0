"""Labels that belong to a view of an image: the same teacher's answer for each augmented copy."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.augment import Augmentation
from distillrs.errors import SchemaMismatch, StoreError, StoreMissing, argument_error, unknown_name_error
from distillrs.frozen import evaluating
from distillrs.step import Step
from distillrs.trajectory import UNCHECKED, Fingerprint, LabelCache

Vote = Callable[[Tensor], Tensor]
_MOST_VIEWS = 1 << 20


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """How the views of a set are made: a pure function of (seed, view, image).

    Nothing of a view is kept but its labels, and no batch size, order or worker has a part in it, so that a label
    cannot be taken for another view's.

    Attributes:
        count: Number of views; epoch e sees view ``e % count``.
        augmentation: Strategy of :class:`~distillrs.augment.Augmentation`, all of it applied in order.
        area: Smallest share of an image that a resized crop has.
        mix: "none"; "cutmix": a rectangle comes from another image of the set, its area's share uniform (Yun et al.,
            ICCV 2019); "mixup": a weighted mean with another image, the weight uniform (Zhang et al., ICLR 2018).
        temperature: T at which teacher and student are compared.
        seed: Of all draws.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    count: int = 300
    augmentation: str = "resizedcrop_flip"
    area: float = 0.08
    mix: Literal["none", "cutmix", "mixup"] = "cutmix"
    temperature: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or not 1 <= self.count <= _MOST_VIEWS:
            raise argument_error("count", self.count, f"a whole number from 1 to {_MOST_VIEWS}")
        if self.mix not in ("none", "cutmix", "mixup"):
            raise argument_error("mix", self.mix, "'none', 'cutmix' or 'mixup'")
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, int | float):
            raise argument_error("temperature", self.temperature, "a number")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise argument_error("temperature", self.temperature, "a finite number above 0")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise argument_error("seed", self.seed, "an integer from 0 to 2**63 - 1")
        if isinstance(self.area, bool) or not isinstance(self.area, int | float) or not 0 < self.area <= 1:
            raise argument_error("area", self.area, "a share above 0, at most 1")
        if not isinstance(self.augmentation, str):
            raise argument_error("augmentation", self.augmentation, "the name of a strategy")
        # Labels are found again by how the plan is written, and equal plans must also look equal.
        for name in ("area", "temperature"):
            object.__setattr__(self, name, float(getattr(self, name)))
        self._augmentation()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViewPlan:
        """The plan that ``dataclasses.asdict`` described.

        Raises:
            UnknownNameError: A key that no plan has.
            ArgumentError: A value that is not allowed.
        """
        known = list(cls.__dataclass_fields__)
        for name in values:
            if name not in known:
                raise unknown_name_error("views", name, known)
        return cls(**values)

    def make(self, images: Tensor, view: int) -> Tensor:
        """A view of all images of a set.

        Args:
            images: [N, C, H, W] The whole set, in its order.
            view: From 0 to ``count`` - 1.

        Returns:
            [N, C, H, W].
        """
        if not 0 <= view < self.count:
            raise argument_error("view", view, f"a number from 0 to {self.count - 1}")
        if images.ndim != 4:
            raise argument_error("images", tuple(images.shape), "images [N, C, H, W]")
        step, count = Step(view, seed=self.seed), len(images)
        augmentation = self._augmentation()
        plan = augmentation.plan(count, step=step, shape=tuple(images.shape[1:]), name="label", device=images.device)
        seen = augmentation.apply(images, plan)
        if self.mix == "none":
            return seen
        # Another image of the set: a shift of a random order has no image mixed with itself.
        order = random.permutation(count, step=step, name="mix/partner").to(images.device)
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        share = random.uniform(count, step=step, name="mix/share")
        if self.mix == "mixup":
            own = share.to(images)[:, None, None, None]
            return own * seen + (1 - own) * seen[partner]
        inside = self._rectangle(share, step, images.shape[2], images.shape[3])
        return torch.where(inside.to(images.device), seen[partner], seen)

    def _rectangle(self, share: Tensor, step: Step, height: int, width: int) -> Tensor:
        """Bool [N, 1, height, width], of the draws alone: neither the images' type nor their device moves a side."""
        centre = random.uniform(len(share), 2, step=step, name="mix/centre")
        sides = torch.tensor([height, width])
        half = (sides * (1 - share).sqrt()[:, None] / 2).floor()
        middle = (centre * sides).floor()
        low, high = (middle - half)[:, :, None, None], (middle + half)[:, :, None, None]
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
        inside = (rows >= low[:, 0]) & (rows < high[:, 0]) & (columns >= low[:, 1]) & (columns < high[:, 1])
        return inside[:, None]

    def _augmentation(self) -> Augmentation:
        return Augmentation(self.augmentation, combine="all", resizedcrop=self.area)


class ViewLabels:
    """Views of a set with their labels, from a cache on disk or from a teacher at hand.

    Args:
        plan: How views are made.
        source: A cache of logits keyed by image and view; or a function from images [n, ...] to logits [n, C]; a
            module is asked in evaluation mode and left in the mode that it had.
    """

    def __init__(self, plan: ViewPlan, source: LabelCache | Vote) -> None:
        self.plan = plan
        self.source = source

    @property
    def temperature(self) -> float:
        """T of the labels, and of the student that learns them."""
        return self.plan.temperature

    def at(self, images: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """What an epoch sees.

        Args:
            images: [N, C, H, W] The whole set, in its order.
            epoch: From 0.

        Returns:
            The views [N, C, H, W], and probabilities [N, classes] at the plan's temperature.

        Raises:
            KeyNotFound: The cache lacks a label of this view.
        """
        view = epoch % self.plan.count
        seen = self.plan.make(images, view)
        if isinstance(self.source, LabelCache):
            found = self.source.gather(self.source.index(torch.arange(len(images)), view), temperature=self.temperature)
            assert isinstance(found, Tensor)
            return seen, found.exp().to(images)
        return seen, (_asked(self.source, seen).to(images) / self.temperature).softmax(1)

    def by(self, teacher: Vote) -> ViewLabels:
        """The same views with the labels of a teacher at hand: how other images are labelled alike."""
        return ViewLabels(self.plan, teacher)

    def label_bytes(self, images: int, classes: int) -> int:
        """Bytes of the labels of all views, 16 bits for each class."""
        return self.plan.count * images * classes * 2


def write_labels(
    plan: ViewPlan,
    images: Tensor,
    teacher: Vote,
    path: str | os.PathLike[str],
    *,
    classes: int,
    fingerprint: Fingerprint | None = None,
    overwrite: bool = False,
) -> ViewLabels:
    """Asks a teacher for the labels of all views and writes them into a cache; those that are there are not asked for.

    The cache keeps a digest of the images, so that labels of one set are never taken for those of another.

    Args:
        plan: How views are made.
        images: [N, C, H, W] The whole set, in its order.
        teacher: From images to logits [n, classes]; a module is asked in evaluation mode and left in the mode that it
            had.
        path: The cache's folder.
        classes: Number of classes.
        fingerprint: Of the teacher; ``None`` leaves it unchecked.
        overwrite: Throw away a cache that is there.

    Returns:
        The views with the cache's labels.

    Raises:
        SchemaMismatch: The cache there is of other views, other images, another teacher or other classes.
        ArgumentError: Something else than a cache would be thrown away, or images or answers that do not fit.
    """
    place = Path(path)
    if overwrite:
        _remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    words = json.dumps(asdict(plan) | {"images": _digest(images)}, sort_keys=True)
    kind = UNCHECKED if fingerprint is None else fingerprint
    numbers = torch.arange(len(images))
    with LabelCache.create(place, classes, kind, augmentation=words, exist_ok=True) as cache:
        for view in range(plan.count):
            missing = cache.missing(numbers, view)
            if len(missing):
                logits = _asked(teacher, plan.make(images, view))
                if logits.shape != (len(images), classes):
                    raise argument_error("teacher", tuple(logits.shape), f"logits {(len(images), classes)}")
                cache.append(missing, view, logits.cpu()[missing], seed=plan.seed)
    return ViewLabels(plan, LabelCache.open(place, UNCHECKED))


def read_labels(plan: ViewPlan, path: str | os.PathLike[str], *, images: int | Tensor, classes: int) -> ViewLabels:
    """The views of a set with labels that :func:`write_labels` wrote.

    Args:
        plan: How views are made.
        path: The cache's folder.
        images: The set's images [N, C, H, W], in their order; or only how many there are, which leaves open whether the
            labels are theirs.
        classes: Number of classes.

    Raises:
        StoreMissing: There is no cache.
        ArgumentError: It is of other views, images or classes, or lacks labels.
    """
    cache = LabelCache.open(path, UNCHECKED)
    words = asdict(plan)
    found = _described(cache.augmentation)
    digest = found.pop("images", None)
    if found != words or cache.classes != classes:
        got = f"{cache.classes} classes of views {cache.augmentation}"
        raise argument_error("labels", got, f"{classes} of {json.dumps(words, sort_keys=True)}")
    if isinstance(images, Tensor) and digest is not None and digest != _digest(images):
        raise argument_error("labels", "those of other images", "those of the set's images; write_labels makes them")
    count = len(images) if isinstance(images, Tensor) else images
    if len(cache) < count * plan.count:
        raise argument_error("labels", f"{len(cache)} labels", f"{count} images x {plan.count} views")
    return ViewLabels(plan, cache)


def _asked(teacher: Vote, images: Tensor) -> Tensor:
    # In training mode a teacher would change with every label that it gives.
    with torch.no_grad(), evaluating(teacher) if isinstance(teacher, nn.Module) else nullcontext():
        return teacher(images)


def _digest(images: Tensor) -> str:
    return Fingerprint.of({"images": images}).teacher


def _described(words: object) -> dict[str, Any]:
    try:
        found = json.loads(words) if isinstance(words, str) else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _remove(place: Path) -> None:
    """Removes a label cache, also a damaged one, and nothing else."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    try:
        with LabelCache.open(place, UNCHECKED):
            pass
    except (StoreMissing, SchemaMismatch, NotADirectoryError) as failure:
        raise argument_error("path", str(place), "a label cache, or a folder that is empty or not there") from failure
    except StoreError:
        pass
    shutil.rmtree(place)
