"""Computation trees of graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._points import Integers, Whole, integers, whole

_DEEPEST = 64


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """The distinct trees of one depth.

    Attributes:
        labels: int64 ``[trees]``: label of each tree's root.
        offsets: int64 ``[trees + 1]``: where each tree's children begin, and where the last one's end.
        children: int64 ``[children]``: numbers of trees one less deep.
        edge_labels: int64 ``[children]``: labels of the edges to them.
    """

    labels: Tensor
    offsets: Tensor
    children: Tensor
    edge_labels: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """The distinct computation trees of some graphs, on the CPU. A tree's number is its row.

    Attributes:
        nodes: int64 ``[nodes]``: each node's tree.
        roots: int64 ``[trees]``: the first node of each tree.
        counts: int64 ``[trees]``: nodes that have it.
        supports: int64 ``[trees]``: graphs in which it occurs.
        levels: The distinct trees of each depth, from 0 to the full one.
    """

    nodes: Tensor
    roots: Tensor
    counts: Tensor
    supports: Tensor
    levels: tuple[Level, ...]

    def __len__(self) -> int:
        return len(self.roots)

    def frequent(self, support: int) -> Tensor:
        """Trees that occur in at least so many graphs.

        Args:
            support: Number of graphs, at least 1.

        Returns:
            int64 ``[m]``: numbers of trees, the most frequent first, of equals the lowest first.
        """
        ids = (self.supports >= whole("support", support, 1, 2**63 - 1)).nonzero()[:, 0]
        return ids[self.supports[ids].argsort(descending=True, stable=True)]

    def expand(self, tree: int, *, most: int = 2**20) -> tuple[Tensor, Tensor, Tensor]:
        """A tree as a graph of its own, in which each node sends to its parent.

        Args:
            tree: Its number.
            most: Most nodes: a tree can have as many as its width to the power of its depth.

        Returns:
            int64 ``[nodes]``, ``[2, nodes - 1]`` and ``[nodes - 1]``: labels, edges (child, parent), the edges' labels.
            The root is node 0; parents come before their children.

        Raises:
            ArgumentError: For a number that no tree has, or a tree of more than ``most`` nodes.
        """
        return expand(self.levels, tree, most)


def expand(levels: Sequence[Level], tree: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`Trees.expand`.

    Args:
        levels: The trees of each depth.
        tree: Number of one of the last level's.
        most: Most nodes.
    """
    tree = whole("tree", tree, 0, len(levels[-1].labels) - 1)
    most = whole("most", most, 1)
    depth = len(levels) - 1
    labels, edges, edge_labels = [int(levels[depth].labels[tree])], [], []
    row = [(0, tree)]
    for number in range(depth, 0, -1):
        level, below, following = levels[number], levels[number - 1], []
        for parent, own in row:
            for place in range(int(level.offsets[own]), int(level.offsets[own + 1])):
                child = int(level.children[place])
                following.append((len(labels), child))
                edges.append((len(labels), parent))
                edge_labels.append(int(level.edge_labels[place]))
                labels.append(int(below.labels[child]))
                if len(labels) > most:
                    raise argument_error("most", most, f"at least the nodes of tree {tree}")
        row = following
    return (
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T,
        torch.tensor(edge_labels, dtype=torch.int64),
    )


def nodes_of(levels: Sequence[Level]) -> Tensor:
    """How many nodes each tree of the last level has when it is written out.

    Args:
        levels: The trees of each depth.

    Returns:
        float64 ``[trees]``: exact up to 2^53, infinite beyond what float64 holds.
    """
    sizes = torch.ones(len(levels[0].labels), dtype=torch.float64)
    for level in levels[1:]:
        owners = torch.arange(len(level.labels)).repeat_interleave(level.offsets.diff())
        sizes = torch.ones(len(level.labels), dtype=torch.float64).index_add_(0, owners, sizes[level.children])
    return sizes


def only(levels: Sequence[Level], trees: Tensor) -> tuple[Level, ...]:
    """The levels with some trees of the last one, renumbered in their order, and those below that they are made of.

    Args:
        levels: The trees of each depth.
        trees: int64 ``[m]``: distinct numbers of trees of the last level.
    """
    found: list[Level] = []
    kept = trees
    for number in range(len(levels) - 1, -1, -1):
        level = levels[number]
        firsts, counts = level.offsets[kept], level.offsets[kept + 1] - level.offsets[kept]
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        places = torch.arange(int(ends[-1])) + (firsts - ends[:-1]).repeat_interleave(counts)
        below, children = torch.unique(level.children[places], return_inverse=True)
        found.append(Level(level.labels[kept], ends, children, level.edge_labels[places]))
        kept = below
    return tuple(reversed(found))


def frequent_trees(
    labels: Integers,
    edges: Integers,
    graphs: Integers | None = None,
    *,
    depth: int,
    edge_labels: Integers | None = None,
) -> Trees:
    """Finds the computation trees of all nodes and in how many graphs each occurs.

    The tree of a node is what a graph network of ``depth`` layers sees from it: its label, and below it the trees, one
    less deep, of the nodes that send to it; walks back to the parent are kept. Two nodes have the same tree exactly if
    the rooted trees are isomorphic with labels; numbers stand for whole trees, so no two can be confused (Gupta and
    others, "Mirage", 2024). Time and memory grow with nodes and edges times ``depth``.

    Args:
        labels: Integers ``[nodes]``: labels of the nodes of all graphs.
        edges: Integers ``[2, edges]``: sending node and receiving node; an undirected edge is two.
        graphs: Integers ``[nodes]``: the graph of each node; ``None`` for one graph.
        depth: Layers, from 0 to 64.
        edge_labels: Integers ``[edges]``; ``None`` if they are all alike.

    Raises:
        ArgumentError: For tensors of other types or shapes, an edge to a node that is not there, an edge between two
            graphs, or a ``depth`` out of range.
    """
    depth = whole("depth", depth, 0, _DEEPEST)
    own_labels = _integers("labels", labels, (None,))
    ends = _integers("edges", edges, (2, None))
    nodes = len(own_labels)
    owners = np.zeros(nodes, np.int64) if graphs is None else _integers("graphs", graphs, (nodes,))
    kinds = None if edge_labels is None else _integers("edge_labels", edge_labels, (ends.shape[1],)).data
    found, levels = _core.computation_trees(own_labels.data, owners.data, ends[0].data, ends[1].data, kinds, depth)
    own, roots, counts, supports = map(_tensor, found)
    return Trees(own, roots, counts, supports, tuple(Level(*map(_tensor, level)) for level in levels))


def _integers(name: str, values: Integers, shape: tuple[int | None, ...]) -> Whole:
    return integers(
        name, values, shape, f"integers [{', '.join('m' if size is None else str(size) for size in shape)}]"
    )


def _tensor(values: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(values, np.int64).copy())
