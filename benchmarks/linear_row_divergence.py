"""A divergence between two heads against the heads' products alone, and against whole logits in eager PyTorch.

Usage::

    python benchmarks/linear_row_divergence.py [--quick] [--rounds N] [--threads N]

The floor is the four products that nobody can leave out: both logits, and the gradients with respect to the student's
features and weight, of whole matrices into memory that is already there. Everything is timed in turns in one process.
With `--quick` shapes are small and the figures mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor

from distillrs import _core, ops

# (rows, columns, student features, teacher features)
SHAPES = [(1024, 32000, 256, 512), (2048, 8192, 256, 512), (256, 128256, 128, 256)]
QUICK = [(16, 200, 8, 12)]
CHUNK_BYTES = 64 << 20


def products(student: Tensor, head: Tensor, teacher: Tensor, other: Tensor) -> Callable[[], None]:
    """The four products, without chunks."""
    logits, guide = (student.new_empty(len(student), len(head)) for _ in range(2))
    by_head, by_student = torch.empty_like(head), torch.empty_like(student)

    def work() -> None:
        torch.mm(student, head.mT, out=logits)
        torch.mm(teacher, other.mT, out=guide)
        torch.mm(logits, head, out=by_student)
        torch.mm(logits.mT, student, out=by_head)

    return work


def bench(shape: tuple[int, int, int, int], rounds: int) -> dict[str, Any]:
    """Seconds of everything at one shape, in float32."""
    rows, columns, width, teacher_width = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*dims: int) -> Tensor:
        return torch.randn(dims, generator=generator) / dims[-1] ** 0.25

    student, head = normal(rows, width), normal(columns, width)
    teacher, other = normal(rows, teacher_width), normal(columns, teacher_width)
    leaves = [student.clone().requires_grad_(), head.clone().requires_grad_()]

    def fused(divergence: ops.RowDivergence) -> Callable[[], object]:
        def work() -> object:
            loss = ops.linear_row_divergence(*leaves, teacher, other, divergence, chunk_bytes=CHUNK_BYTES)
            return torch.autograd.grad(loss, leaves)

        return work

    def eager() -> object:
        q, p = (leaves[0] @ leaves[1].mT).log_softmax(-1), (teacher @ other.mT).log_softmax(-1)
        loss = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
        return torch.autograd.grad(loss, leaves)

    contenders: dict[str, Callable[[], object]] = {
        "four products": products(student, head, teacher, other),
        "forward KL": fused(ops.ForwardKL()),
        "Jensen-Shannon": fused(ops.JensenShannon(0.5)),
        "eager forward KL": eager,
    }
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=1))
    floor = seconds["four products"]
    return {
        "seconds": seconds,
        "over_four_products": {name: value / floor for name, value in seconds.items()},
        "eager_over_ours": seconds["eager forward KL"] / seconds["forward KL"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _core.set_threads(arguments.threads)
    results: dict[str, Any] = {"threads": arguments.threads, "chunk_bytes": CHUNK_BYTES}
    for shape in QUICK if arguments.quick else SHAPES:
        name = f"{shape[0]} rows, {shape[1]} columns, features {shape[2]} and {shape[3]}"
        row = bench(shape, 2 if arguments.quick else arguments.rounds)
        results[name] = row
        print(name)
        for what, seconds in row["seconds"].items():
            print(f"  {what:24} {1e3 * seconds:9.2f} ms  {row['over_four_products'][what]:6.2f} of the products")
    measure.write("linear_row_divergence", results)


if __name__ == "__main__":
    main()
