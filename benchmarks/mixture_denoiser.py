"""The exact denoiser of a data set, and its derivative in time, against `torch.cdist` and a softmax.

Usage::

    python benchmarks/mixture_denoiser.py [--quick] [--rounds N] [--threads N]

The peer forms all distances, their softmax and a product with the points; its derivative is torch's own forward mode.
Both are timed in turns in one process. With `--quick` shapes are small and the figures mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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


def bench(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Seconds of both at one shape."""
    rows, points, features = shape
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(points, features, generator=generator)
    x = data[torch.arange(rows) % points] + SIGMA * torch.randn(rows, features, generator=generator)
    level = torch.tensor(SIGMA)
    contenders: dict[str, Callable[[], object]] = {
        "core": lambda: ops.mixture_denoiser(x, data, 1.0, SIGMA, backend="rust"),
        "reference": lambda: ops.mixture_denoiser(x, data, 1.0, SIGMA, backend="torch"),
        "cdist and softmax": lambda: whole_matrix(x, data, 1.0, SIGMA),
        "core, derivative": lambda: jvp(lambda s: ops.mixture_denoiser(x, data, 1.0, s), (level,), (level,)),
        "cdist and softmax, derivative": lambda: jvp(lambda s: whole_matrix(x, data, 1.0, s), (level,), (level,)),
    }
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=1))
    exact = ops.mixture_denoiser(x.double(), data.double(), 1.0, SIGMA)
    error = {
        "core": float((ops.mixture_denoiser(x, data, 1.0, SIGMA, backend="rust") - exact).abs().max()),
        "cdist and softmax": float((whole_matrix(x, data, 1.0, SIGMA) - exact).abs().max()),
    }
    return {
        "seconds": seconds,
        "peer_over_core": seconds["cdist and softmax"] / seconds["core"],
        "peer_over_core_derivative": seconds["cdist and softmax, derivative"] / seconds["core, derivative"],
        "largest_error": error,
        "matrix_bytes_that_are_not_there": 4 * rows * points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    _core.set_threads(arguments.threads)
    results: dict[str, Any] = {"threads": arguments.threads, "sigma": SIGMA}
    for shape in QUICK if arguments.quick else SHAPES:
        name = f"{shape[0]} rows, {shape[1]} points, {shape[2]} features"
        row = bench(shape, 2 if arguments.quick else arguments.rounds)
        results[name] = row
        print(name)
        for what, seconds in row["seconds"].items():
            print(f"  {what:36} {1e3 * seconds:9.2f} ms")
        ratios = f"{row['peer_over_core']:.1f}, derivative {row['peer_over_core_derivative']:.1f}"
        print(f"  peer over core: {ratios}; largest errors {row['largest_error']}", flush=True)
    measure.write("mixture_denoiser", results)


if __name__ == "__main__":
    main()
