"""Gradient statistics: per-example gradients against a loop, averages, subspaces, and the objective's formula."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillrs as dr
from distillrs import condense, recipes
from distillrs.condense import DomainBatch, Subspace
from distillrs.condense.gradient_statistics import Moments, RunningMoments, head_gradients, moments
from distillrs.errors import ArgumentError
from distillrs.registry import find_recipe

KNOWN, NEW = (0, 1, 3), (2, 4)


def networks(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double(), nn.Linear(4, 5).double()


def batch(seed=0, count=12):
    generator = torch.Generator().manual_seed(seed)

    def drawn(classes, rows):
        y = torch.tensor(classes)[torch.randint(len(classes), (rows,), generator=generator)]
        return torch.randn(rows, 6, dtype=torch.float64, generator=generator), y

    mixed_x, mixed_y = drawn(KNOWN + NEW, count)
    mixed_y[0] = -100
    return DomainBatch(drawn(KNOWN, count), drawn(NEW, 4), (mixed_x, mixed_y))


def made(seed=0, **options):
    body, head = networks(seed)
    return recipes.opt_traj_distill(body, head, KNOWN, NEW, **options), body, head


@given(st.integers(1, 6), st.integers(2, 4), st.integers(1, 4), st.integers(0, 99))
def test_gradients_and_moments_are_those_of_a_loop_over_examples(n, classes, width, seed):
    torch.manual_seed(seed)
    head = nn.Linear(width, classes).double()
    features, labels = torch.randn(n, width, dtype=torch.float64), torch.randint(classes, (n,))
    found = head_gradients(head(features), features, labels)
    each = []
    for row in range(n):
        loss = nn.functional.cross_entropy(head(features[row : row + 1]), labels[row : row + 1])
        weight, bias = torch.autograd.grad(loss, [head.weight, head.bias])
        each.append(torch.cat([weight, bias[:, None]], 1))
    torch.testing.assert_close(found, torch.stack(each))
    mean = sum(each) / n
    variance = sum((one - mean) ** 2 for one in each) / n
    measured = moments(found)
    torch.testing.assert_close(measured.mean, mean)
    torch.testing.assert_close(measured.variance, variance)


def test_gradients_can_be_differentiated_once_more():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    features = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda z, h: moments(head_gradients(z, h, labels)).variance, (logits, features))


def test_an_average_is_unbiased_from_the_start_and_passes_its_newest_share():
    running = RunningMoments((2,), decay=0.9)
    values = [torch.tensor([1.0, 2.0]) * (step + 1) for step in range(4)]
    for step, value in enumerate(values):
        new = value.clone().requires_grad_()
        ahead = running.ahead(Moments(new, 3 * new))
        weights = torch.tensor([0.9 ** (step - past) for past in range(step + 1)])
        expected = sum(w * each for w, each in zip(weights, values, strict=False)) / weights.sum()
        torch.testing.assert_close(ahead.mean, expected)
        torch.testing.assert_close(ahead.variance, 3 * expected)
        (slope,) = torch.autograd.grad(ahead.mean.sum(), new)
        torch.testing.assert_close(slope, torch.full((2,), float(1 / weights.sum())))
        assert int(running.count) == step
        running.keep(Moments(value, 3 * value))
    again = RunningMoments((2,), decay=0.9)
    again.load_state_dict(running.state_dict())
    assert torch.equal(again.ahead(Moments(*values[:2])).mean, running.ahead(Moments(*values[:2])).mean)


@given(st.integers(0, 50), st.floats(0.5, 0.999))
def test_a_subspace_holds_its_energy_in_as_few_directions_as_that_takes(seed, energy):
    generator = torch.Generator().manual_seed(seed)
    space = Subspace(10, held=6, every=6, energy=energy).double()
    vectors = torch.randn(12, 10, dtype=torch.float64, generator=generator) * torch.linspace(2, 0.1, 10)
    probe = torch.randn(3, 10, dtype=torch.float64, generator=generator)
    for number, vector in enumerate(vectors):
        assert (int(space.rank) == 0) == (number < 6)
        if number < 6:
            assert torch.equal(space.project(probe), probe)
        space.keep(vector)
    last = vectors[-6:]
    kept = space.project(last)
    total = last.square().sum()
    rank = int(space.rank)
    assert 0 < rank < 10
    assert kept.square().sum() >= (energy - 1e-9) * total
    values = torch.linalg.svdvals(last).square()
    assert rank == 1 or values[: rank - 1].sum() < energy * total
    torch.testing.assert_close(space.project(kept), kept)
    torch.testing.assert_close(kept.square().sum(), values[:rank].sum())
    again = Subspace(10, held=6, every=6, energy=energy).double()
    again.load_state_dict(space.state_dict())
    assert torch.equal(again.project(probe), space.project(probe))


def test_vectors_of_nothing_make_no_subspace():
    space = Subspace(4, held=2)
    for _ in range(6):
        space.keep(torch.zeros(4))
    assert int(space.rank) == 0


def by_hand(objective, body, head, data):
    """Losses of a first step: averages are the batch's own, and there is no subspace yet."""
    (x, y), (few_x, few_y), (mixed_x, mixed_y) = data

    def each(inputs, labels, classes):
        rows = []
        for one, label in zip(inputs, labels.tolist(), strict=True):
            if label not in classes:
                continue
            h = body(one[None])
            weight, bias = head.weight[list(classes)], head.bias[list(classes)]
            logits = h @ weight.T + bias
            loss = -logits.log_softmax(1)[0, classes.index(label)]
            found = torch.autograd.grad(loss, [weight, bias], create_graph=True)
            rows.append(torch.cat([found[0], found[1][:, None]], 1))
        return torch.stack(rows)

    strong, weak = each(x, y, KNOWN), each(mixed_x, mixed_y, KNOWN)
    domain = (strong.mean(0) - weak.mean(0)).square().mean()
    domain = domain + (strong.var(0, correction=0) - weak.var(0, correction=0)).square().mean()
    rows = each(mixed_x, mixed_y, (0, 1, 2, 3, 4))[:, :, :-1]
    parts = 0.0
    for value in (rows.mean(0), rows.var(0, correction=0)):
        known = value[list(KNOWN)].mean(0).mean().detach()
        parts = parts + sum((known - value[c].mean()) ** 2 for c in NEW)
    plain = nn.functional.cross_entropy(head(body(x)), y)
    plain = plain + 0.1 * nn.functional.cross_entropy(head(body(few_x)), few_y)
    plain = plain + 0.2 * nn.functional.cross_entropy(head(body(mixed_x)), mixed_y, ignore_index=-100)
    return plain, domain, parts


def test_a_first_step_is_its_formula():
    objective, body, head = made(weight=50.0, mix=0.2)
    data = batch()
    loss = objective(data, 0)
    plain, domain, parts = by_hand(objective, body, head, data)
    expected = plain + 50 * (domain + parts)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["domain"], domain.detach())
    torch.testing.assert_close(loss.terms["class"], parts.detach())
    parameters = objective.parameter_groups()["student"]
    pairs = zip(*(torch.autograd.grad(3 * each, parameters) for each in (loss.total, expected)), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one, two)
    # A micro-batch that is half of its step counts half.
    own = len(data.source[0])
    torch.testing.assert_close(objective(data, dr.Step(0, items=2 * own)).total, loss.total / 2)


def test_warming_up_has_neither_bracket():
    objective, body, head = made(warmup=3, mix=0.2)
    loss = objective(batch(), 2)
    torch.testing.assert_close(loss.total, by_hand(objective, body, head, batch())[0])
    assert set(loss.terms) == {"source", "few", "mixed"}
    objective.after_step()
    assert int(objective.source.count) == 0
    assert set(objective(batch(), 3).terms) == {"source", "few", "mixed", "domain", "class"}


def test_a_call_changes_nothing_and_a_step_takes_in_what_the_last_call_saw():
    objective, *_ = made(held=3, every=3)
    before = copy.deepcopy(objective.state_dict())
    first = objective(batch(), 0).total
    assert torch.equal(objective(batch(), 0).total, first)
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    for step in range(4):
        objective(batch(step), step)
        objective.after_step()
        objective.after_step()  # nothing was seen since
    assert int(objective.source.count) == int(objective.rows.count) == 4
    assert all(int(space.count) == 4 and int(space.rank) > 0 for space in objective.domain_spaces)
    other, *_ = made(held=3, every=3)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(objective(batch(9), 4).total, other(batch(9), 4).total)
    assert not any("weight" in name or "bias" in name for name in objective.state_dict())


def test_gaps_are_measured_within_the_subspaces_of_the_strong_side():
    objective, *_ = made(held=2, every=2)
    for step in range(2):
        objective(batch(step), step)
        objective.after_step()
    whole = objective(batch(5), 2).terms["domain"]
    spaces = [space.rank.clone() for space in objective.domain_spaces]
    for space in objective.domain_spaces:
        space.rank.zero_()
    everything = objective(batch(5), 2).terms["domain"]
    assert all(int(rank) > 0 for rank in spaces)
    assert 0 < whole < everything


def test_subspaces_are_of_what_the_strong_side_did():
    objective, body, head = made()
    data = batch()
    objective(data, 0)
    objective.after_step()
    (x, y), _, (mixed_x, mixed_y) = data
    with torch.no_grad():
        places = {label: place for place, label in enumerate(KNOWN)}
        labels = torch.tensor([places[each] for each in y.tolist()])
        strong = moments(head_gradients(head(body(x))[:, list(KNOWN)], body(x), labels))
        own = mixed_y >= 0
        rows = moments(head_gradients(head(body(mixed_x[own])), body(mixed_x[own]), mixed_y[own])[:, :, :-1])
    for each, domain, classes in zip(range(2), objective.domain_spaces, objective.class_spaces, strict=True):
        torch.testing.assert_close(domain.ring[0], strong[each].flatten())
        torch.testing.assert_close(classes.ring[0], rows[each][list(KNOWN)].mean(0))


def test_training_brings_the_domains_together():
    objective, *_ = made(weight=100.0)
    data = batch(count=40)
    first = objective(data, 0).terms
    optimiser = torch.optim.Adam(objective.parameter_groups()["student"], lr=0.01)
    dr.fit(objective, optimiser, 40, batches=lambda step: data)
    last = objective(data, 41).terms
    assert last["domain"] < first["domain"]
    assert last["source"] < first["source"]


def test_the_mixed_examples_have_the_labels_of_the_few_and_what_is_sure():
    few = torch.ones(2, 6), torch.tensor([2, 4])
    logits = torch.tensor([[4.0, 0, 0], [0.1, 0, 0], [0, 0, 3.0]])
    x, y = condense.mixed_target(few, torch.zeros(3, 6), logits, threshold=0.7)
    assert y.tolist() == [2, 4, 0, -100, 2]
    assert x.sum(1).tolist() == [6, 6, 0, 0, 0]
    objective, *_ = made()
    unsure = DomainBatch(*batch()[:2], (torch.randn(3, 6, dtype=torch.float64), torch.full((3,), -100)))
    loss = objective(unsure, 0)
    loss.total.backward()
    assert float(loss.terms["mixed"]) == float(loss.terms["domain"]) == float(loss.terms["class"]) == 0


def test_an_amplifier_adds_a_share_of_what_lies_in_the_past_directions():
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    amplifier = condense.GradientAmplifier(layer, amount=0.5, held=2)
    past = []
    for step in range(4):
        x = torch.randn(5, 3)
        layer.zero_grad()
        layer(x).square().sum().backward()
        found = layer.weight.grad.clone(), layer.bias.grad.clone()
        layer.zero_grad()
        plain = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        past.append(plain[0].flatten())
        torch.testing.assert_close(found[1], plain[1])
        if step < 1:
            torch.testing.assert_close(found[0], plain[0])
            continue
        if step in (1, 3):
            basis = torch.linalg.svd(torch.stack(past[-2:]).T, full_matrices=False)[0]
            squares = torch.linalg.svdvals(torch.stack(past[-2:])).square()
            rank = int((squares.cumsum(0) / squares.sum() < 0.98).sum()) + 1
            basis = basis[:, :rank]
        extra = (basis @ (basis.T @ past[-1])).reshape(2, 3)
        torch.testing.assert_close(found[0], plain[0] + 0.5 * extra, rtol=1e-4, atol=1e-5)
    amplifier.remove()
    layer.zero_grad()
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain[0])


def test_the_recipe_says_what_it_is_for():
    assert find_recipe("opt-traj-distill").engine == "gradients"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda b, h: recipes.opt_traj_distill(b, b, KNOWN, NEW), "head"),
        (lambda b, h: recipes.opt_traj_distill(b, h, (0, 1), (1,)), "known"),
        (lambda b, h: recipes.opt_traj_distill(b, h, (0,), (1,)), "known"),
        (lambda b, h: recipes.opt_traj_distill(b, h, 3, (1,)), "known"),
        (lambda b, h: recipes.opt_traj_distill(b, h, (0, 1), ("a",)), "new"),
        (lambda b, h: recipes.opt_traj_distill(3, h, (0, 1), (2,)), "body"),
        (lambda b, h: recipes.opt_traj_distill(b, h, (0, 1), ()), "new"),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW, weight=-1), "weight"),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW, mix="a little"), "mix"),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW, warmup=1.5), "warmup"),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW, decay="0.9"), "decay"),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW, decay=1.0), "decay"),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW, warmup=-1), "warmup"),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW, energy=0), "energy"),
        (
            lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW)(batch()._replace(source=batch().mixed), 0),
            "batch.source",
        ),
        (lambda b, h: recipes.opt_traj_distill(b, h, KNOWN, NEW)(batch(), 0, turn="critic"), "turn"),
        (lambda b, h: Subspace(4, held=4), "held"),
        (lambda b, h: Subspace(4, every=0), "every"),
        (lambda b, h: Subspace(1), "size"),
        (lambda b, h: head_gradients(torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor([0, 3])), "labels"),
        (lambda b, h: head_gradients(torch.zeros(2, 3), torch.zeros(1, 4), torch.tensor([0, 1])), "logits"),
        (lambda b, h: moments(torch.zeros(0, 3)), "gradients"),
        (lambda b, h: condense.GradientAmplifier(nn.LayerNorm(3)), "module"),
        (lambda b, h: condense.mixed_target((torch.ones(1, 2), torch.zeros(1)), torch.ones(1, 2), torch.ones(1, 2), 2),
         "threshold"),
    ],
)  # fmt: skip
def test_what_is_refused_names_itself(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call(*networks())
