"""Losses between the outputs of two linear heads: the fused ones, as most code writes them, and Liger-Kernel's."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from distillrs import ops

# The divergence of each loss, and the weight of the cross-entropy beside it.
LOSSES: dict[str, tuple[ops.RowDivergence, float]] = {
    "forward KL": (ops.ForwardKL(), 0.0),
    "Jensen-Shannon": (ops.JensenShannon(0.5), 0.0),
    "Jensen-Shannon and cross-entropy": (ops.Mixture({ops.JensenShannon(0.5): 0.5}), 0.5),
}


@dataclass(frozen=True)
class Heads:
    """What goes into the heads, their weights, and labels.

    Attributes:
        student: Features ``[rows, width]``.
        head: ``[columns, width]``.
        teacher: Features ``[rows, teacher width]``.
        teacher_head: ``[columns, teacher width]``.
        labels: int64 ``[rows]``.
    """

    student: Tensor
    head: Tensor
    teacher: Tensor
    teacher_head: Tensor
    labels: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        """What wants gradients."""
        return self.student, self.head

    @classmethod
    def normal(cls, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, device: str = "cpu") -> Heads:
        """Random ones, of rows, columns, the student's and the teacher's features."""
        rows, columns, width, teacher_width = shape
        generator = torch.Generator(device).manual_seed(0)

        def normal(*dims: int) -> Tensor:
            return (torch.randn(dims, generator=generator, device=device) / dims[-1] ** 0.25).to(dtype)

        labels = torch.randint(0, columns, (rows,), generator=generator, device=device)
        student, head = normal(rows, width).requires_grad_(), normal(columns, width).requires_grad_()
        return cls(student, head, normal(rows, teacher_width), normal(columns, teacher_width), labels)


def fused(name: str, heads: Heads, chunk_bytes: int = 256 << 20) -> Tensor:
    """The loss some rows at a time."""
    divergence, label_weight = LOSSES[name]
    loss: Tensor = ops.linear_row_divergence(
        *heads.leaves,
        heads.teacher,
        heads.teacher_head,
        divergence,
        labels=heads.labels if label_weight else None,
        label_weight=label_weight,
        chunk_bytes=chunk_bytes,
    )
    return loss


def eager(name: str, heads: Heads) -> Tensor:
    """The loss of whole logits, as most code writes it."""
    log_q = (heads.student @ heads.head.mT).float().log_softmax(-1)
    log_p = (heads.teacher @ heads.teacher_head.mT).float().log_softmax(-1)
    kl = partial(torch.nn.functional.kl_div, reduction="batchmean", log_target=True)
    if name == "forward KL":
        return kl(log_q, log_p)
    log_m = torch.logaddexp(log_p, log_q) - 0.6931471805599453
    divergence = 0.5 * (kl(log_m, log_p) + kl(log_m, log_q))
    if name == "Jensen-Shannon":
        return divergence
    return 0.5 * divergence + 0.5 * torch.nn.functional.nll_loss(log_q, heads.labels)


def gradients(loss: Callable[[str, Heads], Tensor], name: str, heads: Heads) -> tuple[Tensor, ...]:
    """Those of the student's features and head."""
    return torch.autograd.grad(loss(name, heads), heads.leaves)


def liger_version() -> str | None:
    """The installed version of Liger-Kernel, if any."""
    return importlib.metadata.version("liger-kernel") if importlib.util.find_spec("liger_kernel") else None


def liger(name: str, heads: Heads) -> Tensor:
    """The loss by Liger-Kernel's own functions.

    Its Kullback-Leibler divergence takes log-probabilities, so whole logits; its Jensen-Shannon divergence is fused
    with the heads; with cross-entropy it is the chunked loss, compiled as it is by default.
    """
    if name == "forward KL":
        modules = importlib.import_module("liger_kernel.transformers")
        log_q = (heads.student @ heads.head.mT).float().log_softmax(-1)
        log_p = (heads.teacher @ heads.teacher_head.mT).float().log_softmax(-1)
        divergence: Tensor = modules.LigerKLDIVLoss(reduction="batchmean", log_target=True)(log_q, log_p)
        return divergence
    if name == "Jensen-Shannon":
        modules = importlib.import_module("liger_kernel.transformers")
        loss: Tensor = modules.LigerFusedLinearJSD(jsd_beta=0.5)(*heads.leaves, heads.teacher, heads.teacher_head, None)
        return loss
    chunked = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(beta=0.5)
    found = chunked(*heads.leaves, heads.teacher, heads.teacher_head, heads.labels, None, None)
    # Newer versions return the parts beside the sum.
    both: Tensor = found[0] if isinstance(found, tuple) else found
    return both
