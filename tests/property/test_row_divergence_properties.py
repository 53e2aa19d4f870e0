"""Every backend of `row_divergence` against autograd of the textbook formulas in float64."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from distillrs import ops
from distillrs.errors import ArgumentError

BACKENDS = ["torch", "rust", "cuda"]

betas = st.floats(0.02, 0.98)
simple = st.one_of(
    st.just(ops.ForwardKL()),
    st.just(ops.ReverseKL()),
    st.builds(ops.JensenShannon, betas),
    st.builds(ops.SkewKL, st.just(0.0) | betas),
    st.builds(ops.SkewReverseKL, st.just(0.0) | betas),
    st.just(ops.TotalVariation()),
    st.builds(ops.Alpha, st.sampled_from([-0.5, 0.3, 0.5, 0.8, 1.5, 2.0])),
)


def textbook(divergence, p, q):
    """[rows] The divergence as the literature writes it, of logarithms of probabilities."""

    def kl(x, y):
        return (x.exp() * (x - y)).sum(-1)

    def mixture(share):
        return torch.logaddexp(p + math.log(share), q + math.log(1 - share)) if share else q

    match divergence:
        case ops.ForwardKL():
            return kl(p, q)
        case ops.ReverseKL():
            return kl(q, p)
        case ops.JensenShannon(beta):
            return beta * kl(p, mixture(beta)) + (1 - beta) * kl(q, mixture(beta))
        case ops.SkewKL(alpha):
            return kl(p, mixture(alpha))
        case ops.SkewReverseKL(alpha):
            return kl(q, mixture(1 - alpha) if alpha else p)
        case ops.TotalVariation():
            return (p.exp() - q.exp()).abs().sum(-1) / 2
        case ops.Alpha(a):
            return ((a * p + (1 - a) * q).exp().sum(-1) - 1) / (a * (a - 1))
        case ops.Mixture():
            return sum(weight * textbook(part, p, q) for part, weight in divergence.weights.items())
    raise AssertionError(divergence)


@st.composite
def cases(draw):
    """Arguments of a call; everything finite."""
    shape = draw(st.sampled_from([(), (1,), (5,), (2, 3), (2, 1, 2)]))
    columns = draw(st.integers(1, 40) | st.sampled_from([127, 1024, 1025, 2100]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = draw(st.sampled_from([0.1, 1.0, 6.0]))
    offset = draw(st.sampled_from([0.0, 30.0, -500.0]))

    def normal(*dims):
        return torch.randn(dims, generator=generator, dtype=torch.float64)

    def rows(values):
        return values if draw(st.booleans()) else None

    extra = draw(st.sampled_from([None, (0, 0), (3, 0), (0, 2), (1, 4)]))
    beyond = extra or (0, 0)
    student = (size * normal(*shape, columns + beyond[0]) + offset).float()
    teacher = (size * normal(*shape, columns + beyond[1])).float()
    arguments = {"vocabulary": None if extra is None else columns}
    temperature = normal(*shape).exp()
    arguments["temperature"] = draw(st.sampled_from([1.0, 2.5, temperature]))
    arguments["teacher_temperature"] = draw(st.sampled_from([None, 0.7, normal(*shape).exp()]))
    if arguments["teacher_temperature"] is None:
        arguments["temperature_rule"] = draw(st.sampled_from(["none", "squared"]))
    arguments["weight"] = rows((normal(*shape).abs() * (torch.rand(shape, generator=generator) > 0.3)).double())
    if draw(st.booleans()):
        labels = torch.randint(0, columns, shape, generator=generator)
        arguments["labels"] = torch.where(torch.rand(shape, generator=generator) < 0.3, -100, labels)
        arguments["label_weight"] = draw(st.sampled_from([0.0, 0.5, normal(*shape).abs()]))
    divergence = draw(simple)
    if draw(st.integers(0, 3)) == 0:
        parts = draw(st.lists(simple, min_size=1, max_size=3, unique=True))
        divergence = ops.Mixture({part: draw(st.sampled_from([0.0, 0.4, normal(*shape).abs()])) for part in parts})
    arguments["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    if arguments["reduction"] == "mean":
        arguments["normaliser"] = draw(st.sampled_from([None, "rows", "weights", 7.0]))
    return student, teacher, divergence, arguments


def expected(student, teacher, divergence, arguments):
    """The loss by autograd's means, in float64."""
    student, teacher, temperature, other, _ = tempered(student, teacher, arguments)
    q = (student / temperature[..., None]).log_softmax(-1)
    p = (teacher / other[..., None]).log_softmax(-1)
    return reduced(textbook(divergence, p, q), student, temperature, arguments)


def tempered(student, teacher, arguments):
    """Logits in float64 without the excluded columns, and a temperature for each row."""
    columns = arguments.get("vocabulary") or student.shape[-1]
    temperature = each_row(arguments.get("temperature", 1.0), student)
    other = arguments.get("teacher_temperature")
    other = temperature if other is None else each_row(other, student)
    return student.double()[..., :columns], teacher.double()[..., :columns], temperature, other, columns


def each_row(value, student):
    return torch.as_tensor(value, dtype=torch.float64).expand(student.shape[:-1])


def reduced(loss, student, temperature, arguments):
    """Losses of rows after the temperature's rule, the labels' share, weights and reduction."""
    if arguments.get("temperature_rule") == "squared":
        loss = loss * temperature**2
    weight = each_row(1.0 if arguments.get("weight") is None else arguments["weight"], student)
    labels = arguments.get("labels")
    if labels is not None:
        valid = labels != -100
        chosen = student.log_softmax(-1).gather(-1, labels.where(valid, 0)[..., None])[..., 0]
        loss = loss - each_row(arguments["label_weight"], student) * chosen
        weight = weight * valid
    loss = loss * weight
    if arguments["reduction"] == "none":
        return loss
    if arguments["reduction"] == "sum":
        return loss.sum()
    normaliser = arguments["normaliser"]
    count = loss.numel() if labels is None else int(valid.sum())
    divisor = {None: count, "rows": count, "weights": float(weight.sum())}.get(normaliser, normaliser)
    return loss.sum() / divisor if divisor else loss.sum() * 0


def gradients(function, student, upstream_seed=0):
    """The value, and the gradient under an upstream gradient that is not a scalar one."""
    student = student.clone().requires_grad_()
    value = function(student * 1)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(upstream_seed)).to(value) + 0.5
    (gradient,) = torch.autograd.grad(value, student, upstream)
    return value.detach(), gradient


def assert_close(found, exact, scale, tolerance):
    error = (found.double() - exact.double()).abs()
    assert float(error.nan_to_num(torch.inf).max() if error.numel() else 0.0) <= tolerance * scale


def scale_of(tensor):
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def gradient_rounding(student, teacher, divergence, arguments):
    """What arithmetic in float32 may change in each entry of the gradient, to first order.

    Logarithms of probabilities are differences of logits, so a row's are uncertain by about float32's unit times its
    range of logits; the derivative is read at the corners of that uncertainty, which also covers a jump of it.
    """
    exact_student, exact_teacher, temperature, other, columns = tempered(student, teacher, arguments)
    unit = 8 * torch.finfo(torch.float32).eps
    log_q = (exact_student / temperature[..., None]).log_softmax(-1)
    log_p = (exact_teacher / other[..., None]).log_softmax(-1)
    uncertain = unit * (4 + log_q.amin(-1).abs() + log_p.amin(-1).abs())[..., None]
    exact = divergence.derivative(log_p, log_q)
    corners = [
        divergence.derivative(log_p + first * uncertain, log_q + second * uncertain)
        for first in (-1, 1)
        for second in (-1, 1)
    ]
    of_derivative = torch.stack([(corner - exact).abs() for corner in corners]).amax(0) + unit * exact.abs()
    q = log_q.exp()
    of_entry = of_derivative + q * of_derivative.sum(-1, keepdim=True)
    of_entry = of_entry + q * uncertain * exact.sum(-1, keepdim=True).abs()
    # The vector exponential takes what is below 2^-100 as 0.
    largest = 1 + log_q.amin(-1).abs() + log_p.amin(-1).abs() + exact.abs().sum(-1)
    of_entry = of_entry + 2.0**-99 * largest[..., None]

    losses = torch.zeros(student.shape[:-1], dtype=torch.float64, requires_grad=True)
    _, shares = gradients(lambda rows: reduced(rows, exact_student, temperature, arguments), losses)
    entries = torch.zeros(student.shape, dtype=torch.float64)
    entries[..., :columns] = shares.abs()[..., None] / temperature[..., None] * of_entry
    if "labels" in arguments:
        # The cross-entropy's gradient is a probability, or one less than it.
        rows = shares.abs() / (temperature**2 if arguments.get("temperature_rule") == "squared" else 1)
        uncertain = unit * (4 + exact_student.log_softmax(-1).amin(-1).abs())
        entries[..., :columns] += (rows * each_row(arguments["label_weight"], student) * uncertain)[..., None]
    return entries


def is_heavy(divergence):
    """Whether tiny probabilities have large weights, so that float32 logits are the limit."""
    parts = divergence.weights if isinstance(divergence, ops.Mixture) else [divergence]
    return any(isinstance(part, ops.Alpha) for part in parts)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), consume=st.booleans())
def test_values_and_gradients_are_those_of_the_textbook(backend, case, consume):
    student, teacher, divergence, arguments = case
    exact, exact_gradient = gradients(lambda s: expected(s, teacher, divergence, arguments), student.double())
    # Alpha outside of 0 to 1 has no bound: it may leave float32's range.
    assume(scale_of(exact) < 1e30)

    def ours(s):
        return ops.row_divergence(s, teacher, divergence, consume_logits=consume, backend=backend, **arguments)

    found, gradient = gradients(ours, student)
    assert found.dtype == torch.float32
    assert gradient.dtype == student.dtype
    tolerance = 3e-4 if is_heavy(divergence) else 2e-5
    assert_close(found, exact, 1.0 + scale_of(exact), tolerance)
    excess = (gradient.double() - exact_gradient).abs() - gradient_rounding(student, teacher, divergence, arguments)
    assert float(excess.max() if excess.numel() else 0.0) <= 0


@given(case=cases())
def test_the_reference_in_float64_is_exact(case):
    student, teacher, divergence, arguments = case
    student, teacher = student.double(), teacher.double()
    exact, exact_gradient = gradients(lambda s: expected(s, teacher, divergence, arguments), student)
    found, gradient = gradients(lambda s: ops.row_divergence(s, teacher, divergence, **arguments), student)
    assert found.dtype == torch.float64
    assert_close(found, exact, 1.0 + scale_of(exact), 1e-9)
    assert_close(gradient, exact_gradient, 1e-3 + scale_of(exact_gradient), 1e-9)


@given(divergence=simple, seed=st.integers(0, 1000), temperature=st.sampled_from([1.0, 3.0]))
def test_finite_differences_agree(divergence, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    torch.autograd.gradcheck(
        lambda s: ops.row_divergence(s, teacher, divergence, temperature=temperature, reduction="none"), student
    )


@given(seed=st.integers(0, 1000), end=st.sampled_from(["p", "q"]))
def test_jensen_shannon_tends_to_the_kullback_leibler_divergences(seed, end):
    student, teacher = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    beta = 1e-5 if end == "p" else 1 - 1e-5
    limit = ops.ForwardKL() if end == "p" else ops.ReverseKL()
    found, gradient = gradients(lambda s: ops.row_divergence(s, teacher, ops.JensenShannon(beta)), student)
    exact, exact_gradient = gradients(lambda s: ops.row_divergence(s, teacher, limit), student)
    torch.testing.assert_close(found / 1e-5, exact, rtol=1e-2, atol=1e-8)
    torch.testing.assert_close(gradient / 1e-5, exact_gradient, rtol=5e-2, atol=1e-3)


def test_the_ends_are_refused():
    for beta in (0.0, 1.0, math.nan):
        with pytest.raises(ArgumentError, match="beta"):
            ops.JensenShannon(beta)
