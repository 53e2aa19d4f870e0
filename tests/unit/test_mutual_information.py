"""The bound on mutual information against its definition by loops, and against Gaussians whose information is known."""

import itertools
import math

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import knowledge as kn
from distillrs.errors import ArgumentError
from distillrs.knowledge import Inputs, MutualInformation, Objective, Term, View


def view(**fields):
    return View(Inputs((), {}, fields), dr.Step(0), dr.Step(0), None)


def by_loops(x, y, alpha, log_b, keys):
    """Minus the bound of every row, from its definition."""
    losses = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if keys[j] != keys[i]]
        if not others:
            losses.append(torch.zeros((), dtype=x.dtype))
            continue
        f = {j: (x[j] * y[i]).sum() for j in [i, *others]}

        def ratio(j, rows, f=f, i=i):
            mean = sum(f[k].exp() for k in rows) / len(rows)
            return f[j].exp() / (alpha * mean + (1 - alpha) * log_b[i].exp())

        joint = sum(ratio(i, [i, *(k for k in others if k != j)]).log() for j in others) / len(others)
        product = sum(ratio(j, others) for j in others) / len(others)
        losses.append(-(1 + joint - product))
    return torch.stack(losses)


def made(alpha, width=3, **options):
    divergence = MutualInformation(width, alpha, **options).double()
    with torch.no_grad():
        for number, parameter in enumerate(divergence.parameters()):
            parameter.copy_(torch.linspace(-0.5, 0.7, parameter.numel()).reshape(parameter.shape) + 0.1 * number)
    return divergence


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("keys", [None, [0, 1, 2, 3, 4, 5], [0, 1, 0, 3, 1, 0], [4, 4, 4, 4, 4, 2], [7] * 6])
def test_values_and_gradients_are_those_of_the_definition(alpha, keys):
    torch.manual_seed(1)
    x, y = (torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    divergence = made(alpha)
    found = divergence.rows(x, y, view(**({} if keys is None else {"ids": torch.tensor(keys)})))
    log_b = divergence.baseline(y)[:, 0]
    expected = by_loops(x, y, alpha, log_b, list(range(6)) if keys is None else keys)
    torch.testing.assert_close(found, expected)
    leaves = [x, y, *divergence.parameters()]
    weights = torch.linspace(-1, 2, 6).double()
    # Every leaf is in the graph: at either end of alpha one of them does not matter.
    slopes = [
        torch.autograd.grad((weights * each).sum() + 0 * sum(leaf.sum() for leaf in leaves), leaves)
        for each in (found, expected)
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("gap", [50.0, 800.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_one_score_may_outweigh_all_others(gap, alpha):
    """The largest term of a sum cannot be taken off it again: what is left would be rounding."""
    y = torch.eye(5, dtype=torch.float64)
    for at in range(5):
        x = torch.zeros(5, 5, dtype=torch.float64)
        x[at, 2] = gap
        x[0, 4] = 1.0
        x.requires_grad_()
        found = MutualInformation(5, alpha).double().rows(x, y, view())
        assert torch.isfinite(found).all()
        assert torch.isfinite(torch.autograd.grad(found.sum(), x)[0]).all()
        if gap == 50:
            torch.testing.assert_close(found, by_loops(x, y, alpha, torch.zeros(5).double(), range(5)))


def test_it_is_near_its_value_in_single_precision_and_stays_so_under_autocast():
    torch.manual_seed(2)
    x, y = 2 * torch.randn(16, 8), 2 * torch.randn(16, 8)
    divergence = MutualInformation(8, 0.5)
    exact = MutualInformation(8, 0.5).double().rows(x.double(), y.double(), view())
    torch.testing.assert_close(divergence.rows(x, y, view()).double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(divergence.rows(x, y, view()), divergence.rows(x, y, view()).float())
        torch.testing.assert_close(divergence.rows(x, y, view()).double(), exact, rtol=1e-4, atol=1e-4)


def gaussian_features(information, dimensions, rows, seed):
    """Features whose inner products are the log ratio of densities of correlated Gaussians, the best critic."""
    rho = math.sqrt(1 - math.exp(-2 * information / dimensions))
    drawn = dr.random.normal(rows, 2, dimensions, step=dr.Step(0, seed=seed), name="pairs", dtype=torch.float64)
    x, y = drawn[:, 0], rho * drawn[:, 0] + math.sqrt(1 - rho**2) * drawn[:, 1]
    scale = 1 / (1 - rho**2)
    ones = torch.ones_like(x)
    own = torch.cat([x, x.square(), ones], 1)
    constant = -0.5 * rho**2 * scale * y.square() - 0.5 * math.log(1 - rho**2)
    return own, torch.cat([rho * scale * y, -0.5 * rho**2 * scale * ones, constant], 1)


def estimates(information, alpha, *, batches, size, seed=0, dimensions=4):
    x, y = gaussian_features(information, dimensions, batches * size, seed)
    divergence = MutualInformation(x.shape[1], alpha).double()
    with torch.no_grad():
        parts = zip(x.split(size), y.split(size), strict=True)
        return torch.stack([-divergence.rows(a, b, view()).mean() for a, b in parts])


def test_at_one_it_never_exceeds_the_logarithm_and_below_it_is_a_bound_in_the_mean():
    size = 16
    for information in (1.0, 4.0):
        capped = estimates(information, 1.0, batches=200, size=size)
        assert float(capped.max()) <= math.log(size - 1) + 1e-9
        lower = [estimates(information, alpha, batches=200, size=size) for alpha in (0.5, 0.1)]
        means = [float(each.mean()) for each in (capped, *lower)]
        assert all(one < other for one, other in itertools.pairwise(means))
        assert means[-1] < information + 0.25


def test_a_duplicate_is_a_false_negative_unless_it_is_known_by_its_id():
    """Trap: what comes twice is taken for another example, and the bound falls by up to log 2."""
    torch.manual_seed(3)
    x = y = 3 * torch.eye(8).double()
    divergence = MutualInformation(8, 0.9).double().requires_grad_(False)
    single = divergence.rows(x, y, view(ids=torch.arange(8)))
    ids = torch.arange(8).repeat(2)
    moved = y.repeat(2, 1) + 1e-9 * torch.randn(16, 8).double()
    known = divergence.rows(x.repeat(2, 1), moved, view(ids=ids))
    unknown = divergence.rows(x.repeat(2, 1), moved, view(ids=torch.arange(16)))
    assert float(unknown.mean() - known.mean()) > 0.5 * math.log(2)
    # As sharp a critic among twice as many others: the cap, and with it the value, is higher by log 2.
    assert float(single.mean() - known.mean()) == pytest.approx(math.log(2), abs=0.01)
    torch.testing.assert_close(divergence.rows(x.repeat(2, 1), y.repeat(2, 1), view()), known, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_batches_without_another_example_give_zero_with_a_graph(rows):
    x = torch.randn(rows, 3, requires_grad=True)
    found = MutualInformation(3).rows(x, torch.randn(rows, 3), view())
    assert found.shape == (rows,)
    assert (torch.autograd.grad(found.sum(), x)[0] == 0).all()


def test_a_baseline_of_ones_own_and_what_it_owns():
    torch.manual_seed(4)
    x, y = torch.randn(5, 3).double(), torch.randn(5, 3).double()

    class Sum(nn.Module):
        def forward(self, rows):
            return rows.sum(1)

    found = MutualInformation(3, 0.3, baseline=Sum()).rows(x, y, view())
    torch.testing.assert_close(found, by_loops(x, y, 0.3, y.sum(1), range(5)))
    objective = Objective(
        nn.Linear(4, 3), dr.Frozen(nn.Linear(4, 3)), [Term(kn.Output(), divergence=MutualInformation(3))]
    )
    assert [name for name, _ in objective.named_parameters()] == ["parts.0.baseline.weight", "parts.0.baseline.bias"]
    assert all((parameter == 0).all() for parameter in objective.parameters())
    before = torch.random.get_rng_state()
    MutualInformation(3)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: MutualInformation(0), "width"),
        (lambda: MutualInformation(3, 1.5), "alpha"),
        (lambda: MutualInformation(3, "a"), "alpha"),
        (lambda: MutualInformation(3, baseline=3), "baseline"),
        (lambda: MutualInformation(3).rows(torch.ones(2, 3), torch.ones(2, 4), view()), "student"),
        (lambda: MutualInformation(3).rows(torch.ones(2, 4), torch.ones(2, 4), view()), "student"),
        (
            lambda: MutualInformation(3).rows(torch.ones(2, 3), torch.ones(2, 3), view(ids=torch.ones(3))),
            r"batch\['ids'\]",
        ),
        (
            lambda: MutualInformation(3, baseline=nn.Linear(3, 2)).rows(torch.ones(2, 3), torch.ones(2, 3), view()),
            "baseline",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        make()
