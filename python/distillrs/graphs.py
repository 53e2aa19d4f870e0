"""Labelled graphs, many in one set of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.errors import argument_error


@dataclass(frozen=True, slots=True, eq=False)
class Graphs:
    """Graphs with labels on their nodes, one class each, concatenated.

    Attributes:
        labels: int64 ``[nodes]``: label of each node, from 0.
        edges: int64 ``[2, edges]``: sending and receiving node, counted over all graphs; an undirected edge is two.
        owners: int64 ``[nodes]``: graph of each node, never falling.
        y: int64 ``[graphs]``: class of each graph, from 0. A graph may have no node.
        edge_labels: int64 ``[edges]``, from 0; ``None`` if edges are all alike.
        pooled: bool ``[nodes]``: the nodes that speak for their graph; ``None`` for all of them.

    Raises:
        ArgumentError: For tensors of other types or shapes, owners that fall or are no graphs, or an edge that leaves
            its graph.
    """

    labels: Tensor
    edges: Tensor
    owners: Tensor
    y: Tensor
    edge_labels: Tensor | None = None
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        nodes = len(self.labels) if isinstance(self.labels, Tensor) and self.labels.ndim else 0
        _check("labels", self.labels, (None,))
        _check("edges", self.edges, (2, None))
        _check("owners", self.owners, (nodes,))
        _check("y", self.y, (None,))
        if self.edge_labels is not None:
            _check("edge_labels", self.edge_labels, (self.edges.shape[1],))
        if self.pooled is not None:
            _check("pooled", self.pooled, (nodes,), torch.bool)
        for name in ("labels", "y", "edge_labels"):
            values = getattr(self, name)
            if values is not None and values.numel() and int(values.min()) < 0:
                raise argument_error(name, int(values.min()), "numbers from 0")
        if nodes and bool((self.owners.diff() < 0).any()):
            raise argument_error("owners", "a graph whose nodes are not together", "numbers of graphs that never fall")
        if nodes and not 0 <= int(self.owners[0]) <= int(self.owners[-1]) < len(self.y):
            outside = int(self.owners[0]) if int(self.owners[0]) < 0 else int(self.owners[-1])
            raise argument_error("owners", outside, f"graphs from 0 to {len(self.y)} - 1")
        if self.edges.numel():
            if not 0 <= int(self.edges.min()) <= int(self.edges.max()) < nodes:
                outside = int(self.edges[(self.edges < 0) | (self.edges >= nodes)][0])
                raise argument_error("edges", outside, f"nodes from 0 to {nodes} - 1")
            ends = self.owners[self.edges]
            wrong = (ends[0] != ends[1]).nonzero()
            if len(wrong):
                raise argument_error("edges", f"edge {int(wrong[0, 0])} between two graphs", "edges within a graph")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def sizes(self) -> Tensor:
        """int64 ``[graphs]``: nodes of each graph."""
        return self.owners.bincount(minlength=len(self.y))

    def take(self, rows: Tensor) -> Graphs:
        """Some of the graphs, in the order in which they are asked for.

        Args:
            rows: int64 ``[m]``: numbers of graphs; one may come twice.

        Raises:
            ArgumentError: For anything else.
        """
        _check("rows", rows, (None,))
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            outside = int(rows[(rows < 0) | (rows >= len(self))][0])
            raise argument_error("rows", outside, f"graphs from 0 to {len(self)} - 1")
        sizes = self.sizes
        firsts = sizes.cumsum(0) - sizes
        own = sizes[rows]
        nodes = _spans(firsts[rows], own)
        of_edge = self.owners[self.edges[1]]
        order = of_edge.argsort(stable=True)
        counts = of_edge.bincount(minlength=len(self))
        edges = order[_spans((counts.cumsum(0) - counts)[rows], counts[rows])]
        # How far each copy's nodes have moved.
        moved = (own.cumsum(0) - own - firsts[rows]).repeat_interleave(counts[rows])
        return Graphs(
            self.labels[nodes],
            self.edges[:, edges] + moved,
            torch.arange(len(rows), device=rows.device).repeat_interleave(own),
            self.y[rows],
            None if self.edge_labels is None else self.edge_labels[edges],
            None if self.pooled is None else self.pooled[nodes],
        )

    def to(self, device: torch.device | str) -> Graphs:
        """The same on another device."""
        return Graphs(
            self.labels.to(device),
            self.edges.to(device),
            self.owners.to(device),
            self.y.to(device),
            None if self.edge_labels is None else self.edge_labels.to(device),
            None if self.pooled is None else self.pooled.to(device),
        )

    def stored_bytes(self) -> int:
        """Bytes of the plainest compact form: every number in as few whole bytes as the largest of its kind needs.

        Numbers are labels of nodes, the two ends of each edge within its graph, labels of edges, nodes and edges of
        each graph, and classes. Where every edge has its reverse with the same label, one of the two is stored.
        """
        sizes = self.sizes
        ends = self.edges - (sizes.cumsum(0) - sizes)[self.owners[self.edges[1]]]
        kinds = torch.zeros_like(self.edges[0]) if self.edge_labels is None else self.edge_labels
        forward = torch.stack([self.edges[0], self.edges[1], kinds], 1)
        backward = forward[:, [1, 0, 2]]
        both = _sorted_rows(forward).equal(_sorted_rows(backward)) and not bool((self.edges[0] == self.edges[1]).any())
        count = self.edges.shape[1] // 2 if both else self.edges.shape[1]
        edges_of = self.owners[self.edges[1]].bincount(minlength=len(self)) // (2 if both else 1)
        per_edge = 2 * width(ends) + (0 if self.edge_labels is None else width(self.edge_labels))
        per_graph = width(sizes) + width(edges_of) + width(self.y)
        return len(self.labels) * width(self.labels) + count * per_edge + len(self) * per_graph


def width(values: Tensor) -> int:
    """Whole bytes, 1, 2, 4 or 8, that the largest of some numbers from 0 takes.

    Args:
        values: int64, any shape.
    """
    largest = int(values.max()) if values.numel() else 0
    return next(size for size in (1, 2, 4, 8) if largest < 1 << 8 * size)


def _spans(firsts: Tensor, counts: Tensor) -> Tensor:
    """``first, first + 1, ...`` of each span, ``count`` of them, one span after the other."""
    before = counts.cumsum(0) - counts
    places = torch.arange(int(counts.sum()), device=counts.device)
    return places + (firsts - before).repeat_interleave(counts)


def _sorted_rows(rows: Tensor) -> Tensor:
    for column in range(rows.shape[1] - 1, -1, -1):
        rows = rows[rows[:, column].argsort(stable=True)]
    return rows


def _check(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype = torch.int64) -> None:
    if (
        not isinstance(tensor, Tensor)
        or tensor.dtype != dtype
        or tensor.dim() != len(shape)
        or any(size not in (None, own) for size, own in zip(shape, tensor.shape, strict=True))
    ):
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        shown = ", ".join("m" if size is None else str(size) for size in shape)
        raise argument_error(name, got, f"a tensor {dtype} [{shown}]")
