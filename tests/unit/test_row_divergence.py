"""What `row_divergence` promises beside its values: traps, layouts, errors."""

import math
import types
from inspect import signature

import pytest
import torch
from torch import Tensor

from distillrs import _core, ops
from distillrs.errors import ArgumentError, DistillrsError
from distillrs.ops import _row_divergence

BACKENDS = ["torch", "rust", "cuda"]
ALL = [
    ops.ForwardKL(),
    ops.ReverseKL(),
    ops.JensenShannon(0.3),
    ops.SkewKL(0.1),
    ops.SkewReverseKL(0.1),
    ops.TotalVariation(),
    ops.Alpha(0.5),
    ops.Mixture({ops.ForwardKL(): 0.4, ops.ReverseKL(): 0.6}),
]
INF, NAN = math.inf, math.nan


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def logits(*shape, seed=0, scale=3.0, dtype=torch.float32) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def gradient_of(loss: Tensor, tensor: Tensor, upstream: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(loss, tensor, upstream, retain_graph=True)[0]


# Values and directions


def test_directions_are_teacher_first(backend):
    student, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    p, q = teacher.softmax(-1), student.softmax(-1)
    forward = ops.row_divergence(student, teacher, ops.ForwardKL(), backend=backend)
    assert math.isclose(float(forward), float((p * (p / q).log()).sum()), rel_tol=1e-6)
    reverse = ops.row_divergence(student, teacher, ops.ReverseKL(), backend=backend)
    assert math.isclose(float(reverse), float((q * (q / p).log()).sum()), rel_tol=1e-6)
    # torch's own divergence takes the student's logarithms first, and "batchmean" is the mean over rows.
    theirs = torch.nn.functional.kl_div(q.log(), p, reduction="batchmean")
    assert math.isclose(float(forward), float(theirs), rel_tol=1e-6)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_equal_rows_have_no_divergence_and_no_gradient(backend, divergence):
    student = logits(4, 100).requires_grad_()
    loss = ops.row_divergence(student, student.detach().clone(), divergence, backend=backend)
    assert abs(float(loss.detach())) < 1e-6
    assert gradient_of(loss, student).abs().max() < 1e-7


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_a_small_divergence_does_not_drown(backend, divergence):
    student = logits(4, 1000, scale=2.0)
    teacher = (student.double() + 0.01 * logits(4, 1000, seed=1).double()).float()
    exact = ops.row_divergence(student.double(), teacher.double(), divergence, reduction="none")
    found = ops.row_divergence(student, teacher, divergence, reduction="none", backend=backend)
    assert (found - exact).abs().max() < 1e-6


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_the_gradient_of_every_row_sums_to_zero(backend, divergence):
    student = logits(3, 70).requires_grad_()
    loss = ops.row_divergence(student, logits(3, 70, seed=1), divergence, reduction="sum", backend=backend)
    gradient = gradient_of(loss, student)
    assert gradient.abs().max() > 1e-3
    assert gradient.sum(-1).abs().max() < 1e-6


def test_hinton_s_rule_keeps_the_size_of_the_gradient(backend):
    student, teacher = logits(5, 20, scale=0.1).requires_grad_(), logits(5, 20, seed=1, scale=0.1)

    def gradient(temperature, rule):
        loss = ops.row_divergence(
            student, teacher, ops.ForwardKL(), temperature=temperature, temperature_rule=rule, backend=backend
        )
        return gradient_of(loss, student)

    torch.testing.assert_close(gradient(50.0, "squared"), gradient(500.0, "squared"), rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(gradient(50.0, "squared"), 2500 * gradient(50.0, "none"))


def test_squared_temperatures_stand_inside_the_sum(backend):
    student, teacher = logits(2, 3, 8), logits(2, 3, 8, seed=1)
    temperature = torch.tensor([[1.0, 2.0, 3.0], [0.5, 4.0, 1.0]])
    rows = ops.row_divergence(
        student, teacher, ops.ForwardKL(), temperature=temperature, reduction="none", backend=backend
    )
    total = ops.row_divergence(
        student, teacher, ops.ForwardKL(), temperature=temperature, temperature_rule="squared", backend=backend
    )
    torch.testing.assert_close(total, (rows * temperature**2).mean())


def test_a_mixture_per_row_is_the_sum_of_its_parts(backend):
    student, teacher, gamma = logits(6, 30), logits(6, 30, seed=1), torch.rand(6)
    mixture = ops.Mixture({ops.ReverseKL(): gamma, ops.ForwardKL(): 1 - gamma})
    parts = [
        ops.row_divergence(student, teacher, part, reduction="none", backend=backend)
        for part in (ops.ReverseKL(), ops.ForwardKL())
    ]
    found = ops.row_divergence(student, teacher, mixture, reduction="none", backend=backend)
    torch.testing.assert_close(found, gamma * parts[0] + (1 - gamma) * parts[1])


def test_label_cross_entropy_is_at_temperature_one(backend):
    student, teacher, labels = logits(6, 30).requires_grad_(), logits(6, 30, seed=1), torch.arange(6)
    plain = ops.row_divergence(student, teacher, ops.ForwardKL(), temperature=4.0, backend=backend)
    both = ops.row_divergence(
        student, teacher, ops.ForwardKL(), temperature=4.0, labels=labels, label_weight=0.3, backend=backend
    )
    expected = plain + 0.3 * torch.nn.functional.cross_entropy(student, labels)
    torch.testing.assert_close(both, expected)
    torch.testing.assert_close(gradient_of(both, student), gradient_of(expected, student), atol=1e-7, rtol=1e-5)


# Rows that do not count, normalisers


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normaliser", [None, "weights"])
def test_without_a_row_that_counts_the_loss_is_zero_with_a_graph(backend, reduction, normaliser):
    student = logits(3, 8).requires_grad_()
    loss = ops.row_divergence(
        student * 1,
        logits(3, 8, seed=1),
        ops.ForwardKL(),
        labels=torch.full((3,), -100),
        label_weight=1.0,
        reduction=reduction,
        normaliser=normaliser if reduction == "mean" else None,
        backend=backend,
    )
    assert loss.requires_grad
    assert torch.equal(loss.detach(), torch.zeros_like(loss))
    assert torch.equal(gradient_of(loss, student, torch.ones_like(loss)), torch.zeros(3, 8))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_rows_at_all(backend, shape):
    student = torch.zeros(shape, requires_grad=True)
    loss = ops.row_divergence(student, torch.zeros(shape), ops.ReverseKL(), backend=backend)
    assert float(loss.detach()) == 0
    assert gradient_of(loss, student).shape == shape


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("by", ["label", "weight"])
def test_rows_that_are_skipped_may_hold_anything(backend, by, consume):
    base, teacher = logits(4, 9), logits(4, 9, seed=1)
    dirty = base.clone()
    dirty[1], dirty[3, 2] = NAN, INF
    keep = torch.tensor([True, False, True, False])
    arguments = (
        {"labels": torch.where(keep, 3, -7), "label_weight": 0.5, "ignore_index": -7}
        if by == "label"
        else {"weight": keep.float(), "normaliser": "weights"}
    )
    found = []
    for values in (dirty, base):
        leaf = values.clone().requires_grad_()
        loss = ops.row_divergence(
            leaf * 1, teacher, ops.JensenShannon(), consume_logits=consume, backend=backend, **arguments
        )
        (gradient,) = torch.autograd.grad(loss, leaf)
        found.append((loss.detach(), gradient))
    torch.testing.assert_close(found[0], found[1])
    assert torch.equal(found[0][1][[1, 3]], torch.zeros(2, 9))


def test_accumulated_micro_batches_are_the_whole_batch(backend):
    student, teacher = logits(6, 12).requires_grad_(), logits(6, 12, seed=1)
    labels = torch.tensor([1, -100, 2, -100, -100, 3])
    arguments = {"labels": labels, "label_weight": 0.2}
    whole = gradient_of(ops.row_divergence(student, teacher, ops.ForwardKL(), backend=backend, **arguments), student)
    parts = torch.zeros_like(whole)
    for rows in (slice(0, 2), slice(2, 5), slice(5, 6)):
        loss = ops.row_divergence(
            student[rows],
            teacher[rows],
            ops.ForwardKL(),
            labels=labels[rows],
            label_weight=0.2,
            normaliser=3,
            backend=backend,
        )
        parts += gradient_of(loss, student)
    torch.testing.assert_close(parts, whole)


def test_columns_beyond_the_vocabulary_are_as_if_they_were_not_there(backend):
    student, teacher = logits(3, 10).requires_grad_(), logits(3, 8, seed=1)
    loss = ops.row_divergence(student, teacher, ops.ReverseKL(), vocabulary=8, backend=backend)
    cut = student.detach()[:, :8].clone().requires_grad_()
    expected = ops.row_divergence(cut, teacher, ops.ReverseKL(), backend=backend)
    assert torch.equal(loss, expected)
    gradient = gradient_of(loss, student)
    assert torch.equal(gradient[:, :8], gradient_of(expected, cut))
    assert torch.equal(gradient[:, 8:], torch.zeros(3, 2))


# Infinities and not-a-number


@pytest.mark.parametrize("divergence", [*ALL, ops.Alpha(2.0), ops.Alpha(-0.5)], ids=str)
def test_entries_that_both_exclude_do_not_count(backend, divergence):
    student, teacher = logits(3, 40), logits(3, 40, seed=1)
    student[:, 10:30] = -INF
    teacher[:, 10:30] = -INF
    leaf = student.clone().requires_grad_()
    loss = ops.row_divergence(leaf, teacher, divergence, backend=backend)
    keep = [*range(10), *range(30, 40)]
    short = student[:, keep].requires_grad_()
    expected = ops.row_divergence(short, teacher[:, keep], divergence, backend=backend)
    torch.testing.assert_close(loss, expected)
    gradient = gradient_of(loss, leaf)
    torch.testing.assert_close(gradient[:, keep], gradient_of(expected, short))
    assert torch.equal(gradient[:, 10:30], torch.zeros(3, 20))


@pytest.mark.parametrize("where", ["start", "end"])
def test_whole_blocks_may_be_excluded(backend, where):
    student, teacher = logits(2, 3000), logits(2, 3000, seed=1)
    excluded = slice(0, 2100) if where == "start" else slice(900, 3000)
    kept = slice(2100, 3000) if where == "start" else slice(0, 900)
    student[:, excluded] = teacher[:, excluded] = -INF
    leaf = student.clone().requires_grad_()
    for divergence in ALL:
        loss = ops.row_divergence(leaf, teacher, divergence, backend=backend)
        expected = ops.row_divergence(student[:, kept], teacher[:, kept], divergence, backend=backend)
        torch.testing.assert_close(loss, expected)
        assert torch.isfinite(gradient_of(loss, leaf)).all()


@pytest.mark.parametrize("divergence", ALL, ids=str)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_one_sided_exclusion_is_that_of_the_definition(backend, divergence, side):
    student, teacher = logits(2, 12), logits(2, 12, seed=1)
    (student if side == "student" else teacher)[:, 4] = -INF
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    infinite = {
        "student": (ops.ForwardKL, ops.Mixture),
        "teacher": (ops.ReverseKL, ops.Mixture),
    }[side]
    found = ops.row_divergence(student, teacher, divergence, reduction="none", backend=backend)
    if isinstance(divergence, infinite):
        assert torch.equal(found, torch.full((2,), INF))
        return
    log_p, log_q = p.log(), q.log()
    torch.testing.assert_close(found.double(), divergence.value(log_p, log_q).sum(-1), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("gap", [20.0, 60.0])
def test_what_the_student_hardly_knows_still_has_its_gradient(backend, gap):
    # Probabilities that are clamped before their logarithm lose it: e^-60 is far below any such bound.
    student = torch.tensor([[0.0, -gap, 0.0]]).requires_grad_()
    teacher = torch.tensor([[0.0, 1.0, -1.0]])
    loss = ops.row_divergence(student, teacher, ops.ForwardKL(), backend=backend)
    p, q = teacher.double().softmax(-1), student.detach().double().softmax(-1)
    assert math.isclose(float(loss.detach()), float((p * (p / q).log()).sum()), rel_tol=1e-6)
    assert torch.allclose(gradient_of(loss, student).double(), q - p, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("divergence", ALL, ids=str)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("place", [0, 20, 1500, 2057])
def test_not_a_number_propagates_in_its_row_only(backend, divergence, value, side, place):
    student, teacher = logits(3, 2058), logits(3, 2058, seed=1)
    (student if side == "student" else teacher)[1, place] = value
    leaf = student.requires_grad_()
    loss = ops.row_divergence(leaf, teacher, divergence, reduction="none", backend=backend)
    assert loss.isnan().tolist() == [False, True, False]
    gradient = gradient_of(loss, leaf, torch.ones(3))
    assert torch.isfinite(gradient[[0, 2]]).all()
    assert gradient[1].isnan().any()


def test_a_part_of_weight_zero_takes_no_part_even_where_it_is_infinite(backend):
    student, teacher = logits(2, 12), logits(2, 12, seed=1)
    student[:, 4] = -INF
    leaf = student.requires_grad_()
    for part in (ops.ForwardKL(), ops.Alpha(2.0)):
        mixture = ops.Mixture({part: torch.tensor([0.0, 1.0]), ops.TotalVariation(): 1.0})
        loss = ops.row_divergence(leaf, teacher, mixture, reduction="none", backend=backend)
        assert loss.isinf().tolist() == [False, True]
        plain = ops.row_divergence(leaf, teacher, ops.TotalVariation(), reduction="none", backend=backend)
        torch.testing.assert_close(loss[0], plain[0])
        found, expected = (gradient_of(value[0], leaf)[0] for value in (loss, plain))
        torch.testing.assert_close(found, expected)


def test_rows_that_exclude_everything_are_not_a_number(backend):
    student = torch.full((1, 5), -INF)
    assert ops.row_divergence(student, logits(1, 5), ops.ForwardKL(), backend=backend).isnan()
    assert ops.row_divergence(logits(1, 5), student, ops.ReverseKL(), backend=backend).isnan()


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_far_offsets_and_rising_rows_do_not_overflow(backend, divergence):
    rising = torch.linspace(-300, 300, 5000).repeat(2, 1)
    for student, teacher in [(rising, rising.flip(-1) / 200), (rising / 200 + 1e4, rising / 100 - 1e4)]:
        leaf = student.clone().requires_grad_()
        loss = ops.row_divergence(leaf, teacher, divergence, backend=backend)
        exact = student.double().requires_grad_()
        expected = ops.row_divergence(exact, teacher.double(), divergence)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradient_of(loss, leaf).double(), gradient_of(expected, exact), rtol=1e-3, atol=1e-5)


# Types and layouts


@pytest.mark.parametrize("divergence", ALL, ids=str)
@pytest.mark.parametrize("types", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
                                   (torch.float32, torch.bfloat16), (torch.float16, torch.float32)])  # fmt: skip
def test_narrow_logits_lose_nothing_but_the_gradient_s_last_rounding(backend, divergence, types):
    student, teacher = logits(3, 1100, dtype=types[0]).requires_grad_(), logits(3, 1100, seed=1, dtype=types[1])
    arguments = {"labels": torch.tensor([0, 1099, 5]), "label_weight": 0.5, "backend": backend, "reduction": "sum"}
    loss = ops.row_divergence(student, teacher, divergence, **arguments)
    assert loss.dtype == torch.float32
    wide = student.detach().float().requires_grad_()
    expected = ops.row_divergence(wide, teacher.float(), divergence, **arguments)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    found, exact = gradient_of(loss, student), gradient_of(expected, wide)
    assert found.dtype == types[0]
    torch.testing.assert_close(found, exact.to(types[0]))


def layouts():
    yield "transposed", lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield "shifted", lambda x: torch.cat([x, x[:, :1]], 1)[:, :-1]
    yield "every other row", lambda x: torch.stack([x, x], 1)[:, 0]
    yield "every other column", lambda x: torch.stack([x, x], -1)[..., 0]
    yield "columns of a wider matrix", lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]]
    yield "rows turned", lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)
    yield "four axes", lambda x: torch.stack([torch.cat([x, x[:, :1]], 1)] * 2, 1)[:, :, :-1]


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("name", "change"), list(layouts()), ids=lambda value: value if isinstance(value, str) else "")
def test_any_layout(backend, name, change, reduction, consume):
    student, teacher = logits(2, 3, 50), logits(2, 3, 50, seed=1)

    def run(change):
        leaf = student.clone().requires_grad_()
        view = change(leaf * 1)
        own = teacher if view.dim() == 3 else torch.stack([teacher] * 2, 1)
        other = change(teacher) if view.dim() == 3 else own
        loss = ops.row_divergence(
            view, other, ops.ForwardKL(), reduction=reduction, consume_logits=consume, backend=backend
        )
        return loss, gradient_of(loss, leaf, torch.full_like(loss, 2.0))

    expected_loss, expected_gradient = run(
        (lambda x: torch.stack([x, x], 1)) if name == "four axes" else lambda x: x * 1
    )
    loss, gradient = run(change)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradient, expected_gradient)


def test_expanded_logits(backend):
    row = logits(1, 20).requires_grad_()
    teacher = logits(1, 20, seed=1).expand(5, 20)
    loss = ops.row_divergence(row.expand(5, 20), teacher, ops.ForwardKL(), consume_logits=True, backend=backend)
    expected = ops.row_divergence(row, teacher[:1], ops.ForwardKL(), backend=backend)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_of(loss, row), gradient_of(expected, row))


def test_a_single_row_without_leading_axes(backend):
    loss = ops.row_divergence(logits(7), logits(7, seed=1), ops.ForwardKL(), reduction="none", backend=backend)
    assert loss.shape == ()


# Gradients: upstream, reuse, memory


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_any_upstream_gradient_is_exact(backend, reduction, consume):
    teacher = logits(4, 33, seed=1)

    def gradient(use):
        leaf = logits(4, 33).requires_grad_()
        loss = ops.row_divergence(
            leaf * 1, teacher, ops.ReverseKL(), reduction=reduction, consume_logits=consume, backend=backend
        )
        use(loss).backward()
        return leaf.grad

    plain = gradient(lambda loss: loss.sum())
    torch.testing.assert_close(gradient(lambda loss: 3 * loss.sum()), 3 * plain)
    torch.testing.assert_close(gradient(lambda loss: (loss + 2 * loss).sum()), 3 * plain)
    torch.testing.assert_close(gradient(lambda loss: 0 * loss.sum()), 0 * plain)
    if reduction == "none":
        weight = torch.arange(4.0)
        torch.testing.assert_close(gradient(lambda loss: (loss * weight).sum()), plain * weight[:, None])


@pytest.mark.parametrize("consume", [False, True])
def test_several_backward_passes_through_one_loss(backend, consume):
    leaf = logits(4, 33).requires_grad_()
    loss = ops.row_divergence(leaf * 1, logits(4, 33, seed=1), ops.ForwardKL(), consume_logits=consume, backend=backend)
    first = torch.autograd.grad(loss, leaf, torch.tensor(1.0), retain_graph=True)[0].clone()
    for factor in (1.0, 5.0, -0.25):
        again = torch.autograd.grad(loss, leaf, torch.tensor(factor), retain_graph=True)[0]
        torch.testing.assert_close(again, factor * first)
    for _ in range(3):
        loss.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 3 * first)


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 9), (9,), (0, 9), (2, 3, 9)])
def test_on_a_device_the_upstream_gradient_is_applied_in_float32(monkeypatch, consume, dtype, shape):
    """A factor that the processor does not look at; a loss scale that half precision does not hold."""
    monkeypatch.setattr(_row_divergence, "_ELEMENTS_AT_ONCE", 20)
    exact = 1e-4 * logits(*shape)
    before = exact.to(dtype)
    ctx = types.SimpleNamespace(call=types.SimpleNamespace(consume=consume), applied=1.0)
    gradient = before.clone()
    for upstream in (65536.0, 1 / 3):
        found = _row_divergence._scaled_on_device(ctx, gradient, torch.tensor(upstream))
        assert (found.data_ptr() == gradient.data_ptr()) == (consume or not gradient.numel())
        torch.testing.assert_close(found, (before.float() * upstream).to(dtype))
        assert torch.isfinite(found).all()


def test_gradients_that_accumulate_in_a_leaf_do_not_spoil_each_other(backend):
    leaf = logits(2, 9).requires_grad_()
    loss = ops.row_divergence(leaf, logits(2, 9, seed=1), ops.ForwardKL(), backend=backend)
    (once,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    once = once.clone()
    for count in (1, 2, 3):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(leaf.grad, count * once)


def test_consumed_logits_hold_the_gradient(backend):
    leaf = logits(4, 33).requires_grad_()
    student = leaf * 1
    loss = ops.row_divergence(student, logits(4, 33, seed=1), ops.ForwardKL(), consume_logits=True, backend=backend)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.data_ptr() == student.data_ptr()


def test_using_consumed_logits_in_a_graph_is_an_error(backend):
    leaf = logits(4, 33).requires_grad_()
    student = leaf * 1
    other = student.square().sum()
    loss = ops.row_divergence(student, logits(4, 33, seed=1), ops.ForwardKL(), consume_logits=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_without_a_gradient_nothing_is_consumed(backend):
    student = logits(4, 33)
    before = student.clone()
    ops.row_divergence(student, logits(4, 33, seed=1), ops.ForwardKL(), consume_logits=True, backend=backend)
    leaf = student.requires_grad_()
    with torch.no_grad():
        ops.row_divergence(leaf * 1, logits(4, 33, seed=1), ops.ForwardKL(), consume_logits=True, backend=backend)
    assert torch.equal(student, before)


def test_teachers_and_weights_get_no_gradient(backend):
    student, teacher, weight = (
        logits(3, 9).requires_grad_(),
        logits(3, 9).requires_grad_(),
        torch.ones(3).requires_grad_(),
    )
    mixture = ops.Mixture({ops.ForwardKL(): torch.ones(3, requires_grad=True)})
    ops.row_divergence(student, teacher, mixture, weight=weight, backend=backend).backward()
    assert teacher.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(backend, reduction):
    student = logits(3, 9).requires_grad_()
    loss = ops.row_divergence(student, logits(3, 9, seed=1), ops.ForwardKL(), reduction=reduction, backend=backend)
    (gradient,) = torch.autograd.grad(loss.sum(), student, create_graph=True)
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        gradient.square().sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's tracer
def test_under_torch_compile(backend):
    linear, teacher = torch.nn.Linear(8, 20), logits(5, 20, seed=1)

    def loss(x):
        return 2 * ops.row_divergence(linear(x), teacher, ops.JensenShannon(), backend=backend)

    x = logits(5, 8)
    expected = loss(x)
    expected.backward()
    gradient = linear.weight.grad.clone()
    linear.zero_grad()
    found = torch.compile(loss, backend="aot_eager")(x)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(linear.weight.grad, gradient)


def test_one_whole_graph_is_refused_with_the_reason():
    teacher = logits(5, 20, seed=1)
    whole = torch.compile(lambda x: ops.row_divergence(x, teacher, ops.ForwardKL()), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported) as refused:
        whole(logits(5, 20))
    assert (
        "between compiled parts" in str(refused.value) or "reason" not in signature(torch.compiler.disable).parameters
    )


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: ops.row_divergence(x, x.detach(), ops.ForwardKL()), "student"),
        (lambda x: ops.sparse_row_divergence(x, ops.TopK.from_logits(logits(3, 9), 2), ops.ForwardKL()), "student"),
        (lambda x: ops.row_statistics(x).entropy.sum(), "logits"),
    ],
    ids=["dense", "sparse", "statistics"],
)
def test_transforms_of_torch_func_are_refused_by_name(call, name):
    with pytest.raises(ArgumentError, match=rf"^{name}: got .* inside a transform of torch\.func"):
        torch.func.grad(call)(logits(3, 9))


# Backends


class Chi(ops.RowDivergence):
    """Pearson's: sum (p - q)^2 / q."""

    def value(self, log_p, log_q):
        return (log_p.exp() - log_q.exp()) ** 2 / log_q.exp()

    def derivative(self, log_p, log_q):
        return log_q.exp() - (2 * log_p - log_q).exp()


def test_a_user_s_divergence_needs_two_methods():
    student, teacher = logits(4, 20, scale=1.0).double().requires_grad_(), logits(4, 20, seed=1, scale=1.0).double()
    loss = ops.row_divergence(student, teacher, Chi())
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = ((p - q) ** 2 / q).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient_of(loss, student), gradient_of(expected, student))
    with pytest.raises(ArgumentError, match=r"backend: got .*'rust.* with the divergence .*allowed is"):
        ops.row_divergence(student.float(), teacher.float(), Chi(), backend="rust")


def test_auto_is_the_core_where_it_can_serve():
    student, teacher = logits(7, 100), logits(7, 100, seed=1)
    args = (student, teacher, ops.JensenShannon())
    assert torch.equal(ops.row_divergence(*args), ops.row_divergence(*args, backend="rust"))
    wide = (student.double(), teacher.double(), ops.JensenShannon())
    assert torch.equal(ops.row_divergence(*wide), ops.row_divergence(*wide, backend="torch"))


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_the_thread_count_changes_nothing(divergence):
    student, teacher = logits(37, 300).requires_grad_(), logits(37, 300, seed=1)
    before = _core.threads()
    results = []
    try:
        for threads in (1, 2, 5):
            _core.set_threads(threads)
            loss = ops.row_divergence(student, teacher, divergence, backend="rust")
            results.append((loss.detach(), gradient_of(loss, student)))
    finally:
        _core.set_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])


# Bad input


def call(**changes):
    arguments = {"student": logits(3, 5), "teacher": logits(3, 5, seed=1), "divergence": ops.ForwardKL(), **changes}
    return ops.row_divergence(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": [1.0]}, "student: got 'list'"),
        ({"student": torch.zeros(3, 5, dtype=torch.int64)}, "student: got torch.int64"),
        ({"teacher": torch.tensor(0.0)}, r"teacher: got 'the shape \(\)'"),
        ({"teacher": torch.zeros(3, 0)}, "teacher: .*at least one entry"),
        ({"teacher": torch.zeros(2, 5)}, r"teacher: got 'rows \(2,\)', allowed is the student's rows, \(3,\)"),
        ({"teacher": torch.zeros(3, 6)}, 'teacher: got "6 columns beside the student\'s 5"'),
        ({"teacher": torch.zeros(3, 5, device="meta")}, "teacher: got 'a tensor on meta'"),
        ({"divergence": ops.ForwardKL}, "divergence: .*instance of a RowDivergence"),
        ({"divergence": ops.Mixture({ops.ForwardKL(): torch.ones(2)})}, r"divergence.weights: got 'the shape \(2,\)"),
        ({"temperature": 0.0}, "temperature: got 0.0, allowed is positive"),
        ({"temperature": torch.tensor([1.0, NAN, 1.0])}, "temperature: .*positive"),
        ({"temperature": torch.ones(2)}, "temperature: .*shape"),
        ({"temperature": "2"}, "temperature: got '2'"),
        ({"teacher_temperature": -1.0}, "teacher_temperature: got -1.0"),
        ({"temperature": 2.0, "teacher_temperature": 3.0, "temperature_rule": "squared"}, "temperature_rule: .*equal"),
        ({"temperature_rule": "cubed"}, "temperature_rule: got 'cubed'"),
        ({"weight": torch.ones(3, 1)}, "weight: .*shape"),
        ({"labels": torch.tensor([0, 5, 1])}, "labels: got 5, allowed is -100 .ignored. or an entry from 0 to 4"),
        ({"labels": torch.tensor([0, -1, 1])}, "labels: got -1"),
        ({"labels": torch.zeros(3)}, "labels: got torch.float32"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, "labels: .*shape"),
        ({"labels": [1, 2, 3]}, "labels: got 'list'"),
        ({"label_weight": 0.5}, "labels: got None"),
        ({"vocabulary": 6}, "vocabulary: got 6, allowed is None or an integer from 1 to 5"),
        ({"vocabulary": 0}, "vocabulary: got 0"),
        ({"reduction": "batchmean"}, "reduction: got 'batchmean'"),
        ({"reduction": "sum", "normaliser": 3}, "normaliser: got 3"),
        ({"normaliser": 0}, "normaliser: got 0"),
        ({"normaliser": "tokens"}, "normaliser: got 'tokens'"),
        ({"normaliser": torch.ones(3)}, "normaliser: .*shape"),
        ({"backend": "cuda"}, "backend: got .*'cuda.* with tensors on cpu.*allowed is .*CUDA device"),
        ({"backend": "triton"}, "backend: got 'triton'"),
        ({"backend": "rust", "student": logits(3, 5).double()}, "backend: got .*'rust.* with torch.float64"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ArgumentError, match=message):
        call(**changes)


def test_a_leaf_is_not_consumed():
    with pytest.raises(ArgumentError, match="consume_logits: got 'True with a leaf'"):
        call(student=logits(3, 5).requires_grad_(), consume_logits=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ops.JensenShannon(0.0), "beta: got 0.0, allowed is a number above 0 and below 1"),
        (lambda: ops.JensenShannon(1.0), "beta"),
        (lambda: ops.SkewKL(1.0), "alpha: got 1.0"),
        (lambda: ops.SkewReverseKL(-0.1), "alpha: got -0.1"),
        (lambda: ops.Alpha(1), "a: got 1, .*ForwardKL"),
        (lambda: ops.Alpha(NAN), "a: got nan"),
        (lambda: ops.Mixture({}), "weights"),
        (lambda: ops.Mixture({ops.ForwardKL(): NAN}), "weights: got nan"),
        (lambda: ops.Mixture({"kl": 1.0}), "weights: got 'kl'"),
        (lambda: ops.Mixture({ops.Mixture({ops.ForwardKL(): 1.0}): 1.0}), "weights: .*other than mixtures"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    ("skewed", "plain"), [(ops.SkewReverseKL(0.0), ops.ReverseKL()), (ops.SkewKL(0.0), ops.ForwardKL())]
)
def test_skewed_divergences_without_a_share_are_the_plain_ones_at_any_ratio(backend, skewed, plain):
    teacher = torch.tensor([[120.0, 0.0]])
    found, exact = [], []
    for divergence, into in ((skewed, found), (plain, exact)):
        student = torch.tensor([[0.0, 120.0]], requires_grad=True)
        loss = ops.row_divergence(student, teacher, divergence, backend=backend)
        into += [loss.detach(), gradient_of(loss, student)]
    torch.testing.assert_close(found, exact)
    assert float(exact[0]) == pytest.approx(120.0)
