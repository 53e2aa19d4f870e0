"""Flow maps beside distribution matching, against their published mathematics written down plainly."""

import copy
import math

import pytest
import torch
from torch import nn

from distillrs import random, recipes
from distillrs.diffusion import (
    JVP,
    Batch,
    Central,
    Eulerian,
    FlowMap,
    Matcher,
    Network,
    Solver,
    StateMap,
    Translated,
)
from distillrs.errors import ArgumentError
from distillrs.evaluate import generation
from distillrs.evaluate.beds import Gaussian
from distillrs.recipes.rcm import _OfFlow
from distillrs.schedule import LogNormal, RectifiedFlow, Segments, Shifted, Trig, Uniform, shift_time
from distillrs.step import Step

ROWS, WIDTH = 24, 3
STEP = Step(40, seed=2, total=100)
X0 = random.normal(ROWS, WIDTH, step=0, name="data", dtype=torch.float64)
LABEL, NONE = torch.arange(ROWS) % 4, torch.full((ROWS,), 4)
ONE = torch.ones(ROWS, dtype=torch.float64)


class Net(nn.Module):
    """A perceptron of the state, its time, and a class."""

    def __init__(self, seed=0, width=WIDTH, hidden=16):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(width + 1, hidden, dtype=torch.float64)
        self.classes = nn.Embedding(5, hidden, dtype=torch.float64)
        self.last = nn.Linear(hidden, width, dtype=torch.float64)

    def forward(self, x, t, label=None):
        hidden = self.first(torch.cat([x, t[:, None]], 1))
        return self.last(torch.tanh(hidden if label is None else hidden + self.classes(label)))


def normal(name):
    return random.normal(ROWS, WIDTH, step=STEP, name=name, dtype=torch.float64)


def same(objective, batch, group, expected, turn=None):
    loss = objective(batch, STEP, turn=turn)
    found = torch.autograd.grad(loss.total, group, allow_unused=True)
    wanted = torch.autograd.grad(expected, group, allow_unused=True, retain_graph=True)
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    scale = max(float(grad.abs().max()) for grad in wanted if grad is not None)
    assert scale > 1e-6
    for one, other in zip(found, wanted, strict=True):
        one, other = (torch.zeros(1).double() if part is None else part for part in (one, other))
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8 * scale)
    return loss


def guided(net, x, t, w):
    one, other = net(x, t, LABEL), net(x, t, NONE)
    return other + w * (one - other)


def prediction_of(network, teacher, r, z, w=None):
    """|F - sg(u(f, 1 - d) - d dF/dd)|^2 over the mean of its elements, with d = 1 - r."""
    d = (1 - r)[:, None]
    label = None if w is None else LABEL
    output, slope = torch.func.jvp(lambda d: network(z, 1 - d, label), (1 - r,), (torch.ones_like(r),))
    with torch.no_grad():
        f = z - d * output
        u = teacher(f, r) if w is None else guided(teacher, f, r, w)
    error = (output - (u - d * slope).detach()).square().mean(1)
    return error / (error.detach() + 1e-3).sqrt()


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_freeflow(guidance):
    network, teacher, fake, z = Net(1), Net(2), Net(3), normal("noise")
    label = None if guidance is None else LABEL
    conditions = () if guidance is None else ({"label": LABEL}, {"label": NONE})
    batch = Batch(None, *conditions, noise=z)
    r = Uniform().draw(ROWS, step=STEP, name="t")
    predicted = prediction_of(network, teacher, r, z, guidance).mean()
    alone = recipes.freeflow(network, teacher, (WIDTH,), guidance=guidance)
    assert isinstance(alone, FlowMap)
    same(alone, batch, list(network.parameters()), predicted)
    objective = recipes.freeflow(
        network, teacher, (WIDTH,), fake, guidance, prediction=0.7, correction=1.3, low=0.1, high=0.9
    )
    assert isinstance(objective, Matcher)
    law = Uniform(0.1, 0.9)
    output = network(z, torch.zeros_like(ONE), label)
    x = z - output
    t, n = law.draw(ROWS, step=STEP, name="term/match/t"), normal("term/match/noise")
    with torch.no_grad():
        state = (1 - t)[:, None] * x + t[:, None] * n
        u = teacher(state, t) if guidance is None else guided(teacher, state, t, guidance)
        gap = (fake(state, t, label) - u) / ((n - x) - u).abs().mean(1, keepdim=True)
        g = gap / WIDTH
    # The published gradient, F(z, 1)^T sg(v_N - u); what is reported is half the square of the move.
    corrected = (output * g).sum(1) - (output * g).sum(1).detach() + 0.5 * gap.square().mean(1)
    group = list(network.parameters())
    same(objective, batch, group, 0.7 * predicted + 1.3 * corrected.mean(), "generator")
    x = x.detach()
    t, n = law.draw(ROWS, step=STEP, name="critic/critic/t"), normal("critic/critic/noise")
    fitted = (fake((1 - t)[:, None] * x + t[:, None] * n, t, label) - (n - x)).square().mean()
    same(objective, batch, list(fake.parameters()), fitted, "critic")
    assert all(value.grad is None for value in teacher.parameters())
    several = recipes.freeflow(network, teacher, (WIDTH,), fake, ratio=3)
    assert [len(several.turns(index)) for index in range(4)] == [2, 1, 1, 2]


def test_freeflow_from_noise_alone_learns_the_flow_of_a_gaussian():
    """Without a single example; and the correction keeps a map that is right already."""
    bed, path = Gaussian((1.5, -0.5), (0.5, 1.2)), RectifiedFlow()

    def run(objective, network, steps, first):
        groups = objective.parameter_groups()
        optimisers = {turn: torch.optim.Adam(group, first) for turn, group in groups.items()}
        for index in range(steps):
            # It brings no examples: only how many rows there are, and their noise.
            batch = Batch(noise=random.normal(128, 2, step=index, name="noise", dtype=torch.float64))
            for turn in objective.turns(index):
                optimisers[turn].param_groups[0]["lr"] = first * (1 - index / steps)
                loss = objective(batch, index, turn=turn)
                optimisers[turn].zero_grad()
                loss.total.backward()
                optimisers[turn].step()
        noise = random.normal(512, 2, step=0, name="held out", dtype=torch.float64)
        start, ends = torch.ones(512, dtype=torch.float64), torch.zeros(512, dtype=torch.float64)
        exact = bed.flow(noise, start, ends, path)
        with torch.no_grad():
            return generation.paired_rmse(objective.map(noise, start, ends), exact)

    network = Net(0, 2, 48)
    teacher = bed.on(path)
    before = run(recipes.freeflow(network, teacher, (2,)), network, 0, 1e-2)
    alone = run(recipes.freeflow(network, teacher, (2,)), network, 400, 1e-2)
    assert alone < 0.06 * before
    critic = Net(1, 2, 48)
    assert run(recipes.freeflow(network, teacher, (2,), critic, correction=0.1, ratio=2), network, 60, 2e-3) < 2 * alone


def of_flow(net, x, angle, label=None):
    """F of a velocity of the rectified flow: k (v(k x, k sin) + (cos - sin) x)."""
    k = 1 / (angle.cos() + angle.sin())
    v = net(k * x, (k * angle.sin())[:, 0], label)
    return k * (v + (angle.cos() - angle.sin()) * x)


def rcm_consistency(network, score, angle, ramp, label=None, constant=0.1):
    x = angle.cos() * X0 + angle.sin() * normal("noise")
    both = angle.cos() * angle.sin()
    with torch.no_grad():
        velocity = score(x, angle)
    function = lambda x, angle: of_flow(network, x, angle, label)
    output, slope = torch.func.jvp(function, (x, angle), (both * velocity, both))
    g = -(angle.cos() ** 2) * (output - velocity) - ramp * (both * x + slope)
    g = g / (g.norm(dim=1, keepdim=True) + constant)
    return (output - output.detach() - g.detach()).square().sum(1)


@pytest.mark.parametrize("guidance", [None, 2.5])
def test_rcm(guidance):
    network, teacher, fake, path = Net(1), Net(2), Net(3), Trig(1.0)
    conditions = () if guidance is None else ({"label": LABEL}, {"label": NONE})
    label, batch = (None if guidance is None else LABEL), Batch(X0, *conditions)

    def score(x, angle):
        if guidance is None:
            return of_flow(teacher, x, angle)
        one, other = (of_flow(teacher, x, angle, label) for label in (LABEL, NONE))
        return other + guidance * (one - other)

    objective = recipes.rcm(network, teacher, fake, guidance, levels=(1.0, 0.5), warm_up=100)
    group = list(network.parameters())
    # log tan(a) ~ N(.7, 1.6^2), and the shift by 5 on the clock of the rectified flow.
    angle = LogNormal(-1.4, 3.2, of="log_snr", path=path).draw(ROWS, step=STEP, name="t")[:, None] * math.pi / 2
    scores = torch.erfinv(2 * Uniform().draw(9, step=0) - 1).sort().values * math.sqrt(2)
    inside = LogNormal(-1.4, 3.2, of="log_snr", path=path).cdf(torch.atan((0.7 + 1.6 * scores).exp()) * 2 / math.pi)
    assert torch.allclose(inside, torch.special.ndtr(scores), atol=1e-9)
    first = rcm_consistency(network, score, angle, 0.4, label)
    law = _OfFlow(Shifted(Uniform(), 5.0), path)
    share = Uniform().draw(ROWS, step=STEP, name="term/match/t")
    s = shift_time(share, 5.0)[:, None]
    noised = torch.atan2(s, 1 - s)
    assert torch.allclose(law.draw(ROWS, step=STEP, name="term/match/t"), noised[:, 0] * 2 / math.pi)
    assert torch.allclose(law.cdf(noised[:, 0] * 2 / math.pi), share)
    x, last = normal("noise"), torch.full((ROWS, 1), math.pi / 2, dtype=torch.float64)
    clean = lambda net, x, angle: angle.cos() * x - angle.sin() * of_flow(net, x, angle, label)
    if int(random.integers(range(1), 2, step=STEP, name="exit")):
        with torch.no_grad():
            x = clean(network, x, last)
        last = last / 2
        x = last.cos() * x + last.sin() * normal("renoise/0")
    x = clean(network, x, last)
    with torch.no_grad():
        x_t = noised.cos() * x + noised.sin() * normal("term/match/noise")
        f, r = clean(fake, x_t, noised), noised.cos() * x_t - noised.sin() * score(x_t, noised)
        gap = (f - r) / (x - r).abs().mean(1, keepdim=True)
    second = 0.5 * (x - (x - gap).detach()).square().mean(1)
    loss = same(objective, batch, group, 100 * first.mean() + second.mean(), "generator")
    assert float(loss.terms["consistency"]) == pytest.approx(float(first.mean().detach()))
    # Weight 0 on either is the other alone.
    same(recipes.rcm(network, teacher, fake, guidance, matching=0.0, levels=(1.0, 0.5), warm_up=100), batch, group,
         100 * first.mean(), "generator")  # fmt: skip
    same(recipes.rcm(network, teacher, fake, guidance, consistency=0.0, levels=(1.0, 0.5)), batch, group,
         second.mean(), "generator")  # fmt: skip
    x, t = x.detach(), law.draw(ROWS, step=STEP, name="critic/critic/t")[:, None] * math.pi / 2
    x_t = t.cos() * x + t.sin() * normal("critic/critic/noise")
    fitted = ((clean(fake, x_t, t) - x) / t.sin()).square().mean()
    same(objective, batch, list(fake.parameters()), fitted, "critic")
    # One of five iterations is the student's: four updates of the critic for each.
    assert [len(objective.turns(index)) for index in range(5)] == [2, 1, 1, 1, 2]


def test_the_derivatives_of_rcm_agree():
    network, teacher, fake = Net(1), Net(2), Net(3)
    total = lambda derivative: float(
        recipes.rcm(network, teacher, fake, matching=0.0, warm_up=0, derivative=derivative)(
            Batch(X0), STEP, turn="generator"
        ).total.detach()
    )
    assert total(Central(1e-4)) == pytest.approx(total(None), rel=1e-5)
    # A discrete step of the teacher, over its length, is the same derivative of the map to first order.
    flow = recipes.rcm(network, teacher, fake).auxiliaries[0].objective
    rates = []
    for residual, scale in (
        (Eulerian(JVP(), scale="state"), 1.0),
        (Eulerian(Central(1e-4), scale="state"), 1.0),
        (Eulerian(Solver(1e-4, "euler")), 1e-4),
    ):
        seen = []

        def metric(prediction, target, seen=seen):
            seen.append((prediction - target).detach())
            return seen[0].square().mean(1)

        pairs = Segments(1, Uniform(0.05, 0.95))
        one = FlowMap(flow.map.network, path=flow.map.path, head=flow.map.head, source=flow._source[0],
                      residual=residual, pairs=pairs, metric=metric)  # fmt: skip
        one(Batch(X0), STEP)
        rates.append(seen[0] / scale)
    for other in rates[1:]:
        assert float((other - rates[0]).norm()) < 1e-3 * float(rates[0].norm())


def test_adapters_and_plain_networks_are_told_apart():
    """A network that predicts F on the trigonometric path is not wrapped again, and both are one map."""
    path, net = Trig(1.0), Net(1)
    wrapped = Translated(Network(net, times="t"), RectifiedFlow(), "velocity", path, "F")
    plain, given = (recipes.rcm(one, Net(2), Net(3)).map for one in (net, wrapped))
    start = random.normal(ROWS, WIDTH, step=1, name="start", dtype=torch.float64)
    for end in (0.0, 0.3):
        assert torch.equal(plain(start, ONE, end * ONE), given(start, ONE, end * ONE))
    assert isinstance(plain, StateMap)
    # At pure noise the map to the data is the flow's own step.
    assert torch.allclose(plain(start, ONE, 0 * ONE), start - net(start, ONE), atol=1e-12)
    copied = recipes.rcm(copy.deepcopy(net), Net(2), Net(3)).map
    assert torch.equal(plain(start, ONE, 0 * ONE), copied(start, ONE, 0 * ONE))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), power=-1.0), "^power: got -1.0"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), Net(), ratio=0), "^ratio: got 0"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), Net(), low=0.9, high=0.2), "^high: got"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), Net(), correction=float("inf")), "^correction: got inf"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), prediction="1"), "^prediction: got '1'"),
        (lambda: recipes.freeflow(Net(), Net(), WIDTH), "^shape: got 3"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), guidance="2"), "^guidance: got '2'"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), guidance=float("nan")), "^guidance: got nan"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), power="1"), "^power: got '1'"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), Net(), low="0"), r"^high: got \('0', 0.98\)"),
        (lambda: recipes.freeflow(Net(), 3, (WIDTH,)), "^teacher: got 'int'"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), 3), "^critic: got 'int'"),
        (lambda: recipes.rcm(3, Net(), Net()), "^network: got 'int'"),
        (lambda: recipes.rcm(Net(), 3, Net()), "^teacher: got 'int'"),
        (lambda: recipes.rcm(Net(), Net(), None), "^critic: got 'NoneType'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), guidance="2"), "^guidance: got '2'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), consistency="1"), "^consistency: got '1'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), matching=float("inf")), "^matching: got inf"),
        (lambda: recipes.rcm(Net(), Net(), Net(), mean="0.7"), "^mean: got '0.7'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), std="1.6"), "^std: got '1.6'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), shift="5"), "^shift: got '5'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), warm_up="9"), "^warm_up: got '9'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), warm_up=2.5), "^warm_up: got 2.5"),
        (lambda: recipes.freeflow(Net(), Net(), (WIDTH,), guidance=2.0)(Batch(size=4), 0), "^null_condition: got None"),
        (lambda: recipes.rcm(Net(), Net(), Net(), shift=0.0), "^shift: got 0.0"),
        (lambda: recipes.rcm(Net(), Net(), Net(), constant=0.0), "^constant: got 0.0"),
        (lambda: recipes.rcm(Net(), Net(), Net(), levels=(0.5, 1.0)), "^times: got '1.0 after 0.5'"),
        (lambda: recipes.rcm(Net(), Net(), Net(), warm_up=-5), "^warm_up: got -5"),
        (lambda: recipes.rcm(Net(), Net(), Net(), std=0.0), "^std: got 0.0"),
        (
            lambda: recipes.rcm(Net(), Net(), Net(), shape=(WIDTH,))(Batch(size=4), 0, turn="generator"),
            "^x0: got None",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
