"""Defaults that suit a data set: what a first run takes where the user says nothing.

They are chosen for a result within minutes on two processors. A paper's own values are the defaults of its recipe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distillrs.cli.options import options_by_part
from distillrs.registry import RecipeCard

# Up to this many values an example is small enough for a perceptron.
_SMALL = 256


def network_name(shape: Sequence[int]) -> str:
    """The architecture for examples of this shape."""
    return "convnet" if len(shape) == 3 and math.prod(shape) > _SMALL else "mlp"


def network_options(name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Size of a built-in network; a user's own function brings its own defaults."""
    if name == "mlp":
        return {"widths": [32]}
    if name == "convnet" and len(shape) == 3:
        # The paper's 128 channels take minutes per epoch without a GPU.
        return {"width": 32, "depth": min(3, max(1, int(math.log2(min(shape[1:])))))}
    return {}


def preset(shape: Sequence[int], per_class: int, card: RecipeCard, network: str) -> dict[str, Any]:
    """The whole configuration but for what only the user knows.

    Args:
        shape: Of one example.
        per_class: Examples per class.
        card: The recipe.
        network: Name of the architecture.
    """
    large = network not in ("mlp", "linear")
    epochs = 20
    # A few examples can carry what a network learns first, more of them also what it learns later.
    last = 5 if per_class < 10 else 10
    wanted: dict[str, dict[str, Any]] = {
        "options": {"inner_steps": 20, "start": [0, last], "low": 0, "first_high": 3, "last_high": last},
        "experts": {},
        "initial": {"inner_lr": 0.1 if not large else 0.02},
    }
    known = options_by_part(card)
    options = {
        part: {name: value for name, value in values.items() if name in known[part]} for part, values in wanted.items()
    }
    # The inner loss is a mean over the examples, so the gradient of each falls as they get more.
    rates = {"images": (1.0 if not large else 100.0) * per_class, "inner_lr": 1e-4 if not large else 1e-5}
    optimisers = {
        name: {"momentum": 0.0, **paper} | ({"lr": rates[name]} if name in rates else {})
        for name, paper in card.optimisers.items()
    }
    return {
        "network": {"name": network, "options": network_options(network, shape)},
        "method": options,
        "transform": "standardise",
        "experts": {
            "count": 5 if not large else 4,
            "codec": "raw",
            "training": {
                "epochs": epochs,
                "batch_size": 64 if not large else 128,
                "learning_rate": 0.1 if not large else 0.05,
            },
        },
        "distillation": {
            "steps": 1000 if not large else 300,
            "validate_every": 100 if not large else 30,
            "validation_networks": 2 if not large else 1,
            "optimisers": optimisers,
        },
        "evaluation": {
            "seeds": [0, 1, 2],
            "training": {
                "epochs": 300,
                "batch_size": 256,
                "learning_rate": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "schedule": "halve",
            },
            "learning_rates": [0.01, 0.03, 0.1],
            "full_data": {
                "epochs": 30,
                "batch_size": 64 if not large else 128,
                "learning_rate": 0.05,
                "momentum": 0.9,
                "weight_decay": 5e-4,
                "schedule": "cosine",
            },
        },
        "seed": 0,
        "device": "cpu",
    }
