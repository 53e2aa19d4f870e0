"""A wrong argument of a public name of condense gives a message that begins with its name, not a raw error."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from distillrs import condense, ops
from distillrs.condense.patches import realistic_images
from distillrs.errors import ArgumentError, DataError
from distillrs.training import TrainingSettings
from distillrs.trajectory import Column, ParameterLayout, Schema, Store
from small_networks import heads, network, plain

X = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
WORDS = np.array(["hard", "soft"])
SETTINGS = TrainingSettings(1, 4, 0.1)


PAIRS = condense.Pairs(torch.rand(6, 4), torch.rand(6, 4))
CODE = condense.GaussianCode(nn.Linear(4, 4))


def synthetic(**settings):
    return condense.Synthetic.from_real(X, Y, 2, **settings)


def paired(**settings):
    return condense.PairedSynthetic(torch.rand(4, 4), torch.rand(4, 4), targets=condense.PairTargets(4, 2), **settings)


class Empty:
    """A store without trajectories."""

    def __init__(self):
        self.metadata = {}

    def lengths(self):
        return {}

    def read(self, key, step, *, column):
        raise KeyError(key)


def of(call, **good):
    """The call with one of its arguments exchanged."""
    return lambda name, value: call(**{**good, name: value})


SET = of(condense.Synthetic, images=X[:3], labels=condense.HardLabels(Y[:3]))
FROM_REAL = of(condense.Synthetic.from_real, x=X, y=Y, per_class=2)
CONDENSED = of(condense.CondensedSet, stored=X[:3], labels=Y[:3], inner_lr=0.1)
PLAN = condense.ViewPlan(2)
COMMITTEE = of(condense.Committee, members=[network()])
VOTE = of(lambda **given: condense.Committee([network()]).vote(**given), images=X)
DRAW = of(lambda **given: condense.Committee([network()]).draw(**given), count=1, step=0)
RECOVERY = of(
    lambda **given: condense.Recovery(**given), teachers=condense.Committee([network()]), synthetic=synthetic()
)
MATCHING = of(
    condense.SignalMatching,
    synthetic=synthetic(),
    real=condense.RealExamples(X, Y),
    networks=plain,
    signal=condense.ClassMeans(),
)
REAL = of(condense.RealExamples, x=X, y=Y)
TRAJECTORIES = of(
    condense.TrajectoryMatching,
    store=Empty(),
    network=plain(),
    synthetic=synthetic(),
    unroll=condense.Unroll(2),
    windows=condense.Windows(1),
)
PAIR_TRAJECTORIES = of(
    condense.PairTrajectoryMatching,
    store=Empty(),
    network=heads(),
    synthetic=paired(),
    unroll=condense.Unroll(2),
    windows=condense.Windows(1),
)
PAIR_MATCHING = of(condense.PairDistributionMatching, store=Empty(), network=heads(), real=PAIRS, synthetic=paired())
PAIRED = of(condense.PairedSynthetic, images=torch.rand(4, 4), texts=torch.rand(4, 4))
TRAIN_PAIRS = of(condense.train_pairs, network=heads(), pairs=PAIRS, settings=SETTINGS)
RECORD_PAIRS = of(condense.record_pair_experts, store=Empty(), network=heads, pairs=PAIRS, settings=SETTINGS, count=1)
PATCHES = of(realistic_images, x=X, y=Y, per_class=2, teachers=condense.Committee([network()]))
GENERATED = of(condense.generated, encoder=CODE, decoder=nn.Linear(2, 4), x=torch.rand(3, 4))
MERGED = of(
    condense.merge_about,
    one=torch.zeros(195),
    two=torch.zeros(195),
    anchor=torch.zeros(195),
    layout=ParameterLayout.of(plain()),
)

WRONG = [
    *[(SET, "images", value) for value in (None, X.numpy(), X.long(), X.to("meta"), X[0, 0, 0], X[:0])],
    *[(SET, "labels", value) for value in (None, Y, "hard")],
    *[(SET, "inner_lr", value) for value in (None, "a", True, math.nan, 0.0, 10**30, torch.ones(1))],
    *[(SET, "inner_lr_bounds", value) for value in (None, 3, (1, 2, 3), (0, 1), (2, 1), ("a", "b"), (1, math.inf))],
    *[(SET, "box", value) for value in (True, 3, (1,), ("a", 1), (0, math.nan), (1, 0), torch.ones(2))],
    *[(SET, "average", value) for value in ("a", -0.1, 1.0, math.nan, True)],
    *[(SET, "factors", value) for value in (True, "additive", nn.Linear(2, 2))],
    *[(SET, name, "no") for name in ("learn_inner_lr", "learn_images")],
    *[(FROM_REAL, "x", value) for value in (None, X.numpy(), X.long(), X[:0])],
    *[(FROM_REAL, "y", value) for value in (None, Y.numpy(), Y.float(), Y[:0], -Y, Y.to("meta"))],
    *[(FROM_REAL, "per_class", value) for value in (None, 0, -1, 1.5, True)],
    *[(FROM_REAL, "classes", value) for value in ("a", 1.5, 0, 10**30, True)],
    (FROM_REAL, "labels", WORDS),
    (FROM_REAL, "seed", -1),
    *[(CONDENSED, "stored", value) for value in (None, X.numpy(), X.long())],
    *[(CONDENSED, "inner_lr", value) for value in (None, "a", True, -1.0, 10**400)],
    *[(CONDENSED, "class_count", value) for value in ("a", 0, 10**30, 2.5)],
    *[(CONDENSED, "classes", value) for value in (True, "abc", [1, 2, 3], ["a"])],
    *[(CONDENSED, name, "x") for name in ("transform", "training", "factors", "views")],
    *[(of(condense.HardLabels, indices=Y), "indices", value) for value in (None, [0, 1], Y.float(), Y[:0])],
    *[(of(condense.HardLabels, indices=Y), "classes", value) for value in ("a", 1.5, True, 0, 10**30)],
    *[(of(condense.SoftLabels, logits=X[:, 0, 0]), "logits", value) for value in (None, Y, X, X[:, 0, 0].to_sparse())],
    (of(condense.SoftLabels, logits=X[:, 0, 0]), "learn", "no"),
    *[
        (of(condense.SoftLabels.from_classes, indices=Y, classes=3), "confidence", value)
        for value in (None, "a", 0.3, 1, True)
    ],
    *[(of(condense.SoftLabels.from_classes, indices=Y, classes=3), "classes", value) for value in (None, "a", 1)],
    *[(COMMITTEE, "members", value) for value in (None, 3, [], [3], network())],
    *[(COMMITTEE, "prior", value) for value in (True, "a", ["a"], [1.0, 2.0], [math.nan])],
    *[(COMMITTEE, "temperature", value) for value in (None, "a", 0, math.inf, True)],
    *[(VOTE, "images", value) for value in (None, X.long(), X[:0])],
    *[(VOTE, "members", value) for value in (3, "0", [], [1], [-1], [True])],
    (VOTE, "statistics", WORDS),
    *[(VOTE, "temperature", value) for value in ("a", 0, math.nan, math.inf)],
    *[(VOTE, "batch", value) for value in ("a", 0, 1.5, 10**30)],
    *[(DRAW, "count", value) for value in (None, 0, 2, 1.5)],
    *[(DRAW, "name", value) for value in (None, "", 3)],
    *[(DRAW, "unit", value) for value in (None, "a", -1)],
    *[(RECOVERY, "teachers", value) for value in (None, network())],
    *[(RECOVERY, "synthetic", value) for value in (None, X)],
    *[(RECOVERY, "strength", value) for value in (None, "a", -1, math.nan, math.inf, True)],
    *[(RECOVERY, "statistics", value) for value in (True, "running")],
    *[(RECOVERY, "augmentation", value) for value in (True, "flip")],
    *[(RECOVERY, "members", value) for value in ({}, 0, 2, 1.5, "1", [1])],
    (RECOVERY, "redraw", "no"),
    *[(RECOVERY, "temperature", value) for value in ("a", 0)],
    *[(RECOVERY, "seed", value) for value in (None, -1, 1.5, "a")],
    *[(MATCHING, name, 3) for name in ("synthetic", "real", "networks", "signal", "augmentation", "training")],
    *[(MATCHING, "every", value) for value in (0, 1.5, "a", None)],
    *[(MATCHING, "seed", value) for value in (-1, "a")],
    *[(REAL, "x", value) for value in (None, X.numpy(), X.long())],
    *[(REAL, "y", value) for value in (None, Y.numpy(), Y.float(), Y[:2])],
    *[(REAL, "classes", value) for value in ("a", 0, 1.5)],
    *[(TRAJECTORIES, name, 3) for name in ("store", "network", "synthetic", "unroll", "windows", "augmentation")],
    *[(TRAJECTORIES, name, 3) for name in ("guard", "targets", "perturbation", "inner_scale", "loss", "column")],
    *[(TRAJECTORIES, "batch", value) for value in (0, "a", 1.5)],
    (TRAJECTORIES, "labels", WORDS),
    *[(PAIR_TRAJECTORIES, name, 3) for name in ("store", "network", "synthetic", "unroll", "windows", "guard")],
    *[(PAIR_TRAJECTORIES, name, WORDS) for name in ("sides", "normalise", "blended", "column", "temperature")],
    *[(PAIR_MATCHING, name, 3) for name in ("store", "network", "real", "synthetic")],
    (PAIR_MATCHING, "real", PAIRS.images),
    *[(PAIRED, "images", value) for value in (None, PAIRS.images.numpy(), PAIRS.images.long())],
    *[(PAIRED, "texts", value) for value in (None, "words")],
    *[(PAIRED, name, "no") for name in ("learn_rates", "rates", "rate_bounds", "targets")],
    *[(TRAIN_PAIRS, name, 3) for name in ("network", "pairs", "settings", "rates", "loss", "after_epoch")],
    *[(RECORD_PAIRS, "count", value) for value in (0, "a", 10**30)],
    *[(RECORD_PAIRS, name, None) for name in ("network", "pairs", "settings", "shared_start", "column")],
    *[(PATCHES, "x", value) for value in (None, X.numpy())],
    *[(PATCHES, name, "a") for name in ("per_class", "teachers", "factor", "candidates", "crops", "area")],
    *[(PATCHES, name, 10**30) for name in ("crops", "area")],
    (PATCHES, "difficulty", WORDS),
    *[(GENERATED, name, None) for name in ("encoder", "decoder", "x", "spread", "batch")],
    *[(GENERATED, "batch", value) for value in (0, -1, 1.5)],
    *[(MERGED, name, None) for name in ("one", "two", "anchor", "layout", "amount")],
    (of(condense.Additive), "offsets", None),
    (of(condense.Additive), "offsets", Y),
    (of(condense.BlockAdditive), "offsets", X[0, 0]),
    *[(of(condense.Enlarged), "size", value) for value in (None, 3, (8,), (8, 0), (8, "a"), (8, 10**30))],
    *[(of(condense.BatchNormStatistics), "first", value) for value in (None, "a", -1, math.inf, True)],
    (of(condense.BatchNormStatistics), "normalised", "no"),
    *[(of(condense.ClippedLoss), name, "a") for name in ("start", "increment", "epochs")],
    *[(of(condense.SharpnessAware, radius=0.1), name, "a") for name in ("radius", "surrogate_gap", "mix", "adaptive")],
    (of(condense.InputGradientPenalty), "weight", None),
    (of(condense.FilterPerturbation), "scale", None),
    *[(of(condense.Guard), "threshold", value) for value in (None, "a", 0, math.nan, True)],
    *[(of(condense.Target, vector=torch.ones(3)), "vector", value) for value in (None, 3.0, Y)],
    *[
        (of(condense.Target, vector=torch.ones(3)), "normaliser", value)
        for value in (None, "a", 0, -1.0, torch.ones(2), True)
    ],
    *[(of(condense.Unroll, steps=2), "momentum", value) for value in (None, "a", 1.0)],
    (of(condense.Unroll, steps=2), "gradient", WORDS),
    *[(of(condense.ClassMeans), "features", value) for value in (None, 3)],
    *[(of(condense.GradientSignal), "distance", value) for value in (None, WORDS)],
    (of(condense.ViewPlan), "mix", WORDS),
    *[(of(PLAN.make, images=X, view=0), "view", value) for value in (None, "a", 2, -1, 0.5)],
    *[(of(PLAN.make, images=X, view=0), "images", value) for value in (None, X[0], X.long())],
    *[(of(PLAN.ask, teacher=plain(), seen=X, view=0), name, None) for name in ("teacher", "seen")],
    *[(of(condense.ViewPlan.from_dict), "values", value) for value in (None, 3, [1])],
    *[(of(condense.ViewLabels, plan=PLAN, source=plain()), name, 3) for name in ("plan", "source")],
    *[(of(condense.ViewLabels(PLAN, plain()).at, images=X, epoch=0), "epoch", value) for value in (None, -1, 0.5)],
    *[(of(condense.MixedLabels, plan=PLAN, source=plain()), name, 3) for name in ("plan", "source")],
    *[
        (of(condense.write_labels, plan=PLAN, images=X, teacher=plain(), path="x", classes=3), name, None)
        for name in ("plan", "images", "path", "overwrite")
    ],
    *[
        (of(condense.read_labels, plan=PLAN, path="x", images=4, classes=3), name, None)
        for name in ("plan", "images", "classes")
    ],
    (of(condense.read_labels, plan=PLAN, path="x", images=4, classes=3), "images", -1),
    *[(of(condense.load, path="x"), "path", value) for value in (None, 3)],
    *[(of(condense.load, path="x"), "max_bytes", value) for value in ("a", 0, math.nan)],
    (of(condense.load, path="x"), "factors", "additive"),
    *[(of(condense.export_image_folder, data=None, path="x"), name, None) for name in ("data",)],
    (of(condense.to_hugging_face), "data", X),
    *[(of(condense.PairNetwork, image_head=CODE, text_head=CODE), name, 3) for name in ("image_head", "text_head")],
    *[(of(PAIRS.at), "rows", value) for value in (None, [0], torch.tensor([6]), torch.tensor([-1]))],
    *[(of(condense.contrastive_loss, embedded=PAIRS), "temperature", value) for value in (None, 0, "a", math.nan)],
    (of(condense.contrastive_loss), "embedded", X),
    *[(of(condense.PairTargets, count=4), "count", value) for value in (0, "a", 10**30)],
    (of(condense.PairTargets(4, 2).matrix), "packed", torch.ones(2, 4)),
    (of(condense.PairTargets(4).loss), "temperature", 0),
    (of(condense.balanced_similarity_loss, logits=X[0, 0], targets=X[0, 0]), "logits", None),
    (of(condense.balanced_similarity_loss, logits=X[0, 0], targets=X[0, 0]), "targets", X[0, 0, :2]),
    *[(of(condense.nearest_to_centres, points=X[:, 0, 0], y=Y, per_class=1), "points", value) for value in (None, X)],
    *[(of(condense.rightly_classified, y=Y, right=Y, per_class=1), name, None) for name in ("y", "right", "per_class")],
    *[(of(condense.judge, store=None, network=plain(), x=X, y=Y), name, None) for name in ("x", "y", "store")],
    *[(of(condense.penultimate, network=plain(), images=X), name, None) for name in ("network", "images")],
    *[
        (of(condense.inner_batches, count=4, size=2, steps=2, step=None), name, value)
        for name, value in (("step", 3), ("step", None))
    ],
    *[(of(condense.intermediate_targets, steps=4, span=2), name, "a") for name in ("steps", "span", "weight")],
    *[(of(condense.Subspace(4).keep), "vector", value) for value in (None, torch.ones(3), torch.ones(1, 4))],
    *[(of(condense.Subspace(4).project), "vectors", value) for value in (None, torch.ones(3))],
    (of(condense.GradientAmplifier), "module", None),
    *[
        (of(condense.mixed_target, few=(X[:2], Y[:2]), unlabelled=X, logits=torch.zeros(12, 3)), name, value)
        for name, value in (("few", None), ("unlabelled", None), ("logits", None), ("logits", torch.zeros(2, 3)))
    ],
    (of(condense.GaussianCode), "body", None),
    (of(condense.LatentDistillation, student=CODE, teacher=CODE), "distance", WORDS),
    (of(condense.LatentDistillation(CODE, CODE)), "batch", None),
    *[(of(condense.FrequentTreeSets), name, "a") for name in ("edge_labels", "exclusive", "largest", "most")],
    (of(condense.FunctionalNetwork, network=plain()), "layout", 3),
    (of(condense.FunctionalNetwork), "network", None),
]


@pytest.mark.parametrize(("call", "name", "value"), WRONG)
def test_a_wrong_argument_is_refused_by_name(call, name, value):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        call(name, value)


@pytest.mark.parametrize("turn", ["other", 3, np.array(["synthetic", "x"])])
def test_a_turn_that_there_is_not_is_refused(turn):
    objective = condense.SignalMatching(synthetic(), condense.RealExamples(X, Y), plain, condense.ClassMeans())
    with pytest.raises(ArgumentError, match=r"^turn: got"):
        objective(None, 0, turn=turn)


def test_more_classes_than_examples_are_refused_before_they_are_counted_one_by_one():
    for call in (lambda: condense.RealExamples(X, Y, classes=2**24), lambda: condense.draw_per_class(Y, 1, classes=13)):
        with pytest.raises(DataError, match="12 examples"):
            call()


def test_experts_are_refused_by_name(tmp_path):
    store = Store.create(tmp_path / "store", Schema(theta=Column((195,), "float32")))
    training = condense.ExpertTraining(SETTINGS)
    good = {"network": plain, "x": X, "y": Y, "keys": 1}
    for name, value in [
        ("network", None),
        ("x", X.numpy()),
        ("y", None),
        ("keys", None),
        ("keys", 10**30),
        ("keys", ["a", "a"]),
        ("keys", [1]),
        ("shard", None),
        ("shard", (1, 1)),
        ("shard", (0, "a")),
        ("column", None),
        ("on_progress", 3),
    ]:
        with pytest.raises(ArgumentError, match=rf"^{name}: got"):
            training.record(store, **{**good, name: value})
    assert not store.keys()


def test_what_stands_close_to_a_wrong_argument_is_taken():
    box = (-math.inf, torch.ones(1, 1, 1))
    made = synthetic(inner_lr=np.float32(0.1), average=0, box=box, classes=np.int64(3))
    assert float(made.images.detach().max()) <= 1
    assert condense.Guard(math.inf).threshold == math.inf
    committee = condense.Committee(
        nn.ModuleList([network(), network(1)]), prior=np.array([1.0, 2.0]), temperature=10**30
    )
    assert committee.weights(range(2), temperature=np.float32(1)) == pytest.approx((0.26894, 0.73106), abs=1e-4)
    assert len(condense.Recovery(committee, made, members=(0, 1))._groups) == 2
    target = condense.Target(torch.ones(3), normaliser=10**30)
    assert float(target.distance(torch.zeros(3))) == pytest.approx(3e-30)
    assert condense.contrastive_loss(PAIRS, 10**30).isfinite()
    assert PAIRS.at(torch.tensor([], dtype=torch.int64)).rows == 0
    assert condense.sphere_energy(PAIRS.images, PAIRS.texts, ops.Geodesic(0.5)).isfinite()
