"""The objective that matches signals: its draws, its state, its refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import condense
from distillrs.augment import Augmentation
from distillrs.errors import ArgumentError, DataError
from distillrs.training import TrainingSettings

INNER = TrainingSettings(epochs=2, batch_size=4, learning_rate=0.1)


def networks(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**32)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(count=30, classes=3):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % classes
    x = torch.randn(count, 1, 4, 4, dtype=torch.float64, generator=generator) + y[:, None, None, None]
    return x, y


def objective(signal=None, per_class=4, **options):
    x, y = data()
    synthetic = condense.Synthetic.from_real(x, y, 2)
    real = condense.RealExamples(x, y, per_class=per_class)
    return condense.SignalMatching(synthetic, real, networks, signal or condense.ClassMeans(), **options)


def gradient(made, step, batch=None):
    made.zero_grad()
    loss = made(batch, step)
    loss.total.backward()
    return loss.total.detach(), made.synthetic.images.grad.clone()


def test_a_step_is_a_pure_function_of_seed_and_index():
    made = objective(augmentation=Augmentation("flip_crop"))
    one = gradient(made, 3)
    gradient(made, 5)
    again = gradient(made, 3)
    other = gradient(made, dr.Step(3, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[1], other[1])
    assert torch.equal(gradient(objective(seed=1), 3)[1], gradient(objective(), dr.Step(3, seed=1))[1])


def test_the_loss_is_the_signal_on_the_batch_at_hand():
    x, y = data()
    made = objective()
    loss, found = gradient(made, 0, (x, y))
    network = networks(dr.random.generator_seed(dr.Step(0), "matching network"))
    images = made.synthetic.images.detach().clone().requires_grad_()
    expected = condense.ClassMeans()(
        network, condense.Examples(x, y, 3), condense.Examples(images, made.synthetic.targets(), 3)
    )
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, images.grad)
    assert made((x, y), dr.Step(0, items=4)).total.item() == pytest.approx(loss.item() / 4)


def test_all_real_examples_twice_is_the_same_gap():
    x, y = data()
    synthetic = condense.Synthetic(x, condense.HardLabels(y))
    real = condense.RealExamples(x, y, per_class=10)
    made = condense.SignalMatching(
        synthetic, real, networks, condense.ClassMeans(), augmentation=Augmentation("color_flip_crop_scale_rotate")
    )
    # Both sides hold the same examples and a class has one draw for both, so nothing is left to move.
    loss, found = gradient(made, 2)
    assert loss < 1e-12
    assert found.abs().max() < 1e-6


def test_siamese_draws_differ_between_classes_and_steps():
    made = objective(augmentation=Augmentation("flip_crop_rotate"))
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64).expand(6, -1, -1, -1)
    batch = condense.Examples(x, torch.arange(6) // 2, 3)
    seen = [made._seen(batch, dr.Step(step)).images for step in range(8)]
    for each in seen:
        assert torch.equal(each[0], each[1])
        assert torch.equal(each[4], each[5])
    assert any(not torch.equal(each[0], each[2]) for each in seen)
    assert any(not torch.equal(seen[0], each) for each in seen[1:])


def test_a_network_serves_as_many_steps_as_asked():
    seeds = []

    def counted(seed):
        seeds.append(seed)
        return networks(seed)

    x, y = data()
    made = condense.SignalMatching(
        condense.Synthetic.from_real(x, y, 1), condense.RealExamples(x, y), counted, condense.ClassMeans(), every=3
    )
    for step in range(7):
        made(None, step)
    assert len(seeds) == len(set(seeds)) == 3


def test_no_gradient_is_formed_for_weights_unless_the_signal_needs_them():
    for signal, wanted in ((condense.ClassMeans(), False), (condense.GradientSignal(), True)):
        made = objective(signal)
        made(None, 0)
        assert all(each.requires_grad == wanted for each in made._live[0][2].parameters())


def test_the_network_is_trained_on_the_set_between_steps():
    made = objective(condense.GradientSignal(), every=3, training=INNER)
    vectors = []
    for step in range(4):
        made(None, step)
        vectors.append(made.vector.clone())
    again = objective(condense.GradientSignal(), every=3, training=INNER)
    again(None, 2)  # out of order: from the beginning, as long
    assert torch.equal(again.vector, vectors[2])
    assert not torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[1], vectors[2])
    fresh = networks(dr.random.generator_seed(dr.Step(1), "matching network"))
    assert torch.equal(vectors[3], torch.cat([each.flatten() for each in fresh.parameters()]))
    made(None, 3)
    assert torch.equal(made.vector, vectors[3])  # twice is once


def fitted(steps, stop=None, state=None):
    made = objective(condense.GradientSignal(), every=4, training=INNER, augmentation=Augmentation("flip"))
    kept = []

    def callback(at):
        if at.step.index + 1 == stop:
            kept.append(at.state())
            return True
        return None

    dr.fit(made, {"images": {"lr": 0.1, "momentum": 0.5}}, steps, callback=callback, state=state)
    return made.synthetic.images.detach().clone(), kept


def test_a_continued_run_equals_one_that_was_never_interrupted():
    whole, _ = fitted(7)
    _, (state,) = fitted(7, stop=3)
    continued, _ = fitted(7, state=state)
    assert torch.equal(whole, continued)


def with_dropout(seed):
    network = networks(seed)
    network.insert(2, nn.Dropout(0.5))
    return network


@pytest.mark.parametrize("signal", [condense.ClassMeans(), condense.GradientSignal()])
def test_dropout_is_a_draw_of_the_step_and_leaves_torchs_generator_alone(signal):
    x, y = data()
    made = matched(x, y, signal, with_dropout)
    state = torch.get_rng_state()
    one, again, other = gradient(made, 3), gradient(made, 3), gradient(made, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[1], other[1])


def test_an_objective_may_be_moved_while_a_network_serves():
    made = objective(condense.GradientSignal(), every=3, training=INNER)
    before = made(None, 1).total
    made.float()
    torch.testing.assert_close(made(None, 1).total.double(), before, rtol=1e-4, atol=1e-4)
    assert made(None, 2).total.dtype == torch.float32


def test_matching_brings_class_means_together():
    x, y = data()
    synthetic = condense.Synthetic(torch.zeros(3, 1, 4, 4, dtype=torch.float64), condense.HardLabels(torch.arange(3)))
    real = condense.RealExamples(x, y, per_class=10)

    def without_a_bend(seed):
        network = networks(seed)
        return nn.Sequential(network[0], network[1], network[3])

    made = condense.SignalMatching(synthetic, real, without_a_bend, condense.ClassMeans())
    dr.fit(made, {"images": {"lr": 0.5, "momentum": 0.5}}, 100)
    means = torch.stack([x[y == label].mean(0) for label in range(3)])
    assert (synthetic.images - means).norm() < 0.02 * means.norm()


def test_real_examples_are_drawn_class_by_class_and_never_twice():
    x, y = data(32)
    real = condense.RealExamples(x, y, per_class=8)
    drawn = real.draw(4)
    assert drawn.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(torch.unique(drawn.images.flatten(1), dim=0)) == 24
    assert torch.equal(real.draw(4).images, drawn.images)
    assert not torch.equal(real.draw(5).images, drawn.images)
    assert len(condense.RealExamples(x, y, per_class=100).draw(0).images) == 32


def test_only_images_are_trained():
    assert set(objective().parameter_groups()) == {"images"}
    assert objective().turns(0) == ("synthetic",)


def soft():
    x, y = data()
    return condense.Synthetic.from_real(x, y, 1, "soft")


def matched(x, y, signal=None, function=networks, **options):
    synthetic = condense.Synthetic.from_real(x, y, 1)
    real = condense.RealExamples(x, y)
    return condense.SignalMatching(synthetic, real, function, signal or condense.ClassMeans(), **options)


def with_running_statistics(seed):
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, y, s: condense.SignalMatching(soft(), condense.RealExamples(x, y), networks, s), "synthetic"),
        (lambda x, y, s: matched(x, y, every=0), "every"),
        (lambda x, y, s: condense.SignalMatching(
            condense.Synthetic.from_real(x, y, 1), condense.RealExamples(x.flatten(1), y), networks, s), "synthetic"),
        (lambda x, y, s: matched(x.flatten(1), y, augmentation=Augmentation("flip")), "augmentation"),
        (lambda x, y, s: matched(x, y, function=with_running_statistics, every=2, training=INNER), "networks"),
        (lambda x, y, s: matched(x, y, function=with_running_statistics, every=1, training=INNER), "networks"),
        (lambda x, y, s: matched(x, y, function=lambda seed: 3)(None, 0), "networks"),
        (lambda x, y, s: matched(x, y)(x, 0), "batch"),
        (lambda x, y, s: matched(x, y)((x, y, y), 0), "batch"),
        (lambda x, y, s: matched(x, y)((x.flatten(1), y), 0), r"batch\[0\]"),
        (lambda x, y, s: matched(x, y)((x, y.float()), 0), r"batch\[1\]"),
        (lambda x, y, s: matched(x, y)((x, y[:3]), 0), r"batch\[1\]"),
        (lambda x, y, s: matched(x, y)((x, y + 1), 0), r"batch\[1\]"),
        (lambda x, y, s: matched(x, y)((x[:0], y[:0]), 0), r"batch\[1\]"),
        (lambda x, y, s: condense.RealExamples(x, y.float()), "y"),
        (lambda x, y, s: condense.RealExamples(x, y[:, None]), "y"),
        (lambda x, y, s: condense.RealExamples(x, y - 1), "y"),
        (lambda x, y, s: condense.RealExamples(x, y, classes=2), "y"),
        (lambda x, y, s: matched(x, y)(None, 0, turn="critic"), "turn"),
        (lambda x, y, s: condense.RealExamples(x, y, per_class=0), "per_class"),
        (lambda x, y, s: condense.RealExamples(x, y[:5]), "y"),
        (lambda x, y, s: condense.GradientSignal("cosin"), "distance"),
    ],
)  # fmt: skip
def test_what_is_refused_names_itself(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call(*data(), condense.ClassMeans())


def test_a_class_without_examples_is_named():
    x, y = data()
    with pytest.raises(DataError, match=r"^y: class 3 has none of the 30 examples"):
        condense.RealExamples(x, y, classes=4)
