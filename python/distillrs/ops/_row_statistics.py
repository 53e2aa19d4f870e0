"""Log-sum-exp, entropy, chosen and largest log-probabilities of rows of logits, with gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distillrs.checks import check_number
from distillrs.errors import DistillrsError, argument_error
from distillrs.ops import _backends, _cuda, _rust
from distillrs.ops._layout import CORE_DTYPES, row_layout
from distillrs.ops._opaque import apply, opaque
from distillrs.ops._reference import entropy as reference_entropy
from distillrs.ops._rows import check_logits

_ELEMENTS_AT_ONCE = 2**20

# (logits, columns, temperature, top_k, dtype) -> log-sum-exp, entropy, arg max, ids of the largest
_Summary: TypeAlias = Callable[[Tensor, int, float, int, torch.dtype], tuple[Tensor, Tensor, Tensor, Tensor]]


class RowStatistics(NamedTuple):
    """Statistics of rows of logits, shaped as the rows. All but ``argmax`` and ``top_ids`` are differentiable.

    Attributes:
        logsumexp: ``[...]``: natural log-sum-exp.
        entropy: ``[...]``: in nats.
        argmax: int64 ``[...]``: the most likely entry, the first of equal ones.
        chosen: ``[...]``: log-probability of ``index``; ``None`` without one.
        top_ids: int64 ``[..., top_k]``: the most likely entries, in falling order.
        top_log_probs: ``[..., top_k]``: their log-probabilities.
    """

    logsumexp: Tensor
    entropy: Tensor
    argmax: Tensor
    chosen: Tensor | None
    top_ids: Tensor
    top_log_probs: Tensor


@opaque
def row_statistics(
    logits: Tensor,
    index: Tensor | None = None,
    top_k: int = 0,
    *,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    backend: _backends.Backend = "auto",
) -> RowStatistics:
    """What is often asked of a row of logits, without a matrix of probabilities.

    Arithmetic is in float32 (float64 for float64 logits). The gradient is formed from the logits on the way back, for
    whatever was used of the result; a second derivative is refused.

    Args:
        logits: ``[..., vocabulary]``: float64, float32, bfloat16 or float16, in any layout.
        index: int64 ``[...]``: an entry of each row whose log-probability is wanted.
        top_k: How many of the most likely entries; of equally likely ones the first come first, but in ``torch.topk``'s
            order on the reference.
        temperature: Divides the logits.
        vocabulary: How many columns count, from the first; ``None`` for all.
        backend: "torch" (the reference), "rust" (CPU; float32, bfloat16, float16), "cuda" (the same on a GPU, up to
            1024 entries) or "auto".

    Returns:
        The statistics, in float32 (float64 for float64 logits).

    Raises:
        ArgumentError: For an argument that is not allowed, or a backend that cannot serve the others.
    """
    check_logits("logits", logits)
    _backends.check(backend)
    shape = logits.shape[:-1]
    columns = logits.shape[-1]
    if vocabulary is not None:
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or not 1 <= vocabulary <= columns:
            raise argument_error("vocabulary", vocabulary, f"None or an integer from 1 to {columns}")
        columns = vocabulary
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 0 <= top_k <= columns:
        raise argument_error("top_k", top_k, f"an integer from 0 to {columns}")
    check_number("temperature", temperature, "a positive, finite number", above=0)
    if index is not None:
        _check_index(index, shape, columns, logits.device)
    refusal = _cuda.statistics_refusal(logits, top_k)
    on_kernels = _backends.takes_cuda(backend, logits.device, refusal, lambda: _cuda.prepare_statistics(logits))
    can_serve = logits.device.type == "cpu" and logits.dtype in CORE_DTYPES
    if backend == "rust" and not can_serve:
        got = f"'rust' with {logits.dtype} on {logits.device}"
        raise argument_error("backend", got, "float32, bfloat16 or float16 on the CPU, or backend='torch'")
    summary = _by_torch
    if on_kernels:
        summary = _by_kernels
    elif can_serve and backend != "torch":
        summary = _by_core
    values = apply(_Statistics, "logits", logits, index, top_k, float(temperature), columns, summary)
    logsumexp, entropy, chosen, top_log_probs, argmax, top_ids = values
    return RowStatistics(logsumexp, entropy, argmax, chosen if index is not None else None, top_ids, top_log_probs)


def _check_index(index: Tensor, shape: torch.Size, columns: int, device: torch.device) -> None:
    allowed = f"an int64 tensor of the rows' shape, {tuple(shape)}, on {device}"
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise argument_error("index", index.dtype if isinstance(index, Tensor) else type(index).__name__, allowed)
    if index.shape != shape or index.device != device:
        raise argument_error("index", f"the shape {tuple(index.shape)} on {index.device}", allowed)
    if device.type == "cpu":
        wrong = index[(index < 0) | (index >= columns)]
        if len(wrong):
            raise argument_error("index", int(wrong[0]), f"entries from 0 to {columns - 1}")


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        index: Tensor | None,
        top_k: int,
        temperature: float,
        columns: int,
        summary: _Summary,
    ) -> tuple[Tensor, ...]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        shape, count = logits.shape[:-1], math.prod(logits.shape[:-1])
        logsumexp, entropy, argmax, top_ids = summary(logits.detach(), columns, temperature, top_k, dtype)
        rows = logits.detach()[..., :columns].reshape(count, columns)
        ids = argmax[:, None] if index is None else index.reshape(count, 1)
        # In float64: log-sum-exp and logit may both be large.
        picked = rows.gather(-1, torch.cat([ids, top_ids], -1)).to(logsumexp.dtype) / temperature
        log_probs = (picked - logsumexp[:, None]).to(dtype)
        ctx.save_for_backward(logits, index, logsumexp, entropy, top_ids)
        ctx.temperature, ctx.columns, ctx.dtype = temperature, columns, dtype
        outputs = (
            logsumexp.to(dtype).reshape(shape),
            entropy.to(dtype).reshape(shape),
            log_probs[:, 0].reshape(shape),
            log_probs[:, 1:].reshape(*shape, top_k),
            argmax.reshape(shape),
            top_ids.reshape(*shape, top_k),
        )
        ctx.mark_non_differentiable(*outputs[4:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, index, logsumexp, entropy, top_ids = ctx.saved_tensors
        with torch.no_grad():
            gradient = _gradient(ctx, logits, index, logsumexp, entropy, top_ids, upstream)
        if torch.is_grad_enabled():
            gradient = _Once.apply(gradient.detach().requires_grad_())
        return gradient, None, None, None, None, None


def _by_core(
    logits: Tensor, columns: int, temperature: float, top_k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _rust.row_summary(*_numbered(logits, columns, temperature), top_k)


def _by_kernels(
    logits: Tensor, columns: int, temperature: float, top_k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _cuda.row_summary(*_numbered(logits, columns, temperature), top_k)


def _numbered(logits: Tensor, columns: int, temperature: float) -> tuple[Tensor, int, Tensor]:
    """Logits whose rows can be numbered by two strides, the columns, and the temperature of each row."""
    logits = logits if row_layout(logits) is not None else logits.contiguous()
    count = math.prod(logits.shape[:-1])
    return logits, columns, torch.full((count,), temperature, dtype=torch.float64, device=logits.device)


def _by_torch(
    logits: Tensor, columns: int, temperature: float, top_k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = math.prod(logits.shape[:-1])
    rows = logits[..., :columns].reshape(count, columns)
    logsumexp, entropy = torch.empty(2, count, dtype=dtype, device=logits.device)
    argmax = torch.empty(count, dtype=torch.int64, device=logits.device)
    top = torch.empty(count, top_k, dtype=torch.int64, device=logits.device)
    size = max(1, _ELEMENTS_AT_ONCE // columns)
    for start in range(0, count, size):
        part = slice(start, start + size)
        values = rows[part].to(dtype)
        tempered = values / temperature
        logsumexp[part] = tempered.logsumexp(-1)
        largest = values.amax(-1, keepdim=True)
        entropy[part] = reference_entropy(((values - largest) / temperature).log_softmax(-1))
        argmax[part] = values.argmax(-1)
        top[part] = values.topk(top_k).indices
    return logsumexp, entropy, argmax, top


def _gradient(
    ctx: Any,
    logits: Tensor,
    index: Tensor | None,
    logsumexp: Tensor,
    entropy: Tensor,
    top_ids: Tensor,
    upstream: tuple[Tensor, ...],
) -> Tensor:
    """With x = s / T, q = softmax(x), L the log-sum-exp and H the entropy.

    ``dL = q``, ``dH = -q (x - L + H)`` and ``d(x_i - L) = onehot_i - q``, all divided by T.
    """
    columns, temperature, dtype = ctx.columns, ctx.temperature, ctx.dtype
    count = len(logsumexp)
    rows = logits.detach().reshape(count, logits.shape[-1])
    out = torch.zeros(rows.shape, dtype=logits.dtype, device=logits.device)
    lse, slope_h, chosen = (value.reshape(count, 1).to(dtype) for value in upstream[:3])
    top = upstream[3].reshape(top_ids.shape).to(dtype)
    if index is None:
        chosen = torch.zeros_like(chosen)
    logsumexp, entropy = logsumexp[:, None], entropy[:, None]
    size = max(1, _ELEMENTS_AT_ONCE // columns)
    for start in range(0, count, size):
        part = slice(start, start + size)
        log_q = (rows[part, :columns].to(logsumexp.dtype) / temperature - logsumexp[part]).to(dtype)
        q = log_q.exp()
        level = lse[part] - chosen[part] - top[part].sum(-1, keepdim=True)
        # Entries of probability 0 add nothing to the entropy.
        surprise = torch.where(q == 0, 0.0, q * (log_q + entropy[part].to(dtype)))
        gradient = q * level - slope_h[part] * surprise
        if index is not None:
            gradient.scatter_add_(-1, index.reshape(count, 1)[part], chosen[part])
        gradient.scatter_add_(-1, top_ids[part], top[part])
        out[part, :columns] = (gradient / temperature).to(out.dtype)
    return out.reshape(logits.shape)


class _Once(torch.autograd.Function):
    """The identity, whose derivative is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        raise DistillrsError("row_statistics: its gradient cannot be differentiated again; use torch's log_softmax")
