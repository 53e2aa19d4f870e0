import numpy as np
import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs.registry import find_recipe


def test_a_plain_integer_is_a_step():
    assert dr.Step.of(3) == dr.Step(3)
    step = dr.Step(3, seed=7)
    assert dr.Step.of(step) is step


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"index": -1}, "index"), ({"index": 0, "seed": -1}, "seed"), ({"index": 0, "total": 0}, "total"),
     ({"index": 0, "first_unit": -2}, "first_unit"), ({"index": 0, "items": 0}, "items")],
)  # fmt: skip
def test_a_step_refuses_what_makes_no_sense(arguments, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        dr.Step(**arguments)


def test_frozen_networks_follow_devices_but_are_neither_trained_nor_saved():
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    holder = nn.Sequential(dr.Frozen(network), nn.Linear(2, 2))
    assert [name for name, _ in holder.named_parameters()] == ["1.weight", "1.bias"]
    assert list(holder.state_dict()) == ["1.weight", "1.bias"]
    holder.train()
    assert not network.training
    holder.to(torch.float64)
    assert network[0].weight.dtype == torch.float64
    inputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    holder(inputs).sum().backward()
    assert inputs.grad is not None
    assert network[0].weight.grad is None


def test_an_unknown_recipe_is_refused_by_name():
    with pytest.raises(dr.errors.ArgumentError, match="no_such_module"):
        find_recipe("no_such_module:recipe")


@pytest.mark.parametrize("name", [":recipe", ".nowhere:recipe", "distillrs:nothing"])
def test_a_recipe_that_cannot_be_imported_is_refused_by_name(name):
    with pytest.raises(dr.errors.ArgumentError, match=r"^method: got"):
        find_recipe(name)


def test_a_recipe_of_another_module_does_not_take_the_place_of_one_of_the_same_name():
    def tesla():
        pass

    tesla.__qualname__ = "tesla"
    with pytest.raises(dr.errors.ArgumentError, match=r"^id: got 'tesla'"):
        dr.recipe(id="tesla", source="somebody else", equation="0")(tesla)
    assert find_recipe("tesla").function is dr.recipes.tesla


@pytest.mark.parametrize("value", [1.5, True, "3", None])
@pytest.mark.parametrize("name", ["index", "seed", "total", "first_unit", "items"])
def test_a_step_takes_whole_numbers_alone(name, value):
    if value is None and name in ("total", "items"):
        return
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        dr.Step(**{"index": 0, name: value})


def test_the_whole_numbers_of_numpy_are_steps():
    step = dr.Step.of(np.int64(3))
    assert step == dr.Step(3)
    assert type(step.index) is int
