"""Closed forms, ends and refusals of the mixture's denoiser and density."""

import itertools
import math

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jvp, vmap

from distillrs import _core, ops
from distillrs.errors import ArgumentError, DistillrsError
from distillrs.ops._cuda import _mixture

# Backends beside the reference; the kernels run on the CPU.
FAST = ["rust", "cuda"]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_one_point_without_bandwidth_is_the_answer_everywhere():
    x, point = normal(5, 3), normal(1, 3, seed=1)
    torch.testing.assert_close(ops.mixture_denoiser(x, point, 0.7, 2.0), point.expand(5, 3))


def test_one_point_with_a_bandwidth_is_a_gaussian():
    x, point, alpha, sigma, h = normal(5, 3), normal(1, 3, seed=1), 0.7, 0.5, 0.9
    # Regression of x0 on x in their joint distribution: mean + cov(x0, x) / var(x) (x - mean of x).
    expected = point + alpha * h**2 / (alpha**2 * h**2 + sigma**2) * (x - alpha * point)
    torch.testing.assert_close(ops.mixture_denoiser(x, point, alpha, sigma, h), expected)
    variance = sigma**2 + alpha**2 * h**2
    density = -((x - alpha * point) ** 2).sum(-1) / (2 * variance) - 1.5 * math.log(2 * math.pi * variance)
    torch.testing.assert_close(ops.mixture_log_density(x, point, alpha, sigma, h), density)


def test_two_points_on_a_line_are_a_hyperbolic_tangent():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    points, alpha, sigma = torch.tensor([-1.0, 1.0], dtype=torch.float64), 0.8, 0.6
    expected = torch.tanh(alpha * x / sigma**2)
    torch.testing.assert_close(ops.mixture_denoiser(x, points, alpha, sigma), expected)
    slope = alpha / sigma**2 * (1 - expected**2)
    torch.testing.assert_close(vmap(grad(lambda v: ops.mixture_denoiser(v, points, alpha, sigma)))(x), slope)


def test_many_points_of_a_gaussian_are_nearly_a_gaussian():
    data = normal(200_000, 1, seed=2)
    x, alpha, sigma = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None], 0.7, 0.6
    expected = alpha / (alpha**2 + sigma**2) * x
    assert float((ops.mixture_denoiser(x, data, alpha, sigma) - expected).abs().max()) < 0.02


def test_finite_differences_agree():
    data, weights = normal(11, 3, seed=3), normal(11, seed=4).abs()
    inputs = [normal(4, 3).requires_grad_(), torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64).requires_grad_()]
    inputs.append(torch.tensor([0.4, 1.0, 2.0, 0.7], dtype=torch.float64).requires_grad_())
    for function in (ops.mixture_denoiser, ops.mixture_log_density):

        def call(x, alpha, sigma, f=function):
            return f(x, data, alpha, sigma, 0.3, weights)

        torch.autograd.gradcheck(call, inputs, check_forward_ad=True)


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float64, "torch"), *((torch.float32, name) for name in ("torch", *FAST))]
)
def test_the_ends_are_the_limits(dtype, backend):
    data = normal(9, 4, seed=1, dtype=dtype)
    x, mean = data[[2, 5]] + 1e-3, data.mean(0).expand(2, 4)
    torch.testing.assert_close(ops.mixture_denoiser(x, data, 1.0, 0.0, backend=backend), data[[2, 5]])
    torch.testing.assert_close(ops.mixture_denoiser(x, data, 0.5, 0.0, 0.3, backend=backend), x / 0.5)
    for sigma, bandwidth in ((0.0, 0.0), (0.0, 0.3), (1.0, 0.0), (1.0, 0.3)):
        torch.testing.assert_close(ops.mixture_denoiser(x, data, 0.0, sigma, bandwidth, backend=backend), mean)
    tiny = ops.mixture_denoiser(x, data, 1.0, 1e-12, backend=backend)
    torch.testing.assert_close(tiny, data[[2, 5]])


@pytest.mark.parametrize(("dtype", "backend"), [(torch.float64, "torch"), (torch.float32, "cuda")])
def test_without_noise_equally_near_points_share_by_weight(dtype, backend):
    data = normal(9, 4, seed=1, dtype=dtype)
    twice = torch.cat([data, data[2:3]])
    found = ops.mixture_denoiser(data[2:3] + 1e-3, twice, 1.0, 0.0, backend=backend)
    torch.testing.assert_close(found, data[2:3])
    line = torch.tensor([[-1.0], [1.0], [1.0]], dtype=dtype)
    between = torch.zeros(1, 1, dtype=dtype)
    third = torch.full((1, 1), 1 / 3, dtype=dtype)
    torch.testing.assert_close(ops.mixture_denoiser(between, line, 1.0, 0.0, backend=backend), third)
    weights = torch.tensor([2.0, 1.0, 0.0])
    torch.testing.assert_close(ops.mixture_denoiser(between, line, 1.0, 0.0, 0.0, weights, backend=backend), -third)


@pytest.mark.parametrize(("dtype", "backend"), [(torch.float64, "torch"), (torch.float32, "cuda")])
def test_where_nothing_is_uncertain_derivatives_are_0(dtype, backend):
    data = normal(9, 4, seed=1, dtype=dtype)
    inputs = (data[:2] + 1e-3, torch.ones(2).double(), torch.zeros(2).double())

    def call(x, alpha, sigma):
        return ops.mixture_denoiser(x, data, alpha, sigma, backend=backend)

    _, tangent = jvp(call, inputs, tuple(map(torch.ones_like, inputs)))
    assert not tangent.any()
    leaves = [leaf.clone().requires_grad_() for leaf in inputs]
    gradients = torch.autograd.grad(call(*leaves).sum(), leaves)
    assert not any(value.any() for value in gradients)


def test_a_point_without_weight_is_as_if_it_were_not_there():
    x, data = normal(3, 2), normal(6, 2, seed=1)
    data[0] = 1e9
    weights = torch.tensor([0.0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(
        ops.mixture_denoiser(x, data, 1.0, 0.5, weights=weights),
        ops.mixture_denoiser(x, data[1:], 1.0, 0.5, weights=weights[1:] * 7),
    )


def test_far_away_and_far_apart_nothing_overflows():
    data = torch.tensor([[0.0], [1.0]])
    x = torch.tensor([[1e6], [-1e6], [0.25]])
    torch.testing.assert_close(ops.mixture_denoiser(x, data, 1.0, 1e-3), torch.tensor([[1.0], [0.0], [0.0]]))
    assert torch.isfinite(ops.mixture_log_density(x, data, 1.0, 1e-3)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_layouts_and_empty_rows(dtype):
    data, x = normal(20, 2, 3, seed=1, dtype=dtype), normal(4, 5, 3, 2, dtype=dtype).transpose(-1, -2)
    alpha, sigma = torch.rand(5, 4).mT, torch.rand(4, 5) + 0.5
    found = ops.mixture_denoiser(x, data, alpha, sigma, 0.2)
    exact = ops.mixture_denoiser(x.double(), data.double(), alpha, sigma, 0.2)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    assert ops.mixture_denoiser(x[:0], data, 1.0, 0.5).shape == (0, 5, 2, 3)
    density = ops.mixture_log_density(x, data, alpha, sigma, 0.2)
    assert density.shape == (4, 5)
    assert density.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    one = ops.mixture_denoiser(x[1, 2], data, alpha[1, 2], sigma[1, 2], 0.2)
    torch.testing.assert_close(one, found[1, 2])


@pytest.mark.parametrize(("dtype", "backend"), [(torch.float64, "torch"), (torch.float32, "cuda")])
def test_not_a_number_stays_one(dtype, backend):
    x = normal(3, 2, dtype=dtype)
    x[1, 0] = math.nan
    found = ops.mixture_denoiser(x, normal(6, 2, seed=1, dtype=dtype), 1.0, 0.5, backend=backend)
    assert found.isnan().any(1).tolist() == [False, True, False]


def test_the_hessian_of_the_density_is_there():
    x, data = normal(3), normal(6, 3, seed=1)

    def density(v):
        return ops.mixture_log_density(v, data, 0.8, 0.5)

    found = jacfwd(grad(density))(x)
    jacobian = jacfwd(lambda v: ops.mixture_denoiser(v, data, 0.8, 0.5))(x)
    torch.testing.assert_close(found, (0.8 * jacobian - torch.eye(3, dtype=torch.float64)) / 0.25)


def test_second_derivatives_of_the_denoiser_are_refused():
    data = normal(6, 3, seed=1)
    x = normal(2, 3).requires_grad_()
    (first,) = torch.autograd.grad(ops.mixture_denoiser(x, data, 1.0, 0.5).sum(), x, create_graph=True)
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        first.sum().backward()
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        hessian(lambda v: ops.mixture_denoiser(v, data, 1.0, 0.5).sum())(normal(3))
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        hessian(lambda s: ops.mixture_log_density(data[0], data, 1.0, s))(torch.tensor(0.5).double())


def test_derivatives_with_respect_to_data_and_weights_are_refused():
    x, data, weights = normal(2, 3), normal(6, 3, seed=1), normal(6).abs()
    with pytest.raises(ArgumentError, match="data: got 'a tensor that requires gradients'"):
        ops.mixture_denoiser(x, data.clone().requires_grad_(), 1.0, 0.5)
    with pytest.raises(ArgumentError, match="weights: got 'a tensor that requires gradients'"):
        ops.mixture_denoiser(x, data, 1.0, 0.5, 0.0, weights.clone().requires_grad_())
    with pytest.raises(ArgumentError, match="data: got"):
        grad(lambda d: ops.mixture_denoiser(x, d, 1.0, 0.5).sum())(data)
    with pytest.raises(ArgumentError, match="data: got"):
        jvp(lambda d: ops.mixture_denoiser(x, d, 1.0, 0.5), (data,), (data,))
    with pytest.raises(ArgumentError, match="weights: got"):
        jvp(lambda w: ops.mixture_denoiser(x, data, 1.0, 0.5, 0.0, w), (weights,), (weights,))
    with pytest.raises(ArgumentError, match=r"data: got 'a batch of them under torch.func.vmap'"):
        vmap(lambda d: ops.mixture_denoiser(x, d, 1.0, 0.5))(torch.stack([data, data]))
    with torch.no_grad():
        ops.mixture_denoiser(x, data.clone().requires_grad_(), 1.0, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0]}, "x: got 'list'"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, "x: got torch.int64"),
        ({"x": torch.zeros(2, 4)}, r"x: got 'the shape \(2, 4\)'"),
        ({"data": torch.zeros(0, 3)}, r"data: got 'the shape \(0, 3\)'"),
        ({"data": torch.zeros(6, 3, device="meta")}, "data: got 'a tensor on meta'"),
        ({"alpha": torch.ones(3)}, r"alpha: got 'the shape \(3,\)'"),
        ({"alpha": math.inf}, "alpha: got inf"),
        ({"alpha": "1"}, "alpha: got '1'"),
        ({"sigma": -0.5}, "sigma: got -0.5"),
        ({"sigma": True}, "sigma: got True"),
        ({"bandwidth": -1.0}, "bandwidth: got -1.0"),
        ({"bandwidth": math.nan}, "bandwidth: got nan"),
        ({"bandwidth": torch.ones(())}, "bandwidth: got tensor"),
        ({"weights": torch.ones(5)}, r"weights: got 'the shape \(5,\)"),
        ({"weights": torch.ones(6, dtype=torch.int64)}, "weights: got torch.int64"),
        ({"weights": torch.zeros(6)}, "weights: got 'values from 0.0 to 0.0'"),
        ({"weights": torch.tensor([1.0, 1, 1, 1, 1, -1])}, "weights: got 'values from -1.0"),
        ({"backend": "cuda"}, "backend: got .*cuda.* with tensors on cpu"),
        ({"backend": "rust", "x": torch.zeros(2, 3, dtype=torch.float64)}, r"backend: got .*rust.* with"),
        ({"backend": "rust", "data": torch.ones(6, 3).half()}, r"backend: got .*rust.* with"),
        ({"backend": "gpu"}, "backend: got 'gpu'"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(change, message):
    arguments = {"x": torch.zeros(2, 3), "data": torch.ones(6, 3), "alpha": 1.0, "sigma": 0.5, **change}
    for function in (ops.mixture_denoiser, ops.mixture_log_density):
        with pytest.raises(ArgumentError, match=message):
            function(**arguments)


def test_points_have_no_density():
    assert ops.mixture_log_density(torch.zeros(2, 1), torch.zeros(3, 1), 1.0, 0.0).isnan().all()


def test_memory_does_not_grow_with_rows_times_points():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for value in found if isinstance(found, tuple | list) else [found]:
                if isinstance(value, torch.Tensor):
                    self.size = max(self.size, value.numel())
            return found

    x, data = normal(2000, 2).requires_grad_(), normal(5000, 2, seed=1)
    with Largest() as largest:
        ops.mixture_denoiser(x, data, 1.0, 0.5).sum().backward()
    assert 2000 * 2 <= largest.size <= 2**19


@pytest.mark.parametrize("backend", FAST)
def test_rows_in_any_layout(backend):
    data, x = normal(20, 7, seed=1, dtype=torch.float32), normal(7, 9, dtype=torch.float32)
    weights = torch.rand(40)[::2]
    for points in (data, data.mT.contiguous().mT, data.expand(3, 20, 7)[1]):
        found = ops.mixture_denoiser(x.mT, points, 0.9, 0.4, 0.1, weights, backend=backend)
        exact = ops.mixture_denoiser(x.mT, data, 0.9, 0.4, 0.1, weights, backend="torch")
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=2e-6)
    assert ops.mixture_denoiser(x.mT[:0], data, 0.9, 0.4, backend=backend).shape == (0, 7)


@pytest.mark.parametrize("sigma", [3.0, 0.05, 1e-3, 1e-6])
@pytest.mark.parametrize("backend", FAST)
def test_small_noise_costs_no_digits(backend, sigma):
    data = 5 + normal(400, 64, seed=1, dtype=torch.float32)
    x = data[:30] + sigma * normal(30, 64, dtype=torch.float32)
    inputs = (x, torch.full((30,), 0.9, dtype=torch.float64), torch.full((30,), sigma, dtype=torch.float64))
    along = (normal(30, 64, seed=3, dtype=torch.float32), *(torch.ones(30, dtype=torch.float64),) * 2)

    def call(backend, x, *scales):
        return ops.mixture_denoiser(x, data, *scales, 0.5, backend=backend)

    for found, exact in zip(
        jvp(lambda *p: call(backend, *p), inputs, along), jvp(lambda *p: call("torch", *p), inputs, along), strict=True
    ):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.parametrize("types", list(itertools.product([torch.float32, torch.bfloat16, torch.float16], repeat=2)))
@pytest.mark.parametrize("backend", ["cuda"])
def test_narrow_rows_and_points_on_the_device(backend, types):
    x, data = normal(3, 40, 5, dtype=types[0]), normal(90, 5, seed=1, dtype=types[1])
    leaf = x.clone().requires_grad_()
    options = {"bandwidth": 0.2, "weights": normal(90, seed=4).abs()}
    denoised = ops.mixture_denoiser(leaf, data, 0.9, 0.6, **options, backend=backend)
    density = ops.mixture_log_density(leaf, data, 0.9, 0.6, **options, backend=backend)
    assert (denoised.dtype, density.dtype) == (types[0], torch.float32)
    (gradient,) = torch.autograd.grad(denoised.float().sum() + density.sum(), leaf)
    wide = x.double().requires_grad_()
    exact = ops.mixture_denoiser(wide, data.double(), 0.9, 0.6, **options)
    exact_density = ops.mixture_log_density(wide, data.double(), 0.9, 0.6, **options)
    (exact_gradient,) = torch.autograd.grad(exact.sum() + exact_density.sum(), wide)
    tolerance = max(torch.finfo(types[0]).eps, 1e-5)
    for found, true in ((denoised, exact), (density, exact_density), (gradient, exact_gradient)):
        torch.testing.assert_close(found.double(), true, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("backend", ["cuda"])
def test_the_device_passes_over_far_points_and_those_without_weight(backend):
    """Tiles of which nothing counts, before and after those that do."""
    data = torch.cat([normal(64, 3, seed=1) + far for far in (1e3, 0.0, 1e3, -1e3)]).float()
    x, weights = normal(40, 3).float(), torch.ones(256)
    weights[:64] = 0
    for given in (None, weights):
        leaf = x.clone().requires_grad_()
        found = ops.mixture_denoiser(leaf, data, 1.0, 0.5, weights=given, backend=backend)
        (gradient,) = torch.autograd.grad(found.square().sum(), leaf)
        wide = x.double().requires_grad_()
        exact = ops.mixture_denoiser(wide, data[64:128].double(), 1.0, 0.5)
        # About a centre that lies far away, float32 keeps fewer digits.
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)
        torch.testing.assert_close(
            gradient.double(), torch.autograd.grad(exact.square().sum(), wide)[0], rtol=0, atol=2e-2
        )


def test_the_device_s_parts_take_less_than_the_points():
    for rows in (1, 31, 33, 500, 20_000):
        for points in (1, 63, 64, 1000, 60_000):
            parts = _mixture.parts_of(rows, points)
            assert parts == 1 or parts * rows <= points / 2
            assert parts * -(-rows // _mixture.ROWS) <= max(512, -(-rows // _mixture.ROWS))
            assert parts <= -(-points // _mixture.POINTS)
    assert _mixture.parts_of(32, 60_000) > 100


def test_the_core_gives_the_same_bits_at_any_thread_count():
    data, x = normal(3000, 5, seed=1, dtype=torch.float32), normal(300, 5, dtype=torch.float32)
    before, results = _core.threads(), []
    try:
        for threads in (1, 2, 5):
            _core.set_threads(threads)
            leaf = x.clone().requires_grad_()
            found = ops.mixture_denoiser(leaf, data, 0.9, 0.4, backend="rust")
            results.append((found.detach(), torch.autograd.grad(found.square().sum(), leaf)[0]))
    finally:
        _core.set_threads(before)
    for found, gradient in results[1:]:
        assert torch.equal(found, results[0][0])
        assert torch.equal(gradient, results[0][1])
