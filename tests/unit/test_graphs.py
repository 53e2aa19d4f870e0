"""Graphs, their condensation to sets of trees, the networks over them, and what is stored; brute force beside each."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import condense, evaluate, recipes, select
from distillrs.errors import ArgumentError, DataError, UnknownNameError
from distillrs.evaluate.data import load, load_graphs
from distillrs.evaluate.graph_networks import GCN, GIN
from distillrs.graphs import Graphs
from distillrs.select._frequent_trees import expand, nodes_of
from graph_oracles import isomorphic, itemsets, joined, nested, random_graphs, random_trees, tree_numbers, whole_tree

GRAPHS = random_graphs(14, labels=3, kinds=2, seed=3)


def single(graphs, row):
    """One graph out of many by its definition."""
    nodes = (graphs.owners == row).nonzero()[:, 0].tolist()
    places = [place for place in range(graphs.edges.shape[1]) if int(graphs.edges[0, place]) in nodes]
    return (
        graphs.labels[nodes].tolist(),
        [[nodes.index(int(graphs.edges[side, place])) for place in places] for side in range(2)],
        graphs.edge_labels[places].tolist(),
        int(graphs.y[row]),
    )


@given(rows=st.lists(st.integers(0, 13), max_size=8), seed=st.integers(0, 5))
def test_taken_graphs_are_those_that_were_asked_for(rows, seed):
    graphs = random_graphs(14, labels=3, kinds=2, seed=seed)
    # Edges need not come graph by graph.
    order = torch.arange(graphs.edges.shape[1]).flip(0)
    graphs = Graphs(graphs.labels, graphs.edges[:, order], graphs.owners, graphs.y, graphs.edge_labels[order])
    taken = graphs.take(torch.tensor(rows, dtype=torch.int64))
    assert [single(taken, place) for place in range(len(rows))] == [single(graphs, row) for row in rows]
    assert taken.sizes.tolist() == [int(graphs.sizes[row]) for row in rows]


def test_stored_bytes_count_an_undirected_edge_once():
    ring = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]])
    graphs = Graphs(torch.tensor([0, 1, 300]), ring, torch.zeros(3, dtype=torch.int64), torch.tensor([1]))
    # Labels of two bytes; three edges of two ends; nodes, edges and class.
    assert graphs.stored_bytes() == 3 * 2 + 3 * 2 + 3
    kinds = torch.tensor([0, 0, 1, 1, 2, 2])
    with_kinds = Graphs(graphs.labels, ring, graphs.owners, graphs.y, kinds)
    assert with_kinds.stored_bytes() == 3 * 2 + 3 * 3 + 3
    assert Graphs(graphs.labels, ring, graphs.owners, graphs.y, kinds.roll(1)).stored_bytes() == 3 * 2 + 6 * 3 + 3


@given(
    sets=st.lists(st.frozensets(st.integers(-3, 5), max_size=6), max_size=9), support=st.integers(1, 4), data=st.data()
)
def test_frequent_sets_are_those_of_trying_all(sets, support, data):
    largest = data.draw(st.none() | st.integers(0, 4))
    found = select.frequent_sets(sets, support, largest=largest)
    expected = itemsets([set(one) for one in sets], support, largest)
    assert [found[place] for place in range(len(found))] == sorted(
        expected, key=lambda one: (-expected[one], len(one), one)
    )
    assert found.supports.tolist() == [expected[found[place]] for place in range(len(found))]


def test_a_class_whose_trees_all_come_together_is_refused_and_not_listed():
    with pytest.raises(ArgumentError, match="most"):
        select.frequent_sets([range(40)] * 3, 2, most=1000)
    assert len(select.frequent_sets([range(2000)] * 2, 2, largest=1)) == 2000
    for bad in ([["a"]], [[True]], [[2**63]]):
        with pytest.raises(ArgumentError, match=r"in the set at 0"):
            select.frequent_sets(bad, 1)
    with pytest.raises(ArgumentError, match="support"):
        select.frequent_sets([[1]], 0)


def test_trees_are_equal_exactly_where_they_are_isomorphic():
    pairs = random_trees(300, labels=14, seed=1)
    truth = [isomorphic(left, right) for left, right in pairs]
    numbers = tree_numbers([whole_tree(tree) for pair in pairs for tree in pair])
    assert [left == right for left, right in zip(numbers[::2], numbers[1::2], strict=True)] == truth
    assert 50 < sum(truth) < 250


def test_labels_that_collide_as_decimal_codes_are_told_apart():
    # Root 0 with leaf 13 and root 0 with leaves 1 and 3; root 19 with leaf 3 and root 1 with leaf 93.
    trees = [(0, ((0, (13, ())),)), (0, ((0, (1, ())), (0, (3, ())))), (19, ((0, (3, ())),)), (1, ((0, (93, ())),))]
    assert len(set(tree_numbers([whole_tree(tree) for tree in trees]))) == 4


def plain_sets(graphs, depth, supports, labelled, largest):
    """Trees as nested tuples, itemsets by trying all: {(class, trees): count}."""
    found = {}
    for label in range(2):
        sets = [
            {nested(graphs, node, depth, labelled) for node in (graphs.owners == row).nonzero()[:, 0].tolist()}
            for row in (graphs.y == label).nonzero()[:, 0].tolist()
        ]
        found |= {(label, one): count for one, count in itemsets(sets, supports[label], largest).items()}
    return found


def shown(sets):
    """The same of condensed graphs."""
    graphs = sets.graphs()
    found = {}
    for row in range(len(sets)):
        roots = ((graphs.owners == row) & graphs.pooled).nonzero()[:, 0].tolist()
        trees = tuple(sorted(nested(graphs, root, len(sets.levels) - 1, sets.edge_labels) for root in roots))
        found[int(sets.y[row]), trees] = int(sets.counts[row])
    assert len(found) == len(sets)
    return found


@given(seed=st.integers(0, 40), depth=st.integers(0, 2), labelled=st.booleans(), exclusive=st.booleans())
def test_condensed_graphs_are_the_frequent_sets_of_trees(seed, depth, labelled, exclusive):
    graphs = random_graphs(10, labels=2, kinds=2, seed=seed, undirected=seed % 3 != 0)
    supports, largest = {0: 2, 1: 3}, 2 if depth else 3
    transform = recipes.mirage(depth, supports, edge_labels=labelled, exclusive=exclusive, largest=largest)
    expected = plain_sets(graphs, depth, supports, labelled, largest)
    if exclusive:
        expected = {key: count for key, count in expected.items() if (1 - key[0], key[1]) not in expected}
    sets = transform(graphs)
    assert shown(sets) == expected
    assert sets.class_counts.tolist() == [5, 5]
    # Every stored tree is of use.
    used = sets.members.unique().tolist()
    for level, following in zip(reversed(sets.levels), [*reversed(sets.levels[:-1]), None], strict=True):
        assert used == list(range(len(level.labels)))
        used = level.children.unique().tolist()
        assert following is not None or not used


def test_supports_are_shares_of_each_class():
    transform = condense.FrequentTreeSets
    assert [transform(support=0.07)._least(0, 100), transform(support=0.2)._least(0, 44)] == [7, 9]
    assert [transform(support=5)._least(1, 9), transform(support={0: 3, 1: 1.0})._least(1, 9)] == [5, 9]
    for bad in (0, -1, 0.0, 1.5, True, "all", {0: 0}):
        with pytest.raises(ArgumentError, match="support"):
            recipes.mirage(support=bad)
    with pytest.raises(ArgumentError, match="for class 1"):
        recipes.mirage(support={0: 1})(GRAPHS)
    with pytest.raises(ArgumentError, match="depth"):
        recipes.mirage(depth=65)
    with pytest.raises(ArgumentError, match="graphs"):
        recipes.mirage()(GRAPHS.labels)


def test_sets_are_drawn_by_their_counts():
    sets = recipes.mirage(0, {0: 1, 1: 4})(GRAPHS)
    rows = sets.draw(40_000, step=0)
    shares = rows.bincount(minlength=len(sets)).double() / 40_000
    expected = sets.counts.double() / sets.counts.sum()
    assert torch.allclose(shares, expected, atol=5 * (0.25 / 40_000) ** 0.5)
    assert float((shares - expected).abs().max()) < 0.01
    by_class = sets.y[sets.draw(40_000, step=0, by="class")].double().mean()
    assert float(by_class) == pytest.approx(0.5, abs=0.0125)
    assert float(sets.y[rows].double().mean()) != pytest.approx(0.5, abs=0.05)
    assert torch.equal(sets.draw(50, step=3), sets.draw(50, step=3))
    assert not torch.equal(sets.draw(50, step=3), sets.draw(50, step=4))
    with pytest.raises(ArgumentError, match="by"):
        sets.draw(1, step=0, by="size")
    with pytest.raises(ArgumentError, match="no set"):
        recipes.mirage(support=1000)(GRAPHS).draw(1, step=0)


@pytest.mark.parametrize("labelled", [True, False])
def test_roots_have_the_embeddings_of_their_nodes_where_sums_are_taken(labelled):
    """Messages reach a root as they reach its node; degrees, which a GCN divides by, are others."""
    graphs = GRAPHS
    sets = recipes.mirage(2, 1, edge_labels=labelled, largest=1)(graphs)
    trees = sets.graphs()
    shapes = {nested(trees, root, 2, labelled): root for root in trees.pooled.nonzero()[:, 0].tolist()}
    roots = [shapes[nested(graphs, node, 2, labelled)] for node in range(len(graphs.labels))]
    kinds = 2 if labelled else 0
    for network, equal in (
        (GIN(3, 2, width=8, edge_labels=kinds, seed=1), True),
        (GCN(3, 2, width=8, seed=1), False),
    ):
        network = network.double()
        expected, found = network.embed(graphs), network.embed(trees)[roots]
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12) == equal


def test_networks_are_their_formulas():
    graphs = GRAPHS
    adjacency = torch.zeros(len(graphs.labels), len(graphs.labels), dtype=torch.float64)
    adjacency.index_put_((graphs.edges[1], graphs.edges[0]), torch.ones((), dtype=torch.float64), accumulate=True)
    gin = GIN(3, 2, width=6, depth=3, pool="mean").double()
    gin.epsilon.data += torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    nodes = gin.start(graphs.labels)
    for number, layer in enumerate(gin.layers):
        nodes = torch.relu(layer((1 + gin.epsilon[number]) * nodes + adjacency @ nodes))
    means = torch.stack(
        [nodes[graphs.owners == row].mean(0) if int(graphs.sizes[row]) else nodes[:0].sum(0) for row in range(14)]
    )
    assert torch.allclose(gin(graphs), gin.head(means))
    gcn = GCN(3, 2, width=6).double()
    square = adjacency + torch.eye(len(adjacency), dtype=torch.float64)
    root = square.sum(1).rsqrt()
    nodes = gcn.start(graphs.labels)
    for layer in gcn.layers:
        nodes = torch.relu((root[:, None] * square * root) @ layer(nodes))
    marked = torch.arange(len(nodes)) % 3 == 0
    sums = torch.stack([nodes[(graphs.owners == row) & marked].sum(0) for row in range(14)])
    some = Graphs(graphs.labels, graphs.edges, graphs.owners, graphs.y, graphs.edge_labels, marked)
    assert torch.allclose(gcn(some), gcn.head(sums))
    assert torch.equal(GIN(3, 2, seed=5).head.weight, GIN(3, 2, seed=5).head.weight)
    with pytest.raises(ArgumentError, match="edge labels"):
        GIN(3, 2, edge_labels=2)(Graphs(graphs.labels, graphs.edges, graphs.owners, graphs.y))
    for network, name, most in (
        (GIN(2, 2), "labels", 1),
        (GCN(2, 2), "labels", 1),
        (GIN(3, 2, edge_labels=1), "edge_labels", 0),
    ):
        with pytest.raises(
            ArgumentError, match=rf"^graphs\.{name}: got {most + 1}, allowed is labels below the network's"
        ):
            network(graphs)
    for bad in ({"width": 0}, {"pool": "max"}, {"dropout": 1.0}, {"edge_labels": -1}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            GIN(3, 2, **bad)


def test_sets_are_saved_and_read_back(tmp_path):
    sets = recipes.mirage(2, 2)(GRAPHS)
    sets.save(tmp_path / "sets.safetensors")
    again = condense.load_tree_sets(tmp_path / "sets.safetensors")
    assert shown(again) == shown(sets)
    assert torch.equal(again.draw(20, step=1), sets.draw(20, step=1))
    assert again.class_counts.tolist() == [7, 7]
    sizes = [len(level.labels) * 2 + 2 * len(level.children) for level in sets.levels]
    assert sets.stored_bytes() == sum(sizes) + 3 * len(sets) + len(sets.members) + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": [99]}, "members has 99"),
        ({"offsets": [0, 0]}, "offsets do not rise"),
        ({"y": [7]}, "y has 7"),
        ({"counts": [0]}, "counts"),
        ({"levels.1.children": [200, 0]}, "levels.1.children has 200"),
        ({"levels.1.offsets": [0, 9]}, "levels.1.offsets"),
        ({"levels.1.edge_labels": [0]}, "edge label"),
        ({"levels.0.labels": None}, "no levels.0.labels"),
        ({"page": {"depth": 1000}}, "depth 1000"),
        ({"page": {"version": 2}}, "version 2"),
        ({"page": {"format": "other"}}, "format"),
        ({"page": {"edge_labels": 1}}, "edge_labels"),
    ],
)
def test_files_from_strangers_are_checked(tmp_path, change, message):
    tensors = {
        "offsets": [0, 1], "members": [0], "counts": [3], "y": [0], "class_counts": [4],
        "levels.0.labels": [1], "levels.0.offsets": [0, 0], "levels.0.children": [], "levels.0.edge_labels": [],
        "levels.1.labels": [2], "levels.1.offsets": [0, 2], "levels.1.children": [0, 0], "levels.1.edge_labels": [0, 1],
    }  # fmt: skip
    page = {"format": "distillrs.tree_sets", "version": 1, "depth": 1, "edge_labels": True} | change.pop("page", {})
    path = tmp_path / "sets.safetensors"

    def write(entries):
        found = {name: torch.tensor(own, dtype=torch.uint8) for name, own in entries.items() if own is not None}
        safetensors.torch.save_file(found, path, {"distillrs": json.dumps(page)})

    if change:
        write(tensors)
        assert len(condense.load_tree_sets(path).graphs().labels) == 3
    write(tensors | change)
    with pytest.raises(DataError, match=message):
        condense.load_tree_sets(path)


def test_a_file_of_trees_that_double_is_not_expanded(tmp_path):
    sets = recipes.mirage(2, 2)(GRAPHS)
    one = torch.tensor([0])
    level = type(sets.levels[0])
    leaf = level(one, torch.tensor([0, 0]), one[:0], one[:0])
    double = level(one, torch.tensor([0, 2]), torch.tensor([0, 0]), torch.tensor([0, 0]))
    bomb = condense.TreeSets((leaf, *[double] * 60), torch.tensor([0, 1]), one, one + 1, one, one + 1, False)
    bomb.save(tmp_path / "bomb.safetensors")
    with pytest.raises(ArgumentError, match="most"):
        condense.load_tree_sets(tmp_path / "bomb.safetensors").graphs(most=1000)
    # Two sets of two trees of 31 nodes each: as many as are allowed, and one more.
    small = condense.TreeSets(
        (leaf, *[double] * 4), torch.tensor([0, 2, 4]), torch.zeros(4, dtype=torch.int64), one.repeat(2) + 1,
        one.repeat(2), one + 1, False,
    )  # fmt: skip
    assert len(small.graphs(most=124).labels) == 124
    with pytest.raises(ArgumentError, match="most: got 123, allowed is at least the nodes of all sets, 124"):
        small.graphs(most=123)
    with pytest.raises(DataError, match="no such file"):
        condense.load_tree_sets(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(DataError, match="not tree sets"):
        condense.load_tree_sets(tmp_path / "text")


def test_graphs_refuse_what_does_not_fit():
    labels, edges, owners, y = torch.tensor([0, 1]), torch.tensor([[0], [1]]), torch.tensor([0, 0]), torch.tensor([1])
    good = (labels, edges, owners, y)
    for place, bad, message in (
        (0, labels.float(), "labels"),
        (0, labels - 1, "labels"),
        (1, edges + 1, "edges"),
        (1, edges[0], "edges"),
        (2, torch.tensor([1, 0]), "owners"),
        (2, torch.tensor([0, 1]), "owners"),
        (3, -y, "y"),
    ):
        with pytest.raises(ArgumentError, match=message):
            Graphs(*good[:place], bad, *good[place + 1 :])
    with pytest.raises(ArgumentError, match="between two graphs"):
        Graphs(labels, edges, torch.tensor([0, 1]), torch.tensor([0, 0]))
    with pytest.raises(ArgumentError, match="edge_labels"):
        Graphs(*good, torch.tensor([0, 0]))
    with pytest.raises(ArgumentError, match="pooled"):
        Graphs(*good, pooled=torch.tensor([1, 1]))
    with pytest.raises(ArgumentError, match="rows"):
        Graphs(*good).take(torch.tensor([1]))
    assert len(Graphs(*good).to("cpu")) == 1


def archive(path, graphs=GRAPHS, **change):
    arrays = {
        "edges": graphs.edges.T.numpy(), "graph": graphs.owners.numpy(), "node_labels": graphs.labels.numpy(),
        "y": graphs.y.numpy(), "edge_labels": graphs.edge_labels.numpy(),
    }  # fmt: skip
    np.savez(path, **{name: array for name, array in (arrays | change).items() if array is not None})
    return path


def test_a_set_of_graphs_is_split_by_class_without_overlap(tmp_path, monkeypatch):
    path = archive(tmp_path / "mutag.npz")
    monkeypatch.setenv("DISTILLRS_DATA", str(tmp_path))
    bundle = load_graphs("mutag", test_share=0.3, validation_share=0.2, seed=1)
    assert [part.y.bincount().tolist() for part in (bundle.train, bundle.validation, bundle.test)] == [
        [3, 3],
        [2, 2],
        [2, 2],
    ]
    assert (bundle.name, bundle.classes, bundle.node_labels, bundle.edge_labels) == ("mutag", 2, 3, 2)
    parts = [single(part, row) for part in (bundle.train, bundle.validation, bundle.test) for row in range(len(part))]
    assert sorted(map(str, parts)) == sorted(str(single(GRAPHS, row)) for row in range(14))
    other = load_graphs(path, test_share=0.3, validation_share=0.2, seed=2)
    assert [single(other.test, row) for row in range(4)] != [single(bundle.test, row) for row in range(4)]
    assert load_graphs(archive(tmp_path / "plain.npz", edge_labels=None), validation_share=0.2).edge_labels == 0


def test_unfit_sets_of_graphs_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("DISTILLRS_DATA", raising=False)
    with pytest.raises(DataError, match="DISTILLRS_DATA"):
        load_graphs("mutag")
    with pytest.raises(UnknownNameError, match="mutag"):
        load_graphs("mutagg")
    with pytest.raises(DataError, match="load_graphs"):
        load("mutag")
    path = tmp_path / "graphs.npz"
    with pytest.raises(DataError, match="there is no"):
        load_graphs(path)
    for change, message in (
        ({"y": None}, "y: got 'no such array'"),
        ({"y": np.zeros(14, np.float32)}, "integers"),
        ({"y": np.array([{}] * 14)}, "not a readable|objects"),
        ({"edges": np.zeros((3, 3), np.int64)}, "edges"),
        ({"graph": np.zeros(3, np.int64)}, "owners"),
        ({"y": np.zeros(14, np.int64)}, "classes"),
        ({"y": np.array([1, *[0] * 13])}, "too few"),
    ):
        with pytest.raises(DataError, match=message):
            load_graphs(archive(path, **change), validation_share=0.2)
    with pytest.raises(ArgumentError, match="validation_share"):
        load_graphs(archive(path), test_share=0.5, validation_share=0.5)


@given(data=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=12))
def test_the_area_counts_pairs(data):
    ours = [score for score, kind in data if kind]
    others = [score for score, kind in data if not kind]
    scores = torch.tensor([float(score) for score, _ in data])
    kinds = torch.tensor([kind for _, kind in data])
    if not ours or not others:
        with pytest.raises(ArgumentError, match="positive"):
            evaluate.area_under_curve(scores, kinds)
        return
    pairs = [(one > other) + (one == other) / 2 for one in ours for other in others]
    assert evaluate.area_under_curve(scores, kinds) == pytest.approx(sum(pairs) / len(pairs))


def test_the_area_does_not_depend_on_torchs_default_type():
    scores = torch.arange(3000.0)
    expected = evaluate.area_under_curve(scores, scores % 3 == 0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert evaluate.area_under_curve(scores, scores % 3 == 0) == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert expected == pytest.approx(0.5, abs=1e-3)
    assert evaluate.area_under_curve(torch.tensor([-torch.inf, 1, torch.inf]), torch.tensor([False, False, True])) == 1


def test_a_file_of_many_trees_is_not_written_out_before_it_is_counted(monkeypatch):
    sets = recipes.mirage(2, 1, largest=1)(GRAPHS)
    sizes = nodes_of(sets.levels)
    assert sizes.tolist() == [len(expand(sets.levels, tree, 2**20)[0]) for tree in range(len(sizes))]

    def expanded(*_):
        raise AssertionError("expanded")

    monkeypatch.setattr(condense.trees, "expand", expanded)
    with pytest.raises(ArgumentError, match="most"):
        sets.graphs(most=int(sizes.max()))


def test_joined_graphs_are_the_graphs():
    graphs = joined([GRAPHS.take(torch.tensor([row])) for row in range(4)])
    assert [single(graphs, row) for row in range(4)] == [single(GRAPHS, row) for row in range(4)]
