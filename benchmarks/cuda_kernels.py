"""The CUDA kernels against eager and compiled PyTorch and Liger-Kernel on one GPU, and the memory's own limit.

Usage::

    python benchmarks/cuda_kernels.py [--part rows|heads|mixture|store] [--quick] [--no-compile] [--rounds N]

Everything is timed in turns with the device's own events in one process, so launches are not waited for in between.

- rows: every divergence of rows of logits with its gradient, beside `peers.py` as it is and under `torch.compile`. The
  limit is what one pass that reads both logits and writes as much takes (`torch.add` into memory that is there).
- heads: losses of two heads of 4096 features at a vocabulary of 128,256 in bfloat16, beside the four products that
  nobody can leave out, `heads.py` as it is and compiled, and Liger-Kernel where it is installed: its Kullback-Leibler
  divergence, its fused Jensen-Shannon divergence, and its chunked loss with cross-entropy.
- mixture: the denoiser beside `torch.cdist` and a softmax.
- store: rows of a teacher cache beside unpacking on the CPU and copying the result.

Memory is what a call holds at its peak beside its arguments, over the logits' bytes (for heads in bytes). What does not
fit the device is named and left out. Without a CUDA device nothing is measured and nothing written; with `--quick`
shapes are small and nothing is written.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import heads
import measure
import peers
import torch
from torch import Tensor

from distillrs import ops
from distillrs.ops import TopK
from distillrs.trajectory import UNCHECKED, TeacherCache

PARTS = ["rows", "heads", "mixture", "store"]
# The last two are rows of a large model's head.
SHAPES = [(1024, 32000), (4096, 8192), (1024, 128256), (8192, 128256)]
QUICK = [(16, 500)]
# Rows, columns, the student's and the teacher's features: those of Liger-Kernel's own benchmarks.
HEADS = [(1024, 128256, 4096, 4096), (8192, 128256, 4096, 4096)]
QUICK_HEADS = [(16, 500, 32, 48)]
# Rows, points, features, and the noise at which most points count and at which few do.
POINTS = [(256, 60000, 784), (4096, 60000, 64), (256, 50000, 3072)]
QUICK_POINTS = [(20, 100, 8)]
SIGMAS = [1.0, 0.05]
TEMPERATURE = 2.0
TOP = 64


def mean(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The peers' loss."""
    return peers.rows(name, student, teacher, TEMPERATURE).mean()


def ours(divergence: ops.RowDivergence, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """Loss and gradient by the kernels, in the logits' own memory."""
    leaf = student.detach().requires_grad_()
    options = {"consume_logits": True, "backend": "cuda", **options}
    loss = ops.row_divergence(leaf.view_as(leaf), teacher, divergence, temperature=TEMPERATURE, **options)
    return torch.autograd.grad(loss.sum(), leaf)[0]


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contender on the device, taken in turns."""
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in contenders}
    for round_ in range(rounds + 2):
        for name, work in contenders.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            if round_ >= 2:
                events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: statistics.median(a.elapsed_time(b) for a, b in pairs) / 1e3 for name, pairs in events.items()}


def extra_bytes(work: Callable[[], object]) -> int:
    """The device's memory at the peak of a call, beside what is there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def those_that_fit(contenders: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The contenders without those that the device has no room for, which are named."""
    fitting = {}
    for name, work in contenders.items():
        try:
            work()
        except torch.OutOfMemoryError:
            print(f"  {name}: out of memory")
        else:
            fitting[name] = work
        torch.cuda.empty_cache()
    return fitting


def row_contenders(
    source: Tensor, teacher: Tensor, with_compiled: bool, backend: str = "cuda"
) -> dict[str, Callable[[], object]]:
    """Everything that is compared on rows of logits, by name: ours first."""
    logits, scratch = source.clone(), torch.empty_like(source)
    count = len(source)
    topk = ops.TopK.from_logits(teacher[:64], min(TOP, teacher.shape[1]))
    topk = ops.TopK(*(value.repeat(-(-count // len(value)), *[1] * (value.dim() - 1))[:count]
                      for value in (topk.ids, topk.log_probs, topk.tail_log_mass)))  # fmt: skip

    def sparse(student: Tensor, _: Tensor) -> Tensor:
        loss: Tensor = ops.sparse_row_divergence(student, topk, ops.ForwardKL(), backend=backend)
        return loss

    contenders: dict[str, Callable[[], object]] = {"memory limit": partial(torch.add, source, teacher, out=scratch)}
    for name, divergence in peers.DIVERGENCES.items():
        contenders[name] = partial(ours, divergence, logits, teacher, backend=backend)
        contenders[f"{name}, none"] = partial(ours, divergence, logits, teacher, reduction="none", backend=backend)
    contenders["forward KL, new gradient"] = partial(
        ours, ops.ForwardKL(), source, teacher, consume_logits=False, backend=backend
    )
    contenders["top-k teacher"] = partial(peers.gradient, sparse, source, teacher)
    contenders[f"statistics, top {TOP}"] = partial(ops.row_statistics, source, top_k=TOP, backend=backend)
    contenders["torch.topk"] = partial(torch.topk, source, TOP)
    for name in peers.DIVERGENCES:
        loss = partial(mean, name)
        contenders[f"eager {name}"] = partial(peers.gradient, loss, source, teacher)
        if with_compiled:
            compiled = torch.compile(loss, dynamic=False)
            contenders[f"compiled {name}"] = partial(peers.gradient, compiled, source, teacher)
    return contenders


def bench_rows(shape: tuple[int, int], dtype: torch.dtype, rounds: int, with_compiled: bool) -> dict[str, Any]:
    """Seconds and memory of everything at one shape."""
    generator = torch.Generator("cuda").manual_seed(0)
    source, teacher = ((3 * torch.randn(shape, generator=generator, device="cuda")).to(dtype) for _ in range(2))
    contenders = those_that_fit(row_contenders(source, teacher, with_compiled))
    seconds = alternate(contenders, rounds)
    base, names = seconds["forward KL"], list(peers.DIVERGENCES)
    return {
        "seconds": seconds,
        **{
            f"{peer}_over_ours": {
                name: seconds[f"{peer} {name}"] / seconds[name] for name in names if f"{peer} {name}" in seconds
            }
            for peer in ("eager", "compiled")
        },
        "over_forward_kl": {name: seconds[name] / base for name in names},
        "share_of_memory_limit": seconds["memory limit"] / base,
        "extra_memory": {name: extra_bytes(work) / source.nbytes for name, work in contenders.items()},
    }


def head_contenders(both: heads.Heads, with_compiled: bool) -> dict[str, Callable[[], object]]:
    """Everything that is compared on two heads, by name."""
    contenders: dict[str, Callable[[], object]] = {"four products": partial(products, both)}
    for name in heads.LOSSES:
        contenders[name] = partial(heads.gradients, heads.fused, name, both)
        contenders[f"eager {name}"] = partial(heads.gradients, heads.eager, name, both)
        if with_compiled:
            compiled = torch.compile(partial(heads.eager, name), dynamic=False)
            contenders[f"compiled {name}"] = partial(
                lambda loss: torch.autograd.grad(loss(both), both.leaves), compiled
            )
        if heads.liger_version():
            contenders[f"Liger {name}"] = partial(heads.gradients, heads.liger, name, both)
    return contenders


def products(both: heads.Heads) -> object:
    """Both logits, and the gradients of the student's features and head."""
    student, head = (leaf.detach() for leaf in both.leaves)
    logits = student @ head.mT
    return both.teacher @ both.teacher_head.mT, logits @ head, logits.mT @ student


def bench_heads(shape: tuple[int, int, int, int], rounds: int, with_compiled: bool) -> dict[str, Any]:
    """Seconds and memory of everything at one shape: rows, columns, features."""
    contenders = those_that_fit(head_contenders(heads.Heads.normal(shape, torch.bfloat16, "cuda"), with_compiled))
    seconds = alternate(contenders, rounds)
    return {
        "seconds": seconds,
        "over_four_products": {name: value / seconds["four products"] for name, value in seconds.items()},
        "over_ours": {
            f"{peer} {name}": seconds[f"{peer} {name}"] / seconds[name]
            for name in heads.LOSSES
            for peer in ("eager", "compiled", "Liger")
            if f"{peer} {name}" in seconds
        },
        "extra_bytes": {name: extra_bytes(work) for name, work in contenders.items()},
    }


def whole_matrix(x: Tensor, data: Tensor, sigma: float) -> Tensor:
    """The denoiser as most code writes it."""
    return (-torch.cdist(x, data).square() / (2 * sigma * sigma)).softmax(-1) @ data


def bench_mixture(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Seconds and memory of the denoiser at one shape: rows, points, features."""
    rows, points, features = shape
    generator = torch.Generator("cuda").manual_seed(0)
    data = torch.randn(points, features, generator=generator, device="cuda")
    results: dict[str, Any] = {}
    for sigma in SIGMAS:
        x = data[:rows] + sigma * torch.randn(rows, features, generator=generator, device="cuda")
        contenders: dict[str, Callable[[], object]] = {
            "ours": partial(ops.mixture_denoiser, x, data, 1.0, sigma, backend="cuda"),
            "whole matrix": partial(whole_matrix, x, data, sigma),
        }
        seconds = alternate(contenders, rounds)
        results[f"sigma {sigma}"] = {
            "seconds": seconds,
            "whole_matrix_over_ours": seconds["whole matrix"] / seconds["ours"],
            "extra_memory_over_points": {name: extra_bytes(work) / data.nbytes for name, work in contenders.items()},
        }
    return results


def bench_store(vocabulary: int, k: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds from rows on the disk's pages to a top-k teacher on the device."""
    with tempfile.TemporaryDirectory() as folder:
        with TeacherCache.create(f"{folder}/cache", vocabulary, k, UNCHECKED) as cache:
            for document in range(-(-tokens // 256)):
                cache.append(str(document), 4 * torch.randn(256, vocabulary))
        with TeacherCache.open(f"{folder}/cache", UNCHECKED) as cache:
            starts = cache.index([str(document) for document in range(-(-tokens // 256))])
            rows = (starts[:, None] + torch.arange(256)).reshape(-1)[:tokens]
            rows = rows[torch.randperm(tokens)]

            def unpacked_here() -> TopK:
                top = cache.gather(rows)
                moved = (value.pin_memory().to("cuda") for value in (top.ids, top.log_probs, top.tail_log_mass))
                return TopK(*moved)

            seconds = alternate({"ours": partial(cache.gather, rows, device="cuda"), "here": unpacked_here}, rounds)
    return {"seconds": seconds, "here_over_ours": seconds["here"] / seconds["ours"]}


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled peers out")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args(words)
    if arguments.rounds < 1:
        parser.error(f"--rounds: got {arguments.rounds}, allowed is at least 1")
    arguments.part = arguments.part or PARTS
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    arguments = arguments_of(words)
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing is measured")
        return
    rounds = 2 if arguments.quick else arguments.rounds
    with_compiled = not arguments.no_compile

    def keep(part: str, name: str, row: dict[str, Any]) -> None:
        print(f"{part}, {name}")
        for what, seconds in row.get("seconds", {}).items():
            print(f"  {what:46} {1e3 * seconds:9.3f} ms")
        for what, ratios in row.items():
            if what not in ("seconds", "settings"):
                print(f"  {what}: {ratios}", flush=True)
        if not arguments.quick:
            settings = {"device": torch.cuda.get_device_name(), "liger_kernel": heads.liger_version()}
            measure.add("cuda_kernels", part, {"settings": settings, name: row})
        torch.cuda.empty_cache()

    if "rows" in arguments.part:
        for shape in QUICK if arguments.quick else SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                name = f"{shape[0]} x {shape[1]} {str(dtype).removeprefix('torch.')}"
                keep("rows", name, bench_rows(shape, dtype, rounds, with_compiled))
    if "heads" in arguments.part:
        if heads.liger_version() is None:
            print("liger-kernel is not installed: its losses are left out")
        for sizes in QUICK_HEADS if arguments.quick else HEADS:
            name = f"{sizes[0]} rows, {sizes[1]} columns, {sizes[2]} and {sizes[3]} features, bfloat16"
            keep("heads", name, bench_heads(sizes, rounds, with_compiled))
    if "mixture" in arguments.part:
        for points in QUICK_POINTS if arguments.quick else POINTS:
            keep("mixture", " x ".join(map(str, points)), bench_mixture(points, rounds))
    if "store" in arguments.part:
        sizes_of_store = (500, 8, 300) if arguments.quick else (151_936, 64, 16_384)
        keep("store", "top {1} of {0}, {2} tokens".format(*sizes_of_store), bench_store(*sizes_of_store, rounds))


if __name__ == "__main__":
    main()
