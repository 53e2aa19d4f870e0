"""Precision, recall and coverage, and the mean discrepancy, of many samples: seconds and memory.

Usage::

    python benchmarks/generation.py [--rounds N] [--rows N] [--features N]

The unit is one `torch.cdist` of the rows with themselves and one `topk` of it, in float64, as the scores are: with the
differences written out, which is what near neighbours need, and by the product of matrices, which is faster and loses
them. The scores need three such tables of distances and two selections; the peer that gives the same four numbers
writes that down plainly, one whole table at a time, and the numbers must be equal. The discrepancy needs three tables
and as many exponentials as there are bandwidths, beside the same with whole tables.

Memory is the peak of a process of its own for each, above one that makes the rows and nothing else. One thread.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable

import measure
import torch
from torch import Tensor

from distillrs import _core
from distillrs.evaluate.generation import maximum_mean_discrepancy, neighbourhood_scores

NEIGHBOUR = 5
BANDWIDTHS = (4.0, 8.0, 16.0)


def drawn(rows: int, features: int) -> tuple[Tensor, Tensor]:
    """Samples that miss part of what is real, and the real ones."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(20, features, generator=generator)
    found, real = (torch.randn(rows, features, generator=generator) for _ in range(2))
    return (
        found + centres[torch.randint(0, 16, (rows,), generator=generator)],
        real + centres[torch.randint(0, 20, (rows,), generator=generator)],
    )


def distances(x: Tensor, y: Tensor, by_product: bool = False) -> Tensor:
    mode = "use_mm_for_euclid_dist" if by_product else "donot_use_mm_for_euclid_dist"
    return torch.cdist(x.double(), y.double(), compute_mode=mode)


def radii(x: Tensor, by_product: bool = False) -> Tensor:
    # A row is the nearest to itself.
    return distances(x, x, by_product).topk(NEIGHBOUR + 1, dim=1, largest=False).values[:, -1]


def scores(found: Tensor, real: Tensor) -> tuple[float, ...]:
    """Precision, recall, density and coverage, plainly."""
    of_found, of_real = radii(found), radii(real)
    table = distances(found, real)
    near = table <= of_real
    recalled = (table <= of_found[:, None]).any(0)
    return (
        float(near.any(1).double().mean()),
        float(recalled.double().mean()),
        float(near.sum(1).double().mean()) / NEIGHBOUR,
        float(near.any(0).double().mean()),
    )


def discrepancy(found: Tensor, real: Tensor) -> float:
    """Unbiased, plainly."""

    def total(x: Tensor, y: Tensor) -> float:
        squares = distances(x, y).square_()
        return sum(float(torch.exp(squares / (-2 * width**2)).sum()) for width in BANDWIDTHS)

    n, m, diagonal = len(found), len(real), len(BANDWIDTHS)
    within = (total(found, found) - n * diagonal) / (n * (n - 1)) + (total(real, real) - m * diagonal) / (m * (m - 1))
    return within - 2 * total(found, real) / (n * m)


def works(found: Tensor, real: Tensor) -> dict[str, Callable[[], object]]:
    return {
        "one cdist and topk": lambda: radii(real),
        "one cdist and topk, by product": lambda: radii(real, by_product=True),
        "neighbourhood scores, plain": lambda: scores(found, real),
        "neighbourhood scores": lambda: neighbourhood_scores(found, real, NEIGHBOUR),
        "mean discrepancy, plain": lambda: discrepancy(found, real),
        "mean discrepancy": lambda: maximum_mean_discrepancy(found, real, BANDWIDTHS),
    }


def same(found: Tensor, real: Tensor) -> None:
    """Refuses to time two things that are not one."""
    ours, plain = tuple(neighbourhood_scores(found, real, NEIGHBOUR)), scores(found, real)
    pairs = [*zip(ours, plain, strict=True)]
    pairs.append((maximum_mean_discrepancy(found, real, BANDWIDTHS), discrepancy(found, real)))
    if not all(math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) for one, other in pairs):
        raise RuntimeError(f"the peers give other numbers: {pairs}")


def peak(name: str, rows: int, features: int) -> int:
    """Bytes of a process of its own that does one thing."""
    command = [sys.executable, __file__, "--memory", name, "--rows", str(rows), "--features", str(features)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    _core.set_threads(1)
    torch.set_num_threads(1)
    found, real = drawn(arguments.rows, arguments.features)
    contenders = works(found, real)
    if arguments.memory:
        contenders.get(arguments.memory, lambda: None)()
        print(measure.peak_bytes())
        return
    # The peers at the same numbers, on fewer rows: the plain ones take long.
    same(found[:1000], real[:1000])
    seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds, warm_up=0))
    idle = peak("nothing", arguments.rows, arguments.features)
    memory = {name: peak(name, arguments.rows, arguments.features) - idle for name in contenders}
    unit = seconds["one cdist and topk"]
    for name, value in seconds.items():
        print(f"{name:32} {value:8.2f} s  {value / unit:6.2f} of one cdist and topk  {memory[name] / 2**20:8.0f} MiB")
    ours = ("neighbourhood scores", "mean discrepancy")
    ratios = {name: seconds[name] / seconds[f"{name}, plain"] for name in ours}
    for name, ratio in ratios.items():
        print(f"{name:32} {ratio:8.2f} of plain")
    measure.write(
        "generation",
        {
            "rows": arguments.rows,
            "features": arguments.features,
            "seconds": seconds,
            "times_plain": ratios,
            "times_one_cdist_and_topk": {name: seconds[name] / unit for name in ours},
            "bytes_at_the_peak": memory,
        },
    )


if __name__ == "__main__":
    main()
