"""The sparse divergence in the core, and its kernel on the CPU, against the reference in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import ops
from distillrs.errors import ArgumentError

pytestmark = pytest.mark.parametrize("backend", ["rust", "cuda"])

betas = st.floats(0.05, 0.95)
simple = st.one_of(
    st.just(ops.ForwardKL()),
    st.just(ops.ReverseKL()),
    st.builds(ops.JensenShannon, betas),
    st.builds(ops.SkewKL, betas | st.just(0.0)),
    st.builds(ops.SkewReverseKL, betas | st.just(0.0)),
    st.just(ops.TotalVariation()),
    st.builds(ops.Alpha, st.sampled_from([0.3, 0.5])),
)


@st.composite
def cases(draw):
    shape = draw(st.sampled_from([(), (3,), (2, 3), (0,)]))
    columns = draw(st.integers(1, 40) | st.sampled_from([255, 1024, 1100, 2100]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    beyond = draw(st.sampled_from([0, 0, 5]))
    student = torch.randn(*shape, columns + beyond, generator=generator) * draw(st.sampled_from([0.3, 4.0]))
    student = student + draw(st.sampled_from([0.0, -400.0]))
    top = ops.TopK.from_logits(
        4 * torch.randn(*shape, columns, generator=generator, dtype=torch.float64),
        draw(st.integers(1, min(columns, 70))),
        temperatures=(2.0,),
    )
    if draw(st.booleans()):
        # Some rows have fewer entries; what they lack is tail.
        lost = torch.rand(top.ids.shape, generator=generator) < 0.3
        lost_mass = top.log_probs.masked_fill(~lost, -torch.inf).logsumexp(-1)
        tail = torch.logaddexp(top.tail_log_mass, lost_mass)
        ids = top.ids.masked_fill(lost, -1) if draw(st.booleans()) else top.ids
        top = ops.TopK(ids, top.log_probs.masked_fill(lost, -torch.inf), tail)
    temperature = draw(st.sampled_from([1.0, 2.0])) if top.log_partition else 1.0
    divergence = draw(simple)
    if draw(st.integers(0, 3)) == 0:
        weight = torch.rand(shape, generator=generator)
        divergence = ops.Mixture({part: draw(st.sampled_from([0.5, weight])) for part in {divergence, ops.ForwardKL()}})
    arguments = {"vocabulary": columns, "temperature": temperature}
    arguments["weight"] = (torch.rand(shape, generator=generator) - 0.3).clamp(min=0) if draw(st.booleans()) else None
    arguments["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    return student, top, divergence, arguments


def gradients(function, leaf):
    leaf = leaf.clone().requires_grad_()
    loss = function(leaf * 1)
    upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(0)).to(loss) + 0.5
    return loss.detach(), torch.autograd.grad(loss, leaf, upstream)[0]


@given(case=cases(), consume=st.booleans())
def test_values_and_gradients_are_those_of_the_reference(backend, case, consume):
    student, top, divergence, arguments = case

    def run(logits, backend):
        return ops.sparse_row_divergence(logits, top, divergence, consume_logits=consume, backend=backend, **arguments)

    exact, exact_gradient = gradients(lambda s: run(s, "torch"), student.double())
    found, gradient = gradients(lambda s: run(s, backend), student)
    assert found.dtype == gradient.dtype == torch.float32
    tolerance = 1e-4 if "Alpha" in str(divergence) else 3e-5
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_lose_nothing_but_the_gradient_s_last_rounding(backend, dtype):
    student = (3 * torch.randn(3, 500, generator=torch.Generator().manual_seed(0))).to(dtype)
    top = ops.TopK.from_logits(torch.randn(3, 500, generator=torch.Generator().manual_seed(1)), 20)

    def run(logits):
        return ops.sparse_row_divergence(logits, top, ops.JensenShannon(), reduction="sum", backend=backend)

    (found, gradient), (exact, exact_gradient) = (gradients(run, values) for values in (student, student.float()))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, exact_gradient.to(dtype))


def test_any_layout(backend):
    values = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0))
    for change in (
        lambda x: x[:, :-1],
        lambda x: x.transpose(0, 1),
        lambda x: x[..., ::2],
        lambda x: x.transpose(0, 2),
    ):
        student = change(values)
        top = ops.TopK.from_logits(change(values.flip(-1)).contiguous(), 2)

        def run(logits, top=top):
            return ops.sparse_row_divergence(logits, top, ops.ReverseKL(), reduction="none", backend=backend)

        strided = values.clone().requires_grad_()
        loss = run(change(strided))
        (gradient,) = torch.autograd.grad(loss.sum(), strided)
        leaf = student.contiguous().requires_grad_()
        expected = run(leaf)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(change(gradient), torch.autograd.grad(expected.sum(), leaf)[0])


def test_a_tail_below_one_rounding_is_kept(backend):
    leaf = torch.tensor([[0.0, -40.0, -41.0, -300.0]], requires_grad=True)
    top = ops.TopK(torch.tensor([[0]]), torch.tensor([[0.0]]), torch.tensor([-40.0]))
    loss = ops.sparse_row_divergence(leaf, top, ops.JensenShannon(), backend=backend)
    expected = ops.sparse_row_divergence(leaf.detach().double(), top, ops.JensenShannon())
    assert math.isclose(float(loss.detach()), float(expected), abs_tol=1e-9)
    assert torch.isfinite(torch.autograd.grad(loss, leaf)[0]).all()
    # Nor one that no exponential in float32 holds.
    far = torch.tensor([[0.0, -120.0, -121.0]])
    top = ops.TopK(torch.tensor([[0]]), torch.tensor([[-1e-3]]), torch.tensor([1e-3]).log())
    loss = ops.sparse_row_divergence(far, top, ops.ForwardKL(), backend=backend)
    expected = ops.sparse_row_divergence(far.double(), top, ops.ForwardKL(), backend="torch")
    assert math.isclose(float(loss), float(expected), rel_tol=1e-5)


def test_not_a_number_stays_in_its_row_and_skipped_rows_may_hold_anything(backend):
    values = torch.randn(3, 600, generator=torch.Generator().manual_seed(0))
    top = ops.TopK.from_logits(values.flip(-1), 5)
    values[1, 300] = math.nan
    loss = ops.sparse_row_divergence(values, top, ops.SkewKL(), reduction="none", backend=backend)
    assert loss.isnan().tolist() == [False, True, False]
    weight = torch.tensor([1.0, 0.0, 2.0])
    leaf = values.requires_grad_()
    loss = ops.sparse_row_divergence(leaf, top, ops.SkewKL(), weight=weight, backend=backend)
    assert torch.isfinite(loss)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(gradient[1], torch.zeros(600))
    assert torch.isfinite(gradient).all()


def test_a_vocabulary_beyond_the_block_s_memory_is_refused(backend):
    if backend != "cuda":
        return
    student = torch.zeros(1, 400_000)
    top = ops.TopK(torch.tensor([[0]]), torch.tensor([[0.0]]), torch.tensor([-torch.inf]))
    with pytest.raises(ArgumentError, match=r"'cuda' with 400000 columns.*at most 327680 columns"):
        ops.sparse_row_divergence(student, top, ops.ForwardKL(), backend=backend)
