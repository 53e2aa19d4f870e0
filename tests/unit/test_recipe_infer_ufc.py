"""INFER: blocks of images and shared compensators, each under its own teacher; labels that are mixed as images are."""

from __future__ import annotations

import json

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillrs as dr
from distillrs import condense, evaluate, recipes
from distillrs.errors import ArgumentError, DataError
from distillrs.recipes.cda import cda
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings, classification_loss

PLAN = recipes.infer_ufc_views(count=4, temperature=3.0, seed=1)


def teacher(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    for _ in range(20):
        network(torch.rand(16, 1, 4, 4))
    return network.eval()


def teachers(count=2):
    return condense.Committee([teacher(seed) for seed in range(count)])


def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(36) % 3
    return torch.rand(36, 1, 4, 4, generator=generator) + y[:, None, None, None], y


def started(per_class=4, **options):
    return recipes.infer_ufc_initial(*data(), per_class, teachers(), **options)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_examples_are_images_and_the_offsets_of_their_block(blocks, images, offsets):
    stored = torch.randn(blocks * images, 2, 3)
    factors = condense.BlockAdditive(torch.randn(blocks, offsets, 2, 3))
    made = factors(stored)
    assert made.shape == (blocks * images * offsets, 2, 3)
    place = 0
    for k in range(blocks):
        for i in range(images):
            for j in range(offsets):
                assert torch.equal(made[place], stored[k * images + i] + factors.offsets[k, j])
                place += 1
    if blocks == 1:
        assert torch.equal(made, condense.Additive(factors.offsets[0])(stored))


def test_the_set_fits_into_its_room_and_begins_with_real_images():
    x, y = data()
    synthetic = started(4, seed=2)
    # 12 images of room; a block takes 3 + 2.
    assert synthetic.images.shape == (6, 1, 4, 4)
    assert synthetic.factors.offsets.shape == (2, 2, 1, 4, 4)
    assert len(synthetic.images) + 4 <= 4 * 3
    assert synthetic.targets().tolist() == [0, 0, 1, 1, 2, 2] * 2
    rows = condense.draw_per_class(y, 2, seed=2).reshape(3, 2)
    assert torch.equal(synthetic.images, x[rows.T.flatten()])
    assert torch.equal(synthetic.examples()[::2], synthetic.images)  # compensators begin at nothing
    assert not torch.equal(started(4, noise=0.1).examples()[::2], synthetic.images)


def test_each_compensator_is_alone_with_its_block_and_its_teacher():
    committee, synthetic = teachers(), started(noise=0.3)
    made = recipes.infer_ufc(committee, synthetic, strength=0.2)
    loss, total = made(None, 7), 0.0
    for k in range(2):
        for j in range(2):
            seen = synthetic.images[3 * k : 3 * k + 3] + synthetic.factors.offsets[k, j]
            reading = condense.BatchNormStatistics()(committee[j], seen)
            total = total + classification_loss(reading.output, torch.arange(3)) + 0.2 * reading.gap
    torch.testing.assert_close(loss.total, total)
    (found,), (expected,) = (torch.autograd.grad(3 * each, synthetic.factors.offsets) for each in (loss.total, total))
    torch.testing.assert_close(found, expected)
    groups = made.parameter_groups()
    assert list(groups) == ["compensators"]
    assert groups["compensators"] == [synthetic.factors.offsets]


def test_training_moves_compensators_alone():
    committee, synthetic = teachers(), started()
    kept = synthetic.images.clone()
    states = [{name: value.clone() for name, value in committee[j].state_dict().items()} for j in range(2)]
    made = recipes.infer_ufc(committee, synthetic, strength=0.0)

    def errors():
        with torch.no_grad():
            logits = torch.stack([committee[j](synthetic.examples()[j::2]) for j in range(2)])
            labels = synthetic.targets()[::2].repeat(2)
            return nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="none").mean()

    before = errors()
    optimiser = torch.optim.Adam(made.parameter_groups()["compensators"], lr=0.1, betas=(0.5, 0.9))
    dr.fit(made, optimiser, 60)
    assert errors() < before
    assert torch.equal(synthetic.images, kept)
    assert synthetic.factors.offsets.abs().max() > 0.1
    for j, state in enumerate(states):
        assert all(torch.equal(committee[j].state_dict()[name], value) for name, value in state.items())
    again = started()
    again.load_state_dict(synthetic.state_dict())
    assert torch.equal(again.examples(), synthetic.examples())


def test_an_average_is_kept_of_compensators():
    x, y = torch.rand(3, 1, 2, 2), torch.arange(3)
    factors = condense.BlockAdditive(torch.zeros(1, 1, 1, 2, 2))
    synthetic = condense.Synthetic(x, condense.HardLabels(y), average=0.5, factors=factors, learn_images=False)
    with torch.no_grad():
        factors.offsets += 1
    synthetic.after_step()
    torch.testing.assert_close(synthetic.examples(averaged=True), x + 0.5)
    torch.testing.assert_close(synthetic.condensed().images, x + 0.5)
    assert [name for name, _ in synthetic.named_parameters()] == ["inner_lr", "factors.offsets"]


def test_mixtures_have_the_mixtures_of_their_labels():
    images, logits = torch.rand(6, 1, 4, 4), torch.randn(6, 3)
    views = condense.MixedLabels(PLAN, logits)
    p = (logits / 3).softmax(1)
    for epoch in (0, 1, 5):
        seen, labels = views.at(images, epoch)
        for i in range(6):
            # Which other image, and how much of it: found from the pixels alone.
            found = []
            for j in set(range(6)) - {i}:
                way = images[i] - images[j]
                share = float(((seen[i] - images[j]) * way).sum() / way.square().sum())
                found.append((float((images[j] + share * way - seen[i]).norm()), j, share))
            far, j, share = min(found)
            assert far < 1e-5
            torch.testing.assert_close(labels[i], share * p[i] + (1 - share) * p[j], atol=1e-4, rtol=0)
    same, plain = condense.MixedLabels(recipes.cda_views(3, mix="none"), logits).at(images, 1)
    assert same.shape == images.shape
    torch.testing.assert_close(plain, (logits / 20).softmax(1))


def test_a_teacher_is_asked_once_for_each_image_and_not_for_each_view():
    asked = []

    def answer(images):
        asked.append(len(images))
        return images.flatten(1)[:, :3]

    images = torch.rand(6, 1, 4, 4)
    views = condense.MixedLabels(PLAN, torch.zeros(2, 3)).by(answer)
    for epoch in range(4):
        views.at(images, epoch)
    assert asked == [6]
    views.at(torch.rand(4, 1, 4, 4), 0)
    assert asked == [6, 4]
    # A hundredth of the labels of 300 views, and less.
    cached = condense.ViewLabels(recipes.cda_views(), answer)
    assert condense.MixedLabels(recipes.infer_ufc_views(), answer).label_bytes(20, 10) * 300 == cached.label_bytes(
        20, 10
    )


def mixed_set():
    committee, synthetic = teachers(), started(noise=0.2)
    small = synthetic.condensed(training=TrainingSettings(epochs=3, batch_size=5, learning_rate=0.05))
    small.mix(PLAN, committee.vote(small.images).half())
    return small


def test_a_mixed_set_is_kept_with_its_images_offsets_and_labels(tmp_path):
    small = mixed_set()
    small.save(tmp_path)
    data = condense.load(tmp_path)
    assert isinstance(data.views, condense.MixedLabels)
    assert data.views.plan == PLAN
    assert data.stored.shape == (6, 1, 4, 4)
    assert torch.equal(data.images, small.images)
    for epoch in range(2):
        data.set_epoch(epoch)
        seen, labels = small.views.at(small.images, epoch)
        assert torch.equal(data[3][0], seen[3])
        assert torch.equal(data[3][1], labels[3])
    # Six images and four offsets of 16 numbers, a label of 3 halves for each of twelve examples, and the rate.
    assert data.stored_bytes() == (6 + 4) * 16 * 4 + 12 * 3 * 2 + 8
    networks = [evaluate.networks.build("mlp", (1, 4, 4), 3, seed=1) for _ in range(2)]
    for network, each in zip(networks, (small, data), strict=True):
        evaluate.train(network, each)
    assert all(torch.equal(a, b) for a, b in zip(*(network.parameters() for network in networks), strict=True))


def test_a_strangers_mixtures_are_checked(tmp_path):
    mixed_set().save(tmp_path)
    path = tmp_path / "condensed.safetensors"
    with safetensors.safe_open(path, "pt") as opened:
        page = json.loads(opened.metadata()["distillrs"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
    for change in ({"mix": "cutmix"}, {"batch": 3}, {"count": 0}, {"temperature": -1}):
        changed = page | {"mixtures": page["mixtures"] | change}
        safetensors.torch.save_file(tensors, path, {"distillrs": json.dumps(changed)})
        with pytest.raises(DataError, match="not a condensed set"):
            condense.load(tmp_path)
    safetensors.torch.save_file(
        tensors | {"factors.offsets": torch.zeros(4, 1, 1, 4, 4)}, path, {"distillrs": json.dumps(page)}
    )
    with pytest.raises(DataError, match="not a condensed set"):
        condense.load(tmp_path)


def test_the_recipe_says_what_it_is_for():
    card = find_recipe("infer-ufc")
    assert (card.needs, card.moves, card.view_labels) == ("teachers", True, "mixed")
    assert card.views is recipes.infer_ufc_views
    assert recipes.infer_ufc_views() == condense.ViewPlan(300, "", 0.08, "mixup", 20.0, 0)


def plain_set():
    return condense.Synthetic(torch.rand(3, 1, 4, 4), condense.HardLabels(torch.arange(3)))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: started(1), "per_class"),
        (lambda: started(0), "per_class"),
        (lambda: recipes.infer_ufc_initial(*data(), 4, 3), "teachers"),
        (lambda: started(noise=-1), "noise"),
        (lambda: recipes.infer_ufc(teachers(3), started()), "synthetic"),
        (lambda: recipes.infer_ufc(teachers(), plain_set()), "synthetic"),
        (lambda: recipes.infer_ufc(teachers(), started(), strength=-1), "strength"),
        (lambda: condense.Recovery(teachers(), started(), members=[0, 2]), "members"),
        (lambda: condense.BlockAdditive(torch.zeros(2, 3)), "offsets"),
        (lambda: condense.BlockAdditive(torch.zeros(2, 1, 3))(torch.zeros(3, 3)), "images"),
        (lambda: condense.MixedLabels(condense.ViewPlan(mix="cutmix"), torch.zeros(2, 3)), "plan"),
        (lambda: condense.MixedLabels(PLAN, torch.zeros(2, 3)).at(torch.rand(3, 1, 4, 4), 0), "source"),
        (lambda: mixed_set().mix(PLAN, torch.zeros(2, 3)), "logits"),
        (lambda: condense.Synthetic(torch.rand(3, 4), condense.HardLabels(torch.arange(3)), learn_images=False),
         "learn_images"),
    ],
)  # fmt: skip
def test_what_is_refused_names_itself(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call()


def test_a_set_whose_images_are_learned_trains_them_under_every_teacher_as_before():
    committee, synthetic = teachers(), plain_set()
    made = cda(committee, synthetic, members=2)
    assert made.parameter_groups()["images"] == [synthetic.images]
