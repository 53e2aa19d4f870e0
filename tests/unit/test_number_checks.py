"""Numbers that are none are refused by name, wherever laws, ramps, paths, grids and parts of flow maps take one."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from distillrs import diffusion, recipes, schedule
from distillrs.checks import check_number, check_whole, is_number
from distillrs.errors import ArgumentError
from distillrs.schedule import RectifiedFlow, Uniform

FLOW = RectifiedFlow()
NEAR = schedule.Neighbouring((0.0, 0.5, 1.0))


def net():
    return nn.Linear(3, 3)


NUMBERS = {
    "step of Central": ("step", diffusion.Central),
    "step of Solver": ("step", diffusion.Solver),
    "factor of PseudoHuber": ("factor", diffusion.PseudoHuber),
    "floor of Cosine": ("floor", diffusion.Cosine),
    "power of AdaptivePower": ("power", diffusion.AdaptivePower),
    "constant of AdaptivePower": ("constant", lambda value: diffusion.AdaptivePower(1.0, value)),
    "constant of TangentNormalisation": ("constant", diffusion.TangentNormalisation),
    "instant of Semigroup": ("instant", lambda value: diffusion.Semigroup(instant=value)),
    "sigma_min of ConsistencyBoundary": ("sigma_min", diffusion.ConsistencyBoundary),
    "scaling of LatentBoundary": ("scaling", lambda value: diffusion.LatentBoundary(scaling=value)),
    "low of Uniform": ("high", lambda value: Uniform(value, 1.0)),
    "high of Uniform": ("high", lambda value: Uniform(0.0, value)),
    "mean of LogNormal": ("mean", lambda value: schedule.LogNormal(value, 1.0)),
    "std of LogNormal": ("std", lambda value: schedule.LogNormal(0.0, value)),
    "mean of LogitNormal": ("mean", schedule.LogitNormal),
    "std of LogitNormal": ("std", lambda value: schedule.LogitNormal(0.0, value)),
    "sharpness of UShaped": ("sharpness", schedule.UShaped),
    "shift of Shifted": ("shift", lambda value: schedule.Shifted(Uniform(), value)),
    "diagonal of Triangle": ("diagonal", schedule.Triangle),
    "endpoint of Triangle": ("endpoint", lambda value: schedule.Triangle(0.5, value)),
    "maximum_gap of Triangle": ("maximum_gap", lambda value: schedule.Triangle(maximum_gap=value)),
    "mean of BinnedLogNormal": ("mean", lambda value: schedule.BinnedLogNormal((0.1, 0.2), value)),
    "end of Adjacent": ("end", lambda value: schedule.Adjacent(NEAR, value)),
    "gap of FromNoise": ("gap", lambda value: schedule.FromNoise(gap=value)),
    "share of WithDiagonal": ("share", lambda value: schedule.WithDiagonal(NEAR, value)),
    "sigma_max of EDM": ("sigma_max", schedule.EDM),
    "beta_min of VP": ("beta_min", schedule.VP.linear),
    "beta_max of VP": ("beta_max", lambda value: schedule.VP.linear(0.1, value)),
    "offset of VP": ("offset", schedule.VP.cosine),
    "start of VP": ("start", lambda value: schedule.VP.betas(start=value)),
    "last of Residual": ("last", lambda value: schedule.Residual(last=value)),
    "first of Residual": ("first", lambda value: schedule.Residual(first=value)),
    "bias of SigmoidWeight": ("bias", schedule.SigmoidWeight),
    "value of Constant": ("value", schedule.Constant),
    "end of LinearRamp": ("end", lambda value: schedule.LinearRamp(0.0, value, 5)),
    "limit of Doubling": ("limit", lambda value: schedule.Doubling(1.0, 2, value)),
    "value of Feedback": ("value", lambda value: schedule.Feedback(value, 1.0, 1.0)),
    "sigma_min of karras": ("sigma_min", lambda value: schedule.karras(4, value)),
    "start of spaced": ("start", lambda value: schedule.spaced(4, FLOW, start=value)),
    "shift of shifted": ("shift", lambda value: schedule.shifted(4, value)),
    "gap of boot": ("gap", lambda value: recipes.boot(net(), net(), (3,), gap=value)),
    "boundary of boot": ("boundary", lambda value: recipes.boot(net(), net(), (3,), boundary=value)),
    "boundary_weight of boot": (
        "boundary_weight",
        lambda value: recipes.boot(net(), net(), (3,), boundary_weight=value),
    ),
    "least of boot": ("least", lambda value: recipes.boot(net(), net(), (3,), least=value)),
    "guidance of boot": ("guidance", lambda value: recipes.boot(net(), net(), (3,), guidance=value)),
    "guidance of mean_flow": ("guidance", lambda value: recipes.mean_flow(net(), guidance=value)),
    "guidance of dmd2": ("guidance", lambda value: recipes.dmd2(net(), net(), net(), guidance=value)),
}
WHOLE = {
    "strata of Stratified": ("strata", lambda value: schedule.Stratified(Uniform(), value)),
    "depth of Nested": ("depth", schedule.Nested),
    "levels of Residual": ("levels", schedule.Residual),
    "steps of VP": ("steps", lambda value: schedule.VP.betas(steps=value)),
    "steps of LinearRamp": ("steps", lambda value: schedule.LinearRamp(0.0, 1.0, value)),
    "begin of LinearRamp": ("begin", lambda value: schedule.LinearRamp(0.0, 1.0, 3, value)),
    "every of Doubling": ("every", lambda value: schedule.Doubling(1.0, value)),
    "every of Halving": ("every", lambda value: schedule.Halving(1.0, value)),
    "steps of WarmUp": ("steps", lambda value: schedule.WarmUp(schedule.Constant(1.0), value)),
    "first_high of ExpandingWindow": ("first_high", lambda value: schedule.ExpandingWindow(0, value, 9)),
    "steps of spaced": ("steps", lambda value: schedule.spaced(value, FLOW)),
    "features of LogVariance": ("features", diffusion.LogVariance),
}
# Where None has a meaning.
OPTIONAL = (
    "step of Solver",
    "gap of FromNoise",
    "start of VP",
    "first of Residual",
    "limit of Doubling",
    "steps of LinearRamp",
    *(name for name in NUMBERS if name.startswith("guidance of")),
)
TIMES = {
    "Grid": lambda value: schedule.Grid(value, FLOW),
    "Neighbouring": schedule.Neighbouring,
    "AnyPair": schedule.AnyPair,
    "Levels": schedule.Levels,
    "BinnedLogNormal": schedule.BinnedLogNormal,
}


@pytest.mark.parametrize("name", [*NUMBERS, *WHOLE])
@pytest.mark.parametrize(
    "value",
    ["0.5", math.nan, -math.inf, True, [0.5], torch.tensor(0.5), Fraction(1, 2), None],
    ids=lambda value: repr(value),
)
def test_what_is_no_number_is_refused_by_name(name, value):
    argument, make = (NUMBERS | WHOLE)[name]
    if value is None and name in OPTIONAL:
        make(value)
        return
    with pytest.raises(ArgumentError, match=rf"^{argument}: got"):
        make(value)


@pytest.mark.parametrize("name", NUMBERS)
def test_integers_beyond_every_float_are_refused_by_name(name):
    argument, make = NUMBERS[name]
    with pytest.raises(ArgumentError, match=rf"^{argument}: got"):
        make(10**400)


@pytest.mark.parametrize("name", WHOLE)
def test_parts_of_one_are_no_whole_number(name):
    argument, make = WHOLE[name]
    with pytest.raises(ArgumentError, match=rf"^{argument}: got 2.5"):
        make(2.5)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize(
    "value", ["01", ["0.1", "0.2"], 3, None, [0.1, math.nan], [0.9, "x"], [[0.1], [0.2]], torch.ones(2, 2)]
)
def test_what_are_no_times_is_refused_by_name(name, value):
    with pytest.raises(ArgumentError, match=r"^times: got"):
        TIMES[name](value)


@pytest.mark.parametrize("name", TIMES)
def test_times_come_in_any_sequence(name):
    times = [0.9, 0.4, 0.1]
    expected = TIMES[name](times)
    assert TIMES[name](tuple(times)) == TIMES[name](time for time in times) == expected
    assert TIMES[name](torch.tensor(times, dtype=torch.float64)) == TIMES[name](np.array(times)) == expected


def test_edges_and_functions():
    with pytest.raises(ArgumentError, match=r"^edges: got True"):
        schedule.Segments(True)
    with pytest.raises(ArgumentError, match=r"^ramp: got 1.0"):
        schedule.WarmUp(1.0, 3)
    ramp = schedule.Feedback(1.0, 1.0, 0.5)
    for measured in ("2", None, math.inf, torch.ones(2)):
        with pytest.raises(ArgumentError, match=r"^measured: got"):
            ramp.after(measured)
    assert ramp.after(torch.tensor(3.0)) == ramp.after(3.0) != ramp
    with pytest.raises(ArgumentError, match=r"^make: got 3"):
        schedule.ScheduledPairs(3)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(1), np.float64(1)])
def test_every_kind_of_number_is_one(value):
    assert is_number(value)
    check_number("x", value, "any", least=0.5, most=1)
    assert diffusion.AdaptivePower(value).power == value
    assert schedule.EDM(value).sigma(1.0) == float(value)


def test_bounds_hold_at_their_ends():
    check_number("x", 1, "1", least=1, most=1)
    check_whole("x", np.int64(2), "2", least=2, most=2)
    for bounds in ({"above": 1}, {"below": 1}, {"least": 1.1}, {"most": 0.9}):
        with pytest.raises(ArgumentError, match=r"^x: got 1, allowed is so"):
            check_number("x", 1, "so", **bounds)
    for value in (1, 4, 2.0, True):
        with pytest.raises(ArgumentError, match=r"^x: got"):
            check_whole("x", value, "so", least=2, most=3)
