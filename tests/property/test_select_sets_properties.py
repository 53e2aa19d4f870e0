"""Trees, sets and partitions against definitions taken literally."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distillrs import select


@st.composite
def graphs(draw):
    """Labels, edges, the graph of each node, edge labels."""
    sizes = draw(st.lists(st.integers(1, 6), max_size=4))
    labels, edges, owners = [], [], []
    for graph, size in enumerate(sizes):
        first = len(labels)
        labels += draw(st.lists(st.sampled_from([0, 1, 10, 11, -1]), min_size=size, max_size=size))
        owners += [graph] * size
        node = st.integers(first, first + size - 1)
        edges += draw(st.lists(st.tuples(node, node), max_size=8))
    named = draw(st.booleans())
    edge_labels = draw(st.lists(st.sampled_from([0, 1, 10]), min_size=len(edges), max_size=len(edges)))
    return labels, edges, owners, edge_labels if named else None


def canonical(node, depth, labels, edges, edge_labels):
    """The tree spelled out."""
    below = []
    if depth:
        for place, (source, target) in enumerate(edges):
            if target == node:
                label = edge_labels[place] if edge_labels else 0
                below.append((label, canonical(source, depth - 1, labels, edges, edge_labels)))
    return (labels[node], tuple(sorted(below)))


def whole(values, *shape):
    return torch.tensor(values, dtype=torch.int64).reshape(*shape)


@given(graph=graphs(), depth=st.integers(0, 3))
def test_trees_are_numbered_as_their_full_spelling_tells_them_apart(graph, depth):
    labels, edges, owners, edge_labels = graph
    named = None if edge_labels is None else whole(edge_labels, -1)
    found = select.frequent_trees(
        whole(labels, -1), whole(edges, -1, 2).T, whole(owners, -1), depth=depth, edge_labels=named
    )
    spelled = [canonical(node, depth, labels, edges, edge_labels) for node in range(len(labels))]
    numbers = {}
    for tree in spelled:
        numbers.setdefault(tree, len(numbers))
    assert found.nodes.tolist() == [numbers[tree] for tree in spelled]
    for tree, number in numbers.items():
        assert found.counts[number] == spelled.count(tree)
        assert found.supports[number] == len({owner for owner, own in zip(owners, spelled, strict=True) if own == tree})
        assert found.roots[number] == spelled.index(tree)
        names, links, kinds = (part.tolist() for part in found.expand(number))
        pairs = list(zip(*links, strict=True)) if kinds else []
        assert canonical(0, depth, names, pairs, kinds or None) == tree
    for support in (1, 2):
        ids = found.frequent(support).tolist()
        kept = [number for number in range(len(found)) if found.supports[number] >= support]
        assert ids == sorted(kept, key=lambda number: (-int(found.supports[number]), number))


@given(data=st.data(), bands=st.sampled_from([1, 2, 8, 16]), seed=st.integers(0, 3))
def test_candidates_agree_in_a_band_and_equal_sets_always_do(data, bands, seed):
    sets = data.draw(st.lists(st.frozensets(st.integers(0, 9) | st.sampled_from(["a", "b"]), max_size=5), max_size=12))
    found = select.min_hash(sets, 16, seed=seed)
    signatures = found.signatures.numpy().reshape(len(sets), bands, 16 // bands)
    pairs = found.candidates(bands).tolist()
    expected = [
        [left, right]
        for left, right in itertools.combinations(range(len(sets)), 2)
        if (signatures[left] == signatures[right]).all(-1).any()
    ]
    assert pairs == expected
    equal = [[left, right] for left, right in itertools.combinations(range(len(sets)), 2) if sets[left] == sets[right]]
    assert all(pair in pairs for pair in equal)
    kept = found.candidates(bands, threshold=0.5).tolist()
    agree = (found.signatures[:, None] == found.signatures[None]).double().mean(-1)
    assert kept == [[left, right] for left, right in pairs if agree[left, right] >= 0.5]
    # The order of elements and repeats change nothing.
    again = select.min_hash([[*own, *own][::-1] for own in sets], 16, seed=seed)
    assert torch.equal(again.signatures, found.signatures)


coordinates = st.integers(-2, 2).map(float) | st.floats(-1e3, 1e3, width=32)
points = st.tuples(st.integers(1, 30), st.integers(1, 4)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=coordinates)
)


@given(points=points, offset=st.sampled_from([0.0, 4096.0]), data=st.data())
def test_parts_have_equal_sizes_and_halves_no_swap_that_helps(points, offset, data):
    points = points + offset
    n = len(points)
    k = data.draw(st.integers(1, n))
    labels = select.balanced_partition(points, k).numpy()
    assert np.bincount(labels, minlength=k).tolist() == [n // k + (part < n % k) for part in range(k)]
    if n >= 2:
        halves = select.balanced_partition(points, 2, iterations=1000).numpy()
        left, right = points[halves == 0], points[halves == 1]
        distances = ((points[:, None] - np.stack([left.mean(0), right.mean(0)])) ** 2).sum(-1)
        scores = distances[:, 0] - distances[:, 1]
        # Which points are the half nearest to their centre: nothing outside would fit better.
        assert scores[halves == 0].max() <= scores[halves == 1].min() + 1e-9 * (1 + np.abs(distances).max())
