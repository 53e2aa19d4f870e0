from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from distillrs import Step
from distillrs.condense import HardLabels, SoftLabels, Synthetic
from distillrs.condense.initial import judge
from distillrs.condense.modifiers import SharpnessAware
from distillrs.errors import ArgumentError, DataError
from distillrs.fitting import fit
from distillrs.recipes.datm import datm, datm_experts, datm_initial
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings, train
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk

Y = torch.arange(60) % 3
X = nn.functional.one_hot(Y, 4).double() + 0.6 * torch.linspace(0, 160, 240).sin().reshape(60, 4)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


LAYOUT = ParameterLayout.of(network())
WALKS = MemoryStore({f"expert-{i}": walk(LAYOUT, network(), epochs=26, seed=i) for i in range(2)})


@pytest.fixture(scope="module")
def trained() -> MemoryStore:
    """Two experts that learned something, though not everything."""
    trajectories: dict[str, list[Tensor]] = {}
    for number in range(2):
        model = network()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.1 * number)
        records = [LAYOUT.flatten(model)]
        train(
            model,
            X,
            Y,
            TrainingSettings(epochs=6, batch_size=12, learning_rate=0.1),
            seed=number,
            after_epoch=lambda epoch, model, records=records: records.append(LAYOUT.flatten(model)),
        )
        trajectories[f"expert-{number}"] = records
    return MemoryStore(trajectories)


def soft(count: int = 6) -> Synthetic:
    return Synthetic(X[:count], SoftLabels(torch.linspace(-1, 1, 3 * count).reshape(count, 3).double()))


def test_the_card_leads_to_experts_and_initialisation() -> None:
    card = find_recipe("datm")
    assert (card.function, card.experts, card.initial) == (datm, datm_experts, datm_initial)
    assert set(card.optimisers) == {"images", "labels", "inner_lr"}
    assert card.optimisers["labels"]["momentum"] == 0.9


def test_the_defaults_are_the_papers() -> None:
    options = {name: each.default for name, each in inspect.signature(datm).parameters.items()}
    window = [options[name] for name in ("low", "first_high", "last_high", "expand_steps")]
    assert window == [0, 10, 20, 1000]
    assert (options["inner_steps"], options["span"], options["guard"], options["batch"]) == (40, 2, 1.0, 1000)
    training = TrainingSettings(epochs=100, batch_size=256, learning_rate=0.01)
    assert datm_experts(network(), training).rule == SharpnessAware(0.01, True, 0.3)


def test_starts_are_drawn_from_the_window_as_it_opens() -> None:
    objective = datm(
        WALKS, network(), soft(), inner_steps=1, low=3, first_high=5, last_high=11, expand_steps=30, guard=1e9
    )
    starts = {t: [int(objective(None, Step(t, seed=seed)).terms["start"]) for seed in range(60)] for t in (0, 17, 30)}
    assert set(starts[0]) == {3, 4}
    assert set(starts[17]) == set(range(3, 8))  # 5 + floor(6 * 17 / 30) = 8
    assert set(starts[30]) == set(range(3, 11))


def test_images_labels_and_rate_are_learned_together() -> None:
    synthetic = soft()
    before = [synthetic.images.detach().clone(), synthetic.targets().detach(), synthetic.inner_lr.detach().clone()]
    objective = datm(
        WALKS, network(), synthetic, inner_steps=4, first_high=3, last_high=3, expand_steps=None, guard=1e9
    )
    assert set(objective.parameter_groups()) == {"images", "labels", "inner_lr"}
    fit(objective, {"images": 1.0, "labels": 1.0, "inner_lr": 1e-4}, 3)
    after = [synthetic.images.detach(), synthetic.targets().detach(), synthetic.inner_lr.detach()]
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)


def test_the_inner_loss_is_the_cross_entropy_of_the_softmax_of_the_logits() -> None:
    synthetic = soft()
    loss = datm(WALKS, network(), synthetic, inner_steps=2, first_high=1, last_high=1, guard=1e9)(None, Step(0, seed=2))
    starts = [records[0] for records in WALKS.trajectories.values()]
    rate, y = synthetic.inner_lr.detach(), synthetic.labels.logits.detach().softmax(1)
    candidates = []
    for key, theta in zip(WALKS.trajectories, starts, strict=True):
        model = network()
        LAYOUT.load(model, theta)
        for _ in range(2):
            value = -(y * model(synthetic.images.detach()).log_softmax(1)).sum(1).mean()
            gradients = torch.autograd.grad(value, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= rate * gradient
        end = WALKS.trajectories[key][2]
        candidates.append((LAYOUT.flatten(model) - end).square().sum() / (theta - end).square().sum())
    assert any(torch.allclose(loss.total, each, rtol=1e-12) for each in candidates)


def test_a_loss_above_the_guard_updates_nothing() -> None:
    synthetic = soft()
    before = {name: value.clone() for name, value in synthetic.state_dict().items()}
    result = fit(
        datm(WALKS, network(), synthetic, inner_steps=2, first_high=3, last_high=3, guard=1e-9),
        {name: {"lr": 1.0, "momentum": 0.9} for name in ("images", "labels", "inner_lr")},
        4,
    )
    assert result.skipped == 4
    for name, value in synthetic.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_set_starts_from_rightly_classified_examples_with_their_logits(trained: MemoryStore) -> None:
    judged = judge(trained, network(), X, Y)
    assert int((judged.right == 0).sum()) > 0  # some example is too hard, else nothing is tested
    synthetic = datm_initial(X, Y, 4, store=trained, network=network(), seed=3)
    logits = synthetic.labels.logits.detach()
    assert isinstance(synthetic.labels, SoftLabels)
    assert synthetic.labels.learn
    assert logits.argmax(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for image, row in zip(synthetic.images.detach(), logits, strict=True):
        place = int((image == X).all(1).nonzero()[0])
        assert judged.right[place] > 0
        torch.testing.assert_close(row, judged.logits[place])


def test_hard_labels_and_fewer_judges_are_options(trained: MemoryStore) -> None:
    synthetic = datm_initial(X, Y, 2, store=trained, network=network(), labels="hard", judges=1)
    assert isinstance(synthetic.labels, HardLabels)
    assert synthetic.targets().tolist() == [0, 0, 1, 1, 2, 2]


def test_a_class_with_too_few_right_examples_is_an_error(trained: MemoryStore) -> None:
    with pytest.raises(DataError, match="are classified rightly by an expert"):
        datm_initial(X, Y, 20, store=trained, network=network())


def test_trajectories_too_short_for_the_last_window_are_refused_at_once() -> None:
    with pytest.raises(ArgumentError, match=r"start: got .*record 27.*0 to 26"):
        datm(WALKS, network(), soft(), first_high=3, last_high=26, span=2)
