"""Row divergences, loss and gradient, against eager, row-chunked and compiled PyTorch, and the memory's own limit.

Usage::

    python benchmarks/row_divergence.py [--simd avx512|avx2] [--rows N] [--dtype float32|bfloat16] [--rounds N]

Every divergence stands beside three peers, which compute the same: `peers.py` as it is, under `torch.compile`, and over
64 rows at a time. The loss is reduced to a mean; with `reduction="none"` the fused ones are timed apart, as they learn
the rows' upstream gradients only on the way back. Everything is timed in turns in one process, the peers in fewer
rounds as they take longer. Page faults are kept out of all sides: glibc is told to keep what is freed instead of giving
it back; eager PyTorch would otherwise spend more time on faults than on arithmetic and any ratio would look grand.
Memory is the process's at the peak of a call beyond what is there before, over the logits' bytes, with nothing kept
from earlier calls.

The limit is what one pass that reads both logits and writes as much takes, with non-temporal stores: `memory_pass` of
the core. `--simd avx2` switches wider instructions off in the core and in PyTorch alike. Parts of the whole are chosen
by `--rows` and `--dtype` and go into the same file; with `--quick` shapes are small and nothing is written.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import peers
import torch
from torch import Tensor

from distillrs import _core, ops

SHAPES = [(1024, 32000), (256, 128256), (4096, 8192)]
QUICK = [(64, 2000)]
TEMPERATURE = 2.0
CHUNK_ROWS = 64

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def weighted_mean(name: str, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Mean over rows of the weighted divergence."""
    return (peers.rows(name, student, teacher, TEMPERATURE) * weight).mean()


def chunked(loss: Loss, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The gradient over a few rows at a time, which stay in the cache."""
    out = torch.empty_like(student)
    for first in range(0, len(student), CHUNK_ROWS):
        part = slice(first, min(first + CHUNK_ROWS, len(student)))
        share = (part.stop - part.start) / len(student)
        out[part] = peers.gradient(loss, student[part], teacher[part], weight[part] * share)
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
    """Seconds and memory of everything at one shape."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    source = (3 * torch.randn(rows, columns, generator=generator)).to(dtype)
    teacher = (3 * torch.randn(rows, columns, generator=generator)).to(dtype)
    weight = torch.rand(rows, generator=generator)
    logits, scratch = source.clone(), source.clone()
    fused: dict[str, Callable[[], object]] = {
        "memory limit": lambda: _core.memory_pass(
            source.data_ptr(), teacher.data_ptr(), scratch.data_ptr(), source.nbytes
        ),
    }
    for name, divergence in peers.DIVERGENCES.items():
        fused[name] = partial(ours, divergence, logits, teacher, weight)
        fused[f"{name}, none"] = partial(ours, divergence, logits, teacher, weight, reduction="none")
    fused["forward KL, new gradient"] = partial(ours, ops.ForwardKL(), source, teacher, weight, consume_logits=False)
    others: dict[str, Callable[[], object]] = {}
    for name in peers.DIVERGENCES:
        loss = partial(weighted_mean, name)
        others[f"eager {name}"] = partial(peers.gradient, loss, source, teacher, weight)
        others[f"chunked {name}"] = partial(chunked, loss, source, teacher, weight)
        if with_compiled:
            # One graph for each divergence: a shared one would be compiled anew at every change of name.
            compiled = torch.compile(loss, dynamic=False)
            others[f"compiled {name}"] = partial(peers.gradient, compiled, source, teacher, weight)
    # Turns of all, then of the fused ones alone.
    few = max(2, rounds // 3)
    taken = measure.alternate({**fused, **others}, rounds=few, warm_up=1)
    for name, more in measure.alternate(fused, rounds=rounds - few, warm_up=1).items():
        taken[name] += more
    seconds = measure.medians(taken)
    memory = {
        name: measure.extra_bytes(work) / source.nbytes
        for name, work in {**fused, **others}.items()
        if name != "memory limit"
    }
    return {
        "seconds": seconds,
        "extra_memory": memory,
        **ratios(seconds),
        "bars": bars(_core.simd_level(), dtype, seconds, memory),
    }


def ratios(seconds: dict[str, float]) -> dict[str, Any]:
    """What the seconds say of each divergence."""
    names = list(peers.DIVERGENCES)
    found: dict[str, Any] = {
        f"{peer}_over_ours": {name: seconds[f"{peer} {name}"] / seconds[name] for name in names}
        for peer in ("eager", "chunked", "compiled")
        if f"{peer} {names[0]}" in seconds
    }
    found["eager_over_ours_without_reduction"] = {
        name: seconds[f"eager {name}"] / seconds[f"{name}, none"] for name in names
    }
    found["over_forward_kl"] = {name: seconds[name] / seconds["forward KL"] for name in names}
    found["share_of_memory_limit"] = {name: seconds["memory limit"] / seconds[name] for name in names}
    return found


def bars(level: str, dtype: torch.dtype, seconds: dict[str, float], memory: dict[str, float]) -> list[measure.Bar]:
    """What is asked of these figures, one by one; those of the limit only of the widest instructions."""
    found = ratios(seconds)
    is_wide, is_narrow_type = level == "avx512", dtype == torch.bfloat16
    eager = found["eager_over_ours"]["forward KL"]
    over = found["over_forward_kl"]
    share = found["share_of_memory_limit"]["forward KL"]
    most = max(memory[name] for name in peers.DIVERGENCES)
    least = {(True, False): 10, (True, True): 15, (False, False): 8, (False, True): 10}[is_wide, is_narrow_type]
    # What a prototype reached on another machine; none in bfloat16 without AVX-512.
    prototype = {(True, False): 12, (True, True): 20, (False, False): 9}.get((is_wide, is_narrow_type))
    asked = [
        measure.bar("forward KL, eager over ours", eager, at_least=least),
        measure.bar("reverse KL over forward KL", over["reverse KL"], at_most=1),
        measure.bar("Jensen-Shannon over forward KL", over["Jensen-Shannon"], at_most=1.6),
        measure.bar("most extra memory of any divergence, over the logits", most, at_most=0.05),
    ]
    if prototype is not None:
        asked.append(measure.bar("forward KL, eager over ours, beside the prototype", eager, at_least=prototype))
    if is_wide:
        asked.append(measure.bar("forward KL, share of the memory's limit", share, at_least=0.8))
    if is_wide and not is_narrow_type:
        asked.append(measure.bar("forward KL, share of the limit, beside the prototype", share, at_least=0.85))
    return asked


def show(name: str, row: dict[str, Any]) -> None:
    """Prints the figures of one shape."""
    print(name)
    for what, seconds in row["seconds"].items():
        memory = row["extra_memory"].get(what)
        beside = "" if memory is None else f"  extra memory {memory:7.3f} of the logits"
        print(f"  {what:46} {1e3 * seconds:9.2f} ms{beside}")
    measure.show_bars(row["bars"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled peers out")
    parser.add_argument("--simd", choices=["avx512", "avx2"], help="no wider vector instructions; both by default")
    parser.add_argument("--rows", type=int, choices=[rows for rows, _ in SHAPES], help="only the shape of these rows")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="only this type")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.simd is None:
        measure.each_way("--simd", ["avx512", "avx2"])
        return
    measure.run_at(arguments.simd)
    measure.keep_freed_memory()
    measure.compiled_like_the_core()
    torch.set_num_threads(arguments.threads)
    _core.set_threads(arguments.threads)
    with_compiled = not arguments.no_compile and shutil.which("g++") is not None
    shapes = [shape for shape in SHAPES if arguments.rows in (None, shape[0])]
    for shape in QUICK if arguments.quick else shapes:
        for dtype in [arguments.dtype] if arguments.dtype else ["float32", "bfloat16"]:
            name = f"{shape[0]} x {shape[1]} {dtype}"
            row = bench(shape, getattr(torch, dtype), 3 if arguments.quick else arguments.rounds, with_compiled)
            show(name, row)
            if not arguments.quick:
                settings = {"threads": arguments.threads, "temperature": TEMPERATURE, "chunk_rows": CHUNK_ROWS}
                measure.add("row_divergence", _core.simd_level(), {"settings": settings, name: row})


if __name__ == "__main__":
    main()
