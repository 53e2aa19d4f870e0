"""What is no path, grid, tensor, function or known name is refused by the argument's name, where it is given."""

import pytest
import torch
from torch import nn

from distillrs import diffusion, ops, random, recipes, schedule
from distillrs.diffusion.matching import levels
from distillrs.errors import ArgumentError, UnknownNameError, unknown_name_error
from distillrs.evaluate import beds, generation
from distillrs.schedule import EDM, VP, Grid, RectifiedFlow

FLOW = RectifiedFlow()
GRID = Grid((1.0, 0.5, 0.0), FLOW)
X = torch.zeros(2, 3)
T = torch.tensor([0.5, 0.5], dtype=torch.float64)
LAW = schedule.Uniform()
KNOWN = schedule.Trajectories.record(schedule.spaced(4, FLOW), torch.ones(2, 3), lambda x, t: x)
GAUSSIAN = beds.Gaussian((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
ADAPTER = diffusion.Network(nn.Linear(3, 3), times="t")
MAP = diffusion.StateMap(diffusion.Network(nn.Linear(3, 3), times="t"), FLOW)
MIXTURE = beds.LineMixture((0.0, 1.0), (1.0, 1.0), dimensions=3)


def net():
    return nn.Linear(3, 3)


NONE_AS_NAME = {
    "kind": lambda: FLOW.convert(X, X, T, kind=None, to="x0"),
    "kind of a wish": lambda: FLOW.convert(X, X, T, kind="x0", to=None),
    "clock": lambda: FLOW.clock(0.5, of=None),
    "of": lambda: schedule.spaced(2, FLOW, of=None),
    "solver": lambda: schedule.integrate(GRID, X, lambda x, t: x, solver=None),
    "solver of coefficients": lambda: schedule.coefficients(GRID, None),
    "solver of stages": lambda: schedule.stages(GRID, None),
    "solver of evaluations": lambda: schedule.evaluations(GRID, None),
    "method": lambda: schedule.optimise_grid(KNOWN, steps=(2,), method=None),
    "table of betas": lambda: VP.betas(None),
    "convention": lambda: schedule.guide(X, X, 1.0, None),
    "method of sample": lambda: diffusion.sample(MAP, X, GRID, method=None),
    "times": lambda: diffusion.Network(nn.Linear(3, 3), times=None),
    "kind of a weight": lambda: schedule.UniformWeight(None),
    "kind of weighted": lambda: diffusion.Weighted(schedule.MinSNR(), None),
}

PATHS = {
    "path of Grid": lambda path: Grid((1.0, 0.0), path),
    "path of karras": lambda path: schedule.karras(4, path=path),
    "path of spaced": lambda path: schedule.spaced(4, path),
    "path of shifted": lambda path: schedule.shifted(4, 2.0, path),
    "path of ddim": lambda path: schedule.ddim(4, path),
    "path of Grid.on": GRID.on,
    "to of Path.move": lambda path: FLOW.move(X, T, path),
    "path of Uniform": lambda path: schedule.Uniform(0.1, 0.2, of="sigma", path=path),
    "path of LogNormal": lambda path: schedule.LogNormal(0.0, 1.0, path=path),
    "path of BinnedLogNormal": lambda path: schedule.BinnedLogNormal((0.1, 0.2), path=path),
    "path of LossWeight": lambda path: schedule.MinSNR().at(path, 0.5),
    "path of error_scale": lambda path: schedule.error_scale(path, 0.5, kind="x0", to="noise"),
    "path of Network": lambda path: diffusion.Network(nn.Linear(3, 3), path=path),
    "path of StateMap": lambda path: diffusion.StateMap(ADAPTER, path),
    "own of Translated": lambda path: diffusion.Translated(ADAPTER, path, "x0", FLOW),
    "path of noised": lambda path: levels.noised(path, None, T, X),
    "path of ExactScore": lambda path: beds.ExactScore(GAUSSIAN, path),
    "path of Gaussian.on": GAUSSIAN.on,
    "path of Gaussian.flow": lambda path: GAUSSIAN.flow(X, 0.5, 0.1, path),
    "path of LineMixture.on": MIXTURE.on,
    "path of LineMixture.flow": lambda path: MIXTURE.flow(X, 0.5, 0.1, path),
    "path of LineMixture.log_density": lambda path: MIXTURE.log_density(X, 0.5, path),
    "path of KernelDensity.on": beds.KernelDensity(X.double(), 0.3).on,
    "path of progressive_distillation": lambda path: recipes.progressive_distillation(net(), net(), path=path),
    "path of guidance": lambda path: recipes.guided_distillation(net(), net(), path=path),
    "path of halving": lambda path: recipes.guided_distillation(net(), net(), "halving", path=path),
    "path of boot": lambda path: recipes.boot(net(), net(), (3,), path=path),
    "path of dmd2": lambda path: recipes.dmd2(net(), net(), net(), path=path),
    "path of tdm": lambda path: recipes.tdm(net(), net(), net(), path=path),
    "path of swiftbrush": lambda path: recipes.swiftbrush(net(), net(), net(), path=path),
    "path of sid": lambda path: recipes.sid(net(), net(), net(), path=path),
    "path of Trajectories": lambda path: schedule.optimise_grid(KNOWN, path, (2,)),
}

GRIDS = {
    "grid of integrate": lambda grid: schedule.integrate(grid, X, lambda x, t: x),
    "grid of coefficients": lambda grid: schedule.coefficients(grid, "euler"),
    "grid of stages": lambda grid: schedule.stages(grid, "heun"),
    "grid of evaluations": lambda grid: schedule.evaluations(grid, "euler"),
    "grid of Trajectories": lambda grid: schedule.Trajectories(grid, torch.zeros(3, 1, 1), torch.zeros(2, 1, 1)),
    "grid of Trajectories.record": lambda grid: schedule.Trajectories.record(grid, X, lambda x, t: x),
    "grid of trajectory": schedule.RolloutPlan.trajectory,
    "grid of simulated": lambda grid: schedule.RolloutPlan.simulated(grid, step=0),
    "grid of autoregressive": lambda grid: schedule.RolloutPlan.autoregressive(grid, 2, step=0),
    "grid of MovingBuffer": lambda grid: schedule.MovingBuffer(grid, 2),
    "start of optimise_grid": lambda grid: schedule.optimise_grid(
        KNOWN, None, (2,), "refined", lambda x, t: x, start=grid
    ),
    "grid of sample": lambda grid: diffusion.sample(MAP, X, grid),
    "grid of TeacherPath": diffusion.TeacherPath,
    "grid of endpoints": lambda grid: GAUSSIAN.on(FLOW).endpoints(X, grid=grid),
}

CALLS = {
    "trajectories": lambda: schedule.optimise_grid("trajectories"),
    "trajectories of mixed": lambda: schedule.optimise_mixed([1], X, 2, 1),
    "steps": lambda: schedule.optimise_grid(KNOWN, steps=4),
    "steps as text": lambda: schedule.optimise_grid(KNOWN, steps="4"),
    "steps as truth": lambda: schedule.optimise_grid(KNOWN, steps=(True,)),
    "steps beyond": lambda: schedule.optimise_grid(KNOWN, steps=(5,)),
    "steps of none": lambda: schedule.optimise_grid(KNOWN, steps=()),
    "steps of mixed": lambda: schedule.optimise_mixed(KNOWN, KNOWN.velocities, 4.0, 1),
    "second_steps": lambda: schedule.optimise_mixed(KNOWN, KNOWN.velocities, 4, True),
    "second": lambda: schedule.optimise_mixed(KNOWN, [1.0], 4, 1),
    "velocity": lambda: schedule.optimise_grid(KNOWN, None, (2,), "refined", 3),
    "moves": lambda: schedule.RolloutPlan((1, 2)),
    "moves as one": lambda: schedule.RolloutPlan(schedule.Move(0, 0, 1.0, 0.0)),
    "units": lambda: schedule.RolloutPlan.autoregressive(GRID, 2.5, step=0),
    "context_level": lambda: schedule.RolloutPlan.autoregressive(GRID, 2, step=0, context_level="0"),
    "predict": lambda: schedule.integrate(GRID, X, None),
    "offset": lambda: schedule.ddim(4, VP.betas(), spacing="leading", offset="a"),
    "alphas_cumprod": lambda: VP.table("abc"),
    "logarithms": lambda: schedule.AlphaTable("abc"),
    "values": lambda: schedule.Table("values", "abc"),
    "signal": lambda: VP("cosine"),
    "signal as a class": lambda: VP(schedule.LinearBeta),
    "signal of SubVP": lambda: schedule.SubVP(0.1),
    "unconditional": lambda: schedule.guide(X, X[:1], 2.0),
    "conditional": lambda: schedule.guide([1.0], X, 2.0),
    "name": lambda: LAW.draw(2, step=0, name=3),
    "name of integers": lambda: random.integers(2, 5, step=0, name=None),
    "name of choice": lambda: random.choice(5, 2, step=0, name=b"a"),
    "name of a seed": lambda: random.generator_seed(0, 1),
    "low": lambda: LAW.draw(2, step=0, low=torch.zeros(3)),
    "high": lambda: LAW.draw(2, 3, step=0, high=torch.ones(2)),
    "of": lambda: schedule.Uniform(of="snr"),
    "warm_up": lambda: diffusion.Eulerian(warm_up=3),
    "weight": lambda: diffusion.Weighted("snr"),
    "metric": lambda: diffusion.KindMetric("x0", metric="lpips"),
    "weight of KindMetric": lambda: diffusion.KindMetric("x0", diffusion.SquaredError(), 2.0),
    "condition": lambda: diffusion.sample(MAP, X, GRID, condition=[1]),
    "rolled": lambda: levels.noised(FLOW, None, T, X),
    "log_ratio": lambda: diffusion.matching.ratios.ratio_weights(ops.ReverseKL(), 3.0),
    "samples": lambda: generation.frechet_distance([[1.0], [2.0]], X),
    "real": lambda: generation.frechet_distance(X, [[1.0], [2.0]]),
    "samples of pairs": lambda: generation.paired_rmse([1.0], X),
    "reference": lambda: generation.paired_rmse(X, [1.0]),
    "first": lambda: generation.total_variation([0.5, 0.5], X),
    "second of histograms": lambda: generation.total_variation(X, [0.5, 0.5]),
    "labels": lambda: generation.class_histogram(X, X, [0, 1]),
    "bandwidths": lambda: generation.maximum_mean_discrepancy(X, X, 0.5),
    "bandwidths as texts": lambda: generation.maximum_mean_discrepancy(X, X, ("a",)),
    "bandwidth": lambda: beds.digits_kde("a"),
    "classes": lambda: beds.digits_kde(classes=(11,)),
    "data": lambda: beds.KernelDensity([[1.0]], 0.3),
    "mean": lambda: beds.Gaussian(0.0, 1.0),
    "deviation": lambda: beds.Gaussian((0.0,), ("a",)),
    "means": lambda: beds.LineMixture(0.0, (1.0,)),
    "guidance": lambda: beds.ExactScore(GAUSSIAN, FLOW, "two"),
    "t": lambda: GAUSSIAN.on(FLOW).predict(X, torch.zeros(3, dtype=torch.float64)),
    "t of flow": lambda: GAUSSIAN.flow(X, torch.zeros(3, dtype=torch.float64), 0.0, FLOW),
    "t as a text": lambda: GAUSSIAN.on(FLOW).predict(X, "late"),
    "x": lambda: GAUSSIAN.on(FLOW).predict([1.0], 0.5),
    "noise": lambda: GAUSSIAN.on(FLOW).endpoints([1]),
    "condition of a bed": lambda: GAUSSIAN.on(FLOW).predict(X, 0.5, [1]),
}


def name_of(case):
    return case.split(" of ")[0].split(" as ")[0].split(" beyond")[0]


@pytest.mark.parametrize("case", NONE_AS_NAME)
def test_none_is_no_name(case):
    name = "table of betas" if case == "table of betas" else name_of(case)
    with pytest.raises((UnknownNameError, ArgumentError), match=rf"^{name}: got None, allowed is"):
        NONE_AS_NAME[case]()


def test_an_unknown_name_of_any_type_is_told():
    for value in (None, 3, ("a",), ["a"]):
        assert "allowed is one of a, b" in str(unknown_name_error("thing", value, ["b", "a"]))
    assert "did you mean 'euler'?" in str(unknown_name_error("solver", "eular", ["euler"]))


@pytest.mark.parametrize("case", PATHS)
@pytest.mark.parametrize("value", ["edm", EDM, 3.0])
def test_what_is_no_path_is_refused(case, value):
    with pytest.raises(ArgumentError, match=rf"^{name_of(case)}: got"):
        PATHS[case](value)


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize(
    "value", ["grid", (1.0, 0.5, 0.0), torch.tensor([1.0, 0.5, 0.0])], ids=["text", "tuple", "tensor"]
)
def test_what_is_no_grid_is_refused(case, value):
    with pytest.raises(ArgumentError, match=rf"^{name_of(case)}: got"):
        GRIDS[case](value)


@pytest.mark.parametrize("case", CALLS)
def test_each_argument_is_refused_by_its_name(case):
    with pytest.raises(ArgumentError, match=rf"^{name_of(case)}: got"):
        CALLS[case]()


def test_bounds_in_the_wrong_order_are_told_as_they_are():
    with pytest.raises(ArgumentError, match=r"^high: got 0\.2, allowed is times from low, 0\.8, to 1"):
        LAW.draw(2, step=0, low=0.8, high=0.2)
    low = torch.tensor([0.1, 0.9], dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"^high: got 0\.5, allowed is times from low, 0\.9, to 1"):
        LAW.draw(2, step=0, low=low, high=0.5)
    bounded = LAW.draw(2, step=0, low=low, high=torch.tensor([0.1, 1.0], dtype=torch.float64))
    assert float(bounded[0]) == 0.1
    assert 0.9 <= float(bounded[1]) <= 1


def test_an_unknown_solver_of_one_evaluation_is_a_solver():
    with pytest.raises(UnknownNameError, match=r"^solver: got 'heun', allowed is one of ddim, dpm"):
        schedule.coefficients(GRID, "heun")
    with pytest.raises(UnknownNameError, match=r"^solver: got 'euler', allowed is one of heun, midpoint"):
        schedule.stages(GRID, "euler")


def test_what_was_allowed_still_is():
    assert schedule.LogNormal(0.0, 1.0).path == EDM()
    assert beds.Gaussian([0.0], [1.0]) == beds.Gaussian((0.0,), (1.0,))
    assert diffusion.Weighted(lambda rows: rows.t).kind == "x0"
    assert diffusion.Eulerian(warm_up=lambda step: 1.0).warm_up is not None
    assert schedule.optimise_grid(KNOWN, steps=[1, 2, 2]).keys() == {1, 2}
