"""Small training sets as evaluation sees them, and random real ones to hold them against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from distillrs.checks import check_instance
from distillrs.errors import DataError, argument_error
from distillrs.evaluate.accounting import count_stored
from distillrs.evaluate.data.bundle import DataBundle
from distillrs.evaluate.data.rows import class_counts, pick_per_class
from distillrs.training import TrainingSettings, tempered_loss
from distillrs.training import train as train_on_arrays
from distillrs.transforms import Identity, Transform

Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class SmallSet(Protocol):
    """A set that a network can be trained on: a condensed set has these, and so may anybody's own class."""

    @property
    def images(self) -> Tensor:
        """Examples in the network's input space, [N, ...]."""
        ...

    @property
    def transform(self) -> Transform | None:
        """From raw examples to the network's input; ``None`` for the identity."""
        ...

    @property
    def training(self) -> TrainingSettings | None:
        """How a network is to be trained on it, where that is known."""
        ...

    def target(self) -> Tensor:
        """int64 [N], or probabilities [N, C]."""
        ...

    def stored_bytes(self) -> int:
        """Bytes of images, labels, factors and rates."""
        ...


class LabelledViews(Protocol):
    """Views of a set with labels of their own; a set that has them under ``views`` is trained on them."""

    @property
    def temperature(self) -> float:
        """At which labels and students are compared."""
        ...

    def at(self, images: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Views [N, ...] of all images [N, ...] and probabilities [N, C] for an epoch."""
        ...

    def by(self, teacher: Callable[[Tensor], Tensor]) -> LabelledViews:
        """The same views with the labels of a teacher, from images [n, ...] to logits [n, C]."""
        ...

    def label_bytes(self, images: int, classes: int) -> int:
        """Bytes of the labels of all views."""
        ...


@runtime_checkable
class BatchedViews(LabelledViews, Protocol):
    """Views some of which may have been labelled together."""

    @property
    def batch(self) -> int | None:
        """Views that were labelled together and are to be seen together; ``None`` if that does not matter."""
        ...

    def order(self, images: int, epoch: int) -> Tensor:
        """Where it matters: the order, int64 [images], that is cut into such batches in an epoch."""
        ...


@dataclass(frozen=True, eq=False)
class RealSet:
    """Real examples as a :class:`SmallSet`.

    Attributes:
        images: Already transformed, [N, ...].
        labels: int64 [N], or probabilities [N, C].
        transform: That was applied.
        training: As for any small set.
        views: Views with labels of their own.
        classes: Number of classes, for the bytes of those labels.
    """

    images: Tensor
    labels: Tensor
    transform: Transform | None = field(default_factory=Identity)
    training: TrainingSettings | None = None
    views: LabelledViews | None = None
    classes: int = 0

    def target(self) -> Tensor:
        """int64 [N], or probabilities [N, C]."""
        return self.labels

    def stored_bytes(self) -> int:
        """Bytes of images and labels."""
        extra = 0 if self.views is None else self.views.label_bytes(len(self.images), self.classes)
        return count_stored(self.images, self.labels).total + extra


def random_real(
    bundle: DataBundle, counts: Sequence[int], *, seed: int = 0, transform: Transform | None = None
) -> RealSet:
    """Draws real training examples.

    Args:
        bundle: Where to draw from; only its training part is touched.
        counts: How many of each class.
        seed: Of the draw.
        transform: What the network sees of them.

    Returns:
        The examples, class by class, with class numbers.

    Raises:
        DataError: A class has too few.
    """
    if len(counts) != len(bundle.classes):
        raise argument_error("counts", f"{len(counts)} counts", f"one for each of the {len(bundle.classes)} classes")
    rows = pick_per_class(bundle.y_train, counts, seed=seed, name="random real")
    seen = transform or Identity()
    return RealSet(seen.forward(bundle.x_train[rows]), bundle.y_train[rows], seen)


def counts_of(target: Tensor, classes: int) -> list[int]:
    """Examples of each class in a target; probabilities count for their likeliest class.

    Args:
        target: int64 [N], or probabilities [N, C].
        classes: Number of classes.
    """
    hard = target.argmax(1) if target.is_floating_point() else target
    if len(hard) and int(hard.max()) >= classes:
        raise DataError(f"the set has class {int(hard.max())}, the data has {classes} classes")
    return class_counts(hard.cpu(), classes)


def train(network: Network, data: SmallSet, *, settings: TrainingSettings | None = None, seed: int = 0) -> Network:
    """Trains a network in place on a small set, the way every set is trained here.

    Args:
        network: Gives logits [n, C].
        data: A condensed set, or any other :class:`SmallSet`.
        settings: How; by default the settings that the set brings. Where the labels of its views belong to batches,
            those are the batches, whatever the settings say.
        seed: Of order and augmentation.

    Returns:
        The network itself. :func:`distillrs.training.train` tells of losses and steps.

    Raises:
        ArgumentError: No network or set, neither gives settings, or arrays that do not fit.
        TrainingDivergedError: See :func:`distillrs.training.train`.
    """
    check_instance("network", network, nn.Module, "a module that gives logits [n, C]")
    if not isinstance(data, SmallSet):
        raise argument_error("data", type(data).__name__, "a condensed set, or any other SmallSet")
    chosen = settings if settings is not None else data.training
    if chosen is None:
        raise argument_error("settings", None, "training settings: this set brings none")
    views: LabelledViews | None = getattr(data, "views", None)
    if views is None:
        train_on_arrays(network, data.images, data.target(), chosen, seed=seed)
        return network
    images, found = data.images, views
    orders: Callable[[int], Tensor] | None = None
    if isinstance(views, BatchedViews) and views.batch is not None:
        chosen, orders = replace(chosen, batch_size=views.batch), partial(views.order, len(images))
    train_on_arrays(
        network,
        images,
        data.target(),
        chosen,
        seed=seed,
        loss=tempered_loss(views.temperature),
        views=lambda epoch: found.at(images, epoch),
        orders=orders,
    )
    return network
