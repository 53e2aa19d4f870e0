"""For the map of a known flow every residual vanishes, and for one that is off by a hundredth none does."""

import math

import pytest
import torch
from torch import nn

from distillrs import random
from distillrs.diffusion import (
    JVP,
    AverageVelocity,
    Batch,
    Central,
    ConsistencyBoundary,
    Diagonal,
    Endpoint,
    Eulerian,
    FlowMap,
    Jump,
    Lagrangian,
    LatentBoundary,
    Network,
    OnAndOff,
    PriorOnly,
    Self,
    Semigroup,
    Solver,
    StateMap,
    TeacherPath,
    sample,
    trig_scale,
)  # fmt: skip
from distillrs.evaluate.beds import Gaussian, LineMixture
from distillrs.schedule import EDM, VP, RectifiedFlow, Segments, SubVP, Triangle, Trig, Uniform, spaced
from distillrs.step import Step

BED = Gaussian((0.7, -0.4), (0.6, 1.3))
MIXTURE = LineMixture((-1.5, 0.2, 2.0), (0.3, 0.5, 0.4), dimensions=2)
PATHS = [RectifiedFlow(), Trig(0.7), VP(), SubVP(), EDM(5.0)]
LAW = Uniform(0.1, 0.9)
SHORT = Triangle(diagonal=0.2, law=LAW, maximum_gap=0.05)
WIDE = Triangle(diagonal=0.2, law=LAW)


class Exact(nn.Module):
    """The network whose map is the exact flow, times a factor."""

    def __init__(self, bed, path, head, factor=1.0):
        super().__init__()
        self.bed, self.path, self.head = bed, path, head
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x, t, r):
        state, network = (weight[:, None] for weight in self.head.weights(self.path, t, r))
        teacher = self.bed.on(self.path)
        on = self.head.output_of_velocity(self.path, teacher.velocity(x, t), x, t)
        near = ((t - r).abs() < 1e-3)[:, None]
        off = (self.bed.flow(x, t, r, self.path) - state * x) / torch.where(near, torch.ones_like(network), network)
        return self.factor * torch.where(near, on, off)


def root_of_loss(bed, path, head, factor, residual, pairs=WIDE, states=None, batch=None, source="teacher"):
    objective = FlowMap(
        Network(Exact(bed, path, head, factor)), path=path, head=head, residual=residual, states=states, pairs=pairs,
        source=bed.on(path) if source == "teacher" else source,
    )  # fmt: skip
    batch = Batch(bed.sample(24, step=7)) if batch is None else batch
    return math.sqrt(float(objective(batch, 5).terms["loss"]))


MODES = {
    "diagonal": (Diagonal(), WIDE),
    "eulerian jvp": (Eulerian(JVP()), WIDE),
    "eulerian central": (Eulerian(Central(1e-3)), WIDE),
    "eulerian state": (Eulerian(JVP(), scale="state"), WIDE),
    "eulerian apart": (Eulerian(JVP(), differentiate=True), WIDE),
    "eulerian apart central": (Eulerian(Central(1e-3), differentiate=True), WIDE),
    "eulerian solver": (Eulerian(Solver(0.01, "heun")), WIDE),
    "lagrangian jvp": (Lagrangian(JVP()), WIDE),
    "lagrangian central": (Lagrangian(Central(1e-3)), WIDE),
    "lagrangian full": (Lagrangian(JVP(), differentiate=True), WIDE),
    "lagrangian full central": (Lagrangian(Central(1e-3), differentiate=True), WIDE),
    "lagrangian solver": (Lagrangian(Solver(0.01, "heun")), WIDE),
    "semigroup": (Semigroup(), WIDE),
    "semigroup uniform": (Semigroup(middle="uniform"), WIDE),
    "semigroup state": (Semigroup(space="state"), WIDE),
    "semigroup solver": (Semigroup(Solver(None, "heun")), SHORT),
    "self": (OnAndOff(Diagonal(), Lagrangian(JVP(), source=Self())), WIDE),
}


HEADS = [AverageVelocity(), Jump("velocity"), Jump("noise"), Jump("x0")]
# What divides by a derivative of B is tried with the heads that it is made for.
DIVIDING = ("eulerian jvp", "eulerian central", "lagrangian jvp", "lagrangian central", "self")
CASES = [
    (mode, head, path)
    for mode in MODES
    for head in HEADS
    for path in PATHS
    if mode not in DIVIDING or head == HEADS[0] or (head == HEADS[1] and path == RectifiedFlow())
]


# The other paths and kinds by a few modes, one of each way to differentiate.
FEW = ("diagonal", "eulerian jvp", "eulerian state", "lagrangian full", "semigroup state")
COSINE, TABLE = VP.cosine(), VP.betas(steps=50)
CASES += [(mode, AverageVelocity(), path) for mode in FEW for path in (COSINE, TABLE)]
CASES += [
    (mode, Jump("v"), path)
    for mode in FEW
    for path in (RectifiedFlow(), VP(), COSINE, TABLE, EDM(5.0))
    if mode not in DIVIDING
]


@pytest.mark.parametrize(("mode", "head", "path"), CASES, ids=str)
def test_residuals_vanish_for_the_exact_flow_alone(mode, head, path):
    residual, pairs = MODES[mode]
    exact = root_of_loss(BED, path, head, 1.0, residual, pairs)
    off = root_of_loss(BED, path, head, 1.01, residual, pairs)
    bound = 1e-7 if not any(word in mode for word in ("central", "solver")) else 1e-3
    assert exact < bound
    assert off > 10 * exact
    assert off > 1e-6


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("mode", ["eulerian jvp", "lagrangian jvp", "semigroup", "diagonal"])
def test_residuals_vanish_for_a_flow_that_bends(path, mode):
    residual, pairs = MODES[mode]
    exact = root_of_loss(MIXTURE, path, AverageVelocity(), 1.0, residual, pairs)
    assert exact < 1e-4
    assert root_of_loss(MIXTURE, path, AverageVelocity(), 1.01, residual, pairs) > 10 * exact


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_stored_paths_and_the_prior_give_residuals_of_the_same_flow(path):
    head, grid = AverageVelocity(), spaced(12, path, start=0.95, end=0.05)
    start = BED.sample(24, step=3) * float(path.sigma(0.95)) + 0.1
    states = torch.stack([BED.flow(start, 0.95, float(time), path) for time in grid.times], 1)
    batch = Batch(path_states=states)
    for residual in (Endpoint(), Endpoint(space="state"), Eulerian(), Semigroup(), Lagrangian()):
        exact = root_of_loss(BED, path, head, 1.0, residual, states=TeacherPath(grid), batch=batch)
        assert exact < 1e-6, residual
        assert root_of_loss(BED, path, head, 1.01, residual, states=TeacherPath(grid), batch=batch) > 10 * exact
    prior = PriorOnly((2,), torch.float64)
    for residual in (Lagrangian(), Semigroup(), Lagrangian(Solver(0.01, "heun"))):
        exact = root_of_loss(BED, path, head, 1.0, residual, states=prior, batch=Batch(size=24))
        assert exact < 1e-3, residual
        assert root_of_loss(BED, path, head, 1.01, residual, states=prior, batch=Batch(size=24)) > 10 * exact


class ExactEnd(nn.Module):
    """The network whose map by a head that ends at one time is the exact flow to there, times a factor."""

    def __init__(self, path, head, factor):
        super().__init__()
        self.path, self.head = path, head
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x, t):
        end = torch.full_like(t, self.head.end(self.path))
        state, network = (weight[:, None] for weight in self.head.weights(self.path, t, end))
        return self.factor * (BED.flow(x, t, end, self.path) - state * x) / network


@pytest.mark.parametrize(
    ("head", "path"),
    [
        (ConsistencyBoundary(), EDM(5.0)),
        (ConsistencyBoundary(0.05), VP()),
        (LatentBoundary("noise"), VP()),
        (LatentBoundary("v"), COSINE),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("residual", "bound"), [(Eulerian(JVP(), scale="state"), 1e-7), (Eulerian(Solver(0.01, "heun")), 1e-3)], ids=str
)
def test_maps_that_end_at_one_time_have_no_residual_for_the_exact_flow(head, path, residual, bound):
    def root(factor):
        network = Network(ExactEnd(path, head, factor), times="t")
        objective = FlowMap(
            network, path=path, head=head, residual=residual, pairs=WIDE, source=BED.on(path)
        )  # fmt: skip
        return math.sqrt(float(objective(Batch(BED.sample(24, step=7)), 5).terms["loss"]))

    exact = root(1.0)
    assert exact < bound
    assert root(1.01) > max(10 * exact, 1e-6)


def test_the_head_of_trigonometric_flow():
    """cos(a - b) x - sin(a - b) sigma_data F with the angles a and b; its tangent is the published one."""
    path, head = Trig(0.7), Jump("F")
    t = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    r = torch.tensor([0.2, 0.5, 0.0], dtype=torch.float64)
    state, network = head.weights(path, t, r)
    angle = math.pi / 2 * (t - r)
    assert torch.allclose(state, angle.cos())
    assert torch.allclose(network, -0.7 * angle.sin(), atol=1e-15)
    residual = Eulerian(JVP(), scale=trig_scale)
    exact = root_of_loss(BED, path, head, 1.0, residual)
    assert exact < 1e-7
    assert root_of_loss(BED, path, head, 1.01, residual) > 1e-4


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("method", ["ode", "renoise", "anchor", "stochastic"])
def test_samplers_of_the_exact_map(path, method):
    """The flow's samples are exact in any number of steps; the others have the distribution, not the pairing."""
    head = AverageVelocity()
    student = StateMap(Network(Exact(BED, path, head)), path, head)
    noise = random.normal(4000, 2, step=0, name="n", dtype=torch.float64)
    grid = spaced(4, path, start=0.98, end=0.02)
    start = noise * float(path.sigma(0.98))
    found = sample(student, noise, grid, method=method)
    paired = BED.flow(start, 0.98, 0.02, path)
    if method == "ode":
        assert torch.allclose(found, paired, atol=1e-9)
    elif method in ("renoise", "stochastic"):
        assert float((found - paired).square().mean().sqrt()) > 0.3
    marginal = BED.sample(4000, step=1)
    assert found.mean(0).tolist() == pytest.approx(marginal.mean(0).tolist(), abs=0.25)
    every = sample(student, noise[:3], grid, method=method, every=True)
    assert every.shape == (5, 3, 2)
    assert torch.allclose(every[-1], found[:3])
    again = sample(student, noise[1:3], grid, method=method, step=Step(0, first_unit=1))
    assert torch.allclose(again, found[1:3])


def test_segments_end_where_the_law_says():
    path = RectifiedFlow()
    pairs = Segments(4, LAW)
    assert root_of_loss(BED, path, AverageVelocity(), 1.0, Eulerian(), pairs) < 1e-6
    assert root_of_loss(BED, path, AverageVelocity(), 1.01, Eulerian(), pairs) > 1e-3
