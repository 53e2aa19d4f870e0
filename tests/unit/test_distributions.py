"""One divergence for whole distributions, top-k and draws: exact where it can be, unbiased, or refused by name."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import ops
from distillrs.errors import ArgumentError, DistillrsError

BY_TEACHER = [
    ops.ForwardKL(),
    ops.JensenShannon(0.3),
    ops.SkewKL(0.2),
    ops.SkewKL(0.0),
    ops.SkewReverseKL(0.4),
    ops.TotalVariation(),
    ops.Alpha(0.3),
    ops.Alpha(1.5),
    ops.Mixture({ops.ForwardKL(): 0.5, ops.JensenShannon(): 2.0, ops.ReverseKL(): 0.0}),
]
BY_STUDENT = [
    ops.ReverseKL(),
    ops.JensenShannon(0.3),
    ops.SkewKL(0.2),
    ops.SkewReverseKL(0.4),
    ops.SkewReverseKL(0.0),
    ops.TotalVariation(),
    ops.Alpha(0.3),
    ops.Alpha(-0.5),
    ops.Mixture({ops.ReverseKL(): 0.5, ops.TotalVariation(): 2.0}),
]
ANY = [ops.ForwardKL(), ops.ReverseKL(), ops.JensenShannon(0.3), ops.Alpha(0.5)]


def logits(*shape, seed=0, scale=1.5):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outcomes(log_probs, draws):
    """Every sequence of draws from one distribution, and its probability."""
    for ids in itertools.product(range(len(log_probs)), repeat=draws):
        chosen = torch.tensor(ids)
        probability = float(log_probs[chosen].sum().exp())
        if probability:
            yield chosen, probability


def exact(student, teacher, divergence, weight=1.0):
    leaf = student.clone().requires_grad_()
    loss = weight * ops.row_divergence(leaf[None], teacher[None], divergence)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def expectation(log_drawn, draws, student, estimate):
    """Of an estimate and of its gradient with respect to the student's logits, by enumeration."""
    value, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(student)
    for ids, probability in outcomes(log_drawn, draws):
        leaf = student.clone().requires_grad_()
        loss = estimate(leaf, ids)
        value += probability * loss.detach()
        gradient += probability * torch.autograd.grad(loss, leaf)[0]
    return value, gradient


def excluding(teacher):
    """A distribution that gives an entry nothing, as a truncated one does."""
    return teacher.index_fill(-1, torch.tensor([2]), -torch.inf)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("divergence", BY_TEACHER, ids=str)
def test_draws_of_the_teacher_give_the_divergence_and_its_gradient_on_average(divergence, truncated):
    student, teacher = logits(4), logits(4, seed=1)
    if truncated:
        teacher = excluding(teacher)
    log_p = teacher.log_softmax(-1)

    def estimate(leaf, ids):
        return ops.divergence(leaf[None], ops.Sampled(ids[None], log_p[ids][None]), divergence)

    for draws in (1, 2):
        found = expectation(log_p, draws, student, estimate)
        for one, other in zip(found, exact(student, teacher, divergence), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("divergence", BY_STUDENT, ids=str)
@pytest.mark.parametrize("kind", ["dense", "sampled"])
def test_draws_of_the_student_give_them_too_though_they_depend_on_it(divergence, kind):
    student, teacher = logits(4), logits(4, seed=1)
    log_p = teacher.log_softmax(-1)

    def estimate(leaf, ids):
        log_q = leaf.log_softmax(-1)[ids][None]
        drawn = ops.Sampled(ids[None], log_q)
        other = (
            ops.Dense(teacher[None]) if kind == "dense" else ops.Sampled(ids[None], log_p[ids][None], log_q.detach())
        )
        return ops.divergence(drawn, other, divergence)

    for draws in (1, 2):
        found = expectation(student.log_softmax(-1), draws, student, estimate)
        for one, other in zip(found, exact(student, teacher, divergence), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("divergence", ANY, ids=str)
@pytest.mark.parametrize("side", ["dense student", "dense teacher", "both sampled", "teacher drew, student sampled"])
def test_draws_of_a_third_distribution_serve_every_divergence(divergence, side):
    student, teacher, third = logits(4), logits(4, seed=1), logits(4, seed=2)
    log_p, log_m = teacher.log_softmax(-1), third.log_softmax(-1)
    if side.startswith("teacher drew"):
        log_m = log_p
        if divergence not in BY_TEACHER:
            divergence = ops.TotalVariation()

    def estimate(leaf, ids):
        known = {"drawn": log_m[ids][None]}
        of_teacher = ops.Sampled(ids[None], log_p[ids][None], **known)
        of_student = ops.Sampled(ids[None], leaf.log_softmax(-1)[ids][None], **known)
        if side == "dense student":
            return ops.divergence(leaf[None], of_teacher, divergence)
        if side == "dense teacher":
            return ops.divergence(of_student, teacher[None], divergence)
        if side == "both sampled":
            return ops.divergence(of_student, of_teacher, divergence)
        return ops.divergence(of_student, ops.Sampled(ids[None], log_p[ids][None]), divergence)

    found = expectation(log_m, 1, student, estimate)
    for one, other in zip(found, exact(student, teacher, divergence), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("divergence", BY_STUDENT, ids=str)
def test_draws_of_a_student_that_is_its_teacher_have_no_slope(divergence):
    # The baseline: without it the estimate of 0 would be noise.
    log_q = logits(2, 5).log_softmax(-1).requires_grad_()
    drawn = ops.Sampled(torch.arange(5).expand(2, 5), log_q)
    loss = ops.divergence(drawn, ops.Dense(log_q.detach()), divergence)
    (slope,) = torch.autograd.grad(loss, log_q)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


@given(
    seed=st.integers(0, 1000),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    consume=st.booleans(),
)
def test_rows_weights_temperature_and_upstream_gradients_are_those_of_each_row(seed, reduction, dtype, consume):
    student = logits(2, 3, 9, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 7, (2, 3, 4), generator=generator)
    log_p = logits(2, 3, 7, seed=seed + 1).log_softmax(-1).gather(-1, ids)
    weight = torch.tensor([[1.0, 0.0, 0.5], [2.0, 1.0, 0.0]], dtype=torch.float64)
    temperature = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.5
    # What is skipped may hold anything.
    student[0, 1], ids[1, 2], log_p[1, 2] = math.nan, 10**6, math.nan
    leaf = student.clone().requires_grad_()
    loss = ops.divergence(
        leaf * 1,
        ops.Sampled(ids, log_p),
        ops.JensenShannon(0.3),
        temperature=temperature,
        teacher_temperature=1.0,
        weight=weight,
        vocabulary=7,
        reduction=reduction,
        consume_logits=consume,
    )
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    upstream = torch.randn(loss.shape, generator=generator, dtype=torch.float64)
    (found,) = torch.autograd.grad(loss, leaf, upstream.to(loss.dtype))
    truth = student.double().requires_grad_()
    rows = torch.zeros(2, 3, dtype=torch.float64)
    for row in ((0, 0), (0, 2), (1, 0), (1, 1)):
        one = ops.Sampled(ids[row][None], log_p[row][None])
        rows[row] = weight[row] * ops.divergence(
            truth[row][None, :7] / temperature[row], one, ops.JensenShannon(0.3), reduction="sum"
        )
    expected = {"mean": rows.sum() / 6, "sum": rows.sum(), "none": rows}[reduction]
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    (exactly,) = torch.autograd.grad(expected, truth, upstream)
    exactly[0, 1] = exactly[1, 2] = 0
    assert torch.equal(found[..., 7:], torch.zeros_like(found[..., 7:]))
    narrow = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), exactly, rtol=narrow, atol=narrow)


@pytest.mark.parametrize("divergence", [*ANY, ops.TotalVariation()], ids=str)
def test_whole_and_top_k_sides_are_the_functions_that_serve_them(divergence):
    student, teacher = logits(3, 9).requires_grad_(), logits(3, 9, seed=1)
    top = ops.TopK.from_logits(teacher, 4, temperatures=(2.0,))
    for other, serving in ((ops.Dense(teacher), ops.row_divergence), (top, ops.sparse_row_divergence)):
        given_teacher = teacher if other is not top else top
        for arguments in ({}, {"temperature": 2.0, "temperature_rule": "squared", "reduction": "none"}):
            found = ops.divergence(ops.Dense(student), other, divergence, **arguments)
            expected = serving(student, given_teacher, divergence, **arguments)
            torch.testing.assert_close(found, expected)
    square = ops.divergence(student, top, divergence, temperature=2.0, temperature_rule="squared")
    torch.testing.assert_close(square, 4 * ops.divergence(student, top, divergence, temperature=2.0))


@pytest.mark.parametrize("divergence", ANY, ids=str)
@pytest.mark.parametrize("fewer", [False, True])
def test_a_student_s_top_k_has_the_events_of_a_teacher_s_and_gives_them_their_gradient(divergence, fewer):
    student, teacher = logits(3, 9), logits(3, 9, seed=1)
    ids = torch.randperm(9, generator=torch.Generator().manual_seed(0))[:4].expand(3, 4).clone()
    if fewer:
        ids[1, 2:] = -1

    def top_k(log_probs):
        entries = log_probs.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
        rest = torch.cat([log_probs, log_probs[:, :1]], -1).scatter(-1, ids.masked_fill(ids < 0, 9), -torch.inf)
        return ops.TopK(ids, entries, rest[:, :-1].logsumexp(-1))

    gradients = []
    of_teacher = top_k(teacher.log_softmax(-1))
    for case in range(3):
        leaf = student.clone().requires_grad_()
        weight = torch.tensor([1.0, 0.5, 0.0])
        mine = ops.Dense(leaf) if case == 0 else top_k(leaf.log_softmax(-1))
        other = of_teacher if case < 2 else ops.Dense(teacher)
        loss = ops.divergence(mine, other, divergence, weight=weight, reduction="none")
        (gradient,) = torch.autograd.grad(loss, leaf, torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64))
        gradients.append((loss.detach(), gradient))
    for loss, gradient in gradients[1:]:
        torch.testing.assert_close(loss, gradients[0][0])
        torch.testing.assert_close(gradient, gradients[0][1])


def test_a_second_derivative_is_refused():
    log_q = logits(2, 5).log_softmax(-1).requires_grad_()
    loss = ops.divergence(ops.Sampled(torch.arange(5).expand(2, 5), log_q), log_q.detach() * 2, ops.ReverseKL())
    (gradient,) = torch.autograd.grad(loss, log_q, create_graph=True)
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        gradient.sum().backward()


def test_a_weight_of_a_mixture_may_be_a_tensor_without_axes():
    student, teacher = logits(3, 5), logits(3, 5, seed=1)
    mixture = ops.Mixture({ops.ForwardKL(): torch.tensor(0.5), ops.TotalVariation(): 1.0})
    expected = 0.5 * ops.row_divergence(student, teacher, ops.ForwardKL())
    expected = expected + ops.row_divergence(student, teacher, ops.TotalVariation())
    torch.testing.assert_close(ops.row_divergence(student, teacher, mixture, backend="torch"), expected)
    torch.testing.assert_close(ops.row_divergence(student.float(), teacher.float(), mixture), expected.float())


class Own(ops.RowDivergence):
    """The forward KL under another name."""

    def value(self, log_p, log_q):
        return log_p.exp() * (log_p - log_q)

    def derivative(self, log_p, log_q):
        return -log_p.exp()


IDS = torch.tensor([[0, 1], [2, 0]])
DRAWS = ops.Sampled(IDS, torch.full((2, 2), -1.0))
TOP = ops.TopK(IDS, torch.full((2, 2), -1.0), torch.full((2,), -2.0))
KL = ops.ForwardKL()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.Dense([1.0]), "logits: got 'list'"),
        (lambda: ops.Sampled(IDS.float(), DRAWS.log_probs), "ids: got .*float32.*int64 or int32"),
        (lambda: ops.Sampled(IDS[:, :0], DRAWS.log_probs[:, :0]), "ids: got .*at least one draw"),
        (lambda: ops.Sampled(IDS, torch.zeros(2, 3)), r"log_probs: got .*\[2, 3\].*that of the ids"),
        (lambda: ops.Sampled(IDS, DRAWS.log_probs, torch.zeros(2)), "drawn: got"),
        (
            lambda: ops.divergence(logits(2, 3), DRAWS, ops.ReverseKL()),
            "divergence: got 'ReverseKL.* draws of the teacher",
        ),
        (lambda: ops.divergence(logits(2, 3), DRAWS, ops.SkewReverseKL(0.0)), "divergence: got 'SkewReverseKL"),
        (lambda: ops.divergence(logits(2, 3), DRAWS, ops.Alpha(-0.5)), "divergence: got 'Alpha"),
        (
            lambda: ops.divergence(DRAWS, logits(2, 3), ops.ForwardKL()),
            "divergence: got 'ForwardKL.* draws of the student",
        ),
        (lambda: ops.divergence(DRAWS, logits(2, 3), ops.Alpha(1.5)), "divergence: got 'Alpha"),
        (
            lambda: ops.divergence(logits(2, 3), DRAWS, ops.Mixture({ops.ReverseKL(): 0.1})),
            "divergence: got 'ReverseKL",
        ),
        (lambda: ops.divergence(logits(2, 3), DRAWS, Own()), "divergence: got 'Own with draws of the teacher"),
        (
            lambda: ops.divergence(logits(2, 3), DRAWS, KL, temperature=2.0),
            "temperature: got 2.0, allowed is 1 .*Sampled",
        ),
        (lambda: ops.divergence(DRAWS, logits(2, 3), ops.ReverseKL(), temperature=2.0), "temperature: got 2.0"),
        (
            lambda: ops.divergence(logits(2, 3), DRAWS, KL, temperature=2.0, teacher_temperature=2.0),
            "teacher_temperature: got 2.0",
        ),
        (
            lambda: ops.divergence(logits(2, 3), DRAWS, KL, backend="rust"),
            "backend: got .*'rust' with Dense and Sampled",
        ),
        (lambda: ops.divergence(logits(2, 2), DRAWS, KL), "teacher.ids: got 2, allowed is entries from 0 to 1"),
        (lambda: ops.divergence(logits(3, 3), DRAWS, KL), r"teacher: got 'rows \(2,\)'"),
        (lambda: ops.divergence(DRAWS, TOP, ops.ReverseKL()), "teacher: got 'a TopK beside a Sampled student'"),
        (lambda: ops.divergence(TOP, DRAWS, KL), "teacher: got 'a Sampled beside a TopK student'"),
        (lambda: ops.divergence(DRAWS, DRAWS, KL), "teacher: got 'two Sampled .*drawn="),
        (
            lambda: ops.divergence(DRAWS, ops.Sampled(IDS, DRAWS.log_probs, DRAWS.log_probs - 1), ops.ReverseKL()),
            "drawn: got 'the two sides name different",
        ),
        (
            lambda: ops.divergence(DRAWS, ops.Sampled(1 - IDS % 2, DRAWS.log_probs, DRAWS.log_probs), ops.ReverseKL()),
            "teacher.ids: got .other draws",
        ),
        (lambda: ops.divergence(TOP, ops.TopK(IDS.flip(0), TOP.log_probs, TOP.tail_log_mass), KL), "teacher.ids: got"),
        (lambda: ops.divergence(logits(2, 3), TOP, KL, teacher_temperature=2.0), "teacher_temperature: got 2.0"),
        (lambda: ops.divergence(logits(2, 3), TOP, KL, temperature=torch.ones(2)), "temperature: got 'Tensor'"),
        (lambda: ops.divergence(TOP, logits(2, 3), KL, consume_logits=True), "consume_logits: got 'True with TopK'"),
        (lambda: ops.divergence("student", logits(2, 3), KL), "student: got 'str'"),
    ],
)
def test_what_a_kind_cannot_give_is_refused_by_name(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
