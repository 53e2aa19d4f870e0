import math

import pytest
import torch

from distillrs.errors import ArgumentError
from distillrs.schedule import (
    EDM,
    VP,
    Grid,
    RectifiedFlow,
    Trig,
    coefficients,
    evaluations,
    integrate,
    karras,
    momentum_displacement,
    spaced,
    stages,
)  # fmt: skip

MEAN, DEVIATION = 0.7, 0.6
X = torch.tensor([[-1.3], [0.4], [2.0]], dtype=torch.float64)


def gaussian(path):
    """The exact denoiser of N(MEAN, DEVIATION^2), and its exact flow from one time to another."""

    def scale(t):
        return (path.alpha(t) ** 2 * DEVIATION**2 + path.sigma(t) ** 2).sqrt()

    def denoise(x, t):
        alpha = path.alpha(t)
        return MEAN + alpha * DEVIATION**2 / scale(t) ** 2 * (x - alpha * MEAN)

    def flow(x, t, r):
        return path.alpha(r) * MEAN + scale(r) / scale(t) * (x - path.alpha(t) * MEAN)

    return denoise, flow


@pytest.mark.parametrize("path", [RectifiedFlow(), Trig(), VP(), EDM(5.0)], ids=str)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("ddim", 1), ("dpm++2m", 2)])
def test_solvers_converge_with_their_order_to_the_known_flow(path, solver, order):
    denoise, flow = gaussian(path)
    errors = []
    for steps in (150, 300):
        grid = spaced(steps, path, start=0.9, end=0.1)
        found = integrate(grid, X, denoise, solver=solver, kind="x0")
        errors.append(float((found - flow(X, 0.9, 0.1)).abs().max()))
    # More than its order is luck of the symmetric flow, less a wrong coefficient or an error that changes its sign.
    assert math.log2(errors[0] / errors[1]) > order - 0.25 or errors[1] < 1e-6
    assert errors[1] < 0.05 / 100 ** (order - 1)


def test_ddim_is_exact_for_data_at_one_point_and_euler_for_a_straight_flow():
    for path in (VP(), EDM(), Trig()):
        grid = Grid([0.9, 0.2], path)
        found = integrate(grid, X, lambda x, t: torch.full_like(x, MEAN), solver="ddim", kind="x0")
        noise = (X - path.alpha(0.9) * MEAN) / path.sigma(0.9)
        assert torch.allclose(found, path.alpha(0.2) * MEAN + path.sigma(0.2) * noise)
    grid = Grid([1.0, 0.3], RectifiedFlow())
    weights = [coefficients(grid, solver) for solver in ("euler", "ddim")]
    assert [weight.kind for weight in weights] == ["velocity", "x0"]
    straight = integrate(grid, X, lambda x, t: X - MEAN, solver="euler")
    assert torch.allclose(straight, 0.3 * X + 0.7 * MEAN)
    by_ddim = integrate(grid, X, lambda x, t: X - MEAN, solver="ddim")
    assert torch.allclose(by_ddim, straight)


def test_the_second_order_multistep_is_the_published_recursion():
    path = VP()
    grid = spaced(5, path, start=0.95, end=0.05)
    alpha, sigma = grid.alphas, grid.sigmas
    half = (alpha / sigma).log()
    denoise, _ = gaussian(path)
    x, before = X, None
    for i in range(5):
        h = half[i + 1] - half[i]
        now = denoise(x, grid.times[i])
        extrapolated = now if before is None else now + (now - before) / (2 * (half[i] - half[i - 1]) / h)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-h) * extrapolated
        before = now
    assert torch.allclose(integrate(grid, X, denoise, solver="dpm++2m", kind="x0"), x, rtol=1e-12)


def test_steps_to_the_data_and_from_pure_noise_are_finite():
    for path, solver in ((EDM(), "heun"), (EDM(), "dpm++2m"), (RectifiedFlow(), "dpm++2m"), (VP.cosine(), "ddim")):
        grid = karras(6) if isinstance(path, EDM) else spaced(6, path)
        denoise, _ = gaussian(path)
        assert bool(integrate(grid, X, denoise, solver=solver, kind="x0").isfinite().all()), (path, solver)
    weights = coefficients(spaced(3, RectifiedFlow()), "dpm++2m")
    assert weights.previous[[0, 1, 2]].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "ddim", "dpm++2m"])
def test_evaluations_are_counted(solver):
    for grid in (karras(5), spaced(5, EDM(), end=0.1)):
        calls = []

        def predict(x, t, calls=calls):
            calls.append(t)
            return gaussian(EDM())[0](x, t)

        every = integrate(grid, X, predict, solver=solver, kind="x0", every=True)
        assert len(calls) == evaluations(grid, solver)
        assert every.shape == (6, 3, 1)


def test_momentum_displacement_is_the_integral_and_eulers_step_in_the_limit():
    t, r, start = (torch.tensor(value, dtype=torch.float64) for value in (0.8, 0.3, 0.9))
    for gain in (-3.0, -1e-3, -1e-5, 0.0, 1e-5, 2e-4, 1.5):
        log_gain = torch.tensor(gain, dtype=torch.float64)
        nodes = torch.linspace(0.8, 0.3, 4097, dtype=torch.float64)
        integral = torch.trapezoid((log_gain * (start - nodes)).exp(), nodes)
        assert float(momentum_displacement(log_gain, t, r, start)) == pytest.approx(float(integral), rel=1e-7)
        assert torch.autograd.gradcheck(
            lambda gain: momentum_displacement(gain, t, r, start), log_gain.clone().requires_grad_()
        )
    assert float(momentum_displacement(torch.tensor(0.0).double(), t, r)) == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: integrate(karras(3), X, lambda x, t: x, solver="rk4"), "solver.*'rk4'"),
        (lambda: integrate(karras(3), X, lambda x, t: x[:1]), "^predict: got 'shape"),
        (lambda: integrate(karras(3), X.long(), lambda x, t: x), "^x: got"),
        (lambda: coefficients(karras(3), "heun"), "solver.*'heun'"),
        (lambda: evaluations(karras(3), "rk4"), "solver.*'rk4'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize("path", [RectifiedFlow(), VP()], ids=str)
@pytest.mark.parametrize("solver", ["heun", "midpoint"])
@pytest.mark.parametrize("end", [0.1, 0.0])
def test_two_stages_are_the_steps_that_are_taken(path, solver, end):
    denoise, _ = gaussian(path)
    grid = spaced(5, path, start=0.9, end=end)
    two, times = stages(grid, solver), grid.times

    def velocity(x, t):
        return path.convert(denoise(x, t), x, t, kind="x0", to="velocity")

    x = X
    for index in range(5):
        step = times[index + 1] - times[index]
        first = velocity(x, times[index])
        slope = two.first[index] * first
        if two.second[index] != 0:
            slope = slope + two.second[index] * velocity(x + two.share[index] * step * first, two.time[index])
        x = x + step * slope
    found = integrate(grid, X, denoise, solver=solver, kind="x0")
    assert torch.allclose(found, x, rtol=1e-13, atol=0)
    assert evaluations(grid, solver) == 5 + int((two.second != 0).sum()) == 10 - (solver == "heun" and end == 0)
    # Of first order each: the weights of the velocities sum to one; of second: the second one's place makes up half.
    assert torch.allclose(two.first + two.second, torch.ones(5, dtype=torch.float64))
    full = two.second != 0
    assert torch.allclose((two.second * two.share)[full], torch.full((int(full.sum()),), 0.5, dtype=torch.float64))
    assert torch.allclose(two.time[full], (times[:-1] + two.share * times.diff())[full])
