"""Plain counterparts of work with graphs: trees as nested tuples, isomorphism by matching, itemsets by trying."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from distillrs import random, select
from distillrs.graphs import Graphs
from distillrs.step import Step

Tree = tuple[int, tuple[tuple[int, "Tree"], ...]]
"""A root's label, and for each child the edge's label and the child."""


def isomorphic(left: Tree, right: Tree) -> bool:
    """By the definition: a matching of the children in which every edge has its label and every child its like."""
    if left[0] != right[0] or len(left[1]) != len(right[1]):
        return False
    free = list(right[1])
    # Isomorphism is an equivalence, so the first like child is as good as any.
    for kind, child in left[1]:
        for place, (other, candidate) in enumerate(free):
            if kind == other and isomorphic(child, candidate):
                del free[place]
                break
        else:
            return False
    return True


def random_trees(pairs: int, *, labels: int, seed: int) -> list[tuple[Tree, Tree]]:
    """Pairs of trees of depth 2: shuffles of each other, shuffles with one label changed, and others.

    Labels are few and lie apart (0, 1, and those from 8 on), so that codes joined as decimal digits would collide.
    """
    values = [0, 1, 3, *range(8, labels)]
    draws = random.uniform(pairs, 64, step=Step(0, seed=seed), name="trees", dtype=torch.float64).tolist()
    found = []
    for row in draws:
        numbers = iter(row)

        def draw(count: int, numbers: Any = numbers) -> int:
            return int(next(numbers) * count)

        def child(draw: Any = draw) -> Tree:
            return (
                values[draw(len(values))],
                tuple((draw(3), (values[draw(len(values))], ())) for _ in range(draw(3))),
            )

        root = values[draw(len(values))]
        left: Tree = (root, tuple((draw(3), child()) for _ in range(draw(4))))
        kind = draw(3)
        if kind == 2:
            right: Tree = (root, tuple((draw(3), child()) for _ in range(draw(4))))
        else:
            right = (left[0], tuple(reversed([(link, (own[0], own[1][::-1])) for link, own in left[1]])))
            if kind == 1:
                right = (values[draw(len(values))], right[1])
        found.append((left, right))
    return found


def whole_tree(tree: Tree) -> Graphs:
    """The tree as a graph whose edges go from child to parent; node 0 is the root."""
    labels, edges, kinds = [tree[0]], [], []
    row = [(0, tree)]
    while row:
        place, (_, children) = row.pop()
        for kind, child in children:
            edges.append((len(labels), place))
            kinds.append(kind)
            row.append((len(labels), child))
            labels.append(child[0])
    links = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    owners = torch.zeros(len(labels), dtype=torch.int64)
    return Graphs(torch.tensor(labels), links, owners, torch.tensor([0]), torch.tensor(kinds, dtype=torch.int64))


def joined(graphs: list[Graphs]) -> Graphs:
    """Several single graphs as one set."""
    firsts = torch.tensor([0, *(len(each.labels) for each in graphs)]).cumsum(0).tolist()
    return Graphs(
        torch.cat([each.labels for each in graphs]),
        torch.cat([each.edges + first for each, first in zip(graphs, firsts, strict=False)], 1),
        torch.cat([torch.full_like(each.labels, place) for place, each in enumerate(graphs)]),
        torch.cat([each.y for each in graphs]),
        torch.cat([each.edge_labels for each in graphs if each.edge_labels is not None]),
    )


def tree_numbers(trees: list[Graphs], depth: int = 2) -> list[int]:
    """The number of each root's computation tree."""
    graphs = joined(trees)
    found = select.frequent_trees(
        graphs.labels, graphs.edges, graphs.owners, depth=depth, edge_labels=graphs.edge_labels
    )
    firsts = graphs.sizes.cumsum(0) - graphs.sizes
    return found.nodes[firsts].tolist()


def nested(graphs: Graphs, node: int, depth: int, labelled: bool = True) -> Any:
    """The computation tree of a node, children sorted."""
    if depth == 0:
        return (int(graphs.labels[node]), ())
    children = []
    for place in (graphs.edges[1] == node).nonzero()[:, 0].tolist():
        kind = int(graphs.edge_labels[place]) if labelled and graphs.edge_labels is not None else 0
        children.append((kind, nested(graphs, int(graphs.edges[0, place]), depth - 1, labelled)))
    return (int(graphs.labels[node]), tuple(sorted(children)))


def itemsets(sets: list[set[Any]], support: int, largest: int | None = None) -> dict[tuple[Any, ...], int]:
    """Every set of items that enough of the sets contain, by trying all of them."""
    items = sorted(set().union(*sets)) if sets else []
    found = {}
    for size in range(1, (len(items) if largest is None else min(largest, len(items))) + 1):
        for one in combinations(items, size):
            count = sum(set(one) <= each for each in sets)
            if count >= support:
                found[one] = count
    return found


def random_graphs(count: int, *, labels: int, kinds: int, seed: int, undirected: bool = True) -> Graphs:
    """Small graphs; every second one has no edge label but 0, some have no node or no edge."""
    made: list[tuple[Tensor, Tensor, Tensor]] = []
    for number in range(count):
        step = Step(number, seed=seed)
        size = int(random.integers(range(1), 7, step=step, name="size"))
        own = random.integers(size, labels, step=step, name="labels")
        pairs = [(a, b) for a in range(size) for b in range(a)]
        keep = random.uniform(len(pairs), step=step, name="edges") < 0.45
        one_way = torch.tensor([pair for pair, kept in zip(pairs, keep.tolist(), strict=True) if kept])
        one_way = one_way.reshape(-1, 2).T.to(torch.int64)
        own_kinds = random.integers(one_way.shape[1], kinds, step=step, name="kinds")
        if undirected:
            one_way, own_kinds = torch.cat([one_way, one_way.flip(0)], 1), own_kinds.repeat(2)
        made.append((own, one_way, own_kinds))
    firsts = torch.tensor([0, *(len(own) for own, _, _ in made)]).cumsum(0).tolist()
    return Graphs(
        torch.cat([own for own, _, _ in made]),
        torch.cat([links + first for (_, links, _), first in zip(made, firsts, strict=False)], 1),
        torch.tensor([place for place, (own, _, _) in enumerate(made) for _ in range(len(own))], dtype=torch.int64),
        torch.arange(count) % 2,
        torch.cat([own for _, _, own in made]),
    )
