"""Signals against closed forms, double loops and torch's own statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distillrs import condense, ops
from distillrs.condense.signals import Examples, class_means, gradient_distance
from distillrs.condense.statistics import batch_statistics
from distillrs.errors import ArgumentError


def linear(seed=0, inputs=5, hidden=4, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Linear(hidden, classes)).double()


def examples(count=9, inputs=5, classes=3, seed=1, learned=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, dtype=torch.float64, generator=generator)
    return Examples(x.requires_grad_(learned), torch.arange(count) % classes, classes)


def test_the_gradient_of_class_means_under_a_linear_map_is_its_closed_form():
    network, real, synthetic = linear(), examples(), examples(6, seed=2, learned=True)
    gap = condense.ClassMeans()(network, real, synthetic)
    (3 * gap).backward()
    weight = network[1].weight.detach()
    value, expected = 0.0, torch.zeros_like(synthetic.images)
    for label in range(3):
        ours, theirs = synthetic.labels == label, real.labels == label
        difference = (synthetic.images[ours].mean(0) - real.images[theirs].mean(0)) @ weight.T
        value += difference.square().sum()
        expected[ours] = 3 * 2 * difference @ weight / ours.sum()
    torch.testing.assert_close(gap.detach(), value.detach())
    torch.testing.assert_close(synthetic.images.grad, expected)


def test_equal_sets_have_no_gap():
    network, real = linear(), examples()
    same = Examples(real.images.clone().requires_grad_(), real.labels, 3)
    for signal in (condense.ClassMeans(), condense.KernelMoments(ops.Gaussian()), condense.GradientSignal("euclidean")):
        assert float(signal(network, real, same).detach()) == pytest.approx(0, abs=1e-12)
    # The authors' small number in the denominator keeps the cosine from being exactly one.
    assert float(condense.GradientSignal()(network, real, same).detach()) < 1e-3


def test_a_linear_kernel_sees_the_means():
    network, real, synthetic = linear(), examples(), examples(6, seed=2, learned=True)
    means = condense.ClassMeans()(network, real, synthetic)
    moments = condense.KernelMoments(ops.Polynomial())(network, real, synthetic)
    torch.testing.assert_close(moments, means)
    pair = [torch.autograd.grad(each, synthetic.images, retain_graph=True)[0] for each in (means, moments)]
    torch.testing.assert_close(*pair)


def test_kernel_moments_are_the_double_loop():
    network, real, synthetic = linear(), examples(7), examples(5, seed=2)
    kernel = ops.Gaussian(0.8)
    phi = {name: condense.penultimate(network, each.images) for name, each in (("x", real), ("s", synthetic))}

    def mean(left, right):
        pairs = [ops.energy(a[None], b[None], kernel) for a in left for b in right]
        return torch.stack(pairs).mean()

    expected = 0.0
    for label in range(3):
        x, s = phi["x"][real.labels == label], phi["s"][synthetic.labels == label]
        expected += mean(s, s) + mean(x, x) - 2 * mean(s, x)
    torch.testing.assert_close(condense.KernelMoments(kernel)(network, real, synthetic), expected)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_gradient_of_the_gradient_signal_is_that_of_finite_differences(distance):
    network, real, synthetic = linear(), examples(), examples(3, seed=2, learned=True)
    signal = condense.GradientSignal(distance)
    assert torch.autograd.gradcheck(lambda x: signal(network, real, synthetic._replace(images=x)), (synthetic.images,))


def test_the_gradient_signal_of_softmax_regression_is_its_closed_form():
    network = nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).double()
    real, synthetic = examples(), examples(6, seed=2)

    def gradient(each, label):
        x = each.images[each.labels == label].detach()
        error = network(x).softmax(1) - nn.functional.one_hot(torch.tensor(label), 3)
        return error.T @ x / len(x), error.mean(0)

    cosine = euclidean = 0.0
    for label in range(3):
        (a, p), (b, q) = gradient(synthetic, label), gradient(real, label)
        cosine += (1 - nn.functional.cosine_similarity(a, b, dim=1)).sum()
        euclidean += (a - b).square().sum() + (p - q).square().sum()
    found = [condense.GradientSignal(each)(network, real, synthetic) for each in ("cosine", "euclidean")]
    torch.testing.assert_close(found[0], cosine, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], euclidean)


def test_vectors_count_nothing_under_the_cosine_and_rows_without_a_gradient_are_finite():
    a, b = [torch.zeros(2, 3), torch.ones(4)], [torch.ones(2, 3), -torch.ones(4)]
    assert float(gradient_distance(a, b, "cosine")) == 2
    assert float(gradient_distance(a, b, "euclidean")) == 6 + 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_half_precision_are_taken_in_32_bits(dtype):
    # Both the sum of the rows and the product of two values are beyond float16.
    features = torch.full((513, 2), 300.0, dtype=dtype)
    means, counts = class_means(features, torch.zeros(513, dtype=torch.int64), 2)
    assert means.tolist() == [[300, 300], [0, 0]]
    assert counts.tolist() == [513, 0]
    rows = [torch.full((2, 4), 300.0, dtype=dtype)]
    assert float(gradient_distance(rows, rows, "cosine")) == pytest.approx(0, abs=1e-6)
    assert float(gradient_distance(rows, [-rows[0]], "euclidean")) == 8 * 600**2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_gap_and_the_gradient_of_double(dtype):
    network, real, synthetic = linear(), examples(), examples(6, seed=2)
    for signal in (condense.ClassMeans(), condense.KernelMoments(ops.Gaussian()), condense.GradientSignal("euclidean")):
        found = []
        for kind in (torch.float64, dtype):
            images = synthetic.images.to(kind).requires_grad_()
            network.to(kind)
            gap = signal(network, real._replace(images=real.images.to(kind)), synthetic._replace(images=images))
            found.append((gap.detach().double(), torch.autograd.grad(gap, images)[0].double()))
        (gap, gradient), (half, its) = found
        torch.testing.assert_close(half, gap, rtol=0.06, atol=0.01)
        assert (its - gradient).norm() < 0.1 * gradient.norm()


def test_a_class_that_one_side_lacks_counts_nothing():
    network, real, synthetic = linear(), examples(), examples(6, seed=2, learned=True)
    rows = synthetic.labels != 1
    part = Examples(synthetic.images[rows], synthetic.labels[rows], 3)
    for signal in (condense.ClassMeans(), condense.KernelMoments(ops.Gaussian()), condense.GradientSignal()):
        alone = real._replace(images=real.images[real.labels != 1], labels=real.labels[real.labels != 1])
        torch.testing.assert_close(signal(network, real, part), signal(network, alone, synthetic))
        part = Examples(synthetic.images[rows], synthetic.labels[rows], 3)
        found = torch.autograd.grad(signal(network, real, part), synthetic.images)[0]
        assert torch.isfinite(found).all()
        assert found[~rows].abs().max() == 0


def test_signals_send_nothing_to_the_real_side():
    network, synthetic = linear(), examples(6, seed=2, learned=True)
    for signal in (condense.ClassMeans(), condense.KernelMoments(ops.Gaussian()), condense.GradientSignal()):
        real = examples(learned=True)
        signal(network, real, synthetic).backward()
        assert real.images.grad is None


def test_the_embedding_is_what_the_last_linear_layer_takes():
    network = linear()
    x = examples().images
    torch.testing.assert_close(condense.penultimate(network, x), network[1](x))
    with pytest.raises(ArgumentError, match=r"^network: got 'Sequential'"):
        condense.penultimate(nn.Sequential(nn.Flatten()), x)
    assert not network[-1]._forward_pre_hooks


def normalised(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5),
        nn.Dropout(0.5), nn.Linear(5, 4),
    ).double()  # fmt: skip
    for _ in range(5):
        network(torch.randn(8, 2, 4, 4, dtype=torch.float64))
    return network.eval()


def state_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_untouched(network, before):
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in network.modules())


def test_a_batchs_statistics_are_those_that_torch_would_keep():
    x = torch.randn(6, 3, 4, 5, dtype=torch.float64)
    layer = nn.BatchNorm2d(3, momentum=1.0).double()
    layer(x)
    mean, variance = batch_statistics(x)
    torch.testing.assert_close(mean, layer.running_mean)
    count = x.numel() / 3
    torch.testing.assert_close(variance * count / (count - 1), layer.running_var)


def test_the_gap_of_normalising_layers_is_the_formula_and_changes_nothing():
    network = normalised()
    before = state_of(network)
    x = torch.randn(7, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    reading = condense.BatchNormStatistics(first=10)(network, x)
    first, second = network[0](x), network[:5](x)
    inputs = [(first.transpose(0, 1).flatten(1), network[1], 10), (second.T, network[5], 1)]
    expected = sum(
        weight * ((rows.mean(1) - layer.running_mean).norm() + (rows.var(1, correction=0) - layer.running_var).norm())
        for rows, layer, weight in inputs
    )
    torch.testing.assert_close(reading.gap, expected)
    torch.testing.assert_close(reading.output, network(x))
    assert torch.autograd.grad(reading.gap, x)[0].abs().sum() > 0
    assert_untouched(network, before)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_the_relative_gap_does_not_depend_on_the_scale_of_a_layer():
    network, x = normalised(), torch.randn(7, 2, 4, 4, dtype=torch.float64)
    relative = condense.BatchNormStatistics(normalised=True, first=1)
    before = relative(network[:2], x).gap
    with torch.no_grad():
        network[0].weight.mul_(10)
        network[0].bias.mul_(10)
        network[1].running_mean.mul_(10)
        network[1].running_var.mul_(100)
    torch.testing.assert_close(relative(network[:2], x).gap, before)


def test_a_network_without_running_statistics_is_refused_with_the_remedy():
    with pytest.raises(
        ArgumentError, match=r"^network: got 'Sequential', allowed is a network with batch normalisation"
    ):
        condense.BatchNormStatistics()(linear(), examples().images)
    with pytest.raises(ArgumentError, match=r"^first: got -1"):
        condense.BatchNormStatistics(first=-1)


class Backwards(nn.Module):
    """Registers its layers in another order than it calls them, and one that it never calls."""

    def __init__(self, called=True):
        super().__init__()
        self.unused, self.second, self.first = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.called = called

    def forward(self, x):
        return self.second(self.first(x)) if self.called else x


def test_the_first_layer_is_the_one_that_is_called_first():
    x = torch.randn(6, 3, dtype=torch.float64)
    network = Backwards().double().eval()
    found = [condense.BatchNormStatistics(first)(network, x).gap for first in (1.0, 10.0)]
    own = x.mean(0).norm() + (x.var(0, correction=0) - 1).norm()
    torch.testing.assert_close(found[1] - found[0], 9 * own)
    with pytest.raises(ArgumentError, match=r"^network: got 'Backwards, which calls none"):
        condense.BatchNormStatistics()(Backwards(called=False).eval(), x)


def test_normalising_by_the_batch_is_training_mode_of_those_layers_alone_and_leaves_no_trace():
    network = normalised()
    before, x = state_of(network), torch.randn(7, 2, 4, 4, dtype=torch.float64)
    with condense.normalising_by_batch(network):
        found = network(x)
        assert not network[6].training
    twin = normalised()
    twin[1].train()
    twin[5].train()
    torch.testing.assert_close(found, twin(x))
    assert not torch.allclose(found, network(x))
    assert_untouched(network, before)


class TestCommittee:
    def test_weights_are_the_softmax_of_the_prior(self):
        committee = condense.Committee([linear(seed) for seed in range(3)], prior=[60.0, 70.0, 65.0], temperature=5.0)
        expected = torch.tensor([12.0, 14.0, 13.0], dtype=torch.float64).softmax(0).tolist()
        assert committee.weights() == pytest.approx(expected)
        assert committee.weights([1, 2]) == pytest.approx([1 / (1 + torch.e**-1), 1 / (1 + torch.e)])
        assert committee.weights(temperature=1e9) == pytest.approx([1 / 3] * 3)

    def test_a_vote_is_the_weighted_mean_of_logits(self):
        members = [linear(seed) for seed in range(3)]
        committee = condense.Committee(members, prior=[1.0, 2.0, 3.0])
        x = examples(7).images
        w = committee.weights()
        expected = sum(weight * member(x) for weight, member in zip(w, members, strict=True))
        for found in (committee.vote(x), committee.vote(x, batch=2), committee(x)):
            torch.testing.assert_close(found, expected.detach() if not found.requires_grad else expected)
        torch.testing.assert_close(committee.vote(x, members=[2]), members[2](x).detach())

    def test_members_are_drawn_without_replacement_and_by_the_step_alone(self):
        committee = condense.Committee([linear(seed) for seed in range(4)])
        drawn = [committee.draw(2, step=step, unit=unit) for step in range(30) for unit in range(3)]
        again = [committee.draw(2, step=step, unit=unit) for step in range(30) for unit in range(3)]
        assert drawn == again
        assert all(len(set(each)) == 2 for each in drawn)
        assert {number for each in drawn for number in each} == {0, 1, 2, 3}
        assert len(set(drawn)) == 6

    @pytest.mark.parametrize("statistics", ["running", "batch"])
    def test_labelling_leaves_members_as_they_are_bit_for_bit(self, statistics):
        network = normalised()
        before = state_of(network)
        committee = condense.Committee([network])
        committee.train()
        x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
        one, two = (committee.vote(x, statistics=statistics) for _ in range(2))
        assert torch.equal(one, two)  # no dropout
        assert_untouched(network, before)

    def test_a_batchs_labels_depend_on_the_batch_only_where_asked(self):
        committee, x = condense.Committee([normalised()]), torch.randn(6, 2, 4, 4, dtype=torch.float64)
        torch.testing.assert_close(committee.vote(x, batch=3), committee.vote(x))
        assert not torch.allclose(committee.vote(x, batch=3, statistics="batch"), committee.vote(x, statistics="batch"))

    def test_members_are_no_part_of_parameters_or_state(self):
        committee = condense.Committee([linear()])
        assert not list(committee.parameters())
        assert not committee.state_dict()
        assert not any(parameter.requires_grad for parameter in committee[0].parameters())

    @pytest.mark.parametrize(
        ("call", "name"),
        [
            (lambda: condense.Committee([]), "members"),
            (lambda: condense.Committee(linear()), "members"),
            (lambda: condense.Committee(nn.Linear(2, 2)), "members"),
            (lambda: condense.Committee([linear()]).vote(examples().images, batch=2.5), "batch"),
            (lambda: condense.Committee([linear()]).vote(examples().images, members=[0.0]), "members"),
            (lambda: condense.Committee([linear()], prior=[1, 2]), "prior"),
            (lambda: condense.Committee([linear()], prior=[float("nan")]), "prior"),
            (lambda: condense.Committee([linear()], temperature=0), "temperature"),
            (lambda: condense.Committee([linear()]).draw(2, step=0), "count"),
            (lambda: condense.Committee([linear()]).vote(examples().images, members=[1]), "members"),
            (lambda: condense.Committee([linear()]).vote(examples().images, statistics="train"), "statistics"),
        ],
    )
    def test_what_is_refused_names_itself(self, call, name):
        with pytest.raises(ArgumentError, match=f"^{name}: got"):
            call()
