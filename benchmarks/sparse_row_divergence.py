"""Divergences from a top-k teacher, and rankings, loss and gradient, against what a user would write with PyTorch.

Usage::

    python benchmarks/sparse_row_divergence.py [--quick] [--rounds N] [--threads N]

The peers gather the teacher's entries from the student's log-probabilities and give the rest one event. Beside them
stands a copy of the logits: what one pass that reads them and writes as much takes. Everything is timed in turns in one
process, with page faults kept out of all sides. With `--quick` shapes are small and the figures mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor

from distillrs import _core, ops

SHAPES = [(1024, 32000), (256, 128256), (4096, 8192)]
RANKINGS = [(4096, 1000), (16384, 100)]
QUICK = [(64, 2000)]
ENTRIES = 64


def eager(student: Tensor, top: ops.TopK) -> Tensor:
    """Mean over rows of the forward KL over k + 1 events."""
    logits = student.float()
    log_q = logits.gather(-1, top.ids) - logits.logsumexp(-1, keepdim=True)
    rest = torch.log1p(-log_q.exp().sum(-1)).clamp(min=-100)
    inside = (top.log_probs.exp() * (top.log_probs - log_q)).sum(-1)
    return (inside + top.tail_log_mass.exp() * (top.tail_log_mass - rest)).mean()


def gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> Callable[[], Tensor]:
    """Loss and gradient of one call."""
    leaf = logits.requires_grad_()
    return lambda: torch.autograd.grad(function(leaf), leaf)[0]


def bench(shape: tuple[int, int], dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Seconds of everything at one shape."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(rows, columns, generator=generator)
    top = ops.TopK.from_logits(student + torch.randn(rows, columns, generator=generator), ENTRIES)
    student, room = student.to(dtype), torch.empty(rows, columns, dtype=dtype)
    contenders: dict[str, Callable[[], object]] = {
        "copy of the logits": lambda: room.copy_(student.detach()),
        "forward KL": gradient(lambda logits: ops.sparse_row_divergence(logits, top, ops.ForwardKL()), student),
        "Jensen-Shannon": gradient(lambda logits: ops.sparse_row_divergence(logits, top, ops.JensenShannon()), student),
        "eager forward KL": gradient(lambda logits: eager(logits, top), student),
    }
    return compared(contenders, "forward KL", rounds)


def bench_ranking(shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Seconds of rankings at one shape, in float32."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    labels = torch.randint(0, shape[1], shape[:1], generator=generator)

    def by(backend: Any) -> Callable[[], object]:
        return gradient(lambda scores: ops.plackett_luce(scores, teacher, labels, backend=backend), student)

    return compared({"Plackett-Luce": by("rust"), "eager Plackett-Luce": by("torch")}, "Plackett-Luce", rounds)


def compared(contenders: dict[str, Callable[[], object]], ours: str, rounds: int) -> dict[str, Any]:
    """Medians and their ratios to one of them."""
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=2))
    return {"seconds": seconds, "over_ours": {name: value / seconds[ours] for name, value in seconds.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    measure.keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    _core.set_threads(arguments.threads)
    rounds = 2 if arguments.quick else arguments.rounds
    results: dict[str, Any] = {"threads": arguments.threads, "entries": ENTRIES}
    for dtype in (torch.float32, torch.bfloat16):
        for shape in QUICK if arguments.quick else SHAPES:
            name = f"{shape[0]} rows, {shape[1]} columns, {str(dtype).removeprefix('torch.')}"
            results[name] = bench(shape, dtype, rounds)
    for shape in [(64, 50)] if arguments.quick else RANKINGS:
        results[f"{shape[0]} rankings of {shape[1]} classes"] = bench_ranking(shape, rounds)
    for name, row in results.items():
        if not isinstance(row, dict):
            continue
        print(name)
        for what, seconds in row["seconds"].items():
            print(f"  {what:24} {1e3 * seconds:9.2f} ms  {row['over_ours'][what]:6.2f} of ours")
    measure.write("sparse_row_divergence", results)


if __name__ == "__main__":
    main()
