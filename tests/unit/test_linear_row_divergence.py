"""What the fused heads promise beside values: memory, skipped rows, precision, refusals."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from distillrs import ops
from distillrs.errors import ArgumentError, DistillrsError
from distillrs.ops import _linear


def problem(rows=12, columns=40, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return normal(rows, 6), normal(columns, 6), normal(rows, 9), normal(columns, 9)


def peak_bytes(work):
    """Most bytes that torch held at once beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_memory_is_the_chunks_at_any_number_of_rows():
    budget, columns = 1 << 18, 4000
    for rows in (400, 1600):
        student, head, teacher, other = problem(rows, columns)
        student.requires_grad_()
        head.requires_grad_()

        def work(student=student, head=head, teacher=teacher, other=other):
            ops.linear_row_divergence(
                student, head, teacher, other, ops.ForwardKL(), chunk_bytes=budget, backend="rust"
            ).backward()

        # Gradients, which are given away as they were formed, numbers per row, and products about to be copied.
        allowed = budget + 2 * (student.nbytes + head.nbytes) + 32 * 8 * rows + (1 << 16)
        logits = 2 * 4 * rows * columns
        assert allowed < logits / 4
        assert peak_bytes(work) <= allowed


def test_chunks_are_of_one_size_and_count_the_numbers_of_their_rows(monkeypatch):
    columns, taken = 300, []
    product = _linear._product

    def recorded(hidden, *rest):
        taken.append(len(hidden))
        return product(hidden, *rest)

    monkeypatch.setattr(_linear, "_product", recorded)
    logits = 2 * 4 * columns
    # Room for four rows, and for four rows' logits alone; student and teacher in turn.
    for rows, chunk_bytes, asked in [(5, 4 * (logits + 256), [3, 3, 2, 2]), (4, 4 * logits, [2, 2, 2, 2])]:
        taken.clear()
        ops.linear_row_divergence(*problem(rows, columns), ops.ForwardKL(), chunk_bytes=chunk_bytes)
        assert taken == asked


def test_another_chunk_size_changes_rounding_only():
    student, head, teacher, other = problem(50, 300)
    results = []
    for chunk_bytes in (1, 10_000, 1 << 30):
        leaves = [student.clone().requires_grad_(), head.clone().requires_grad_()]
        loss = ops.linear_row_divergence(*leaves, teacher, other, ops.ReverseKL(), chunk_bytes=chunk_bytes)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for found in results[1:]:
        for mine, first in zip(found, results[0], strict=True):
            torch.testing.assert_close(mine, first, rtol=1e-5, atol=1e-6)


def test_rows_that_do_not_count_go_through_no_head():
    student, head, teacher, other = problem()
    labels = torch.full((12,), -100)
    labels[[3, 7]] = 1
    # What is not looked at may be anything.
    poison = labels == -100
    student[poison] = torch.nan
    teacher[poison] = torch.nan
    student.requires_grad_()
    loss = ops.linear_row_divergence(student, head, teacher, other, ops.ForwardKL(), labels=labels, label_weight=0.1)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert not student.grad[poison].any()
    all_ignored = ops.linear_row_divergence(
        student, head, teacher, other, ops.ForwardKL(), labels=torch.full((12,), -100)
    )
    assert all_ignored == 0
    student.grad = None
    all_ignored.backward()
    assert not student.grad.any()


def test_gradients_used_twice_and_three_times():
    student, head, teacher, other = problem(dtype=torch.float64)
    student.requires_grad_()
    head.requires_grad_()
    loss = ops.linear_row_divergence(student, head, teacher, other, ops.JensenShannon(0.5), chunk_bytes=1000)
    once = torch.autograd.grad(loss, (student, head), retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, (student, head), retain_graph=True)
    square = torch.autograd.grad(loss * loss, (student, head))
    for one, three, two in zip(once, thrice, square, strict=True):
        torch.testing.assert_close(three, 3 * one)
        torch.testing.assert_close(two, 2 * loss.detach() * one)


def test_gradients_are_no_memory_of_those_given_before():
    student, head, teacher, other = problem()
    leaves = [student.requires_grad_(), head.requires_grad_(), torch.zeros(len(head), requires_grad=True)]
    weight = torch.arange(12) / 7
    loss = ops.linear_row_divergence(
        *leaves[:2], teacher, other, ops.ForwardKL(), student_bias=leaves[2], weight=weight, vocabulary=37
    )
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [value.clone() for value in first]
    for value in first:
        value.mul_(-5)
    again = torch.autograd.grad(loss, leaves, retain_graph=True)
    loss.backward()
    for value, second, leaf in zip(kept, again, leaves, strict=True):
        torch.testing.assert_close(second, value)
        torch.testing.assert_close(leaf.grad, value)
    assert not head.grad[37:].any()


def test_half_precision_gradients_of_many_rows_neither_drift_nor_underflow():
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        student, head, teacher, other = problem(3000, 20, dtype=dtype)
        # As a loss scale would: the gradient of the mean alone is below what float16 holds.
        scale = 2.0**14
        leaves = [student.clone().requires_grad_(), head.clone().requires_grad_()]
        loss = ops.linear_row_divergence(*leaves, teacher, other, ops.ForwardKL(), chunk_bytes=400, normaliser=1e8)
        found = torch.autograd.grad(scale * loss, leaves)
        exact_leaves = [value.detach().double().requires_grad_() for value in leaves]
        logits = exact_leaves[0] @ exact_leaves[1].T
        whole = ops.row_divergence(logits, teacher.double() @ other.double().T, ops.ForwardKL(), normaliser=1e8)
        exact = torch.autograd.grad(scale * whole, exact_leaves)
        for mine, true in zip(found, exact, strict=True):
            # Logits are rounded to the dtype, so single rows differ; sums over rows hardly do.
            error = float((mine.double() - true).norm() / true.norm())
            assert error < 4 * tolerance, (dtype, error)


def test_only_what_is_wanted_has_a_gradient_and_none_goes_to_the_teacher():
    student, head, teacher, other = problem()
    for value in (student, teacher, other):
        value.requires_grad_()
    loss = ops.linear_row_divergence(student, head, teacher, other, ops.ForwardKL())
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert other.grad is None
    assert head.grad is None
    with torch.no_grad():
        assert not ops.linear_row_divergence(student, head, teacher, other, ops.ForwardKL()).requires_grad


def test_autocast_leaves_the_products_alone():
    student, head, teacher, other = problem(dtype=torch.float32)
    plain = ops.linear_row_divergence(student, head, teacher, other, ops.ForwardKL())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.linear_row_divergence(student, head, teacher, other, ops.ForwardKL()), plain)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction):
    student, head, teacher, other = problem(dtype=torch.float64)
    student.requires_grad_()
    loss = ops.linear_row_divergence(student, head, teacher, other, ops.ForwardKL(), reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": [1.0]}, "student: got 'list'"),
        ({"student": torch.zeros(())}, "student: got 'a tensor without axes'"),
        ({"student_weight": torch.zeros(40, 7)}, r"student_weight: got 'the shape \(40, 7\)'"),
        ({"student_weight": torch.zeros(40, 6).half()}, "student_weight: got 'torch.float16 on cpu'"),
        ({"student_bias": torch.zeros(39)}, r"student_bias: got 'the shape \(39,\)'"),
        ({"teacher": torch.zeros(11, 9)}, r"teacher: got 'rows \(11,\)'"),
        ({"teacher_weight": torch.zeros(41, 9)}, 'teacher: got "41 columns beside the student\'s 40"'),
        ({"teacher_weight": torch.zeros(40, 9, dtype=torch.int64)}, "teacher_weight: got torch.int64"),
        ({"vocabulary": 41}, "vocabulary: got 41"),
        ({"chunk_bytes": 0}, "chunk_bytes: got 0"),
        ({"chunk_bytes": 1.5}, "chunk_bytes: got 1.5"),
        ({"reduction": "avg"}, "reduction: got 'avg'"),
        ({"backend": "cuda"}, "backend: got .'cuda' with tensors on cpu"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(change, message):
    names = ("student", "student_weight", "teacher", "teacher_weight")
    arguments = {**dict(zip(names, problem(), strict=True)), "divergence": ops.ForwardKL(), **change}
    with pytest.raises(ArgumentError, match=message):
        ops.linear_row_divergence(**arguments)
