"""A condensed set, in memory and as a file.

The file is safetensors: ``images``; ``labels`` (int64) or ``logits``; ``inner_lr``; ``factors.*`` and ``transform.*``
if there are any. Labels that belong to views lie in a label cache beside it, ``condensed-labels``. Its metadata hold
under ``distillrs`` a JSON object with the format's version, the number and names of the classes, the transform, the
factors, the views and the training settings. Any safetensors reader opens it. Nothing in it is code; every part is
checked before it is used, because files come from strangers.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import Dataset

from distillrs import transforms
from distillrs.checks import (
    check_floating,
    check_instance,
    check_names,
    check_number,
    check_path,
    check_whole,
    described,
)
from distillrs.condense.factors import Factors, restore_factors
from distillrs.condense.labels import MOST_CLASSES, HardLabels, SoftLabels
from distillrs.condense.signals import wide
from distillrs.condense.views import MixedLabels, ViewLabels, ViewPlan, read_labels
from distillrs.errors import DataError, DistillrsError, StoreMissing, argument_error
from distillrs.files import write_whole
from distillrs.training import TrainingSettings
from distillrs.transforms import Transform

FILE_NAME = "condensed.safetensors"
LABELS = "condensed-labels"
FORMAT = "distillrs.condensed"
VERSION = 1
_METADATA_LIMIT = 1 << 20
# Torch's operations lack some of the types that a file can hold, and say so by a RuntimeError.
_UNSOUND = (DistillrsError, safetensors.SafetensorError, KeyError, TypeError, ValueError, OverflowError, RuntimeError)
_IMAGE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class CondensedSet(Dataset[tuple[Tensor, Tensor]]):
    """Synthetic examples with all that training on them needs.

    ``dataset[i]`` is ``(example, target)``; a ``DataLoader`` takes it as it is.

    Args:
        stored: [N, ...] Images as they are stored.
        labels: [M] int64, or ``None`` if ``logits`` are given.
        logits: [M, C] floating, or ``None`` if ``labels`` are given.
        inner_lr: The learning rate that was used, or learned, while distilling.
        class_count: C; ``None`` takes it from the labels.
        classes: Names of the classes.
        transform: How raw examples map to the images; ``None`` for the identity.
        training: How a network is to be trained on the set.
        factors: How stored images become examples.
        views: Views of the images with their own labels; ``labels`` are then the classes that the images stand for. Or
            mixtures of the images with mixtures of ``logits``; see :meth:`mix`.

    Raises:
        ArgumentError: Parts that are not allowed or do not fit each other.
    """

    def __init__(
        self,
        stored: Tensor,
        labels: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        inner_lr: float,
        class_count: int | None = None,
        classes: list[str] | None = None,
        transform: Transform | None = None,
        training: TrainingSettings | None = None,
        factors: Factors | None = None,
        views: ViewLabels | MixedLabels | None = None,
    ) -> None:
        _check_images("stored", stored)
        if (labels is None) == (logits is None):
            raise argument_error("labels", "both or none of labels and logits", "one of them")
        if class_count is not None:
            check_whole("class_count", class_count, f"None or 1 to {MOST_CLASSES}", least=1, most=MOST_CLASSES)
        kind = HardLabels(labels, class_count) if labels is not None else None
        soft = SoftLabels(logits, learn=False) if logits is not None else None
        self.class_count = kind.classes if kind is not None else soft.classes if soft is not None else 0
        if class_count is not None and class_count != self.class_count:
            raise argument_error("class_count", class_count, f"the logits' {self.class_count}")
        if classes is not None:
            check_names("classes", classes, "None or a list of names")
            if len(classes) != self.class_count:
                raise argument_error("classes", f"{len(classes)} names", f"one for each of {self.class_count} classes")
        check_number("inner_lr", inner_lr, "a finite number above 0", above=0)
        for name, value, wanted in (
            ("transform", transform, Transform),
            ("training", training, TrainingSettings),
            ("factors", factors, Factors),
        ):
            if value is not None:
                check_instance(name, value, wanted, f"None or a {wanted.__name__}")
        if views is not None and not isinstance(views, ViewLabels | MixedLabels):
            raise argument_error("views", described(views), "None, ViewLabels or MixedLabels")
        self.stored = stored
        self.labels = labels
        self.logits = logits
        self.inner_lr = inner_lr
        self.classes = classes
        self.transform: Transform = transforms.Identity() if transform is None else transform
        self.training = training
        self.factors = factors
        self.views = views
        self._epoch = 0
        self._present: tuple[int, Tensor, Tensor] | None = None
        with torch.no_grad():
            self.images = stored if factors is None else factors(stored)
        if len(self.images) != len(self.target()):
            raise argument_error("labels", f"{len(self.target())} rows", f"one for each example, {len(self.images)}")

    @property
    def probabilities(self) -> Tensor | None:
        """[M, C] ``softmax(logits)``, or ``None`` for hard labels."""
        return None if self.logits is None else wide(self.logits).softmax(1)

    def target(self) -> Tensor:
        """What the loss takes: int64 [M], or probabilities [M, C]."""
        if self.labels is not None:
            return self.labels
        assert self.logits is not None
        # Logits may be kept in 16 bits, in which probabilities do not sum to 1.
        return wide(self.logits).softmax(1)

    def raw(self) -> Tensor:
        """The examples as raw values (pixels), [M, ...]."""
        return self.transform.inverse(self.images)

    def mix(self, plan: ViewPlan, logits: Tensor) -> None:
        """Gives each image one label instead of its class, and an epoch mixtures of images with those of their labels.

        Args:
            plan: How they are mixed.
            logits: [M, C] A teacher's.

        Raises:
            ArgumentError: A plan or logits that are not allowed.
        """
        check_floating("logits", logits, f"floating [{len(self.images)}, {self.class_count}]", axes=2)
        if logits.shape != (len(self.images), self.class_count):
            raise argument_error("logits", tuple(logits.shape), f"({len(self.images)}, {self.class_count})")
        self.views = MixedLabels(plan, SoftLabels(logits, learn=False).logits)
        self.labels, self.logits = None, logits.detach()
        self._present = None

    def stored_bytes(self) -> int:
        """Bytes of what is stored for training: images, labels or logits, factors, and the rate (8).

        The transform is not counted: the test set needs it just as much.
        """
        tensors = [self.stored, *(each for each in (self.labels, self.logits) if each is not None)]
        if self.factors is not None:
            tensors += self.factors.tensors().values()
        # Mixed labels are those of the set, which are counted already.
        if isinstance(self.views, ViewLabels):
            return (
                8
                + self.views.label_bytes(len(self.images), self.class_count)
                + sum(each.numel() * each.element_size() for each in tensors)
            )
        return 8 + sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Chooses which view ``dataset[i]`` gives, for a loop of one's own: to be called before each epoch.

        A set whose labels belong to its images has one view, and nothing changes. Workers of a ``DataLoader`` get the
        set anew at each epoch, unless they are persistent: those keep the view that they began with.

        Args:
            epoch: From 0; the views are gone through again and again.

        Raises:
            ArgumentError: A negative number.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise argument_error("epoch", epoch, "a whole number from 0")
        self._epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.views is not None:
            # All images at once: a view may mix an image with another one of the set.
            if self._present is None or self._present[0] != self._epoch:
                self._present = (self._epoch, *self.views.at(self.images, self._epoch))
            return self._present[1][index], self._present[2][index]
        target = self.labels[index] if self.labels is not None else wide(self.logits[index]).softmax(-1)  # type: ignore[index]  # one of the two is given
        return self.images[index], target

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set, whole or not at all.

        Args:
            path: The file, or a folder in which it will be called ``condensed.safetensors``.

        Raises:
            ArgumentError: No path, or the labels beside it are of other images, views or classes.
            StoreMissing: The labels of the set's views are not beside it.
        """
        check_path("path", path)
        path = Path(path)
        if path.suffix != ".safetensors":
            path = path / FILE_NAME
        if isinstance(self.views, ViewLabels):
            # They are written by write_labels, teacher and all; here it is only seen to that they are there.
            self._require_labels(path.parent / LABELS)
        tensors = {"images": self.stored, "inner_lr": torch.tensor(self.inner_lr, dtype=torch.float64)}
        if self.labels is not None:
            tensors["labels"] = self.labels
        if self.logits is not None:
            tensors["logits"] = self.logits
        page: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "classes": self.class_count,
            "class_names": self.classes,
            "transform": self.transform.describe(),
            "factors": None,
            "views": self.views.plan.describe() if isinstance(self.views, ViewLabels) else None,
            "mixtures": self.views.plan.describe() if isinstance(self.views, MixedLabels) else None,
            "training": None if self.training is None else self.training.to_dict(),
        }
        tensors |= {f"transform.{name}": tensor for name, tensor in self.transform.tensors().items()}
        if self.factors is not None:
            page["factors"] = {"kind": self.factors.kind, **self.factors.describe()}
            tensors |= {f"factors.{name}": tensor for name, tensor in self.factors.tensors().items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = safetensors.torch.save(tensors, {"distillrs": json.dumps(page, sort_keys=True)})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)

    def _require_labels(self, place: Path) -> None:
        assert isinstance(self.views, ViewLabels)
        try:
            read_labels(self.views.plan, place, images=_labelled(self), classes=self.class_count)
        except StoreMissing as failure:
            raise StoreMissing(
                f"path: there are no labels of the set's views at {place}; allowed is a folder where write_labels "
                f"wrote them, or into which {LABELS} of another one was copied"
            ) from failure


def _check_images(name: str, images: Tensor) -> None:
    check_floating(name, images, "floating examples [N, ...]", least_axes=2)
    if images.dtype not in _IMAGE_DTYPES or not images.numel():
        raise argument_error(name, described(images), "floating examples [N, ...]")
    if not bool(torch.isfinite(images).all()):
        raise argument_error(name, "a value that is not finite", "finite values")


def load(
    path: str | os.PathLike[str],
    *,
    factors: Mapping[str, type[Factors]] | None = None,
    max_bytes: int = 16 << 30,
) -> CondensedSet:
    """Reads a condensed set.

    Args:
        path: The file, or the folder that holds ``condensed.safetensors``.
        factors: The caller's own kinds of :class:`Factors`, by name.
        max_bytes: Largest file, and largest set of examples once computed from factors, that is accepted.

    Raises:
        DataError: There is no such file, or it is not a sound condensed set; the message says what is wrong.
    """
    check_path("path", path)
    check_whole("max_bytes", max_bytes, "a number of bytes from 1", least=1)
    if factors is not None:
        check_instance("factors", factors, Mapping, "None or a mapping from name to a kind of Factors")
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; allowed is a condensed set or the folder that `distillrs condense` wrote"
        )
    size = path.stat().st_size
    if size > max_bytes:
        raise DataError(f"{path}: {size} bytes, allowed are {max_bytes}; pass max_bytes= to accept a larger file")
    try:
        page, tensors = _read(path)
        data = _with_views(_assemble(page, tensors, factors, max_bytes), page.get("views"), path.parent / LABELS)
        return _with_mixtures(data, page.get("mixtures"))
    except _UNSOUND as failure:
        raise DataError(f"{path}: not a condensed set that this version reads ({failure})") from failure


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safetensors.safe_open(path, framework="pt") as opened:
        text = (opened.metadata() or {}).get("distillrs")
        if text is None:
            raise argument_error("metadata", "no entry 'distillrs'", "a file that Synthetic.save wrote")
        if len(text) > _METADATA_LIMIT:
            raise argument_error("metadata", f"{len(text)} characters", f"at most {_METADATA_LIMIT}")
        page = json.loads(text)
        if not isinstance(page, dict) or page.get("format") != FORMAT:
            allowed = f"{FORMAT!r}; condensed graphs are read by load_tree_sets"
            raise argument_error("format", page.get("format") if isinstance(page, dict) else page, allowed)
        if not isinstance(page.get("version"), int) or not 1 <= page["version"] <= VERSION:
            raise argument_error("version", page.get("version"), f"1 to {VERSION}; a newer distillrs may read it")
        # Cloned, so that nothing of a mapped file stays behind the tensors.
        return page, {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118  # not a dict


def _with_views(data: CondensedSet, plan: dict[str, Any] | None, labels: Path) -> CondensedSet:
    if plan is not None:
        data.views = read_labels(ViewPlan.from_dict(plan), labels, images=_labelled(data), classes=data.class_count)
    return data


def _with_mixtures(data: CondensedSet, plan: dict[str, Any] | None) -> CondensedSet:
    if plan is not None:
        if data.logits is None or data.views is not None:
            raise argument_error("mixtures", "a plan", "none for a set without logits of its images, or with views")
        data.mix(ViewPlan.from_dict(plan), data.logits)
    return data


def _labelled(data: CondensedSet) -> Tensor | int:
    # Examples that are computed from factors may differ in the last bit from machine to machine.
    return data.images if data.factors is None else len(data.images)


def _assemble(
    page: dict[str, Any], tensors: dict[str, Tensor], kinds: Mapping[str, type[Factors]] | None, max_bytes: int
) -> CondensedSet:
    parts: dict[str, dict[str, Tensor]] = {"transform": {}, "factors": {}}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        group, dot, rest = name.partition(".")
        if dot and group in parts:
            parts[group][rest] = tensor
        elif name in ("images", "labels", "logits", "inner_lr"):
            plain[name] = tensor
        else:
            raise argument_error("tensors", name, "images, labels, logits, inner_lr, transform.*, factors.*")
    for name in ("images", "inner_lr"):
        if name not in plain:
            raise argument_error("tensors", f"no {name!r}", "a file that Synthetic.save wrote")
    _check_images("images", plain["images"])
    if plain["inner_lr"].numel() != 1:
        raise argument_error("inner_lr", tuple(plain["inner_lr"].shape), "one number")
    count, names, training = page["classes"], page.get("class_names"), page.get("training")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_CLASSES:
        raise argument_error("classes", count, f"an integer from 1 to {MOST_CLASSES}")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise argument_error("class_names", type(names).__name__, "a list of texts, or none")
    for name in ("transform", "factors", "training", "views", "mixtures"):
        if page.get(name) is not None and not isinstance(page[name], dict):
            raise argument_error(name, type(page[name]).__name__, "an object")
    made = None
    if page.get("factors") is not None:
        made = restore_factors(page["factors"], parts["factors"], kinds)
        _bounded(made, plain["images"], max_bytes)
    elif parts["factors"]:
        raise argument_error("factors", "tensors without a description", "both or none")
    return CondensedSet(
        stored=plain["images"],
        labels=plain.get("labels"),
        logits=plain.get("logits"),
        inner_lr=float(plain["inner_lr"]),
        class_count=count,
        classes=names,
        transform=transforms.restore(page.get("transform") or {"kind": "identity"}, parts["transform"]),
        training=None if training is None else TrainingSettings.from_dict(training),
        factors=made,
    )


def _bounded(factors: Factors, images: Tensor, max_bytes: int) -> None:
    """Refuses factors that blow a small file up to a huge set, before they are applied."""
    examples = copy.deepcopy(factors).to("meta")(images.to("meta"))
    size = examples.numel() * examples.element_size()
    if size > max_bytes:
        raise argument_error("factors", f"{size} bytes of examples", f"at most {max_bytes}; pass max_bytes= for more")
