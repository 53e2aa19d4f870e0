"""Engines beside the images' one: runs that were stopped, types of 16 bits, and what strangers hand in."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import condense, recipes
from distillrs.condense import DomainBatch, Pairs
from distillrs.condense.gradient_statistics import head_gradients, moments
from distillrs.errors import ArgumentError, DataError, TrainingDivergedError
from distillrs.training import TrainingSettings, train
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk

KNOWN, NEW = (0, 1, 2), (3, 4)


def seeded(seed, make):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def pair_network(seed=0):
    return seeded(seed, lambda: condense.PairNetwork(nn.Linear(5, 3), nn.Linear(4, 3)))


def pairs(count=20):
    return seeded(1, lambda: Pairs(torch.randn(count, 5), torch.randn(count, 4)))


def store():
    layout = ParameterLayout.of(pair_network())
    # Different ways from one start, as both recipes' experts may have.
    records = {f"expert-{each}": walk(layout, pair_network(), seed=each) for each in range(2)}
    for each in records.values():
        each[0] = records["expert-0"][0]
    return MemoryStore(records, {"layout": layout.to_dict()})


def distribution():
    made = recipes.mdm(store(), pair_network(), pairs(), recipes.mdm_initial(pairs(), pair_network(), 6), batch=4)
    return made, lambda step: None


def trajectories():
    synthetic = recipes.repblend_initial(pairs(), 6, rank=2, seed=1)
    return recipes.repblend(store(), pair_network(), synthetic, 2, start=range(1), batch=3), lambda step: None


def domains():
    body, head = seeded(2, lambda: (nn.Sequential(nn.Linear(6, 4), nn.Tanh()), nn.Linear(4, 5)))
    made = recipes.opt_traj_distill(body, head, KNOWN, NEW, weight=10.0, held=3)
    # The networks are the user's own, and so is keeping them.
    made.register_module("networks of the test", nn.ModuleList([body, head]))
    return made, lambda step: domain_batch(step.index)


def domain_batch(seed=0):
    def draw():
        def part(classes, rows):
            return torch.randn(rows, 6), torch.tensor(classes)[torch.randint(len(classes), (rows,))]

        return DomainBatch(part(KNOWN, 8), part(NEW, 4), part(KNOWN + NEW, 8))

    return seeded(seed, draw)


def codes():
    def make():
        encoder = condense.GaussianCode(nn.Linear(6, 4))
        return encoder, nn.Linear(2, 6)

    return seeded(3, make)


def autoencoder():
    encoder, decoder = codes()
    made = recipes.fair_latent_teacher(encoder, decoder)
    made.register_module("networks of the test", nn.ModuleList([encoder, decoder]))
    return made, lambda step: seeded(step.index, lambda: (torch.randn(8, 6), torch.rand(8)))


@pytest.mark.parametrize("make", [distribution, trajectories, domains, autoencoder])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(make):
    def run(steps, state=None, until=None):
        made, batch_of = make()
        kept = []
        rates = {name: {"lr": 0.01, "momentum": 0.5} for name in made.parameter_groups()}

        def look(at):
            if at.step.index + 1 == until:
                kept.append(at.state())

        dr.fit(made, rates, steps, batches=batch_of, callback=look, state=state)
        return made, kept

    whole, states = run(8, until=5)
    again, _ = run(8, state=states[0])
    one, two = whole.state_dict(), again.state_dict()
    assert one.keys() == two.keys()
    assert len(one) > 1
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = make()[0].state_dict()
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gaps_are_measured_in_32_bits_and_have_finite_slopes(dtype):
    x, y = (each.to(dtype) for each in seeded(4, lambda: (torch.randn(6, 3), torch.randn(6, 3))))
    cells = seeded(5, lambda: torch.randn(300, 300)).to(dtype)
    checks = {
        "sphere": (lambda a: condense.sphere_energy(a, y, dr.ops.Geodesic(0.5)), x),
        "the same": (lambda a: condense.sphere_energy(a, x.clone(), dr.ops.Geodesic(0.5)), x),
        "dependence": (lambda a: condense.distance_covariance(a, y), x),
        "similarities": (lambda a: condense.balanced_similarity_loss(a, torch.zeros_like(a)), 20 * cells),
        "moments": (lambda a: moments(head_gradients(a, y, torch.arange(6) % 3)).variance.sum(), 1e-3 * x),
    }
    for name, (measure, point) in checks.items():
        leaf = point.clone().requires_grad_()
        value = measure(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
        exact = measure(point.double())
        assert value.dtype == torch.float32, name
        assert slope.dtype == dtype, name
        assert bool(torch.isfinite(slope).all()), name
        assert value.item() == pytest.approx(exact.item(), rel=2e-2, abs=1e-3), name


def test_labels_that_are_kept_in_16_bits_are_probabilities_in_32(tmp_path):
    images, logits = seeded(6, lambda: (torch.rand(40, 1, 4, 4), 3 * torch.randn(40, 200)))
    settings = TrainingSettings(epochs=1, batch_size=20, learning_rate=0.01)
    small = condense.CondensedSet(images, logits=logits.half(), inner_lr=0.1, class_count=200, training=settings)
    small.save(tmp_path)
    data = condense.load(tmp_path)
    assert data.logits.dtype == torch.float16
    for found in (data.target(), data.probabilities, torch.stack([data[row][1] for row in range(40)])):
        torch.testing.assert_close(found, logits.half().float().softmax(1))
    train(nn.Sequential(nn.Flatten(), nn.Linear(16, 200)), data.images, data.target(), settings)


def test_blocks_of_images_are_exported_with_their_labels(tmp_path):
    pytest.importorskip("PIL")
    teachers = condense.Committee([seeded(each, lambda: batch_norm(2)) for each in range(2)])
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 2
    small = recipes.infer_ufc_initial(x, y, 3, teachers).condensed()
    logits = teachers.vote(small.images)
    small.mix(recipes.infer_ufc_views(count=2), logits)
    export = condense.export_image_folder(small, tmp_path / "pictures")
    assert export.files == len(small) == 4
    rows = [json.loads(line) for line in (tmp_path / "pictures/train/metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == logits.argmax(1).tolist()
    torch.testing.assert_close(torch.tensor([row["probabilities"] for row in rows]), logits.softmax(1))


def batch_norm(classes):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, classes))
    for _ in range(3):
        network(torch.rand(8, 1, 4, 4))
    return network.eval()


def test_views_of_batches_are_asked_of_a_module_that_is_left_as_it_was():
    network = seeded(0, lambda: batch_norm(3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(7, 1, 4, 4)
    plan = recipes.cv_dd_views(count=1, batch=3)
    seen, labels = condense.ViewLabels(plan, network).at(images, 0)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(labels, (network.eval()(seen) / plan.temperature).softmax(1))
    mixed = condense.MixedLabels(recipes.infer_ufc_views(count=1), network.train())
    mixed.at(images, 0)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def broken(part, x=None, y=None):
    batch = domain_batch()
    own = getattr(batch, part)
    return batch._replace(**{part: (own[0] if x is None else x, own[1] if y is None else y)})


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (lambda: None, r"batch: got 'NoneType'"),
        (lambda: domain_batch()[:2], r"batch: got 'tuple'"),
        (lambda: (torch.zeros(2), torch.zeros(2), torch.zeros(2)), r"batch: got 'tuple'"),
        (lambda: broken("source", y=torch.zeros(3, dtype=torch.int64)), r"batch\.source"),
        (lambda: broken("few", y=torch.zeros(4)), r"batch\.few"),
        (lambda: broken("few", y=torch.tensor([0, 1, 5, 2])), r"batch\.few: got 5"),
        (lambda: broken("source", y=torch.full((8,), -100)), r"batch\.source: got -100"),
        (lambda: broken("mixed", y=torch.full((8,), -1)), r"batch\.mixed: got -1"),
        (lambda: broken("source", torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)), r"batch\.source"),
        (lambda: broken("source", y=torch.full((8,), 4)), r"batch: got 'a source example"),
    ],
)
def test_a_batch_of_two_domains_that_is_none_is_named(batch, name):
    with pytest.raises(ArgumentError, match=name):
        domains()[0](batch())


def test_a_batch_without_few_and_without_mixed_examples_is_one_of_the_source_alone():
    made, _ = domains()
    none = torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)
    loss = made(DomainBatch(domain_batch().source, none, none))
    assert loss.total.item() == pytest.approx(loss.terms["source"].item())
    assert loss.terms["domain"] == loss.terms["class"] == loss.terms["mixed"] == 0


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3, 6),
        (torch.zeros(3, 6), "attribute"),
        (torch.zeros(3, 6), torch.zeros(2)),
        (torch.zeros(0, 6), torch.zeros(0)),
        (torch.zeros(3, 6), torch.tensor(1.0)),
    ],
)
def test_a_batch_of_examples_without_attributes_is_named(batch):
    with pytest.raises(ArgumentError, match="batch"):
        autoencoder()[0](batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, 5), "batch: got 'Tensor'"),
        (Pairs(torch.zeros(3, 5), torch.zeros(2, 4)), "batch: got '3 images and 2 texts'"),
        (Pairs(torch.zeros(3, 2), torch.zeros(3, 4)), "images of shape"),
        (Pairs(torch.zeros(1, 5), torch.zeros(1, 4)), "batch: got '1 pairs'"),
    ],
)
def test_real_pairs_that_do_not_fit_are_named(batch, message):
    with pytest.raises(ArgumentError, match=message):
        distribution()[0](batch)


def test_heads_that_diverge_are_an_error_and_no_expert():
    settings = TrainingSettings(epochs=3, batch_size=8, learning_rate=0.1)
    bad = Pairs(torch.full((8, 5), float("nan")), torch.zeros(8, 4))
    with pytest.raises(TrainingDivergedError, match="epoch 0"):
        condense.train_pairs(pair_network(), bad, settings)
    with pytest.raises(ArgumentError, match="rates"):
        condense.train_pairs(pair_network(), pairs(), settings, rates=(float("nan"), 1.0))
    with pytest.raises(ArgumentError, match="batch"):
        condense.spread_pairs(pair_network(), pairs(), 3, batch=0)


def test_classes_that_are_missing_or_too_small_are_named():
    x, teachers = torch.rand(6, 1, 4, 4), condense.Committee([seeded(0, lambda: batch_norm(3))])
    gap, one = torch.tensor([0, 0, 0, 2, 2, 2]), torch.zeros(6, dtype=torch.int64)
    for start in (recipes.infer_ufc_initial, recipes.cv_dd_initial):
        with pytest.raises(DataError, match="class 1"):
            start(x, gap, 2, teachers)
        with pytest.raises(DataError, match=r"per_class|class 0"):
            start(x, one, 20, teachers)
        with pytest.raises(ArgumentError, match="y: got"):
            start(x, one.float(), 1, teachers)
        with pytest.raises(ArgumentError, match="y: got"):
            start(x, one[:3], 1, teachers)
    alone = recipes.cv_dd_initial(x, one, 2, teachers, crops=0)
    assert alone.classes == 1
    assert recipes.cv_dd(teachers, alone, members=1)(None, 0).total.item() > 0
