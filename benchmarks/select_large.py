"""Selection from many points, and what two rounds of parts lose.

Usage::

    python benchmarks/select_large.py [--points N] [--sparse N ...] [--threads N]

Facility location among a million points of 64 coordinates: by a few random candidates for each pick, and by two rounds
over parts of 5000. With similarities to the nearest points alone the search for those looks at every pair, which for a
million is 6.4e13 multiply-adds: it is taken at sizes of which each doubles the one before, for the memory of a point
and the growth of the time. Points are normal mixtures. Then the value of two rounds beside that of greedy over all
points: facility location of 5000 points of MNIST (64 principal components, where `DISTILLRS_DATA` has it), and the
distance that k-center leaves among 60000.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import measure
import torch
from select_picks import covered
from select_points import COLUMNS, points

from distillrs import _core, random, select

PICKS, SAMPLE, PART, NEIGHBOURS = 20, 50, 5000, 10


def mixture(count: int) -> torch.Tensor:
    """Points around 200 centres, float32."""
    owners = random.integers(count, 200, step=0, name="owners")
    values = random.normal(count, COLUMNS, step=0, name="points")
    return values.add_(random.normal(200, COLUMNS, step=0, name="centres")[owners])


def once(work: Any) -> tuple[float, int | None]:
    """Seconds of one call, and the bytes that it adds."""
    seconds = []

    def timed() -> None:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)

    added = measure.added_bytes(timed)
    return seconds[0], added


def left(data: torch.Tensor, ids: torch.Tensor) -> float:
    """The largest distance of a point to the nearest pick."""
    return float(select.nearest(data, data[ids], 1).distances.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--sparse", type=int, nargs="*", default=[10_000, 20_000, 40_000])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    _core.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    data = mixture(arguments.points)
    results: dict[str, Any] = {"columns": COLUMNS, "threads": arguments.threads}

    def report(name: str, count: int, work: Any) -> None:
        seconds, added = once(work)
        for_each = None if added is None else added / count
        results[name] = {
            "points": count,
            "seconds": seconds,
            "added_bytes": added,
            "added_bytes_for_each_point": for_each,
        }
        print(f"{name:42} {count:8} points  {seconds:7.2f} s  {for_each} bytes for each point", flush=True)

    report(
        "facility location, stochastic",
        len(data),
        lambda: select.facility_location(data, PICKS, method="stochastic", sample=SAMPLE),
    )
    parts = max(1, len(data) // PART)
    report(
        "facility location, partitioned",
        len(data),
        lambda: select.facility_location(data, PICKS, method="partitioned", partitions=parts),
    )
    for count in arguments.sparse:
        rows = data[:count]
        report(
            f"facility location, {NEIGHBOURS} neighbours, {count}",
            count,
            lambda rows=rows: select.facility_location(rows, PICKS, neighbours=NEIGHBOURS),
        )
    source, array = points(60_000)
    all_points = torch.from_numpy(array)
    few = all_points[:PART].clone()
    worth = covered(few, select.facility_location(few, 100).ids.tolist())
    reach = left(all_points, select.k_center(all_points, 1000, start=0).ids)
    ratios: dict[str, Any] = {"points": source}
    for count in (2, 4, 8, 16):
        ids = select.facility_location(few, 100, method="partitioned", partitions=count).ids
        centres = select.k_center(all_points, 1000, method="partitioned", partitions=count).ids
        ratios[str(count)] = {
            "facility location, value": covered(few, ids.tolist()) / worth,
            "k-center, distance left": left(all_points, centres) / reach,
        }
        print(f"{count:3} parts {ratios[str(count)]}", flush=True)
    results["two rounds over exact"] = ratios
    measure.write("select_large", results)


if __name__ == "__main__":
    main()
