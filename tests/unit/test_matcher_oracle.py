"""Gaps against derivatives of divergences: exact scores, quadrature in place of draws, finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from distillrs import ops
from distillrs.diffusion import (
    Critic,
    DistributionGap,
    ExpandedGap,
    FisherGap,
    GapView,
    GuidanceGap,
    Guided,
    LevelWeight,
    Network,
    Noised,
    Rolled,
    SampleGap,
    Teacher,
    noised,
    ratio_weights,
)  # fmt: skip
from distillrs.diffusion.matching import critics
from distillrs.diffusion.matching.levels import transition
from distillrs.evaluate.beds import Gaussian, LineMixture
from distillrs.schedule import EDM, VP, Prediction, RectifiedFlow

REAL = LineMixture((-1.0, 1.4), (0.5, 0.7), (0.4, 0.6))
MEAN, DEVIATION = 0.3, 0.8
PATHS = [RectifiedFlow(), VP(), EDM(5.0)]
DIVERGENCES = [
    ops.ForwardKL(), ops.ReverseKL(), ops.JensenShannon(), ops.JensenShannon(0.2), ops.SkewKL(0.3),
    ops.SkewReverseKL(0.3), ops.Alpha(0.5), ops.Alpha(2.0),
]  # fmt: skip
NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(60))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
Z, E = (part.reshape(-1, 1) for part in torch.meshgrid(NODES, NODES, indexing="ij"))
W = (WEIGHTS[:, None] * WEIGHTS).reshape(-1, 1)
LINE = torch.linspace(-14, 14, 20001, dtype=torch.float64)[:, None]


def single(t):
    return torch.full((len(Z),), t, dtype=torch.float64)


class Ratio:
    """log p_t / q_t, both known."""

    def __init__(self, path, fake):
        self.path, self.fake = path, fake

    def log_ratio(self, x, t, condition=None):
        return REAL.log_density(x, t, self.path) - self.fake.log_density(x, t, self.path)


def samples(mean, deviation):
    return LineMixture((mean,), (deviation,))


def divergence_at(divergence, path, t, mean, deviation):
    """Of the marginals at a level, on a grid."""
    p, q = (bed.log_density(LINE, torch.full((len(LINE),), t), path) for bed in (REAL, samples(mean, deviation)))
    return float(torch.trapezoid(divergence.value(p, q), LINE[:, 0]))


def score_gap(path, t, mean, deviation):
    """Both densities on the grid, and the real minus the fake score."""
    times = torch.full((len(LINE),), t, dtype=torch.float64)
    fake = samples(mean, deviation)
    a, s = float(path.alpha(t)), float(path.sigma(t))
    gap = REAL.on(path).predict(LINE, times).value - fake.on(path).predict(LINE, times).value
    log_p, log_q = (bed.log_density(LINE, times, path) for bed in (REAL, fake))
    return log_p, log_q, (a / s**2 * gap)[:, 0]


def slopes(function, step=1e-4):
    """By mean and deviation, central differences."""
    high, low = function(MEAN + step, DEVIATION), function(MEAN - step, DEVIATION)
    wide, narrow = function(MEAN, DEVIATION + step), function(MEAN, DEVIATION - step)
    return [(high - low) / (2 * step), (wide - narrow) / (2 * step)]


def surrogate(gap, path, t, weight):
    """The gap's loss by quadrature over sample and noise, differentiated by mean and deviation."""
    mean, deviation = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (MEAN, DEVIATION))
    x = mean + deviation * Z
    times = single(t)
    fake = samples(MEAN, DEVIATION)
    x_t = path.corrupt(x, E, times)
    view = GapView(path, x, x_t, times, real=REAL.on(path), critic=fake.on(path), ratio=Ratio(path, fake))
    field = gap.field(view)
    factor = weight.at(path, times)[:, None]
    value = field if gap.second_order else field.detach() * x
    return [float(part) for part in torch.autograd.grad((W * factor * value).sum(), (mean, deviation))]


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_first_order_gaps_are_gradients_of_divergences(path, divergence):
    t = 0.4 if not isinstance(path, EDM) else 0.2
    expected = slopes(lambda m, s: divergence_at(divergence, path, t, m, s))
    gap = DistributionGap(None if divergence == ops.ReverseKL() else divergence)
    found = surrogate(gap, path, t, LevelWeight("noise", 2.0))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert max(map(abs, expected)) > 1e-3


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_expanded_gaps_are_gradients_of_their_integrand(path, divergence):
    t = 0.4 if not isinstance(path, EDM) else 0.2

    def integrand(mean, deviation):
        log_p, log_q, gap = score_gap(path, t, mean, deviation)
        phi = ratio_weights(divergence, log_p - log_q).weight
        return float(torch.trapezoid(log_q.exp() * phi * gap.square(), LINE[:, 0]))

    found = surrogate(ExpandedGap(divergence), path, t, LevelWeight("score", 2.0))
    expected = slopes(integrand)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert max(map(abs, expected)) > 1e-3


@pytest.mark.parametrize("divergence", [ops.ForwardKL(), ops.ReverseKL(), ops.JensenShannon(), ops.Alpha(2.0)], ids=str)
def test_the_integral_over_levels_is_the_divergence(divergence):
    path, start = RectifiedFlow(), 0.15
    nodes, weights = np.polynomial.legendre.leggauss(40)
    whole = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        t = start + (1 - start) * (node + 1) / 2
        log_p, log_q, gap = score_gap(path, t, MEAN, DEVIATION)
        phi = ratio_weights(divergence, log_p - log_q).weight
        # The weight is of clean states: alpha^2 / sigma^4 turns their gap into that of scores.
        time = torch.tensor(t, dtype=torch.float64)
        rate = float(LevelWeight("score", 2.0, rate=True).at(path, time) / LevelWeight("score", 2.0).at(path, time))
        integrand = float(torch.trapezoid(log_q.exp() * phi * gap.square(), LINE[:, 0]))
        whole += weight * (1 - start) / 2 * rate * integrand
    assert whole == pytest.approx(divergence_at(divergence, path, start, MEAN, DEVIATION), rel=1e-6)


@pytest.mark.parametrize("divergence", [ops.ForwardKL(), ops.ReverseKL(), ops.JensenShannon()], ids=str)
def test_expanded_gaps_over_all_levels_are_the_gradient_of_the_divergence(divergence):
    path, start, rate = RectifiedFlow(), 0.4, LevelWeight("score", 2.0, rate=True)
    found = torch.zeros(2, dtype=torch.float64)
    for node, weight in zip(*np.polynomial.legendre.leggauss(20), strict=True):
        t = start + (1 - start) * (node + 1) / 2
        found += weight * (1 - start) / 2 * torch.tensor(surrogate(ExpandedGap(divergence), path, t, rate))
    expected = slopes(lambda m, s: divergence_at(divergence, path, start, m, s))
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert min(map(abs, expected)) > 1e-3


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_half_is_the_fisher_gradient_and_more_overshoots(path):
    t, weight = 0.3, LevelWeight("score", 2.0)

    def fisher(mean, deviation, of_mean=MEAN, of_deviation=DEVIATION):
        """Half the Fisher divergence; scores may be held while the samples move."""
        _, log_q, _ = score_gap(path, t, mean, deviation)
        _, _, gap = score_gap(path, t, of_mean, of_deviation)
        return float(torch.trapezoid(log_q.exp() * gap.square(), LINE[:, 0])) / 2

    exact = slopes(lambda m, s: fisher(m, s, m, s))
    held = slopes(fisher)
    found = {a: surrogate(FisherGap(a), path, t, weight) for a in (0.5, 1.0, 1.2)}
    assert found[0.5] == pytest.approx(exact, rel=1e-5, abs=1e-8)
    for a in (1.0, 1.2):
        expected = [one - 2 * (a - 0.5) * other for one, other in zip(exact, held, strict=True)]
        assert found[a] == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert found[a] != pytest.approx(exact, rel=1e-2)


def test_score_implicit_matching_is_the_gap_with_one():
    path, t = RectifiedFlow(), 0.4
    x = MEAN + DEVIATION * Z
    view = GapView(path, x, path.corrupt(x, E, single(t)), single(t), real=REAL.on(path),
                   critic=samples(MEAN, DEVIATION).on(path))  # fmt: skip
    gap = view.real.guided - view.fake
    assert torch.allclose(FisherGap(1.0).field(view), gap * (view.fake - x), atol=1e-12)
    assert torch.allclose(ExpandedGap(ops.ReverseKL()).field(ratioed(view)), 2 * FisherGap(0.5).field(view), atol=1e-12)
    assert torch.allclose(SampleGap().field(view), x - view.real.guided)


def ratioed(view):
    view._ratio = Ratio(view.path, samples(MEAN, DEVIATION))
    return view


def test_published_weights_of_divergences():
    """JS is half of the one that the papers write; chi-square is twice Alpha(2)."""
    log_r = torch.linspace(-6, 6, 25, dtype=torch.float64)
    r = log_r.exp()
    for divergence, weight, slope in [
        (ops.ForwardKL(), r, r),
        (ops.ReverseKL(), torch.ones_like(r), torch.zeros_like(r)),
        (ops.JensenShannon(), r / (1 + r) / 2, r / (1 + r).square() / 2),
        (ops.Alpha(0.5), r.sqrt(), r.sqrt() / 2),
        (ops.Alpha(2.0), r.square(), 2 * r.square()),
    ]:
        found = ratio_weights(divergence, log_r)
        assert torch.allclose(found.weight, weight, rtol=1e-12, atol=1e-14), divergence
        assert torch.allclose(found.slope, slope, rtol=1e-10, atol=1e-13), divergence
    far = ratio_weights(ops.JensenShannon(), torch.tensor([-800.0, 800.0], dtype=torch.float64))
    assert far.weight.tolist() == pytest.approx([0.0, 0.5])
    with pytest.raises(ValueError, match=r"^divergence: got TotalVariation"):
        ratio_weights(ops.TotalVariation(), log_r)


class Labelled(nn.Module):
    """An exact denoiser of two classes and of both; label -1 is none."""

    def forward(self, x, t, label):
        parts = {-1: REAL, 0: samples(-1.0, 0.5), 1: samples(1.4, 0.7)}
        found = torch.empty_like(x)
        for value, bed in parts.items():
            rows = label == value
            found[rows] = bed.on(RectifiedFlow()).predict(x[rows], t[rows]).value
        return found


def guided_view(scale, convention):
    path, times = RectifiedFlow(), single(0.4)
    label = torch.arange(len(Z)) % 2
    teacher = Teacher(Network(Labelled(), times="t"), "x0")
    x = MEAN + DEVIATION * Z
    return GapView(
        path, x, path.corrupt(x, E, times), times, {"label": label}, {"label": torch.full_like(label, -1)},
        real=Guided(teacher, scale, convention), critic=samples(MEAN, DEVIATION).on(path),
    )  # fmt: skip


def test_guidance_conventions_and_the_parts_of_the_guided_gap():
    view, other = guided_view(4.0, "from_unconditional"), guided_view(3.0, "from_conditional")
    assert torch.allclose(view.real.guided, other.real.guided)
    c, u = view.real.conditional, view.real.unconditional
    assert torch.allclose(view.real.guided, u + 4 * (c - u))
    assert torch.allclose(GuidanceGap().field(view), 3 * (u - c))
    both = DistributionGap(guided=False).field(view) + GuidanceGap().field(view)
    assert torch.allclose(both, DistributionGap().field(view), rtol=1e-6, atol=1e-12)
    assert float(GuidanceGap().field(view).abs().max()) > 0.1


class Affine(nn.Module):
    """An affine clean state: enough for the exact denoiser of a Gaussian at one level."""

    def __init__(self, slope, shift):
        super().__init__()
        self.slope, self.shift = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (slope, shift))

    def forward(self, x, t):
        return self.slope * x + self.shift


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("above", [0.3, 0.01])
@pytest.mark.parametrize("target", ["transition", "sample"])
def test_a_critic_above_the_data_learns_the_score_of_what_it_sees(path, above, target, monkeypatch):
    """Noise is added to x_s; the transition's target is exact, the estimate of the data is not."""
    s, t = 0.2, 0.2 + above
    # A sample whose own noise depends on it, as a generator's does: x_s = alpha_s x + sigma_s (-0.5 x / deviation).
    x = MEAN + DEVIATION * Z
    state = path.alpha(s) * x - path.sigma(s) * 0.5 * Z
    spread_s = float(path.alpha(s) * DEVIATION - 0.5 * path.sigma(s))
    mean_s = float(path.alpha(s) * MEAN)
    rolled = Rolled(x, single(t), state, single(s))
    scale, spread = (float(part) for part in transition(path, single(s)[:1], single(t)[:1]))
    drawn = noised(path, rolled, single(t), E)
    assert torch.allclose(drawn.x_t, scale * state + spread * E)
    variance = (scale * spread_s) ** 2 + spread**2
    # (x_t + sigma_t^2 score) / alpha_t with the score of N(scale mean_s, variance).
    alpha, noise = float(path.alpha(t)), float(path.sigma(t)) ** 2
    network = Affine((1 - noise / variance) / alpha, noise * scale * mean_s / variance / alpha)
    monkeypatch.setattr(critics, "draw_noised", lambda *_: drawn)
    critic = Critic(Network(network, times="t"), "x0", target=target)
    rows = critic.fit(path, rolled, None, 0)
    gradients = torch.autograd.grad((W[:, 0] * rows).sum(), list(network.parameters()))
    biggest = max(abs(float(part)) for part in gradients)
    assert rows.isfinite().all()
    assert (biggest < 1e-9) if target == "transition" else (biggest > 1e-3)


def test_the_published_subinterval_target():
    """x_s / alpha_s - alpha_t sigma_s^2 / (alpha_s^2 s_(t|s)) eps; at s = 0 the sample itself."""
    path, s, t = RectifiedFlow(), 0.4, 0.7
    alpha, sigma, alpha_t, sigma_t = 0.6, 0.4, 0.3, 0.7
    scale, spread = transition(path, single(s)[:1], single(t)[:1])
    assert float(scale) == pytest.approx(alpha_t / alpha)
    assert float(spread) == pytest.approx(math.sqrt(sigma_t**2 - (alpha_t / alpha * sigma) ** 2))
    rolled = Rolled(Z, single(t), E, single(s))
    drawn = noised(path, rolled, single(t), Z)
    clean = E / alpha - alpha_t * sigma**2 / (alpha**2 * float(spread)) * Z
    score = (alpha_t * clean - drawn.x_t) / sigma_t**2
    assert torch.allclose(score, -Z / float(spread), atol=1e-10)
    data = Rolled(Z, single(t), Z, torch.zeros(len(Z), dtype=torch.float64))
    plain = noised(path, Rolled(Z, single(t)), single(t), E)
    assert torch.allclose(noised(path, data, single(t), E).x_t, plain.x_t, atol=1e-14)
    assert isinstance(plain, Noised)


def test_an_exact_critic_leaves_nothing_to_move():
    path = VP()
    bed = Gaussian((0.3,), (0.8,))
    view = GapView(path, Z, path.corrupt(Z, E, single(0.5)), single(0.5), real=bed.on(path), critic=bed.on(path))
    assert float(DistributionGap().field(view).abs().max()) == 0
    assert float(FisherGap().field(view).abs().max()) == 0


def test_half_precision_is_compared_in_single():
    path = RectifiedFlow()

    class Half:
        def predict(self, x, t, condition=None):
            return Prediction((0.5 * x).bfloat16(), "velocity")

    x = Z[:8].bfloat16()
    view = GapView(path, x, x, single(0.5)[:8], real=Half(), critic=Half())
    assert DistributionGap().field(view).dtype == torch.float32
    assert view.x.dtype == torch.float32
