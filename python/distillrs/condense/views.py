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
from distillrs.checks import (
    check_choice,
    check_flag,
    check_floating,
    check_instance,
    check_path,
    check_whole,
    described,
)
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
        batch: Views that are labelled together, and that a student sees together, in an order drawn for each view: for
            teachers whose answer depends on the batch. ``None``: the whole set at once, for those whose answer does
            not.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    count: int = 300
    augmentation: str = "resizedcrop_flip"
    area: float = 0.08
    mix: Literal["none", "cutmix", "mixup"] = "cutmix"
    temperature: float = 20.0
    seed: int = 0
    batch: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or not isinstance(self.count, int) or not 1 <= self.count <= _MOST_VIEWS:
            raise argument_error("count", self.count, f"a whole number from 1 to {_MOST_VIEWS}")
        check_choice("mix", self.mix, ("none", "cutmix", "mixup"))
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
        if self.batch is not None and (
            isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1
        ):
            raise argument_error("batch", self.batch, "None or a positive integer")
        # Labels are found again by how the plan is written, and equal plans must also look equal.
        for name in ("area", "temperature"):
            object.__setattr__(self, name, float(getattr(self, name)))
        self._augmentation()

    def describe(self) -> dict[str, Any]:
        """The plan as JSON holds it; a batch that is not there is left out, as in files from before there was one."""
        return {name: value for name, value in asdict(self).items() if name != "batch" or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViewPlan:
        """The plan that :meth:`describe` gave.

        Raises:
            UnknownNameError: A key that no plan has.
            ArgumentError: A value that is not allowed.
        """
        check_instance("values", values, Mapping, "a mapping from setting to value")
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
        check_whole("view", view, f"a number from 0 to {self.count - 1}", least=0, most=self.count - 1)
        check_floating("images", images, "floating images [N, C, H, W], N >= 1", axes=4, rows=1)
        step, count = Step(view, seed=self.seed), len(images)
        augmentation = self._augmentation()
        plan = augmentation.plan(count, step=step, shape=tuple(images.shape[1:]), name="label", device=images.device)
        seen = augmentation.apply(images, plan)
        if self.mix == "none":
            return seen
        partner, share = self.mixture(count, view)
        partner = partner.to(images.device)
        if self.mix == "mixup":
            own = share.to(images)[:, None, None, None]
            return own * seen + (1 - own) * seen[partner]
        inside = self._rectangle(share, step, images.shape[2], images.shape[3])
        return torch.where(inside.to(images.device), seen[partner], seen)

    def mixture(self, images: int, view: int) -> tuple[Tensor, Tensor]:
        """With which other image each is mixed in a view, and how much of it stays: a pure function of (seed, view).

        Args:
            images: Number of images in the set.
            view: From 0 to ``count`` - 1.

        Returns:
            int64 [images], and float32 [images]: under "mixup" the weight of the image itself; under "cutmix" 1 minus
            the share of the rectangle from the other one, before it is cut at the image's rim.
        """
        step = Step(view, seed=self.seed)
        # Another image of the set: a shift of a random order has no image mixed with itself.
        order = random.permutation(images, step=step, name="mix/partner")
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        return partner, random.uniform(images, step=step, name="mix/share")

    def order(self, images: int, view: int) -> Tensor:
        """The order in which a view's images are cut into batches: a pure function of (seed, view).

        Args:
            images: Number of images in the set.
            view: From 0 to ``count`` - 1.

        Returns:
            int64 [images], each of 0 to ``images`` - 1 once.
        """
        return random.permutation(images, step=Step(view, seed=self.seed), name="label/order")

    def ask(self, teacher: Vote, seen: Tensor, view: int) -> Tensor:
        """A teacher's logits of a view, batch by batch if the plan has batches.

        Args:
            teacher: From images [n, ...] to logits [n, C]; a module is asked in evaluation mode and left in the mode
                that it had, so that one that is to normalise by its batch is given as a function that sees to it.
            seen: [N, C, H, W], what :meth:`make` gave.
            view: From 0 to ``count`` - 1.

        Returns:
            [N, C], in the order of the set.
        """
        check_floating("seen", seen, "floating views [N, ...], N >= 1", least_axes=2, rows=1)
        if self.batch is None:
            return _asked(teacher, seen)
        order = self.order(len(seen), view)
        answers = torch.cat([_asked(teacher, seen[rows.to(seen.device)]) for rows in torch.split(order, self.batch)])
        return torch.empty_like(answers).index_copy_(0, order.to(answers.device), answers)

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
        check_instance("plan", plan, ViewPlan, "a ViewPlan")
        if not isinstance(source, LabelCache) and not callable(source):
            raise argument_error("source", described(source), "a LabelCache, or a function from images to logits")
        self.plan = plan
        self.source = source

    @property
    def temperature(self) -> float:
        """T of the labels, and of the student that learns them."""
        return self.plan.temperature

    @property
    def batch(self) -> int | None:
        """Views that were labelled together; ``None`` where a label does not depend on its batch."""
        return self.plan.batch

    def order(self, images: int, epoch: int) -> Tensor:
        """In which an epoch's views are cut into batches, int64 [images]."""
        check_whole("epoch", epoch, "a whole number from 0", least=0)
        return self.plan.order(images, epoch % self.plan.count)

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
        check_whole("epoch", epoch, "a whole number from 0", least=0)
        view = epoch % self.plan.count
        seen = self.plan.make(images, view)
        if isinstance(self.source, LabelCache):
            found = self.source.gather(self.source.index(torch.arange(len(images)), view), temperature=self.temperature)
            assert isinstance(found, Tensor)
            return seen, found.exp().to(images)
        logits = self.plan.ask(self.source, seen, view)
        return seen, (logits.to(images) / self.temperature).softmax(1)

    def by(self, teacher: Vote) -> ViewLabels:
        """The same views with the labels of a teacher at hand: how other images are labelled alike."""
        return ViewLabels(self.plan, teacher)

    def label_bytes(self, images: int, classes: int) -> int:
        """Bytes of the labels of all views, 16 bits for each class."""
        for name, value in (("images", images), ("classes", classes)):
            check_whole(name, value, "a whole number from 0", least=0)
        return self.plan.count * images * classes * 2


class MixedLabels:
    """Views that are mixtures of images, with the same mixtures of the images' own labels.

    An image is labelled once and not once for each view, so that labels take as many bytes less as there are views.

    Args:
        plan: How views are made; its ``mix`` must be "mixup" or "none", and without ``batch``.
        source: Logits [N, C] of the set's images; or a function from images [n, ...] to logits, which is asked once for
            each set of images; a module is asked in evaluation mode and left in the mode that it had.

    Raises:
        ArgumentError: A plan that is not allowed.
    """

    def __init__(self, plan: ViewPlan, source: Tensor | Vote) -> None:
        check_instance("plan", plan, ViewPlan, "a ViewPlan")
        if isinstance(source, Tensor):
            check_floating("source", source, "floating logits [N, C], or a function from images to them", axes=2)
        elif not callable(source):
            raise argument_error("source", described(source), "logits [N, C], or a function from images to them")
        if plan.mix == "cutmix" or plan.batch is not None:
            got = f"mix {plan.mix!r}, batch {plan.batch}"
            raise argument_error("plan", got, "mix 'mixup' or 'none' without batch: labels are mixed as images are")
        self.plan = plan
        self.source = source
        self._answered: tuple[Tensor, Tensor] | None = None

    @property
    def temperature(self) -> float:
        """T of the labels, and of the student that learns them."""
        return self.plan.temperature

    @property
    def batch(self) -> None:
        """A label does not depend on its batch."""
        return

    def order(self, images: int, epoch: int) -> Tensor:
        """As a plan with batches would have it, int64 [images]."""
        check_whole("epoch", epoch, "a whole number from 0", least=0)
        return self.plan.order(images, epoch % self.plan.count)

    def at(self, images: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """What an epoch sees.

        Args:
            images: [N, C, H, W] The whole set, in its order.
            epoch: From 0.

        Returns:
            The views [N, C, H, W], and mixed probabilities [N, classes] at the plan's temperature.

        Raises:
            ArgumentError: There are not as many labels as images.
        """
        check_whole("epoch", epoch, "a whole number from 0", least=0)
        view = epoch % self.plan.count
        probabilities = (self._logits(images).to(images) / self.temperature).softmax(1)
        if len(probabilities) != len(images):
            raise argument_error("source", f"{len(probabilities)} labels", f"one for each image, {len(images)}")
        seen = self.plan.make(images, view)
        if self.plan.mix == "none":
            return seen, probabilities
        partner, share = (each.to(images.device) for each in self.plan.mixture(len(images), view))
        share = share.to(images)[:, None]
        return seen, share * probabilities + (1 - share) * probabilities[partner]

    def by(self, teacher: Vote) -> MixedLabels:
        """The same mixtures with labels of a teacher at hand: how other images are labelled alike."""
        return MixedLabels(self.plan, teacher)

    def label_bytes(self, images: int, classes: int) -> int:
        """Bytes of one label for each image, 16 bits for each class."""
        return images * classes * 2

    def _logits(self, images: Tensor) -> Tensor:
        if isinstance(self.source, Tensor):
            return self.source
        if self._answered is None or self._answered[0] is not images:
            self._answered = images, _asked(self.source, images)
        return self._answered[1]


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
    check_instance("plan", plan, ViewPlan, "a ViewPlan")
    check_floating("images", images, "floating images [N, C, H, W], N >= 1", axes=4, rows=1)
    check_path("path", path)
    check_flag("overwrite", overwrite)
    place = Path(path)
    if overwrite:
        _remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    words = json.dumps(plan.describe() | {"images": _digest(images)}, sort_keys=True)
    kind = UNCHECKED if fingerprint is None else fingerprint
    numbers = torch.arange(len(images))
    with LabelCache.create(place, classes, kind, augmentation=words, exist_ok=True) as cache:
        for view in range(plan.count):
            missing = cache.missing(numbers, view)
            if len(missing):
                logits = plan.ask(teacher, plan.make(images, view), view)
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
    check_instance("plan", plan, ViewPlan, "a ViewPlan")
    if isinstance(images, Tensor):
        check_floating("images", images, "floating images [N, C, H, W], or how many there are", axes=4, rows=1)
    else:
        check_whole("images", images, "images [N, C, H, W], or how many there are, from 1", least=1)
    check_whole("classes", classes, "a positive integer", least=1)
    cache = LabelCache.open(path, UNCHECKED)
    words = plan.describe()
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
    if not callable(teacher):
        raise argument_error("teacher", described(teacher), "a function from images [n, ...] to logits [n, C]")
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
