"""What `row_statistics` promises beside its values."""

import math

import pytest
import torch

from distillrs import ops
from distillrs.errors import ArgumentError, DistillrsError

INF, NAN = math.inf, math.nan


@pytest.fixture(params=["torch", "rust", "cuda"])
def backend(request):
    return request.param


def logits(*shape, seed=0, dtype=torch.float32):
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def test_excluded_entries_do_not_count(backend):
    values = logits(3, 2000)
    values[:, 100:1900] = -INF
    keep = [*range(100), *range(1900, 2000)]
    leaf, short = values.clone().requires_grad_(), values[:, keep].requires_grad_()
    found, expected = (ops.row_statistics(each, top_k=3, backend=backend) for each in (leaf, short))
    torch.testing.assert_close(found.logsumexp, expected.logsumexp)
    torch.testing.assert_close(found.entropy, expected.entropy)
    torch.testing.assert_close(found.top_log_probs, expected.top_log_probs)
    (gradient,) = torch.autograd.grad(found.entropy.sum() + found.logsumexp.sum(), leaf)
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[:, 100:1900], torch.zeros(3, 1800))


@pytest.mark.parametrize("place", [0, 1500, 2047])
@pytest.mark.parametrize("bits", [0x7FC00000, -0x400000], ids=["positive", "negative"])
def test_not_a_number_stays_in_its_row(backend, place, bits):
    values = logits(3, 2048)
    values[1, place] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert values[1, place].isnan()
    found = ops.row_statistics(values, top_k=2, backend=backend)
    assert found.logsumexp.isnan().tolist() == [False, True, False]
    assert found.entropy.isnan().tolist() == [False, True, False]
    assert int(found.argmax[1]) == place
    assert int(found.top_ids[1, 0]) == place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits(backend, dtype):
    values = logits(4, 1100, dtype=dtype)
    found = ops.row_statistics(values, torch.arange(4), 5, backend=backend)
    expected = ops.row_statistics(values.float(), torch.arange(4), 5, backend=backend)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["rust", "cuda"])
def test_ties_go_to_the_first(backend):
    values = torch.zeros(2, 3000)
    values[1, 2500] = values[1, 10] = 1.0
    found = ops.row_statistics(values, top_k=4, backend=backend)
    assert found.argmax.tolist() == [0, 10]
    assert found.top_ids.tolist() == [[0, 1, 2, 3], [10, 2500, 0, 1]]


def test_any_layout(backend):
    values = logits(2, 4, 50)
    for view in (values[:, :-1], values.transpose(0, 1), values[..., ::2], values.transpose(0, 2)):
        found = ops.row_statistics(view, top_k=2, backend=backend)
        expected = ops.row_statistics(view.contiguous(), top_k=2, backend=backend)
        for one, other in zip(found, expected, strict=True):
            assert one is None or torch.equal(one, other)


def test_statistics_beside_a_divergence(backend):
    student, teacher = logits(5, 200).requires_grad_(), logits(5, 200, seed=1)
    labels = torch.tensor([1, -100, 3, 4, 5])
    loss, found = ops.row_divergence(
        student * 1,
        teacher,
        ops.ReverseKL(),
        temperature=2.0,
        labels=labels,
        consume_logits=True,
        return_statistics=True,
        backend=backend,
    )
    keep = labels != -100
    plain = ops.row_divergence(student, teacher, ops.ReverseKL(), temperature=2.0, reduction="none", backend=backend)
    torch.testing.assert_close(found.divergence, plain.detach() * keep)
    assert not found.divergence.requires_grad
    for side, values in (("student", student), ("teacher", teacher)):
        expected = ops.row_statistics(values.detach(), temperature=2.0, backend=backend)
        torch.testing.assert_close(getattr(found, f"{side}_logsumexp"), expected.logsumexp * keep)
        torch.testing.assert_close(getattr(found, f"{side}_entropy"), expected.entropy * keep)
        assert torch.equal(getattr(found, f"{side}_argmax"), expected.argmax.where(keep, -1))
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_a_second_derivative_is_refused(backend):
    leaf = logits(3, 9).requires_grad_()
    entropy = ops.row_statistics(leaf, backend=backend).entropy.sum()
    (gradient,) = torch.autograd.grad(entropy, leaf, create_graph=True)
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(3, dtype=torch.int32)}, "logits: got torch.int32"),
        ({"index": torch.tensor([0, 9])}, "index: got 9, allowed is entries from 0 to 3"),
        ({"index": torch.zeros(2)}, "index: got torch.float32"),
        ({"index": torch.zeros(3, dtype=torch.int64)}, "index: .*shape"),
        ({"top_k": 5}, "top_k: got 5, allowed is an integer from 0 to 4"),
        ({"top_k": True}, "top_k: got True"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"temperature": NAN}, "temperature: got nan"),
        ({"vocabulary": 5}, "vocabulary: got 5"),
        ({"backend": "cuda"}, "backend: got .*'cuda.* with tensors on cpu"),
        ({"backend": "rust", "logits": torch.zeros(2, 4).double()}, "backend: got .*'rust.*float64"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ops.row_statistics(**{"logits": torch.zeros(2, 4), **arguments})
