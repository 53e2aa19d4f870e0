"""Recipes against their published mathematics, written down plainly: the same losses and the same gradients."""

import copy
import math

import pytest
import torch
from torch import nn

from distillrs import random, recipes
from distillrs.diffusion import (
    JVP,
    Batch,
    Eulerian,
    FlowMap,
    Jump,
    Network,
    SquaredError,
    TangentNormalisation,
    Teacher,
    Translated,
    trig_scale,
)  # fmt: skip
from distillrs.errors import ArgumentError
from distillrs.evaluate.beds import Gaussian
from distillrs.recipes._maps import doubling_levels, growing_levels
from distillrs.registry import recipe_cards
from distillrs.schedule import EDM, VP, Grid, LinearRamp, LogNormal, RectifiedFlow, Segments, Trig, karras, shift_time
from distillrs.step import Step

ROWS, WIDTH = 24, 3
STEP = Step(40, seed=2, total=100)
X0 = random.normal(ROWS, WIDTH, step=0, name="data", dtype=torch.float64)
LABEL = torch.arange(ROWS) % 4
NONE = torch.full((ROWS,), 4)


class Net(nn.Module):
    """A perceptron of the state, one or two times, and a class."""

    def __init__(self, times, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(WIDTH + times, 16, dtype=torch.float64)
        self.classes = nn.Embedding(5, 16, dtype=torch.float64)
        self.last = nn.Linear(16, WIDTH, dtype=torch.float64)

    def forward(self, x, *times, label=None):
        hidden = self.first(torch.cat([x, torch.stack(times, 1)], 1))
        if label is not None:
            hidden = hidden + self.classes(label)
        return self.last(torch.tanh(hidden))


def noise():
    return random.normal(ROWS, WIDTH, step=STEP, name="noise", dtype=torch.float64)


def drawn(objective):
    times = objective.pairs.draw(ROWS, step=STEP, name="t")
    return tuple(None if time is None else time[:, None] for time in times)


def same(objective, batch, network, expected):
    """The objective's loss and gradients against those of a loss written down plainly."""
    loss = objective(batch, STEP)
    found = torch.autograd.grad(loss.total, list(network.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(network.parameters()), allow_unused=True)
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    scale = max(float(grad.abs().max()) for grad in wanted if grad is not None)
    assert scale > 1e-6
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-8 * scale)
    return loss


def consistency(network, x, sigma, deviation=0.5, least=0.002):
    """f = c_skip x + c_out F(c_in x, log(sigma) / 4)."""
    skip = deviation**2 / ((sigma - least) ** 2 + deviation**2)
    out = deviation * (sigma - least) / (sigma**2 + deviation**2).sqrt()
    return skip * x + out * network(x / (sigma**2 + deviation**2).sqrt(), (sigma.log() / 4)[:, 0])


def denoised(network, x, sigma, deviation=0.5):
    skip = deviation**2 / (sigma**2 + deviation**2)
    out = deviation * sigma / (sigma**2 + deviation**2).sqrt()
    return skip * x + out * network(x / (sigma**2 + deviation**2).sqrt(), (sigma.log() / 4)[:, 0])


@pytest.mark.parametrize("average", [False, True])
def test_consistency_distillation(average):
    network, teacher, mean = Net(1, 1), Net(1, 2), Net(1, 3)
    objective = recipes.consistency_distillation(network, teacher, levels=18, average=mean if average else None)
    t, r, s = drawn(objective)
    sigma, nearer = 80 * t, 80 * s
    levels = karras(18).sigmas[:-1]
    assert all(float((levels - value).abs().min()) < 1e-12 for value in sigma[:, 0])
    assert torch.allclose(80 * r, torch.full_like(r, 0.002))
    x = X0 + sigma * noise()
    with torch.no_grad():
        slope = (x - denoised(teacher, x, sigma)) / sigma
        there = x + (nearer - sigma) * slope
        second = (there - denoised(teacher, there, nearer)) / nearer
        x_s = x + (nearer - sigma) * (slope + second) / 2
        target = consistency(mean if average else network, x_s, nearer)
    same(objective, Batch(X0), network, (consistency(network, x, sigma) - target).square().mean())


def test_consistency_training():
    network = Net(1, 1)
    objective = recipes.consistency_training(network)
    t, _, s = drawn(objective)
    z = noise()
    with torch.no_grad():
        target = consistency(network, X0 + 80 * s * z, 80 * s)
    expected = (consistency(network, X0 + 80 * t * z, 80 * t) - target).square().mean()
    same(objective, Batch(X0), network, expected)


def test_improved_consistency_training():
    network = Net(1, 1)
    objective = recipes.ict(network)
    t, _, s = drawn(objective)
    z, sigma, nearer = noise(), 80 * t, 80 * s
    with torch.no_grad():
        target = consistency(network, X0 + nearer * z, nearer)
    squares = (consistency(network, X0 + sigma * z, sigma) - target).square().sum(1)
    c = 0.00054 * math.sqrt(WIDTH)
    expected = (((squares + c * c).sqrt() - c) / (sigma - nearer)[:, 0]).mean()
    same(objective, Batch(X0), network, expected)
    levels = karras(doubling_levels(40, 100, 10, 1280)).sigmas[:-1]
    assert all(float((levels - value).abs().min()) < 1e-9 for value in sigma[:, 0])


def test_curricula_are_the_published_ones():
    assert [doubling_levels(index, 8000, 10, 1280) for index in (0, 999, 1000, 2000, 7000, 7999, 10**6)] == [
        11, 11, 21, 41, 1281, 1281, 1281
    ]  # fmt: skip
    assert doubling_levels(125, 1003, 10, 1280) == 21
    assert growing_levels(0, 1000, 2, 150) == 2
    assert growing_levels(1000, 1000, 2, 150) == 151
    assert growing_levels(500, 1000, 2, 150) == math.ceil(math.sqrt(0.5 * (151**2 - 4) + 4) - 1) + 1
    assert recipes.consistency_average_rate(Step(0, total=10)) == pytest.approx(0.9)
    assert recipes.consistency_average_rate(Step(10, total=10)) == pytest.approx(math.exp(2 * math.log(0.9) / 151))


def test_continuous_consistency_with_trigonometric_flow():
    """sCM: the tangent, its warm-up and its normalisation as published."""
    deviation, network, teacher = 0.5, Net(1, 1), Net(1, 2)
    path = Trig(deviation)
    adapter = lambda net: Network(net, times="t", clock="angle", path=path, scale_input=True)
    objective = FlowMap(
        adapter(network), path=path, head=Jump("F"), source=Teacher(adapter(teacher), "F"),
        residual=Eulerian(JVP(), scale=trig_scale, warm_up=LinearRamp(0.0, 1.0, steps=100)),
        pairs=Segments(1, LogNormal(-1.0, 1.4, path=path)), balance=[TangentNormalisation(0.1)],
        metric=SquaredError("mean"),
    )  # fmt: skip
    angle = drawn(objective)[0] * math.pi / 2
    x = angle.cos() * X0 + angle.sin() * deviation * noise()
    with torch.no_grad():
        velocity = deviation * teacher(x / deviation, angle[:, 0])
    both = angle.cos() * angle.sin()
    output, slope = torch.func.jvp(network, (x / deviation, angle[:, 0]), (both * velocity / deviation, both[:, 0]))
    ramp = 40 / 100
    tangent = -(angle.cos() ** 2) * (deviation * output - velocity) - ramp * (both * x + deviation * slope)
    tangent = tangent / (tangent.norm(dim=1, keepdim=True) + 0.1)
    expected = (output - output.detach() - tangent.detach()).square().mean()
    same(objective, Batch(X0), network, expected)


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_mean_flow(guidance):
    network = Net(2, 1)
    objective = recipes.mean_flow(network, guidance=guidance, condition_dropout=0.2 if guidance else 0.0)
    t, r, _ = drawn(objective)
    z = (1 - t) * X0 + t * noise()
    velocity, label = noise() - X0, LABEL
    if guidance:
        dropped = random.uniform(ROWS, step=STEP, name="condition_dropout", dtype=torch.float64) < 0.2
        assert 0 < int(dropped.sum()) < ROWS
        label = torch.where(dropped, NONE, LABEL)
        with torch.no_grad():
            empty = network(z, t[:, 0], torch.zeros(ROWS, dtype=torch.float64), label=NONE)
        guided = guidance * velocity + (1 - guidance) * empty
        velocity = torch.where(dropped[:, None], velocity, guided)
    function = lambda z, t, r: network(z, t, t - r, label=label)
    ones, zeros = torch.ones(ROWS, dtype=torch.float64), torch.zeros(ROWS, dtype=torch.float64)
    output, slope = torch.func.jvp(function, (z, t[:, 0], r[:, 0]), (velocity, ones, zeros))
    error = (output - (velocity - (t - r) * slope).detach()).square().sum(1)
    expected = (error / (error.detach() + 1e-3)).mean()
    loss = same(objective, Batch(X0, {"label": LABEL}, {"label": NONE}), network, expected)
    assert float(loss.terms["loss"]) == pytest.approx(float(error.mean().detach()))
    many = objective.pairs.draw(20_000, step=STEP, name="t")
    assert float((many[0] == many[1]).double().mean()) == pytest.approx(0.75, abs=0.015)
    differences = recipes.mean_flow(
        network, guidance=guidance, condition_dropout=0.2 if guidance else 0.0, difference=1e-4
    )
    other = differences(Batch(X0, {"label": LABEL}, {"label": NONE}), STEP)
    assert float(other.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)


@pytest.mark.parametrize("average", [False, True])
def test_shortcut(average):
    network, mean = Net(2, 1), Net(2, 2)
    objective = recipes.shortcut(network, bootstrap=0.5, average=mean if average else None)
    t, r, middle = drawn(objective)
    x = (1 - t) * X0 + t * noise()
    on = (t == r)[:, 0]
    assert 0 < int(on.sum()) < ROWS
    size = (t - r)[:, 0]
    told = torch.where(size / 2 <= 2**-7, torch.zeros_like(size), size / 2)
    target_network = mean if average else network
    with torch.no_grad():
        one = target_network(x, t[:, 0], told)
        half = x - size[:, None] / 2 * one
        two = target_network(half, middle[:, 0], told)
        target = torch.where(on[:, None], noise() - X0, (one + two) / 2)
    expected = (network(x, t[:, 0], size) - target).square().mean()
    loss = same(objective, Batch(X0), network, expected)
    assert {"on_diagonal", "off_diagonal"} <= set(loss.terms)


def test_progressive_distillation():
    network, teacher, count = Net(1, 1), Net(1, 2), 4
    objective = recipes.progressive_distillation(network, teacher, count)
    path = VP.cosine()
    t, r, _ = drawn(objective)
    assert torch.allclose((t * count).round(), t * count)
    alpha, sigma = path.alpha, path.sigma
    z = alpha(t) * X0 + sigma(t) * noise()

    def predicted(net, z, t):
        return alpha(t) * z - sigma(t) * net(z, t[:, 0])

    def ddim(z, t, s):
        x = predicted(teacher, z, t)
        return alpha(s) * x + sigma(s) / sigma(t) * (z - alpha(t) * x)

    with torch.no_grad():
        end = ddim(ddim(z, t, (t + r) / 2), (t + r) / 2, r)
        ratio = sigma(r) / sigma(t)
        target = (end - ratio * z) / (alpha(r) - ratio * alpha(t))
    weight = torch.maximum((alpha(t) / sigma(t)) ** 2, torch.ones_like(t))
    expected = (weight * (predicted(network, z, t) - target).square()).mean()
    same(objective, Batch(X0), network, expected)


def test_instaflow():
    network, ends = Net(1, 1), random.normal(ROWS, WIDTH, step=1, name="z", dtype=torch.float64)
    reflow = recipes.instaflow(network)
    t, _, _ = drawn(reflow)
    expected = (network((1 - t) * X0 + t * ends, t[:, 0]) - (ends - X0)).square().mean()
    same(reflow, Batch(X0, noise=ends), network, expected)
    distil = recipes.instaflow(network, "distil")
    one = torch.ones(ROWS, dtype=torch.float64)
    same(distil, Batch(X0, noise=ends), network, (ends - network(ends, one) - X0).square().mean())
    with pytest.raises(ArgumentError, match=r"^noise: got None"):
        distil(Batch(X0), STEP)


def test_boot():
    """The signal ODE of fixed noise, written down as published; the boundary on the rows that are there for it."""
    network, teacher, path = Net(1, 1), Net(1, 2), VP.cosine()
    objective = recipes.boot(network, teacher, (WIDTH,), gap=0.2, boundary=0.4, boundary_weight=0.7)
    one, s, t = drawn(objective)
    eps = noise()
    assert torch.equal(one, torch.ones_like(one))
    on = s == 1
    assert 0 < int(on.sum()) < ROWS
    assert torch.equal(t[~on], (s[~on] + 0.2).clamp(max=1))
    alpha, sigma = path.alpha, path.sigma
    # The published eps is pure noise; the state here keeps alpha(1) = 2.4e-5 of signal.
    signal = lambda net, x, time: alpha(time) * x - sigma(time) * net(x, time[:, 0])
    with torch.no_grad():
        g_t = network(sigma(one) * eps, t[:, 0])
        x_t = alpha(t) * g_t + sigma(t) * eps
        rho = sigma(s) * alpha(t) / (sigma(t) * alpha(s))
        target = (1 - rho) * signal(teacher, x_t, t) + rho * g_t
        target = torch.where(on, signal(teacher, sigma(one) * eps, one), target)
        weight = torch.where(on, torch.full_like(rho, 0.7), (1 - rho.where(~on, 0 * rho)) ** -2)
    expected = (weight * (network(sigma(one) * eps, s[:, 0]) - target).square()).mean()
    batch = Batch(noise=eps)
    found = objective(batch, STEP).total
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)
    parameters = list(network.parameters())
    grads = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, expected))
    for one, other in zip(*grads, strict=True):
        assert other is None or torch.allclose(one, other, rtol=2e-3, atol=1e-3 * float(other.abs().max()))


def test_boot_reads_no_data_and_learns_the_flow_of_a_gaussian():
    bed, path = Gaussian((1.5, -0.5), (0.5, 1.2)), VP.cosine()

    class Signal(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 2)).double()

        def forward(self, x, s):
            return self.layers(torch.cat([x, s[:, None]], 1))

    network = Signal()
    objective = recipes.boot(network, bed.on(path), (2,), solver="heun")
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    eps = random.normal(256, 2, step=0, name="held out", dtype=torch.float64)
    start, ends = torch.ones(256, dtype=torch.float64), torch.zeros(256, dtype=torch.float64)
    exact = bed.flow(float(path.sigma(1.0)) * eps, start, ends, path)
    errors = []
    for index in range(400):
        if index in (0, 399):
            with torch.no_grad():
                found = objective.map(float(path.sigma(1.0)) * eps, start, ends)
            errors.append(float((found - exact).square().mean().sqrt()))
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - index / 400)
        loss = objective(Batch(noise=random.normal(128, 2, step=index, name="noise", dtype=torch.float64)), index)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("perceptual", [False, True])
def test_rectified_flows_trained_better(perceptual):
    network, z = Net(1, 1), random.normal(ROWS, WIDTH, step=1, name="z", dtype=torch.float64)
    distance = lambda one, other: (one.sin() - other.sin()).abs().sum(1)
    objective = recipes.rfpp(network, distance if perceptual else None)
    t, _, _ = drawn(objective)
    x_t = (1 - t) * X0 + t * z
    v = network(x_t, t[:, 0])
    c = 0.00054 * WIDTH
    loss = (1 - t[:, 0]) * ((((v - (z - X0)).square().sum(1) + c * c).sqrt() - c) / WIDTH)
    if perceptual:
        loss = loss + distance(x_t - t * v, X0) / t[:, 0]
    same(objective, Batch(X0, noise=z), network, loss.mean())
    with pytest.raises(ArgumentError, match=r"^noise: got None"):
        objective(Batch(X0), STEP)


def test_a_denoiser_begins_as_a_velocity():
    """v = (x_t - D(x_t / (1 - t); t / (1 - t))) / t, and the exact velocity where the denoiser is exact."""
    net, own, path = Net(1, 1), EDM(80.0, 0.5), RectifiedFlow()
    adapter = Network(net, times="t", clock="log_sigma", clock_factor=0.25, path=own, scale_input=True)
    velocity = Translated(adapter, own, "F", path)
    t = torch.linspace(0.01, 80 / 81, ROWS, dtype=torch.float64)
    x = random.normal(ROWS, WIDTH, step=3, name="x", dtype=torch.float64)
    sigma = (t / (1 - t))[:, None]
    expected = (x - denoised(net, x / (1 - t[:, None]), sigma)) / t[:, None]
    assert torch.allclose(velocity(x, t, t), expected, rtol=1e-9)
    # Beyond the network's noise and at the data itself there is still a finite answer.
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(ROWS // 2)
    assert velocity(x, ends, ends).isfinite().all()
    for other in (VP.cosine(), RectifiedFlow()):
        for kind in ("noise", "score"):
            assert Translated(Network(net, times="t"), other, kind, path)(x, ends, ends).isfinite().all()
    assert not velocity.two_times
    assert velocity.replaced(Net(1, 5)).module is not net
    objective = recipes.rfpp(velocity)
    objective(Batch(X0, noise=x), STEP).total.backward()
    assert all(value.grad is not None for value in (net.first.weight, net.last.weight))


@pytest.mark.parametrize("off", ["lagrangian", "eulerian", "midpoint", "uniform"])
def test_flow_map_self_distillation(off):
    network = Net(2, 1)
    objective = recipes.flow_map_self_distillation(network, off, off_diagonal=0.5)
    with torch.no_grad():
        objective.learned[0].linear.bias.fill_(0.3)
    t, r, _ = drawn(objective)
    x = (1 - t) * X0 + t * noise()
    on = (t == r)[:, 0]
    assert 0 < int(on.sum()) < ROWS
    v = lambda x, t, r: network(x, t[:, 0], r[:, 0])
    jump = lambda x, t, r: x + (r - t) * v(x, t, r)
    if off == "lagrangian":
        value, rate = torch.func.jvp(lambda r: jump(x, t, r), (r,), (torch.ones_like(r),))
        loss = (rate - v(value.detach(), r, r).detach()).square()
    elif off == "eulerian":
        _, rate = torch.func.jvp(lambda t: jump(x, t, r), (t,), (torch.ones_like(t),))
        _, carried = torch.func.jvp(lambda x: jump(x, t, r), (x,), (v(x, t, t).detach(),))
        loss = (rate + carried.detach()).square()
    else:
        share = random.uniform(ROWS, step=STEP, name="middle", dtype=torch.float64)[:, None]
        share = torch.full_like(share, 0.5) if off == "midpoint" else share
        u = r + share * (t - r)
        target = ((1 - share) * v(x, t, u) + share * v(jump(x, t, u), u, r)).detach()
        loss = (v(x, t, r) - target).square()
    diagonal = (v(x, t, t) - (noise() - X0)).square()
    rows = torch.where(on, diagonal.mean(1), loss.mean(1))
    found = same(objective, Batch(X0), network, (math.exp(-0.3) * rows + 0.3).mean())
    assert float(found.terms["loss"]) == pytest.approx(float(rows.mean().detach()))
    assert objective.parameter_groups()["balance"]
    plain = recipes.flow_map_self_distillation(network, off, 0.5, learned_weight=False)
    assert float(plain(Batch(X0), STEP).total.detach()) == pytest.approx(float(rows.mean().detach()))


class Guidable(Net):
    """A network that is told a guidance."""

    def forward(self, x, *times, label=None, guidance=None):
        return super().forward(x, *times, label=label) + (0 if guidance is None else guidance[:, None].to(x).tanh())


def test_guided_distillation():
    network, teacher, path = Guidable(1, 1), Net(1, 2), VP.cosine()
    objective = recipes.guided_distillation(network, teacher)
    t, _, _ = drawn(objective)
    w = recipes.guidance_scales(ROWS, STEP)
    assert 0 <= float(w.min()) < 1 < 3 < float(w.max()) <= 4
    assert torch.equal(w[5:], recipes.guidance_scales(range(5, ROWS), STEP))
    z = path.alpha(t) * X0 + path.sigma(t) * noise()
    x_of = lambda v: path.alpha(t) * z - path.sigma(t) * v
    with torch.no_grad():
        given, none = (x_of(teacher(z, t[:, 0], label=label)) for label in (LABEL, NONE))
        target = (1 + w[:, None]) * given - w[:, None] * none
    weight = torch.maximum((path.alpha(t) / path.sigma(t)) ** 2, torch.ones_like(t))
    expected = (weight * (x_of(network(z, t[:, 0], label=LABEL, guidance=w)) - target).square()).mean()
    same(objective, Batch(X0, {"label": LABEL, "guidance": w}, {"label": NONE}), network, expected)
    with pytest.raises(ArgumentError, match=r"^condition: got \['label'\], allowed is an entry 'guidance'"):
        objective(Batch(X0, {"label": LABEL}, {"label": NONE}), STEP)
    halving = recipes.guided_distillation(Guidable(1, 3), network, "halving", 2)
    halving(Batch(X0, {"label": LABEL, "guidance": w}), STEP).total.backward()


def test_mean_flows_of_a_teacher():
    network, teacher = Net(2, 1), Net(1, 2)
    distil = recipes.mf_rae(network, teacher=teacher, shift=1.7, derivative=JVP())
    t, r, _ = drawn(distil)
    z = (1 - t) * X0 + t * noise()
    for objective, velocity in (
        (distil, teacher(z, t[:, 0]).detach()),
        (recipes.mf_rae(network, "tune", shift=1.7, derivative=JVP()), noise() - X0),
    ):
        function = lambda z, t, r: network(z, t, t - r)
        ones, zeros = torch.ones(ROWS, dtype=torch.float64), torch.zeros(ROWS, dtype=torch.float64)
        output, slope = torch.func.jvp(function, (z, t[:, 0], r[:, 0]), (velocity, ones, zeros))
        error = (output - (velocity - (t - r) * slope).detach()).square().sum(1).square()
        same(objective, Batch(X0), network, (error / (error.detach() + 1e-3)).mean())
    # Central differences of the paper's step are close to the derivative: in float64 within 1e-3.
    central = recipes.mf_rae(network, teacher=teacher, shift=1.7)(Batch(X0), STEP)
    exact = distil(Batch(X0), STEP)
    assert float(central.terms["loss"]) == pytest.approx(float(exact.terms["loss"]), rel=1e-3)


def test_any_two_states_of_a_path_say_a_mean_velocity():
    network, path = Net(2, 1), RectifiedFlow()
    grid = Grid(shift_time(torch.linspace(1, 0, 17, dtype=torch.float64), 1.7), path)
    states = random.normal(ROWS, 17, WIDTH, step=4, name="states", dtype=torch.float64)
    objective = recipes.mf_rae(network, "mid_training", grid=grid)
    t, r, _ = drawn(objective)
    i, j = ((grid.times[None] - time).abs().argmin(1) for time in (t, r))
    assert bool((i < j).all())
    rows = torch.arange(ROWS)
    x, end = states[rows, i], states[rows, j]
    expected = (network(x, t[:, 0], (t - r)[:, 0]) - (x - end) / (t - r)).square().mean()
    same(objective, Batch(path_states=states), network, expected)


def test_recipes_train_a_map():
    """A few hundred steps of mean flow on two points bring one step of sampling near the data."""
    torch.manual_seed(0)
    data = torch.tensor([[2.0, 0.0, -1.0], [-2.0, 1.0, 1.0]], dtype=torch.float64)[torch.arange(64) % 2]
    network = Net(2, 5)
    objective = recipes.mean_flow(network, off_diagonal=0.5)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2)
    before = copy.deepcopy(network)
    for index in range(250):
        loss = objective(Batch(data), index)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    start = random.normal(64, WIDTH, step=1, name="start", dtype=torch.float64)
    one = torch.ones(64, dtype=torch.float64)
    distances = [
        float(torch.cdist((start - net(start, one, one)).detach(), data[:2]).min(1).values.mean())
        for net in (before, network)
    ]
    assert distances[1] < 0.8 * distances[0]


def test_recipes_of_few_step_generators_have_cards_that_say_where_they_belong():
    cards = {card.id: card for card in recipe_cards("diffusion")}
    assert set(cards) == {
        "boot", "consistency_distillation", "consistency_training", "flow_map_self_distillation", "freeflow",
        "guided_distillation", "ict", "instaflow", "mean_flow", "mf_rae", "progressive_distillation", "rcm", "rfpp",
        "shortcut", "diff_instruct", "dmd2", "f_distill", "sid", "swiftbrush", "tdm", "uni_instruct",
    }  # fmt: skip
    assert all(card.engine != "diffusion" for card in recipe_cards() if card.id not in cards)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipes.ict(Net(1), 20, 10), "^levels: got"),
        (lambda: recipes.ict(Net(1), start_levels=10.5), "^start_levels: got 10.5"),
        (lambda: recipes.ict(Net(1), end_levels="20"), "^end_levels: got '20'"),
        (lambda: recipes.ict(Net(1), steps=100.5), "^steps: got 100.5"),
        (lambda: recipes.consistency_training(Net(1), start_levels=2.5), "^start_levels: got 2.5"),
        (lambda: recipes.consistency_training(Net(1), steps=0), "^steps: got 0"),
        (lambda: recipes.consistency_distillation(Net(1), Net(1), levels=18.5), "^levels: got 18.5"),
        (lambda: recipes.consistency_distillation(Net(1), "teacher"), "^teacher: got 'str'"),
        (lambda: recipes.mf_rae(Net(2), "distil", teacher="t"), "^teacher: got 'str'"),
        (lambda: recipes.mf_rae(Net(2), "mid_training", grid=(1.0, 0.0)), "^grid: got"),
        (lambda: recipes.boot(Net(1), Net(1), 3), "^shape: got 3"),
        (lambda: recipes.boot(Net(1), Net(1), (WIDTH,))(Batch(noise=X0[:, :1]), 0), "^noise: got"),
        (lambda: recipes.consistency_training(Net(1))(Batch(X0), 3), "^steps: got None"),
        (lambda: recipes.consistency_distillation(Net(1), Net(1), solver="rk4"), "^solver: got 'rk4'"),
        (lambda: recipes.progressive_distillation(Net(1), Net(1), 0), "^sampling_steps: got 0"),
        (lambda: recipes.shortcut(Net(2), bootstrap=1.5), "^bootstrap: got 1.5"),
        (lambda: recipes.instaflow(Net(1), "refine"), "^stage: got 'refine'"),
        (lambda: recipes.mean_flow(Net(2), off_diagonal=2.0), "^diagonal: got"),
        (lambda: recipes.mean_flow(Net(2), guidance=2.0)(Batch(X0), 0), "^null_condition: got None"),
        (lambda: recipes.boot(Net(1), Net(1), (WIDTH,), solver="euler"), "^solver: got 'euler'"),
        (lambda: recipes.boot(Net(1), Net(1), (WIDTH,), gap=0.0), "^gap: got 0.0"),
        (lambda: recipes.boot(Net(1), Net(1), (WIDTH,), boundary_weight=-1.0), "^boundary_weight: got -1.0"),
        (lambda: recipes.flow_map_self_distillation(Net(2), "shortcut"), "^off: got 'shortcut'"),
        (lambda: recipes.guided_distillation(Net(1), Net(1), "both"), "^stage: got 'both'"),
        (lambda: recipes.guidance_scales(4, 0, 3.0, 2.0), "^high: got"),
        (lambda: recipes.mf_rae(Net(2)), "^teacher: got None"),
        (lambda: recipes.mf_rae(Net(2), "mid_training"), "^grid: got None"),
        (lambda: recipes.mf_rae(Net(2), "first"), "^stage: got 'first'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
