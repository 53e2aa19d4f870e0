import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs.condense import Additive, Enlarged, HardLabels, SoftLabels, Synthetic, draw_per_class


def real(per_class=(5, 5, 5), shape=(4,)):
    y = torch.cat([torch.full((count,), label) for label, count in enumerate(per_class)])
    y = y[torch.randperm(len(y))]
    # Each example carries its own number, so that it can be recognised.
    x = torch.arange(len(y), dtype=torch.float32).reshape(-1, *[1] * len(shape)).expand(-1, *shape).clone()
    return x, y


def synthetic(**options):
    return Synthetic(torch.randn(4, 3), HardLabels(torch.tensor([0, 1, 0, 1])), **options)


@pytest.mark.parametrize("shape", [(4,), (1, 3, 3), (2, 5)])
def test_examples_start_as_real_ones_of_the_right_classes(shape):
    x, y = real(shape=shape)
    made = Synthetic.from_real(x, y, per_class=2, seed=3)
    assert made.targets().tolist() == [0, 0, 1, 1, 2, 2]
    ids = made.images.detach().flatten(1)[:, 0].long()
    assert len(set(ids.tolist())) == 6
    assert torch.equal(y[ids], made.targets())
    assert torch.equal(made.images.detach(), x[ids])
    assert made.example_shape == shape


def test_the_choice_depends_on_the_seed_alone():
    x, y = real(per_class=(30, 30))
    first, again, other = (Synthetic.from_real(x, y, 3, seed=seed).images for seed in (0, 0, 1))
    torch.manual_seed(99)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_class_with_too_few_examples_is_named_with_the_counts():
    _, y = real(per_class=(5, 2, 5))
    with pytest.raises(dr.errors.DataError, match=r"per_class: got 3, but class 1 has 2 of the 12 examples"):
        draw_per_class(y, 3)
    with pytest.raises(dr.errors.DataError, match=r"class 3 has 0"):
        draw_per_class(y, 2, classes=4)


def test_soft_labels_start_with_the_stated_confidence():
    x, y = real()
    made = Synthetic.from_real(x, y, 2, labels="soft", confidence=0.8)
    probabilities = made.targets()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(6))
    assert probabilities.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(probabilities.max(1).values, torch.full((6,), 0.8))
    torch.testing.assert_close(probabilities.min(1).values, torch.full((6,), 0.1))


def test_parameters_are_grouped_by_what_they_are():
    hard = synthetic()
    assert {name: len(group) for name, group in hard.parameter_groups().items()} == {"images": 1, "inner_lr": 1}
    fixed = synthetic(learn_inner_lr=False)
    assert list(fixed.parameter_groups()) == ["images"]
    soft = Synthetic(torch.randn(2, 3), SoftLabels(torch.zeros(2, 5)))
    assert list(soft.parameter_groups()) == ["images", "labels", "inner_lr"]
    told = Synthetic(torch.randn(2, 3), SoftLabels(torch.zeros(2, 5), learn=False))
    assert list(told.parameter_groups()) == ["images", "inner_lr"]
    grouped = [p for group in soft.parameter_groups().values() for p in group]
    assert {id(p) for p in grouped} == {id(p) for p in soft.parameters()}


def test_a_learned_rate_stays_positive_and_can_come_back():
    made = synthetic(inner_lr=0.1, inner_lr_bounds=(1e-3, 1.0))
    optimiser = torch.optim.SGD([made.inner_lr], lr=1.0)
    made.inner_lr.grad = torch.tensor(5.0)
    optimiser.step()
    assert made.inner_lr.item() < 0
    made.after_step()
    assert made.inner_lr.item() == pytest.approx(1e-3)
    made.inner_lr.grad = torch.tensor(-0.5)
    optimiser.step()
    assert made.inner_lr.item() == pytest.approx(0.501)
    made.inner_lr.data.fill_(7.0)
    made.project()
    assert made.inner_lr.item() == 1.0


def test_images_stay_in_their_box():
    low, high = torch.tensor([-1.0, 0.0]).reshape(2, 1, 1), torch.tensor([1.0, 0.5]).reshape(2, 1, 1)
    made = Synthetic(3 * torch.randn(6, 2, 4, 4), HardLabels(torch.zeros(6, dtype=torch.int64)), box=(low, high))
    images = made.images.detach()
    assert bool(((images >= low) & (images <= high)).all())
    assert bool((images == low).any())
    assert bool((images == high).any())
    made.images.data.add_(0.25)
    made.after_step()
    assert bool((made.images <= high).all())


def test_the_average_starts_at_the_first_images_and_follows_them():
    made = synthetic(average=0.9)
    first = made.images.detach().clone()
    torch.testing.assert_close(made.examples(averaged=True), first)
    expected = first.clone()
    for _ in range(3):
        made.images.data.add_(1.0)
        made.after_step()
        expected = 0.9 * expected + 0.1 * made.images.detach()
    torch.testing.assert_close(made.examples(averaged=True), expected)
    torch.testing.assert_close(made.condensed().images, expected)
    with pytest.raises(dr.errors.ArgumentError, match=r"^averaged: got"):
        synthetic().examples(averaged=True)


def test_the_average_starts_inside_the_box():
    made = Synthetic(torch.full((1, 3), 3.0), HardLabels(torch.tensor([0]), 2), box=(0.0, 1.0), average=0.9)
    assert torch.equal(made.examples(averaged=True), torch.ones(1, 3))


def test_what_is_saved_is_inside_its_bounds_whoever_stepped_last():
    made = synthetic(box=(0.0, 1.0))
    with torch.no_grad():
        made.images.add_(9)
        made.inner_lr.fill_(-1)
    saved = made.condensed()
    assert bool((saved.images == 1).all())
    assert saved.inner_lr == pytest.approx(1e-6)


def test_an_average_that_no_loop_updates_is_refused_instead_of_saved():
    made = synthetic(average=0.9)
    made.condensed()
    state = made.state_dict()
    with torch.no_grad():
        made.images.add_(1)
    for read in (made.condensed, lambda: made.examples(averaged=True)):
        with pytest.raises(dr.errors.DistillrsError, match=r"after_step\(\)"):
            read()
    made.after_step()
    made.condensed()
    # A state that was loaded brings an average of its own.
    other = synthetic(average=0.9)
    other.load_state_dict({**state, "images": state["images"] + 1})
    other.condensed()


def test_the_state_restores_everything_that_changes():
    made = synthetic(average=0.5, inner_lr=0.2)
    made.images.data.mul_(2)
    made.after_step()
    other = synthetic(average=0.5)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.images, made.images)
    assert torch.equal(other.examples(averaged=True), made.examples(averaged=True))
    assert other.inner_lr.item() == pytest.approx(0.2)


def test_enlarged_examples_are_computed_from_fewer_numbers():
    made = Synthetic(torch.randn(2, 1, 4, 4), HardLabels(torch.tensor([0, 1])), factors=Enlarged((8, 8)))
    assert made.examples().shape == (2, 1, 8, 8)
    torch.testing.assert_close(made.examples().mean((1, 2, 3)), made.images.mean((1, 2, 3)))
    assert made.condensed().stored_bytes() == 2 * 16 * 4 + 2 * 8 + 8


def test_additive_examples_combine_every_image_with_every_offset():
    offsets = torch.randn(3, 4)
    made = Synthetic(torch.randn(2, 4), HardLabels(torch.tensor([0, 0, 0, 1, 1, 1])), factors=Additive(offsets))
    examples = made.examples()
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(examples[3 * i + j], made.images[i] + offsets[j])
    assert len(made.parameter_groups()["images"]) == 2
    examples.sum().backward()
    torch.testing.assert_close(made.factors.offsets.grad, torch.full((3, 4), 2.0))


def test_factors_are_averaged_with_the_images():
    made = Synthetic(
        torch.zeros(2, 4), HardLabels(torch.tensor([0, 1])), factors=Additive(torch.zeros(1, 4)), average=0.5
    )
    made.images.data.fill_(2.0)
    made.factors.offsets.data.fill_(4.0)
    made.after_step()
    torch.testing.assert_close(made.examples(averaged=True), torch.full((2, 4), 3.0))
    torch.testing.assert_close(made.condensed().images, torch.full((2, 4), 3.0))
    torch.testing.assert_close(made.examples().detach(), torch.full((2, 4), 6.0))


def test_the_condensed_copy_does_not_change_with_the_set():
    made = synthetic()
    copied = made.condensed()
    before = copied.images.clone()
    made.images.data.add_(1)
    assert torch.equal(copied.images, before)


def test_moving_to_another_type_moves_everything():
    made = synthetic(box=(-1.0, 1.0), average=0.5).double()
    assert {tensor.dtype for tensor in [*made.parameters(), *made.buffers()]} == {torch.float64, torch.int64}
    made.after_step()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Synthetic(torch.zeros(4), HardLabels(torch.zeros(4, dtype=torch.int64))), "images"),
        (lambda: Synthetic(torch.zeros(2, 3).long(), HardLabels(torch.tensor([0, 1]))), "images"),
        (lambda: Synthetic(torch.full((1, 2), float("nan")), HardLabels(torch.tensor([0]))), "images"),
        (lambda: Synthetic(torch.zeros(2, 3), HardLabels(torch.tensor([0]))), "labels"),
        (lambda: Synthetic(torch.zeros(2, 3), torch.tensor([0, 1])), "labels"),
        (lambda: Synthetic(torch.zeros(2, 3), nn.Linear(2, 2)), "labels"),
        (lambda: synthetic(inner_lr=0.0), "inner_lr"),
        (lambda: synthetic(inner_lr=float("nan")), "inner_lr"),
        (lambda: synthetic(inner_lr_bounds=(0.0, 1.0)), "inner_lr_bounds"),
        (lambda: synthetic(average=1.0), "average"),
        (lambda: synthetic(box=(1.0, 0.0)), "box"),
        (lambda: synthetic(box=(torch.zeros(7), torch.ones(7))), "box"),
        (lambda: HardLabels(torch.tensor([0, 3]), classes=3), "indices"),
        (lambda: HardLabels(torch.tensor([-1])), "indices"),
        (lambda: HardLabels(torch.tensor([0.0])), "indices"),
        (lambda: SoftLabels(torch.zeros(3)), "logits"),
        (lambda: SoftLabels(torch.full((1, 2), float("inf"))), "logits"),
        (lambda: SoftLabels.from_classes(torch.tensor([0]), 2, confidence=0.5), "confidence"),
        (lambda: Synthetic.from_real(*real(), per_class=0), "per_class"),
        (lambda: Synthetic.from_real(*real(), per_class=1, labels="both"), "labels"),
        (lambda: Enlarged((0, 3)), "size"),
        (lambda: Additive(torch.zeros(3)), "offsets"),
    ],
)
def test_what_is_refused_names_itself(make, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        make()
