"""Fair latents: distance covariance by brute force, the two objectives by their formulas, and what they do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillrs as dr
from distillrs import condense, recipes
from distillrs.condense.latents import gaussian_divergence, sampled
from distillrs.errors import ArgumentError
from distillrs.registry import find_recipe


def code(seed=0, latents=3, width=8):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return condense.GaussianCode(
            nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2 * latents)).double()
        )


def decoder(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def data(count=64):
    generator = torch.Generator().manual_seed(0)
    s = (torch.rand(count, generator=generator) < 0.5).double()
    x = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    return torch.cat([x[:, :3], x[:, 3:] + 4 * s[:, None]], 1), s


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
def test_distance_covariance_is_the_double_loop(n, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (n, width), generator=generator).double()
    y = torch.rand(n, dtype=torch.float64, generator=generator)
    a = [[float((x[i] - x[j]).norm()) for j in range(n)] for i in range(n)]
    b = [[abs(float(y[i] - y[j])) for j in range(n)] for i in range(n)]

    def centred(d, i, j):
        row, column = sum(d[i]) / n, sum(d[k][j] for k in range(n)) / n
        return d[i][j] - row - column + sum(map(sum, d)) / n**2

    expected = sum(centred(a, i, j) * centred(b, i, j) for i in range(n) for j in range(n)) / n**2
    assert float(condense.distance_covariance(x, y)) == pytest.approx(expected, abs=1e-9)
    assert float(condense.distance_covariance(y, x)) == pytest.approx(expected, abs=1e-9)
    assert expected >= -1e-9


def test_distance_covariance_sees_dependence_without_correlation_and_falls_to_zero_without_any():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, dtype=torch.float64, generator=generator)
    dependent = float(condense.distance_covariance(x, x.square()))
    shuffled = [
        float(condense.distance_covariance(x, x.square()[torch.randperm(400, generator=generator)])) for _ in range(5)
    ]
    assert dependent > 10 * max(shuffled)
    # All of x with all of s: exactly independent, whatever the values.
    grid = x[:6].repeat_interleave(3), torch.arange(3.0, dtype=torch.float64).repeat(6)
    assert abs(float(condense.distance_covariance(*grid))) < 1e-12


def test_the_gradient_of_distance_covariance_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: 3 * condense.distance_covariance(z, y), (x,))
    same = torch.ones(4, 2, dtype=torch.float64, requires_grad=True)
    condense.distance_covariance(same, y[:4]).backward()
    assert torch.equal(same.grad, torch.zeros_like(same))


def test_the_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(2)
    a, b, c, d = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(4))
    p, q = (torch.distributions.Normal(mean, (log / 2).exp()) for mean, log in ((a, b), (c, d)))
    torch.testing.assert_close(gaussian_divergence(a, b, c, d), torch.distributions.kl_divergence(p, q).sum(1))


def test_the_teachers_loss_is_its_formula():
    encoder, dec, (x, s), step = code(), decoder(), data(8), dr.Step(3, seed=1)
    made = recipes.fair_latent_teacher(encoder, dec, fairness=5.0, divergence=0.3)
    loss = made((x, s), step)
    mean, log = encoder.body(x)[:, :3], encoder.body(x)[:, 3:]
    z = mean + (log / 2).exp() * dr.random.normal(8, 3, step=step, name="latent").to(x)
    prior = (log.exp() + mean.square() - 1 - log).sum(1).mean() / 2
    total = (dec(z) - x).square().sum() / 16 + 0.3 * prior + 5 * condense.distance_covariance(z, s)
    torch.testing.assert_close(loss.total, total)
    parameters = made.parameter_groups()["teacher"]
    assert len(parameters) == 8
    for one, two in zip(*(torch.autograd.grad(3 * each, parameters) for each in (loss.total, total)), strict=True):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(made((x, s), dr.Step(3, seed=1, items=16)).total, total / 2)
    assert not made.state_dict()


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_students_loss_is_its_formula_and_leaves_the_teacher_alone(distance):
    teacher, student, (x, _), step = code(), code(1, width=2), data(8), dr.Step(2)
    made = recipes.fair_latent_distill(student, teacher, quality=2.0, utility=0.5, distance=distance)
    loss = made((x, "anything"), step)
    own, wanted = student(x), [each.detach() for each in teacher(x)]
    noise = dr.random.normal(8, 3, step=step, name="latent").to(x)
    apart = own[0] + (own[1] / 2).exp() * noise - wanted[0] - (wanted[1] / 2).exp() * noise
    norm = apart.abs() if distance == "l1" else apart.square()
    total = 2 * norm.sum(1).mean() + 0.5 * gaussian_divergence(*own, *wanted).mean()
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(made(x, step).total, total)
    parameters = made.parameter_groups()["student"]
    for one, two in zip(*(torch.autograd.grad(3 * each, parameters) for each in (loss.total, total)), strict=True):
        torch.testing.assert_close(one, two)
    assert not any(each.requires_grad for each in teacher.parameters())
    assert not list(made.parameters())
    same = recipes.fair_latent_distill(teacher, teacher)(x, step)
    assert abs(float(same.total.detach())) < 1e-12


def test_fairness_takes_the_attribute_out_of_the_latents_and_a_student_keeps_it_out():
    x, s = data()
    dependence = {}
    for fairness in (0.0, 30.0):
        encoder, dec = code(), decoder()
        made = recipes.fair_latent_teacher(encoder, dec, fairness=fairness, divergence=0.05)
        first = made((x, s), 0).terms["reconstruction"]
        optimiser = torch.optim.Adam(made.parameter_groups()["teacher"], lr=0.01)
        dr.fit(made, optimiser, 150, batches=lambda step: (x, s))
        assert made((x, s), 500).terms["reconstruction"] < first
        student = code(3, width=4)
        learner = recipes.fair_latent_distill(student, encoder)
        before = learner(x, 0).terms["quality"]
        dr.fit(learner, torch.optim.Adam(learner.parameter_groups()["student"], lr=0.02), 150, batches=lambda step: x)
        assert learner(x, 0).terms["quality"] < 0.5 * before
        dependence[fairness] = [
            float(condense.distance_covariance(net(x)[0].detach(), s)) for net in (encoder, student)
        ]
    assert dependence[30.0][0] < 0.3 * dependence[0.0][0]
    assert dependence[30.0][1] < 0.5 * dependence[0.0][1]


def test_new_examples_belong_to_real_ones_and_do_not_depend_on_the_batch():
    encoder, dec, (x, _) = code(), decoder(), data(10)
    plain = condense.generated(encoder, dec, x, spread=0.0)
    torch.testing.assert_close(plain, dec(encoder(x)[0]).detach())
    whole = condense.generated(encoder, dec, x, step=4)
    torch.testing.assert_close(condense.generated(encoder, dec, x, step=4, batch=3), whole)
    drawn = sampled(*encoder(x), 4, range(10), name="generated")
    torch.testing.assert_close(whole, dec(drawn).detach())
    assert not torch.allclose(condense.generated(encoder, dec, x, step=5), whole)


def test_the_recipe_says_what_it_is_for():
    assert find_recipe("fair-latent-distill").engine == "latents"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: recipes.fair_latent_teacher(code(), decoder(), fairness=-1), "fairness"),
        (lambda: recipes.fair_latent_teacher(code(), decoder(), divergence=-1), "divergence"),
        (lambda: recipes.fair_latent_distill(code(), code(), quality=-1), "quality"),
        (lambda: recipes.fair_latent_distill(code(), code(), utility="some"), "utility"),
        (lambda: condense.generated(code(), decoder(), data(4)[0], spread="wide"), "spread"),
        (lambda: recipes.fair_latent_distill(code(), code(), distance="l3"), "distance"),
        (lambda: recipes.fair_latent_distill(code(latents=2), code())(data(4)[0], 0), "student"),
        (lambda: recipes.fair_latent_distill(code(), code())(data(4)[0], 0, turn="critic"), "turn"),
        (lambda: condense.GaussianCode(nn.Linear(4, 3).double())(data(4)[0]), "body"),
        (lambda: condense.distance_covariance(torch.ones(3, 2), torch.ones(2)), "y"),
        (lambda: condense.distance_covariance(3, torch.ones(2)), "x"),
        (lambda: condense.distance_covariance(torch.ones(1), torch.tensor(1.0)), "y"),
        (lambda: recipes.fair_latent_teacher(3, decoder()), "encoder"),
        (lambda: recipes.fair_latent_teacher(code(), 3), "decoder"),
        (lambda: recipes.fair_latent_teacher(code(), decoder(), reconstruction=3), "reconstruction"),
        (lambda: recipes.fair_latent_distill(3, code()), "student"),
        (lambda: recipes.fair_latent_distill(code(), 4), "teacher"),
        (lambda: condense.generated(code(), decoder(), data(4)[0], spread=-1), "spread"),
    ],
)
def test_what_is_refused_names_itself(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call()
