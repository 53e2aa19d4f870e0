"""Pairs of modalities: kernels on the sphere, merged experts, heads, recall, and MDM, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

import distillrs as dr
from distillrs import condense, evaluate, ops, recipes
from distillrs.condense import Pairs
from distillrs.errors import ArgumentError, DataError
from distillrs.registry import find_recipe
from distillrs.training import TrainingSettings
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore

SETTINGS = TrainingSettings(epochs=4, batch_size=8, learning_rate=0.1, momentum=0.5)


def network(seed, encoder=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**32)
        image = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh()).double() if encoder else None
        heads = nn.Linear(5 if encoder else 6, 3).double(), nn.Linear(4, 3).double()
    return condense.PairNetwork(*heads, image_encoder=image)


def real(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    images = hidden @ torch.randn(2, 6, dtype=torch.float64, generator=generator)
    texts = hidden @ torch.randn(2, 4, dtype=torch.float64, generator=generator)
    return Pairs((images + 0.1 * torch.randn(images.shape, generator=generator)).reshape(count, 2, 3), texts)


class Writer:
    def __init__(self, kept):
        self.kept = kept

    def __len__(self):
        return len(self.kept)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def append(self, theta):
        self.kept.append(theta)

    def flush(self):
        pass


class Recorder:
    def __init__(self):
        self.kept = {}

    def keys(self):
        return list(self.kept)

    def begin(self, key, resume_at=None):
        self.kept[key] = []
        return Writer(self.kept[key])


def experts(shared_start=True, count=3):
    recorder = Recorder()
    # Encoders are those of one network; heads are drawn from the seed.
    condense.record_pair_experts(
        recorder, lambda seed: network(seed), real(), SETTINGS, count=count, shared_start=shared_start
    )
    return MemoryStore(recorder.kept, {"layout": ParameterLayout.of(network(0)).to_dict()})


def matching(store=None, count=6, **options):
    synthetic = recipes.mdm_initial(real(), network(1), count)
    return recipes.mdm(store or experts(), network(1), real(), synthetic, **options), synthetic


def test_from_the_first_pairs_of_mdm_the_contrastive_loss_alone_moves_the_set():
    """As the recipe says: they lie so far apart that both gaps begin below 0, where they count as 0."""
    digits = torch.tensor(load_digits().data / 16, dtype=torch.float32)[:600]
    pairs = condense.Pairs(digits[:, :32].clone(), digits[:, 32:].clone())

    def made(seed):
        torch.manual_seed(seed)
        return condense.PairNetwork(nn.Linear(32, 8), nn.Linear(32, 8))

    recorder = Recorder()
    condense.record_pair_experts(recorder, made, pairs, TrainingSettings(2, 64, 0.1), count=2, shared_start=True)
    store = MemoryStore(recorder.kept, {"layout": ParameterLayout.of(made(0)).to_dict()})
    gradients = []
    for weight in (0.8, 0.0):
        synthetic = recipes.mdm_initial(pairs, made(0), 40)
        objective = recipes.mdm(store, made(0), pairs, synthetic, common=weight, gap=weight, clip=None)
        loss = objective(None, 0)
        loss.total.backward()
        gradients.append([synthetic.images.grad, synthetic.texts.grad])
        assert {name: float(loss.terms[name]) for name in ("common", "gap")} == pytest.approx(
            {"common": 1e-4, "gap": 1e-4}
        )
    for with_gaps, without in zip(*gradients, strict=True):
        assert torch.equal(with_gaps, without)
    assert gradients[0][0].abs().max() > 0


@given(st.integers(2, 5), st.integers(2, 5), st.floats(0.2, 3), st.integers(0, 99))
def test_the_energy_of_two_sets_on_the_sphere_is_the_double_loop(n, m, bandwidth, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, 3, dtype=torch.float64, generator=generator) for rows in (n, m))

    def kernel(a, b):
        cosine = float(a @ b / a.norm() / b.norm())
        return math.exp(-(math.acos(max(-1, min(1, cosine))) ** 2) / (2 * bandwidth**2))

    def within(points):
        pairs = [(i, j) for i in range(len(points)) for j in range(len(points)) if i != j]
        return sum(kernel(points[i], points[j]) for i, j in pairs) / len(pairs)

    expected = within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)
    found = condense.sphere_energy(x, y, ops.Geodesic(bandwidth))
    assert float(found) == pytest.approx(math.sqrt(max(expected, 1e-8)), abs=1e-6)


def test_the_gradient_on_the_sphere_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    assert condense.sphere_energy(x, y, ops.Geodesic(0.7)).detach() > 0.01
    assert torch.autograd.gradcheck(lambda a, b: 3 * condense.sphere_energy(a, b, ops.Geodesic(0.7)), (x, y))


def test_equal_and_opposite_points_have_finite_slopes():
    kernel = ops.Geodesic(0.5)
    for dtype in (torch.float64, torch.float32):
        u = torch.tensor([1.0, 1 + 1e-7, 1 - 1e-7, -1.0, -1 - 1e-7, 0.0], dtype=dtype)
        value, slope = kernel.value(u), kernel.derivative(u)
        assert torch.isfinite(slope).all()
        torch.testing.assert_close(slope[:3], torch.full((3,), 4.0, dtype=dtype), rtol=1e-3, atol=0)
        assert float(value[0]) == float(value[1]) == 1
        assert float(value[5]) == pytest.approx(math.exp(-((math.pi / 2) ** 2) * 2))
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    same = condense.sphere_energy(x, x.detach().clone(), kernel)
    same.backward()
    assert float(same.detach()) == pytest.approx(1e-4)
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_the_slope_of_the_kernel_is_its_derivative():
    u = torch.linspace(-0.999, 0.9999999, 201, dtype=torch.float64, requires_grad=True)
    kernel = ops.Geodesic(0.6)
    (found,) = torch.autograd.grad(kernel.value(u).sum(), u)
    torch.testing.assert_close(kernel.derivative(u.detach()), found, rtol=1e-6, atol=1e-9)


def test_merging_goes_as_far_as_directions_agree():
    layout = ParameterLayout.of(nn.Linear(2, 1))
    anchor = torch.tensor([1.0, 2.0, 3.0])
    one, two = anchor + torch.tensor([1.0, 0.0, 2.0]), anchor + torch.tensor([1.0, 1.0, 6.0])
    cosine = 1 / math.sqrt(2)
    ratio = 2 * cosine / (1 + cosine)
    expected = anchor + 0.5 * torch.tensor([ratio * 1.0, ratio * 0.5, 4.0])
    torch.testing.assert_close(condense.merge_about(one, two, anchor, layout, amount=0.5), expected)
    assert torch.equal(condense.merge_about(one, two, anchor, layout, amount=0), anchor)
    torch.testing.assert_close(condense.merge_about(one, one, anchor, layout), one)
    # Against each other, and not moved at all: both stay at the start.
    other = anchor - torch.tensor([1.0, 0.0, 0.0])
    assert torch.equal(condense.merge_about(one, other, anchor, layout), anchor)


def test_a_step_is_its_formula_under_the_merged_experts():
    store = experts()
    made, synthetic = matching(store, batch=4, real_batch=20, common=0.3, gap=0.6, temperature=0.2, clip=None)
    step = dr.Step(5)
    heads, model = made.teacher(step), network(1)
    chosen = dr.random.choice(6, 4, step=step, name="synthetic pairs")
    rows = dr.random.choice(40, 20, step=step, name="real pairs")
    made_loss = made(None, step)

    # The same by the network itself, with the merged heads loaded.
    ParameterLayout.of(model).load(model, heads)
    model.requires_grad_(False)
    v, t = model(model.encode(real().at(rows)))
    a, b = model(model.encode(Pairs(synthetic.images[chosen], synthetic.texts[chosen])))
    logits = a @ b.T / 0.2
    contrastive = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    kernel = ops.Geodesic(0.5)
    total = contrastive + 0.3 * condense.sphere_energy(v + t, a + b, kernel)
    total = total + 0.6 * condense.sphere_energy(v - t, a - b, kernel)
    torch.testing.assert_close(made_loss.total, total)
    for name, parameters in made.parameter_groups().items():
        both = (made_loss.total, total)
        found, expected = (torch.autograd.grad(3 * each, parameters, retain_graph=True)[0] for each in both)
        torch.testing.assert_close(found, expected, msg=name)
        assert found.abs().max() > 0
    assert torch.equal(made(None, dr.Step(5, items=4)).total, made_loss.total / 4)
    torch.testing.assert_close(made(real().at(rows), step).total, total)


def test_merged_experts_are_two_different_ones_and_a_function_of_the_step():
    store = experts()
    made, _ = matching(store, amount=1.0)
    layout, anchor = made.network.layout, store.read("expert-0", 0)
    candidates = {
        (a, b, r, s): condense.merge_about(store.read(a, r), store.read(b, s), anchor, layout)
        for a in store.trajectories for b in store.trajectories if a != b for r in range(1, 5) for s in range(1, 5)
    }  # fmt: skip
    seen = set()
    for index in range(12):
        merged = made.teacher(index)
        assert torch.equal(merged, made.teacher(index))
        found = [key for key, value in candidates.items() if torch.allclose(value, merged)]
        assert found
        seen.add(found[0])
    assert len(seen) > 4
    assert not torch.equal(made.teacher(0), made.teacher(dr.Step(0, seed=1)))


def test_the_gradient_of_both_sides_together_is_no_longer_than_asked():
    store = experts()
    free, synthetic = matching(store, clip=None)
    clipped, other = matching(store, clip=0.01)

    def gradients(made, start):
        return torch.autograd.grad(made(None, 2).total, [start.images, start.texts])

    whole, short = gradients(free, synthetic), gradients(clipped, other)
    length = torch.cat([each.flatten() for each in whole]).norm()
    assert length > 0.01
    for one, two in zip(whole, short, strict=True):
        torch.testing.assert_close(two, one * 0.01 / length)
    loose, last = matching(store, clip=1e6)
    assert all(torch.equal(one, two) for one, two in zip(whole, gradients(loose, last), strict=True))


def test_matching_brings_both_gaps_down_and_leaves_encoders_and_experts_alone():
    store = experts()
    model = network(1)
    before = {name: value.clone() for name, value in model.image_encoder.module.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    start = Pairs(
        torch.randn(8, 2, 3, dtype=torch.float64, generator=generator),
        torch.randn(8, 4, dtype=torch.float64, generator=generator),
    )
    synthetic = condense.PairedSynthetic(*start)
    made = recipes.mdm(store, model, real(), synthetic, real_batch=40, amount=1.0)

    def gap():
        terms = [made(None, dr.Step(step, seed=9)).terms for step in range(10)]
        return sum(float(each["common"] + each["gap"]) for each in terms)

    first = gap()
    dr.fit(made, {"images": {"lr": 0.3, "momentum": 0.5}, "texts": {"lr": 0.3, "momentum": 0.5}}, 80)
    assert gap() < 0.6 * first
    assert all(torch.equal(before[name], each) for name, each in model.image_encoder.module.state_dict().items())
    assert set(made.state_dict()) == {"synthetic.images", "synthetic.texts", "synthetic.rates"}


def test_the_first_pairs_are_those_nearest_to_the_centres_of_both_features():
    pairs, model = real(), network(1)
    rows = condense.spread_pairs(model, pairs, 5, seed=2, batch=7)
    assert len(set(rows.tolist())) == 5
    features = model.encode(pairs)
    points = torch.cat([nn.functional.normalize(each, dim=1) for each in features], 1)
    expected = condense.nearest_to_centres(points, torch.zeros(40, dtype=torch.int64), 5, seed=2)
    assert torch.equal(rows, expected)
    synthetic = recipes.mdm_initial(pairs, model, 5, seed=2, rates=(0.2, 0.3))
    assert torch.equal(synthetic.images.detach(), pairs.images[rows])
    assert torch.equal(synthetic.texts.detach(), pairs.texts[rows])
    assert synthetic.stored_bytes() == 5 * (6 + 4) * 8 + 16


def test_training_pairs_is_a_loop_of_ones_own():
    pairs, model, other = real(20), network(3), network(3)
    losses = condense.train_pairs(model, pairs, SETTINGS, rates=(0.1, 0.3), seed=4)
    optimiser = torch.optim.SGD(
        [{"params": other.image_head.parameters(), "lr": 0.1}, {"params": other.text_head.parameters(), "lr": 0.3}],
        momentum=0.5,
        lr=1.0,
    )
    for epoch in range(4):
        order = dr.random.permutation(20, step=dr.Step(epoch, seed=4), name="order of pairs")
        for rows in order.split(8):
            optimiser.zero_grad()
            v, t = other(other.encode(pairs.at(rows)))
            logits, own = v @ t.T / 0.07, torch.arange(len(rows))
            value = (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2
            value.backward()
            optimiser.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert losses[-1] < losses[0]
    assert not any(name.startswith("image_encoder") for name, _ in model.named_parameters())


def test_experts_share_their_start_only_if_asked_and_are_trained_once():
    shared, own = experts(), experts(shared_start=False)
    for store, same in ((shared, True), (own, False)):
        assert store.lengths() == {f"expert-{number}": 5 for number in range(3)}
        assert torch.equal(store.read("expert-0", 0), store.read("expert-1", 0)) == same
        assert not torch.equal(store.read("expert-0", 0), store.read("expert-0", 1))
        assert not torch.equal(store.read("expert-0", 4), store.read("expert-1", 4))
    recorder = Recorder()
    recorder.kept["expert-0"] = ["kept"]
    condense.record_pair_experts(recorder, network, real(), SETTINGS, count=2)
    assert recorder.kept["expert-0"] == ["kept"]
    assert len(recorder.kept["expert-1"]) == 5
    with pytest.raises(ArgumentError, match=r"^anchor: got .*'expert-1' begins elsewhere"):
        matching(own)
    matching(own, anchor=own.read("expert-0", 0))


@given(st.integers(1, 6), st.integers(0, 99))
def test_recall_is_the_rank_by_brute_force(n, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randint(-2, 3, (n, 2), generator=generator).double() for _ in range(2))
    for k in range(1, n + 1):
        found = 0
        for i in range(n):
            better = sum(float(queries[i] @ keys[j]) >= float(queries[i] @ keys[i]) for j in range(n) if j != i)
            found += better < k
        assert evaluate.recall(queries, keys, k, batch=2) == found / n
    assert evaluate.recall(torch.full((n, 2), math.nan), keys.float(), 1) == float(n == 1)


def test_the_recipe_says_what_it_is_for():
    card = find_recipe("mdm")
    assert (card.engine, card.initial) == ("pairs", recipes.mdm_initial)
    assert card.optimisers["images"] == {"lr": 100.0, "momentum": 0.5}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda s: matching(s, common=-1), "common"),
        (lambda s: matching(s, gap="much"), "gap"),
        (lambda s: matching(s, amount="half"), "amount"),
        (lambda s: matching(s, batch=True), "batch"),
        (lambda s: matching(s, amount=1.5), "amount"),
        (lambda s: matching(s, batch=1), "batch"),
        (lambda s: matching(s, real_batch=1), "real_batch"),
        (lambda s: matching(s, clip=0), "clip"),
        (lambda s: matching(s, bandwidth=0), "bandwidth"),
        (lambda s: matching(s, records=range(3, 9)), "records"),
        (lambda s: matching(s, records=range(3, 3)), "records"),
        (lambda s: matching(s, anchor=torch.zeros(3)), "anchor"),
        (lambda s: matching(s, count=1), "synthetic"),
        (lambda s: matching(MemoryStore({})), "store"),
        (lambda s: matching(s)[0](None, 0, turn="critic"), "turn"),
        (lambda s: condense.PairedSynthetic(real().images, real(30).texts), "pairs"),
        (lambda s: condense.PairedSynthetic(*real(), rates=(0.1, 0.0)), "rates"),
        (lambda s: condense.PairedSynthetic(*real(), rates=0.1), "rates"),
        (lambda s: condense.PairedSynthetic(*real(), rate_bounds=("a", "b")), "rate_bounds"),
        (lambda s: condense.sphere_energy(torch.ones(1, 2), torch.ones(3, 2), ops.Geodesic()), "x"),
        (lambda s: condense.sphere_energy(torch.ones(2, 2), 3, ops.Geodesic()), "y"),
        (lambda s: evaluate.recall(3, torch.ones(3, 2), 1), "queries"),
        (lambda s: evaluate.recall(torch.ones(3, 2), torch.ones(3, 2), 1.0), "k"),
        (lambda s: evaluate.recall(torch.ones(3, 2), torch.ones(3, 2), 1, batch=0), "batch"),
        (lambda s: condense.train_pairs(network(0), real(1), SETTINGS), "pairs"),
        (lambda s: condense.train_pairs(network(0), real(), SETTINGS, rates=(0.1, -1)), "rates"),
        (lambda s: evaluate.recall(torch.ones(2, 3), torch.ones(3, 3), 1), "keys"),
        (lambda s: evaluate.recall(torch.ones(2, 3), torch.ones(2, 3), 3), "k"),
    ],
)
def test_what_is_refused_names_itself(call, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        call(experts(count=1))


def test_too_few_pairs_are_named():
    with pytest.raises(DataError, match=r"^count: got 41, but there are 40 pairs"):
        matching(count=41)
