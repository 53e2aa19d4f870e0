"""Statistics of rows of logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda._launcher import TYPES, active, layout_arguments
from distillrs.ops._layout import row_layout

# As in cuda/row_statistics.cu.
MAX_TOP = 1024


def refusal(logits: Tensor, top_k: int) -> tuple[str, str] | None:
    """Why this backend cannot serve a call, and what it could; ``None`` if it can."""
    if logits.device.type != active().device_type:
        return f"tensors on {logits.device}", "tensors on a CUDA device"
    if logits.dtype not in TYPES:
        return f"{logits.dtype}", "float32, bfloat16 or float16"
    if top_k > MAX_TOP:
        return f"top_k={top_k}", f"at most {MAX_TOP} entries"
    return None


def prepare(logits: Tensor) -> None:
    """Compiles what a call needs.

    Raises:
        ArgumentError: The backend is not there.
        KernelCompileError: The compiler refuses a source.
    """
    active().module("row_statistics", {"LOGITS": logits.dtype}, logits.device)


def row_summary(
    logits: Tensor, vocabulary: int, temperature: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp and entropy (float64 ``[n]``), arg max (int64 ``[n]``) and the ids of the largest (``[n, top_k]``).

    Args:
        logits: ``[*shape, columns]`` of a layout that ``row_layout`` knows.
        vocabulary: Columns that count.
        temperature: float64 ``[n]``.
        top_k: How many of the largest; the first of equal ones first.
    """
    count, device = len(temperature), logits.device
    logsumexp, entropy = torch.empty(2, count, dtype=torch.float64, device=device)
    argmax = torch.empty(count, dtype=torch.int64, device=device)
    top = torch.empty(count, top_k, dtype=torch.int64, device=device)
    arguments = {
        **layout_arguments("logits", logits, row_layout(logits)),
        "rows": np.int64(count),
        "vocabulary": np.uint32(vocabulary),
        "temperature": temperature.contiguous(),
        "logsumexp": logsumexp,
        "entropy": entropy,
        "argmax": argmax,
        "k": np.uint32(top_k),
        "top": top,
    }
    active().launch_rows("row_statistics", {"LOGITS": logits.dtype}, device, count, vocabulary, arguments)
    return logsumexp, entropy, argmax, top
