"""Mirage: graphs condensed to frequent sets of computation trees."""

from __future__ import annotations

from collections.abc import Mapping

from distillrs.condense import FrequentTreeSets
from distillrs.registry import recipe


@recipe(
    id="mirage",
    source="Gupta, Manchanda, Kumar, Bedathur, Ranu: Mirage: Model-Agnostic Graph Distillation for Graph "
    "Classification, ICLR 2024",
    equation="T(v) = (label_v, {(label_uv, T(u)) : u -> v}), G -> {T(v) : v in G}; kept: {S : n_c(S) >= support_c}, "
    "n_c(S) = |{G of class c : S in G}|, drawn in proportion to n_c(S)",
    deviations=[
        "Trees are told apart by the numbers of their subtrees, not by concatenated codes, which can collide.",
        "The number of graphs that contain a set is the count itself; the authors' code begins at 2.",
        "Sets are found depth first over bits instead of by FP-growth: the result of both is all frequent sets.",
        "The default support is a share of the class; the paper has a number for each data set and class.",
    ],
    engine="graphs",
)
def mirage(
    depth: int = 2,
    support: int | float | Mapping[int, int | float] = 0.2,
    edge_labels: bool = True,
    exclusive: bool = False,
    largest: int | None = None,
) -> FrequentTreeSets:
    """Graphs become the sets of computation trees that many graphs of their class share; nothing is trained.

    ::

        condensed = recipes.mirage(depth=2, support=0.3)(train)          # TreeSets
        graphs = condensed.graphs()
        logits = network(graphs.take(condensed.draw(64, step=step)))     # pools roots; test graphs are used whole

    Embeddings of roots equal those of the nodes they stand for in networks that sum over neighbours (GIN), not in
    those that divide by degrees (GCN).

    Args:
        depth: Layers of the networks that will be trained.
        support: Least graphs of its class that a set must be contained in: a number, a share (float), or a mapping
            from class to either. The paper's numbers are NCI1 440 and 570, molbace 150 and 104, DD 15 and 9 (with
            depth 1).
        edge_labels: Whether labels of edges tell trees apart.
        exclusive: Drops sets that are frequent in more than one class, as the authors do for NCI1.
        largest: Most trees of a set.

    Returns:
        The transform, from :class:`distillrs.graphs.Graphs` to :class:`distillrs.condense.TreeSets`.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return FrequentTreeSets(depth, support, edge_labels, exclusive, largest)
