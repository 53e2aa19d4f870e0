"""The exact denoiser of a finite data set, and the density that it belongs to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from distillrs.checks import check_number
from distillrs.errors import DistillrsError, argument_error
from distillrs.ops import _backends, _mixture_reference, _mixture_rust
from distillrs.ops._cuda import _mixture as _cuda_mixture
from distillrs.ops._mixture_reference import Posterior
from distillrs.ops._rows import check_real


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch does not type it
def mixture_denoiser(
    x: Tensor,
    data: Tensor,
    alpha: float | Tensor,
    sigma: float | Tensor,
    bandwidth: float = 0.0,
    weights: Tensor | None = None,
    *,
    backend: _backends.Backend = "auto",
) -> Tensor:
    """The posterior mean ``E[x0 | x]`` of ``x = alpha x0 + sigma n``: the teacher that needs no training.

    Here ``x0`` is one of the points (``bandwidth`` 0) or drawn from their Gaussian kernel density, the mixture of
    ``N(y_i, bandwidth^2 I)``, and ``n ~ N(0, I)``. With ``s^2 = sigma^2 + alpha^2 bandwidth^2`` and ``r_i``
    proportional to ``w_i exp(-|x - alpha y_i|^2 / (2 s^2))``, which is Bayes' rule for jointly Gaussian variables,

        ``E[x0 | x] = (sigma^2 sum_i r_i y_i + alpha bandwidth^2 x) / s^2``.

    The ends are the limits: at ``sigma = 0`` the nearest point (equally near ones by their weights), or ``x / alpha``
    with a bandwidth; at ``alpha = 0`` the mean of the points. Where ``s = 0`` all derivatives are taken as 0.

    Differentiable once, forwards (``torch.func.jvp``) and backwards, with respect to ``x``, ``alpha`` and ``sigma``,
    and under ``torch.func.vmap``; memory grows with rows plus points, never with their product.

    Args:
        x: ``[..., *features]``: float64, float32, bfloat16 or float16.
        data: ``[points, *features]``: no gradient goes there.
        alpha: Weight of the data: a number, or one for each row, ``[...]``.
        sigma: Standard deviation of the noise, not negative; in the same way.
        bandwidth: Standard deviation of the kernels, not negative.
        weights: ``[points]``: not negative, not all 0; ``None`` for equal ones. They need not add up to 1.
        backend: "torch" (the reference), "rust" (float32 on the CPU), "cuda" (float32, bfloat16 and float16 on a CUDA
            device) or "auto".

    Returns:
        ``[..., *features]`` in the dtype of ``x``.

    Raises:
        ArgumentError: For an argument that is not allowed, or a backend that cannot serve the others.
    """
    mixture = _mixture(x, data, alpha, sigma, bandwidth, weights, backend, True)
    values = _Moments.apply(mixture.x, mixture.alpha, mixture.variance, mixture.data, weights, mixture.kernels)
    shares = mixture.noise_share[:, None], mixture.kernel_share[:, None]
    mean = values[0].to(shares[0].dtype)
    x0: Tensor = (shares[0] * mean + shares[1] * mixture.x.to(mean.dtype)).to(x.dtype)
    return x0.reshape(x.shape)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch does not type it
def mixture_log_density(
    x: Tensor,
    data: Tensor,
    alpha: float | Tensor,
    sigma: float | Tensor,
    bandwidth: float = 0.0,
    weights: Tensor | None = None,
    *,
    backend: _backends.Backend = "auto",
) -> Tensor:
    """The logarithm of the density of ``x`` under the mixture of :func:`mixture_denoiser`.

    ``log sum_i w_i N(x; alpha y_i, s^2 I) - log sum_i w_i``. Its gradient is the score, and by Tweedie's formula
    ``alpha mixture_denoiser(x) = x + sigma^2 score``. Differentiable as the denoiser is; its Hessian with respect to
    ``x`` is there too.

    Args:
        x: ``[..., *features]``: float64, float32, bfloat16 or float16.
        data: ``[points, *features]``: no gradient goes there.
        alpha: Weight of the data: a number, or one for each row, ``[...]``.
        sigma: Standard deviation of the noise, not negative; in the same way.
        bandwidth: Standard deviation of the kernels, not negative.
        weights: ``[points]``: not negative, not all 0; ``None`` for equal ones. They need not add up to 1.
        backend: "torch" (the reference), "cuda" (float32, bfloat16 and float16 on a CUDA device) or "auto".

    Returns:
        ``[...]`` in float32 (float64 for float64 rows), in nats; not a number where ``s = 0``, as points have no
        density.

    Raises:
        ArgumentError: For an argument that is not allowed, or a backend that cannot serve the others.
    """
    mixture = _mixture(x, data, alpha, sigma, bandwidth, weights, backend, False)
    values = _Moments.apply(mixture.x, mixture.alpha, mixture.variance, mixture.data, weights, mixture.kernels)
    known = mixture.variance > 0
    variance = torch.where(known, mixture.variance, torch.nan)
    normaliser = mixture.data.shape[1] / 2 * (2 * math.pi * variance).log()
    normaliser = normaliser + (math.log(len(data)) if weights is None else weights.to(variance).sum().log())
    density = (values[1] - normaliser).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    result: Tensor = density.reshape(x.shape[: x.dim() - (data.dim() - 1)])
    return result


@dataclass(frozen=True, slots=True)
class _Mixture:
    """The arguments in rows; numbers for each row in the arithmetic's precision.

    Attributes:
        x: ``[n, d]``.
        data: ``[m, d]``.
        alpha: ``[n]``.
        variance: ``[n]``: ``s^2``.
        noise_share: ``[n]``: ``sigma^2 / s^2``.
        kernel_share: ``[n]``: ``alpha bandwidth^2 / s^2``.
        kernels: The backend: ``posterior`` and ``covariance``.
    """

    x: Tensor
    data: Tensor
    alpha: Tensor
    variance: Tensor
    noise_share: Tensor
    kernel_share: Tensor
    kernels: ModuleType


def _mixture(
    x: Tensor,
    data: Tensor,
    alpha: float | Tensor,
    sigma: float | Tensor,
    bandwidth: float,
    weights: Tensor | None,
    backend: _backends.Backend,
    only_mean: bool,
) -> _Mixture:
    _backends.check(backend)
    _check_points(x, data)
    if weights is not None:
        _check_weights(weights, data)
    check_number("bandwidth", bandwidth, "a finite number that is not negative", least=0)
    bandwidth = float(bandwidth)
    shape = x.shape[: x.dim() - (data.dim() - 1)]
    like = torch.empty(0, dtype=_mixture_reference.arithmetic(x), device=x.device)
    alpha = _per_row("alpha", alpha, shape, like)
    sigma = _per_row("sigma", sigma, shape, like)
    width = math.prod(data.shape[1:])
    variance = sigma.square() + (alpha * bandwidth).square()
    # Where both are 0 the limit of small noise: all of it is the noise's.
    still = variance == 0
    divisor = torch.where(still, 1.0, variance)
    return _Mixture(
        x=x.reshape(math.prod(shape), width),
        data=data.reshape(len(data), width),
        alpha=alpha,
        variance=variance,
        noise_share=torch.where(still, 1.0, sigma.square() / divisor),
        kernel_share=alpha * bandwidth**2 / divisor,
        kernels=_kernels(backend, x, data, only_mean),
    )


def _kernels(backend: _backends.Backend, x: Tensor, data: Tensor, only_mean: bool) -> ModuleType:
    if backend == "torch":
        return _mixture_reference
    refusal = _cuda_mixture.refusal(x, data)
    if _backends.takes_cuda(backend, x.device, refusal, lambda: _cuda_mixture.prepare(x, data)):
        return _cuda_mixture
    reason = ("a log-density", "the denoiser") if not only_mean else _mixture_rust.refusal(x, data)
    if backend == "auto":
        return _mixture_reference if reason is not None else _mixture_rust
    if reason is not None:
        raise argument_error("backend", "'rust' with " + reason[0], reason[1] + ", or backend='torch'")
    return _mixture_rust


def _check_points(x: Tensor, data: Tensor) -> None:
    for name, value in (("x", x), ("data", data)):
        check_real(name, value)
    if data.dim() == 0 or 0 in data.shape:
        raise argument_error("data", f"the shape {tuple(data.shape)}", "[points, *features] with at least one point")
    if data.device != x.device:
        raise argument_error("data", f"a tensor on {data.device}", f"one on the device of x, {x.device}")
    features = data.dim() - 1
    if x.dim() < features or x.shape[x.dim() - features :] != data.shape[1:]:
        got = f"the shape {tuple(x.shape)}"
        raise argument_error("x", got, f"[..., *features] with the features of the data, {tuple(data.shape[1:])}")
    if torch.is_grad_enabled() and data.requires_grad:
        raise argument_error("data", "a tensor that requires gradients", "one that does not: data.detach()")


def _check_weights(weights: Tensor, data: Tensor) -> None:
    allowed = f"a floating-point tensor [{len(data)}] on {data.device}, not negative, not all 0"
    if not isinstance(weights, Tensor) or not weights.dtype.is_floating_point:
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise argument_error("weights", got, allowed)
    if weights.shape != data.shape[:1] or weights.device != data.device:
        raise argument_error("weights", f"the shape {tuple(weights.shape)} on {weights.device}", allowed)
    if torch.is_grad_enabled() and weights.requires_grad:
        raise argument_error("weights", "a tensor that requires gradients", "one that does not: weights.detach()")
    # On a GPU a look at the values would wait for it; there wrong ones show as results that are not numbers.
    if weights.device.type == "cpu" and not bool((weights >= 0).all() & weights.isfinite().all() & (weights > 0).any()):
        raise argument_error("weights", f"values from {float(weights.min())} to {float(weights.max())}", allowed)


def _per_row(name: str, value: float | Tensor, shape: torch.Size, like: Tensor) -> Tensor:
    """[n] One number for each row, with its gradient."""
    if isinstance(value, Tensor):
        if value.shape not in ((), shape):
            got = f"the shape {tuple(value.shape)}"
            raise argument_error(name, got, f"a number or one for each row, shape {tuple(shape)}")
        return value.to(like).expand(shape).reshape(-1)
    sign, least = (" that is not negative", 0.0) if name == "sigma" else ("", None)
    check_number(name, value, f"a finite number{sign}, or a tensor with one for each row, {tuple(shape)}", least=least)
    return like.new_full((math.prod(shape),), float(value))


# The posterior's logarithm is, but for a constant, y_i.a + |y_i|^2 b with a = alpha x / s^2 and b = -alpha^2 / (2 s^2).
# Small changes U and Q of a and b change it by delta.(U + 2 Q mean) + |delta|^2 Q, delta = y - mean; derivatives of the
# mean follow from the covariance of (delta, |delta|^2).
class _Moments(torch.autograd.Function):
    """Posterior mean ``[n, d]`` and log-sum ``[n]``; then spread, best, total, without derivatives."""

    @staticmethod
    def forward(
        x: Tensor, alpha: Tensor, variance: Tensor, data: Tensor, weights: Tensor | None, kernels: ModuleType
    ) -> tuple[Tensor, ...]:
        known: Posterior = kernels.posterior(x, alpha, variance, data, weights)
        mean = known.mean.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        return mean, known.log_sum, known.spread, known.best, known.total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.kernels = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, upstream_log: Tensor | None, *_: Tensor) -> Any:
        x, alpha, variance, _data, _weights, mean, _log_sum, spread, *_rest = ctx.saved_tensors
        inverse = _inverse(variance)
        wide_x, wide_mean = x.to(alpha.dtype), mean.to(alpha.dtype)
        by_x = torch.zeros_like(wide_x)
        by_alpha, by_variance = torch.zeros_like(alpha), torch.zeros_like(alpha)
        if upstream is not None:
            direction = torch.nn.functional.pad(upstream, (0, 1)).to(alpha.dtype)
            change = _Covariance.apply(*ctx.saved_tensors, direction, ctx.kernels)
            along = change[:, :-1]
            toward_x = (wide_x * along).sum(1)
            toward_square = 2 * (wide_mean * along).sum(1) + change[:, -1]
            by_x = (inverse * alpha)[:, None] * along
            by_alpha = inverse * (toward_x - alpha * toward_square)
            by_variance = inverse.square() * alpha * (alpha * toward_square / 2 - toward_x)
        if upstream_log is not None:
            apart = wide_x - alpha[:, None] * wide_mean
            by_x = by_x - (inverse * upstream_log)[:, None] * apart
            if any(ctx.needs_input_grad[1:3]):
                slopes = _LogSlopes.apply(apart, wide_mean, alpha, inverse, spread)
                by_alpha, by_variance = by_alpha + upstream_log * slopes[0], by_variance + upstream_log * slopes[1]
        return by_x.to(x.dtype), by_alpha, by_variance, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, *tangents: Any) -> tuple[Tensor | None, ...]:
        x, alpha, variance, _data, _weights, mean, _log_sum, spread, *_rest = ctx.saved_tensors
        for name, tangent in zip(("data", "weights"), tangents[2:4], strict=True):
            if tangent is not None:
                raise argument_error(name, "a tensor with a tangent", "one without: no derivative goes there")
        alpha_tangent, variance_tangent = (
            torch.zeros_like(alpha) if tangent is None else tangent for tangent in tangents[:2]
        )
        inverse = _inverse(variance)
        wide_x, wide_mean = x.to(alpha.dtype), mean.to(alpha.dtype)
        moved = torch.zeros_like(wide_x) if x_tangent is None else x_tangent.to(alpha.dtype)
        tilt = alpha_tangent - alpha * inverse * variance_tangent
        first = inverse[:, None] * (alpha[:, None] * moved + tilt[:, None] * wide_x)
        second = inverse * alpha * (inverse * alpha * variance_tangent / 2 - alpha_tangent)
        direction = torch.cat([first + 2 * second[:, None] * wide_mean, second[:, None]], 1)
        change = _Covariance.apply(*ctx.saved_tensors, direction, ctx.kernels)
        apart = wide_x - alpha[:, None] * wide_mean
        by_alpha, by_variance = _LogSlopes.apply(apart, wide_mean, alpha, inverse, spread)
        log_tangent = by_alpha * alpha_tangent + by_variance * variance_tangent - inverse * (apart * moved).sum(1)
        return change[:, :-1].to(mean.dtype), log_tangent, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return _folded(_Moments, info, in_dims, inputs)


class _Covariance(torch.autograd.Function):
    """Derivative of the mean; it has none itself."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        x, alpha, variance, data, weights, *known, direction, kernels = inputs
        change: Tensor = kernels.covariance(x, alpha, variance, data, weights, _posterior(known), direction)
        return change.to(direction.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        raise _second_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        raise _second_derivative()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return _folded(_Covariance, info, in_dims, inputs)


class _LogSlopes(torch.autograd.Function):
    """Derivatives of the log-sum with respect to alpha and variance, which have none themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(apart: Tensor, mean: Tensor, alpha: Tensor, inverse: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        by_alpha = inverse * ((apart * mean).sum(1) - alpha * spread)
        by_variance = inverse.square() * (apart.square().sum(1) + alpha.square() * spread) / 2
        return by_alpha, by_variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        raise _second_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        raise _second_derivative()


def _posterior(known: list[Tensor]) -> Posterior:
    mean, log_sum, spread, best, total = known
    return Posterior(mean=mean, spread=spread, log_sum=log_sum, best=best, total=total)


def _inverse(variance: Tensor) -> Tensor:
    """1 / variance; 0 where there is none, so that nothing changes there."""
    return torch.where(variance == 0, 0.0, 1 / torch.where(variance == 0, 1.0, variance))


def _folded(function: Any, info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """Rows of a batch are rows."""
    if in_dims[3] is not None or in_dims[4] is not None:
        name = "data" if in_dims[3] is not None else "weights"
        raise argument_error(name, "a batch of them under torch.func.vmap", "one for all")
    size = info.batch_size
    flat = []
    for place, (value, axis) in enumerate(zip(inputs, in_dims, strict=True)):
        if place in (3, 4) or not isinstance(value, Tensor):
            flat.append(value)
            continue
        value = value.expand(size, *value.shape) if axis is None else value.movedim(axis, 0)
        flat.append(value.flatten(0, 1))
    found = function.apply(*flat)
    if isinstance(found, Tensor):
        return _unfolded(found, size), 0
    return tuple(_unfolded(value, size) for value in found), (0,) * len(found)


def _unfolded(rows: Tensor, size: int) -> Tensor:
    return rows.reshape(size, len(rows) // size, *rows.shape[1:])


def _second_derivative() -> DistillrsError:
    return DistillrsError(
        "mixture_denoiser: its derivative cannot be differentiated again; detach it, or write the mixture with torch"
    )
