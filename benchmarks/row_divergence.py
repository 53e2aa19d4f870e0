"""Row divergences, loss and gradient, against eager, row-chunked and compiled PyTorch, and the memory's own limit.

Usage::

    python benchmarks/row_divergence.py [--quick] [--no-compile] [--rounds N] [--threads N]

Everything is timed in turns in one process. Page faults are kept out of both sides: glibc is told to keep what is freed
instead of giving it back; eager PyTorch would otherwise spend more time on faults than on
arithmetic and any ratio would look grand. The limit is what one pass that reads both logits and writes as much takes,
with non-temporal stores: `memory_pass` of the core. With `--quick` shapes are small and the figures mean
nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import torch
from torch import Tensor

from distillrs import _core, ops

SHAPES = [(1024, 32000), (256, 128256), (4096, 8192)]
QUICK = [(64, 2000)]
TEMPERATURE = 2.0
CHUNK_ROWS = 64

DIVERGENCES: dict[str, ops.RowDivergence] = {
    "forward KL": ops.ForwardKL(),
    "reverse KL": ops.ReverseKL(),
    "Jensen-Shannon": ops.JensenShannon(0.5),
    "skew KL": ops.SkewKL(0.1),
    "skew reverse KL": ops.SkewReverseKL(0.1),
    "total variation": ops.TotalVariation(),
    "alpha 0.5": ops.Alpha(0.5),
    "mixture of forward and reverse KL": ops.Mixture({ops.ForwardKL(): 0.5, ops.ReverseKL(): 0.5}),
}


def keep_freed_memory() -> None:
    """Makes glibc serve large blocks from its heap and never trim it."""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4
    for option, value in ((trim_threshold, 2**31 - 1), (mmap_max, 0)):
        if not libc.mallopt(option, value):
            raise RuntimeError("glibc's mallopt refused")


def eager_kl(student: Tensor, teacher: Tensor, weight: Tensor, reverse: bool = False) -> Tensor:
    """Mean over rows of the weighted divergence, as most code writes it."""
    log_q = (student.float() / TEMPERATURE).log_softmax(-1)
    log_p = (teacher.float() / TEMPERATURE).log_softmax(-1)
    if reverse:
        log_p, log_q = log_q, log_p
    rows = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return (rows * weight).mean()


def eager_jsd(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The Jensen-Shannon divergence in the same way."""
    log_q = (student.float() / TEMPERATURE).log_softmax(-1)
    log_p = (teacher.float() / TEMPERATURE).log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - 0.6931471805599453
    kl = partial(torch.nn.functional.kl_div, reduction="none", log_target=True)
    rows = 0.5 * (kl(log_m, log_p) + kl(log_m, log_q)).sum(-1)
    return (rows * weight).mean()


def gradient(loss: Callable[[Tensor, Tensor, Tensor], Tensor], student: Tensor, *rest: Tensor) -> Tensor:
    """The gradient of a loss with respect to the student's logits."""
    student = student.detach().requires_grad_()
    return torch.autograd.grad(loss(student, *rest), student)[0]


def chunked(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, weight: Tensor
) -> Tensor:
    """The same over a few rows at a time, which stay in the cache."""
    out = torch.empty_like(student)
    for rows in torch.arange(len(student)).split(CHUNK_ROWS):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        share = (part.stop - part.start) / len(student)
        out[part] = gradient(loss, student[part], teacher[part], weight[part] * share)
    return out


def ours(divergence: ops.RowDivergence, student: Tensor, teacher: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Loss and gradient by the core, in the logits' own memory."""
    # A view that is no leaf, so that its memory may be taken; every round overwrites it, the next begins from there.
    leaf = student.detach().requires_grad_()
    logits = leaf.view_as(leaf)
    options = {"consume_logits": True, "reduction": "mean", **options}
    loss = ops.row_divergence(
        logits, teacher, divergence, temperature=TEMPERATURE, weight=weight, backend="rust", **options
    )
    return torch.autograd.grad(loss.sum(), leaf)[0]


def bench(shape: tuple[int, int], dtype: torch.dtype, rounds: int, with_compiled: bool) -> dict[str, Any]:
    """Seconds of everything at one shape."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    source = (3 * torch.randn(rows, columns, generator=generator)).to(dtype)
    teacher = (3 * torch.randn(rows, columns, generator=generator)).to(dtype)
    weight = torch.rand(rows, generator=generator)
    logits, scratch = source.clone(), source.clone()
    contenders: dict[str, Callable[[], object]] = {
        "memory limit": lambda: _core.memory_pass(
            source.data_ptr(), teacher.data_ptr(), scratch.data_ptr(), source.nbytes
        ),
    }

    def add(name: str, divergence: ops.RowDivergence, **options: Any) -> None:
        def work() -> None:
            ours(divergence, logits, teacher, weight, **options)

        contenders[name] = work

    for name, divergence in DIVERGENCES.items():
        add(name, divergence)
    add("forward KL, none", ops.ForwardKL(), reduction="none")
    add("forward KL, new gradient", ops.ForwardKL(), consume_logits=False)
    peers = {"forward KL": eager_kl, "reverse KL": partial(eager_kl, reverse=True), "Jensen-Shannon": eager_jsd}
    for name, loss in peers.items():
        contenders[f"eager {name}"] = partial(gradient, loss, source, teacher, weight)
    contenders["chunked eager forward KL"] = partial(chunked, eager_kl, source, teacher, weight)
    if with_compiled and shutil.which("g++"):
        compiled = torch.compile(eager_kl)
        contenders["compiled forward KL"] = partial(gradient, compiled, source, teacher, weight)
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=2))
    base = seconds["forward KL"]
    return {
        "seconds": seconds,
        "eager_over_ours": {name: seconds[f"eager {name}"] / seconds[name] for name in peers},
        "chunked_over_ours": seconds["chunked eager forward KL"] / base,
        "compiled_over_ours": seconds.get("compiled forward KL", float("nan")) / base,
        "over_forward_kl": {name: seconds[name] / base for name in DIVERGENCES},
        "share_of_memory_limit": seconds["memory limit"] / base,
        "extra_memory": extra_memory(source, teacher, weight),
    }


def extra_memory(source: Tensor, teacher: Tensor, weight: Tensor) -> float:
    """Growth of the process in one call that consumes its logits, over the logits' bytes."""
    logits = source.clone()
    before = measure.anonymous_bytes()
    ours(ops.ForwardKL(), logits, teacher, weight)
    return (measure.anonymous_bytes() - before) / logits.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled peer out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    _core.set_threads(arguments.threads)
    results: dict[str, Any] = {"threads": arguments.threads, "temperature": TEMPERATURE, "chunk_rows": CHUNK_ROWS}
    for shape in QUICK if arguments.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{shape[0]} x {shape[1]} {str(dtype).removeprefix('torch.')}"
            row = bench(shape, dtype, 2 if arguments.quick else arguments.rounds, not arguments.no_compile)
            results[name] = row
            print(name)
            for what, seconds in row["seconds"].items():
                print(f"  {what:36} {1e3 * seconds:9.2f} ms")
            ratios = "  ".join(f"{what} {ratio:.1f}" for what, ratio in row["eager_over_ours"].items())
            print(f"  eager over ours: {ratios}; of the memory limit {row['share_of_memory_limit']:.2f}", flush=True)
    measure.write("row_divergence", results)


if __name__ == "__main__":
    main()
