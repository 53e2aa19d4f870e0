from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from distillrs import Step
from distillrs.condense import HardLabels, Synthetic
from distillrs.condense.initial import expert_features, nearest_to_centres
from distillrs.condense.modifiers import ClippedLoss, InputGradientPenalty
from distillrs.condense.perturbation import FilterPerturbation
from distillrs.errors import ArgumentError
from distillrs.recipes.smooth_expert import smooth_expert, smooth_expert_experts, smooth_expert_initial
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk

Y = torch.arange(12) % 3
X = torch.linspace(0, 90, 12 * 36).sin().reshape(12, 1, 6, 6).double()


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()


LAYOUT = ParameterLayout.of(network())
STORE = MemoryStore({"expert-0": walk(LAYOUT, network(), epochs=26, size=0.02)})


def hard() -> Synthetic:
    return Synthetic(X[:6], HardLabels(Y[:6]), inner_lr=0.05)


def test_the_card_leads_to_experts_and_initialisation() -> None:
    card = find_recipe("smooth-expert")
    assert (card.function, card.experts, card.initial) == (smooth_expert, smooth_expert_experts, smooth_expert_initial)


def test_the_defaults_are_the_papers() -> None:
    options = {name: each.default for name, each in inspect.signature(smooth_expert).parameters.items()}
    assert (options["inner_steps"], options["span"], options["start"]) == (40, 3, range(15))
    assert (options["momentum"], options["perturbation"], options["balanced"]) == (0.9, 1.0, True)
    training = TrainingSettings(epochs=50, batch_size=256, learning_rate=0.003, momentum=0.9, weight_decay=1e-3)
    rule = smooth_expert_experts(network(), training).rule
    assert rule == ClippedLoss(0.5, 0.05, 10, InputGradientPenalty(2.0))


@pytest.mark.parametrize("start", [2, 11])
@pytest.mark.parametrize(("intermediate", "weights"), [("one", (1.0, 1.0, 1.0)), ("share", (1 / 3, 2 / 3, 1.0))])
def test_the_loss_is_the_equation_written_out(start: int, intermediate: str, weights: tuple[float, ...]) -> None:
    synthetic = hard()
    step = Step(5, seed=8)
    # One start only, so that the expectation knows it; S, the upper end, is then start + 1.
    starts = range(start, start + 1)
    loss = smooth_expert(STORE, network(), synthetic, inner_steps=7, span=3, start=starts, intermediate=intermediate)(
        None, step
    )

    records = STORE.trajectories["expert-0"]
    theta = FilterPerturbation()(records[start], LAYOUT, step=step)
    assert not torch.equal(theta, records[start])
    beyond = start - (start + 1) / 2
    assert beyond > 0
    factor = math.log(beyond + 8) / math.log(5)
    model = network()
    velocity: Tensor | float = 0.0
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(7):
        LAYOUT.load(model, theta)
        value = factor * nn.functional.cross_entropy(model(X[:6]), Y[:6])
        gradient = torch.cat([each.flatten() for each in torch.autograd.grad(value, list(model.parameters()))])
        velocity = 0.9 * velocity + gradient
        theta = theta - 0.05 * velocity
        for j, weight in zip((1, 2, 3), weights, strict=True):
            if i + 1 == (7 if j == 3 else 2 * j):
                end = records[start + j]
                expected += weight * (theta - end).square().sum() / (records[start] - end).square().sum()
    torch.testing.assert_close(loss.total.detach(), expected, rtol=1e-8, atol=0)


def test_each_part_can_be_left_out() -> None:
    step = Step(1, seed=3)

    def value(**changes: object) -> float:
        options = {"inner_steps": 6, "span": 3, "start": range(9, 10), **changes}
        return smooth_expert(STORE, network(), hard(), **options)(None, step).total.item()  # type: ignore[arg-type]  # mixed

    values = [value()]
    values += [value(momentum=0.0), value(balanced=False), value(intermediate="none"), value(perturbation=0.0)]
    assert len(set(values)) == 5


def test_a_set_starts_from_the_examples_nearest_to_the_centres_of_the_logits() -> None:
    synthetic = smooth_expert_initial(X, Y, 2, store=STORE, network=network(), seed=5)
    rows = nearest_to_centres(expert_features(STORE, network(), X), Y, 2, seed=5)
    assert torch.equal(synthetic.images.detach(), X[rows])
    assert synthetic.targets().tolist() == [0, 0, 1, 1, 2, 2]


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="intermediate: got 'two'"):
        smooth_expert(STORE, network(), hard(), intermediate="two")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ArgumentError, match="start: got"):
        smooth_expert(STORE, network(), hard(), start=range(0))
    with pytest.raises(ArgumentError, match="perturbation: got"):
        smooth_expert(STORE, network(), hard(), perturbation=-1.0)
