import math

import pytest
import torch

from distillrs import random
from distillrs.errors import ArgumentError
from distillrs.evaluate.beds import Gaussian, KernelDensity, LineMixture, digits_kde
from distillrs.evaluate.generation import paired_rmse
from distillrs.schedule import EDM, VP, Grid, RectifiedFlow, Residual, Trig, integrate, spaced

PATHS = [RectifiedFlow(), Trig(0.7), VP(), EDM(5.0)]
GAUSSIAN = Gaussian((0.7, -0.4), (0.6, 1.3))
MIXTURE = LineMixture((-1.5, 0.2, 2.0), (0.3, 0.5, 0.2), (1.0, 2.0, 0.5), dimensions=2)


def normal(name, *shape):
    return random.normal(shape[0], *shape[1:], step=0, name=name, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_denoisers_are_the_posterior_mean_by_quadrature(path):
    nodes = torch.linspace(-9, 9, 6001, dtype=torch.float64)
    x = normal("x", 4, 1)
    cases = [
        (Gaussian((0.7,), (0.6,)), -((nodes - 0.7) ** 2) / (2 * 0.36)),
        (
            LineMixture(MIXTURE.means, MIXTURE.deviations, MIXTURE.weights),
            torch.logsumexp(
                torch.stack(
                    [
                        math.log(w / s) - (nodes - m) ** 2 / (2 * s * s)
                        for m, s, w in zip(MIXTURE.means, MIXTURE.deviations, MIXTURE.weights, strict=True)
                    ]
                ),
                0,
            ),
        ),
    ]
    for bed, prior in cases:
        for t in (0.2, 0.5, 0.9):
            alpha, sigma = path.alpha(t), path.sigma(t)
            weights = (prior - (x - alpha * nodes) ** 2 / (2 * sigma**2)).softmax(1)
            exact = bed.on(path).predict(x, t)
            assert exact.kind == "x0"
            assert torch.allclose(exact.value, (weights * nodes).sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("bed", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_flows_are_the_solution_of_the_probability_flow(path, bed):
    """The identity at r = t, d/dr flow = velocity, the semigroup, the invariance along the velocity, and a solver."""
    x, t, r = normal("x", 5, 2), 0.9, 0.15
    teacher = bed.on(path)
    assert torch.allclose(bed.flow(x, t, t, path), x, atol=1e-9)
    found = bed.flow(x, t, r, path)
    grid = spaced(400, path, start=t, end=r)
    ours = integrate(grid, x, lambda x, t: teacher.predict(x, t).value, solver="heun", kind="x0")
    assert torch.allclose(found, ours, atol=2e-3)
    time = torch.full((5,), r, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda r: bed.flow(x, t, r, path), (time,), (torch.ones_like(time),))
    assert torch.allclose(slope, teacher.velocity(found, r), rtol=1e-6, atol=1e-7)
    half = bed.flow(bed.flow(x, t, 0.5, path), 0.5, r, path)
    assert torch.allclose(half, found, atol=1e-8)
    start = torch.full((5,), t, dtype=torch.float64)
    _, still = torch.func.jvp(
        lambda x, t: bed.flow(x, t, r, path), (x, start), (teacher.velocity(x, t), torch.ones_like(start))
    )
    assert float(still.abs().max()) < 1e-6
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(bed.flow(leaf, t, r, path).sum(), leaf)
    difference = (bed.flow(x + 1e-6, t, r, path) - bed.flow(x - 1e-6, t, r, path)) / 2e-6
    assert torch.allclose(grad, difference, rtol=1e-4, atol=1e-6)


def test_the_score_is_the_gradient_of_the_log_density():
    for path in PATHS:
        x = normal("x", 5, 2).requires_grad_()
        (grad,) = torch.autograd.grad(MIXTURE.log_density(x, 0.4, path).sum(), x)
        assert torch.allclose(MIXTURE.on(path).score(x.detach(), 0.4), grad, rtol=1e-8, atol=1e-9)
    nodes = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    line = LineMixture((0.0, 1.0), (0.5, 0.2))
    assert float(torch.trapezoid(line.log_density(nodes, 0.3, VP()).exp(), nodes[:, 0])) == pytest.approx(1, abs=1e-9)


def test_far_points_flow_without_loss():
    x = torch.tensor([[-30.0], [30.0], [8.0], [-8.0]], dtype=torch.float64)
    line = LineMixture((0.0, 1.0), (0.5, 0.5))
    found = line.flow(x, 0.8, 0.5, RectifiedFlow())
    assert bool(found.isfinite().all())
    assert float(found[0]) < float(found[3]) < float(found[2]) < float(found[1])


def test_draws_have_the_moments_of_their_distribution():
    draws = MIXTURE.sample(40_000, step=3)
    weights = torch.tensor([1.0, 2.0, 0.5]) / 3.5
    mean = float((weights * torch.tensor(MIXTURE.means)).sum())
    second = float((weights * (torch.tensor(MIXTURE.means) ** 2 + torch.tensor(MIXTURE.deviations) ** 2)).sum())
    assert draws.mean(0).tolist() == pytest.approx([mean, mean], abs=0.03)
    assert draws.square().mean(0).tolist() == pytest.approx([second, second], abs=0.05)
    assert GAUSSIAN.sample(40_000, step=3).std(0).tolist() == pytest.approx([0.6, 1.3], abs=0.02)
    assert torch.equal(MIXTURE.sample(range(5, 7), step=3), draws[5:7])


DATA, LABELS = normal("d", 30, 3, 2), torch.arange(30) % 3


def brute(x, data, alpha, sigma, bandwidth):
    rows = []
    for row in x:
        weights = torch.stack(
            [
                torch.exp(-((row - alpha * centre) ** 2).sum() / (2 * (alpha**2 * bandwidth**2 + sigma**2)))
                for centre in data
            ]
        )
        means = torch.stack(
            [
                centre + alpha * bandwidth**2 / (alpha**2 * bandwidth**2 + sigma**2) * (row - alpha * centre)
                for centre in data
            ]
        )
        rows.append((weights[:, None, None] * means).sum(0) / weights.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_kernel_densities_against_brute_force(path):
    bed, x, t = KernelDensity(DATA, 0.4, LABELS), normal("x", 4, 3, 2), 0.6
    alpha, sigma = path.alpha(t), path.sigma(t)
    everything = brute(x, DATA, alpha, sigma, 0.4)
    assert torch.allclose(bed.on(path).predict(x, t).value, everything, rtol=1e-9, atol=1e-10)
    label = torch.tensor([2, -1, 0, 2])
    by_class = torch.cat(
        [
            brute(x[row : row + 1], DATA if value < 0 else DATA[value == LABELS], alpha, sigma, 0.4)
            for row, value in enumerate(label.tolist())
        ]
    )
    found = bed.on(path).predict(x, t, {"label": label}).value
    assert torch.allclose(found, by_class, rtol=1e-9, atol=1e-10)
    guided = bed.on(path, guidance=3.0).predict(x, t, {"label": label}).value
    assert torch.allclose(guided, everything + 3 * (by_class - everything), rtol=1e-8, atol=1e-9)
    assert torch.allclose(guided[1], everything[1], rtol=1e-8)
    assert bed.on(path, guidance=3.0).predict(x, t).value.equal(bed.on(path).predict(x, t).value)


def test_kernel_densities_can_be_differentiated_forwards_through_their_classes():
    teacher = KernelDensity(DATA, 0.4, LABELS).on(RectifiedFlow())
    x, tangent = normal("x", 4, 3, 2), normal("v", 4, 3, 2)
    label = {"label": torch.tensor([2, 1, 0, 2])}
    _, slope = torch.func.jvp(lambda x: teacher.velocity(x, 0.5, label), (x,), (tangent,))
    difference = teacher.velocity(x + 1e-6 * tangent, 0.5, label) - teacher.velocity(x - 1e-6 * tangent, 0.5, label)
    assert torch.allclose(slope, difference / 2e-6, rtol=1e-5, atol=1e-6)


def test_the_digits_bed_has_the_pilots_figures():
    """Paired errors of Euler's steps, as measured when the bed was chosen: .779, .478, .309 and .211."""
    bed = digits_kde()
    assert tuple(bed.data.shape) == (1797, 64)
    assert bed.classes == 10
    assert float(bed.data.mean()) == pytest.approx(0, abs=1e-12)
    assert float(bed.data.std(correction=0)) == pytest.approx(1)
    teacher = bed.on(RectifiedFlow())
    noise = random.normal(64, 64, step=0, name="noise", dtype=torch.float64)
    ends = teacher.endpoints(noise)
    for steps, pilot in ((1, 0.779), (2, 0.478), (4, 0.309), (8, 0.211)):
        found = teacher.endpoints(noise, grid=spaced(steps, RectifiedFlow()), solver="euler")
        assert paired_rmse(found, ends) == pytest.approx(pilot, abs=0.06), steps
    # The reference's own error: a few of the samples lie near the border of two basins.
    assert paired_rmse(teacher.endpoints(noise, steps=80), ends) < 0.1
    few = digits_kde(classes=(0, 1))
    assert set(few.labels.tolist()) == {0, 1}
    # The standardisation stays that of all digits.
    assert torch.equal(few.data, bed.data[torch.isin(bed.labels, torch.tensor([0, 1]))])


def test_guided_endpoints_belong_to_their_class():
    bed = digits_kde()
    label = torch.arange(10)
    noise = random.normal(10, 64, step=0, name="guided", dtype=torch.float64)
    ends = bed.on(RectifiedFlow(), guidance=2.0).endpoints(noise, {"label": label}, steps=20)
    nearest = torch.cdist(ends, bed.data).argmin(1)
    assert bed.labels[nearest].tolist() == label.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Gaussian((0.0,), (1.0, 2.0)), "^deviation: got"),
        (lambda: Gaussian((0.0,), (0.0,)), "^deviation: got"),
        (lambda: Gaussian((math.nan,), (1.0,)), "^mean: got"),
        (lambda: GAUSSIAN.flow(torch.zeros(2, 3), 0.5, 0.1, VP()), "^x: got"),
        (lambda: LineMixture((), ()), "^means: got"),
        (lambda: LineMixture((0.0,), (1.0,), (0.0,)), "^weights: got"),
        (lambda: LineMixture((0.0,), (1.0,), dimensions=0), "^dimensions: got 0"),
        (lambda: MIXTURE.on(VP()).predict(torch.zeros(2, 3), 0.5), "^x: got"),
        (lambda: KernelDensity(DATA, -0.1), "^bandwidth: got -0.1"),
        (lambda: KernelDensity(DATA * math.nan, 0.1), "^data: got"),
        (lambda: KernelDensity(DATA, 0.1, LABELS[:3]), "^labels: got"),
        (lambda: KernelDensity(DATA, 0.1).on(VP(), guidance=2.0), "^guidance: got 2.0"),
        (lambda: KernelDensity(DATA, 0.1).on(VP()).predict(DATA, 0.5, {"label": LABELS}), "^condition: got"),
        (lambda: KernelDensity(DATA, 0.1, LABELS).on(VP()).predict(DATA, 0.5, {"class": LABELS}), "^condition: got"),
        (lambda: KernelDensity(DATA, 0.1, LABELS).on(VP()).predict(DATA, 0.5, {"label": LABELS + 1}), "labels from 1"),
        (lambda: KernelDensity(DATA, 0.1).on(VP()).predict(DATA[..., :1], 0.5), "^x: got"),
        (lambda: GAUSSIAN.on(Residual()), "^path: got"),
        (lambda: GAUSSIAN.on(VP()).endpoints(DATA[:, 0], grid=Grid([0.5, 0.1], VP()), solver="rk"), "solver"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
