"""Defaults that suit a data set: what a first run takes where the user says nothing.

They are chosen for a result within minutes on two processors. A paper's own values are the defaults of its recipe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distillrs.cli.options import PARTS, options_by_part
from distillrs.registry import RecipeCard

# Up to this many values an example is small enough for a perceptron.
_SMALL_EXAMPLE = 256
# From this many examples per class on, a set carries what a network learns later, too.
_MANY = 10


@dataclass(frozen=True)
class _Budget:
    """What one kind of network can afford.

    Attributes:
        experts: Number of experts.
        epochs: Of each.
        batch_size: Of theirs.
        expert_rate: Their learning rate.
        inner_steps: Steps of the inner training.
        inner_rate: Start of the learned inner rate.
        average: Decay of the images' moving average, short beside the number of steps.
        last: First start that is never taken, for few and for many examples per class.
        image_rate: Learning rate of the images, for one example per class.
        image_rate_beside_labels: The same where labels are learned, too: they fit what the images then need not.
        inner_rate_rate: Learning rate of the inner rate.
        steps: Of the distillation.
        checks: How often it is looked at on the validation examples.
        validation_networks: For each look.
        evaluation_epochs: On small sets.
        rates: Learning rates that every small set may choose from.
        full_epochs: On the full data.
    """

    experts: int
    epochs: int
    batch_size: int
    expert_rate: float
    inner_steps: int
    inner_rate: float
    average: float
    last: tuple[int, int]
    image_rate: float
    image_rate_beside_labels: float
    inner_rate_rate: float
    steps: int
    checks: int
    validation_networks: int
    evaluation_epochs: int
    rates: tuple[float, ...]
    full_epochs: int


_PERCEPTRON = _Budget(
    experts=5,
    epochs=20,
    batch_size=64,
    expert_rate=0.1,
    inner_steps=20,
    inner_rate=0.1,
    average=0.98,
    last=(5, 10),
    image_rate=3.0,
    image_rate_beside_labels=3.0,
    inner_rate_rate=1e-4,
    steps=500,
    checks=10,
    validation_networks=2,
    evaluation_epochs=300,
    rates=(0.03,),
    full_epochs=30,
)
_CONVNET = _Budget(
    experts=3,
    epochs=10,
    batch_size=128,
    expert_rate=0.05,
    inner_steps=10,
    inner_rate=0.1,
    average=0.98,
    last=(5, 8),
    image_rate=30.0,
    image_rate_beside_labels=3.0,
    inner_rate_rate=1e-5,
    steps=120,
    checks=8,
    validation_networks=1,
    evaluation_epochs=100,
    rates=(),
    full_epochs=10,
)


def network_name(shape: Sequence[int], card: RecipeCard | None = None) -> str:
    """The architecture for examples of this shape, or the one that a recipe is for."""
    if card is not None and card.network is not None and len(shape) == 3:
        return str(card.network["name"])
    return "convnet" if len(shape) == 3 and math.prod(shape) > _SMALL_EXAMPLE else "mlp"


def network_options(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Size of a built-in network; a user's own function brings its own defaults."""
    if name == "mlp":
        return {"widths": [32]}
    if name == "convnet" and len(shape) == 3:
        # The paper's 128 channels take minutes per epoch without a GPU.
        return {"width": 16, "depth": min(3, max(1, int(math.log2(min(shape[1:])))))}
    return {}


def preset(
    shape: Sequence[int], per_class: int, card: RecipeCard, network: str, *, processors: int = 1
) -> dict[str, Any]:
    """The whole configuration but for what only the user knows.

    Args:
        shape: Of one example.
        per_class: Examples per class.
        card: The recipe.
        network: Name of the architecture.
        processors: How many may be used.
    """
    budget = _PERCEPTRON if network in ("mlp", "linear") else _CONVNET
    training = {"batch_size": budget.batch_size, "momentum": 0.9, "weight_decay": 5e-4}
    return {
        "network": {"name": network, "options": network_options(network, shape) | _of_recipe(card, network)},
        "method": _options(budget, shape, per_class, card),
        "transform": "standardise",
        "experts": {
            "count": budget.experts,
            "codec": "raw",
            "training": {
                "epochs": budget.epochs,
                "batch_size": budget.batch_size,
                "learning_rate": budget.expert_rate,
                **card.training,
            },
        },
        "distillation": {
            "steps": budget.steps,
            "validate_every": budget.steps // budget.checks,
            "validation_networks": budget.validation_networks,
            "optimisers": _optimisers(budget, per_class, card),
        },
        "evaluation": {
            "seeds": [0, 1, 2],
            "training": training
            | {
                "epochs": budget.evaluation_epochs,
                "batch_size": 256,
                "learning_rate": 0.1 if budget is _PERCEPTRON else 0.03,
                "schedule": "halve",
            },
            "learning_rates": list(budget.rates),
            "full_data": training | {"epochs": budget.full_epochs, "learning_rate": 0.05, "schedule": "cosine"},
        },
        "seed": 0,
        "device": "cpu",
        # Work on a perceptron is too little to share: handing it around takes longer than doing it.
        "threads": 1 if budget is _PERCEPTRON else processors,
    }


def _of_recipe(card: RecipeCard, network: str) -> dict[str, Any]:
    """Options of the network that the recipe is for."""
    return dict(card.network["options"]) if card.network is not None and card.network["name"] == network else {}


def _options(budget: _Budget, shape: Sequence[int], per_class: int, card: RecipeCard) -> dict[str, dict[str, Any]]:
    """Lengths and windows that fit the experts, for those options that the recipe has."""
    last = budget.last[per_class >= _MANY]
    wanted: dict[str, dict[str, Any]] = {
        "options": {
            "inner_steps": budget.inner_steps,
            "start": [0, last],
            "low": 0,
            "first_high": min(3, last),
            "last_high": last,
            "expand_steps": budget.steps // 2,
        },
        "initial": {"inner_lr": budget.inner_rate, "average": budget.average},
        # A view for each epoch of the students.
        "views": {"count": budget.evaluation_epochs},
    }
    known = options_by_part(card)
    if card.needs == "data":
        # What a published run measures on 256 examples of a class, a minute on two processors measures on fewer.
        several = per_class > 1
        wanted["options"] |= {"real_per_class": 64, "every": 10 if several else 1, "inner_epochs": 10 if several else 1}
        if len(shape) != 3:
            wanted["options"]["augment"] = ""
    return {
        part: {name: value for name, value in wanted.get(part, {}).items() if name in known[part]} for part in PARTS
    }


def _optimisers(budget: _Budget, per_class: int, card: RecipeCard) -> dict[str, dict[str, Any]]:
    """The paper's momenta with rates for this budget; groups that it does not know keep the paper's rates."""
    if card.needs != "experts":
        return {name: {"momentum": 0.0, **paper} for name, paper in card.optimisers.items()}
    # The inner loss is a mean over the examples, so the gradient of each falls as they get more.
    rate = budget.image_rate_beside_labels if "labels" in card.optimisers else budget.image_rate
    rates = {"images": rate * per_class, "inner_lr": budget.inner_rate_rate}
    return {
        name: {"momentum": 0.0, **paper, **({"lr": rates[name]} if name in rates else {})}
        for name, paper in card.optimisers.items()
    }
