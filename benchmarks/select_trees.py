"""Computation trees of graphs against straightforward implementations in Python.

Usage::

    python benchmarks/select_trees.py [--rounds N] [--graphs N] [--threads N]

Graphs are MUTAG's where `DISTILLRS_DATA` has it, and drawn ones: 24 nodes, 48 undirected edges, 6 labels of nodes and 3
of edges. Peers are the sentence written down with `networkx` graphs, where a tree is a nested tuple of its root's label
and its sorted children, made once for each node and depth; and `networkx`'s own Weisfeiler-Lehman hashes of nodes,
which tell the same trees apart as long as no two hashes collide. All sides find in how many graphs each tree occurs.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import measure
import networkx as nx
import numpy as np
import torch
from networkx.algorithms.graph_hashing import weisfeiler_lehman_subgraph_hashes

from distillrs import _core, random, select

DEPTH, NODES, EDGES = 3, 24, 48


class Graphs(NamedTuple):
    """Several graphs as lists of nodes and of directed edges."""

    labels: torch.Tensor
    edges: torch.Tensor
    owners: torch.Tensor
    edge_labels: torch.Tensor


def drawn(count: int) -> Graphs:
    """Random graphs; an edge goes both ways."""
    labels = random.integers(count * NODES, 6, step=0, name="labels")
    ends = random.integers(2 * count * EDGES, NODES, step=0, name="ends").reshape(2, -1)
    first = torch.arange(count).repeat_interleave(EDGES) * NODES
    ends, kinds = ends + first, random.integers(count * EDGES, 3, step=0, name="kinds")
    kept = torch.from_numpy(_first_of_equals(ends.sort(0).values.numpy())) & (ends[0] != ends[1])
    ends, kinds = ends[:, kept], kinds[kept]
    return Graphs(
        labels,
        torch.cat([ends, ends.flip(0)], 1),
        torch.arange(count).repeat_interleave(NODES),
        torch.cat([kinds, kinds]),
    )


def _first_of_equals(pairs: np.ndarray) -> np.ndarray:
    is_first = np.zeros(pairs.shape[1], bool)
    is_first[np.unique(pairs, axis=1, return_index=True)[1]] = True
    return is_first


def mutag() -> Graphs | None:
    """The data set's molecules, if they are there."""
    path = Path(os.environ.get("DISTILLRS_DATA", "")) / "mutag.npz"
    if not path.is_file():
        return None
    arrays = {name: torch.from_numpy(array.astype(np.int64)) for name, array in np.load(path).items()}
    edges = arrays["edges"].T.contiguous()
    kinds = arrays.get("edge_labels", torch.zeros(edges.shape[1], dtype=torch.int64))
    return Graphs(arrays["node_labels"], edges, arrays["graph"], kinds)


def networks(graphs: Graphs) -> list[nx.Graph]:
    """The same graphs as networkx has them."""
    found = [nx.Graph() for _ in range(int(graphs.owners.max()) + 1)]
    for node, (label, owner) in enumerate(zip(graphs.labels.tolist(), graphs.owners.tolist(), strict=True)):
        found[owner].add_node(node, label=label)
    for (source, target), label in zip(graphs.edges.T.tolist(), graphs.edge_labels.tolist(), strict=True):
        found[graphs.owners[source]].add_edge(source, target, label=label)
    return found


def nested(graphs: list[nx.Graph]) -> Counter[Any]:
    """In how many graphs each tree occurs; trees are nested tuples."""
    supports: Counter[Any] = Counter()
    for graph in graphs:
        trees: dict[int, Any] = {node: (label,) for node, label in graph.nodes(data="label")}
        for _ in range(DEPTH):
            trees = {
                node: (label, tuple(sorted((graph.edges[node, near]["label"], trees[near]) for near in graph[node])))
                for node, label in graph.nodes(data="label")
            }
        supports.update(set(trees.values()))
    return supports


def hashed(graphs: list[nx.Graph]) -> Counter[str]:
    """In how many graphs each hash of a neighbourhood occurs."""
    supports: Counter[str] = Counter()
    for graph in graphs:
        hashes = weisfeiler_lehman_subgraph_hashes(graph, edge_attr="label", node_attr="label", iterations=DEPTH)
        supports.update({own[-1] for own in hashes.values()})
    return supports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    _core.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"depth": DEPTH, "threads": arguments.threads}
    sets = {
        "mutag": mutag(),
        "drawn": drawn(arguments.graphs),
        "drawn, four times as many": drawn(4 * arguments.graphs),
    }
    for name, graphs in sets.items():
        if graphs is None:
            results[name] = "not measured: no mutag.npz in DISTILLRS_DATA"
            continue

        def own(graphs: Graphs = graphs) -> torch.Tensor:
            labels, edges, owners, kinds = graphs
            return select.frequent_trees(labels, edges, owners, depth=DEPTH, edge_labels=kinds).supports

        peers = networks(graphs)
        supports = sorted(own().tolist())
        contenders = {"distillrs": own, "nested tuples": lambda peers=peers: nested(peers)}
        if name != "drawn, four times as many":
            contenders["networkx hashes"] = lambda peers=peers: hashed(peers)
        same = {
            other: sorted(work().values()) == supports for other, work in contenders.items() if other != "distillrs"
        }
        added = {other: measure.added_bytes(work) for other, work in contenders.items()}
        seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds, warm_up=1))
        ratios = {other: value / seconds["distillrs"] for other, value in seconds.items() if other != "distillrs"}
        results[name] = {
            "graphs": len(peers),
            "nodes": len(graphs.labels),
            "edges": graphs.edges.shape[1],
            "trees": len(supports),
            "seconds": seconds,
            "ratios": ratios,
            "same_supports": same,
            "added_bytes": added,
            "nanoseconds for each edge and level": seconds["distillrs"] / DEPTH / graphs.edges.shape[1] * 1e9,
        }
        cells = "  ".join(f"{other} {value * 1e3:8.1f} ms" for other, value in seconds.items())
        print(f"{name:26} {cells}  ratios {', '.join(f'{value:.1f}' for value in ratios.values())}  {same}", flush=True)
    measure.write("select_trees", results)


if __name__ == "__main__":
    main()
