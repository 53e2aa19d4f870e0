"""The whole configuration of ``distillrs condense`` on graphs, as ``config.toml`` holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from distillrs.cli.settings import FORMAT, NetworkSettings, at_least
from distillrs.errors import argument_error
from distillrs.evaluate.graph_sets import GraphTraining

NETWORKS = ("gin", "gcn")


@dataclass(frozen=True)
class GraphMethod:
    """Which recipe, and its options.

    Attributes:
        name: Its id, or ``package.module:function``.
        options: Of the recipe.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphEvaluation:
    """How sets are judged.

    Attributes:
        seeds: One fresh network for each, for every set.
        training: How each is trained, on whatever set.
        draw: How condensed sets are drawn for training: "class" or "count"; see
            :meth:`distillrs.condense.TreeSets.draw`.
        test_share: Share of each class's graphs that are looked at last.
        validation_share: Share that choices may be made on.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    training: GraphTraining = field(default_factory=GraphTraining)
    draw: Literal["class", "count"] = "class"
    test_share: float = 0.2
    validation_share: float = 0.1

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise argument_error("seeds", self.seeds, "at least one seed from 0, each once")


@dataclass(frozen=True)
class GraphSettings:
    """Everything that decides the result, and where it is written.

    Attributes:
        data: Name of a data set of graphs or path.
        method: The recipe.
        network: The architecture, "gin" or "gcn", with its "width", "pool" and "dropout"; it has as many layers as the
            recipe's trees are deep.
        evaluation: How sets are judged.
        seed: Of the split and of everything that is drawn.
        device: Where networks live.
        threads: Threads for computing.
        out: Folder for the results.
        format: Version of this file's format.
    """

    data: str
    method: GraphMethod
    network: NetworkSettings
    evaluation: GraphEvaluation
    seed: int
    device: str
    threads: int
    out: str
    format: int = FORMAT

    def __post_init__(self) -> None:
        at_least("threads", self.threads, 1)
        if not 0 <= self.seed < 2**63:
            raise argument_error("seed", self.seed, "an integer from 0 to 2**63 - 1")
        if self.network.name not in NETWORKS:
            raise argument_error("network", self.network.name, f"for graphs {' or '.join(NETWORKS)}")
        if self.format != FORMAT:
            raise argument_error("format", self.format, f"{FORMAT}, the only one that this version reads")
