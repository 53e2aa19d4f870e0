"""Small networks over graphs: sums over neighbours, by embeddings of labels.

None normalises over a batch, so that a node's embedding depends on its own computation tree and on nothing else.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distillrs.errors import argument_error
from distillrs.graphs import Graphs
from distillrs.step import Step
from distillrs.training import module_randomness

Pool = Literal["sum", "mean"]


class _Network(nn.Module):
    """Embeddings of nodes, pooled over each graph, then a linear map to logits."""

    def __init__(self, node_labels: int, classes: int, width: int, depth: int, pool: Pool, dropout: float) -> None:
        super().__init__()
        for name, value in (("node_labels", node_labels), ("classes", classes), ("width", width), ("depth", depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "a positive integer")
        if pool not in ("sum", "mean"):
            raise argument_error("pool", pool, "'sum' or 'mean'")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise argument_error("dropout", dropout, "a number from 0 to below 1")
        self.pool = pool
        self.depth = depth
        self.start = nn.Embedding(node_labels, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def embed(self, graphs: Graphs) -> Tensor:
        """Embeddings of all nodes after the last layer, ``[nodes, width]``."""
        raise NotImplementedError

    def _started(self, graphs: Graphs) -> Tensor:
        _check_labels("labels", graphs.labels, self.start.num_embeddings)
        nodes: Tensor = self.start(graphs.labels)
        return nodes

    def forward(self, graphs: Graphs) -> Tensor:
        """Logits ``[graphs, classes]``.

        Args:
            graphs: Where some nodes are marked as pooled, these alone speak for their graph.

        Raises:
            ArgumentError: Labels that the network does not know, or none where it knows some.
        """
        nodes, owners = self.embed(graphs), graphs.owners
        if graphs.pooled is not None:
            nodes, owners = nodes[graphs.pooled], owners[graphs.pooled]
        pooled = nodes.new_zeros(len(graphs), nodes.shape[1]).index_add(0, owners, nodes)
        if self.pool == "mean":
            pooled = pooled / owners.bincount(minlength=len(graphs)).clamp(min=1).to(pooled)[:, None]
        logits: Tensor = self.head(self.dropout(pooled))
        return logits


class GIN(_Network):
    """Graph isomorphism network (Xu and others, 2019): ``h_v <- MLP((1 + eps) h_v + sum_{u -> v} m_uv)``.

    A message is ``h_u``, or with labels of edges ``ReLU(h_u + e_uv)`` (Hu and others, 2020).

    Args:
        node_labels: How many labels nodes have.
        classes: Number of logits.
        width: Of every embedding.
        depth: Layers.
        edge_labels: How many labels edges have; 0 leaves them out.
        pool: Over the nodes of a graph.
        dropout: Before the last map.
        seed: Of the weights.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self,
        node_labels: int,
        classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        edge_labels: int = 0,
        pool: Pool = "sum",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        if isinstance(edge_labels, bool) or not isinstance(edge_labels, int) or edge_labels < 0:
            raise argument_error("edge_labels", edge_labels, "an integer from 0")
        with module_randomness(Step(0, seed=seed), "network initialisation"):
            super().__init__(node_labels, classes, width, depth, pool, dropout)
            self.layers = nn.ModuleList(
                nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
            )
            self.edge_labels = edge_labels
            self.kinds = nn.ModuleList(nn.Embedding(edge_labels, width) for _ in range(depth if edge_labels else 0))
        self.epsilon = nn.Parameter(torch.zeros(depth))

    def embed(self, graphs: Graphs) -> Tensor:
        """Embeddings of all nodes after the last layer, ``[nodes, width]``."""
        nodes = self._started(graphs)
        sending, receiving = graphs.edges
        for number, layer in enumerate(self.layers):
            messages = nodes[sending]
            if len(self.kinds):
                if graphs.edge_labels is None:
                    raise argument_error("graphs", "no edge labels", "labels, as the network has them")
                _check_labels("edge_labels", graphs.edge_labels, self.edge_labels)
                messages = torch.relu(messages + self.kinds[number](graphs.edge_labels))
            summed = torch.zeros_like(nodes).index_add(0, receiving, messages)
            nodes = torch.relu(layer((1 + self.epsilon[number]) * nodes + summed))
        found: Tensor = nodes
        return found


class GCN(_Network):
    """Graph convolutional network (Kipf and Welling, 2017): ``h <- ReLU(D^-1/2 (A + I) D^-1/2 h W)``.

    Degrees count the edges that a node receives, and itself. They differ between a graph and its computation trees,
    and so do embeddings.

    Args:
        node_labels: How many labels nodes have.
        classes: Number of logits.
        width: Of every embedding.
        depth: Layers.
        pool: Over the nodes of a graph.
        dropout: Before the last map.
        seed: Of the weights.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self,
        node_labels: int,
        classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        pool: Pool = "sum",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        with module_randomness(Step(0, seed=seed), "network initialisation"):
            super().__init__(node_labels, classes, width, depth, pool, dropout)
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def embed(self, graphs: Graphs) -> Tensor:
        """Embeddings of all nodes after the last layer, ``[nodes, width]``."""
        nodes = self._started(graphs)
        sending, receiving = graphs.edges
        inverse = (1 + receiving.bincount(minlength=len(nodes)).to(nodes)).rsqrt()
        factors = (inverse[sending] * inverse[receiving])[:, None]
        for layer in self.layers:
            mapped = layer(nodes)
            summed = torch.zeros_like(mapped).index_add(0, receiving, factors * mapped[sending])
            nodes = torch.relu(summed + inverse.square()[:, None] * mapped)
        found: Tensor = nodes
        return found


def _check_labels(name: str, labels: Tensor, known: int) -> None:
    # On a device the look would wait for it.
    if labels.device.type == "cpu" and labels.numel() and int(labels.max()) >= known:
        raise argument_error(f"graphs.{name}", int(labels.max()), f"labels below the network's {known}")
