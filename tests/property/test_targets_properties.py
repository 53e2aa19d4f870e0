"""Ridge generations against fits made one after the other, and the bound on information against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import ops
from distillrs.knowledge import Inputs, MutualInformation, RidgeGenerations, View

SHARES = st.floats(0, 1)


def random_normal(seed, *shape):
    return dr.random.normal(1, *shape, step=dr.Step(0, seed=seed), name="numbers", dtype=torch.float64)[0]


@st.composite
def kernels(draw):
    """A kernel of some rank, targets, a penalty, and other points."""
    n, rank, m = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 6))
    seed, scale = draw(st.integers(0, 2**32)), 10.0 ** draw(st.integers(-2, 2))
    features = scale * random_normal(seed, n + m, rank)
    targets = random_normal(seed + 1, n + m, 2)
    kernel = features @ features.T
    penalty = 10.0 ** draw(st.integers(-2, 1)) * scale**2
    return kernel[:n, :n], kernel[n:, :n], targets[:n], targets[n:], penalty


@given(kernels(), st.lists(SHARES, max_size=6))
def test_generations_equal_fits_made_one_after_the_other(problem, shares):
    kernel, cross, y, _, penalty = problem
    ridge = RidgeGenerations.of(kernel, y, penalty)
    matrix = kernel + penalty * torch.eye(len(kernel), dtype=torch.float64)
    weights = torch.linalg.solve(matrix, y)
    for share in shares:
        weights = torch.linalg.solve(matrix, share * y + (1 - share) * kernel @ weights)
    torch.testing.assert_close(ridge.fitted(ridge.gains(shares)), kernel @ weights, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ridge.predict(cross, shares), cross @ weights, rtol=1e-7, atol=1e-8)


@given(kernels(), SHARES, st.integers(1, 40))
def test_the_closed_form_equals_the_recursion_and_the_limit_a_larger_penalty(problem, share, generation):
    kernel, _, y, _, penalty = problem
    ridge = RidgeGenerations.of(kernel, y, penalty)
    torch.testing.assert_close(ridge.gains_at(generation, share), ridge.gains([share] * (generation - 1)))
    if share > 1e-3:
        matrix = kernel + penalty / share * torch.eye(len(kernel), dtype=torch.float64)
        expected = kernel @ torch.linalg.solve(matrix, y)
        torch.testing.assert_close(ridge.fitted(ridge.limit(share)), expected, rtol=1e-7, atol=1e-8)


@given(kernels(), st.integers(2, 4))
def test_chosen_shares_are_the_best_of_any(problem, generations):
    kernel, cross, y, truth, penalty = problem
    ridge = RidgeGenerations.of(kernel, y, penalty)
    shares = ridge.choose(cross, truth, generations)

    def error(share):
        return float((ridge.predict(cross, [*shares[:-1], share]) - truth).square().sum())

    best = min(error(place / 50) for place in range(51))
    assert error(shares[-1]) <= best * (1 + 1e-9) + 1e-12


@given(
    st.integers(2, 7),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.01, 0.5, 0.9, 1.0]) | st.floats(0, 1),
    st.floats(0.01, 4),
    st.integers(1, 7),
    st.integers(0, 2**32),
)
def test_the_bound_is_that_of_its_definition(rows, width, alpha, scale, examples, seed):
    x, y = (scale * random_normal(seed + number, rows, width) for number in range(2))
    ids = (random_normal(seed + 2, rows).abs() * 1000).long() % examples
    x.requires_grad_()
    bound = MutualInformation(width, alpha, baseline=nn.Linear(width, 1)).double()
    view = View(Inputs((), {}, {"ids": ids}), dr.Step(0), dr.Step(0), None)
    found = bound.rows(x, y, view)
    log_b, f = bound.baseline(y)[:, 0], y @ x.T
    expected = []
    for i in range(rows):
        others = [j for j in range(rows) if ids[j] != ids[i]]
        if not others:
            expected.append(0 * x.sum())
            continue
        joint = []
        for j in others:
            mean = f[i, [i, *(k for k in others if k != j)]].exp().mean()
            joint.append(f[i, i] - (alpha * mean + (1 - alpha) * log_b[i].exp()).log())
        mean = f[i, others].exp().mean()
        product = mean / (alpha * mean + (1 - alpha) * log_b[i].exp())
        expected.append(-(1 + torch.stack(joint).mean() - product))
    expected = torch.stack(expected)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    weights = torch.linspace(-1, 1.5, rows).double()
    slopes = [torch.autograd.grad((weights * each).sum(), x)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-7)


@given(st.integers(1, 6), st.integers(2, 7), st.floats(0.1, 20), st.integers(0, 2**32))
def test_brier_is_the_squared_distance_of_probabilities(rows, classes, scale, seed):
    student, teacher = (scale * random_normal(seed + number, rows, classes) for number in range(2))
    student.requires_grad_()
    found = ops.row_divergence(student, teacher, kn.Brier(), reduction="none")
    expected = (student.softmax(1) - teacher.softmax(1)).square().sum(1)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(-1, 1.5, rows).double()
    slopes = [torch.autograd.grad((weights * each).sum(), student)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes)
