"""The objective's promises, its refusals, and what public implementations stumbled over."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import distillrs as dr
from distillrs import ops, random
from distillrs.diffusion import (
    Adversary,
    AlongTrajectory,
    AverageVelocity,
    Batch,
    Checkpoints,
    Consistency,
    ConsistencyBoundary,
    Critic,
    Data,
    Diagonal,
    DiffusersNetwork,
    DistributionGap,
    ExpandedGap,
    FisherGap,
    FlowMap,
    GuidanceGap,
    Guided,
    Jump,
    KernelMoments,
    LevelWeight,
    LogVariance,
    Match,
    Matcher,
    MeanAbsolute,
    MeanVariance,
    Network,
    NoisedInputs,
    Planned,
    PseudoHuber,
    SampleGap,
    Self,
    Semigroup,
    StateMap,
    Teacher,
    one_step,
    sample,
    simulated,
)  # fmt: skip
from distillrs.errors import ArgumentError
from distillrs.evaluate.beds import Gaussian
from distillrs.frozen import Frozen
from distillrs.schedule import (
    EDM,
    VP,
    Grid,
    LinearRamp,
    MinSNR,
    Move,
    Prediction,
    RectifiedFlow,
    RolloutPlan,
    Triangle,
    Uniform,
)  # fmt: skip
from distillrs.step import Step

PATH = RectifiedFlow()
BED = Gaussian((0.5, -0.5, 0.2), (0.6, 0.9, 0.4))
X0 = BED.sample(12, step=0)
LABEL = torch.arange(12) % 3
NONE = torch.full((12,), 3)
GRID = Grid([1.0, 0.7, 0.4, 0.0], PATH)


class Net(nn.Module):
    def __init__(self, seed=1, dropout=0.0, dtype=torch.float64, times=1):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.middle = nn.Linear(3 + times, 16, dtype=dtype), nn.Tanh()
        self.classes = nn.Embedding(4, 16, dtype=dtype)
        self.dropout, self.last = nn.Dropout(dropout), nn.Linear(16, 3, dtype=dtype)
        self.calls = []

    def forward(self, x, *times, label=None):
        self.calls.append((len(x), torch.is_grad_enabled(), self.training))
        hidden = self.first(torch.cat([x, torch.stack(times, 1)], 1))
        if label is not None:
            hidden = hidden + self.classes(label)
        return self.last(self.dropout(self.middle(hidden)))


def head():
    torch.manual_seed(9)
    return nn.Linear(16, 2, dtype=torch.float64)


def student(network, path=PATH, kind="velocity"):
    return StateMap(Network(network, times="t"), path, Jump(kind))


def critic_of(network, kind="velocity", **settings):
    return Critic(Network(network, times="t"), kind, **settings)


def build(generator=None, critic=None, **changes):
    critic = critic_of(critic or Net(2)) if critic is None or isinstance(critic, Net) else critic
    terms = [Match(weights=MeanAbsolute())]
    settings = {"real": BED.on(PATH), "critic": critic, "terms": terms, "shape": (3,)} | changes
    return Matcher(student(generator or Net()), **settings)


def labelled(**more):
    return Batch(X0, {"label": LABEL}, {"label": NONE}, **more)


@pytest.mark.parametrize(
    "foreign",
    [
        3,
        None,
        {},
        {"taken_at": [], "states": []},
        {"updates": {"generator": 1}, "last": {}, "evaluations": {}},
        {"updates": {"generator": 1, "critic": 2}, "last": {}, "evaluations": {"real": [1]}},
        {"updates": {"generator": "a", "critic": 2}, "last": {}, "evaluations": {}},
        {"updates": {"generator": 1, "critic": 2}, "last": [3], "evaluations": {}},
    ],
)
def test_the_state_of_something_else_is_refused_and_changes_nothing(foreign):
    matcher = build()
    matcher(Batch(X0), 0, turn="critic")
    before = matcher.get_extra_state()
    with pytest.raises(ArgumentError, match=r"^state: got"):
        matcher.load_state_dict({"_extra_state": foreign})
    assert matcher.get_extra_state() == before
    other = build()
    other.load_state_dict(matcher.state_dict())
    assert (other.updates, other.evaluations) == (matcher.updates, matcher.evaluations)


def test_it_owns_heads_alone_and_groups_parameters_by_turn():
    generator, fake, part = Net(), Net(2), head()
    matcher = build(generator, fake, auxiliaries=[Adversary(part, features="middle")])
    assert list(matcher.parameters()) == list(part.parameters())
    assert set(matcher.state_dict()) == {"owned.0.head.weight", "owned.0.head.bias", "_extra_state"}
    groups = matcher.parameter_groups()
    assert groups["generator"] == list(generator.parameters())
    assert groups["critic"] == [*fake.parameters(), *part.parameters()]
    alone = build(terms=[Match(SampleGap())])
    assert set(alone.parameter_groups()) == {"generator", "critic"}
    without = Matcher(student(generator), real=BED.on(PATH), terms=[Match(SampleGap())], shape=(3,))
    assert set(without.parameter_groups()) == {"generator"}
    assert without.turns(7) == ("generator",)
    assert without(Batch(X0), 7).total.requires_grad


def test_the_critic_is_updated_exactly_so_often():
    """Five to one is five updates of the critic between two of the generator, not four."""
    for first in ("generator", "critic"):
        matcher = build(ratio=5, first=first)
        turns = [matcher.turns(index) for index in range(20)]
        assert [sum("critic" in turn for turn in turns), sum("generator" in turn for turn in turns)] == [20, 4]
        flat = [name for turn in turns for name in turn]
        places = [place for place, name in enumerate(flat) if name == "generator"]
        assert all(flat[a + 1 : b] == ["critic"] * 5 for a, b in itertools.pairwise(places))
        assert turns[0] == (("generator", "critic") if first == "generator" else ("critic",))
        assert turns[4] == (("critic",) if first == "generator" else ("critic", "generator"))


def test_steps_of_the_critic_build_no_graph_of_the_generator():
    generator, fake = Net(), Net(2)
    matcher, batch = build(generator, fake, ratio=5), Batch(X0)
    for index in range(5):
        for turn in matcher.turns(index):
            before = len(generator.calls)
            loss = matcher(batch, index, turn=turn)
            loss.total.backward()
            grads = [enabled for _, enabled, _ in generator.calls[before:]]
            # In the step that has both turns the critic is fitted on the sample that is there.
            assert grads == ([True] if turn == "generator" else [] if index == 0 else [False])
    assert len(generator.calls) == 5
    # Another batch may have other conditions: its samples are made anew.
    matcher(Batch(X0), 5, turn="generator")
    matcher(Batch(X0), 5, turn="critic")
    assert len(generator.calls) == 7


@pytest.mark.parametrize("rollout", [one_step(), simulated((1.0, 0.7, 0.4)), AlongTrajectory(GRID)], ids=type)
def test_network_passes_are_counted(rollout):
    """Unguided: 1 + 1 + 1 with one differentiated; the critic's turn 1 + 1; a rollout adds what it simulates."""
    generator, fake, teacher = Net(), Net(2), Net(3)
    real = Guided(Teacher(Network(Frozen(teacher), times="t"), "velocity"), 3.0)
    matcher = build(generator, fake, real=real, rollout=rollout, ratio=2)
    batch, seen = labelled(), {"generator": [], "critic": []}
    for index in range(6):
        for turn in matcher.turns(index):
            counts = [sum(rows for rows, _, _ in net.calls) for net in (generator, fake, teacher)]
            loss = matcher(batch, index, turn=turn)
            new = [sum(rows for rows, _, _ in net.calls) - old
                   for net, old in zip((generator, fake, teacher), counts, strict=True)]  # fmt: skip
            assert float(loss.terms["evaluations"]) == sum(new) / 12
            assert new[2] == (24 if turn == "generator" else 0)
            assert float(loss.terms["backwards"]) == 1
            seen[turn].append(new[0] // 12)
    assert {role: pair.forward for role, pair in matcher.evaluations.items()} == {
        "generator": 12 * len(generator.calls), "critic": 12 * len(fake.calls), "real": 24 * len(teacher.calls),
    }  # fmt: skip
    assert matcher.evaluations["critic"].backward == 12 * 6
    assert matcher.evaluations["generator"].backward == 12 * 3
    assert matcher.updates == {"generator": 3, "critic": 6}
    assert seen["critic"][::2] == [0, 0, 0]
    if isinstance(rollout, AlongTrajectory):
        assert set(seen["generator"]) == {3}


@pytest.mark.parametrize("order", ["generator", "critic"])
def test_the_published_loop_written_plainly(order):
    """Six steps of DMD2 with its head, 3:1, two levels: the same losses and weights under one seed."""
    levels, low, high, steps = (1.0, 0.6), 0.02, 0.98, 6
    path, teacher = VP(), Net(5)
    networks = {name: (Net(1), Net(2), head()) for name in ("plain", "matcher")}
    real = Guided(Teacher(Network(Frozen(teacher), times="t"), "noise"), 4.0)
    generator, fake, part = networks["matcher"]
    matcher = Matcher(
        student(generator, path, "noise"), real=real, critic=critic_of(fake, "noise"), rollout=simulated(levels),
        terms=[Match(weights=MeanAbsolute())], ratio=3, first=order,
        auxiliaries=[Adversary(part, features="middle", scale=0.1, critic_scale=0.05)],
    )  # fmt: skip
    optimisers = {turn: torch.optim.Adam(group, 1e-2) for turn, group in matcher.parameter_groups().items()}
    batch = labelled()
    found = []
    for index in range(steps):
        for turn in matcher.turns(index):
            loss = matcher(batch, index, turn=turn)
            optimisers[turn].zero_grad()
            loss.total.backward()
            optimisers[turn].step()
            found.append((turn, float(loss.total.detach())))

    generator, fake, part = networks["plain"]
    adam = {
        "generator": torch.optim.Adam(generator.parameters(), 1e-2),
        "critic": torch.optim.Adam([*fake.parameters(), *part.parameters()], 1e-2),
    }

    def normal(name, index):
        return random.normal(12, 3, step=index, name=name, dtype=torch.float64)

    def uniform(name, index, law):
        return law.draw(12, step=index, name=name)

    def corrupt(x, noise, t):
        return path.alpha(t)[:, None] * x + path.sigma(t)[:, None] * noise

    def clean(net, x, t, label):
        return (x - path.sigma(t)[:, None] * net(x, t, label=label)) / path.alpha(t)[:, None]

    def logits(x, t):
        hidden = fake.middle(fake.first(torch.cat([x, t[:, None]], 1)) + fake.classes(LABEL))
        return part(hidden)

    def make(index):
        exit = int(random.integers(range(1), 2, step=index, name="exit"))
        x = float(path.sigma(1.0)) * normal("noise", index)
        for call in range(exit + 1):
            t = torch.full((12,), levels[call], dtype=torch.float64)
            with torch.set_grad_enabled(torch.is_grad_enabled() and call == exit):
                x = clean(generator, x, t, LABEL)
                if call < exit:
                    x = corrupt(x, normal(f"renoise/{call}", index), torch.full_like(t, levels[call + 1]))
        return x

    def generator_turn(index):
        x = make(index)
        t, noise = uniform("term/match/t", index, Uniform(low, high)), normal("term/match/noise", index)
        with torch.no_grad():
            x_t = corrupt(x, noise, t)
            conditional, unconditional = (clean(teacher, x_t, t, label) for label in (LABEL, NONE))
            guided = unconditional + 4.0 * (conditional - unconditional)
            grad = (clean(fake, x_t, t, LABEL) - guided) / (x - guided).abs().mean(1, keepdim=True)
        matched = 0.5 * (x - (x - grad).detach()).square().mean()
        t, noise = uniform("adversary/fake/t", index, Uniform()), normal("adversary/fake/noise", index)
        deceived = functional.softplus(-logits(corrupt(x, noise, t), t)).mean()
        return matched + 0.1 * deceived, x.detach()

    def critic_turn(index, x):
        t, noise = uniform("critic/critic/t", index, Uniform(low, high)), normal("critic/critic/noise", index)
        fitted = (fake(corrupt(x, noise, t), t, label=LABEL) - noise).square().mean()
        told = 0.0
        for name, points, sign in (("fake", x, 1), ("real", X0, -1)):
            t, noise = uniform(f"adversary/{name}/t", index, Uniform()), normal(f"adversary/{name}/noise", index)
            told = told + functional.softplus(sign * logits(corrupt(points, noise, t), t)).mean()
        return fitted + 0.05 * told

    expected = []
    for index in range(steps):
        x = None
        for turn in matcher.turns(index):
            if turn == "generator":
                loss, x = generator_turn(index)
            else:
                if x is None:
                    with torch.no_grad():
                        x = make(index)
                loss = critic_turn(index, x)
            adam[turn].zero_grad()
            loss.backward()
            adam[turn].step()
            expected.append((turn, float(loss.detach())))
            x = x if turn == "generator" else None
    assert [turn for turn, _ in found] == [turn for turn, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-9)
    for one, other in zip(networks["plain"], networks["matcher"], strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"terms": [Match(weights=MeanAbsolute())], "auxiliaries": [Adversary(head(), features="middle")]},
        {"terms": [Match(FisherGap(), MeanAbsolute(1e-5), reduction="sum")], "rollout": simulated((1.0, 0.5))},
        {
            "terms": [Match(weights=MeanAbsolute(0.1, group=3), within="below", metric=PseudoHuber(1e-3))],
            "rollout": AlongTrajectory(GRID),
            "critic": critic_of(Net(2), within="below", weight=MinSNR()),
        },
        {"rollout": NoisedInputs((1.0, 0.5)), "auxiliaries": [MeanVariance(0.0, 1.0, scale=0.3)]},
        {"terms": [Match(DistributionGap(), LevelWeight("noise")), Match(SampleGap(), name="b")]},
    ],
    ids=["head", "second", "trajectory", "data", "two"],
)  # fmt: skip
def test_micro_batches_add_up_to_the_batch(changes):
    """The draws belong to global rows, and items normalises; in both turns."""
    matcher = build(**changes)
    whole, parts = Batch(X0), [(start, Batch(X0[start : start + 6])) for start in (0, 6)]
    for turn in matcher.turns(0):
        group = matcher.parameter_groups()[turn]
        loss = matcher(whole, Step(3, seed=5), turn=turn).total
        expected = torch.autograd.grad(loss, group, allow_unused=True)
        total, gradients = 0.0, [torch.zeros_like(value) for value in group]
        for start, batch in parts:
            piece = matcher(batch, Step(3, seed=5, first_unit=start, items=12), turn=turn).total
            total += float(piece.detach())
            for kept, new in zip(gradients, torch.autograd.grad(piece, group, allow_unused=True), strict=True):
                kept.add_(0 if new is None else new)
        assert total == pytest.approx(float(loss.detach()), rel=1e-12)
        for one, other in zip(gradients, expected, strict=True):
            assert torch.allclose(one, torch.zeros_like(one) if other is None else other, rtol=1e-9, atol=1e-14)
    assert float(build(**changes, seed=5)(whole, 3, turn="generator").total.detach()) == pytest.approx(
        float(matcher(whole, Step(3, seed=5), turn="generator").total.detach()), rel=1e-12
    )


def test_a_run_that_is_continued_is_the_run():
    def start():
        matcher = build(Net(1), Net(2), ratio=2, auxiliaries=[Adversary(head(), features="middle")])
        return matcher, {turn: torch.optim.Adam(group, 1e-2) for turn, group in matcher.parameter_groups().items()}

    matcher, optimisers = start()
    states = {}

    def remember(progress):
        if progress.step.index == 2:
            networks = [matcher.map.network.module, matcher.critics["critic"].network.module]
            states["middle"] = (progress.state(), [copy.deepcopy(net.state_dict()) for net in networks])

    dr.fit(matcher, optimisers, 6, batches=lambda step: Batch(X0), callback=remember)
    other, others = start()
    state, networks = states["middle"]
    for net, values in zip((other.map.network.module, other.critics["critic"].network.module), networks, strict=True):
        net.load_state_dict(values)
    dr.fit(other, others, 6, batches=lambda step: Batch(X0), state=state)
    assert other.updates == matcher.updates == {"generator": 3, "critic": 6}
    assert other.evaluations == matcher.evaluations
    for one, two in zip(matcher.map.network.module.parameters(), other.map.network.module.parameters(), strict=True):
        assert torch.equal(one, two)


def test_scores_are_asked_without_dropout_and_put_back():
    """Dropout in two networks whose difference is taken is noise in it."""
    fake, teacher = Net(2, dropout=0.5).train(), Net(3, dropout=0.5).train().requires_grad_(False)
    matcher = build(critic=fake, real=Teacher(Network(teacher, times="t"), "velocity"))
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(float(matcher(Batch(X0), 0, turn="generator").total.detach()))
    assert losses[0] == losses[1]
    assert not any(training for _, _, training in [*fake.calls, *teacher.calls])
    assert fake.dropout.training
    assert teacher.training
    matcher(Batch(X0), 1, turn="critic")
    assert fake.calls[-1][2]


def test_the_generators_turn_gives_no_other_network_a_gradient():
    """Inputs have gradients there, parameters have not, whatever they require."""
    for gap, on in ((FisherGap(), "critic"), (ExpandedGap(), "critic"), (DistributionGap(), "real")):
        generator, fake, teacher, part = Net(), Net(2), Net(3), head()
        real = Teacher(Network(Frozen(teacher), times="t"), "velocity")
        adversary = Adversary(part, features="middle", on="critic" if gap == ExpandedGap() else on, scale=1.0)
        matcher = build(generator, fake, real=real, terms=[Match(gap)], auxiliaries=[adversary])
        matcher(Batch(X0), 0, turn="generator").total.backward()
        others = [*fake.parameters(), *teacher.parameters(), *part.parameters()]
        assert all(value.grad is None for value in others)
        assert all(value.requires_grad for value in [*fake.parameters(), *part.parameters()])
        assert float(generator.last.weight.grad.abs().max()) > 0


def test_second_order_gaps_differentiate_both_networks_inputs():
    """Against the same loss written down; without the inputs' gradients it is another method."""
    generator, fake, teacher = Net(), Net(2), Net(3)
    real = Teacher(Network(Frozen(teacher), times="t"), "velocity")
    matcher = build(generator, fake, real=real, terms=[Match(FisherGap(1.2), MeanAbsolute(1e-5), reduction="sum")])
    found = torch.autograd.grad(matcher(Batch(X0), 4, turn="generator").total, generator.last.weight)[0]
    z = random.normal(12, 3, step=4, name="noise", dtype=torch.float64)
    t = Uniform(0.02, 0.98).draw(12, step=4, name="term/match/t")
    noise = random.normal(12, 3, step=4, name="term/match/noise", dtype=torch.float64)
    gradients = []
    for context in (torch.enable_grad, torch.no_grad):
        x = z - generator(z, torch.ones(12, dtype=torch.float64))
        x_t = (1 - t[:, None]) * x + t[:, None] * noise
        with context():
            f, r = (x_t - t[:, None] * net(x_t, t) for net in (fake, teacher))
        weight = 1 / (x - r).abs().mean(1).clamp(min=1e-5).detach()
        loss = (weight * ((r - f) * (r - x) - 1.2 * (r - f).square()).sum(1)).sum() / 12
        gradients.append(torch.autograd.grad(loss, generator.last.weight)[0])
    assert torch.allclose(found, gradients[0], rtol=1e-9)
    assert not torch.allclose(found, gradients[1], rtol=0.1)


@pytest.mark.parametrize("loss", ["logistic", "hinge", "relativistic"])
@pytest.mark.parametrize("on", ["critic", "real"])
def test_adversaries(loss, on):
    generator, fake, teacher, part = Net(), Net(2), Net(3), head()
    real = Teacher(Network(Frozen(teacher), times="t"), "velocity")
    law = Uniform(0.1, 0.6)
    adversary = Adversary(part, features="middle", on=on, law=law, loss=loss, scale=0.7, critic_scale=0.3)
    matcher = build(generator, fake, real=real, terms=[], auxiliaries=[adversary])
    net = fake if on == "critic" else teacher

    def logits(x, name, index):
        t = law.draw(12, step=index, name=f"adversary/{name}/t")[:, None]
        noise = random.normal(12, 3, step=index, name=f"adversary/{name}/noise", dtype=torch.float64)
        return part(net.middle(net.first(torch.cat([(1 - t) * x + t * noise, t], 1))))

    def made(index):
        z = random.normal(12, 3, step=index, name="noise", dtype=torch.float64)
        return z - generator(z, torch.ones(12, dtype=torch.float64))

    fakes, reals = logits(made(2), "fake", 2), logits(X0, "real", 2)
    softplus, relu = functional.softplus, functional.relu
    told = {"logistic": softplus(-fakes), "hinge": -fakes, "relativistic": softplus(reals - fakes)}[loss].mean()
    group = list(generator.parameters())
    expected = torch.autograd.grad(0.7 * told, group, allow_unused=True)
    turn = matcher(Batch(X0), 2, turn="generator")
    for one, other in zip(torch.autograd.grad(turn.total, group, allow_unused=True), expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-9, atol=1e-14)
    fakes, reals = logits(made(2).detach(), "fake", 2), logits(X0, "real", 2)
    told = {
        "logistic": softplus(-reals) + softplus(fakes), "hinge": relu(1 - reals) + relu(1 + fakes),
        "relativistic": softplus(fakes - reals),
    }[loss].mean()  # fmt: skip
    loss = matcher(Batch(X0), 2, turn="critic")
    assert float(loss.terms["adversary"]) == pytest.approx(float(told.detach()), rel=1e-9)
    group = [part.weight, *([fake.first.weight] if on == "critic" else [])]
    expected = torch.autograd.grad(0.3 * told, group)
    found = torch.autograd.grad(loss.total, [part.weight, fake.first.weight], allow_unused=True)
    assert torch.allclose(found[0], expected[0], rtol=1e-9)
    # On the critic's features the discriminator trains the critic, too; on the teacher's it does not.
    fitted = torch.autograd.grad(
        critic_of(fake).fit(PATH, matcher.rollout.run(matcher.map, noise_of(2), Batch(X0), Step(2)).detached(), None, 2,
                            "critic/critic").mean(), fake.first.weight)[0]  # fmt: skip
    assert torch.allclose(found[1], fitted + (expected[1] if on == "critic" else 0), rtol=1e-9)


def noise_of(index):
    return random.normal(12, 3, step=index, name="noise", dtype=torch.float64)


@pytest.mark.parametrize("difference", [None, 1e-4])
def test_penalties_of_the_discriminators_slope(difference):
    """A linear discriminator's slope is known; the finite difference is of it along one direction."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64))

        def forward(self, x):
            return x @ self.weight.T

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.shift = nn.Identity(), nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x, t):
            return self.inner(x) + self.shift

    adversary = Adversary(Linear(), features="inner", penalty=2.0, difference=difference)
    matcher = build(critic=critic_of(Same()), auxiliaries=[adversary])
    terms = matcher(Batch(X0), 0, turn="critic").terms
    noise = random.normal(12, 3, step=0, name="adversary/penalty", dtype=torch.float64)
    along = noise @ adversary.head.weight.detach().T
    expected = 5.25 if difference is None else float(along.square().mean())
    assert float(terms["adversary/penalty"]) == pytest.approx(expected, rel=1e-6)
    plain = build(critic=critic_of(Same()), auxiliaries=[Adversary(adversary.head, features="inner")])
    rest = float(plain(Batch(X0), 0, turn="critic").terms["adversary"])
    assert float(terms["adversary"]) == pytest.approx(rest, rel=1e-9)
    both = [float(each(Batch(X0), 0, turn="critic").total.detach()) for each in (matcher, plain)]
    assert both[0] - both[1] == pytest.approx(1e-2 * expected, rel=1e-6)


def test_a_discriminator_knows_the_ratio_of_densities():
    """Of the logistic loss alone; a bound holds it."""
    adversary = Adversary(head(), features="middle", scale=0.0)
    for gap in (ExpandedGap(), DistributionGap(ops.ForwardKL())):
        matcher = build(terms=[Match(gap, ratio_limit=1e-9)], auxiliaries=[adversary])
        plain = build(terms=[Match(FisherGap(0.5) if gap.second_order else DistributionGap(), scale=2.0)])
        one = matcher(Batch(X0), 0, turn="generator").total.detach()
        if gap.second_order:
            # At r = 1 the forward divergence's weight and slope are 1: 2 d (F - x).
            plain = build(terms=[Match(FisherGap(1.0), scale=2.0)])
        expected = plain(Batch(X0), 0, turn="generator").total.detach() / (1 if gap.second_order else 2)
        assert float(one) == pytest.approx(float(expected), rel=1e-6)
        free = build(terms=[Match(gap)], auxiliaries=[adversary])(Batch(X0), 0, turn="generator").total.detach()
        assert float(free) != pytest.approx(float(one), rel=1e-3)
    with pytest.raises(ArgumentError, match=r"^ratio: got None"):
        build(terms=[Match(ExpandedGap())], auxiliaries=[Adversary(head(), features="middle", loss="hinge")])


def test_simulated_inputs_are_those_of_sampling():
    """The sample of a rollout that leaves at the k-th call is what a sampler with these k calls draws."""
    network, path = Net(), VP()
    mapped, levels = student(network, path, "noise"), (1.0, 0.7, 0.4)
    exits = set()
    for index in range(12):
        z = noise_of(index)
        rolled = simulated(levels).run(mapped, z, Batch(X0), Step(index))
        calls = levels.index(float(rolled.level[0])) + 1
        exits.add(calls)
        grid = Grid([*levels[:calls], 0.0], path)
        expected = sample(mapped, z, grid, method="renoise", step=index)
        assert torch.allclose(rolled.x, expected, atol=1e-12)
        # All rows and ranks leave at the same call: other graphs would wait for each other.
        other = simulated(levels).run(mapped, z, Batch(X0), Step(index, first_unit=100))
        assert torch.equal(other.level, rolled.level)
        rows = simulated(levels).run(mapped, z[6:], Batch(X0[6:]), Step(index, first_unit=6))
        assert torch.allclose(rows.x, rolled.x[6:], atol=1e-12)
    assert exits == {1, 2, 3}


@pytest.mark.parametrize("method", ["ode", "anchor", "renoise"])
def test_rollouts_of_a_plan_and_where_their_gradient_is(method):
    network, path = Net(), VP()
    mapped = student(network, path, "noise")
    grid = Grid([1.0, 0.7, 0.4, 0.0], path)
    gradients = {}
    for gradient in ("last", "all"):
        rolled = Planned(RolloutPlan.trajectory(grid, gradient), method).run(mapped, noise_of(3), Batch(X0), Step(3))
        expected = sample(mapped, noise_of(3), grid, method=method, step=3, gradient=gradient)
        assert torch.allclose(rolled.x, expected, atol=1e-12)
        one, other = (torch.autograd.grad(x.square().sum(), network.first.weight)[0] for x in (rolled.x, expected))
        assert torch.allclose(one, other, rtol=1e-9)
        gradients[gradient] = one
    assert not torch.allclose(gradients["last"], gradients["all"], rtol=1e-3)


def test_trajectories_give_the_estimate_and_the_state_of_one_call():
    network, path = Net(), VP()
    mapped, grid = student(network, path, "noise"), Grid([1.0, 0.7, 0.4, 0.0], path)
    rolled = AlongTrajectory(grid).run(mapped, noise_of(1), Batch(X0), Step(1))
    drawn = random.integers(12, 3, step=1, name="trajectory")
    states = sample(mapped, noise_of(1), grid, method="ode", every=True)
    assert set(drawn.tolist()) == {0, 1, 2}
    assert torch.equal(rolled.level, grid.times[drawn])
    assert torch.equal(rolled.end, grid.times[drawn + 1])
    for row, place in enumerate(drawn.tolist()):
        assert torch.allclose(rolled.state[row], states[place + 1, row], atol=1e-12)
    noise = path.convert(rolled.x, states[drawn, range(12)], rolled.level, kind="x0", to="noise")
    assert torch.allclose(path.corrupt(rolled.x, noise, rolled.end), rolled.state, atol=1e-10)
    assert rolled.x.requires_grad
    assert rolled.state.requires_grad
    assert torch.allclose(rolled.state[drawn == 2], rolled.x[drawn == 2])


class Spy:
    """A score that remembers at which times it was asked."""

    def __init__(self):
        self.times = []

    def predict(self, x, t, condition=None):
        self.times.append(t)
        return Prediction(0.5 * x, "x0")


def test_levels_keep_their_bounds():
    """Below the generator's input means less noise, time 1 being noise; never below the sample's own end."""
    for rollout, within in ((simulated((0.9, 0.5, 0.3)), "below"), (AlongTrajectory(GRID), "below"),
                            (AlongTrajectory(GRID), "all")):  # fmt: skip
        spy = Spy()
        matcher = build(real=spy, rollout=rollout, terms=[Match(within=within, law=Uniform())],
                        critic=critic_of(Net(2), within=within))  # fmt: skip
        for index in range(8):
            rolled = rollout.run(matcher.map, noise_of(index), Batch(X0), Step(index))
            matcher(Batch(X0), index, turn="generator")
            matcher(Batch(X0), index, turn="critic")
            t = spy.times[-1]
            if within == "below":
                assert bool((t <= rolled.level).all())
            if rolled.end is not None:
                assert bool((t >= rolled.end).all())
        if within == "all":
            assert bool((torch.cat(spy.times) > 0.71).any())


def test_normalisers():
    """Of the guided real score, row by row; the floor's hits are told; groups share."""
    guided = Guided(Teacher(Network(Frozen(Net(3)), times="t"), "velocity"), 5.0)
    losses = {}
    high = MeanAbsolute(1e3)
    cases = {"plain": (), "rows": MeanAbsolute(), "group": MeanAbsolute(group=4), "floor": high, "double": (high, high)}
    for name, weights in cases.items():
        losses[name] = build(real=guided, terms=[Match(weights=weights)])(labelled(), 0, turn="generator")
    assert float(losses["floor"].terms["match/floor"]) == 1
    assert float(losses["rows"].terms["match/floor"]) == 0
    value = {name: float(loss.total.detach()) for name, loss in losses.items()}
    assert value["floor"] == pytest.approx(value["plain"] / 1e6)
    assert value["double"] == pytest.approx(value["plain"] / 1e12)
    assert len({round(value[name], 9) for name in ("plain", "rows", "group")}) == 3
    with pytest.raises(ArgumentError, match=r"^group: got '12 rows from 2 on'"):
        build(terms=[Match(weights=MeanAbsolute(group=4))])(Batch(X0), Step(0, first_unit=2), turn="generator")


def test_rows_that_are_not_finite_are_left_out_where_asked():
    class Halved:
        def predict(self, x, t, condition=None):
            return Prediction(0.5 * x, "x0")

    class Broken:
        def predict(self, x, t, condition=None):
            # Its slope is no number there either.
            factor = torch.where(torch.arange(len(x)) == 3, math.nan, 0.5)
            return Prediction(factor[:, None] * x, "x0")

    for gap in (DistributionGap(), FisherGap()):
        generator = Net()
        matcher = build(generator, real=Broken(), terms=[Match(gap, MeanAbsolute(), mask_non_finite=True)])
        loss = matcher(Batch(X0), 0, turn="generator")
        loss.total.backward()
        assert float(loss.terms["match/masked"]) == pytest.approx(1 / 12)
        assert bool(loss.total.isfinite())
        # Of the eleven others, as if the row were not there.
        assert bool(generator.last.weight.grad.isfinite().all())
        same = Net()
        for rows in (slice(0, 3), slice(4, 12)):
            whole = build(same, real=Halved(), terms=[Match(gap, MeanAbsolute())])
            step = Step(0, first_unit=rows.start, items=12)
            whole(Batch(X0[rows]), step, turn="generator").total.backward()
        assert torch.allclose(generator.last.weight.grad, same.last.weight.grad, rtol=1e-9, atol=1e-14)
        plain = build(real=Broken(), terms=[Match(gap, MeanAbsolute())])
        assert bool(plain(Batch(X0), 0, turn="generator").total.isnan())


def test_sums_and_means_differ_by_the_number_of_elements():
    for gap in (DistributionGap(), FisherGap()):
        one, other = (build(terms=[Match(gap, reduction=reduction)])(Batch(X0), 0, turn="generator").total.detach()
                      for reduction in ("mean", "sum"))  # fmt: skip
        assert float(other) == pytest.approx(3 * float(one))


def test_scales_are_ramps_and_nothing_is_computed_at_zero():
    spy = Spy()
    matcher = build(terms=[Match(scale=LinearRamp(0.0, 1.0, steps=4))], real=spy)
    values = [float(matcher(Batch(X0), Step(index), turn="generator").terms["loss"]) for index in (0, 2, 4)]
    assert values[0] == 0
    assert len(spy.times) == 2
    full = build(terms=[Match()], real=spy)(Batch(X0), Step(2), turn="generator")
    assert values[1] == pytest.approx(0.5 * float(full.terms["loss"]))


def test_critics_are_pulled_towards_the_generator():
    generator, fake = Net(1), Net(2)
    before = copy.deepcopy(fake)
    matcher = build(generator, critic_of(fake, pull=0.25))
    matcher.after_step()
    for old, new, other in zip(before.parameters(), fake.parameters(), generator.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * other)
    with pytest.raises(ArgumentError, match=r"^pull: got 'a critic that differs in"):
        build(generator, critic_of(nn.Sequential(Net()), pull=0.1)).after_step()


def test_several_critics_and_a_sequence_of_teachers():
    spies = [Spy(), Spy(), Spy()]
    fakes = {"low": critic_of(Net(2), law=Uniform(0.0, 0.5)), "high": critic_of(Net(4), law=Uniform(0.5, 1.0))}
    terms = [
        Match(critic="low", law=Uniform(0.02, 0.5), name="l"),
        Match(critic="high", law=Uniform(0.5, 0.98), name="h"),
    ]
    matcher = build(real=Checkpoints(spies, every=3), critic=fakes, terms=terms)
    for index in range(12):
        matcher(Batch(X0), index, turn="generator")
        assert set(matcher(Batch(X0), index, turn="critic").terms) >= {"low", "high"}
    assert [len(spy.times) for spy in spies] == [6, 6, 12]
    assert matcher.evaluations["low"].forward == matcher.evaluations["high"].forward == 2 * 12 * 12
    assert len(matcher.parameter_groups()["critic"]) == 2 * len(list(Net().parameters()))


def test_wrapped_networks_are_called_in_their_place():
    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.module(*args, **kwargs)

    generator, fake = Net(), Net(2)
    matcher = build(generator, fake, auxiliaries=[Adversary(head(), features="middle")])
    for turn, count in (("generator", 1), ("critic", 3)):
        plain = matcher(Batch(X0), 2, turn=turn).total.detach()
        student_, critic_ = Wrapped(generator), Wrapped(fake)
        found = matcher(Batch(X0), 2, turn=turn, student=student_, critic=critic_).total.detach()
        assert torch.equal(found, plain)
        assert (student_.calls, critic_.calls) == ((1, 2) if turn == "generator" else (1, count))
    assert torch.equal(matcher(Batch(X0), 2, turn="critic", critic={"critic": Wrapped(fake)}).total, plain)


def test_moments():
    generator = Net()
    z = noise_of(1)
    x = z - generator(z, torch.ones(12, dtype=torch.float64))
    matcher = build(generator, terms=[], auxiliaries=[MeanVariance(0.2, 0.5, scale=2.0)])
    m, s = x.mean(1), x.var(1, unbiased=False).sqrt()
    normal = torch.distributions.Normal
    expected = 2 * torch.distributions.kl_divergence(normal(m, s), normal(torch.full_like(m, 0.2), 0.5)).mean()
    loss = matcher(Batch(X0), 1, turn="generator").total
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    one, other = (torch.autograd.grad(value, generator.last.weight)[0] for value in (loss, expected))
    assert torch.allclose(one, other, rtol=1e-9)
    torch.manual_seed(0)
    features = nn.Linear(3, 5, dtype=torch.float64).requires_grad_(False)
    x = z - generator(z, torch.ones(12, dtype=torch.float64))
    a, b = features(x), features(X0)
    kernel = lambda u, v: (-torch.cdist(u, v).square() / 2).exp().mean()
    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    matcher = build(generator, terms=[], auxiliaries=[KernelMoments(features)])
    loss = matcher(Batch(X0), 1, turn="generator").total
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    other = torch.autograd.grad(expected, generator.last.weight)[0]
    assert torch.allclose(torch.autograd.grad(loss, generator.last.weight)[0], other, rtol=1e-5, atol=1e-9)


def test_consistency_is_a_flow_map_of_the_same_network():
    generator = Net(times=2)
    adapter = Network(generator, times="t_r")
    flow = FlowMap(adapter, path=PATH, residual=Semigroup(middle="uniform"), source=Self(), pairs=Triangle(0.0))
    matcher = Matcher(
        StateMap(adapter, PATH, AverageVelocity()), real=BED.on(PATH), critic=critic_of(Net(2)), terms=[Match()],
        auxiliaries=[Consistency(flow, scale=0.5)],
    )  # fmt: skip
    loss = matcher(Batch(X0), 2, turn="generator")
    alone = flow(Batch(X0), 2)
    plain = Matcher(StateMap(adapter, PATH, AverageVelocity()), real=BED.on(PATH), critic=critic_of(Net(2)),
                    terms=[Match()])(Batch(X0), 2, turn="generator")  # fmt: skip
    assert float(loss.total.detach()) == pytest.approx(float((plain.total + 0.5 * alone.total).detach()), rel=1e-9)
    gradients = [torch.autograd.grad(value.total, generator.last.weight)[0] for value in (loss, plain, alone)]
    assert torch.allclose(gradients[0], gradients[1] + 0.5 * gradients[2], rtol=1e-9)
    assert float(loss.terms["evaluations"]) > float(plain.terms["evaluations"])
    with pytest.raises(ArgumentError, match=r"^objective: got 'a FlowMap of another network'"):
        build(auxiliaries=[Consistency(flow)])


def test_learned_weights_of_consistency_are_the_objectives():
    """They are trained with the generator and saved; else they would stay where they began."""
    generator = Net(times=2)
    adapter = Network(generator, times="t_r")

    def start():
        flow = FlowMap(adapter, path=PATH, residual=Semigroup(), pairs=Triangle(0.0), balance=LogVariance())
        return Matcher(
            StateMap(adapter, PATH, AverageVelocity()), real=BED.on(PATH), critic=critic_of(Net(2)), terms=[Match()],
            auxiliaries=[Consistency(flow), Adversary(head(), features="middle")],
        )  # fmt: skip

    matcher = start()
    learned = matcher.auxiliaries[0].objective.learned
    groups = matcher.parameter_groups()
    assert all(any(value is own for value in groups["generator"]) for own in learned.parameters())
    assert not any(value is own for value in groups["critic"] for own in learned.parameters())
    optimiser = torch.optim.SGD(groups["generator"], 0.1)
    matcher(Batch(X0), 0, turn="generator").total.backward()
    optimiser.step()
    assert float(learned[0].linear.bias.detach()) != 0
    other = start()
    other.load_state_dict(matcher.state_dict())
    assert torch.equal(other.auxiliaries[0].objective.learned[0].linear.bias, learned[0].linear.bias)


def test_consistency_of_a_network_that_gives_a_tuple():
    class Unet(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, sample, timestep, return_dict=True):
            return (self.net(sample, timestep.to(sample.dtype)),)

    adapter = DiffusersNetwork(Unet(), times="t")
    flow = FlowMap(adapter, path=PATH, head=Jump("velocity"), residual=Diagonal(Data()))
    settings = {"real": BED.on(PATH), "critic": critic_of(Net(2)), "terms": [Match()]}
    matcher = Matcher(StateMap(adapter, PATH, Jump()), auxiliaries=[Consistency(flow)], **settings)
    loss = matcher(Batch(X0), 0, turn="generator")
    plain = Matcher(StateMap(adapter, PATH, Jump()), **settings)(Batch(X0), 0, turn="generator")
    assert float(loss.terms["evaluations"] - plain.terms["evaluations"]) == 1
    assert float(loss.terms["backwards"] - plain.terms["backwards"]) == 1
    alone = float(flow(Batch(X0), 0).total.detach())
    assert float((loss.total - plain.total).detach()) == pytest.approx(alone, rel=1e-9)


def test_two_adversaries_are_both_reported_and_judge_without_gradients():
    adversaries = [Adversary(head(), features="middle", loss=loss, penalty=0.5) for loss in ("logistic", "hinge")]
    both = build(auxiliaries=adversaries)
    for turn in ("generator", "critic"):
        loss = both(Batch(X0), 0, turn=turn)
        with torch.no_grad():
            silent = both(Batch(X0), 0, turn=turn)
        assert not silent.total.requires_grad
        assert float(silent.total) == pytest.approx(float(loss.total.detach()), rel=1e-12)
        assert not loss.terms.keys() ^ silent.terms.keys()
        for key, part in zip(("adversary", "adversary_2"), adversaries, strict=True):
            alone = build(auxiliaries=[part])(Batch(X0), 0, turn=turn).terms
            for name in [name for name in alone if name.startswith("adversary")]:
                assert torch.equal(loss.terms[name.replace("adversary", key)], alone[name])


def test_no_rows():
    """A rank without rows reports zeros and breaks nothing."""
    parts = [Adversary(head(), features="middle", penalty=1.0), MeanVariance(0.0, 1.0)]
    terms = [Match(weights=MeanAbsolute(), mask_non_finite=True), Match(FisherGap(), name="b", mask_non_finite=True)]
    matcher = build(terms=terms, auxiliaries=parts)
    for turn in ("generator", "critic"):
        loss = matcher(Batch(X0[:0]), Step(0, items=12), turn=turn)
        loss.total.backward()
        assert all(float(value) == 0 for value in loss.terms.values()), loss.terms


def test_a_matcher_draws_a_generator_to_its_teacher():
    """Against an exact teacher in few steps: mean and deviation of an affine generator arrive."""

    class Affine(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))

        def forward(self, x, t):
            return self.scale * x + self.shift

    bed = Gaussian((1.0, -0.5), (0.4, 0.8))
    generator = Affine()

    class Fake(nn.Module):
        """The exact denoiser of a Gaussian whose mean and deviation are learned."""

        def __init__(self):
            super().__init__()
            self.mean, self.log = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

        def forward(self, x, t):
            a, s, v = (1 - t)[:, None], t[:, None], (2 * self.log).exp()
            return self.mean + a * v / (a**2 * v + s**2) * (x - a * self.mean)

    fake = Fake()
    matcher = Matcher(
        StateMap(Network(generator, times="t"), PATH, Jump("x0")), real=bed.on(PATH),
        critic=Critic(Network(fake, times="t"), "x0"), terms=[Match(weights=LevelWeight("noise"))], ratio=2, shape=(2,),
    )  # fmt: skip
    optimisers = {turn: torch.optim.Adam(group, 0.03) for turn, group in matcher.parameter_groups().items()}
    dr.fit(matcher, optimisers, 400, batches=lambda step: Batch(size=128))
    assert generator.shift.tolist() == pytest.approx([1.0, -0.5], abs=0.12)
    assert generator.scale.abs().tolist() == pytest.approx([0.4, 0.8], abs=0.15)


REAL = BED.on(PATH)
TEACHER = Net(3)
FIXED = Net(6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(terms=[]), r"^terms: got \(\)"),
        (lambda: build(terms=[3]), "^terms: got 'int'"),
        (lambda: build(terms=Match()), "^terms: got 'Match'"),
        (lambda: build(auxiliaries=MeanVariance(0.0, 1.0)), "^auxiliaries: got 'MeanVariance'"),
        (lambda: build(shape=3), "^shape: got 3"),
        (lambda: build(shape=(3, -1)), r"^shape: got \(3, -1\)"),
        (lambda: build(critic={"loss": critic_of(Net(2))}, terms=[Match(critic="loss")]), "^critic: got 'loss'"),
        (lambda: build(critic=critic_of(FIXED), real=Teacher(Network(Frozen(FIXED), times="t"), "velocity")),
         "^critic: got 'a network whose parameters"),
        (lambda: build(Net().requires_grad_(False)), "^generator: got 'a network whose parameters"),
        (lambda: Matcher(StateMap(Network(Frozen(Net()), times="t"), PATH, Jump()), real=REAL, critic=critic_of(Net(2)),
                         terms=[Match()]), "^generator: got 'a network whose parameters"),
        (lambda: build()(Batch(X0), 0, turn="critic", critic=3), "^critic: got 'int'"),
        (lambda: Matcher(student(Net(), PATH, "noise"), real=REAL, critic=critic_of(Net(2)), terms=[Match()]),
         "^head: got Jump.kind='noise'.*finite at time 1"),
        (lambda: Matcher(student(Net(), PATH, "noise"), real=REAL, critic=critic_of(Net(2)), terms=[Match()],
                         rollout=AlongTrajectory(GRID)), "^head: got Jump"),
        (lambda: Matcher(student(Net(), PATH, "noise"), real=REAL, critic=critic_of(Net(2)), terms=[Match()],
                         rollout=simulated((1.0, 0.5))), "^head: got Jump"),
        (lambda: Matcher(student(Net(), PATH, "noise"), real=REAL, critic=critic_of(Net(2)), terms=[Match()],
                         rollout=NoisedInputs((1.0, 0.5))), "^head: got Jump"),
        (lambda: sample(student(Net(), PATH, "noise"), X0, GRID), "^head: got Jump"),
        (lambda: AlongTrajectory((1.0, 0.0)), "^grid: got 'tuple'"),
        (lambda: simulated(0.5), "^levels: got 0.5"),
        (lambda: simulated(()), r"^levels: got \(\)"),
        (lambda: NoisedInputs((1.0, "a")), "^levels: got"),
        (lambda: one_step("1"), "^level: got '1'"),
        (lambda: build(rollout=Planned(lambda step: 3))(Batch(X0), 0, turn="critic"), "^plan: got 'int'"),
        (lambda: Match(name="loss"), "^name: got 'loss'"),
        (lambda: Match(metric=3), "^metric: got 3"),
        (lambda: Match(ratio_limit="a"), "^ratio_limit: got 'a'"),
        (lambda: Critic(Net(), "velocity"), "^network: got 'Net', allowed is a network in its adapter"),
        (lambda: Teacher(Net(), "velocity"), "^network: got 'Net'"),
        (lambda: Teacher(Network(Net(), times="t"), "eps"), "^kind: got 'eps'"),
        (lambda: StateMap(Net(), PATH), "^network: got 'Net'"),
        (lambda: StateMap(Network(Net()), "rf"), "^path: got 'rf'"),
        (lambda: StateMap(Network(Net()), PATH, "jump"), "^head: got 'jump'"),
        (lambda: critic_of(Net(), scale="a"), "^scale: got 'a'"),
        (lambda: critic_of(Net(), pull=True), "^pull: got True"),
        (lambda: FisherGap("a"), "^a: got 'a'"),
        (lambda: LevelWeight(power=None), "^power: got None"),
        (lambda: MeanAbsolute("a"), "^floor: got 'a'"),
        (lambda: MeanVariance(math.nan, 1.0), "^mean: got nan"),
        (lambda: KernelMoments(kernel="rbf"), "^kernel: got 'rbf'"),
        (lambda: Checkpoints(3, 1), "^scores: got 3"),
        (lambda: Adversary(head(), critic_scale="a"), "^critic_scale: got 'a'"),
        (lambda: Adversary(head(), difference="a"), "^difference: got 'a'"),
        (lambda: Adversary(head(), on=Net()), "^on: got 'Net'"),
        (lambda: Adversary(head(), features=3), "^features: got 3"),
        (lambda: Guided(REAL, math.nan), "^scale: got nan"),
        (lambda: Guided(REAL, None), "^scale: got None"),
        (lambda: build(terms=[Match(), Match()]), "^name: got 'match'"),
        (lambda: build(real=None), "^real: got None"),
        (lambda: build(real=Data()), "^real: got 'Data'"),
        (lambda: build(real=Guided(Self(), 2.0)), "^real: got 'Self'"),
        (lambda: Matcher(student(Net()), real=REAL, terms=[Match()]), "^critic: got None.*DistributionGap"),
        (lambda: Matcher(Net(), real=REAL, terms=[Match()]), "^generator: got 'Net'"),
        (lambda: build(terms=[Match(critic="fake")]), "^critic: got 'fake'"),
        (lambda: build(terms=[Match(GuidanceGap())]), "^real: got 'ExactScore', allowed is Guided"),
        (lambda: build(terms=[Match(ExpandedGap())]), "^ratio: got None"),
        (lambda: build(terms=[Match(FisherGap())], rollout=AlongTrajectory(GRID)), "^rollout: got AlongTrajectory"),
        (lambda: build(critic=3), "^critic: got 'int'"),
        (lambda: build(ratio=0), "^ratio: got 0"),
        (lambda: build(ratio=True), "^ratio: got True"),
        (lambda: build(first="critik"), "^first: got 'critik'"),
        (lambda: build(rollout=GRID), "^rollout: got Grid"),
        (lambda: build(auxiliaries=[nn.Tanh()]), "^auxiliaries: got 'Tanh'"),
        (lambda: build(auxiliaries=[Adversary(head(), on="fake")]), "^on: got 'fake'"),
        (lambda: build(auxiliaries=[Adversary(head(), features="midle")]), "^features: got 'midle'.*'middle'"),
        (lambda: build(rollout=simulated(Grid([1.0, 0.0], VP()))), "^path: got VP"),
        (lambda: build(rollout=AlongTrajectory(Grid([1.0, 0.0], VP()))), "^path: got VP"),
        (lambda: build(TEACHER, TEACHER), "^critic: got 'one that shares trained parameters"),
        (
            lambda: build(TEACHER, real=Teacher(Network(TEACHER, times="t"), "velocity")),
            "^real: got 'a network that is trained here'",
        ),
        (
            lambda: Matcher(StateMap(Network(Net(), times="t"), EDM(), ConsistencyBoundary()), real=REAL,
                            critic=critic_of(Net(2)), terms=[Match()]),
            "^head: got ConsistencyBoundary",
        ),
        (lambda: build()(X0, 0, turn="critic"), "^batch: got 'Tensor'"),
        (lambda: build()(Batch(X0), 0), "^turn: got None, allowed is one of 'generator', 'critic'"),
        (lambda: build()(Batch(X0), 0, turn="discriminator"), "^turn: got 'discriminator'"),
        (lambda: build(shape=None)(Batch(size=4), 0, turn="critic"), "^shape: got None"),
        (lambda: build()(Batch(X0), 0, turn="critic", critic={"fake": Net()}), "^critic: got 'fake'"),
        (
            lambda: build(auxiliaries=[Adversary(head(), features="middle")])(Batch(size=4), 0, turn="critic"),
            "^x0: got None",
        ),
        (lambda: build(auxiliaries=[KernelMoments()])(Batch(size=4), 0, turn="generator"), "^x0: got None"),
        (lambda: build(rollout=NoisedInputs((1.0,)))(Batch(size=4), 0, turn="critic"), "^x0: got None"),
        (
            lambda: build(real=Guided(Teacher(Network(Frozen(Net(3)), times="t"), "velocity"), 2.0))(
                Batch(X0, {"label": LABEL}), 0, turn="generator"
            ),
            "^null_condition: got None",
        ),
        (lambda: Match(gap=Spy()), "^gap: got"),
        (lambda: Match(weights=3), "^weights: got 3"),
        (lambda: Match(law=0.5), "^law: got 0.5"),
        (lambda: Match(within="above"), "^within: got 'above'"),
        (lambda: Match(ratio=3), "^ratio: got 3"),
        (lambda: Match(ratio_limit=0.0), "^ratio_limit: got 0.0"),
        (lambda: Match(reduction="none"), "^reduction: got 'none'"),
        (lambda: Match(FisherGap(), metric=PseudoHuber()), "^metric: got PseudoHuber"),
        (lambda: Match(scale=math.nan), "^scale: got nan"),
        (lambda: FisherGap(math.inf), "^a: got inf"),
        (lambda: DistributionGap(ops.TotalVariation()), "^divergence: got TotalVariation"),
        (lambda: ExpandedGap(None), "^divergence: got None"),
        (lambda: MeanAbsolute(-1.0), "^floor: got -1.0"),
        (lambda: MeanAbsolute(group=0), "^group: got 0"),
        (lambda: LevelWeight("epsilon"), "^kind: got 'epsilon'"),
        (lambda: critic_of(Net(), "eps"), "^kind: got 'eps'"),
        (lambda: critic_of(Net(), compare="eps"), "^compare: got 'eps'"),
        (lambda: critic_of(Net(), law=1), "^law: got 1"),
        (lambda: critic_of(Net(), within="above"), "^within: got 'above'"),
        (lambda: critic_of(Net(), weight=2.0), "^weight: got 2.0"),
        (lambda: critic_of(Net(), target="data"), "^target: got 'data'"),
        (lambda: critic_of(Net(), pull=1.5), "^pull: got 1.5"),
        (lambda: critic_of(Net(), scale=0.0), "^scale: got 0.0"),
        (lambda: Checkpoints([], 3), r"^scores: got \[\]"),
        (lambda: Checkpoints([REAL], 0), "^every: got 0"),
        (lambda: Adversary(3), "^head: got 'int'"),
        (lambda: Adversary(head(), loss="wasserstein"), "^loss: got 'wasserstein'"),
        (lambda: Adversary(head(), penalty=-1.0), "^penalty: got -1.0"),
        (lambda: Adversary(head(), difference=0.0), "^difference: got 0.0"),
        (lambda: Adversary(head(), law=3), "^law: got 3"),
        (lambda: MeanVariance(0.0, 0.0), "^deviation: got 0.0"),
        (lambda: one_step(0.0), "^level: got 0.0"),
        (lambda: simulated((0.5, 0.7)), "^times: got '0.7 after 0.5'"),
        (lambda: Planned(3), "^plan: got 3"),
        (lambda: Planned(RolloutPlan.trajectory(GRID), "euler"), "^method: got 'euler'"),
        (lambda: Planned(RolloutPlan((Move(0, 0, 1.0, 0.5),))), "^plan: got 'an end at 0.5'"),
        (lambda: Planned(RolloutPlan.autoregressive(GRID, 2, step=0)), "^plan: got '2 units'"),
        (
            lambda: Matcher(StateMap(Network(Net(times=2)), PATH), real=REAL, critic=critic_of(Net(2)),
                            rollout=AlongTrajectory(GRID), terms=[Match()]),
            "^network: got 'one of two times'",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
