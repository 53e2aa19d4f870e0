"""A divergence between two heads against the heads' products alone, and against whole logits in eager PyTorch.

Usage::

    python benchmarks/linear_row_divergence.py [--freed kept|given-back] [--quick] [--rounds N] [--threads N]

The floor is the four products that nobody can leave out: both logits, and the gradients with respect to the student's
features and weight, of whole matrices into memory that is already there. Everything is timed in turns in one process.
`--freed` says what glibc does with memory that is freed: kept for the next call, or given back to the system as it does
unasked, so that every call takes its large pieces anew, page fault by page fault. Memory is the process's at the peak
of a call beyond what is there before; it is also taken at several numbers of rows. With `--quick` shapes are small and
nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import heads
import measure
import torch
from torch import Tensor

from distillrs import _core

# (rows, columns, student features, teacher features)
SHAPES = [(1024, 32000, 256, 512), (2048, 8192, 256, 512), (256, 128256, 128, 256)]
QUICK = [(16, 200, 8, 12)]
# Of the first shape: rows at which the memory is taken.
ROWS = [256, 1024, 4096]
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


def contenders_of(both: heads.Heads) -> dict[str, Callable[[], object]]:
    """Losses with their gradients."""
    fused = partial(heads.fused, chunk_bytes=CHUNK_BYTES)
    return {
        "forward KL": partial(heads.gradients, fused, "forward KL", both),
        "Jensen-Shannon": partial(heads.gradients, fused, "Jensen-Shannon", both),
        "eager forward KL": partial(heads.gradients, heads.eager, "forward KL", both),
    }


def bench(shape: tuple[int, int, int, int], rounds: int) -> dict[str, Any]:
    """Seconds and memory of everything at one shape, in float32."""
    both = heads.Heads.normal(shape)
    contenders = contenders_of(both)
    contenders["four products"] = products(*(leaf.detach() for leaf in both.leaves), both.teacher, both.teacher_head)
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=1))
    floor = seconds["four products"]
    over = {name: value / floor for name, value in seconds.items()}
    del contenders["four products"]
    memory = {name: measure.extra_bytes(work) for name, work in contenders.items()}
    return {
        "seconds": seconds,
        "over_four_products": over,
        "eager_over_ours": seconds["eager forward KL"] / seconds["forward KL"],
        "extra_bytes": memory,
        "gradient_bytes": sum(leaf.nbytes for leaf in both.leaves),
        "bars": [
            measure.bar("forward KL over the four products", over["forward KL"], at_most=1.4),
            measure.bar("Jensen-Shannon over the four products", over["Jensen-Shannon"], at_most=1.4),
            *memory_bars(both, memory),
        ],
    }


def memory_bars(both: heads.Heads, memory: dict[str, int]) -> list[measure.Bar]:
    """Beside the inputs at most the chunks and the gradients."""
    allowed = CHUNK_BYTES + sum(leaf.nbytes for leaf in both.leaves)
    return [
        measure.bar(f"{name}, extra memory over chunks and gradients", memory[name] / allowed, at_most=1)
        for name in ("forward KL", "Jensen-Shannon")
    ]


def bench_rows(shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Memory at several numbers of rows."""
    found: dict[str, Any] = {}
    for rows in ROWS:
        both = heads.Heads.normal((rows, *shape[1:]))
        memory = {name: measure.extra_bytes(work) for name, work in contenders_of(both).items()}
        found[f"{rows} rows"] = {"extra_bytes": memory, "bars": memory_bars(both, memory)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--freed", choices=["kept", "given-back"], help="what becomes of freed memory; both by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.freed is None:
        measure.each_way("--freed", ["kept", "given-back"])
        return
    if arguments.freed == "kept":
        measure.keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    _core.set_threads(arguments.threads)
    results: dict[str, Any] = {"settings": {"threads": arguments.threads, "chunk_bytes": CHUNK_BYTES}}
    for shape in QUICK if arguments.quick else SHAPES:
        name = f"{shape[0]} rows, {shape[1]} columns, features {shape[2]} and {shape[3]}"
        row = bench(shape, 2 if arguments.quick else arguments.rounds)
        results[name] = row
        print(name)
        for what, seconds in row["seconds"].items():
            memory = row["extra_bytes"].get(what)
            beside = "" if memory is None else f"  extra memory {memory / 2**20:7.1f} MiB"
            print(
                f"  {what:24} {1e3 * seconds:9.2f} ms  {row['over_four_products'][what]:6.2f} of the products{beside}"
            )
        measure.show_bars(row["bars"])
    results["memory by rows"] = bench_rows((QUICK if arguments.quick else SHAPES)[0])
    for name, row in results["memory by rows"].items():
        print(name, {what: f"{value / 2**20:.1f} MiB" for what, value in row["extra_bytes"].items()})
    if not arguments.quick:
        measure.add("linear_row_divergence", f"freed memory {arguments.freed}", results)


if __name__ == "__main__":
    main()
