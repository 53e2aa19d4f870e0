"""Weights of divergences, surrogates and rollouts on random ratios, shapes and levels."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distillrs import ops, random
from distillrs.diffusion import (
    AlongTrajectory,
    Batch,
    Critic,
    DistributionGap,
    GapView,
    Jump,
    LevelWeight,
    Match,
    Matcher,
    MeanAbsolute,
    Network,
    Rolled,
    StateMap,
    noised,
    one_step,
    ratio_weights,
)  # fmt: skip
from distillrs.diffusion.matching.levels import draw_noised, transition
from distillrs.schedule import EDM, VP, Grid, Prediction, RectifiedFlow, SubVP, Trig, Uniform
from distillrs.step import Step

PATHS = st.sampled_from([RectifiedFlow(), VP(), VP.cosine(), SubVP(), Trig(0.7), EDM(20.0)])
SHARES = st.floats(0.05, 0.95)
DIVERGENCES = st.one_of(
    st.sampled_from([ops.ForwardKL(), ops.ReverseKL()]),
    st.builds(ops.JensenShannon, SHARES),
    st.builds(ops.SkewKL, SHARES),
    st.builds(ops.SkewReverseKL, SHARES),
    st.builds(ops.Alpha, st.sampled_from([-0.5, 0.3, 0.5, 1.5, 2.0])),
)


def normal(name, *shape, dtype=torch.float64):
    return random.normal(shape[0], *shape[1:], step=0, name=name, dtype=dtype)


@given(DIVERGENCES, st.floats(-4, 4))
def test_weights_are_those_of_the_generator_of_the_divergence(divergence, log_r):
    """phi = r^2 f''(r) with f(r) = value(log r, 0), and its slope, by differences; a mixture's is the mixture."""
    point, step = torch.tensor([log_r], dtype=torch.float64), 1e-3

    def f(r):
        return float(divergence.value(torch.tensor([math.log(r)], dtype=torch.float64), torch.zeros(1).double()))

    r = math.exp(log_r)
    second = (f(r * (1 + step)) - 2 * f(r) + f(r * (1 - step))) / step**2
    found = ratio_weights(divergence, point)
    assert abs(float(found.weight) - second) <= 1e-4 * (1 + r + r**2)
    high, low = (float(ratio_weights(divergence, point + move).weight) for move in (step, -step))
    assert abs(float(found.slope) - (high - low) / (2 * step)) <= 1e-5 * (1 + r + r**2)
    assert float(found.weight) >= 0
    other = ratio_weights(ops.Alpha(3.0), point)
    mixed = ratio_weights(ops.Mixture({divergence: 0.3, ops.Alpha(3.0): 0.7}), point)
    assert torch.allclose(mixed.weight, 0.3 * found.weight + 0.7 * other.weight)


class Fixed:
    """Says the same of every state."""

    def __init__(self, value):
        self.value = value

    def predict(self, x, t, condition=None):
        return Prediction(self.value.to(x.dtype), "x0")


class Free(nn.Module):
    """A generator whose samples are its parameters."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x, t):
        return self.value


@given(
    st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.float64]), st.sampled_from(["mean", "sum"]), st.booleans(),
    st.floats(1e-3, 1e3),
)  # fmt: skip
def test_the_gradient_of_the_surrogate_is_the_direction(rows, shape, dtype, reduction, normalised, size):
    """g / numel for any shape, to 1e-6: no difference of large numbers is taken."""
    x, real, fake = (normal(name, rows, *shape, dtype=dtype) for name in ("x", "real", "fake"))
    x = x * size
    generator, path = Free(x), RectifiedFlow()
    critic = Free(fake).requires_grad_(False)
    weights = MeanAbsolute(1e-3) if normalised else ()
    matcher = Matcher(
        StateMap(Network(generator, times="t"), path, Jump("x0")), real=Fixed(real),
        critic=Critic(Network(critic, times="t"), "x0"), terms=[Match(weights=weights, reduction=reduction)],
    )  # fmt: skip
    upstream = 3.0
    loss = matcher(Batch(x.detach()), 0, turn="generator").total
    (upstream * loss).backward()
    g = fake - real
    if normalised:
        g = g / (x - real).abs().flatten(1).mean(1).clamp(min=1e-3).reshape(-1, *(1,) * len(shape))
    scale = rows * (x[0].numel() if reduction == "mean" else 1)
    found = generator.value.grad * scale / upstream
    relative = 1e-6 if dtype == torch.float32 else 1e-12
    assert torch.allclose(found, g.to(dtype), rtol=relative, atol=relative / 10 * float(g.abs().max()))
    squares = g.square().flatten(1)
    expected = 0.5 * (squares.mean(1) if reduction == "mean" else squares.sum(1)).mean()
    assert torch.allclose(loss.detach(), expected.to(loss), rtol=1e-5)


@given(PATHS, st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_going_up_in_two_steps_is_going_up_in_one(path, one, other):
    """a and s of s -> t compose, and from the data they are the path's own."""
    s, t = min(one, other), max(one, other)
    times = lambda value: torch.full((3,), value, dtype=torch.float64)
    end = min(t + 0.05, 1.0)
    pairs = ((s, t), (t, end), (s, end))
    first, second, whole = (transition(path, times(low), times(high)) for low, high in pairs)
    assert torch.allclose(first[0] * second[0], whole[0], rtol=1e-9)
    assert torch.allclose(
        (second[0] * first[1]).square() + second[1].square(), whole[1].square(), rtol=1e-7, atol=1e-12
    )
    zero = transition(path, times(0.0), times(t))
    assert torch.allclose(zero[0], path.alpha(times(t)))
    assert torch.allclose(zero[1], path.sigma(times(t)))
    x, noise = normal("x", 3, 2), normal("n", 3, 2)
    rolled = Rolled(x, times(1.0), x, times(0.0))
    assert torch.allclose(noised(path, rolled, times(t), noise).x_t, path.corrupt(x, noise, times(t)))


@given(PATHS, st.lists(st.floats(0.1, 0.9), min_size=1, max_size=4, unique=True), st.integers(0, 50))
def test_levels_stay_between_the_ends_of_a_rows_step(path, levels, seed):
    times = [1.0 if path != VP.cosine() else 0.95, *sorted(levels, reverse=True), 0.0]
    grid = Grid(sorted(set(times), reverse=True), path)
    generator = StateMap(Network(Free(normal("x", 8, 2)), times="t"), path, Jump("x0"))
    step = Step(2, seed=seed)
    rolled = AlongTrajectory(grid).run(generator, normal("z", 8, 2), Batch(size=8), step)
    drawn = draw_noised(path, rolled, Uniform(), "below", step, "d")
    assert bool(((drawn.t >= rolled.end) & (drawn.t <= rolled.level)).all())
    assert bool(drawn.x_t.isfinite().all())
    part = AlongTrajectory(grid).run(
        StateMap(Network(Free(normal("x", 8, 2)[3:]), times="t"), path, Jump("x0")), normal("z", 8, 2)[3:],
        Batch(size=5), Step(2, seed=seed, first_unit=3),
    )  # fmt: skip
    assert torch.allclose(part.state, rolled.state[3:])
    assert torch.equal(part.end, rolled.end[3:])


@given(PATHS, st.floats(0.05, 0.9), st.sampled_from(["x0", "noise", "velocity", "v"]))
def test_the_gap_is_the_same_whatever_the_networks_predict(path, t, kind):
    """In x0-space with alpha / sigma it is the difference of two noise predictions."""
    x, real, fake, noise = (normal(name, 4, 2) for name in ("x", "real", "fake", "noise"))
    times = torch.full((4,), t, dtype=torch.float64)
    x_t = path.corrupt(x, noise, times)

    class As:
        def __init__(self, value):
            self.value = value

        def predict(self, x, t, condition=None):
            return Prediction(path.convert(self.value, x, t, kind="x0", to=kind), kind)

    view = GapView(path, x, x_t, times, real=As(real), critic=As(fake))
    gap = DistributionGap().field(view)
    scale = 1 + float(path.sigma(t) / path.alpha(t)) ** 2
    assert torch.allclose(gap, fake - real, rtol=1e-7, atol=1e-8 * scale)
    of_noise = [path.convert(value, x_t, times, kind="x0", to="noise") for value in (real, fake)]
    weighted = LevelWeight("noise").at(path, times)[:, None] * (fake - real)
    bound = 1e-7 * float(1 + sum(value.abs().max() for value in of_noise))
    assert torch.allclose(weighted, of_noise[0] - of_noise[1], rtol=1e-7, atol=bound)


def test_an_empty_batch_has_a_loss_of_nothing():
    generator = Free(torch.zeros(0, 2))
    matcher = Matcher(
        StateMap(Network(generator, times="t"), RectifiedFlow(), Jump("x0")), real=Fixed(torch.zeros(0, 2)),
        critic=Critic(Network(Free(torch.zeros(0, 2)), times="t"), "x0"), terms=[Match(weights=MeanAbsolute())],
        rollout=one_step(), shape=(2,),
    )  # fmt: skip
    for turn in matcher.turns(0):
        assert float(matcher(Batch(size=0), 0, turn=turn).total.detach()) == 0
