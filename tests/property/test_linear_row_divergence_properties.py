"""`linear_row_divergence` against `row_divergence` of the whole logits in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import ops

divergences = st.sampled_from(
    [ops.ForwardKL(), ops.ReverseKL(), ops.JensenShannon(0.3), ops.TotalVariation(), ops.SkewKL(0.1)]
)


@st.composite
def cases(draw):
    shape = draw(st.sampled_from([(), (1,), (7,), (3, 4), (0,)]))
    columns, features = draw(st.integers(2, 30)), (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    extra = draw(st.sampled_from([(0, 0), (2, 0), (1, 3)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*dims):
        return torch.randn(dims, generator=generator, dtype=torch.float64)

    sides = []
    for feature, more in zip(features, extra, strict=True):
        sides += [normal(*shape, feature), normal(columns + more, feature)]
    biases = [normal(columns + more) if draw(st.booleans()) else None for more in extra]
    divergence = draw(divergences)
    if draw(st.booleans()):
        divergence = ops.Mixture({divergence: normal(*shape).abs(), ops.ForwardKL(): 0.3})
    arguments = {
        "vocabulary": columns if any(extra) else None,
        "temperature": draw(st.sampled_from([1.0, normal(*shape).exp().clamp(min=0.4)])),
        "teacher_temperature": draw(st.sampled_from([None, 0.8, normal(*shape).exp().clamp(min=0.4)])),
        "weight": normal(*shape).abs() * (torch.rand(shape, generator=generator) > 0.4)
        if draw(st.booleans())
        else None,
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if draw(st.booleans()):
        labels = torch.randint(0, columns, shape, generator=generator)
        arguments["labels"] = torch.where(torch.rand(shape, generator=generator) < 0.4, -100, labels)
        arguments["label_weight"] = draw(st.sampled_from([0.0, 0.5, normal(*shape).abs()]))
    return sides, biases, divergence, arguments, draw(st.integers(1, 1500))


def outcome(function, student, weight, bias):
    """The loss, and gradients of the student's side under an upstream that is not a scalar one."""
    leaves = [value.detach().clone().requires_grad_() for value in (student, weight, bias) if value is not None]
    loss = function(*leaves, *([None] if bias is None else []))
    upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5
    return loss.detach(), torch.autograd.grad(loss, leaves, upstream.to(loss))


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("torch", torch.float64, 1e-9), ("rust", torch.float32, 3e-5), ("rust", torch.bfloat16, 4e-2)],
)
@given(case=cases())
def test_it_is_the_divergence_of_the_logits(backend, dtype, tolerance, case):
    (student, head, teacher, other), (bias, other_bias), divergence, arguments, chunk_bytes = case
    student, head, teacher, other = (value.to(dtype) for value in (student, head, teacher, other))
    bias, other_bias = (None if value is None else value.to(dtype) for value in (bias, other_bias))

    def ours(x, w, b):
        return ops.linear_row_divergence(
            x,
            w,
            teacher,
            other,
            divergence,
            student_bias=b,
            teacher_bias=other_bias,
            chunk_bytes=chunk_bytes,
            backend=backend,
            **arguments,
        )

    def whole(x, w, b):
        logits = torch.nn.functional.linear(x, w, b)
        guide = [None if value is None else value.double() for value in (teacher, other, other_bias)]
        return ops.row_divergence(logits, torch.nn.functional.linear(*guide), divergence, backend="torch", **arguments)

    found, gradients = outcome(ours, student, head, bias)
    exact, exact_gradients = outcome(whole, *(None if v is None else v.double() for v in (student, head, bias)))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for mine, true in zip([found, *gradients], [exact, *exact_gradients], strict=True):
        assert mine.shape == true.shape
        scale = float(true.abs().max()) if true.numel() else 0.0
        error = float((mine.double() - true).abs().max()) if true.numel() else 0.0
        assert error <= tolerance * (1 + scale), (error, scale)
    assert all(mine.dtype == dtype for mine in gradients)
