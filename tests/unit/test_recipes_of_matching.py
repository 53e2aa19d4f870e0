"""Recipes of distribution matching against their published mathematics, written down plainly."""

import itertools

import pytest
import torch
from torch import nn

from distillrs import ops, random, recipes
from distillrs.diffusion import Batch, LowRank, SharedBase
from distillrs.errors import ArgumentError
from distillrs.schedule import VP, Grid, LogNormal, RectifiedFlow, Uniform, karras, spaced
from distillrs.step import Step

ROWS, WIDTH = 24, 3
STEP = Step(40, seed=2, total=100)
X0 = random.normal(ROWS, WIDTH, step=0, name="data", dtype=torch.float64)
LABEL, NONE = torch.arange(ROWS) % 4, torch.full((ROWS,), 4)
BATCH = Batch(X0, {"label": LABEL}, {"label": NONE})


class Net(nn.Module):
    """A perceptron of the state, its time, and a class."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.middle = nn.Linear(WIDTH + 1, 16, dtype=torch.float64), nn.Tanh()
        self.classes, self.last = nn.Embedding(5, 16, dtype=torch.float64), nn.Linear(16, WIDTH, dtype=torch.float64)

    def features(self, x, t, label=None):
        hidden = self.first(torch.cat([x, t[:, None]], 1))
        return self.middle(hidden if label is None else hidden + self.classes(label))

    def forward(self, x, t, label=None):
        return self.last(self.features(x, t, label))


def normal(name):
    return random.normal(ROWS, WIDTH, step=STEP, name=name, dtype=torch.float64)


def same(objective, batch, turn, group, expected):
    loss = objective(batch, STEP, turn=turn)
    found = torch.autograd.grad(loss.total, group, allow_unused=True)
    wanted = torch.autograd.grad(expected, group, allow_unused=True)
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    scale = max(float(grad.abs().max()) for grad in wanted if grad is not None)
    assert scale > 1e-8
    for one, other in zip(found, wanted, strict=True):
        one, other = (torch.zeros(1).double() if part is None else part for part in (one, other))
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9 * scale)


def corrupt(path, x, noise, t):
    return path.alpha(t)[:, None] * x + path.sigma(t)[:, None] * noise


def clean(path, net, x, t, label=LABEL):
    """Of a prediction of the noise."""
    return (x - path.sigma(t)[:, None] * net(x, t, label)) / path.alpha(t)[:, None]


def guided(path, net, x, t, w):
    one, other = (clean(path, net, x, t, label) for label in (LABEL, NONE))
    return other + w * (one - other)


def surrogate(x, g):
    return 0.5 * (x - (x - g).detach()).square().mean(1)


def head():
    torch.manual_seed(9)
    return nn.Linear(16, 1, dtype=torch.float64)


@pytest.mark.parametrize("inputs", ["simulated", "data"])
def test_dmd2(inputs):
    network, teacher, fake, part, path = Net(1), Net(2), Net(3), head(), VP.betas()
    levels = (1.0, 0.75, 0.5, 0.25)
    objective = recipes.dmd2(network, teacher, fake, levels=levels, guidance=1.75, head=part, features="middle",
                             inputs=inputs)  # fmt: skip
    if inputs == "simulated":
        exit = int(random.integers(range(1), 4, step=STEP, name="exit"))
        x = float(path.sigma(1.0)) * normal("noise")
        for call in range(exit + 1):
            t = torch.full((ROWS,), levels[call], dtype=torch.float64)
            if call < exit:
                with torch.no_grad():
                    estimate = clean(path, network, x, t)
                x = corrupt(path, estimate, normal(f"renoise/{call}"), torch.full_like(t, levels[call + 1]))
    else:
        t = torch.tensor(levels).double()[random.integers(ROWS, 4, step=STEP, name="trajectory")]
        x = corrupt(path, X0, normal("noise"), t)
    x = clean(path, network, x, t)
    law = Uniform(0.02, 0.98)
    s, noise = law.draw(ROWS, step=STEP, name="term/match/t"), normal("term/match/noise")
    with torch.no_grad():
        x_t = corrupt(path, x, noise, s)
        r, f = guided(path, teacher, x_t, s, 1.75), clean(path, fake, x_t, s)
        g = (f - r) / (x - r).abs().mean(1, keepdim=True)
    a, noise_a = Uniform().draw(ROWS, step=STEP, name="adversary/fake/t"), normal("adversary/fake/noise")
    x_a = corrupt(path, x, noise_a, a)
    told = nn.functional.softplus(-part(fake.features(x_a, a, LABEL))).mean()
    same(objective, BATCH, "generator", list(network.parameters()), surrogate(x, g).mean() + 1e-3 * told)
    x = x.detach()
    s, noise = law.draw(ROWS, step=STEP, name="critic/critic/t"), normal("critic/critic/noise")
    fitted = (fake(corrupt(path, x, noise, s), s, LABEL) - noise).square().mean()
    b, noise_b = Uniform().draw(ROWS, step=STEP, name="adversary/real/t"), normal("adversary/real/noise")
    fakes, reals = (
        part(fake.features(x_a.detach(), a, LABEL)),
        part(fake.features(corrupt(path, X0, noise_b, b), b, LABEL)),
    )
    told = (nn.functional.softplus(fakes) + nn.functional.softplus(-reals)).mean()
    same(objective, BATCH, "critic", [*fake.parameters(), *part.parameters()], fitted + 1e-2 * told)
    assert [len(objective.turns(index)) for index in range(6)] == [2, 1, 1, 1, 1, 2]
    assert all(not value.requires_grad for value in teacher.parameters())


@pytest.mark.parametrize("target", ["sample", "transition"])
def test_tdm(target):
    network, teacher, fake, path = Net(1), Net(2), Net(3), VP.betas()
    objective = recipes.tdm(network, teacher, fake, target=target)
    times = spaced(4, path).times
    x, inputs = float(path.sigma(1.0)) * normal("noise"), []
    for t, r in itertools.pairwise(times):
        inputs.append(x)
        t, r = (value.expand(ROWS) for value in (t, r))
        with torch.no_grad():
            eps = network(x, t, LABEL)
            x = corrupt(path, clean(path, network, x, t), eps, r)
    step = random.integers(ROWS, 4, step=STEP, name="trajectory")
    chosen, t_i, s = torch.stack(inputs)[step, range(ROWS)], times[step], times[step + 1]
    eps = network(chosen, t_i, LABEL)
    x = (chosen - path.sigma(t_i)[:, None] * eps) / path.alpha(t_i)[:, None]
    x_s = corrupt(path, x, eps, s)

    def up(name):
        t = Uniform().draw(ROWS, step=STEP, name=f"{name}/t", low=s, high=t_i)
        a = path.alpha(t) / path.alpha(s)
        spread = (path.sigma(t) ** 2 - (a * path.sigma(s)) ** 2).sqrt()[:, None]
        noise = normal(f"{name}/noise")
        return t, a[:, None] * x_s + spread * noise, noise, spread

    t, x_t, _, _ = up("term/match")
    with torch.no_grad():
        r, f = guided(path, teacher, x_t, t, 4.5), clean(path, fake, x_t, t)
        g = (f - r) / (x - r).abs().mean(1, keepdim=True)
    moved = x - (x - g).detach()
    same(objective, BATCH, "generator", list(network.parameters()), ((moved.square() + 1e-6).sqrt() - 1e-3).mean())
    x, x_s = x.detach(), x_s.detach()
    t, x_t, noise, spread = up("critic/critic")
    f = clean(path, fake, x_t, t)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    snr = (alpha / sigma).square().clamp(max=5.0)[:, 0]
    if target == "sample":
        total = (x_t - alpha * x) / sigma
        weight = (0.5 * noise.square().mean(1) - 0.5 * total.square().mean(1)).exp()
        rows = weight * (f - x).square().mean(1)
    else:
        alpha_s, sigma_s = path.alpha(s)[:, None], path.sigma(s)[:, None]
        wanted = x_s / alpha_s - alpha * sigma_s**2 / (alpha_s**2 * spread) * noise
        rows = (spread / sigma * (f - wanted)).square().mean(1)
    same(objective, BATCH, "critic", list(fake.parameters()), (snr * rows).mean())
    assert objective.turns(3) == ("generator", "critic")


@pytest.mark.parametrize("fitted", [True, False])
def test_swiftbrush(fitted):
    """The gap of noise predictions; without a critic the drawn noise stands for its prediction."""
    network, teacher, path = Net(1), Net(2), VP.betas()
    base = SharedBase(teacher, {"critic": LowRank(2)})
    with torch.no_grad():
        for value in base.parameters():
            value.add_(0.2)
    batch = Batch(condition={"label": LABEL}, null_condition={"label": NONE}, size=ROWS)
    objective = recipes.swiftbrush(network, base.view(None), base.view("critic") if fitted else None, shape=(WIDTH,))
    one = torch.ones(ROWS, dtype=torch.float64)
    z = normal("noise")
    x = clean(path, network, float(path.sigma(1.0)) * z, one)
    law = Uniform(0.02, 0.98)
    t, noise = law.draw(ROWS, step=STEP, name="term/match/t"), normal("term/match/noise")
    with torch.no_grad():
        x_t = corrupt(path, x, noise, t)
        conditional, unconditional = (teacher(x_t, t, label) for label in (LABEL, NONE))
        eps = base(x_t, t, LABEL, adapter="critic") if fitted else noise
        g = unconditional + 4.5 * (conditional - unconditional) - eps
    same(objective, batch, "generator", list(network.parameters()), surrogate(x, g).mean())
    if not fitted:
        assert objective.turns(0) == ("generator",)
        return
    t, noise = law.draw(ROWS, step=STEP, name="critic/critic/t"), normal("critic/critic/noise")
    rows = (base(corrupt(path, x.detach(), noise, t), t, LABEL, adapter="critic") - noise).square()
    same(objective, batch, "critic", list(base.parameters()), rows.mean())
    assert all(value.grad is None for value in teacher.parameters())


def denoised(net, x, sigma, label=None):
    c = (sigma**2 + 0.25).sqrt()[:, None]
    return 0.25 / c**2 * x + 0.5 * sigma[:, None] / c * net(x / c, sigma.log() / 4, label)


CORNERS = {
    "sid": ({}, lambda r, f, x, ratio: 100 * ((r - f) * (r - x) - 1.2 * (r - f) ** 2).sum(1)),
    "sim": ({"a": 1.0}, lambda r, f, x, ratio: 100 * ((r - f) * (f - x)).sum(1)),
    "uni_instruct": ({}, lambda r, f, x, ratio: 100 * (2 * ratio * ((r - f) * (f - x)).sum(1))),
    "uni_instruct_rkl": (
        {"divergence": ops.ReverseKL()},
        lambda r, f, x, ratio: 100 * ((r - f) ** 2 + 2 * (r - f) * (f - x)).sum(1),
    ),
}


@pytest.mark.parametrize("name", CORNERS)
def test_second_order_corners(name):
    settings, rows = CORNERS[name]
    network, teacher, fake, part = Net(1), Net(2), Net(3), head()
    recipe = recipes.sid if name in ("sid", "sim") else recipes.uni_instruct
    if recipe is recipes.uni_instruct:
        settings = settings | {"head": part, "features": "middle"}
    objective = recipe(network, teacher, fake, **settings)
    level = torch.full((ROWS,), 2.5, dtype=torch.float64)
    x = denoised(network, 2.5 * normal("noise"), level)
    (term,) = objective.terms
    levels = karras(1000).times[200:-1]
    sigma = 80 * term.law.draw(ROWS, step=STEP, name="term/match/t")
    assert all(float((80 * levels - value).abs().min()) < 1e-9 for value in sigma)
    x_t = x + sigma[:, None] * normal("term/match/noise")
    r, f = denoised(teacher, x_t, sigma), denoised(fake, x_t, sigma)
    c = (sigma**2 + 0.25).sqrt()[:, None]
    ratio = part(fake.features(x_t / c, sigma.log() / 4))[:, 0].clamp(-5, 5).exp()
    weight = 1 / (x - r).abs().mean(1).clamp(min=1e-5).detach()
    same(objective, Batch(X0), "generator", list(network.parameters()), (weight * rows(r, f, x, ratio)).mean())
    x = x.detach()
    sigma = 80 * LogNormal(-1.2, 1.2).draw(ROWS, step=STEP, name="critic/critic/t")
    f = denoised(fake, x + sigma[:, None] * normal("critic/critic/noise"), sigma)
    fitted = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (f - x).square().mean(1)).mean()
    if recipe is recipes.sid:
        same(objective, Batch(X0), "critic", list(fake.parameters()), fitted)
    else:
        assert float(objective(Batch(X0), STEP, turn="critic").terms["critic"]) == pytest.approx(
            float(fitted.detach()), rel=1e-6
        )


def test_first_order_corners():
    network, teacher, fake, part = Net(1), Net(2), Net(3), head()
    level = torch.full((ROWS,), 2.5, dtype=torch.float64)
    for recipe, settings in ((recipes.diff_instruct, {}), (recipes.f_distill, {"head": part, "features": "middle"})):
        objective = recipe(network, teacher, fake, **settings)
        x = denoised(network, 2.5 * normal("noise"), level)
        sigma = 80 * objective.terms[0].law.draw(ROWS, step=STEP, name="term/match/t")
        with torch.no_grad():
            x_t = x + sigma[:, None] * normal("term/match/noise")
            r, f = denoised(teacher, x_t, sigma), denoised(fake, x_t, sigma)
            if recipe is recipes.diff_instruct:
                g, told = (f - r) / sigma[:, None] ** 2, 0.0
            else:
                c = (sigma**2 + 0.25).sqrt()[:, None]
                ratio = part(fake.features(x_t / c, sigma.log() / 4)).clamp(-5, 5).exp()
                g = ratio * (f - r) / (x - r).abs().mean(1, keepdim=True).clamp(min=1e-5)
        if recipe is recipes.f_distill:
            sigma = 80 * objective.terms[0].law.draw(ROWS, step=STEP, name="adversary/fake/t")
            c = (sigma**2 + 0.25).sqrt()[:, None]
            x_t = x + sigma[:, None] * normal("adversary/fake/noise")
            told = nn.functional.softplus(-part(fake.features(x_t / c, sigma.log() / 4))).mean()
        same(objective, Batch(X0), "generator", list(network.parameters()), surrogate(x, g).mean() + 1e-3 * told)
        assert len(objective.turns(1)) == (2 if recipe is recipes.diff_instruct else 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipes.dmd2(Net(), Net(), Net(), inputs="noise"), "^inputs: got 'noise'"),
        (lambda: recipes.dmd2(Net(), Net(), Net(), ratio=0), "^ratio: got 0"),
        (lambda: recipes.dmd2(Net(), Net(), Net(), path=RectifiedFlow()), "^head: got Jump.kind='noise'"),
        (lambda: recipes.dmd2(Net(), None, Net()), "^teacher: got 'NoneType'"),
        (lambda: recipes.dmd2(Net(), Net(), "fake"), "^critic: got 'str'"),
        (lambda: recipes.dmd2("net", Net(), Net()), "^network: got 'str'"),
        (lambda: recipes.dmd2(Net(), Net(), Net(), guidance=float("nan")), "^guidance: got nan"),
        (lambda: recipes.dmd2(Net(), Net(), Net(), levels=1.0), "^levels: got 1.0"),
        (lambda: (lambda net: recipes.dmd2(Net(), net, net))(Net()), "^critic: got 'a network whose parameters"),
        (lambda: (lambda net: recipes.dmd2(net, net, Net()))(Net()), "^generator: got 'a network whose parameters"),
        (lambda: recipes.tdm(Net(), Net(), Net(), grid=(1.0, 0.0)), "^grid: got"),
        (lambda: recipes.tdm(Net(), Net(), Net(), huber=-1.0), "^huber: got -1.0"),
        (lambda: recipes.dmd2(Net(), Net(), Net(), levels=(0.5, 1.0)), "^times: got '1.0 after 0.5'"),
        (lambda: recipes.tdm(Net(), Net(), Net(), target="x"), "^target: got 'x'"),
        (lambda: recipes.tdm(Net(), Net(), Net(), grid=Grid([1.0, 0.0], RectifiedFlow())), "^path: got RectifiedFlow"),
        (lambda: recipes.swiftbrush(Net(), Net(), Net(), low=0.9, high=0.2), "^high: got"),
        (lambda: recipes.swiftbrush(Net(), Net(), Net())(Batch(size=2), 0, turn="critic"), "^shape: got None"),
        (lambda: recipes.sid(Net(), Net(), Net(), a=float("nan")), "^a: got nan"),
        (lambda: recipes.uni_instruct(Net(), Net(), Net(), head(), "middel"), "^features: got 'middel'"),
        (lambda: recipes.f_distill(Net(), Net(), Net(), head(), ratio_limit=0.0), "^ratio_limit: got 0.0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
