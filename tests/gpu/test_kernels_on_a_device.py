"""The CUDA backend on a device: the cases of the property tests, streams, memory, compiled graphs.

`pytest -m gpu tests/gpu`; needs cupy (`pip install 'distillrs[cuda13]'`).
"""

import pytest
import torch
from hypothesis import given

from distillrs import ops, select
from distillrs.trajectory import UNCHECKED, TeacherCache
from property import test_energy_properties as energies
from property import test_linear_row_divergence_properties as linears
from property import test_mixture_properties as mixtures
from property import test_row_divergence_properties as divergences
from property import test_row_statistics_properties as statistics
from property import test_sparse_kernel_properties as sparse

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True, scope="module")
def _device():
    if not torch.cuda.is_available():
        pytest.fail("tests marked gpu need a CUDA device and a torch build that can use it")


def moved(value):
    """The same on the device, whatever holds the tensors."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, ops.Mixture):
        return ops.Mixture({part: moved(weight) for part, weight in value.weights.items()})
    if isinstance(value, ops.TopK):
        partitions = {key: moved(item) for key, item in value.log_partition.items()}
        return ops.TopK(moved(value.ids), moved(value.log_probs), moved(value.tail_log_mass), partitions)
    if isinstance(value, dict):
        return {key: moved(item) for key, item in value.items()}
    return value


@given(case=divergences.cases())
def test_row_divergence(case):
    student, teacher, divergence, arguments = case
    exact, exact_gradient = divergences.gradients(
        lambda s: divergences.expected(s, teacher, divergence, arguments), student.double()
    )
    other, options, mixture = moved(teacher), moved(arguments), moved(divergence)
    for consume in (False, True):
        found, gradient = divergences.gradients(
            lambda s, consume=consume: ops.row_divergence(
                s.cuda(), other, mixture, consume_logits=consume, backend="cuda", **options
            ).cpu(),
            student,
        )
        tolerance = 3e-4 if divergences.is_heavy(divergence) else 2e-5
        divergences.assert_close(found, exact, 1.0 + divergences.scale_of(exact), tolerance)
        tolerance *= divergences.rounding(student, teacher, arguments)
        divergences.assert_close(gradient, exact_gradient, 0.1 + divergences.scale_of(exact_gradient), tolerance)


@given(case=linears.cases())
def test_linear_row_divergence(case):
    sides, biases, divergence, arguments, chunk_bytes = case
    student, head, teacher, other = (value.float() for value in sides)
    bias, other_bias = (None if value is None else value.float() for value in biases)

    def on_device(x, w, b):
        return ops.linear_row_divergence(
            *moved({"x": x, "w": w, "teacher": teacher, "other": other}).values(),
            moved(divergence),
            student_bias=moved(b),
            teacher_bias=moved(other_bias),
            chunk_bytes=chunk_bytes,
            backend="cuda",
            **moved(arguments),
        ).cpu()

    def exactly(x, w, b):
        sides = (x, w, teacher.double(), other.double())
        guide = None if other_bias is None else other_bias.double()
        return ops.linear_row_divergence(
            *sides, divergence, student_bias=b, teacher_bias=guide, backend="torch", **arguments
        )

    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        found, gradients = linears.outcome(on_device, student, head, bias)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    exact, exact_gradients = linears.outcome(
        exactly, *(None if v is None else v.double() for v in (student, head, bias))
    )
    for mine, true in zip([found, *gradients], [exact, *exact_gradients], strict=True):
        scale = float(true.abs().max()) if true.numel() else 0.0
        error = float((mine.double() - true).abs().max()) if true.numel() else 0.0
        assert error <= 5e-5 * (1 + scale), (error, scale)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's tracer
@pytest.mark.parametrize("consume", [False, True])
def test_between_compiled_graphs(consume):
    linear = torch.nn.Linear(64, 5000, device="cuda")
    x, teacher = torch.randn(32, 64, device="cuda"), torch.randn(32, 5000, device="cuda")

    def loss(x):
        logits = linear(x).tanh()
        return 2 * ops.row_divergence(logits * 3, teacher, ops.JensenShannon(), consume_logits=consume, backend="cuda")

    expected = loss(x)
    (gradient,) = torch.autograd.grad(expected, linear.weight)
    found = torch.compile(loss, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, linear.weight)[0], gradient)


@given(case=statistics.cases())
def test_row_statistics(case):
    logits, index, top_k, temperature, columns = case
    arguments = {"temperature": temperature, "vocabulary": columns}
    expected = ops.row_statistics(logits, index, top_k, backend="rust", **arguments)
    found = ops.row_statistics(moved(logits), moved(index), top_k, backend="cuda", **arguments)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-5)


@given(case=sparse.cases())
def test_sparse_divergence(case):
    student, top, divergence, arguments = case

    def run(logits, top, divergence, arguments, backend):
        return ops.sparse_row_divergence(logits, top, divergence, backend=backend, **arguments)

    exact, exact_gradient = sparse.gradients(lambda s: run(s, top, divergence, arguments, "torch"), student.double())
    on_device = (moved(top), moved(divergence), moved(arguments))
    found, gradient = sparse.gradients(lambda s: run(s.cuda(), *on_device, "cuda").cpu(), student)
    tolerance = 1e-4 if "Alpha" in str(divergence) else 3e-5
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("which", [0, 1], ids=["denoiser", "log_density"])
@given(case=mixtures.cases())
def test_mixtures(which, case):
    x, data, arguments = case
    x, data = x.float(), data.float()
    rest = {name: arguments[name] for name in ("bandwidth", "weights")}
    scales = [torch.as_tensor(arguments[name], dtype=torch.float64) for name in ("alpha", "sigma")]
    ours = (ops.mixture_denoiser, ops.mixture_log_density)[which]

    def on_device(x, alpha, sigma):
        return ours(x.cuda(), data.cuda(), alpha.cuda(), sigma.cuda(), **moved(rest), backend="cuda").cpu()

    def exactly(*inputs):
        return mixtures.textbook(inputs[0], data, *inputs[1:], *rest.values())[which]

    found, exact = mixtures.both(on_device, x, *scales), mixtures.both(exactly, x.double(), *scales)
    mixtures.assert_close(found[0], exact[0], 4e-6)
    size = 1 + float(data.abs().max())
    for mine, true in zip([found[1], *found[2]], [exact[1], *exact[2]], strict=True):
        mixtures.assert_close(mine, true, 2e-5 * size)


@given(case=energies.cases())
def test_energies(case):
    kernel, points, weights = case
    there = [value.float().cuda().requires_grad_() for value in points]
    wide = [value.clone().requires_grad_() for value in points]
    named = {"x_weights": weights[0], "y_weights": weights[1]}
    found, exact = ops.energy(*there, kernel, **moved(named), backend="cuda"), ops.energy(*wide, kernel, **named)
    assert abs(float(found.detach()) - float(exact.detach())) <= 2e-6 * energies.sum_of_sizes(kernel, points, weights)
    mine, true = torch.autograd.grad(found, there), torch.autograd.grad(exact, wide)
    slope = max([1.0, *(float(value.abs().max()) for value in true if value.numel())])
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=4e-5, atol=4e-6 * slope)


@pytest.mark.parametrize("code", ["u8", "f16"])
def test_rows_of_a_teacher_cache(tmp_path, code):
    settings = {"vocabulary": 151_936, "k": 64, "fingerprint": UNCHECKED, "temperatures": (1.0, 2.0), "code": code}
    with TeacherCache.create(tmp_path / "cache", **settings) as cache:
        cache.append("a", 4 * torch.randn(50, 151_936))
        rows = torch.cat([cache.index(["a"]) + torch.arange(50), torch.tensor([-1])])[torch.randperm(51)]
        there, here = cache.gather(rows, device="cuda"), cache.gather(rows)
    for name in ("ids", "log_probs", "tail_log_mass"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name))
    assert torch.equal(there.log_partition[2.0].cpu(), here.log_partition[2.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_k_center_picks_where_the_points_are(dtype):
    points = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    there, here = select.k_center(points.cuda(), 50, seed=1), select.k_center(points, 50, seed=1)
    assert there.ids.device.type == "cuda"
    assert torch.equal(there.ids.cpu(), here.ids)
    torch.testing.assert_close(there.gains.cpu(), here.gains, rtol=1e-12, atol=0)


def test_auto_takes_the_kernels():
    student, teacher = torch.randn(2, 64, 5000, device="cuda", dtype=torch.bfloat16)
    found = [
        ops.row_divergence(student, teacher, ops.JensenShannon(), reduction="none", backend=backend)
        for backend in ("auto", "cuda")
    ]
    assert torch.equal(*found)


def test_work_waits_for_torch_s_stream():
    student, teacher = torch.randn(2, 256, 32_000, device="cuda")
    expected = ops.row_divergence(2 * student, teacher, ops.ForwardKL(), backend="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long work whose result the kernel must see.
        doubled = student
        for _ in range(50):
            doubled = doubled + student / 50
        doubled = 2 * student + 0 * doubled
        found = ops.row_divergence(doubled, teacher, ops.ForwardKL(), backend="cuda")
    stream.synchronize()
    assert torch.equal(found, expected)


def test_consumed_logits_need_no_second_gradient():
    leaf = torch.randn(1024, 32_000, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.randn_like(leaf)
    student = leaf * 1
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = ops.row_divergence(student, teacher, ops.ForwardKL(), consume_logits=True, backend="cuda")
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 0.05 * student.numel() * student.element_size()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("vocabulary", [128_256, 151_936])
def test_a_large_vocabulary(vocabulary):
    student, teacher = torch.randn(2, 8, vocabulary, device="cuda", dtype=torch.bfloat16)
    found = ops.row_divergence(student, teacher, ops.ReverseKL(), reduction="none", backend="cuda")
    exact = ops.row_divergence(student.double(), teacher.double(), ops.ReverseKL(), reduction="none", backend="torch")
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    top = ops.row_statistics(student, top_k=64, backend="cuda").top_ids
    assert torch.equal(student.gather(-1, top), student.topk(64).values)
