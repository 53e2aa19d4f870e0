"""CV-DD: members drawn for good and weighed by what they are worth, labels of batches, students that see the same."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from distillrs import condense, evaluate, recipes
from distillrs.augment import Augmentation
from distillrs.condense.patches import realistic_images, realistic_patches
from distillrs.errors import ArgumentError
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings, classification_loss, train

PRIOR = [40.0, 45.0, 52.0]
PLAN = recipes.cv_dd_views(count=3, area=0.4, temperature=4.0, batch=4, seed=2)


def member(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)
    )
    for _ in range(20):
        network(torch.rand(16, 1, 4, 4) + seed)
    return network.eval()


def committee():
    return condense.Committee([member(seed) for seed in range(3)], prior=PRIOR)


def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(36) % 3
    return torch.rand(36, 1, 4, 4, generator=generator) + y[:, None, None, None], y


def test_members_are_drawn_once_for_a_group_and_weighed_by_their_prior():
    teachers = committee()
    synthetic = recipes.cv_dd_initial(*data(), 6, teachers, crops=0)
    made = recipes.cv_dd(teachers, synthetic, strength=0.3, area=0.5, seed=1)
    pairs = set()
    for step in (0, 7):
        augmentation = Augmentation("resizedcrop_flip", combine="all", resizedcrop=0.5)
        at = condense.recovery.Step(step, seed=1)
        plan = augmentation.plan(18, step=at, name="recovery", shape=(1, 4, 4))
        seen = augmentation.apply(synthetic.images, plan)
        total = 0.0
        for group in range(6):
            chosen = teachers.draw(2, step=at.at(0), name="recovering members", unit=group)
            pairs.add(chosen)
            raw = [math.exp(PRIOR[each] / 5) for each in chosen]
            for each, weight in zip(chosen, raw, strict=True):
                reading = condense.BatchNormStatistics()(teachers[each], seen[group::6])
                value = classification_loss(reading.output, torch.arange(3)) + 0.3 * reading.gap
                total = total + weight / sum(raw) * value
        loss = made(None, step).total
        torch.testing.assert_close(loss, total)
        found, expected = (torch.autograd.grad(3 * each, synthetic.images)[0] for each in (loss, total))
        torch.testing.assert_close(found, expected)
    assert len(pairs) > 1


def test_relative_statistics_do_not_know_a_networks_scale():
    teachers = committee()
    synthetic = recipes.cv_dd_initial(*data(), 2, teachers, crops=0)
    made = recipes.cv_dd(teachers, synthetic, normalised=True)
    assert made.statistics == condense.BatchNormStatistics(normalised=True)
    assert recipes.cv_dd(teachers, synthetic).statistics == condense.BatchNormStatistics()


def test_recovering_brings_both_terms_down_and_leaves_the_members_as_they_are():
    teachers = committee()
    before = [copy.deepcopy(teachers[number].state_dict()) for number in range(3)]
    synthetic = recipes.cv_dd_initial(*data(), 1, teachers, crops=0)
    made = recipes.cv_dd(teachers, synthetic, strength=0.1, area=1.0)
    first = made(None, 0).terms
    optimiser = torch.optim.Adam(made.parameter_groups()["images"], lr=0.1, betas=(0.5, 0.9))
    for step in range(40):
        optimiser.zero_grad()
        made(None, step).total.backward()
        optimiser.step()
        made.after_step()
    assert made(None, 0).terms["matching"] < 0.8 * first["matching"]
    for number, state in enumerate(before):
        assert all(torch.equal(value, state[name]) for name, value in teachers[number].state_dict().items())


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_patches_of_each_difficulty_are_those_of_brute_force(difficulty):
    (x, y), teachers = data(), committee()
    found, labels = realistic_patches(x, y, 3, teachers, crops=0, difficulty=difficulty)
    losses = nn.functional.cross_entropy(teachers.vote(x), y, reduction="none")
    for label in range(3):
        rows = (y == label).nonzero()[:, 0]
        order = rows[losses[rows].argsort()]
        first = {"easy": 0, "medium": 4, "hard": 9}[difficulty]
        assert torch.equal(found[labels == label], x[order[first : first + 3]])


def test_the_first_images_are_medium_patches_within_the_range_of_the_real_ones():
    (x, y), teachers = data(), committee()
    synthetic = recipes.cv_dd_initial(x, y, 2, teachers, factor=2, crops=2, seed=3)
    images, labels = realistic_images(x, y, 2, teachers, factor=2, crops=2, difficulty="medium", seed=3)
    assert torch.equal(synthetic.images.detach(), images)
    assert torch.equal(synthetic.targets(), labels)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert synthetic.get_buffer("box_low").item() == x.min()
    assert synthetic.get_buffer("box_high").item() == x.max()


def by_hand(images, view):
    """Labels of a view from members that really are in training mode, copied, without dropout."""
    seen, order = PLAN.make(images, view), PLAN.order(len(images), view)
    weights = torch.tensor(PRIOR).div(10).softmax(0)
    labels = torch.empty(len(images), 3)
    for rows in order.split(4):
        total = 0
        for number, weight in enumerate(weights):
            network = member(number)
            network[1].train()
            total = total + weight * network(seen[rows])
        labels[rows] = total.detach()
    return labels


def test_labels_are_those_of_members_that_normalise_by_the_batch(tmp_path):
    teachers, images = committee(), torch.rand(10, 1, 4, 4)
    before = [copy.deepcopy(teachers[number].state_dict()) for number in range(3)]
    answer = recipes.cv_dd_voice(teachers)
    views = condense.write_labels(PLAN, images, answer, tmp_path / "labels", classes=3)
    for view in range(3):
        expected = by_hand(images, view)
        torch.testing.assert_close(PLAN.ask(answer, PLAN.make(images, view), view), expected, rtol=1e-4, atol=1e-5)
        _, found = views.at(images, view)
        torch.testing.assert_close(found, (expected / 4).softmax(1), atol=2e-3, rtol=0)
    for number, state in enumerate(before):
        assert all(torch.equal(value, state[name]) for name, value in teachers[number].state_dict().items())
        assert not any(module.training for module in teachers[number].modules())


def test_a_label_depends_on_its_batch_and_on_nothing_else():
    teachers, images = committee(), torch.rand(10, 1, 4, 4)
    seen, answer = PLAN.make(images, 0), recipes.cv_dd_voice(teachers)
    together = PLAN.ask(answer, seen, 0)
    first = PLAN.order(10, 0)[:4]
    assert not torch.allclose(together, replace(PLAN, batch=5).ask(answer, seen, 0))
    changed = seen.clone()
    changed[PLAN.order(10, 0)[4:]] += 1
    torch.testing.assert_close(PLAN.ask(answer, changed, 0)[first], together[first])
    # A committee that does not look at the batch gives one answer, however the set is cut.
    torch.testing.assert_close(PLAN.ask(teachers.vote, seen, 0), replace(PLAN, batch=None).ask(teachers.vote, seen, 0))


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.layer(x.flatten(1))


def test_students_see_the_batches_that_were_labelled_together():
    teachers, images = committee(), torch.rand(10, 1, 4, 4)
    views = condense.ViewLabels(PLAN, recipes.cv_dd_voice(teachers))
    settings = TrainingSettings(epochs=4, batch_size=7, learning_rate=0.01)
    small = condense.CondensedSet(
        images, torch.arange(10) % 3, inner_lr=0.1, class_count=3, training=settings, views=views
    )
    network = Watched()
    evaluate.train(network, small, seed=5)
    wanted = [views.at(images, epoch)[0][rows] for epoch in range(4) for rows in PLAN.order(10, epoch % 3).split(4)]
    assert len(network.seen) == len(wanted) == 12
    assert all(torch.equal(one, two) for one, two in zip(network.seen, wanted, strict=True))
    # The same labels for real examples: cut the same way, asked of the same committee.
    assert views.by(teachers.vote).batch == 4


def test_a_set_keeps_its_batches_on_disk_and_one_without_them_says_nothing_of_them(tmp_path):
    teachers, images = committee(), torch.rand(6, 1, 4, 4)
    for plan, name in ((PLAN, "with"), (replace(PLAN, batch=None), "without")):
        folder = tmp_path / name
        views = condense.write_labels(
            plan, images, recipes.cv_dd_voice(teachers), folder / "condensed-labels", classes=3
        )
        condense.CondensedSet(images, torch.arange(6) % 3, inner_lr=0.1, class_count=3, views=views).save(folder)
        loaded = condense.load(folder).views
        assert loaded.plan == plan
        assert torch.equal(loaded.at(images, 1)[1], views.at(images, 1)[1])
    assert "batch" not in replace(PLAN, batch=None).describe()
    assert condense.ViewPlan.from_dict(PLAN.describe()) == PLAN


def test_a_prior_is_what_each_member_is_worth_alone():
    teachers, asked = committee(), []

    def distil(alone):
        assert len(alone) == 1
        asked.append(alone[0])
        return len(asked)

    assert recipes.cv_dd_prior(teachers, distil, lambda rank: rank / 4) == (25.0, 50.0, 75.0)
    assert asked == [teachers[0], teachers[1], teachers[2]]
    for bad in (1.5, float("nan"), -0.1):
        with pytest.raises(ArgumentError, match=r"^score: got .*member 0"):
            recipes.cv_dd_prior(teachers, distil, lambda rank, bad=bad: bad)


def test_the_recipe_says_what_it_is_for():
    card = find_recipe("cv-dd")
    assert (card.needs, card.moves, card.engine) == ("teachers", True, "condense")
    assert card.views is recipes.cv_dd_views
    assert card.voice is recipes.cv_dd_voice
    assert card.network["options"] == {"normalisation": "batch"}
    assert card.optimisers["images"] == {"lr": 0.25, "betas": (0.5, 0.9), "schedule": "cosine"}
    assert recipes.cv_dd_views() == condense.ViewPlan(300, "resizedcrop_flip", 0.08, "cutmix", 20.0, 0, 16)


def test_an_order_must_be_one():
    network, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.arange(4) % 2
    settings = TrainingSettings(epochs=1, batch_size=2, learning_rate=0.1)
    for bad in (torch.tensor([0, 1, 2, 2]), torch.arange(3), torch.arange(4.0)):
        with pytest.raises(ArgumentError, match=r"^orders: got"):
            train(network, x, y, settings, orders=lambda epoch, bad=bad: bad)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda t, s: recipes.cv_dd(t, s, members=4), "members"),
        (lambda t, s: recipes.cv_dd(t, s, strength=-1), "strength"),
        (lambda t, s: recipes.cv_dd(t, s, weight_temperature=0), "weight_temperature"),
        (lambda t, s: recipes.cv_dd(t, s, area=0.0), "area"),
        (lambda t, s: recipes.cv_dd_initial(*data(), 1, t, difficulty="mild"), "difficulty"),
        (lambda t, s: recipes.cv_dd_initial(*data(), 1, t, factor=0), "factor"),
        (lambda t, s: recipes.cv_dd_initial(*data(), "a", t), "per_class"),
        (lambda t, s: recipes.cv_dd_initial(*data(), 1, 3), "teachers"),
        (lambda t, s: recipes.cv_dd_views(batch=0), "batch"),
        (lambda t, s: condense.ViewPlan.from_dict(PLAN.describe() | {"batch": "all"}), "batch"),
    ],
)
def test_what_is_refused_names_itself(call, name):
    teachers = committee()
    synthetic = recipes.cv_dd_initial(*data(), 1, teachers, crops=0)
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call(teachers, synthetic)
