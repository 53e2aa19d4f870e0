from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from distillrs import Step
from distillrs.condense.experts import ExpertTraining
from distillrs.condense.modifiers import SharpnessAware
from distillrs.errors import DataError
from distillrs.fitting import fit
from distillrs.recipes.ftd import ftd, ftd_experts, ftd_initial
from distillrs.recipes.mtt import mtt
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk

Y = torch.arange(30) % 3
X = nn.functional.one_hot(Y, 4).double() + 0.3 * torch.linspace(0, 60, 120).sin().reshape(30, 4)
NETWORK = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
LAYOUT = ParameterLayout.of(NETWORK)
STORE = MemoryStore({f"expert-{i}": walk(LAYOUT, NETWORK, epochs=26, seed=i) for i in range(2)})


def test_the_card_leads_to_experts_and_initialisation() -> None:
    card = find_recipe("ftd")
    assert (card.function, card.experts, card.initial) == (ftd, ftd_experts, ftd_initial)
    assert card.deviations
    assert set(card.optimisers) == {"images", "inner_lr"}


def test_the_defaults_are_the_papers() -> None:
    options = {name: each.default for name, each in inspect.signature(ftd).parameters.items()}
    assert (options["inner_steps"], options["span"], options["start"]) == (30, 2, range(20))
    training = TrainingSettings(epochs=50, batch_size=256, learning_rate=0.01)
    assert ftd_experts(NETWORK, training) == ExpertTraining(training, SharpnessAware(0.01, True, 0.4))
    paper = ftd_experts(NETWORK, training, radius=0.05, adaptive=False, surrogate_gap=0.0, mix=0.3)
    assert paper.rule == SharpnessAware(0.05, mix=0.3)


def test_the_matching_is_that_of_mtt() -> None:
    losses = []
    for recipe in (ftd, mtt):
        synthetic = ftd_initial(X, Y, 2, seed=4)
        loss = recipe(STORE, NETWORK, synthetic, inner_steps=5, span=2, start=range(20))(None, Step(3, seed=1))
        loss.total.backward()
        assert synthetic.images.grad is not None
        losses.append((loss.total.detach(), synthetic.images.grad))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-12)


def test_what_is_kept_is_the_moving_average_of_the_images() -> None:
    synthetic = ftd_initial(X, Y, 2, average=0.9)
    mean = synthetic.images.detach().clone()
    seen = []
    fit(
        ftd(STORE, NETWORK, synthetic, inner_steps=3, start=range(5)),
        {"images": 0.5, "inner_lr": 1e-6},
        6,
        callback=lambda progress: seen.append(synthetic.images.detach().clone()),
    )
    for images in seen:
        mean = 0.9 * mean + 0.1 * images
    torch.testing.assert_close(synthetic.condensed().images, mean)
    assert float((seen[-1] - mean).norm()) > 1e-6


def test_too_few_real_examples_of_a_class_are_named() -> None:
    with pytest.raises(DataError, match="class 0 has 10"):
        ftd_initial(X, Y, 11)
