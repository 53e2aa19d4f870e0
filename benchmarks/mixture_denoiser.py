"""The exact denoiser of a data set, and its derivative in time, against `torch.cdist` and a softmax.

Usage::

    python benchmarks/mixture_denoiser.py [--freed kept|given-back] [--quick] [--rounds N] [--threads N]

The peer forms all distances, their softmax and a product with the points; its derivative is torch's own forward mode.
Both are timed in turns in one process. `--freed` says what glibc does with memory that is freed: kept for the next
call, or given back to the system as it does unasked. Memory is the process's at the peak of a call beyond what is there
before, at each shape and with twice as many rows and points: what is linear doubles, what holds all pairs grows
fourfold. With `--quick` shapes are small and nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import torch
from torch import Tensor
from torch.func import jvp

from distillrs import _core, ops

# (rows, points, features): digits, a larger set of the same size of picture, flattened 28 x 28 pictures, a plane.
SHAPES = [(256, 1797, 64), (512, 20000, 64), (256, 10000, 784), (1000, 20000, 2)]
QUICK = [(20, 100, 8)]
SIGMA = 0.5


def whole_matrix(x: Tensor, data: Tensor, alpha: float, sigma: float | Tensor) -> Tensor:
    """The denoiser as most code writes it."""
    distance = torch.cdist(x, alpha * data)
    return (-distance.square() / (2 * sigma * sigma)).softmax(-1) @ data


def case(rows: int, points: int, features: int) -> tuple[Tensor, Tensor]:
    """Noisy rows, and the points that they come from."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(points, features, generator=generator)
    return data[torch.arange(rows) % points] + SIGMA * torch.randn(rows, features, generator=generator), data


def contenders_of(x: Tensor, data: Tensor) -> dict[str, Callable[[], object]]:
    """Everything that is compared on one case."""
    level = torch.tensor(SIGMA)
    core = partial(ops.mixture_denoiser, x, data, 1.0)
    whole = partial(whole_matrix, x, data, 1.0)
    return {
        "core": lambda: core(SIGMA, backend="rust"),
        "reference": lambda: core(SIGMA, backend="torch"),
        "cdist and softmax": lambda: whole(SIGMA),
        "core, derivative": lambda: jvp(core, (level,), (level,)),
        "cdist and softmax, derivative": lambda: jvp(whole, (level,), (level,)),
    }


def bench(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Seconds and memory of everything at one shape."""
    x, data = case(*shape)
    contenders = contenders_of(x, data)
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=1))
    exact = ops.mixture_denoiser(x.double(), data.double(), 1.0, SIGMA)
    error = {
        "core": float((ops.mixture_denoiser(x, data, 1.0, SIGMA, backend="rust") - exact).abs().max()),
        "cdist and softmax": float((whole_matrix(x, data, 1.0, SIGMA) - exact).abs().max()),
    }
    memory = {name: measure.extra_bytes(work) for name, work in contenders.items()}
    twice = contenders_of(*case(2 * shape[0], 2 * shape[1], shape[2]))
    doubled = {name: measure.extra_bytes(work) for name, work in twice.items()}
    ahead = seconds["cdist and softmax"] / seconds["core"]
    ahead_derivative = seconds["cdist and softmax, derivative"] / seconds["core, derivative"]
    return {
        "seconds": seconds,
        "peer_over_core": ahead,
        "peer_over_core_derivative": ahead_derivative,
        "largest_error": error,
        "bytes_of_all_pairs": 4 * shape[0] * shape[1],
        "extra_bytes": memory,
        "extra_bytes_of_twice_the_rows_and_points": doubled,
        "bars": [
            measure.bar("cdist and softmax over the core", ahead, at_least=2),
            measure.bar("its derivative over the core's", ahead_derivative, at_least=2),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--freed", choices=["kept", "given-back"], help="what becomes of freed memory; both by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.freed is None:
        measure.each_way("--freed", ["kept", "given-back"])
        return
    if arguments.freed == "kept":
        measure.keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    _core.set_threads(arguments.threads)
    results: dict[str, Any] = {"settings": {"threads": arguments.threads, "sigma": SIGMA}}
    for shape in QUICK if arguments.quick else SHAPES:
        name = f"{shape[0]} rows, {shape[1]} points, {shape[2]} features"
        row = bench(shape, 2 if arguments.quick else arguments.rounds)
        results[name] = row
        print(name)
        for what, seconds in row["seconds"].items():
            memory, twice = (
                row[key][what] / 2**20 for key in ("extra_bytes", "extra_bytes_of_twice_the_rows_and_points")
            )
            print(f"  {what:36} {1e3 * seconds:9.2f} ms  extra memory {memory:7.1f} MiB, of twice as many {twice:7.1f}")
        print(f"  largest errors {row['largest_error']}")
        measure.show_bars(row["bars"])
    if not arguments.quick:
        measure.add("mixture_denoiser", f"freed memory {arguments.freed}", results)


if __name__ == "__main__":
    main()
