"""`mixture_denoiser` and `mixture_log_density` against the whole matrix in float64, differentiated by autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp, vmap

from distillrs import ops

BACKENDS = ["torch", "rust", "cuda"]


def textbook(x, data, alpha, sigma, bandwidth, weights):
    """[n, d] and [n] in float64, from the matrix of all distances."""
    rows, points = x.flatten(1).double(), data.flatten(1).double()
    alpha, sigma = (torch.as_tensor(value, dtype=torch.float64).expand(len(rows)) for value in (alpha, sigma))
    variance = sigma**2 + alpha**2 * bandwidth**2
    distance = (rows[:, None] - alpha[:, None, None] * points).square().sum(-1)
    weights = torch.ones(len(points), dtype=torch.float64) if weights is None else weights.double()
    logits = weights.log() - distance / (2 * variance[:, None])
    mean = (sigma**2 / variance)[:, None] * (logits.softmax(-1) @ points)
    x0 = mean + (alpha * bandwidth**2 / variance)[:, None] * rows
    constant = rows.shape[1] / 2 * (2 * math.pi * variance).log() + weights.sum().log()
    return x0.reshape(x.shape), logits.logsumexp(-1) - constant


@st.composite
def cases(draw):
    rows, points = draw(st.integers(1, 9) | st.just(70)), draw(st.integers(1, 40) | st.sampled_from([255, 300]))
    features = draw(st.sampled_from([(1,), (2,), (7,), (16,), (33,), (2, 3, 4)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    offset = draw(st.sampled_from([0.0, 10.0, -300.0]))
    data = normal(points, *features) + offset
    alpha = draw(st.sampled_from([1.0, 0.5, normal(rows).abs().clamp(0.05, 1.5)]))
    sigma = draw(st.sampled_from([0.3, 2.0, normal(rows).abs().clamp(0.1, 3.0)]))
    chosen = torch.randint(0, points, (rows,), generator=generator)
    scale = (torch.as_tensor(value, dtype=torch.float64).expand(rows) for value in (alpha, sigma))
    alphas, sigmas = (value.reshape(rows, *[1] * len(features)) for value in scale)
    x = alphas * data[chosen] + sigmas * normal(rows, *features)
    weights = None
    if draw(st.booleans()):
        weights = normal(points).abs() * (torch.rand(points, generator=generator) > 0.3)
        weights[draw(st.integers(0, points - 1))] = 0.7
    return x, data, {"alpha": alpha, "sigma": sigma, "bandwidth": draw(st.sampled_from([0.0, 0.4])), "weights": weights}


def both(function, *inputs):
    """The value, its derivative along a direction, and the gradient under an upstream that is not a scalar one."""
    generator = torch.Generator().manual_seed(5)
    along = tuple(torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for value in inputs)
    value, forward = jvp(function, inputs, along)
    leaves = [value.clone().requires_grad_() for value in inputs]
    found = function(*leaves)
    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64).to(found)
    return value, forward, torch.autograd.grad(found, leaves, upstream)


def assert_close(found, exact, tolerance):
    error = float((found.double() - exact).abs().max())
    assert error <= tolerance * (1 + float(exact.abs().max())), (error, float(exact.abs().max()))


@pytest.mark.parametrize("which", [0, 1], ids=["denoiser", "log_density"])
@given(case=cases())
def test_values_and_derivatives_are_those_of_the_whole_matrix(which, case):
    x, data, arguments = case
    ours = (ops.mixture_denoiser, ops.mixture_log_density)[which]
    rest = {name: arguments[name] for name in ("bandwidth", "weights")}
    alpha, sigma = (torch.as_tensor(arguments[name], dtype=torch.float64) for name in ("alpha", "sigma"))
    found = both(lambda *inputs: ours(inputs[0], data, *inputs[1:], **rest), x, alpha, sigma)
    exact = both(lambda *inputs: textbook(inputs[0], data, *inputs[1:], *rest.values())[which], x, alpha, sigma)
    assert found[0].dtype == torch.float64
    for mine, true in zip([*found[:2], *found[2]], [*exact[:2], *exact[2]], strict=True):
        assert_close(mine, true, 1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
def test_float32_rows_give_what_their_own_rounding_allows(backend, case):
    x, data, arguments = case
    x, data = x.float(), data.float()
    rest = {name: arguments[name] for name in ("bandwidth", "weights")}
    alpha, sigma = (torch.as_tensor(arguments[name], dtype=torch.float64) for name in ("alpha", "sigma"))

    def denoiser(*inputs):
        return ops.mixture_denoiser(inputs[0], data, *inputs[1:], **rest, backend=backend)

    ours = both(denoiser, x, alpha, sigma)
    exact = both(lambda *inputs: textbook(inputs[0], data, *inputs[1:], *rest.values())[0], x.double(), alpha, sigma)
    assert ours[0].dtype == torch.float32
    assert ours[2][0].dtype == torch.float32
    assert_close(ours[0], exact[0], 2e-6)
    # A derivative is a difference of products of points: the points' size is its scale.
    size = 1 + float(data.abs().max())
    for mine, true in zip([ours[1], *ours[2]], [exact[1], *exact[2]], strict=True):
        assert_close(mine, true, 1e-5 * size)


@pytest.mark.parametrize("backend", ["cuda"])
@settings(max_examples=30)
@given(case=cases())
def test_float32_densities_give_what_their_own_rounding_allows(backend, case):
    x, data, arguments = case
    x, data = x.float(), data.float()
    rest = {name: arguments[name] for name in ("bandwidth", "weights")}
    alpha, sigma = (torch.as_tensor(arguments[name], dtype=torch.float64) for name in ("alpha", "sigma"))

    def density(*inputs):
        return ops.mixture_log_density(inputs[0], data, *inputs[1:], **rest, backend=backend)

    ours = both(density, x, alpha, sigma)
    exact = both(lambda *inputs: textbook(inputs[0], data, *inputs[1:], *rest.values())[1], x.double(), alpha, sigma)
    assert ours[0].dtype == torch.float32
    # The nearest point's distance over the noise is what a density is a difference of.
    assert_close(ours[0], exact[0], 2e-6)
    size = 1 + float(data.abs().max())
    for mine, true in zip([ours[1], *ours[2]], [exact[1], *exact[2]], strict=True):
        assert_close(mine, true, 1e-5 * size)


@given(case=cases(), seed=st.integers(0, 100))
def test_vmap_is_a_loop(case, seed):
    x, data, arguments = case
    rest = {name: arguments[name] for name in ("bandwidth", "weights")}
    scales = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2

    def at(scale, row):
        return ops.mixture_denoiser(row, data, scale[0], scale[1], **rest)

    def speed(scale, row):
        return jvp(lambda s: at(s, row), (scale,), (torch.ones_like(scale),))[1]

    x = x[:2]
    for function in (at, speed):
        found = vmap(vmap(function, (None, 0)), (0, None))(scales, x)
        exact = torch.stack([torch.stack([function(scale, row) for row in x]) for scale in scales])
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    along = torch.ones_like(scales)
    found = jvp(lambda s: vmap(lambda scale: at(scale, x))(s), (scales,), (along,))[1]
    torch.testing.assert_close(found, torch.stack([speed(scale, x) for scale in scales]), rtol=1e-9, atol=1e-9)


@given(case=cases())
def test_tweedie(case):
    x, data, arguments = case
    leaf = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(ops.mixture_log_density(leaf, data, **arguments).sum(), leaf)
    scales = (torch.as_tensor(arguments[name], dtype=torch.float64).expand(len(x)) for name in ("alpha", "sigma"))
    alpha, sigma = (value.reshape(len(x), *[1] * (x.dim() - 1)) for value in scales)
    torch.testing.assert_close(alpha * ops.mixture_denoiser(x, data, **arguments), x + sigma**2 * score)
