"""`energy` against the whole matrix of pairs, differentiated by autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import ops
from distillrs.errors import ArgumentError, DistillrsError

positive = st.floats(0.3, 3.0)
kernels = st.one_of(
    st.builds(ops.Gaussian, positive | st.tuples(positive, positive)),
    st.builds(ops.Laplacian, positive),
    st.just(ops.NegativeDistance()),
    st.builds(ops.InverseMultiquadric, positive, positive),
    st.builds(ops.Polynomial, st.integers(1, 3), st.floats(-1, 1), st.floats(-1, 1)),
)


def textbook(kernel, x, y):
    """[n, m] As the literature writes it."""
    x, y = (points.reshape(len(points), points.shape[1:].numel()) for points in (x, y))
    distance = (x[:, None] - y).square().sum(-1)
    match kernel:
        case ops.Gaussian(bandwidths):
            return sum((-distance / (2 * b * b)).exp() for b in bandwidths)
        case ops.Laplacian(b):
            return (-distance.sqrt() / b).exp()
        case ops.NegativeDistance():
            return -distance.sqrt()
        case ops.InverseMultiquadric(b, e):
            return (1 + distance / b**2).pow(-e)
        case ops.Polynomial(degree, scale, offset):
            return (scale * (x @ y.T) + offset) ** degree
    raise AssertionError(kernel)


@st.composite
def cases(draw):
    """Two sets in float64 whose values are those of float32, weights of each, and a kernel."""
    sizes = draw(st.tuples(st.integers(0, 9) | st.just(70), st.integers(0, 9) | st.just(130)))
    features = draw(st.sampled_from([(), (1,), (5,), (2, 3), (67,)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(shape, generator=generator).double()

    kernel, offset = draw(kernels), draw(st.sampled_from([0.0, 100.0]))
    shift = 0.0 if isinstance(kernel, ops.Polynomial) else offset
    # A kernel of far points alone would say nothing.
    spread = math.prod(features) ** -0.5
    points = [(normal(size, *features) * spread + shift).float().double() for size in sizes]
    weights = [normal(size) if draw(st.booleans()) else None for size in sizes]
    return kernel, points, weights


@pytest.mark.parametrize("backend", ["cuda"])
@given(case=cases())
def test_float32_values_and_gradients_give_what_their_rounding_allows(backend, case):
    kernel, points, weights = case
    # Not contiguous.
    leaves = [torch.stack([value, value], -1).float()[..., 0].requires_grad_() for value in points]
    named = {"x_weights": weights[0], "y_weights": weights[1]}
    found = ops.energy(*leaves, kernel, **named, backend=backend)
    wide = [value.clone().requires_grad_() for value in points]
    exact = ops.energy(*wide, kernel, **named, backend="torch")
    assert found.dtype == torch.float32
    # What a sum with signs is a difference of.
    size = sum_of_sizes(kernel, points, weights)
    assert abs(float(found.detach()) - float(exact.detach())) <= 1e-6 * size
    mine, true = (torch.autograd.grad(1.7 * value, inputs) for value, inputs in ((found, leaves), (exact, wide)))
    slope = 1.7 * max([1.0, *(float(value.abs().max()) for value in true if value.numel())])
    for one, other in zip(mine, true, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=2e-6 * slope)


def sum_of_sizes(kernel, points, weights):
    a, b = (torch.ones(len(p), dtype=torch.float64) if w is None else w for p, w in zip(points, weights, strict=True))
    if isinstance(kernel, ops.Polynomial):
        kernel = ops.Polynomial(kernel.degree, abs(kernel.scale), abs(kernel.offset))
        points = [value.abs() for value in points]
    return float(a.abs() @ textbook(kernel, *points).abs() @ b.abs())


@pytest.mark.parametrize("backend", ["cuda"])
def test_the_kernels_keep_what_is_not_a_number_in_its_row(backend):
    x, y = torch.zeros(3, 2), torch.ones(70, 2)
    x[1, 0] = torch.nan
    leaf = x.clone().requires_grad_()
    found = ops.energy(leaf, y, ops.Gaussian(), backend=backend)
    (gradient,) = torch.autograd.grad(found, leaf)
    assert found.isnan()
    assert gradient.isnan().all(1).tolist() == [False, True, False]
    # Infinitely far counts for nothing, or for everything.
    x[1, 0] = torch.inf
    for kernel, expected in ((ops.Gaussian(), 140 * math.exp(-1)), (ops.NegativeDistance(), -math.inf)):
        assert math.isclose(float(ops.energy(x, y, kernel, backend=backend)), expected, rel_tol=1e-6)


@pytest.mark.parametrize("backend", ["cuda"])
def test_one_set_beside_itself_on_the_kernels(backend):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 50
    x[7] = x[2]
    for kernel in (ops.Laplacian(), ops.NegativeDistance()):
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        found, exact = ops.energy(leaf, leaf, kernel, backend=backend), ops.energy(wide, wide, kernel)
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
        mine, true = torch.autograd.grad(found, leaf)[0], torch.autograd.grad(exact, wide)[0]
        torch.testing.assert_close(mine.double(), true, rtol=1e-5, atol=1e-5)


@given(
    kernel=kernels,
    sizes=st.tuples(st.integers(0, 9) | st.just(300), st.integers(0, 9) | st.just(40)),
    features=st.sampled_from([(), (1,), (5,), (2, 3)]),
    offset=st.sampled_from([0.0, 100.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_the_whole_matrix(kernel, sizes, features, offset, weighted, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shift = 0.0 if isinstance(kernel, ops.Polynomial) else offset
    x, y = (normal(size, *features).add(shift).requires_grad_() for size in sizes)
    weights = [normal(size) if weighted else None for size in sizes]
    found = ops.energy(x, y, kernel, x_weights=weights[0], y_weights=weights[1])
    a, b = (torch.ones(s, dtype=torch.float64) if w is None else w for s, w in zip(sizes, weights, strict=True))
    exact = a @ textbook(kernel, x, y) @ b
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)
    mine, true = (torch.autograd.grad(1.7 * value.square(), (x, y)) for value in (found, exact))
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7 * (1 + float(exact.detach().abs())))


@pytest.mark.parametrize("kernel", [ops.Gaussian((0.5, 2.0)), ops.Laplacian(), ops.NegativeDistance()])
def test_a_set_beside_itself(kernel):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 50
    x[7] = x[2]
    leaf = x.clone().requires_grad_()
    found = ops.energy(leaf, leaf, kernel)
    apart = (x[:, None] - x).norm(dim=-1)
    exact = textbook(kernel, x, x) if isinstance(kernel, ops.Gaussian) else None
    if exact is None:
        exact = -apart if isinstance(kernel, ops.NegativeDistance) else (-apart).exp()
    torch.testing.assert_close(found.detach(), exact.sum(), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(found, leaf)
    # A sum over pairs of one set does not change when all points move together.
    torch.testing.assert_close(gradient.sum(0), torch.zeros(3, dtype=torch.float64))
    assert gradient.isfinite().all()
    h = 1e-6
    moved = x.clone()
    moved[4, 1] += h
    slope = (ops.energy(moved, moved, kernel) - found.detach()) / h
    assert abs(float(slope - gradient[4, 1])) < 1e-3


def discrepancy(x, y, kernel):
    a, b = (torch.full((len(points),), 1 / len(points)) for points in (x, y))
    own = ops.energy(x, x, kernel, x_weights=a, y_weights=a) + ops.energy(y, y, kernel, x_weights=b, y_weights=b)
    return own - 2 * ops.energy(x, y, kernel, x_weights=a, y_weights=b)


def test_compositions():
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    y = torch.tensor([[1.0]], dtype=torch.float64)
    # E|x - y| = 1, E|x - x'| = 1, E|y - y'| = 0, so the energy distance is 2 - 1 = 1.
    assert math.isclose(float(discrepancy(x, y, ops.NegativeDistance())), 1.0, abs_tol=1e-7)
    # With the linear kernel only the means count, and they agree.
    assert abs(float(discrepancy(x, y, ops.Polynomial()))) < 1e-7
    assert abs(float(discrepancy(x, x.flip(0), ops.Gaussian()))) < 1e-7
    exact = (1 + math.exp(-2)) / 2 + 1 - 2 * math.exp(-0.5)
    assert math.isclose(float(discrepancy(x, y, ops.Gaussian())), exact, abs_tol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    x, y = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    leaf = x.clone().requires_grad_()
    found = ops.energy(leaf, y.mT.contiguous().mT, ops.Gaussian())
    (gradient,) = torch.autograd.grad(found, leaf)
    assert found.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(found.detach().double(), textbook(ops.Gaussian(), x.double(), y.double()).sum())


def test_memory_does_not_grow_with_the_pairs():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for value in found if isinstance(found, tuple | list) else [found]:
                if isinstance(value, torch.Tensor):
                    self.size = max(self.size, value.numel())
            return found

    x, y = torch.randn(1500, 3).requires_grad_(), torch.randn(3000, 3)
    with Largest() as largest:
        ops.energy(x, y, ops.Gaussian()).backward()
    assert largest.size <= 2**19


def test_second_derivatives_are_refused():
    x = torch.randn(4, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.energy(x, x, ops.Gaussian()), x, create_graph=True)
    with pytest.raises(DistillrsError, match="cannot be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0]}, "x: got 'list'"),
        ({"x": torch.zeros(())}, "x: got 'a tensor without axes'"),
        ({"y": torch.zeros(4, 3, dtype=torch.int64)}, "y: got torch.int64"),
        ({"y": torch.zeros(4, 2)}, r"y: got 'points of the shape \(2,\) on cpu'"),
        ({"kernel": "rbf"}, "kernel: got 'rbf'"),
        ({"kernel": ops.Gaussian}, "kernel: got"),
        ({"x_weights": torch.ones(3)}, r"x_weights: got 'the shape \(3,\)"),
        ({"y_weights": [1.0]}, "y_weights: got 'list'"),
        ({"y_weights": torch.ones(4).requires_grad_()}, "y_weights: got 'a tensor that requires gradients'"),
        ({"backend": "gpu"}, "backend: got 'gpu'"),
        ({"backend": "rust"}, "backend: got \"'rust'\""),
        ({"backend": "cuda"}, "backend: got \"'cuda' with tensors on cpu\""),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(change, message):
    arguments = {"x": torch.zeros(2, 3), "y": torch.zeros(4, 3), "kernel": ops.Gaussian(), **change}
    with pytest.raises(ArgumentError, match=message):
        ops.energy(**arguments)


@pytest.mark.parametrize("backend", ["cuda"])
def test_the_kernels_refuse_what_they_have_not(backend):
    class Mine(ops.Gaussian):
        pass

    x = torch.zeros(2, 3)
    for points, kernel, message in ((x.double(), ops.Gaussian(), "torch.float64"), (x, Mine(), "the kernel")):
        with pytest.raises(ArgumentError, match=f"backend: got .*'cuda' with {message}"):
            ops.energy(points, points, kernel, backend=backend)
        # The reference has a meaning for any.
        assert float(ops.energy(points, points, kernel)) == 4.0


def test_kernels_refuse_what_they_cannot_be():
    for make, name in (
        (lambda: ops.Gaussian(0.0), "bandwidths"),
        (lambda: ops.Gaussian(()), "bandwidths"),
        (lambda: ops.Gaussian((1.0, math.nan)), "bandwidths"),
        (lambda: ops.Laplacian(-1.0), "bandwidth"),
        (lambda: ops.InverseMultiquadric(True), "bandwidth"),
        (lambda: ops.InverseMultiquadric(1.0, 0.0), "exponent"),
        (lambda: ops.Polynomial(0), "degree"),
        (lambda: ops.Polynomial(2, math.inf), "scale"),
    ):
        with pytest.raises(ArgumentError, match=f"^{name}: got"):
            make()
