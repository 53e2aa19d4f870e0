"""What the proofs of recovered images share: Fashion-MNIST, small networks that normalise by the batch, students."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from distillrs import Objective, Step, condense, evaluate, fit
from distillrs.condense import Committee, MixedLabels, Synthetic, ViewLabels
from distillrs.evaluate.small_sets import RealSet
from distillrs.training import TrainingSettings, module_randomness, train
from distillrs.transforms import Standardise
from proofs.ledger import CELLS, source_fingerprint

Part = Literal["test", "validation"]
Views = ViewLabels | MixedLabels

CHOOSING_SEED = 100
"""Of the runs that choose settings on validation data; none of a proof's own seeds."""

TEACHER = TrainingSettings(epochs=6, batch_size=128, learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
STUDENT = TrainingSettings(epochs=60, batch_size=50, learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
"""The same for every set; a learning rate is chosen from RATES for each on validation data."""
RATES = (0.02, 0.1)


@dataclass(frozen=True)
class Images:
    """Standardised images in parts for training, choosing and testing."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor


@cache
def data(limit: int) -> Images:
    """Rows of Fashion-MNIST at 14 x 14 pixels; a tenth of them validates, 2,000 of the test set are looked at."""
    bundle = evaluate.data.load("fashion", limit=limit)

    def small(x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 2)

    to_input = Standardise.fit(small(bundle.x_train)).forward
    x, x_val, x_test = (to_input(small(part)) for part in (bundle.x_train, bundle.x_val, bundle.x_test[::5]))
    return Images(x, bundle.y_train, x_val, bundle.y_val, x_test, bundle.y_test[::5])


def _block(before: int, width: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(before, width, stride), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )
        self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _end(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: nn.Sequential(_block(1, 12), Residual(12, 24, 2), Residual(24, 32, 2), _end(32)),
    "vgg": lambda: nn.Sequential(
        _block(1, 12), nn.MaxPool2d(2), _block(12, 24), _block(24, 24), nn.MaxPool2d(2), _block(24, 32), _end(32)
    ),
    "mobile": lambda: nn.Sequential(
        _block(1, 16),
        *(_block(16, 16, 2, groups=16), nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(_block(32, 32, 2, groups=32), nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU()),
        _end(48),
    ),
    # Of students that no recovery sees.
    "plain": lambda: nn.Sequential(_block(1, 16, 2), _block(16, 32, 2), _end(32)),
    "wide": lambda: nn.Sequential(_block(1, 24), nn.AvgPool2d(2), _block(24, 24), nn.AvgPool2d(2), _end(24)),
}


def network(name: str, seed: int) -> nn.Module:
    """A fresh network whose weights are a function of the seed."""
    with module_randomness(Step(0, seed=seed), "network initialisation"):
        return ARCHITECTURES[name]()


def teacher(name: str, limit: int, seed: int) -> nn.Module:
    """A network trained on all rows, in evaluation mode; kept beside the proofs' cells."""
    file = CELLS / "condense" / "teachers" / f"{name}-{limit}-{seed}-{source_fingerprint(Path(__file__))}.safetensors"
    model = network(name, seed)
    if not file.exists():
        images = data(limit)
        train(model, images.x, images.y, TEACHER, seed=seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".tmp")
        safetensors.torch.save_file(model.state_dict(), draft)
        draft.replace(file)
    model.load_state_dict(safetensors.torch.load_file(file))
    return model.eval()


def accuracy(model: nn.Module, limit: int, part: Part = "test") -> float:
    """In percent."""
    images = data(limit)
    x, y = (images.x_test, images.y_test) if part == "test" else (images.x_val, images.y_val)
    return 100 * evaluate.accuracy(model, x, y)


def recover(made: Objective, steps: int, seed: int, rate: float) -> list[dict[str, float]]:
    """Adam with a rate that falls along half a cosine to 0; gives the terms of every step."""
    found = []
    (parameters,) = made.parameter_groups().values()
    adam = torch.optim.Adam(parameters, rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)

    def look(at: object) -> None:
        found.append({name: float(value) for name, value in at.loss.terms.items()})  # type: ignore[attr-defined]
        schedule.step()

    fit(made, adam, steps, seed=seed, callback=look)
    return found


def real(limit: int, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random real images, class after class."""
    images = data(limit)
    rows = condense.draw_per_class(images.y, per_class, seed=seed)
    return images.x[rows], images.y[rows]


def finished(synthetic: Synthetic) -> tuple[Tensor, Tensor]:
    """The images as they would be stored, and their classes."""
    small = synthetic.condensed()
    return small.images, small.target()


def student(
    images: Tensor,
    labels: Tensor,
    limit: int,
    seed: int,
    *,
    views: Views | None = None,
    name: str = "resnet",
    part: Part = "test",
    settings: TrainingSettings = STUDENT,
) -> float:
    """Accuracy of a fresh network trained on a small set, with the rate that is best on validation data.

    Args:
        images: [N, 1, 14, 14].
        labels: Their classes, which views take the place of.
        limit: Rows of the data set.
        seed: Of weights and orders.
        views: With labels of their own.
        name: Of the architecture.
        part: What is looked at.
        settings: How it is trained.
    """
    found = []
    for rate in RATES:
        model = network(name, 1000 + seed)
        small = RealSet(images, labels, views=views, classes=10)
        evaluate.train(model, small, settings=replace(settings, learning_rate=rate), seed=seed)
        found.append((accuracy(model, limit, "validation"), -rate, accuracy(model, limit, part)))
    return max(found)[2]


def committee(names: tuple[str, ...], limit: int, seed: int, prior: tuple[float, ...] | None = None) -> Committee:
    """Trained networks as one committee."""
    return Committee([teacher(name, limit, seed) for name in names], prior=prior)
