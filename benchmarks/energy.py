"""Kernel sums over all pairs, and their gradients, beside the products of matrices in them and the matrix of all pairs.

Usage::

    python benchmarks/energy.py [--features N] [--quick] [--rounds N]

The floor of a sum is one product in float64, which all distances come from; with the gradients of both sets two more
are needed. The peer forms all pairs at once in float64, as most code does, and leaves the gradient to autograd.
Everything is timed in turns in one process and one thread, in seconds of the processor, with page faults kept out of
all sides; memory is the process's at the peak of a call beyond what is there before. `--features` chooses one of the
shapes, which go into the same file; with `--quick` they are small and nothing is written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor

from distillrs import ops

# Points of both sets, features.
SHAPES = [(2000, 2000, 2), (2000, 2000, 64), (1500, 1500, 784), (2000, 500, 3072)]
QUICK = [(100, 80, 5)]


def kernels(features: int) -> dict[str, ops.PairKernel]:
    """Two of them: one with an exponential, one with a root."""
    return {"Gaussian": ops.Gaussian(features**0.5), "negative distance": ops.NegativeDistance()}


def whole_matrix(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The sum as most code writes it."""
    distance = torch.cdist(x.double(), y.double())
    if name == "negative distance":
        return -distance.sum()
    return (distance.square() / (-2 * x.shape[1])).exp().sum()


def with_gradient(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], object]:
    """The sum and its gradients."""
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    return lambda: torch.autograd.grad(function(*leaves), leaves)


def bench(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Seconds and memory of everything at one shape, for points in float32."""
    rows, points, features = shape
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(count, features, generator=generator) for count in (rows, points))
    wide_x, wide_y, slope = x.double(), y.double(), torch.randn(rows, points, dtype=torch.float64, generator=generator)
    results: dict[str, Any] = {}
    for name, kernel in kernels(features).items():

        def ours(x: Tensor, y: Tensor, kernel: ops.PairKernel = kernel) -> Tensor:
            return ops.energy(x, y, kernel)

        def peer(x: Tensor, y: Tensor, name: str = name) -> Tensor:
            return whole_matrix(name, x, y)

        contenders: dict[str, Callable[[], object]] = {
            "product": lambda: wide_x @ wide_y.mT,
            "three products": lambda: (wide_x @ wide_y.mT, slope @ wide_y, slope.mT @ wide_x),
            "sum": lambda ours=ours: ours(x, y),
            "sum with gradients": with_gradient(ours, x, y),
            "matrix": lambda peer=peer: peer(x, y),
            "matrix with gradients": with_gradient(peer, x, y),
        }
        seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=1, clock=time.process_time))
        results[name] = {
            "seconds": seconds,
            "sum_over_product": seconds["sum"] / seconds["product"],
            "gradients_over_three_products": seconds["sum with gradients"] / seconds["three products"],
            "matrix_over_sum": seconds["matrix"] / seconds["sum"],
            "matrix_over_sum_with_gradients": seconds["matrix with gradients"] / seconds["sum with gradients"],
            "extra_bytes": {
                what: measure.extra_bytes(work) for what, work in contenders.items() if "product" not in what
            },
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--features", type=int, choices=[shape[2] for shape in SHAPES], help="only the shape of these")
    arguments = parser.parse_args()
    measure.keep_freed_memory()
    torch.set_num_threads(1)
    shapes = [shape for shape in SHAPES if arguments.features in (None, shape[2])]
    for shape in QUICK if arguments.quick else shapes:
        found = bench(shape, 2 if arguments.quick else arguments.rounds)
        for name, row in found.items():
            print(f"{shape}, {name}")
            for what, seconds in row["seconds"].items():
                memory = row["extra_bytes"].get(what)
                beside = "" if memory is None else f"  extra memory {memory / 2**20:7.1f} MiB"
                print(f"  {what:24} {1e3 * seconds:9.2f} ms{beside}", flush=True)
        if not arguments.quick:
            measure.add("energy", "{} and {} points of {} features".format(*shape), found)


if __name__ == "__main__":
    main()
