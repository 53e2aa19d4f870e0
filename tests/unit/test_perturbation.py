from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distillrs import Step
from distillrs.condense.balance import BalancedScale
from distillrs.condense.perturbation import FilterPerturbation
from distillrs.errors import ArgumentError
from distillrs.trajectory import ParameterLayout

NETWORK = nn.Sequential(
    nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(80, 4)
).double()
LAYOUT = ParameterLayout.of(NETWORK)


def test_each_convolution_moves_by_the_scale_in_relative_frobenius_norm_and_nothing_else_moves() -> None:
    vector = LAYOUT.flatten(NETWORK)
    kept = vector.clone()
    moved = FilterPerturbation(0.7)(vector, LAYOUT, step=Step(3, seed=1))
    assert torch.equal(vector, kept)
    for name, after in LAYOUT.unflatten(moved).items():
        before = LAYOUT.unflatten(vector)[name]
        if after.ndim == 4:
            # (w' - w) / w = scale d / |d|, whose norm is the scale.
            torch.testing.assert_close(((after - before) / before).norm(), torch.tensor(0.7, dtype=torch.float64))
        else:
            assert torch.equal(after, before)


def test_the_direction_is_standard_normal_and_its_own_for_each_tensor_and_step() -> None:
    vector = torch.ones(LAYOUT.size, dtype=torch.float64)
    perturb = FilterPerturbation()

    def directions(step: Step) -> list[torch.Tensor]:
        moved = LAYOUT.unflatten(perturb(vector, LAYOUT, step=step) - vector)
        return [value.flatten() / value.norm() for value in moved.values() if value.ndim == 4]

    first, second = directions(Step(0))
    elements = first * math.sqrt(len(first))
    assert abs(float(elements.mean())) < 4 / math.sqrt(len(first))
    assert 1.5 < float((elements**4).mean()) < 5  # 3 for a normal variable, 1.8 for a uniform one; 162 draws
    for other in (second[: len(first)], directions(Step(1))[0], directions(Step(0, seed=1))[0]):
        size = min(len(first), len(other))
        assert abs(float(first[:size] @ other[:size])) < 0.35
    assert torch.equal(directions(Step(0))[0], first)


def test_bad_arguments_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="scale: got"):
        FilterPerturbation(-1.0)
    with pytest.raises(ArgumentError, match="vector: got"):
        FilterPerturbation()(torch.ones(3), LAYOUT, step=0)
    with pytest.raises(ArgumentError, match="latest: got 0"):
        BalancedScale(0)
    with pytest.raises(ArgumentError, match="start: got -1"):
        BalancedScale(4)(-1)


def test_the_balanced_scale_has_the_published_values() -> None:
    scale = BalancedScale(20)
    assert scale(10) == pytest.approx(math.log(8) / math.log(5))
    assert scale(19) == pytest.approx(math.log(17) / math.log(5))
    assert scale(9) == pytest.approx(math.log(5) / math.log(9))
    assert scale(0) == pytest.approx(math.log(5) / math.log(18))
    assert BalancedScale(15)(7) == pytest.approx(math.log(5) / math.log(8.5))


def test_the_balanced_scale_grows_with_the_start_and_crosses_one_in_the_middle() -> None:
    values = [BalancedScale(20)(start) for start in range(20)]
    assert values == sorted(values)
    assert values[9] < 1 < values[10]
