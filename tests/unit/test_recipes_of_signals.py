"""The recipes that need no trajectories: DM, DC, RDED and the control."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import condense, recipes
from distillrs.augment import Augmentation, AugmentationPlan, Draw, apply
from distillrs.condense.patches import mosaic, realistic_patches
from distillrs.errors import ArgumentError, DataError
from distillrs.registry import find_recipe


def data(count=36, classes=3, side=4):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    return torch.randn(count, 1, side, side, generator=generator) + y[:, None, None, None], y


def networks(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**32)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))


def normalised_networks(seed):
    return nn.Sequential(nn.BatchNorm2d(1), networks(seed))


def teachers():
    return condense.Committee([networks(seed) for seed in range(2)])


@pytest.mark.parametrize("name", ["dm", "dc", "rded", "random_real_soft_labels"])
def test_recipes_are_registered_with_what_they_need(name):
    card = find_recipe(name)
    assert card.function is getattr(recipes, name)
    assert card.engine == "condense"
    assert card.needs == ("data" if name in ("dm", "dc") else "teachers")
    assert card.moves == (name in ("dm", "dc"))
    assert card.equation
    assert card.deviations


@pytest.mark.parametrize(("recipe", "signal"), [("dm", condense.ClassMeans()), ("dc", condense.GradientSignal())])
def test_a_recipe_is_its_signal_under_siamese_augmentation(recipe, signal):
    x, y = data()
    card = find_recipe(recipe)
    synthetic = card.initial(x, y, 2, seed=0)
    made = card.function(x, y, networks, synthetic, real_per_class=5)
    expected = condense.SignalMatching(
        synthetic,
        condense.RealExamples(x, y, per_class=5),
        networks,
        signal,
        augmentation=Augmentation("color_crop_cutout_flip_scale_rotate"),
    )
    assert torch.equal(made(None, 0).total, expected(None, 0).total)
    assert not torch.equal(made(None, 0).total, card.function(x, y, networks, synthetic, augment=None)(None, 0).total)


@pytest.mark.parametrize("recipe", ["dm", "dc"])
def test_moving_images_brings_the_gap_down(recipe):
    x, y = data()
    card = find_recipe(recipe)
    noise = dr.random.normal(3, 1, 4, 4, step=0, name="test")
    synthetic = condense.Synthetic(noise, condense.HardLabels(torch.arange(3)))
    options = {"every": 2, "inner_epochs": 1} if recipe == "dc" else {}
    made = card.function(x, y, networks, synthetic, augment="flip", **options)

    def mean_gap():
        return sum(made(None, dr.Step(step, seed=9)).total.item() for step in range(0, 40, 2)) / 20

    before = mean_gap()
    dr.fit(made, {"images": {"lr": 0.5 if recipe == "dm" else 0.1, "momentum": 0.5}}, 80)
    assert mean_gap() < 0.6 * before


def test_dm_refuses_soft_labels_and_vectors_under_an_augmentation():
    x, y = data()
    soft = condense.Synthetic.from_real(x, y, 1, "soft")
    with pytest.raises(ArgumentError, match=r"^synthetic: got 'soft labels'"):
        recipes.dm(x, y, networks, soft)
    flat = condense.Synthetic.from_real(x.flatten(1), y, 1)
    with pytest.raises(ArgumentError, match=r"^augmentation: got"):
        recipes.dm(x.flatten(1), y, networks, flat)
    assert torch.isfinite(recipes.dm(x.flatten(1), y, networks, flat, augment="")(None, 0).total)


def test_the_surest_whole_images_are_those_of_brute_force():
    x, y = data()
    committee = teachers()
    patches, labels = realistic_patches(x, y, 3, committee, crops=0)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    losses = nn.functional.cross_entropy(committee.vote(x), y, reduction="none")
    for label in range(3):
        members = (y == label).nonzero()[:, 0]
        expected = x[members[losses[members].argsort()[:3]]]
        assert torch.equal(patches[labels == label], expected)


def test_of_each_image_the_best_crop_is_kept_and_none_is_taken_twice():
    x, y = data()
    committee = teachers()
    # As many patches as images: every image must give one, and its best.
    patches, labels = realistic_patches(x, y, 12, committee, crops=4, seed=3)
    losses = nn.functional.cross_entropy(committee.vote(patches), labels, reduction="none").reshape(3, 12)
    assert (losses.diff(dim=1) >= -1e-6).all()
    more, _ = realistic_patches(x, y, 12, committee, crops=9, seed=3)
    better = nn.functional.cross_entropy(committee.vote(more), labels, reduction="none").reshape(3, 12)
    assert (better <= losses + 1e-5).all()  # the first four crops are among the nine
    assert better.sum() < losses.sum()
    again, _ = realistic_patches(x, y, 12, committee, crops=4, seed=3)
    assert torch.equal(again, patches)
    assert not torch.equal(realistic_patches(x, y, 12, committee, crops=4, seed=4)[0], patches)


def test_a_mosaic_holds_its_patches_shrunk_by_area():
    patches = torch.arange(2 * 4 * 1 * 4 * 4, dtype=torch.float32).reshape(8, 1, 4, 4)
    made = mosaic(patches, 2)
    assert made.shape == (2, 1, 4, 4)
    small = nn.functional.avg_pool2d(patches, 2)
    for image in range(2):
        rows = [torch.cat([small[4 * image + 2 * row + column] for column in (0, 1)], 2) for row in (0, 1)]
        torch.testing.assert_close(made[image], torch.cat(rows, 1))
    assert mosaic(patches, 1) is patches


@pytest.mark.parametrize("factor", [1, 2])
def test_rded_gives_patches_with_the_teachers_labels(factor):
    x, y = data()
    committee = teachers()
    made = recipes.rded(x, y, 2, committee, factor=factor, crops=2)
    assert made.images.shape == (6, 1, 4, 4)
    torch.testing.assert_close(made.labels.logits, committee.vote(made.images.detach()))
    assert not any("labels" in name or "inner" in name for name in made.parameter_groups())
    flat = recipes.rded(x.flatten(1), y, 2, condense.Committee([networks(0)]))
    assert flat.images.shape == (6, 16)


def test_the_control_is_random_real_images_with_the_teachers_labels():
    x, y = data()
    made = recipes.random_real_soft_labels(x, y, 2, teachers(), seed=4)
    rows = condense.draw_per_class(y, 2, seed=4)
    assert torch.equal(made.images.detach(), x[rows])
    torch.testing.assert_close(made.targets(), teachers().vote(x[rows]).softmax(1))


def test_a_resized_crop_of_everything_is_the_image_and_of_a_quarter_its_pixels():
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)

    def cropped(*rectangle):
        draw = Draw("resizedcrop", torch.tensor([rectangle], dtype=torch.float64))
        return apply(x, AugmentationPlan((draw,), None, (3, 6, 8)))

    torch.testing.assert_close(cropped(0, 0, 6, 8), x)
    expected = nn.functional.interpolate(x[:, :, 1:4, 2:6], size=(6, 8), mode="bilinear", align_corners=False)
    # Inside the rectangle; at its rim torch repeats the rectangle's pixels, and here the image goes on.
    torch.testing.assert_close(cropped(1, 2, 3, 4)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])


def test_resized_crops_have_the_share_that_was_asked_for_and_lie_within():
    plan = Augmentation("resizedcrop", resizedcrop=0.3).plan(500, step=0, shape=(1, 16, 12))
    top, left, tall, wide = plan.draws[0].parameters.unbind(1)
    area = tall * wide / (16 * 12)
    assert area.min() >= 0.3 * 0.99 * (3 / 4)  # a side cut at the image's takes some away
    assert area.median() > 0.5
    assert area.max() <= 1
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 16 + 1e-9).all()
    assert (left + wide <= 12 + 1e-9).all()
    whole = Augmentation("resizedcrop", resizedcrop=1.0).plan(50, step=0, shape=(1, 16, 12)).draws[0].parameters
    assert (whole[:, 2] * whole[:, 3] / 192 > 0.74).all()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, y: realistic_patches(x, y, 2, teachers(), candidates=1), "candidates"),
        (lambda x, y: realistic_patches(x.flatten(1), y, 2, teachers()), "crops"),
        (lambda x, y: realistic_patches(x, y.float(), 2, teachers()), "y"),
        (lambda x, y: realistic_patches(x, y - 1, 2, teachers()), "y"),
        (lambda x, y: realistic_patches(x, y[:5], 2, teachers()), "y"),
        (lambda x, y: realistic_patches(x, y, 2, teachers(), area=0.0), "area"),
        (lambda x, y: realistic_patches(x, y + 1, 2, teachers(), crops=0), "per_class"),
        (lambda x, y: realistic_patches(x[:4], torch.tensor([0, 1, 2, 3]), 1, teachers(), crops=0), "teachers"),
        (lambda x, y: recipes.rded(x, y, 2, teachers(), factor=0), "factor"),
        (lambda x, y: recipes.random_real_soft_labels(x[:5], y, 2, teachers()), "y"),
        (lambda x, y: recipes.dc(x, y, normalised_networks, find_recipe("dc").initial(x, y, 1), every=1), "networks"),
        (lambda x, y: mosaic(x, 0), "factor"),
        (lambda x, y: mosaic(x[:5], 2), "patches"),
        (lambda x, y: Augmentation("resizedcrop", resizedcrop=0.0), "resizedcrop"),
        (
            lambda x, y: recipes.dm(x, y, networks, find_recipe("dm").initial(x, y, 1), real_per_class=0),
            "real_per_class",
        ),
    ],
)
def test_what_is_refused_names_itself(call, name):
    with pytest.raises((ArgumentError, DataError), match=f"^{name}: got"):
        call(*data())


def test_too_few_examples_of_a_class_are_named():
    x, y = data()
    with pytest.raises(DataError, match=r"^per_class: got 13, but class 0 has 12 of the 36 examples"):
        realistic_patches(x, y, 13, teachers(), crops=0)
