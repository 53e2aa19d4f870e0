"""Trees, sets, partitions and sparse facility location: figures, limits and refusals."""

import numpy as np
import pytest
import torch

import distillrs as dr
from distillrs import _core, random, select


def test_agreement_of_signatures_estimates_the_jaccard_index():
    sets = [range(600), range(200, 800), range(600, 900), map(str, range(600))]
    found = select.min_hash(list(sets), 4096)
    left, right = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 2, 3, 2])
    exact = torch.tensor([400 / 800, 0.0, 0.0, 200 / 700], dtype=torch.float64)
    assert torch.all((found.jaccard(left, right) - exact).abs() <= 5 * (0.25 / 4096) ** 0.5)
    assert len(found) == 4
    assert not torch.equal(select.min_hash([[1]], 8, seed=1).signatures, select.min_hash([[1]], 8, seed=2).signatures)


def test_near_duplicates_among_texts_are_found():
    texts = [f"sentence number {number} about some thing or other" for number in range(60)]
    texts.append("this one is of another kind and stands twice, nearly: one word differs here")
    texts.append("this one is of another kind and stands twice, nearly: one word differs there")
    shingles = [{text[i : i + 5] for i in range(len(text) - 4)} for text in texts]
    found = select.min_hash(shingles, 128).candidates(32, threshold=0.8)
    assert [60, 61] in found.tolist()


def test_trees_of_molecules_with_edge_labels():
    # Two triangles, one of whose edges has another label, and a triangle without.
    ring = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]])
    edges = torch.cat([ring, ring + 3], 1)
    kinds = torch.tensor([2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    labels, graphs = torch.full((6,), 12), torch.tensor([0, 0, 0, 1, 1, 1])
    plain = select.frequent_trees(labels, edges, graphs, depth=2)
    assert (len(plain), plain.supports.tolist(), plain.counts.tolist()) == (1, [2], [6])
    found = select.frequent_trees(labels, edges, graphs, depth=1, edge_labels=kinds)
    assert found.nodes.tolist() == [0, 0, 1, 1, 1, 1]
    assert found.frequent(1).tolist() == [1, 0]
    names, links, under = found.expand(0)
    assert (names.tolist(), links.tolist(), under.tolist()) == ([12] * 3, [[1, 2], [0, 0]], [1, 2])


def test_trees_of_arrays_are_those_of_tensors():
    labels, edges = torch.tensor([1, 2, 1]), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    found = select.frequent_trees(labels.numpy().astype(np.uint8), edges.numpy().astype(np.int32), depth=2)
    plain = select.frequent_trees(labels, edges, depth=2)
    assert torch.equal(found.nodes, plain.nodes)
    assert torch.equal(found.supports, plain.supports)


def test_facility_location_with_all_neighbours_is_the_plain_one():
    points = random.normal(300, 5, step=0, name="points")
    plain = select.facility_location(points, 40)
    found = select.facility_location(points, 40, neighbours=300)
    assert torch.equal(found.ids, plain.ids)
    assert torch.allclose(found.gains, plain.gains, rtol=1e-9)


def test_facility_location_with_few_neighbours_is_greedy_on_what_they_save():
    points, near, k = random.normal(200, 3, step=1, name="points", dtype=torch.float64), 9, 30
    found = select.facility_location(points, k, neighbours=near)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    largest = 4 * (points - points.mean(0)).square().sum(1).max()
    similarities = torch.zeros(200, 200, dtype=torch.float64)
    ids = distances.topk(near, largest=False).indices
    similarities.scatter_(1, ids, largest - distances.gather(1, ids))
    best = torch.zeros(200, 1, dtype=torch.float64)
    for pick, gain in zip(found.ids.tolist(), found.gains.tolist(), strict=True):
        gains = (similarities - best).clamp(min=0).sum(0)
        assert gain == pytest.approx(float(gains.max()), rel=1e-9)
        assert float(gains[pick]) == pytest.approx(gain, rel=1e-9)
        best = torch.maximum(best, similarities[:, pick : pick + 1])
    before = _core.threads()
    _core.set_threads(3)
    again = select.facility_location(points, k, neighbours=near)
    _core.set_threads(before)
    assert torch.equal(again.gains, found.gains)
    grouped = select.facility_location(points, 5, neighbours=near, groups=torch.arange(200) % 2)
    alone = select.facility_location(points[::2], 5, neighbours=near)
    assert torch.equal(grouped.ids[:5], 2 * alone.ids)


POINTS = torch.arange(12.0).reshape(4, 3)
LABELS, EDGES = torch.tensor([1, 2]), torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select.balanced_partition(POINTS, 0), "k: got 0"),
        (lambda: select.balanced_partition(POINTS, 5), "k: got 5"),
        (lambda: select.balanced_partition(POINTS / 0, 2), "points: got NaN in row 0"),
        (lambda: select.balanced_partition(POINTS, 2, iterations=-1), "iterations: got -1"),
        (lambda: select.balanced_partition(POINTS, 2, memory_budget=10), "memory_budget: got '10 bytes'"),
        (lambda: select.min_hash([[1.5]]), "sets: got '1.5 in the set at 0'"),
        (lambda: select.min_hash(["word"]), "sets: got 'a str at 0'"),
        (lambda: select.min_hash([[2**63]]), "sets: got"),
        (lambda: select.min_hash(3), "sets: got 'int'"),
        (lambda: select.min_hash("ab"), "sets: got 'ab'"),
        (lambda: select.min_hash([[1], 2]), "sets: got 'a int at 1'"),
        (lambda: select.min_hash(torch.tensor([1, 2])), "sets: got 'a Tensor at 0'"),
        (lambda: select.frequent_sets(None, 1), "sets: got 'NoneType'"),
        (lambda: select.frequent_sets([1], 1), "sets: got 'a int at 0'"),
        (lambda: select.min_hash([[1]], 8).jaccard(torch.tensor([1]), torch.tensor([0])), "left: got 1"),
        (lambda: select.min_hash([[1]], 8).jaccard(torch.tensor([0]), torch.tensor([-1])), "right: got -1"),
        (lambda: select.min_hash([[1]], 8).jaccard(torch.tensor([0]), "a"), "right: got 'str'"),
        (lambda: select.min_hash([[1]], 8).jaccard(torch.tensor([0, 0]), torch.tensor([0])), "right: got '1 sets'"),
        (lambda: select.min_hash([[1]], 0), "signatures: got 0"),
        (lambda: select.min_hash([[1]], 8).candidates(3), "bands: got 3"),
        (lambda: select.min_hash([[1]], 8).candidates(2, threshold=2), "threshold: got 2"),
        (lambda: select.min_hash([[1]] * 9, 8).candidates(2, most=3), "most: got 3"),
        (lambda: select.frequent_trees(LABELS.float(), EDGES, depth=1), "labels: got 'torch.float32"),
        (lambda: select.frequent_trees(LABELS, EDGES[0], depth=1), "edges: got 'torch.int64"),
        (lambda: select.frequent_trees(LABELS, EDGES + 1, depth=1), "edges: got 2"),
        (lambda: select.frequent_trees(LABELS, EDGES, LABELS, depth=1), "edges: got 'edge 0 between two graphs'"),
        (lambda: select.frequent_trees(LABELS, EDGES, LABELS[:1], depth=1), "graphs: got"),
        (lambda: select.frequent_trees(LABELS, EDGES, depth=-1), "depth: got -1"),
        (lambda: select.frequent_trees(LABELS, EDGES, depth=1, edge_labels=LABELS), "edge_labels: got"),
        (lambda: select.frequent_trees(LABELS, EDGES, depth=1).frequent(0), "support: got 0"),
        (lambda: select.frequent_trees(LABELS, EDGES, depth=1).frequent(10**30), "support: got 10"),
        (lambda: select.frequent_trees(LABELS, EDGES, depth=1).expand(1, most="a"), "most: got 'a'"),
        (lambda: select.frequent_trees(LABELS, EDGES, depth=1).expand(2), "tree: got 2"),
        (lambda: select.frequent_trees(LABELS, EDGES, depth=1).expand(1, most=1), "most: got 1"),
        (lambda: select.facility_location(POINTS, 1, neighbours=5), "neighbours: got"),
        (lambda: select.facility_location(POINTS, 1, neighbours=0), "neighbours: got 0"),
        (lambda: select.facility_location(POINTS, 1, neighbours=2, method="stochastic"), "neighbours: got 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(dr.errors.ArgumentError) as refused:
        call()
    assert str(refused.value).startswith(message)
