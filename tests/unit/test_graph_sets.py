"""Networks trained on few graphs, real graphs of equal bytes, and the command that compares them."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from distillrs import cli, condense, configuration, evaluate, recipes
from distillrs.cli import exit_codes
from distillrs.cli.graphs import judging, plan
from distillrs.cli.graphs.settings import GraphSettings
from distillrs.cli.settings import identity
from distillrs.errors import ArgumentError, DataError, TrainingDivergedError, UnknownNameError
from distillrs.evaluate.graph_networks import GIN
from distillrs.evaluate.graph_sets import (
    SELECTIONS,
    GraphTraining,
    random_graphs,
    score_graphs,
    selected_graphs,
    train_on_graphs,
)
from distillrs.graphs import Graphs
from graph_oracles import random_graphs as made_up

GRAPHS = made_up(60, labels=3, kinds=2, seed=3)
QUICK = GraphTraining(steps=4, batch_size=5)


def forms(graphs):
    """Each graph as plain numbers."""
    found = [([], [], [], label) for label in graphs.y.tolist()]
    firsts = (graphs.sizes.cumsum(0) - graphs.sizes).tolist()
    for owner, label in zip(graphs.owners.tolist(), graphs.labels.tolist(), strict=True):
        found[owner][0].append(label)
    for (sending, receiving), kind in zip(graphs.edges.T.tolist(), graphs.edge_labels.tolist(), strict=True):
        owner = int(graphs.owners[receiving])
        found[owner][1].append((sending - firsts[owner], receiving - firsts[owner]))
        found[owner][2].append(kind)
    return found


KNOWN = forms(GRAPHS)


def all_real(graphs):
    """Whether every graph is one of GRAPHS, and none is there more often than in these."""
    own = forms(graphs)
    return all(own.count(one) <= KNOWN.count(one) for one in own)


@pytest.mark.parametrize("size", [0, 150, 400, 10**6])
def test_random_graphs_are_real_ones_as_many_as_fit_and_of_each_class_its_share(size):
    taken = random_graphs(GRAPHS, size, seed=5)
    classes = len(GRAPHS.y.unique())
    assert all_real(taken)
    assert set(taken.y.tolist()) == set(GRAPHS.y.tolist())
    assert len(taken) == classes or taken.stored_bytes() <= size
    if size == 10**6:
        assert sorted(forms(taken)) == sorted(KNOWN)
    elif len(taken) > classes:
        # One more would not have fitted: the same draw with room for everything goes on where this one stops.
        longer = random_graphs(GRAPHS, 10**6, seed=5)
        assert forms(longer)[: len(taken)] == forms(taken)
        assert longer.take(torch.arange(len(taken) + 1)).stored_bytes() > size
        shares = GRAPHS.y.bincount() / len(GRAPHS)
        assert ((taken.y.bincount() - shares * len(taken)).abs() <= 1 + 1e-6).all()
    assert forms(random_graphs(GRAPHS, size, seed=5)) == forms(taken)


def test_another_seed_draws_other_graphs():
    assert forms(random_graphs(GRAPHS, 150, seed=1)) != forms(random_graphs(GRAPHS, 150, seed=2))


@pytest.mark.parametrize("how", SELECTIONS)
def test_selected_graphs_are_real_ones_that_fit(how):
    taken = selected_graphs(GRAPHS, 200, how, depth=2)
    assert all_real(taken)
    assert taken.stored_bytes() <= 200
    assert set(taken.y.tolist()) == set(GRAPHS.y.tolist())


def test_herding_takes_the_graph_whose_trees_are_nearest_to_the_mean_of_its_class():
    taken = selected_graphs(GRAPHS, 0, "herding", depth=0)
    points = torch.zeros(len(GRAPHS), 3)
    for owner, label in zip(GRAPHS.owners.tolist(), GRAPHS.labels.tolist(), strict=True):
        points[owner, label] += 1
    points = points / points.norm(dim=1, keepdim=True).clamp(min=1e-12)
    for place, label in enumerate(sorted(set(GRAPHS.y.tolist()))):
        rows = (GRAPHS.y == label).nonzero()[:, 0]
        best = rows[(points[rows] - points[rows].mean(0)).norm(dim=1).argmin()]
        assert forms(taken)[place] == KNOWN[int(best)]


def test_training_takes_as_many_steps_whatever_the_set_and_the_same_draws_give_the_same_bits():
    networks = [GIN(3, 2, width=8, edge_labels=2) for _ in range(2)]
    losses = [train_on_graphs(network, GRAPHS, QUICK, seed=4) for network in networks]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert not networks[0].training
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert train_on_graphs(GIN(3, 2, width=8, edge_labels=2), GRAPHS, QUICK, seed=5) != losses[0]


def test_a_draw_of_ones_own_decides_what_is_seen():
    asked = []

    def draw(count, step):
        asked.append((count, step.index))
        return torch.zeros(count, dtype=torch.int64)

    own = train_on_graphs(GIN(3, 2, width=8, edge_labels=2), GRAPHS, QUICK, draw=draw)
    first = GRAPHS.take(torch.zeros(1, dtype=torch.int64))
    assert asked == [(5, step) for step in range(4)]
    assert own == pytest.approx(train_on_graphs(GIN(3, 2, width=8, edge_labels=2), first, QUICK), rel=1e-5)


def test_training_learns_what_can_be_learned():
    # The class is the label of all of a graph's nodes.
    graphs = Graphs(
        torch.tensor([0, 0, 1, 1]), torch.zeros(2, 0, dtype=torch.int64), torch.arange(4), torch.tensor([0, 0, 1, 1])
    )
    network = GIN(2, 2, width=8)
    losses = train_on_graphs(network, graphs, GraphTraining(steps=60, batch_size=8, learning_rate=0.01))
    assert losses[-1] < 0.2 * losses[0]
    assert score_graphs(network, graphs) == evaluate.graph_sets.GraphScores(1.0, 1.0)


class Fixed(nn.Module):
    """Logits by the graph's number of nodes."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, graphs):
        return torch.stack([graphs.sizes.float() * factor for factor in range(self.classes)], 1)


def test_scores_are_those_of_counting_pairs():
    found = score_graphs(Fixed(2), GRAPHS)
    positive = GRAPHS.y == 1
    above, below = GRAPHS.sizes[positive].tolist(), GRAPHS.sizes[~positive].tolist()
    pairs = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    assert found.area == pytest.approx(sum(pairs) / len(pairs))
    assert found.accuracy == pytest.approx(float((positive == (GRAPHS.sizes > 0)).double().mean()))
    assert score_graphs(Fixed(3), GRAPHS).area is None
    one_class = GRAPHS.take((GRAPHS.y == 0).nonzero()[:, 0])
    assert score_graphs(Fixed(2), one_class).area is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", True),
        ("batch_size", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("weight_decay", "1"),
    ],
)
def test_training_settings_that_are_not_allowed_name_themselves(field, value):
    with pytest.raises(ArgumentError, match=field):
        GraphTraining(**{field: value})


def test_bad_input_names_itself():
    none = GRAPHS.take(torch.zeros(0, dtype=torch.int64))
    for call in (lambda: train_on_graphs(GIN(3, 2), none, QUICK), lambda: score_graphs(GIN(3, 2), none)):
        with pytest.raises(ArgumentError, match="graphs: got 'none'"):
            call()
    with pytest.raises(ArgumentError, match="graphs: got 'Tensor'"):
        train_on_graphs(GIN(3, 2), GRAPHS.labels, QUICK)
    with pytest.raises(ArgumentError, match="graphs"):
        random_graphs(none, 10)
    with pytest.raises(ArgumentError, match="size"):
        random_graphs(GRAPHS, -1)
    with pytest.raises(ArgumentError, match="how: got 'best'"):
        selected_graphs(GRAPHS, 10, "best")


def test_a_loss_that_is_not_finite_is_an_error():
    network = GIN(3, 2, width=8, edge_labels=2)
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="step 0"):
        train_on_graphs(network, GRAPHS, QUICK)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Graphs as a user has them; the class shows in the labels of nodes."""
    graphs = made_up(60, labels=3, kinds=2, seed=3)
    labels = torch.where(graphs.y[graphs.owners] == 1, graphs.labels, graphs.labels.clamp(max=1))
    path = tmp_path_factory.mktemp("graphs") / "made-up.npz"
    np.savez(
        path,
        edges=graphs.edges.T.numpy(),
        graph=graphs.owners.numpy(),
        node_labels=labels.numpy(),
        y=graphs.y.numpy(),
        edge_labels=graphs.edge_labels.numpy(),
    )
    return path


def words(file, out, *more):
    quick = ["evaluation.training.steps=3", "evaluation.seeds=[0, 1]", "network.options.width=8", "support=0.1"]
    sets = [word for change in quick for word in ("--set", change)]
    return ["condense", "--method", "mirage", "--data", str(file), "--out", str(out), *sets, *map(str, more)]


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    before = torch.get_num_threads()
    out = tmp_path_factory.mktemp("run") / "out"
    assert cli.main(words(file, out)) == exit_codes.SUCCESS
    torch.set_num_threads(before)
    return out


def test_one_command_condenses_graphs_and_reports_them_beside_real_ones(finished, file):
    assert {path.name for path in finished.iterdir()} == {
        "condensed.safetensors", "report.md", "report.json", "config.toml"
    }  # fmt: skip
    report = json.loads((finished / "report.json").read_text())
    names = {"distilled", "random_real", "full_data", *SELECTIONS}
    for part in ("accuracy", "area_under_curve", "validation"):
        assert set(report[part]) == names
        assert all(0 <= entry["mean"] <= 1 and entry["seeds"] == [0, 1] for entry in report[part].values())
    sets = condense.load_tree_sets(finished)
    bundle = evaluate.data.load_graphs(file, seed=0)
    assert report["stored_bytes"] == report["bytes"]["distilled"] == sets.stored_bytes()
    assert report["examples"]["distilled"] == len(sets)
    assert report["examples"]["full_data"] == len(bundle.train)
    size = sets.stored_bytes()
    drawn = [random_graphs(bundle.train, size, seed=seed) for seed in (0, 1)]
    assert report["examples"]["random_real"] == len(drawn[0])
    assert report["bytes"]["random_real"] == round(sum(each.stored_bytes() for each in drawn) / 2)
    for how in SELECTIONS:
        own = selected_graphs(bundle.train, size, how)
        assert (report["examples"][how], report["bytes"][how]) == (len(own), own.stored_bytes())
    expected = recipes.mirage(support=0.1)(bundle.train)
    assert torch.equal(expected.members, sets.members)
    assert report["method"]["id"] == "mirage"
    assert report["files"] == [name for name in report["files"] if (finished / name).exists()]
    text = (finished / "report.md").read_text()
    assert f"{100 * report['accuracy']['distilled']['mean']:.1f}%" in text
    assert "random graphs of at most as many bytes" in text


def test_its_configuration_repeats_the_run_and_another_one_is_refused(finished, file, tmp_path, capsys):
    config = finished / "config.toml"
    assert cli.main(["condense", "--config", str(config), "--out", str(tmp_path / "again")]) == exit_codes.SUCCESS
    one, two = (json.loads((path / "report.json").read_text()) for path in (finished, tmp_path / "again"))
    for part in ("accuracy", "area_under_curve", "validation", "examples", "bytes"):
        assert one[part] == two[part]
    capsys.readouterr()
    assert cli.main(words(file, finished, "--seed", 5)) == exit_codes.USAGE
    assert "seed: there 0, asked for 5" in capsys.readouterr().err


def test_a_stopped_run_goes_on_with_the_networks_that_are_left(finished, file, tmp_path, monkeypatch):
    real, calls = judging._figures, []

    def stopping(*arguments):
        calls.append(arguments[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(judging, "_figures", stopping)
    out = tmp_path / "out"
    assert cli.main(words(file, out)) == exit_codes.INTERRUPTED
    assert not (out / "report.json").exists()
    assert cli.main(words(file, out)) == exit_codes.SUCCESS
    # Six sets and two seeds, three of which were finished, and one that was begun twice.
    assert len(calls) == 13
    one, two = (json.loads((path / "report.json").read_text()) for path in (finished, out))
    assert one["accuracy"] == two["accuracy"]


def test_the_plan_is_shown_and_nothing_is_written(file, tmp_path, capsys):
    assert cli.main(words(file, tmp_path / "out", "--dry-run", "--json")) == exit_codes.SUCCESS
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "mirage"
    assert found["configuration"]["method"]["options"]["support"] == 0.1
    assert not (tmp_path / "out").exists()


def test_a_support_can_be_given_for_each_class(file, tmp_path):
    more = ("--set", "support={0 = 0.6, 1 = 3}", "--dry-run")
    assert cli.main(words(file, tmp_path / "out", *more)) == exit_codes.SUCCESS
    asked, card = plan.request({}, {"data": str(file), "method": "mirage"}, ["support={0 = 0.6, 1 = 3}"])
    settings = plan.resolve(asked, card)
    assert plan.prepare(settings, card).transform.support == {0: 0.6, 1: 3}
    again = configuration.from_dict(GraphSettings, configuration.to_dict(settings))
    assert identity(again) == identity(settings)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--per-class", 3), "per_class: got 3"),
        (("--limit", 3), "limit: got 3"),
        (("--store", "x"), "store: got 'x'"),
        (("--network", "mlp"), "for graphs gin or gcn"),
        (("--set", "network.options.depth=3"), "network.options"),
        (("--set", "evaluation.test_share=2.0"), "evaluation.test_share"),
        (("--set", "evaluation.seeds=[1, 1]"), "seeds"),
        (("--set", "support=2.0"), "support"),
        (("--set", "support=1000"), "class 0 has no set of trees"),
        (("--set", "supports=1"), "did you mean 'support'"),
        (("--device", "nowhere"), "device"),
    ],
)
def test_the_command_names_what_is_not_allowed(file, tmp_path, capsys, more, message):
    code = cli.main(words(file, tmp_path / "out", *more))
    assert code not in (exit_codes.SUCCESS, exit_codes.INTERRUPTED)
    assert message in " ".join(capsys.readouterr().err.split())


def test_data_that_are_no_graphs_are_refused(tmp_path, capsys):
    assert cli.main(["condense", "--method", "mirage", "--out", str(tmp_path)]) == exit_codes.USAGE
    assert "data: got 'nothing'" in capsys.readouterr().err
    assert cli.main(["condense", "--method", "mirage", "--data", "digits", "--out", str(tmp_path)]) != 0
    assert "mutag" in capsys.readouterr().err
    with pytest.raises((DataError, UnknownNameError)):
        evaluate.data.load_graphs("digits")


def test_a_condensed_set_of_graphs_is_no_set_of_images_and_says_who_reads_it(finished):
    with pytest.raises(DataError, match="load_tree_sets"):
        condense.load(finished)
