import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import random
from distillrs.schedule import EDM, VP, RectifiedFlow, Residual, SubVP, Trig
from distillrs.testing import check_path, strategies

PATHS = strategies.paths()
ANY_PATHS = strategies.paths(referenced=True)
INSIDE = st.floats(0.02, 0.98)
KINDS = ("x0", "noise", "v", "velocity", "score")


def normal(name, *shape):
    return random.normal(1, *shape, step=0, name=name, dtype=torch.float64)[0]


def kinds_of(path, x0, noise, t, reference=None):
    """Every kind from its definition; the velocity from automatic differentiation of the state."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = path.alpha(t), path.sigma(t)
    _, velocity = torch.func.jvp(
        lambda time: path.corrupt(x0, noise, time, reference=reference), (time,), (torch.ones_like(time),)
    )
    found = {
        "x0": x0,
        "noise": noise,
        "v": (alpha * noise - sigma * x0) / (alpha**2 + sigma**2).sqrt(),
        "velocity": velocity,
        "score": -noise / sigma,
    }
    deviation = path.sigma_data
    if isinstance(path, EDM):
        root = (sigma**2 + deviation**2).sqrt()
        state = x0 + sigma * noise
        found["F"] = (x0 - deviation**2 / root**2 * state) / (sigma * deviation / root)
    if isinstance(path, Trig):
        angle = math.pi * t / 2
        state = x0 * math.cos(angle) + deviation * noise * math.sin(angle)
        found["F"] = (state * math.cos(angle) - x0) / (math.sin(angle) * deviation)
    return found


@given(path=ANY_PATHS)
def test_every_path_keeps_the_promises_of_paths(path):
    check_path(path)


@given(path=ANY_PATHS, t=INSIDE)
def test_conversions_agree_with_the_definitions(path, t):
    x0, noise, y = normal("x", 3, 4), normal("e", 3, 4), normal("y", 3, 4)
    reference = y if isinstance(path, Residual) else None
    state = path.corrupt(x0, noise, t, reference=reference)
    kinds = kinds_of(path, x0, noise, t, reference)
    for kind, value in kinds.items():
        for to, expected in kinds.items():
            found = path.convert(value, state, t, kind=kind, to=to, reference=reference)
            scale = 1 + float(expected.abs().max()) + float(value.abs().max()) + 1 / float(path.alpha(t))
            # Signal-to-noise at the times drawn is down to 1e-5: noise to x0 divides by alpha.
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11 * scale**2), (kind, to)


@given(path=PATHS, t=INSIDE, mean=st.floats(-3, 3), deviation=st.floats(0.1, 3))
def test_on_gaussian_data_score_and_velocity_are_those_of_the_closed_form(path, t, mean, deviation):
    """The marginal is N(alpha m, S^2), S^2 = alpha^2 s^2 + sigma^2; its flow carries (x - alpha m) / S."""
    x = normal("state", 5)
    alpha, sigma = path.alpha(t), path.sigma(t)
    rate, growth = path.alpha_derivative(t), path.sigma_derivative(t)
    variance = alpha**2 * deviation**2 + sigma**2
    denoised = mean + alpha * deviation**2 / variance * (x - alpha * mean)
    score = -(x - alpha * mean) / variance
    slope = (alpha * rate * deviation**2 + sigma * growth) / variance
    velocity = rate * mean + slope * (x - alpha * mean)
    assert torch.allclose(path.convert(denoised, x, t, kind="x0", to="score"), score, rtol=1e-7, atol=1e-8)
    assert torch.allclose(path.convert(score, x, t, kind="score", to="x0"), denoised, rtol=1e-6, atol=1e-7)
    found = path.convert(denoised, x, t, kind="x0", to="velocity")
    assert torch.allclose(found, velocity, rtol=1e-7, atol=1e-7 * (1 + float(growth)))


@given(path=ANY_PATHS, other=PATHS, t=st.floats(0.05, 0.5))
def test_a_state_that_moves_is_the_state_of_the_same_data_and_noise_there(path, other, t):
    x0, noise, y = normal("x", 4), normal("e", 4), normal("y", 4)
    log_snr = float(path.log_snr(t))
    if log_snr <= float(other.log_snr(1.0)):
        return
    reference = y if isinstance(path, Residual) else None
    moved = path.move(path.corrupt(x0, noise, t, reference=reference), t, other, reference=reference)
    assert torch.allclose(other.log_snr(moved.time), torch.tensor(log_snr, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    # Levels of noise in units of their own data: Trig's noise is sigma_data wide, but so is its sigma.
    assert torch.allclose(moved.x, other.corrupt(x0, noise, moved.time), rtol=1e-9, atol=1e-9)
    if reference is None and t < 0.3:
        back = other.move(moved.x, moved.time, path)
        assert float(back.time) == pytest.approx(t, abs=1e-10)
        assert torch.allclose(back.x, path.corrupt(x0, noise, t), rtol=1e-9, atol=1e-9)


@given(path=ANY_PATHS, rows=st.integers(1, 3), frames=st.integers(1, 3), kind=st.sampled_from(KINDS))
def test_times_per_batch_frame_and_token_are_those_of_each_alone(path, rows, frames, kind):
    x0, noise, y = (normal(name, rows, frames, 2) for name in "xey")
    times = random.uniform(rows, frames, step=0, name="t", dtype=torch.float64) * 0.9 + 0.05
    reference = y if isinstance(path, Residual) else None
    state = path.corrupt(x0, noise, times, reference=reference)
    value = path.convert(x0, state, times, kind="x0", to=kind, reference=reference)
    for row in range(rows):
        for frame in range(frames):
            at = (row, frame)
            alone = None if reference is None else reference[at]
            expected = path.corrupt(x0[at], noise[at], float(times[at]), reference=alone)
            assert torch.allclose(state[at], expected, rtol=1e-13, atol=1e-13)
            expected = path.convert(x0[at], expected, float(times[at]), kind="x0", to=kind, reference=alone)
            assert torch.allclose(value[at], expected, rtol=1e-9, atol=1e-9)
    by_row = path.corrupt(x0, noise, times[:, :1], reference=reference)
    assert torch.equal(by_row, path.corrupt(x0, noise, times[:, 0], reference=reference))


@given(path=ANY_PATHS, t=INSIDE, kind=st.sampled_from(KINDS), to=st.sampled_from(KINDS))
def test_forward_and_backward_derivatives_of_conversions_agree_with_differences(path, t, kind, to):
    if isinstance(path, Residual) or (isinstance(path, (VP, SubVP)) and path.signal.rows):
        rows = path._rows()
        if abs(t * rows - round(t * rows)) < 0.01 or rows > 100:
            return  # a kink of the table
    value, state, y = normal("x", 2), normal("e", 2), normal("y", 2)
    reference = y if isinstance(path, Residual) else None

    def convert(value, state, time):
        return path.convert(value, state, time, kind=kind, to=to, reference=reference)

    time = torch.tensor(t, dtype=torch.float64)
    tangents = (normal("a", 2), normal("b", 2), torch.tensor(0.7, dtype=torch.float64))
    _, forward = torch.func.jvp(convert, (value, state, time), tangents)
    step = 1e-6
    ahead = convert(value + step * tangents[0], state + step * tangents[1], time + step * 0.7)
    behind = convert(value - step * tangents[0], state - step * tangents[1], time - step * 0.7)
    difference = (ahead - behind) / (2 * step)
    scale = 1 + float(forward.abs().max())
    assert torch.allclose(forward, difference, rtol=1e-4, atol=1e-5 * scale)
    upstream = normal("u", 2)
    leaves = [tensor.clone().requires_grad_() for tensor in (value, state, time)]
    grads = torch.autograd.grad(convert(*leaves), leaves, upstream, allow_unused=True)
    back = sum((grad * tangent).sum() for grad, tangent in zip(grads, tangents, strict=True) if grad is not None)
    assert float(back) == pytest.approx(float((forward * upstream).sum()), rel=1e-9, abs=1e-9 * scale)


@given(path=PATHS, dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), t=INSIDE)
def test_values_keep_their_type_and_are_rounded_once(path, dtype, t):
    x0, noise = normal("x", 50).to(dtype), normal("e", 50).to(dtype)
    state = path.corrupt(x0, noise, t)
    assert state.dtype == dtype
    exact = path.corrupt(x0.double(), noise.double(), t)
    size = float(path.sigma(t) + path.alpha(t)) * 4
    assert float((state.double() - exact).abs().max()) <= 2 * torch.finfo(dtype).eps * size
    assert path.convert(x0, state, t, kind="velocity", to="x0").dtype == dtype


@given(t=st.floats(0, 1))
def test_the_velocity_of_a_rectified_flow_is_the_chord(t):
    path, x0, noise = RectifiedFlow(), normal("x", 3), normal("e", 3)
    state = path.corrupt(x0, noise, t)
    assert torch.allclose(path.convert(noise - x0, state, t, kind="velocity", to="x0"), x0, rtol=1e-14, atol=1e-14)
    assert torch.allclose(path.convert(noise - x0, state, t, kind="velocity", to="noise"), noise, atol=1e-14)
