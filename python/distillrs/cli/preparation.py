"""What every phase works on: data as the network sees them, the architecture, the recipe."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distillrs import transforms
from distillrs.cli import folder, options
from distillrs.cli.settings import CondenseSettings
from distillrs.errors import argument_error
from distillrs.evaluate import networks
from distillrs.registry import RecipeCard
from distillrs.trajectory import ParameterLayout

if TYPE_CHECKING:
    from distillrs.condense.experts import ExpertTraining
    from distillrs.evaluate.data import DataBundle
    from distillrs.transforms import Transform


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that is settled before the first phase.

    Attributes:
        settings: The configuration.
        bundle: Raw data.
        transform: From raw examples to the network's input.
        card: The recipe.
        device: Where networks live.
    """

    settings: CondenseSettings
    bundle: DataBundle
    transform: Transform
    card: RecipeCard
    device: torch.device

    @functools.cached_property
    def x_train(self) -> Tensor:
        """Training examples as the network sees them, on the device."""
        return self.transform.forward(self.bundle.x_train).to(self.device)

    @property
    def y_train(self) -> Tensor:
        """Their labels, on the device."""
        return self.bundle.y_train.to(self.device)

    def network(self, seed: int) -> nn.Module:
        """A fresh network whose weights are a function of the seed."""
        chosen = self.settings.network
        classes = len(self.bundle.classes)
        return networks.build(chosen.name, self.bundle.shape, classes, seed=seed, **chosen.options).to(self.device)

    @functools.cached_property
    def layout(self) -> ParameterLayout:
        """How the network's parameters lie in one vector."""
        return ParameterLayout.of(self.network(0))

    @functools.cached_property
    def expert_training(self) -> ExpertTraining:
        """How the recipe trains its experts."""
        make = options.functions(self.card)["experts"]
        training: ExpertTraining = make(
            self.network(0),
            self.settings.experts.training,
            **options.arguments(self.card, "experts", self.settings.method.experts),
        )
        return training

    @functools.cached_property
    def experts_description(self) -> dict[str, Any]:
        """All that decides the experts' trajectories."""
        training = self.settings.experts.training.to_dict() if self.card.needs == "teachers" else None
        return {
            "data": self.bundle.fingerprint,
            "transform": self.settings.transform,
            # The options too: two networks may have the same parameters and compute something else with them.
            "network": {**asdict(self.settings.network), "layout": self.layout.fingerprint},
            **({"experts": self.expert_training.describe()} if training is None else {"teachers": training}),
            "count": self.settings.experts.count,
            "codec": self.settings.experts.codec,
            "seed": self.settings.seed,
        }

    @property
    def store_path(self) -> Path:
        """The store of these experts: a folder of its own for each fingerprint, so that none is ever mixed up."""
        text = json.dumps(self.experts_description, sort_keys=True)
        root = Path(self.settings.store) if self.settings.store else Path(self.settings.out) / folder.EXPERTS
        return root / hashlib.sha256(text.encode()).hexdigest()[:16]


def prepare(settings: CondenseSettings, bundle: DataBundle, card: RecipeCard) -> Prepared:
    """Settles what every phase needs.

    Raises:
        ArgumentError: The device is not there, views that have labels of their own would be augmented, or the recipe
            needs more images of a class than are asked for, or a class has fewer examples.
    """
    counts = bundle.y_train.bincount(minlength=len(bundle.classes)).tolist()
    smallest = min(range(len(counts)), key=counts.__getitem__)
    # The controls are drawn from each class, whatever the method begins with.
    if settings.per_class > counts[smallest]:
        allowed = f"at most {counts[smallest]}, the training examples of class {bundle.classes[smallest]}"
        raise argument_error("per_class", settings.per_class, allowed)
    if card.least_per_class is not None:
        classes, teachers = len(bundle.classes), settings.experts.count
        least = card.least_per_class(classes, teachers)
        if settings.per_class < least:
            allowed = f"at least {least} for {card.id} with {classes} classes and {teachers} teachers (experts.count)"
            raise argument_error("per_class", settings.per_class, allowed)
    augmentation = settings.evaluation.training.augmentation
    if card.views is not None and augmentation:
        allowed = f"none: the labels of {card.id} belong to views as they are"
        raise argument_error("evaluation.training.augmentation", augmentation, allowed)
    return Prepared(settings, bundle, make_transform(settings.transform, bundle.x_train), card, device(settings.device))


def make_transform(kind: str, x: Tensor) -> Transform:
    """A transform fitted on training examples.

    Args:
        kind: "identity", "standardise" or "zca".
        x: [N, ...] Raw training examples.
    """
    if kind == "standardise":
        return transforms.Standardise.fit(x)
    return transforms.Zca.fit(x) if kind == "zca" else transforms.Identity()


def device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        ArgumentError: It is not, or there is no such kind.
    """
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as failure:
        reason = str(failure).splitlines()[0]
        allowed = "a device of this machine, such as 'cpu'" + (" or 'cuda'" if torch.cuda.is_available() else "")
        raise argument_error("device", name, f"{allowed} ({reason})") from failure
    return found
