"""RepBlend: soft target matrices, blended features, and both heads' trajectories, against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import distillrs as dr
from distillrs import condense, recipes
from distillrs.condense import Pairs, PairTargets
from distillrs.condense.pair_targets import balanced_similarity_loss
from distillrs.condense.pair_trajectories import blend
from distillrs.errors import ArgumentError, DataError
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh()).double()
        return condense.PairNetwork(nn.Linear(5, 3).double(), nn.Linear(4, 3).double(), image_encoder=encoder)


def real(count=30):
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(count, *shape, dtype=torch.float64, generator=generator) for shape in ((2, 3), (4,))]
    return Pairs(*draw)


def store():
    layout = ParameterLayout.of(network())
    records = {f"expert-{each}": walk(layout, network(), seed=each) for each in range(2)}
    return MemoryStore(records, {"layout": layout.to_dict()})


def started(count=6, rank=2, moved=True, **options):
    synthetic = recipes.repblend_initial(real(), count, rank=rank, seed=1, **options)
    if moved:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            synthetic.targets.right += torch.randn(count, rank, generator=generator, dtype=torch.float64)
    return synthetic


def leaves(synthetic):
    return [each for group in synthetic.parameter_groups().values() for each in group]


def test_targets_begin_as_the_identity_and_are_the_formula_when_learned():
    assert torch.equal(PairTargets(5, 3).matrix(), torch.eye(5))
    targets = PairTargets(5, 3, strength=0.7, seed=1)
    assert not torch.equal(targets.left, PairTargets(5, 3).left)
    with torch.no_grad():
        targets.right += torch.randn(5, 3)
        targets.diagonal *= 2
    rows = torch.tensor([3, 1, 4])
    part = targets.matrix(targets.packed()[rows])
    for i, one in enumerate(rows.tolist()):
        for j, two in enumerate(rows.tolist()):
            expected = (2.0 if one == two else 0.0) + 0.7 / 3 * float(
                (targets.left[one] * targets.right[two]).sum().detach()
            )
            assert float(part[i, j].detach()) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(targets.matrix()[rows][:, rows], part)


@given(st.integers(1, 5), st.integers(0, 99))
def test_the_balanced_loss_is_the_double_loop(n, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, n, dtype=torch.float64, generator=generator)
    targets = torch.rand(n, n, dtype=torch.float64, generator=generator)
    sums, counts = [0.0, 0.0], [0, 0]
    for i in range(n):
        for j in range(n):
            p, s = torch.sigmoid(logits[i, j]), targets[i, j]
            side = int(s <= 0.5)
            sums[side] += -float(s * p.log() + (1 - s) * (1 - p).log())
            counts[side] += 1
    expected = sum(total / max(count, 1) for total, count in zip(sums, counts, strict=True)) / 2
    assert float(balanced_similarity_loss(logits, targets)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_gradient_of_the_balanced_loss_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(balanced_similarity_loss, (logits, targets))
    assert torch.autograd.gradgradcheck(balanced_similarity_loss, (logits, targets))


def test_both_modalities_are_blended_alike_and_the_same_twice():
    features = Pairs(torch.eye(7), 2 * torch.eye(7))
    seen = set()
    for step in range(20):
        images, texts = blend(features, step)
        assert torch.equal(2 * images, texts)
        torch.testing.assert_close(images.sum(1), torch.ones(7))
        again = blend(features, step)
        assert torch.equal(images, again.images)
        mixed = [row for row in range(7) if images[row, row] != 1]
        share = {round(float(images[row, row]), 5) for row in mixed}
        assert len(share) <= 1  # one share for the whole batch
        seen |= share
    assert len(seen) > 15
    assert min(seen) < 0.2 < 0.8 < max(seen)


@pytest.mark.parametrize("blended", [True, False])
@pytest.mark.parametrize("normalise", ["apart", "together"])
def test_a_step_is_a_plain_loop_over_two_heads(blended, normalise):
    experts, synthetic, model = store(), started(rates=(0.3, 0.2)), network()
    made = recipes.repblend(
        experts, model, synthetic, inner_steps=4, span=2, start=range(1, 4), batch=4, blended=blended,
        normalise=normalise, temperature=0.2,
    )  # fmt: skip
    step = dr.Step(3)
    loss = made(None, step)
    found = torch.autograd.grad(3 * loss.total, leaves(synthetic))

    key, s = condense.Windows(2, range(1, 4)).draw(experts, step)
    layout = ParameterLayout.of(model)

    def heads(record):
        parts = layout.unflatten(experts.read(key, record), model)
        return [[parts[f"{side}_head.{name}"].clone() for name in ("weight", "bias")] for side in ("image", "text")]

    here, end = [[each.requires_grad_() for each in head] for head in heads(s)], heads(s + 2)
    away = [
        sum((a - b).square().sum() for a, b in zip(one, two, strict=True))
        for one, two in zip(heads(s), end, strict=True)
    ]
    away = [float(each) for each in away]
    targets = synthetic.targets
    for i, rows in enumerate(condense.inner_batches(6, 4, 4, step)):
        encoded = model.encode(synthetic.pairs().at(rows))
        if blended:
            encoded = blend(encoded, step, name=f"blend/0/{i}")
        z = [
            nn.functional.normalize(nn.functional.linear(e, *head), dim=1)
            for e, head in zip(encoded, here, strict=True)
        ]
        full = torch.diag(targets.diagonal) + targets.left @ targets.right.T / 2
        value = balanced_similarity_loss(z[0] @ z[1].T / 0.2, full[rows][:, rows])
        slopes = torch.autograd.grad(value, [*here[0], *here[1]], create_graph=True)
        here = [
            [p - rate * g for p, g in zip(head, own, strict=True)]
            for head, own, rate in zip(here, (slopes[:2], slopes[2:]), synthetic.rates, strict=True)
        ]
    left = [
        sum((a - b).square().sum() for a, b in zip(one, two, strict=True)) for one, two in zip(here, end, strict=True)
    ]
    over = [sum(away)] * 2 if normalise == "together" else away
    expected = left[0] / over[0] + left[1] / over[1]
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["matching/images"], left[0].detach() / away[0])
    torch.testing.assert_close(loss.terms["matching/texts"], left[1].detach() / away[1])
    for one, two in zip(found, torch.autograd.grad(3 * expected, leaves(synthetic)), strict=True):
        assert two.abs().max() > 0
        torch.testing.assert_close(one, two)


def test_exact_gradients_agree_and_the_truncated_one_does_not():
    gradients = []
    for gradient in ("full", "adjoint", "truncated"):
        synthetic = started(rates=(0.5, 0.5))
        made = recipes.repblend(store(), network(), synthetic, gradient=gradient, batch=4, temperature=0.2)
        gradients.append(torch.autograd.grad(made(None, 1).total, leaves(synthetic)))
    for full, adjoint in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(full, adjoint)
    assert not torch.allclose(gradients[0][0], gradients[2][0])


def test_one_side_alone_is_its_own_distance():
    for sides in ("images", "texts"):
        made = recipes.repblend(store(), network(), started(), sides=sides)
        loss = made(None, 2)
        torch.testing.assert_close(loss.total.detach(), loss.terms[f"matching/{sides}"])
        assert all(torch.isfinite(each).all() for each in torch.autograd.grad(loss.total, leaves(made.synthetic)))


def test_matching_brings_the_distance_down_and_keeps_rates_in_their_bounds():
    synthetic = started(moved=False, rates=(0.05, 0.05))
    made = recipes.repblend(store(), network(), synthetic, inner_steps=3, start=range(1))
    before = sum(float(made(None, dr.Step(step, seed=5)).terms["matching"]) for step in range(6))
    rates = {"images": 0.1, "texts": 0.1, "similarities": 0.1, "rates": 0.01}
    dr.fit(made, {name: {"lr": rate, "momentum": 0.5} for name, rate in rates.items()}, 60)
    after = sum(float(made(None, dr.Step(step, seed=5)).terms["matching"]) for step in range(6))
    assert after < before
    assert not torch.equal(synthetic.targets.matrix(), torch.eye(6, dtype=torch.float64))
    with torch.no_grad():
        synthetic.rates.fill_(-1)
    made.after_step()
    assert torch.equal(synthetic.rates.detach(), torch.full((2,), 1e-6, dtype=torch.float64))
    assert set(made.state_dict()) == {f"synthetic.{name}" for name in synthetic.state_dict()}


def test_a_student_learns_from_the_pairs_with_their_targets():
    synthetic = started(rates=(0.2, 0.3))
    loss = synthetic.targets.loss(0.5)
    pairs = Pairs(synthetic.images.detach(), synthetic.texts.detach())
    model = network(4)
    rows = torch.tensor([4, 0, 2])
    embedded = model(model.encode(pairs.at(rows)))
    wanted = synthetic.targets.matrix()[rows][:, rows]
    torch.testing.assert_close(
        loss(embedded, rows), balanced_similarity_loss(embedded.images @ embedded.texts.T / 0.5, wanted)
    )
    settings = TrainingSettings(epochs=20, batch_size=6, learning_rate=0.1)
    losses = condense.train_pairs(model, pairs, settings, rates=synthetic.rates.tolist(), loss=loss)
    assert losses[-1] < losses[0]


def test_similarities_and_rates_are_counted():
    synthetic = started(count=6, rank=2)
    assert synthetic.stored_bytes() == 6 * (6 + 4 + 1 + 2 * 2) * 8 + 16
    assert set(synthetic.parameter_groups()) == {"images", "texts", "similarities", "rates"}
    plain = condense.PairedSynthetic(*real())
    assert set(plain.parameter_groups()) == {"images", "texts"}


def test_the_recipe_says_what_it_is_for():
    card = find_recipe("repblend")
    assert (card.engine, card.initial) == ("pairs", recipes.repblend_initial)
    assert set(card.optimisers) == {"images", "texts", "similarities", "rates"}


def still():
    records = store().trajectories["expert-0"][:1].repeat(4, 1)
    return MemoryStore({"expert-0": list(records)})


def test_an_expert_that_does_not_move_is_named():
    with pytest.raises(DataError, match=r"^store: the heads of expert 'expert-0' move by"):
        recipes.repblend(still(), network(), started())(None, 0)
    with pytest.raises(DataError, match=r"^count: got 31"):
        recipes.repblend_initial(real(), 31)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: recipes.repblend(store(), network(), condense.PairedSynthetic(*real())), "synthetic"),
        (lambda: recipes.repblend(store(), network(), started(), sides="left"), "sides"),
        (lambda: recipes.repblend(store(), network(), started(), normalise="no"), "normalise"),
        (lambda: recipes.repblend(store(), network(), started(), batch=1), "batch"),
        (lambda: recipes.repblend(store(), network(), started(), temperature=0), "temperature"),
        (lambda: recipes.repblend(store(), network(), started(), start=range(9, 12)), "start"),
        (lambda: recipes.repblend(store(), network(), started())(None, 0, turn="critic"), "turn"),
        (lambda: PairTargets(0), "count"),
        (lambda: PairTargets(3, 0), "rank"),
        (lambda: PairTargets(3, strength=float("nan")), "strength"),
        (lambda: condense.PairedSynthetic(*real(), targets=PairTargets(4)), "targets"),
        (lambda: condense.PairedSynthetic(*real(), rate_bounds=(0, 1)), "rate_bounds"),
    ],
)
def test_what_is_refused_names_itself(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call()
