"""Top-k teachers and rankings: closed forms, bounds, traps."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import _core, ops
from distillrs.errors import ArgumentError, DistillrsError
from distillrs.ops._top_k import log1mexp

DIVERGENCES = [ops.ForwardKL(), ops.ReverseKL(), ops.JensenShannon(0.3), ops.TotalVariation()]


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(student, topk, divergence, temperature):
    """[rows] By probabilities of the k + 1 events."""
    q = (student / temperature).softmax(-1)
    inside = q.gather(-1, topk.ids)
    q = torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], -1)
    p = torch.cat([topk.log_probs.exp(), topk.tail_log_mass.exp()[..., None]], -1)
    return divergence.value(p.log(), q.log()).sum(-1)


@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, 8),
    temperature=st.sampled_from([1.0, 2.0]),
    divergence=st.sampled_from(DIVERGENCES),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    consume=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_events(seed, k, temperature, divergence, reduction, consume):
    student, teacher = logits(2, 3, 9, seed=seed), logits(2, 3, 9, seed=seed + 1)
    topk = ops.TopK.from_logits(teacher, k, temperatures=(2.0,))
    leaf, exact = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = ops.sparse_row_divergence(
        leaf * 1, topk, divergence, temperature=temperature, reduction=reduction, consume_logits=consume
    )
    rows = textbook(exact, topk.at(temperature), divergence, temperature)
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    torch.testing.assert_close(loss, expected)
    upstream = torch.randn(loss.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(loss, leaf, upstream)
    (truth,) = torch.autograd.grad(expected, exact, upstream)
    torch.testing.assert_close(found, truth)


@given(seed=st.integers(0, 1000), divergence=st.sampled_from(DIVERGENCES))
def test_fewer_events_never_raise_the_divergence_and_all_give_it(seed, divergence):
    student, teacher = logits(4, 12, seed=seed), logits(4, 12, seed=seed + 1)
    full = ops.row_divergence(student, teacher, divergence, reduction="none")
    values = [
        ops.sparse_row_divergence(student, ops.TopK.from_logits(teacher, k), divergence, reduction="none")
        for k in (1, 4, 8, 12)
    ]
    for fewer, more in itertools.pairwise([*values, full]):
        assert (fewer <= more + 1e-12).all()
    torch.testing.assert_close(values[-1], full)


def test_equal_distributions_have_no_divergence():
    student = logits(3, 20)
    for divergence in DIVERGENCES:
        loss = ops.sparse_row_divergence(student, ops.TopK.from_logits(student, 5), divergence)
        assert abs(float(loss)) < 1e-12


def test_mass_outside_the_set_is_charged():
    teacher = torch.tensor([[4.0, 3.0, -8.0, -8.0]])
    topk = ops.TopK.from_logits(teacher, 2)
    agrees_inside = torch.tensor([[4.0, 3.0, 3.5, 3.5]])
    assert float(ops.sparse_row_divergence(agrees_inside, topk, ops.ForwardKL())) > 0.5


def test_a_tail_below_one_rounding_is_kept():
    student = torch.tensor([[0.0, -40.0, -41.0]])
    topk = ops.TopK(torch.tensor([[0]]), torch.tensor([[0.0]]), torch.tensor([-40.0]))
    leaf = student.requires_grad_()
    loss = ops.sparse_row_divergence(leaf, topk, ops.ReverseKL())
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, leaf)[0]).all()


def test_rows_may_have_fewer_entries():
    student = logits(1, 6)
    full = ops.TopK.from_logits(logits(1, 6, seed=1), 2)
    padded = ops.TopK(
        torch.cat([full.ids, torch.tensor([[-1, -1]])], -1),
        torch.cat([full.log_probs, torch.full((1, 2), -math.inf, dtype=torch.float64)], -1),
        full.tail_log_mass,
    )
    results = []
    for topk in (full, padded):
        leaf = student.clone().requires_grad_()
        loss = ops.sparse_row_divergence(leaf, topk, ops.ForwardKL())
        results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_a_temperature_is_exact_or_refused():
    teacher = logits(3, 10)
    topk = ops.TopK.from_logits(teacher, 4, temperatures=(1.0, 2.0))
    expected = ops.TopK.from_logits(teacher / 2, 4)
    found = topk.at(2.0)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    torch.testing.assert_close(found.tail_log_mass, expected.tail_log_mass)
    with pytest.raises(ArgumentError, match=r"temperature: got 3.0, allowed is .*1.0, 2.0"):
        ops.sparse_row_divergence(logits(3, 10), topk, ops.ForwardKL(), temperature=3.0)


def test_rows_of_weight_zero_and_columns_beyond():
    student = logits(3, 12).requires_grad_()
    topk = ops.TopK.from_logits(logits(3, 10, seed=1), 4)
    weight = torch.tensor([1.0, 0.0, 2.0])
    loss = ops.sparse_row_divergence(student, topk, ops.ForwardKL(), weight=weight, vocabulary=10, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, student)
    rows = ops.sparse_row_divergence(student[:, :10], topk, ops.ForwardKL(), reduction="none")
    torch.testing.assert_close(loss, (rows * weight).sum())
    assert torch.equal(gradient[1], torch.zeros(12, dtype=torch.float64))
    assert torch.equal(gradient[:, 10:], torch.zeros(3, 2, dtype=torch.float64))


def topk_of(**changes):
    values = {
        "ids": torch.zeros(2, 3, dtype=torch.int64),
        "log_probs": torch.zeros(2, 3),
        "tail_log_mass": torch.zeros(2),
    }
    return ops.TopK(**{**values, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topk_of(ids=torch.zeros(2, 3)), "ids: got 'torch.float32"),
        (lambda: topk_of(log_probs=torch.zeros(2, 2)), "log_probs: got"),
        (lambda: topk_of(tail_log_mass=torch.zeros(3)), "tail_log_mass: got"),
        (lambda: ops.TopK.from_logits(logits(2, 3), 4), "k: got 4, allowed is an integer from 1 to 3"),
        (lambda: ops.TopK.from_logits(logits(2, 3), 2, (0.0,)), "temperatures: got"),
        (lambda: ops.sparse_row_divergence(logits(2, 3), logits(2, 3), ops.ForwardKL()), "teacher: got 'Tensor'"),
        (lambda: ops.sparse_row_divergence(logits(3, 3), topk_of(), ops.ForwardKL()), r"teacher: got 'rows \(2,\)"),
        (
            lambda: ops.sparse_row_divergence(logits(2, 3), topk_of(ids=torch.full((2, 3), 3)), ops.ForwardKL()),
            "teacher.ids: got 3, allowed is -1 .no entry. or an entry from 0 to 2",
        ),
        (
            lambda: ops.sparse_row_divergence(logits(2, 3), topk_of(), ops.ForwardKL(), backend="rust"),
            "backend: got .*'rust. with torch.float64",
        ),
        (lambda: ops.plackett_luce(logits(2, 3), logits(2, 4), torch.zeros(2, dtype=torch.int64)), "teacher: got"),
        (lambda: ops.plackett_luce(logits(2, 3), logits(2, 3), torch.tensor([0, 3])), "labels: got 3"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


# Rankings


def brute_force(student, teacher, label, temperature):
    """The loss of one row, position by position."""
    rest = [index for index in range(len(student)) if index != label]
    rest.sort(key=lambda index: (-float(teacher[index]), index))
    order = [label, *rest]
    share = (teacher / temperature).softmax(-1)
    loss = 0.0
    for position, index in enumerate(order):
        loss = loss + share[index] * (student[order[position:]].logsumexp(-1) - student[index])
    return loss


@given(seed=st.integers(0, 1000), classes=st.integers(1, 6), temperature=st.sampled_from([1.0, 3.0]))
def test_a_ranking_s_loss_is_that_of_drawing_position_by_position(seed, classes, temperature):
    student = logits(3, classes, seed=seed).requires_grad_()
    # A coarse grid makes ties.
    teacher = logits(3, classes, seed=seed + 1).round()
    labels = torch.arange(3) % classes
    rows = ops.plackett_luce(student, teacher, labels, temperature=temperature, reduction="none")
    expected = torch.stack(
        [brute_force(s, t, int(y), temperature) for s, t, y in zip(student, teacher, labels, strict=True)]
    )
    torch.testing.assert_close(rows, expected)
    upstream = torch.randn(3, dtype=torch.float64)
    found, truth = (torch.autograd.grad(value, student, upstream)[0] for value in (rows, expected))
    torch.testing.assert_close(found, truth)


def test_ignored_rows_do_not_rank_and_weights_do():
    student, teacher = logits(4, 5).requires_grad_(), logits(4, 5, seed=1).requires_grad_()
    labels, weight = torch.tensor([0, -100, 2, 3]), torch.tensor([1.0, 1.0, 0.5, 0.0])
    rows = ops.plackett_luce(student, teacher, torch.tensor([0, 1, 2, 3]), reduction="none")
    loss = ops.plackett_luce(student, teacher, labels, weight=weight)
    torch.testing.assert_close(loss, (rows[0] + 0.5 * rows[2]) / 3)
    loss.backward()
    assert teacher.grad is None
    assert torch.equal(student.grad[[1, 3]], torch.zeros(2, 5, dtype=torch.float64))


def test_all_rows_ignored_is_zero_with_a_graph():
    student = logits(2, 5).requires_grad_()
    loss = ops.plackett_luce(student, logits(2, 5, seed=1), torch.full((2,), -100))
    assert float(loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(loss, student)[0], torch.zeros(2, 5, dtype=torch.float64))


def test_a_teacher_that_is_sure_gives_the_cross_entropy():
    student, labels = logits(4, 5).requires_grad_(), torch.tensor([1, 0, 4, 2])
    teacher = torch.full((4, 5), -1e4, dtype=torch.float64).scatter(-1, labels[:, None], 1e4)
    loss = ops.plackett_luce(student, teacher, labels)
    expected = torch.nn.functional.cross_entropy(student, labels)
    torch.testing.assert_close(loss, expected)
    found, truth = (torch.autograd.grad(value, student)[0] for value in (loss, expected))
    torch.testing.assert_close(found, truth)


def test_large_scores_and_common_shifts_do_no_harm():
    student, teacher, labels = logits(4, 6).requires_grad_(), logits(4, 6, seed=1), torch.arange(4)
    plain = ops.plackett_luce(student, teacher, labels)
    torch.testing.assert_close(ops.plackett_luce(student + 1e4, teacher - 1e4, labels), plain)
    wide = ops.plackett_luce(5e3 * student, 5e3 * teacher, labels)
    assert torch.isfinite(wide)
    assert torch.isfinite(torch.autograd.grad(wide, student)[0]).all()


def test_log1mexp_is_exact_near_both_ends_and_differentiable():
    x = torch.tensor([-1e-9, -0.5, -0.7, -40.0, 0.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    due = [math.log(1e-9), math.log(-math.expm1(-0.5)), math.log1p(-math.exp(-0.7)), -math.exp(-40.0), -math.inf, 0.0]
    assert torch.allclose(log1mexp(x).detach(), torch.tensor(due, dtype=torch.float64), rtol=1e-9)
    log1mexp(x)[:4].sum().backward()
    assert torch.isfinite(x.grad[:4]).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_entry_without_probability_is_none_whatever_its_id(dtype):
    student = logits(2, 8).requires_grad_()
    known = torch.tensor([[0.5, 0.2], [0.6, 0.3]], dtype=torch.float64).log()
    nothing = torch.full((2, 1), -torch.inf, dtype=torch.float64)
    tail = torch.tensor([0.3, 0.1], dtype=torch.float64).log()
    ids = torch.tensor([[1, 4], [7, 0]])
    found = []
    for other in (-1, 3):
        padded = torch.cat([ids, torch.full((2, 1), other)], 1).to(dtype)
        topk = ops.TopK(padded, torch.cat([known, nothing], 1), tail)
        loss = ops.sparse_row_divergence(student, topk, ops.ReverseKL(), reduction="none")
        found.append((loss.detach(), torch.autograd.grad(loss.sum(), student)[0]))
    plain = ops.sparse_row_divergence(student, ops.TopK(ids, known, tail), ops.ReverseKL(), reduction="none")
    for loss, gradient in found:
        torch.testing.assert_close(loss, plain.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), student, retain_graph=True)[0])


# The core


@given(
    seed=st.integers(0, 1000),
    classes=st.integers(1, 30),
    temperature=st.sampled_from([1.0, 3.0]),
    dtypes=st.tuples(*2 * [st.sampled_from([torch.float32, torch.bfloat16, torch.float16])]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    scale=st.sampled_from([0.5, 5.0, 400.0]),
    strided=st.booleans(),
)
def test_a_ranking_in_the_core_is_the_reference_s(seed, classes, temperature, dtypes, reduction, scale, strided):
    columns = classes + (2 if strided else 0)
    student, teacher = (logits(2, 3, columns, seed=seed + i, scale=scale).to(dtypes[i]) for i in (0, 1))
    # A coarse grid makes ties.
    teacher = (teacher / scale * 2).round()
    labels = torch.randint(0, classes, (2, 3), generator=torch.Generator().manual_seed(seed))
    labels[0, 1] = -100
    weight = torch.tensor([[1.0, 2.0, 0.0], [0.5, 1.0, 3.0]])
    student[0, 1], teacher[0, 2] = math.nan, math.nan
    student, teacher = student[:, :, :classes], teacher[:, :, :classes]

    def run(leaf, guide, backend):
        arguments = {"temperature": temperature, "weight": weight, "reduction": reduction, "backend": backend}
        loss = ops.plackett_luce(leaf, guide, labels, **arguments)
        upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        return loss.detach(), torch.autograd.grad(loss, leaf, upstream.to(loss.dtype))[0]

    found, gradient = run(student.clone().requires_grad_(), teacher, "rust")
    exact, exact_gradient = run(student.double().requires_grad_(), teacher.double(), "torch")
    assert found.dtype == torch.float32
    assert gradient.dtype == dtypes[0]
    size = max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6 * size)
    narrow = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtypes[0]]
    largest = max(1.0, float(exact_gradient.nan_to_num().abs().max()))
    expected = exact_gradient.nan_to_num()
    torch.testing.assert_close(gradient.double(), expected, rtol=narrow, atol=narrow * largest)


def both(function):
    """A loss and its gradient of float32 scores, by the core."""
    student = logits(7, 1500).float().requires_grad_()
    loss = function(student)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


TEACHERS = {
    "top-k": lambda student: ops.sparse_row_divergence(
        student, ops.TopK.from_logits(logits(7, 1500, seed=1).float(), 20), ops.JensenShannon(), backend="rust"
    ),
    "ranking": lambda student: ops.plackett_luce(
        student, logits(7, 1500, seed=1).float(), torch.arange(7), backend="rust"
    ),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_threads_change_no_bit(name):
    before = _core.threads()
    try:
        results = []
        for threads in (1, 2, 5):
            _core.set_threads(threads)
            results.append(both(TEACHERS[name]))
    finally:
        _core.set_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("name", TEACHERS)
def test_a_second_derivative_by_the_core_is_refused(name):
    student = logits(7, 1500).float().requires_grad_()
    (gradient,) = torch.autograd.grad(TEACHERS[name](student), student, create_graph=True)
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        gradient.sum().backward()


def test_auto_takes_the_core_and_the_rest_the_reference():
    student, teacher, labels = logits(3, 9).float(), logits(3, 9, seed=1).float(), torch.arange(3)
    top = ops.TopK.from_logits(teacher, 3)
    assert torch.equal(
        ops.sparse_row_divergence(student, top, ops.ReverseKL()),
        ops.sparse_row_divergence(student, top, ops.ReverseKL(), backend="rust"),
    )
    ranked = ops.plackett_luce(student, teacher, labels)
    assert torch.equal(ranked, ops.plackett_luce(student, teacher, labels, backend="rust"))
    # Any number of times, where that is asked for.
    leaf = student.requires_grad_()
    loss = ops.plackett_luce(leaf, teacher, labels, backend="torch")
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    gradient.square().sum().backward()
    assert leaf.grad.abs().sum() > 0
    for backend, message in (("cuda", "backend: got 'cuda'"), ("rust", "backend: got .*torch.float64")):
        with pytest.raises(ArgumentError, match=message):
            ops.plackett_luce(leaf.double(), teacher.double(), labels, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "rust"])
def test_rankings_that_do_not_count_may_hold_anything(backend):
    student, teacher, labels = logits(3, 5).float(), logits(3, 5, seed=1).float(), torch.tensor([1, -100, 2])
    broken = [value.clone() for value in (student, teacher)]
    for value in broken:
        value[1] = math.nan
    found = []
    for one, other in ((student, teacher), broken):
        one = one.clone().requires_grad_()
        loss = ops.plackett_luce(one, other, labels, backend=backend)
        loss.backward()
        found.append((loss.detach(), one.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert float(found[1][1][1].abs().max()) == 0


IDS, LOGS = torch.tensor([[0, 1], [2, 3]]), torch.full((2, 2), 0.4).log()
TOP = ops.TopK(IDS, LOGS, LOGS[:, 0], {2.0: LOGS[:, 0]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.TopK([0], LOGS, LOGS[:, 0]), "^ids: got 'list'"),
        (lambda: ops.TopK(IDS, LOGS.long(), LOGS[:, 0]), "^log_probs: got torch.int64"),
        (lambda: ops.TopK(IDS, LOGS, None), "^tail_log_mass: got 'NoneType'"),
        (lambda: ops.TopK(IDS, LOGS, LOGS[:, 0], None), "^log_partition: got 'NoneType'"),
        (lambda: ops.TopK(IDS, LOGS, LOGS[:, 0], {2.0: 1.0}), "^log_partition: got 'float for 2.0'"),
        (lambda: ops.TopK.from_logits(LOGS, 1, 2.0), "^temperatures: got 2.0"),
        (lambda: ops.TopK.from_logits(LOGS, 1, ("a",)), r"^temperatures: got \('a',\)"),
        (lambda: TOP.at("a"), "^temperature: got 'str'"),
        (lambda: TOP.at(torch.ones(2)), "^temperature: got 'Tensor'"),
        (lambda: ops.divergence(LOGS, TOP, ops.ForwardKL(), teacher_temperature=torch.ones(2)), "^teacher_temperature"),
        (lambda: ops.plackett_luce(LOGS, LOGS, None), "^labels: got 'NoneType'"),
        (lambda: ops.plackett_luce(LOGS, LOGS, IDS[:, 0], ignore_index="a"), "^ignore_index: got 'a'"),
    ],
)
def test_top_k_and_rankings_refuse_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_tail_without_mass_has_none_at_any_temperature():
    """Entries that a cache rounded do not sum to 1, and a tail of their rest would be infinitely far from no tail."""
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    exact = ops.TopK.from_logits(logits, 6, (2.0,))
    rounded = ops.TopK(exact.ids, exact.log_probs.half().float(), exact.tail_log_mass, exact.log_partition)
    assert bool((rounded.at(2.0).tail_log_mass == -torch.inf).all())
    student = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    found = ops.sparse_row_divergence(student, rounded, ops.ForwardKL(), temperature=2.0)
    dense = ops.row_divergence(student, logits, ops.ForwardKL(), temperature=2.0)
    torch.testing.assert_close(found, dense, rtol=1e-2, atol=1e-3)
