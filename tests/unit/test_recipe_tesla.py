import inspect

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import condense, recipes, trajectory
from distillrs.registry import find_recipe
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk


def parts(shape=(5,)):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 6), nn.Tanh(), nn.Linear(6, 3)).double()
    layout = ParameterLayout.of(network)
    store = MemoryStore(
        {str(seed): walk(layout, network, seed=seed) for seed in range(3)}, {"layout": layout.to_dict()}
    )
    labels = condense.HardLabels(torch.arange(6) % 3)
    return store, network, condense.Synthetic(torch.randn(6, *shape, dtype=torch.float64), labels, inner_lr=0.1)


def gradient(objective, step=0):
    objective.zero_grad()
    loss = objective(None, step)
    loss.total.backward()
    return loss.total.detach(), objective.synthetic.images.grad.clone()


@pytest.mark.parametrize("name", ["mtt", "tesla"])
def test_recipes_are_registered_with_source_equation_and_deviations(name):
    card = find_recipe(name)
    assert card.function is getattr(recipes, name)
    assert card.source
    assert "theta" in card.equation
    assert card.deviations
    assert set(card.optimisers) == {"images", "inner_lr"}
    for options in card.optimisers.values():
        assert options.keys() == {"lr", "momentum"}


def test_the_signature_is_that_of_the_contract():
    given = inspect.signature(recipes.tesla).parameters
    expected = {
        "inner_steps": 20,
        "span": 2,
        "start": range(5),
        "gradient": "adjoint",
        "augment": None,
        "batch": None,
        "seed": 0,
    }
    assert list(given)[:3] == ["store", "network", "synthetic"]
    assert {name: given[name].default for name in expected} == expected


def test_the_lines_of_the_readme_run():
    store, model, synthetic = parts()
    objective = recipes.tesla(
        store, network=model, synthetic=synthetic, inner_steps=5, span=2, start=range(5), gradient="adjoint"
    )
    loss = objective(None, dr.Step(0, seed=0))
    loss.total.backward()
    for group in objective.parameter_groups().values():
        assert all(parameter.grad is not None for parameter in group)


def test_the_exact_tesla_is_mtt_in_other_memory():
    store, model, synthetic = parts()
    for index in range(3):
        one = gradient(recipes.mtt(store, model, synthetic, inner_steps=6), index)
        other = gradient(recipes.tesla(store, model, synthetic, inner_steps=6), index)
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_the_published_tesla_is_another_gradient_of_the_same_loss():
    store, model, synthetic = parts()
    exact = gradient(recipes.tesla(store, model, synthetic, inner_steps=6))
    published = gradient(recipes.tesla(store, model, synthetic, inner_steps=6, gradient="truncated"))
    torch.testing.assert_close(exact[0], published[0])
    assert not torch.allclose(exact[1], published[1], rtol=1e-4, atol=0)


def test_checkpoints_change_no_bit():
    store, model, synthetic = parts()
    plain = gradient(recipes.tesla(store, model, synthetic, inner_steps=7))
    saved = gradient(recipes.tesla(store, model, synthetic, inner_steps=7, checkpoint_every=3))
    assert all(torch.equal(one, other) for one, other in zip(plain, saved, strict=True))


def test_the_seed_is_that_of_plain_numbers():
    store, model, synthetic = parts()
    objective = recipes.tesla(store, model, synthetic, inner_steps=3, seed=5)
    assert torch.equal(objective(None, 2).total, objective(None, dr.Step(2, seed=5)).total)


def test_labels_of_the_expert_need_soft_labels_that_are_not_learned():
    store, model, synthetic = parts()
    with pytest.raises(dr.errors.ArgumentError, match=r"^labels: got 'expert'"):
        recipes.tesla(store, model, synthetic, labels="expert")
    made = condense.Synthetic(
        synthetic.images.detach(), condense.SoftLabels(torch.zeros(6, 3, dtype=torch.float64), learn=False)
    )
    recipes.tesla(store, model, made, inner_steps=3, labels="expert")(None, 0).total.backward()
    assert made.labels.logits.abs().sum() > 0


@pytest.mark.parametrize("recipe", [recipes.mtt, recipes.tesla])
def test_images_may_be_augmented_and_cut_into_minibatches(recipe):
    store, model, synthetic = parts((1, 4, 4))
    plain = recipe(store, model, synthetic, inner_steps=4)(None, 0).total
    flipped = recipe(store, model, synthetic, inner_steps=4, augment="flip_crop")(None, 0).total
    cut = recipe(store, model, synthetic, inner_steps=4, batch=2)(None, 0).total
    assert len({plain.item(), flipped.item(), cut.item()}) == 3


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"inner_steps": 0}, "inner_steps"), ({"span": 0}, "span"), ({"start": range(3, 3)}, "start"),
     ({"gradient": "exact"}, "gradient"), ({"augment": "flips"}, "augment"), ({"batch": -1}, "batch")],
)  # fmt: skip
def test_what_is_refused_names_itself(arguments, name):
    store, model, synthetic = parts()
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        recipes.tesla(store, model, synthetic, **arguments)


def test_a_store_on_disk_serves_as_one_in_memory(tmp_path):
    memory, model, synthetic = parts()
    layout = ParameterLayout.of(model)
    schema = trajectory.Schema(theta=layout.column())
    with trajectory.Store.create(tmp_path / "experts", schema, metadata={"layout": layout.to_dict()}) as store:
        for key, records in memory.trajectories.items():
            with store.begin(key) as expert:
                for record in records:
                    expert.append(theta=record)
    store = trajectory.Store.open(tmp_path / "experts")
    objective = recipes.tesla(store, model, synthetic, inner_steps=5)
    for index in range(3):
        key, start = objective.windows.draw(store, dr.Step(index))
        alone = MemoryStore({key: memory.trajectories[key]})
        expected = recipes.tesla(alone, model, synthetic, inner_steps=5, start=range(start, start + 1))
        for mine, theirs in zip(gradient(objective, index), gradient(expected, index), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)
    with pytest.raises(dr.errors.ArgumentError, match=r"^start: got .*starts up to 6"):
        recipes.tesla(store, model, synthetic, start=range(8))
