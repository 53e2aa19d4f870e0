"""Recovering images from a trained network, the labels of their views, and sets that carry them."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import asdict, replace

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader

import distillrs as dr
from distillrs import condense, evaluate, recipes
from distillrs.augment import Augmentation
from distillrs.condense.recovery import one_of_each_class
from distillrs.errors import ArgumentError, DataError
from distillrs.recipes.cda import CropCurriculum
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings, classification_loss, tempered_loss, train

SETTINGS = TrainingSettings(epochs=3, batch_size=4, learning_rate=0.05)


def teacher(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    for _ in range(60):
        network(torch.rand(16, 1, 4, 4))
    return network.eval()


def noise(per_class=2):
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    return recipes.cda_initial(x, y, per_class)


def test_the_loss_is_that_of_each_group_of_one_of_each_class():
    committee, synthetic = condense.Committee([teacher()]), noise()
    made = condense.Recovery(committee, synthetic, strength=0.3)
    loss = made(None, 0)
    total = 0.0
    for rows in ([0, 2, 4], [1, 3, 5]):
        reading = condense.BatchNormStatistics()(teacher(), synthetic.images[rows])
        total = total + classification_loss(reading.output, torch.arange(3)) + 0.3 * reading.gap
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(loss.terms["matching"], total.detach() / 2)
    found, expected = (torch.autograd.grad(each, synthetic.images)[0] for each in (loss.total, total))
    torch.testing.assert_close(found, expected)
    assert torch.equal(made(None, dr.Step(0, items=2)).total, loss.total / 2)


def test_groups_hold_each_row_once_and_a_class_at_most_once():
    labels = torch.tensor([2, 0, 0, 1, 2, 0])
    groups = one_of_each_class(labels)
    assert [group.tolist() for group in groups] == [[0, 1, 3], [2, 4], [5]]


def test_groups_do_not_touch_each_other():
    committee, synthetic = condense.Committee([teacher()]), noise()
    augmentation = Augmentation("resizedcrop_flip", combine="all")
    both = torch.autograd.grad(
        condense.Recovery(committee, synthetic, augmentation=augmentation)(None, 3).total, synthetic.images
    )[0]
    changed = synthetic.images.detach().clone()
    changed[[1, 3, 5]] = 0.5
    other = condense.Synthetic(changed, synthetic.labels)
    again = torch.autograd.grad(
        condense.Recovery(committee, other, augmentation=augmentation)(None, 3).total, other.images
    )[0]
    torch.testing.assert_close(again[[0, 2, 4]], both[[0, 2, 4]])


@pytest.mark.parametrize(("strength", "term"), [(0.0, "classification"), (100.0, "statistics")])
def test_recovering_brings_down_what_weighs_and_leaves_teachers_as_they_are(strength, term):
    network, synthetic = teacher(), noise(1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = recipes.cda(condense.Committee([network]), synthetic, strength=strength, last_area=1.0)
    first = made(None, dr.Step(0, total=40)).terms[term]
    optimiser = torch.optim.Adam(made.parameter_groups()["images"], lr=0.1, betas=(0.5, 0.9))
    dr.fit(made, optimiser, 40)
    assert made(None, dr.Step(0, total=40)).terms[term] < 0.9 * first
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert synthetic.images.min() >= synthetic.get_buffer("box_low").min()


def test_members_are_drawn_for_each_group_and_weighed():
    networks = [teacher(seed) for seed in range(3)]
    synthetic = noise()
    committee = condense.Committee(networks, prior=[1.0, 2.0, 3.0])
    made = condense.Recovery(committee, synthetic, members=2)
    total = 0.0
    for number, rows in enumerate(([0, 2, 4], [1, 3, 5])):
        chosen = committee.draw(2, step=5, name="recovering members", unit=number)
        for member, weight in zip(chosen, committee.weights(chosen), strict=True):
            reading = condense.BatchNormStatistics()(networks[member], synthetic.images[rows])
            total = total + weight * (classification_loss(reading.output, torch.arange(3)) + 0.01 * reading.gap)
    torch.testing.assert_close(made(None, 5).total, total)


def test_the_curriculum_begins_whole_and_ends_small():
    cosine, linear = CropCurriculum(), CropCurriculum(kind="linear")
    steps = [dr.Step(index, total=101) for index in range(101)]
    assert cosine.area(steps[0]) == linear.area(steps[0]) == 1
    assert cosine.area(steps[100]) == pytest.approx(0.08)
    assert linear.area(steps[50]) == cosine.area(steps[50]) == pytest.approx(0.54)
    assert all(cosine.area(one) >= cosine.area(two) for one, two in itertools.pairwise(steps))
    assert CropCurriculum(share=0.5).area(steps[50]) == pytest.approx(0.08)
    assert CropCurriculum(kind="constant").area(0) == 0.08
    assert CropCurriculum(steps=11).area(10) == pytest.approx(0.08)
    with pytest.raises(ArgumentError, match=r"^steps: got None"):
        cosine.area(3)


def test_crops_are_as_small_as_the_curriculum_says():
    step = dr.Step(7, total=20)
    made = recipes.cda(condense.Committee([teacher()]), noise(), first_area=0.9, last_area=0.2, share=0.5)
    area = 0.2 + 0.7 * (1 + math.cos(math.pi * 7 / 9.5)) / 2
    augmentation = Augmentation("resizedcrop_flip", combine="all", resizedcrop=area)
    plain = condense.Recovery(condense.Committee([teacher()]), noise(), augmentation=augmentation)
    torch.testing.assert_close(made(None, step).total, plain(None, step).total)
    wider = recipes.cda(condense.Committee([teacher()]), noise(), last_area=0.2, curriculum="constant")
    assert not torch.allclose(wider(None, step).total, plain(None, step).total)


PLAN = condense.ViewPlan(count=3, area=0.3, temperature=4.0, seed=5)


def test_a_view_is_a_crop_and_a_flip_drawn_for_each_image():
    images = torch.rand(6, 2, 8, 6)
    augmentation = Augmentation("resizedcrop_flip", combine="all", resizedcrop=0.3)
    plan = augmentation.plan(6, step=dr.Step(2, seed=5), shape=(2, 8, 6), name="label")
    assert torch.equal(replace(PLAN, mix="none").make(images, 2), augmentation.apply(images, plan))


def test_rectangles_have_the_share_that_was_drawn_for_them():
    height, width = 40, 30
    share = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0]).repeat(20)
    found = PLAN._rectangle(share, dr.Step(1), height, width)[:, 0]
    for image, kept in zip(found, share.tolist(), strict=True):
        sides = [int(side * math.sqrt(1 - kept)) // 2 * 2 for side in (height, width)]
        rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
        if not len(rows):
            assert min(sides) <= 2
            continue
        spans = [int(each[-1] - each[0]) + 1 for each in (rows, columns)]
        assert int(image.sum()) == spans[0] * spans[1]
        for span, side, first, last, edge in zip(
            spans, sides, (rows[0], columns[0]), (rows[-1], columns[-1]), (height, width), strict=True
        ):
            # Cut where the image ends, and about a point within it.
            assert span == side or (span >= side // 2 and (first == 0 or last == edge - 1))
    assert found[share == 1].sum() == 0


@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_a_view_is_a_function_of_seed_and_number(mix):
    plan, images = replace(PLAN, mix=mix), torch.rand(6, 2, 8, 6)
    views = [plan.make(images, view) for view in range(3)]
    assert all(torch.equal(view, plan.make(images, number)) for number, view in enumerate(views))
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[0], replace(plan, seed=6).make(images, 0))
    assert views[0].shape == images.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_view_cuts_the_same_rectangle_whatever_the_images_type(dtype):
    # Labels are written for a view once, and students may train in another type.
    plan = condense.ViewPlan(count=40, augmentation="", mix="cutmix")
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 32, 24)
    for view in range(40):
        assert torch.equal(plan.make(images.to(dtype), view).float(), plan.make(images, view))


def test_equal_plans_are_written_alike():
    one, other = condense.ViewPlan(area=1, temperature=4), condense.ViewPlan(area=1.0, temperature=4.0)
    assert one == other
    assert json.dumps(asdict(one)) == json.dumps(asdict(other))
    assert condense.ViewPlan.from_dict(asdict(one)) == one


def test_a_cut_mix_holds_pixels_of_two_images_alone():
    plan = condense.ViewPlan(count=20, augmentation="", mix="cutmix")
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 8, 8)
    shares = []
    for view in range(20):
        seen = plan.make(images, view)
        for number, image in enumerate(seen):
            values = set(image.unique().tolist())
            assert values <= set(range(5))
            assert len(values - {number}) <= 1
            shares.append(float((image != number).float().mean()))
    assert min(shares) == 0
    assert max(shares) > 0.5


def test_a_mix_up_is_a_weighted_mean_with_another_image():
    plan = condense.ViewPlan(count=4, augmentation="", mix="mixup")
    images = torch.eye(5)[:, None, None, :].expand(5, 1, 2, 5)
    seen = plan.make(images, 1)[:, 0, 0]
    torch.testing.assert_close(seen.sum(1), torch.ones(5))
    assert ((seen > 0).sum(1) == 2).all()
    assert (seen.diagonal() > 0).all()


def answers(images):
    return torch.stack([images.mean((1, 2, 3)), images.amax((1, 2, 3)), -images.std((1, 2, 3))], 1) * 5


def view_set(folder, images=None):
    images = torch.rand(6, 1, 4, 4) if images is None else images
    views = condense.write_labels(PLAN, images, answers, folder / "condensed-labels", classes=3)
    made = condense.CondensedSet(
        images, torch.arange(6) % 3, inner_lr=0.1, class_count=3, training=SETTINGS, views=views
    )
    made.save(folder)
    return made


def test_a_set_with_labels_of_views_loads_with_them(tmp_path):
    made = view_set(tmp_path)
    data = condense.load(tmp_path)
    assert data.views.plan == PLAN
    for epoch in (0, 1, 2, 4):
        data.set_epoch(epoch)
        seen = PLAN.make(made.images, epoch % 3)
        expected = (answers(seen) / 4).softmax(1)
        x, p = next(iter(DataLoader(data, batch_size=6)))
        assert torch.equal(x, seen)
        torch.testing.assert_close(p, expected, atol=2e-3, rtol=0)
    # 16 bits for each class of each view of each image, beside what any set has.
    plain = condense.CondensedSet(made.images, made.labels, inner_lr=0.1, class_count=3)
    assert data.stored_bytes() - plain.stored_bytes() == 3 * 6 * 3 * 2
    assert data.views.source.nbytes == 3 * 6 * 3 * 2


def test_two_lines_train_on_views_as_a_loop_of_ones_own_does(tmp_path):
    view_set(tmp_path)
    data = condense.load(tmp_path)
    network = evaluate.networks.build("mlp", (1, 4, 4), 3, seed=1)
    evaluate.train(network, data)

    other = evaluate.networks.build("mlp", (1, 4, 4), 3, seed=1)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.05)
    for epoch in range(3):
        data.set_epoch(epoch)
        order = dr.random.permutation(6, step=dr.Step(epoch), name="training order")
        for rows in order.split(4):
            x, p = (torch.stack(each) for each in zip(*(data[int(row)] for row in rows), strict=True))
            optimiser.zero_grad()
            loss = -(p * (other(x) / 4).log_softmax(1)).sum(1).mean() * 16
            loss.backward()
            optimiser.step()
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_set_is_saved_elsewhere_once_its_labels_are_there(tmp_path):
    view_set(tmp_path / "first")
    data = condense.load(tmp_path / "first")
    with pytest.raises(dr.errors.StoreMissing, match=r"^path: there are no labels of the set's views at .*second"):
        data.save(tmp_path / "second")
    assert not (tmp_path / "second" / "condensed.safetensors").exists()
    shutil.copytree(tmp_path / "first" / "condensed-labels", tmp_path / "second" / "condensed-labels")
    data.save(tmp_path / "second")
    again = condense.load(tmp_path / "second")
    for mine, theirs in zip(again[2], data[2], strict=True):
        assert torch.equal(mine, theirs)


def test_labels_are_written_once_and_only_for_the_same_views(tmp_path):
    images, asked = torch.rand(6, 1, 4, 4), []

    def watched(x):
        asked.append(len(x))
        return answers(x)

    condense.write_labels(PLAN, images, watched, tmp_path / "labels", classes=3)
    condense.write_labels(PLAN, images, watched, tmp_path / "labels", classes=3)
    assert asked == [6, 6, 6]
    with pytest.raises(dr.errors.SchemaMismatch, match="augmentation"):
        condense.write_labels(replace(PLAN, seed=1), images, watched, tmp_path / "labels", classes=3)
    condense.write_labels(replace(PLAN, seed=1), images, watched, tmp_path / "labels", classes=3, overwrite=True)
    with pytest.raises(ArgumentError, match=r"^labels: got '18 labels', allowed is 7 images x 3 views"):
        condense.read_labels(replace(PLAN, seed=1), tmp_path / "labels", images=7, classes=3)
    with pytest.raises(ArgumentError, match=r"^labels: got '3 classes of views"):
        condense.read_labels(PLAN, tmp_path / "labels", images=6, classes=3)


def test_labels_of_other_images_are_never_taken_for_those_of_the_set(tmp_path):
    made = view_set(tmp_path)
    others = made.images.flip(0)
    with pytest.raises(dr.errors.SchemaMismatch, match="augmentation"):
        condense.write_labels(PLAN, others, answers, tmp_path / "condensed-labels", classes=3)
    with pytest.raises(ArgumentError, match=r"^labels: got 'those of other images'"):
        condense.read_labels(PLAN, tmp_path / "condensed-labels", images=others, classes=3)
    other = condense.CondensedSet(others, made.labels, inner_lr=0.1, class_count=3, views=made.views)
    with pytest.raises(ArgumentError, match=r"^labels: got 'those of other images'"):
        other.save(tmp_path)
    # A file that came to lie beside labels that are not its own.
    view_set(tmp_path / "elsewhere", others)
    (tmp_path / "elsewhere" / "condensed.safetensors").rename(tmp_path / "condensed.safetensors")
    with pytest.raises(DataError, match="those of other images"):
        condense.load(tmp_path)
    condense.write_labels(PLAN, others, answers, tmp_path / "condensed-labels", classes=3, overwrite=True)
    assert torch.equal(condense.load(tmp_path).images, others)


def test_only_a_cache_of_labels_is_thrown_away(tmp_path):
    images, folder = torch.rand(6, 1, 4, 4), tmp_path / "mine"
    folder.mkdir()
    condense.write_labels(PLAN, images, answers, folder, classes=3, overwrite=True)  # an empty folder
    [segment] = folder.glob("*.safetensors")
    segment.write_bytes(segment.read_bytes()[:100])
    condense.write_labels(PLAN, images, answers, folder, classes=3, overwrite=True)  # a damaged cache
    assert len(condense.read_labels(PLAN, folder, images=images, classes=3).source) == 18
    (tmp_path / "notes").write_text("mine")
    for path in (tmp_path, tmp_path / "notes"):
        with pytest.raises(ArgumentError, match=r"^path: got"):
            condense.write_labels(PLAN, images, answers, path, classes=3, overwrite=True)
    assert (tmp_path / "notes").read_text() == "mine"
    assert len(condense.read_labels(PLAN, folder, images=6, classes=3).source) == 18


def test_a_teacher_in_training_mode_labels_as_one_at_rest_and_stays_as_it_is(tmp_path):
    network, images = nn.Sequential(teacher(), nn.Dropout(0.5)), torch.rand(6, 1, 4, 4)
    expected = PLAN.make(images, 0), (network.eval()(PLAN.make(images, 0)) / 4).softmax(1).detach()
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    written = condense.write_labels(PLAN, images, network, tmp_path / "labels", classes=3)
    for views in (written, condense.ViewLabels(PLAN, network), written.by(network)):
        for found, wanted in zip(views.at(images, 0), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    with pytest.raises(ArgumentError, match=r"^teacher: got \(6, 3\), allowed is logits \(6, 4\)"):
        condense.write_labels(PLAN, images, network, tmp_path / "four", classes=4)


def test_views_are_not_augmented_beyond_what_their_labels_are_of(tmp_path):
    data = view_set(tmp_path)
    settings = replace(SETTINGS, augmentation="flip")
    with pytest.raises(ArgumentError, match=r"^augmentation: got 'flip', allowed is None: labels of views"):
        evaluate.train(evaluate.networks.build("mlp", (1, 4, 4), 3), data, settings=settings)


def test_a_set_without_its_labels_is_refused(tmp_path):
    made = view_set(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "condensed.safetensors").rename(tmp_path / "elsewhere" / "condensed.safetensors")
    with pytest.raises(DataError, match="not a condensed set"):
        condense.load(tmp_path / "elsewhere")
    with pytest.raises(dr.errors.StoreMissing):
        made.save(tmp_path / "nowhere")


def test_a_strangers_plan_of_views_is_checked(tmp_path):
    view_set(tmp_path)
    path = tmp_path / "condensed.safetensors"
    with safetensors.safe_open(path, "pt") as opened:
        page = json.loads(opened.metadata()["distillrs"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
    for change in ({"count": 0}, {"count": 10**12}, {"mix": "all"}, {"temperature": "hot"}, {"area": None},
                   {"augmentation": "rm"}, {"seed": -1}, {"more": 1}):  # fmt: skip
        changed = page | {"views": asdict(PLAN) | change}
        safetensors.torch.save_file(tensors, path, {"distillrs": json.dumps(changed)})
        with pytest.raises(DataError, match="not a condensed set"):
            condense.load(tmp_path)


def test_a_set_whose_labels_belong_to_images_has_one_view():
    data = condense.CondensedSet(torch.rand(2, 3), torch.tensor([0, 1]), inner_lr=0.1)
    before = data[0]
    data.set_epoch(7)
    assert torch.equal(data[0][0], before[0])
    with pytest.raises(ArgumentError, match=r"^epoch: got -1"):
        data.set_epoch(-1)


def test_the_tempered_loss_keeps_the_size_of_its_gradient():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(tempered_loss(1.0)(logits, target.softmax(1)), classification_loss(logits, target.softmax(1)))
    hot = 1e4
    found = torch.autograd.grad(tempered_loss(hot)(logits, (target / hot).softmax(1)), logits)[0]
    # In the limit it is the squared distance of the centred logits, halved and divided by the classes.
    difference = logits - logits.mean(1, keepdim=True) - target + target.mean(1, keepdim=True)
    torch.testing.assert_close(found, (difference / 4 / 5).detach(), rtol=1e-3, atol=1e-5)


def test_views_must_have_as_many_rows():
    network = nn.Linear(3, 2)
    x, y = torch.rand(4, 3), torch.arange(4) % 2
    with pytest.raises(ArgumentError, match=r"^views: got '3 examples', allowed is as many as images, 4"):
        train(network, x, y, SETTINGS, views=lambda epoch: (x[:3], y[:3]))


def test_the_recipe_says_what_it_is_for():
    card = find_recipe("cda")
    assert card.needs == "teachers"
    assert card.moves
    assert card.views is recipes.cda_views
    assert card.network["options"] == {"normalisation": "batch"}
    assert recipes.cda_views(seed=3) == condense.ViewPlan(300, "resizedcrop_flip", 0.08, "cutmix", 20.0, 3)


def test_a_convnet_with_batch_normalisation_keeps_running_statistics():
    network = evaluate.networks.build("convnet", (1, 8, 8), 3, width=4, depth=2, normalisation="batch")
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network) == 2
    with pytest.raises(ArgumentError, match=r"^normalisation: got 'layer'"):
        evaluate.networks.build("convnet", (1, 8, 8), 3, normalisation="layer")


def four_classes():
    return condense.Synthetic(torch.rand(4, 1, 4, 4), condense.HardLabels(torch.arange(4)))


def plain_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: condense.Recovery(teacher(), noise()), "teachers"),
        (lambda: condense.Recovery(condense.Committee([plain_network()]), noise()), "network"),
        (lambda: condense.Recovery(condense.Committee([teacher()]), noise(), members=2), "members"),
        (lambda: condense.Recovery(condense.Committee([teacher()]), noise(), strength=-1), "strength"),
        (lambda: condense.Recovery(condense.Committee([teacher()]), noise())(None, 0, turn="critic"), "turn"),
        (lambda: condense.ViewPlan(mix="cut"), "mix"),
        (lambda: condense.ViewPlan(area=0.0), "area"),
        (lambda: condense.ViewPlan(area="half"), "area"),
        (lambda: condense.ViewPlan(area=True), "area"),
        (lambda: condense.ViewPlan(augmentation=3), "augmentation"),
        (lambda: CropCurriculum(steps=0), "steps"),
        (lambda: condense.Recovery(condense.Committee([teacher()]), four_classes())(None, 0), "teachers"),
        (lambda: recipes.cda_initial(torch.rand(3, 1, 2, 2), torch.arange(3).float(), 1), "y"),
        (lambda: PLAN.make(torch.rand(2, 3), 0), "images"),
        (lambda: PLAN.make(torch.rand(2, 1, 4, 4), 3), "view"),
        (lambda: CropCurriculum(end=0), "end"),
        (lambda: CropCurriculum(kind="step"), "kind"),
        (lambda: recipes.cda_initial(torch.rand(3, 1, 2, 2), torch.arange(3), 0), "per_class"),
    ],
)
def test_what_is_refused_names_itself(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call()
