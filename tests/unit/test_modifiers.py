from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distillrs.condense.modifiers import ClippedLoss, InputGradientPenalty, SharpnessAware, input_gradient_penalty
from distillrs.errors import ArgumentError
from distillrs.training import Position, StepRule, TrainingSettings, classification_loss, plain, train

X = torch.linspace(0, 7, 24, dtype=torch.float64).sin().reshape(8, 3)
Y = torch.linspace(1, 4, 8, dtype=torch.float64).cos()
START = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)


def position(epoch: int = 0, unaugmented: Tensor | None = None) -> Position:
    return Position(epoch, 20, 0, 1, None, unaugmented)


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs[:, 0] - targets).square().mean()


def slope(weights: Tensor) -> Tensor:
    """Gradient of the half mean square in closed form."""
    return X.T @ (X @ weights - Y) / len(X)


def gradient_by(rule: StepRule) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient, loss, weights afterwards) of one step of a rule on the least-squares problem."""
    network = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(START[None])
    value = rule(network, X, Y, half_squares, position())
    assert network.weight.grad is not None
    return network.weight.grad[0], value, network.weight.detach()[0]


def test_plain_sharpness_takes_the_gradient_at_the_ascended_point() -> None:
    gradient, value, after = gradient_by(SharpnessAware(0.3))
    g = slope(START)
    torch.testing.assert_close(gradient, slope(START + 0.3 * g / g.norm()))
    torch.testing.assert_close(value, half_squares((X @ START)[:, None], Y))
    assert torch.equal(after, START)


def test_adaptive_ascent_scales_by_the_squared_weights() -> None:
    gradient, _, after = gradient_by(SharpnessAware(0.3, adaptive=True))
    g = slope(START)
    ascent = 0.3 * START**2 * g / (START.abs() * g).norm()
    torch.testing.assert_close(gradient, slope(START + ascent))
    assert torch.equal(after, START)


@pytest.mark.parametrize("adaptive", [False, True])
def test_surrogate_gap_subtracts_the_perpendicular_part_of_the_first_gradient(adaptive: bool) -> None:
    second, _, _ = gradient_by(SharpnessAware(0.3, adaptive=adaptive))
    gradient, _, _ = gradient_by(SharpnessAware(0.3, adaptive=adaptive, surrogate_gap=0.4))
    first = slope(START)
    perpendicular = first - (first @ second) / (second @ second) * second
    assert abs(float(perpendicular @ second)) < 1e-12
    assert float(perpendicular.norm()) > 1e-3
    torch.testing.assert_close(gradient, second - 0.4 * perpendicular)


def test_mixing_is_the_objective_of_the_paper() -> None:
    second, _, _ = gradient_by(SharpnessAware(0.3))
    gradient, _, _ = gradient_by(SharpnessAware(0.3, mix=0.25))
    torch.testing.assert_close(gradient, 0.75 * slope(START) + 0.25 * second)


def test_a_vanishing_radius_gives_the_plain_gradient() -> None:
    for adaptive in (False, True):
        gradient, _, _ = gradient_by(SharpnessAware(1e-12, adaptive=adaptive, surrogate_gap=0.5))
        torch.testing.assert_close(gradient, slope(START), rtol=1e-9, atol=1e-9)


def test_the_norm_runs_over_all_parameters_together() -> None:
    network = nn.Linear(3, 1).double()
    reference = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]

    def value(weight: Tensor, bias: Tensor) -> Tensor:
        return half_squares(X @ weight.T + bias, Y)

    first = torch.autograd.grad(value(*reference), reference)
    length = torch.cat([each.flatten() for each in first]).norm()
    moved = [(w + 0.2 * g / length).detach().requires_grad_() for w, g in zip(reference, first, strict=True)]
    expected = torch.autograd.grad(value(*moved), moved)
    SharpnessAware(0.2)(network, X, Y, half_squares, position())
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_zero_gradient_stays_zero_and_finite() -> None:
    network = nn.Linear(3, 1, bias=False).double()
    for adaptive in (False, True):
        SharpnessAware(0.1, adaptive=adaptive, surrogate_gap=0.3)(
            network, torch.zeros_like(X), torch.zeros_like(Y), half_squares, position()
        )
        assert network.weight.grad is not None
        assert float(network.weight.grad.abs().max()) == 0.0
        network.zero_grad()


class Recorder(nn.Module):
    """A network that notes what it is given, with dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(6)
        self.first = nn.Linear(6, 16)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(16, 3)
        self.seen: list[Tensor] = []
        self.masks: list[Tensor] = []

    def forward(self, examples: Tensor) -> Tensor:
        self.seen.append(examples.detach().clone())
        hidden: Tensor = self.first(self.normalise(examples)).tanh() + 2
        dropped: Tensor = self.dropout(hidden)
        self.masks.append(dropped.detach() == 0)
        logits: Tensor = self.last(dropped)
        return logits


def small_batch() -> tuple[Tensor, Tensor]:
    return torch.linspace(0, 9, 48).sin().reshape(8, 6), torch.arange(8) % 3


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_zero_gradient_has_no_ascent_however_large_the_radius(adaptive: bool) -> None:
    network = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(network.weight)
    rule = SharpnessAware(10.0, adaptive)
    rule(network, torch.zeros(3, 2), torch.tensor([0, 1, 0]), classification_loss, Position(0, 1, 0, 1))
    assert network.weight.grad is not None
    assert torch.equal(network.weight.grad, torch.zeros(2, 2))


def test_the_second_pass_sees_the_same_examples_and_the_same_dropout() -> None:
    network = Recorder()
    images, labels = small_batch()
    SharpnessAware(0.05)(network, images, labels, classification_loss, position())
    assert len(network.seen) == 2
    assert torch.equal(network.seen[0], network.seen[1])
    assert torch.equal(network.masks[0], network.masks[1])
    assert 0 < int(network.masks[0].sum()) < network.masks[0].numel()


@pytest.mark.parametrize("rule", [SharpnessAware(0.05), InputGradientPenalty(), SharpnessAware(0.05, adaptive=True)])
def test_running_statistics_are_those_of_one_plain_pass(rule: StepRule) -> None:
    images, labels = small_batch()
    buffers = []
    for each in (plain, rule):
        network = Recorder()
        each(network, images, labels, classification_loss, position())
        buffers.append([buffer.clone() for buffer in network.buffers()])
    for ordinary, modified in zip(*buffers, strict=True):
        assert torch.equal(ordinary, modified)


def test_weights_return_bit_for_bit_even_when_the_second_pass_fails() -> None:
    network = nn.Linear(3, 1, bias=False).double()
    before = network.weight.detach().clone()
    calls = []

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("second pass")
        return half_squares(outputs, targets)

    with pytest.raises(RuntimeError, match="second pass"):
        SharpnessAware(0.3)(network, X, Y, failing, position())
    assert torch.equal(network.weight.detach(), before)


def test_the_clipped_loss_follows_its_table() -> None:
    rule = ClippedLoss()
    factors = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.0]
    assert [rule.factor(epoch) for epoch in range(12)] == pytest.approx(factors)
    assert ClippedLoss(start=0.9, increment=0.2, epochs=5).factor(3) == 1.0


def test_the_clipped_loss_scales_the_gradient_and_reports_the_loss_itself() -> None:
    network = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(START[None])
    value = ClippedLoss()(network, X, Y, half_squares, position(epoch=3))
    assert network.weight.grad is not None
    torch.testing.assert_close(network.weight.grad[0], 0.65 * slope(START))
    torch.testing.assert_close(value, half_squares((X @ START)[:, None], Y))


def test_the_penalty_of_a_linear_network_has_its_closed_form() -> None:
    network = nn.Linear(4, 3).double()
    examples = torch.ones(5, 4, dtype=torch.float64)
    expected = (network.weight.sum(0).norm() - 1) ** 2
    torch.testing.assert_close(input_gradient_penalty(network, examples), expected)


def test_the_penalty_on_images_takes_the_norm_over_channels_alone() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(0.1, 2, 2 * 3 * 4, dtype=torch.float64).reshape(2, 3, 4))

        def forward(self, images: Tensor) -> Tensor:
            return (self.weight * images.square()).sum((1, 2, 3))[:, None]

    network = Weighted()
    images = torch.linspace(-1, 1, 5 * 24, dtype=torch.float64).reshape(5, 2, 3, 4)
    slopes = 2 * network.weight * images
    expected = ((slopes[:, 0] ** 2 + slopes[:, 1] ** 2).sqrt() - 1).square().mean()
    torch.testing.assert_close(input_gradient_penalty(network, images), expected)


def test_the_penaltys_gradient_equals_finite_differences() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    examples = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
    labels = torch.arange(6) % 3
    InputGradientPenalty(1.5)(network, 3 * examples, labels, classification_loss, position(unaugmented=examples))

    def total() -> float:
        # The loss is taken on the augmented minibatch, the penalty on the one before augmentation.
        loss = classification_loss(network(3 * examples), labels)
        return (loss + 1.5 * input_gradient_penalty(network, examples)).item()

    for parameter in network.parameters():
        assert parameter.grad is not None
        flat, gradient = parameter.detach().view(-1), parameter.grad.view(-1)
        for place in range(0, flat.numel(), 3):
            origin = float(flat[place])
            flat[place] = origin + 1e-5
            up = total()
            flat[place] = origin - 1e-5
            down = total()
            flat[place] = origin
            assert gradient[place] == pytest.approx((up - down) / 2e-5, abs=1e-8)


def test_the_penalty_stays_finite_where_the_slope_is_zero() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        network[0].bias.fill_(-100)
    examples, labels = torch.ones(2, 4, dtype=torch.float64), torch.tensor([0, 1])
    InputGradientPenalty()(network, examples, labels, classification_loss, position(unaugmented=examples))
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())


def test_rules_compose() -> None:
    images, labels = small_batch()

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    one, other = network(), network()
    SharpnessAware(0.1, rule=ClippedLoss(rule=InputGradientPenalty(0.0)))(
        one, images, labels, classification_loss, position()
    )
    SharpnessAware(0.1)(other, images, labels, classification_loss, position())
    for halved, whole in zip(one.parameters(), other.parameters(), strict=True):
        # The ascent has the same direction and length, so only the factor 1/2 of epoch 0 is left.
        torch.testing.assert_close(halved.grad, 0.5 * whole.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", [plain, SharpnessAware(0.05, adaptive=True, surrogate_gap=0.3), ClippedLoss()])
def test_training_with_a_rule_repeats_bit_for_bit_and_learns(rule: StepRule) -> None:
    settings = TrainingSettings(epochs=12, batch_size=16, learning_rate=0.2)
    labels = torch.arange(48) % 3
    images = nn.functional.one_hot(labels, 6).float() + 0.3 * torch.linspace(0, 40, 288).sin().reshape(48, 6)
    results, weights = [], []
    for _ in range(2):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        results.append(train(network, images, labels, settings, seed=5, rule=rule).losses)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    assert results[0] == results[1]
    assert torch.equal(weights[0], weights[1])
    assert results[0][-1] < 0.3 * results[0][0]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: SharpnessAware(0.0), "radius"),
        (lambda: SharpnessAware(math.nan), "radius"),
        (lambda: SharpnessAware(0.1, surrogate_gap=-1.0), "surrogate_gap"),
        (lambda: SharpnessAware(0.1, mix=0.0), "mix"),
        (lambda: ClippedLoss(start=0.0), "start"),
        (lambda: ClippedLoss(increment=-0.1), "increment"),
        (lambda: ClippedLoss(epochs=-1), "epochs"),
        (lambda: InputGradientPenalty(-1.0), "weight"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(build: Callable[[], object], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: got"):
        build()
