"""The CUDA kernels against eager and compiled PyTorch on one GPU, and the memory's own limit.

Usage::

    python benchmarks/cuda_kernels.py [--quick] [--no-compile] [--rounds N]

Everything is timed in turns with the device's own events in one process, so launches are not waited for in between.
The limit is what one pass that reads both logits and writes as much takes (`torch.add` into memory that is there).
Memory is what a call holds at its peak beside its arguments, over the logits' bytes. Rows of logits come with their
gradient; the mixture's denoiser stands beside `torch.cdist` and a softmax, rows of a teacher cache beside unpacking on
the CPU and copying the result. Without a CUDA device nothing is measured and nothing written. With `--quick` shapes are
small and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import measure
import torch
from torch import Tensor

from distillrs import ops
from distillrs.ops import TopK
from distillrs.trajectory import UNCHECKED, TeacherCache

# The last two are rows of a large model's head.
SHAPES = [(1024, 32000), (4096, 8192), (1024, 128256), (8192, 128256)]
QUICK = [(16, 500)]
# Rows, points, features, and the noise at which most points count and at which few do.
POINTS = [(256, 60000, 784), (4096, 60000, 64), (256, 50000, 3072)]
QUICK_POINTS = [(20, 100, 8)]
SIGMAS = [1.0, 0.05]
TEMPERATURE = 2.0
TOP = 64

DIVERGENCES: dict[str, ops.RowDivergence] = {
    "forward KL": ops.ForwardKL(),
    "reverse KL": ops.ReverseKL(),
    "Jensen-Shannon": ops.JensenShannon(0.5),
    "skew KL": ops.SkewKL(0.1),
    "total variation": ops.TotalVariation(),
    "alpha 0.5": ops.Alpha(0.5),
}


def eager_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of the forward KL, as most code writes it."""
    log_q = (student.float() / TEMPERATURE).log_softmax(-1)
    log_p = (teacher.float() / TEMPERATURE).log_softmax(-1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def gradient(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    """The gradient of a loss with respect to the student's logits."""
    student = student.detach().requires_grad_()
    return torch.autograd.grad(loss(student, teacher), student)[0]


def ours(divergence: ops.RowDivergence, student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """Loss and gradient by the kernels, in the logits' own memory."""
    leaf = student.detach().requires_grad_()
    options = {"consume_logits": True, **options}
    loss = ops.row_divergence(
        leaf.view_as(leaf), teacher, divergence, temperature=TEMPERATURE, backend="cuda", **options
    )
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


def extra_memory(work: Callable[[], object], logits: Tensor) -> float:
    """The device's memory at the peak of a call, beside what is there before, over the logits' bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / logits.nbytes


def bench(shape: tuple[int, int], dtype: torch.dtype, rounds: int, with_compiled: bool) -> dict[str, Any]:
    """Seconds and memory of everything at one shape."""
    generator = torch.Generator("cuda").manual_seed(0)
    source, teacher = ((3 * torch.randn(shape, generator=generator, device="cuda")).to(dtype) for _ in range(2))
    logits, scratch = source.clone(), torch.empty_like(source)
    topk = ops.TopK.from_logits(teacher[:64], TOP)
    topk = ops.TopK(*(value.repeat(-(-shape[0] // 64), *[1] * (value.dim() - 1))[: shape[0]]
                      for value in (topk.ids, topk.log_probs, topk.tail_log_mass)))  # fmt: skip
    contenders: dict[str, Callable[[], object]] = {"memory limit": partial(torch.add, source, teacher, out=scratch)}
    for name, divergence in DIVERGENCES.items():
        contenders[name] = partial(ours, divergence, logits, teacher)
    contenders["forward KL, none"] = partial(ours, ops.ForwardKL(), logits, teacher, reduction="none")
    contenders["forward KL, new gradient"] = partial(ours, ops.ForwardKL(), logits, teacher, consume_logits=False)
    contenders["top-k teacher"] = partial(
        gradient, lambda s, _: ops.sparse_row_divergence(s, topk, ops.ForwardKL(), backend="cuda"), source, teacher
    )
    contenders["statistics, top 64"] = partial(ops.row_statistics, source, top_k=TOP, backend="cuda")
    contenders["torch.topk"] = partial(torch.topk, source, TOP)
    contenders["eager"] = partial(gradient, eager_kl, source, teacher)
    if with_compiled:
        contenders["compiled"] = partial(gradient, torch.compile(eager_kl), source, teacher)
    seconds = alternate(contenders, rounds)
    base = seconds["forward KL"]
    return {
        "seconds": seconds,
        "eager_over_ours": seconds["eager"] / base,
        "compiled_over_ours": seconds.get("compiled", float("nan")) / base,
        "over_forward_kl": {name: seconds[name] / base for name in DIVERGENCES},
        "share_of_memory_limit": seconds["memory limit"] / base,
        "extra_memory": {name: extra_memory(contenders[name], source) for name in ("forward KL", "eager")},
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
            "extra_memory_over_points": {name: extra_memory(work, data) for name, work in contenders.items()},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled peer out")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing is measured")
        return
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "temperature": TEMPERATURE}
    for shape in QUICK if arguments.quick else SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{shape[0]} x {shape[1]} {str(dtype).removeprefix('torch.')}"
            row = bench(shape, dtype, 2 if arguments.quick else arguments.rounds, not arguments.no_compile)
            results[name] = row
            print(name)
            for what, seconds in row["seconds"].items():
                print(f"  {what:28} {1e3 * seconds:9.3f} ms")
            print(
                f"  eager over ours: {row['eager_over_ours']:.1f}; of the memory limit "
                f"{row['share_of_memory_limit']:.2f}; extra memory {row['extra_memory']['forward KL']:.3f}",
                flush=True,
            )
            torch.cuda.empty_cache()
    rounds = 2 if arguments.quick else arguments.rounds
    for points in QUICK_POINTS if arguments.quick else POINTS:
        name = "mixture " + " x ".join(map(str, points))
        results[name] = bench_mixture(points, rounds)
        for sigma, row in results[name].items():
            print(f"{name}, {sigma}: whole matrix over ours {row['whole_matrix_over_ours']:.1f}", flush=True)
    results["teacher cache"] = bench_store(*((500, 8, 300) if arguments.quick else (151_936, 64, 16_384)), rounds)
    print(f"teacher cache: unpacked here over ours {results['teacher cache']['here_over_ours']:.1f}", flush=True)
    measure.write("cuda_kernels", results)


if __name__ == "__main__":
    main()
