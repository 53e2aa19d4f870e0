"""From what the user said to the whole configuration of a condensation of graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distillrs import configuration
from distillrs.cli import options
from distillrs.cli.graphs.settings import GraphSettings
from distillrs.cli.plan import as_tables, chosen, stem
from distillrs.cli.preparation import device
from distillrs.configuration import convert, from_dict, merge
from distillrs.errors import ArgumentError, argument_error, unknown_name_error
from distillrs.evaluate.data import load_graphs
from distillrs.evaluate.graph_networks import GCN, GIN
from distillrs.registry import RecipeCard

if TYPE_CHECKING:
    from distillrs.condense import TreeSets
    from distillrs.evaluate.data import GraphBundle
    from distillrs.graphs import Graphs

# What a set of graphs has no use for, and what stands in its place.
_NOT_HERE = {
    "per_class": "nothing: how much is kept is the support (--set support=0.5)",
    "limit": "nothing: all graphs are looked at",
    "store": "nothing: no expert is recorded",
}
# Chosen on validation graphs of MUTAG; the recipe's own default keeps many more sets.
_SUPPORT = 0.7
_NETWORK_OPTIONS = ["width", "pool", "dropout"]


def request(
    file: Mapping[str, Any], flags: Mapping[str, Any], assignments: Sequence[str]
) -> tuple[dict[str, Any], RecipeCard]:
    """Puts together what was asked for, as :func:`distillrs.cli.plan.request` does.

    Args:
        file: Content of ``--config``.
        flags: Values of flags.
        assignments: ``key=value`` of each ``--set``.

    Returns:
        A partial configuration, and the recipe.

    Raises:
        UnknownNameError: A key or an option that does not exist.
        ArgumentError: A flag that graphs have no use for.
    """
    name, card = chosen(file, flags, assignments)
    asked = merge(merge(as_tables(file), as_tables(flags)), {"method": {"name": name}})
    top = [field.name for field in fields(GraphSettings)]
    known = options.options_by_part(card)["options"]
    for key, value in map(configuration.parse_assignment, assignments):
        if key in ("method", "method.name"):
            continue
        if key == "network":
            asked = merge(asked, {key: {"name": value}})
        elif "." in key or key in top or key in _NOT_HERE:
            asked = merge(asked, configuration.nest(key, value))
        elif key in known:
            asked = merge(asked, {"method": {"options": {key: value}}})
        else:
            raise unknown_name_error("set", key, sorted({*known, *top}))
    for key, allowed in _NOT_HERE.items():
        if key in asked:
            raise argument_error(key, asked[key], f"{allowed}, for graphs under {card.id}")
    return asked, card


def resolve(asked: Mapping[str, Any], card: RecipeCard) -> GraphSettings:
    """Completes a request by the defaults.

    Args:
        asked: See :func:`request`.
        card: The recipe.

    Raises:
        UnknownNameError: A key that does not exist; the nearest one is suggested.
        ArgumentError: A value that is not allowed.
    """
    if "data" not in asked:
        raise argument_error("data", "nothing", "mutag, or the path of an .npz file of graphs")
    data = convert(asked["data"], str, "data")
    known = options.options_by_part(card)["options"]
    settings = merge(
        {
            "data": data,
            "method": {"name": card.id, "options": {"support": _SUPPORT} if "support" in known else {}},
            "network": {"name": "gin", "options": {"width": 64, "pool": "sum", "dropout": 0.0}},
            "evaluation": {},
            "seed": 0,
            "device": "cpu",
            # Graphs of some dozen nodes are too little work to share.
            "threads": 1,
            "out": f"out/{stem(data)}-{card.id.rsplit(':', 1)[-1]}",
        },
        asked,
    )
    method = dict(settings["method"])
    own = method.get("options", {})
    if not isinstance(own, Mapping):
        raise argument_error("method.options", own, "a table")
    settings["method"] = method | {"options": options.complete(card, "options", own)}
    return from_dict(GraphSettings, settings)


@dataclass(frozen=True, eq=False)
class PreparedGraphs:
    """Everything that is settled before the first phase.

    Attributes:
        settings: The configuration.
        bundle: The graphs.
        card: The recipe.
        transform: What the recipe gave: from graphs to condensed sets.
        device: Where networks live.
    """

    settings: GraphSettings
    bundle: GraphBundle
    card: RecipeCard
    transform: Callable[[Graphs], TreeSets]
    device: torch.device

    def network(self, seed: int) -> nn.Module:
        """A fresh network whose weights are a function of the seed."""
        wanted, bundle = self.settings.network, self.bundle
        for name in wanted.options:
            if name not in _NETWORK_OPTIONS:
                raise unknown_name_error("network.options", name, _NETWORK_OPTIONS)
        own = dict(wanted.options) | {"depth": self.depth, "seed": seed}
        if wanted.name == "gcn":
            return GCN(bundle.node_labels, bundle.classes, **own).to(self.device)
        kinds = bundle.edge_labels if self.settings.method.options.get("edge_labels", True) else 0
        return GIN(bundle.node_labels, bundle.classes, edge_labels=kinds, **own).to(self.device)

    @property
    def depth(self) -> int:
        """Layers of the networks: as many as trees are deep, at least one."""
        return max(1, int(self.settings.method.options.get("depth", 2)))


def prepare(settings: GraphSettings, card: RecipeCard) -> PreparedGraphs:
    """Loads the graphs, and refuses what does not fit together before anything is computed.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: Graphs that are missing or unfit.
    """
    place, judged = device(settings.device), settings.evaluation
    transform = card.function(**options.arguments(card, "options", settings.method.options))
    try:
        bundle = load_graphs(
            settings.data, test_share=judged.test_share, validation_share=judged.validation_share, seed=settings.seed
        )
    except ArgumentError as failure:
        if "test_share" in str(failure) or "validation_share" in str(failure):
            raise ArgumentError(f"evaluation.{failure}") from failure
        raise
    made = PreparedGraphs(settings, bundle, card, transform, place)
    made.network(0)
    return made
