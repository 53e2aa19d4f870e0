"""Both backends of `row_statistics` against torch's own functions in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import ops

BACKENDS = ["torch", "rust", "cuda"]


@st.composite
def cases(draw):
    shape = draw(st.sampled_from([(), (1,), (4,), (2, 3), (0,), (2, 0)]))
    columns = draw(st.integers(1, 40) | st.sampled_from([1024, 1025, 2100]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    beyond = draw(st.sampled_from([0, 0, 3]))
    logits = draw(st.sampled_from([0.3, 4.0])) * torch.randn(*shape, columns + beyond, generator=generator)
    logits = (logits + draw(st.sampled_from([0.0, -300.0]))).float()
    index = torch.randint(0, columns, shape, generator=generator) if draw(st.booleans()) else None
    top_k = draw(st.integers(0, min(columns, 9)))
    temperature = draw(st.sampled_from([1.0, 0.5, 3.0]))
    return logits, index, top_k, temperature, columns


def expected(logits, index, top_k, temperature, columns):
    log_q = (logits[..., :columns] / temperature).log_softmax(-1)
    lse = (logits[..., :columns] / temperature).logsumexp(-1)
    chosen = log_q.gather(-1, index[..., None])[..., 0] if index is not None else None
    return lse, -(log_q.exp() * log_q).sum(-1), chosen, log_q.topk(top_k).values


def weighted(values, seed):
    """A number that depends on all of them, so that its gradient needs every upstream gradient."""
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for value in values:
        if value is not None:
            total = total + (value * torch.randn(value.shape, generator=generator)).sum()
    return total


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(), seed=st.integers(0, 100))
def test_values_and_gradients_are_those_of_torch(backend, case, seed):
    logits, index, top_k, temperature, columns = case
    exact = logits.double().requires_grad_()
    reference = expected(exact, index, top_k, temperature, columns)
    leaf = logits.clone().requires_grad_()
    found = ops.row_statistics(leaf, index, top_k, temperature=temperature, vocabulary=columns, backend=backend)
    values = (found.logsumexp, found.entropy, found.chosen, found.top_log_probs)
    for value, truth in zip(values, reference, strict=True):
        assert (value is None) == (truth is None)
        if value is not None:
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=1e-4 if backend == "torch" else 5e-6)
    assert torch.equal(found.argmax, logits[..., :columns].argmax(-1))
    chosen = logits[..., :columns].gather(-1, found.top_ids)
    assert torch.equal(chosen, logits[..., :columns].topk(top_k).values)
    (gradient,) = torch.autograd.grad(weighted(values, seed), leaf)
    (truth,) = torch.autograd.grad(weighted(reference, seed), exact)
    torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=3e-4 if backend == "torch" else 1e-4)


@given(case=cases(), seed=st.integers(0, 100))
def test_the_reference_in_float64_is_exact(case, seed):
    logits, index, top_k, temperature, columns = case
    exact, leaf = logits.double().requires_grad_(), logits.double().requires_grad_()
    reference = expected(exact, index, top_k, temperature, columns)
    found = ops.row_statistics(leaf, index, top_k, temperature=temperature, vocabulary=columns)
    values = (found.logsumexp, found.entropy, found.chosen, found.top_log_probs)
    for value, truth in zip(values, reference, strict=True):
        if value is not None:
            torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(weighted(values, seed), leaf)
    (truth,) = torch.autograd.grad(weighted(reference, seed), exact)
    torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-9)
