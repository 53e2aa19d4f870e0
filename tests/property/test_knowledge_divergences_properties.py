"""Divergences and alignments of the knowledge engine against their formulas written out, in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from distillrs import knowledge as kn
from distillrs import ops
from distillrs.knowledge import Inputs, View
from distillrs.step import Step

NAMES = st.sampled_from(["ids", "content", "apart"])


def view(student=None, teacher=None, **options):
    return View(Inputs((), {}, options.pop("fields", {})), Step(0), Step(0), student, teacher, **options)


@st.composite
def pairs(draw, shapes=((3, 4), (2, 3, 4), (2, 3, 4, 5), (1, 1), (4, 0, 3), (0, 3))):
    shape = draw(st.sampled_from(shapes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    student, teacher = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if draw(st.booleans()) and student.ndim >= 2:
        student = student.transpose(0, 1).contiguous().transpose(0, 1)
    return student, teacher


def rows_of(tensor):
    """All rows of a tensor as a list of vectors, by the rule of the docstring."""
    axes = 1 if tensor.ndim >= 4 else tensor.ndim - 1
    return tensor.reshape(math.prod(tensor.shape[:axes]), math.prod(tensor.shape[axes:])), tensor.shape[:axes]


def huber(d, beta):
    return torch.where(d.abs() < beta, d * d / (2 * beta), d.abs() - beta / 2)


FEATURES = {
    "mse": (kn.MSE(), lambda s, t: ((s - t) ** 2).mean()),
    "l1": (kn.L1(), lambda s, t: (s - t).abs().mean()),
    "smooth_l1": (kn.SmoothL1(0.3), lambda s, t: huber(s - t, 0.3).mean()),
    "cosine": (kn.Cosine(), lambda s, t: 1 - (s * t).sum() / (s.norm() * t.norm())),
    "normalised": (kn.NormalisedMSE(), lambda s, t: ((s / s.norm() - t / t.norm()) ** 2).sum()),
    "relative": (kn.NormalisedMSE("teacher"), lambda s, t: ((s - t) ** 2).sum() / (t**2).sum()),
    "bernoulli": (
        kn.Bernoulli(),
        lambda s, t: (
            t.sigmoid() * (t.sigmoid() / s.sigmoid()).log()
            + (1 - t.sigmoid()) * ((1 - t.sigmoid()) / (1 - s.sigmoid())).log()
        ).mean(),
    ),
}


@pytest.mark.parametrize("name", list(FEATURES))
@given(pair=pairs(), upstream=st.sampled_from([1.0, -2.5]))
def test_features_row_by_row(name, pair, upstream):
    divergence, formula = FEATURES[name]
    student, teacher = pair
    if name == "bernoulli":
        student, teacher = student / 4, teacher / 4
    leaf = student.clone().requires_grad_()
    frozen = teacher.clone().requires_grad_()
    found = divergence.rows(leaf, frozen, view())
    flat, shape = rows_of(leaf)
    other, _ = rows_of(teacher)
    expected = torch.stack([formula(s, t) for s, t in zip(flat, other, strict=True)]) if len(flat) else flat.sum(1)
    assert found.shape == shape
    assert divergence.leading(student) == tuple(shape)
    torch.testing.assert_close(found.reshape(-1), expected, rtol=1e-9, atol=1e-12)
    factor = upstream * torch.arange(1.0, 1 + found.numel(), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found.reshape(-1) * factor).sum(), leaf, retain_graph=True)
    (reference,) = torch.autograd.grad((expected * factor).sum(), leaf)
    torch.testing.assert_close(gradient, reference, rtol=1e-7, atol=1e-9)
    if found.requires_grad:
        assert torch.autograd.grad(found.sum(), frozen, allow_unused=True)[0] is None


@given(pair=pairs(shapes=((5, 4), (2, 3, 6))), steps=st.sampled_from([0.5, 2.0, 4.0]), beta=st.sampled_from([0.0, 2.0]))
def test_the_decoupled_divergence_is_the_forward_kl_where_beta_is_the_mass_of_the_others(pair, steps, beta):
    # The written-out formula takes one less the label's probability, which loses a confident row's digits.
    student, teacher = (each.clamp(-2, 2) for each in pair)
    labels = torch.arange(student[..., 0].numel()).reshape(student.shape[:-1]) % student.shape[-1]
    seen = view(student, teacher, temperature=steps, teacher_temperature=steps, labels=labels)
    p, q = (teacher / steps).softmax(-1), (student / steps).softmax(-1)
    found = kn.DecoupledKL(0.7, beta).rows(student, teacher, seen)
    expected = torch.empty_like(found)
    for row in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)).reshape(-1, found.ndim).tolist():
        a, b, y = p[tuple(row)], q[tuple(row)], int(labels[tuple(row)])
        binary = a[y] * (a[y] / b[y]).log() + (1 - a[y]) * ((1 - a[y]) / (1 - b[y])).log()
        rest = [v for v in range(len(a)) if v != y]
        inside_p, inside_q = a[rest] / a[rest].sum(), b[rest] / b[rest].sum()
        expected[tuple(row)] = 0.7 * binary + beta * (inside_p * (inside_p / inside_q).log()).sum()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    mass = 1 - p.gather(-1, labels[..., None])[..., 0]
    whole = (p * (p.log() - q.log())).sum(-1)
    one = kn.DecoupledKL(1.0, 0.0).rows(student, teacher, seen)
    other = kn.DecoupledKL(0.0, 1.0).rows(student, teacher, seen)
    torch.testing.assert_close(one + mass * other, whole, rtol=1e-6, atol=1e-8)


@given(pair=pairs(shapes=((4, 5), (2, 3, 6))))
def test_rankings_are_those_of_ops_with_the_label_first(pair):
    student, teacher = pair
    labels = torch.arange(student[..., 0].numel()).reshape(student.shape[:-1]) % student.shape[-1]
    found = kn.PlackettLuce().rows(student, teacher, view(student, teacher, labels=labels, teacher_temperature=2.0))
    expected = ops.plackett_luce(student, teacher, labels, temperature=2.0, reduction="none")
    assert torch.equal(found, expected)


@given(tau=st.sampled_from([1.0, 5.0, 100.0]), seed=st.integers(0, 999))
def test_binary_events_of_log_likelihoods(tau, seed):
    generator = torch.Generator().manual_seed(seed)
    lq, lp = (-torch.rand(4, 3, generator=generator, dtype=torch.float64) * 20 - 1e-3 for _ in range(2))
    leaf = lq.clone().requires_grad_()
    divergence = kn.Bernoulli("log_probabilities")
    found = divergence.rows(leaf, lp, view(temperature=tau, teacher_temperature=tau))
    a, b = (lp / tau).exp(), (leaf / tau).exp()
    expected = (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()).mean(-1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)
    gradient, reference = (torch.autograd.grad(each.sum(), leaf, retain_graph=True)[0] for each in (found, expected))
    torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-10)
    assert divergence.rows(lp, lp, view(temperature=tau, teacher_temperature=tau)).abs().max() < 1e-12


def test_a_certain_event_has_a_finite_loss_and_slope():
    leaf = torch.tensor([[0.0, -1e-30, -50.0]], dtype=torch.float64, requires_grad=True)
    loss = kn.Bernoulli("log_probabilities").rows(leaf, torch.tensor([[-1.0, 0.0, 0.0]], dtype=torch.float64), view())
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(leaf.grad).all()


@given(pair=pairs(shapes=((3, 4, 2, 5), (2, 1, 3))), p=st.sampled_from([1.0, 2.0, 3.0]))
def test_attention_maps(pair, p):
    for made, maps in zip(kn.AttentionMap(p)(*pair), pair, strict=True):
        expected = []
        for example in maps:
            energy = sum(channel.abs() ** p for channel in example).flatten()
            expected.append(energy / energy.norm())
        torch.testing.assert_close(made, torch.stack(expected), rtol=1e-9, atol=1e-12)


@given(pair=pairs(shapes=((3, 4, 5), (2, 3, 4, 5))), normalise=st.sampled_from(["vectors", "rows", "size", "none"]))
def test_gram_matrices_by_loops(pair, normalise):
    for of in ("examples", "tokens", "channels"):
        for made, features in zip(kn.Gram(of, normalise)(*pair), pair, strict=True):
            if of == "examples":
                groups = features.flatten(1)[None]
            elif of == "channels":
                groups = features.flatten(2)
            else:
                groups = features.reshape(-1, *features.shape[-2:])
            expected = []
            for vectors in groups:
                if normalise == "vectors":
                    vectors = vectors / vectors.norm(dim=1, keepdim=True)
                products = torch.stack([torch.stack([a @ b for b in vectors]) for a in vectors])
                if normalise == "rows":
                    products = products / products.norm(dim=1, keepdim=True)
                expected.append(products / vectors.shape[1] if normalise == "size" else products)
            torch.testing.assert_close(made.reshape(len(expected), *made.shape[-2:]), torch.stack(expected))


@given(pair=pairs(shapes=((4, 3), (3, 2, 2), (2, 5))), twice=st.booleans())
def test_distances_and_angles_by_loops(pair, twice):
    student = pair[0]
    if twice:
        student[1] = student[0]
    leaf = student.clone().requires_grad_()
    distances, _ = kn.PairDistances()(leaf, pair[1])
    flat = student.flatten(1)
    plain = torch.stack([torch.stack([(a - b).norm() for b in flat]) for a in flat])
    apart = plain[plain > 0]
    torch.testing.assert_close(distances.detach(), plain / apart.mean() if len(apart) else plain)
    angles, _ = kn.TripletAngles()(leaf, pair[1])
    n = len(flat)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                e, f = (flat[other] - flat[i] for other in (j, k))
                expected = 0.0 if not e.any() or not f.any() else float(e @ f / (e.norm() * f.norm()))
                assert float(angles.detach()[i, j * n + k]) == pytest.approx(expected, abs=1e-9)
    (gradient,) = torch.autograd.grad(distances.square().sum() + angles.square().sum(), leaf)
    assert torch.isfinite(gradient).all()


def test_near_examples_keep_their_distance():
    """A difference of squared norms would lose it in float32."""
    features = torch.tensor([[1000.0, 0.0], [1000.0, 0.01], [1000.0, 0.03]])
    found, _ = kn.PairDistances()(features, features)
    assert float(found[0, 2] / found[0, 1]) == pytest.approx(3.0, rel=0.01)


@given(heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_relations_of_heads(heads, seed):
    torch.manual_seed(seed)
    student, teacher = (torch.randn(2, 3, width, dtype=torch.float64) for width in (4, 8))
    queries = (student, 2 * student)
    made, other = kn.HeadRelations(heads)(queries, (teacher, teacher))
    assert made.shape == other.shape == (2, 3, 2, heads, 3)
    for b in range(2):
        for a, tensor in enumerate(queries):
            for h in range(heads):
                width = 4 // heads
                part = tensor[b][:, h * width : (h + 1) * width]
                torch.testing.assert_close(made[b, :, a, h], part @ part.T / math.sqrt(width))


@given(
    pair=pairs(shapes=((4, 3), (1, 2), (5, 6))),
    tau=st.sampled_from([0.07, 1.0]),
    names=NAMES,
)
def test_info_nce_by_loops(pair, tau, names):
    """Trap: an example that comes twice is no negative of itself."""
    student, teacher = pair
    n = len(student)
    ids = torch.arange(n)
    if n > 2:
        ids[2] = ids[0]
        if names == "content":
            teacher[2] = teacher[0]
    fields = {"ids": ids} if names == "ids" else {}
    groups = ids if names in ("ids", "content") else torch.arange(n)
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    logits = s @ t.T / tau
    for duplicates in ("positive", "excluded"):
        found = kn.InfoNCE(tau, duplicates=duplicates).rows(student, teacher, view(fields=fields))
        for i in range(n):
            same = [j for j in range(n) if groups[j] == groups[i]]
            if duplicates == "positive":
                expected = sum(logits[i].logsumexp(0) - logits[i, j] for j in same) / len(same)
            else:
                kept = [j for j in range(n) if j == i or j not in same]
                expected = logits[i, kept].logsumexp(0) - logits[i, i]
            assert float(found[i]) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def test_the_queue_holds_the_latest_rows_and_knows_their_ids():
    divergence = kn.InfoNCE(0.5, queue=5, width=3).double()
    torch.manual_seed(0)
    numbers = [torch.tensor(ids) for ids in ([0, 1, 2], [3, 4, 5], [2, 6, 7])]
    batches = [(torch.randn(3, 3).double(), torch.randn(3, 3).double(), ids) for ids in numbers]
    for student, teacher, ids in batches[:2]:
        divergence.rows(student, teacher, view(fields={"ids": ids}))
    with torch.no_grad():
        divergence.rows(*batches[0][:2], view(fields={"ids": batches[0][2]}))
    student, teacher, ids = batches[2]
    found = divergence.rows(student, teacher, view(fields={"ids": ids}))
    held = torch.cat([batches[0][1][1:], batches[1][1]])
    known = [1, 2, 3, 4, 5]
    logits = F.normalize(student, dim=1) @ F.normalize(torch.cat([teacher, held]), dim=1).T / 0.5
    for i in range(3):
        same = [i] + [3 + j for j, each in enumerate(known) if each == int(ids[i])]
        expected = sum(logits[i].logsumexp(0) - logits[i, j] for j in same) / len(same)
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-9)
    other = kn.InfoNCE(0.5, queue=5, width=3).double()
    other.load_state_dict(divergence.state_dict())
    assert torch.equal(other.rows(student, teacher, view()), divergence.rows(student, teacher, view()))


def test_the_loss_cannot_say_more_than_the_logarithm_of_the_candidates():
    rows = torch.eye(4, dtype=torch.float64)
    assert float(kn.InfoNCE(0.01).rows(rows, rows, view()).max()) < 1e-6
    apart = kn.InfoNCE(1e6).rows(rows, rows, view())
    torch.testing.assert_close(apart, torch.full_like(apart, math.log(4)), rtol=1e-5, atol=0)


LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2])


@pytest.mark.parametrize("labels", [None, LABELS])
def test_noise_contrast_by_loops_over_two_steps(labels):
    torch.manual_seed(0)
    part = kn.NoiseContrast(8, 3, negatives=50, temperature=0.2, momentum=0.4, labels=labels).double()
    memories = [part.student_memory.clone(), part.teacher_memory.clone()]
    constants = [None, None]
    for number in range(2):
        student, teacher = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        ids = torch.tensor([5, 0, 3]) + number
        seen = View(Inputs((), {}, {"ids": ids}), Step(number, seed=4), Step(number), None)
        chosen = part._draw(ids, seen.step)
        assert set(chosen.flatten().tolist()) <= set(range(8))
        groups = torch.arange(8) if labels is None else labels
        assert not (groups[chosen] == groups[ids][:, None]).any()
        found = part.rows(student, teacher, seen)
        s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        expected = torch.zeros(3, dtype=torch.float64)
        for side, (anchors, memory) in enumerate(((s, memories[1]), (t, memories[0]))):
            x = torch.stack(
                [(memory[torch.cat([ids[i : i + 1], chosen[i]])] @ anchors[i] / 0.2).exp() for i in range(3)]
            )
            if constants[side] is None:
                constants[side] = x.mean().detach() * 8
            x = x / constants[side]
            level = 50 / 8
            expected = expected - (x[:, 0] / (x[:, 0] + level + 1e-7)).log()
            expected = expected - (level / (x[:, 1:] + level + 1e-7)).log().sum(1)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        for leaf in (student, teacher):
            one, other = (torch.autograd.grad(each.sum(), leaf, retain_graph=True)[0] for each in (found, expected))
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
        for memory, rows in ((memories[0], s), (memories[1], t)):
            memory[ids] = F.normalize(0.4 * memory[ids] + 0.6 * rows.detach(), dim=1)
        torch.testing.assert_close(part.student_memory, memories[0])
        torch.testing.assert_close(part.teacher_memory, memories[1])


def test_noise_contrast_draws_every_other_class_alike_whatever_the_batch():
    part = kn.NoiseContrast(8, 3, negatives=4000, labels=LABELS)
    drawn = part._draw(torch.tensor([4, 0]), Step(1))
    counts = torch.bincount(drawn[0], minlength=8)
    assert (counts[[1, 4]] == 0).all()
    assert counts[[0, 2, 3, 5, 6, 7]].min() > 4000 / 6 * 0.8
    assert torch.equal(part._draw(torch.tensor([0]), Step(1))[0], drawn[1])
    assert not torch.equal(part._draw(torch.tensor([0]), Step(2))[0], drawn[1])


def test_evaluation_leaves_memories_alone():
    part = kn.NoiseContrast(8, 3, negatives=5)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with torch.no_grad():
        part.rows(torch.randn(2, 3), torch.randn(2, 3), view(fields={"ids": torch.tensor([0, 1])}))
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


@given(pair=pairs(shapes=((2, 3, 4, 6),)), size=st.sampled_from([None, 1, (2, 3)]))
def test_maps_are_pooled_to_a_common_size(pair, size):
    student, teacher = pair[0], pair[1][:, :2, :2, :3]
    first, second = kn.Pooled(size)(student, teacher)
    expected = {None: (2, 3), 1: (1, 1)}.get(size, size)
    assert first.shape[2:] == second.shape[2:] == expected
    if expected == (2, 3):
        blocks = student.reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
        torch.testing.assert_close(first, blocks)
        assert second is teacher


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 4, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_projector_is_a_linear_map_of_the_features(shape, bias):
    projector = kn.Projector(4, 6, bias=bias).double()
    features = torch.randn(shape, dtype=torch.float64)
    made, untouched = projector(features, "teacher")
    assert untouched == "teacher"
    axis = 1 if len(shape) == 4 else len(shape) - 1
    expected = torch.tensordot(features.movedim(axis, -1), projector.weight.T, dims=1) + (projector.bias if bias else 0)
    torch.testing.assert_close(made, expected.movedim(-1, axis))
    assert torch.equal(kn.Projector(4, 6).weight, kn.Projector(4, 6).weight)
    assert not torch.equal(kn.Projector(4, 6, seed=1).weight, kn.Projector(4, 6).weight)
    assert projector.weight.abs().max() <= 0.5
    assert projector.weight.std() > 0.2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((4, 12), [2, 5, 8, 11]),
        ((3, 8, "uniform"), [1, 4, 7]),
        ((2, 5, "last"), [3, 4]),
        ((2, 5, "first"), [0, 1]),
        ((2, 5, [4, 0]), [4, 0]),
    ],
)
def test_layers_are_paired(arguments, expected):
    assert kn.layer_pairs(*arguments) == list(enumerate(expected))
