"""Kernel ridge regression that is distilled into itself, against fits that are really made."""

import pytest
import torch

from distillrs import knowledge as kn
from distillrs.errors import ArgumentError
from distillrs.knowledge import RidgeGenerations


def points(n=11, m=7, seed=0):
    torch.manual_seed(seed)
    x, new = torch.rand(n, 2).double(), torch.rand(m, 2).double()

    def kernel(a, b):
        return torch.exp(-4 * (a[:, None] - b).square().sum(-1))

    return kernel(x, x), kernel(new, x), torch.randn(n, 2).double(), torch.randn(m, 2).double()


def fit(kernel, targets, penalty):
    return torch.linalg.solve(kernel + penalty * torch.eye(len(kernel), dtype=torch.float64), targets)


def test_generations_are_those_of_fits_made_one_after_the_other():
    kernel, cross, y, _ = points()
    shares = [0.3, 0.0, 1.0, 0.7, 0.2]
    generations = RidgeGenerations.of(kernel, y, 0.2)
    targets = y
    for number in range(len(shares) + 1):
        weights = fit(kernel, targets, 0.2)
        torch.testing.assert_close(generations.fitted(generations.gains(shares[:number])), kernel @ weights)
        torch.testing.assert_close(generations.predict(cross, shares[:number]), cross @ weights)
        if number < len(shares):
            targets = shares[number] * y + (1 - shares[number]) * (kernel @ weights)


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_the_closed_form_and_its_limits(share):
    kernel, _, y, _ = points()
    generations = RidgeGenerations.of(kernel, y, 0.2)
    for number in (1, 2, 5):
        expected = generations.gains([share] * (number - 1))
        torch.testing.assert_close(generations.gains_at(number, share), expected, rtol=1e-12, atol=1e-14)
    last = generations.fitted(generations.gains_at(5000, share))
    if share:
        torch.testing.assert_close(last, kernel @ fit(kernel, y, 0.2 / share))
    else:
        assert float(last.abs().max()) < 1e-3 * float(y.abs().max())
    torch.testing.assert_close(generations.gains_at(10**6, share), generations.limit(share))


def test_chosen_shares_are_those_of_a_grid_and_never_worse_than_either_end():
    kernel, cross, y, truth = points(seed=3)
    generations = RidgeGenerations.of(kernel, y, 0.01)
    shares = generations.choose(cross, truth, 4)
    assert len(shares) == 3

    def error(chosen):
        return float((generations.predict(cross, chosen) - truth).square().mean())

    for number, share in enumerate(shares):
        grid = [place / 1000 for place in range(1001)]
        best = min(grid, key=lambda each: error([*shares[:number], each]))
        assert abs(best - share) <= 1e-3
        assert error(shares[: number + 1]) <= min(error([]), error([*shares[:number], 0.0])) + 1e-12
    flat = RidgeGenerations.of(kernel, y[:, 0], 0.01)
    torch.testing.assert_close(flat.predict(cross, shares), generations.predict(cross, shares)[:, :1])


def test_a_kernel_without_rank_is_a_kernel():
    x = torch.tensor([[1.0], [1.0], [2.0]]).double()
    generations = RidgeGenerations.of(x @ x.T, torch.tensor([1.0, 2.0, 3.0]).double(), 0.5)
    weights = fit(x @ x.T, torch.tensor([[1.0], [2.0], [3.0]]).double(), 0.5)
    torch.testing.assert_close(generations.predict(x @ x.T), x @ x.T @ weights)
    assert (generations.values >= 0).all()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda g: RidgeGenerations.of(torch.eye(3)[:2], torch.ones(2), 1.0), "kernel"),
        (lambda g: RidgeGenerations.of(torch.eye(3) + torch.ones(3, 3).triu(1), torch.ones(3), 1.0), "kernel"),
        (lambda g: RidgeGenerations.of(-torch.eye(3), torch.ones(3), 1.0), "kernel"),
        (lambda g: RidgeGenerations.of(torch.full((3, 3), torch.nan), torch.ones(3), 1.0), "kernel"),
        (lambda g: RidgeGenerations.of(torch.eye(3), torch.ones(4), 1.0), "targets"),
        (lambda g: RidgeGenerations.of(torch.eye(3), torch.ones(3), 0.0), "penalty"),
        (lambda g: RidgeGenerations.of(torch.eye(3), torch.ones(3), "1"), "penalty"),
        (lambda g: g.gains([0.5, 1.5]), "share"),
        (lambda g: g.gains_at(0, 0.5), "generation"),
        (lambda g: g.limit(-0.5), "share"),
        (lambda g: g.predict(torch.ones(2, 4)), "kernel"),
        (lambda g: g.choose(torch.ones(2, 3), torch.ones(2), 0), "generations"),
        (lambda g: g.choose(torch.ones(2, 3), torch.ones(3), 2), "truth"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        make(RidgeGenerations.of(torch.eye(3), torch.ones(3), 1.0))


def test_the_brier_divergence_of_a_mix_has_the_gradient_of_the_mix_of_divergences():
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    p, y = torch.randn(6, 4, dtype=torch.float64).softmax(1), torch.eye(4, dtype=torch.float64)[torch.arange(6) % 4]
    q = logits.softmax(1)
    from distillrs import ops

    mixed = ops.row_divergence(logits, (0.3 * y + 0.7 * p).log(), kn.Brier())
    (found,) = torch.autograd.grad(3 * mixed, logits)
    both = 0.3 * (q - y).square().sum(1).mean() + 0.7 * (q - p).square().sum(1).mean()
    (expected,) = torch.autograd.grad(3 * both, logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mixed, (q - 0.3 * y - 0.7 * p).square().sum(1).mean())
