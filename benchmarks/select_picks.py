"""Greedy picks and medoids against their peers on MNIST-sized points.

Usage::

    python benchmarks/select_picks.py [--data mnist|cifar10] [--rounds N] [--peers FOLDER] [--threads N]

Points are 64 principal components of MNIST where `DISTILLRS_DATA` has it, else normal mixtures of the same size; or of
CIFAR-10's training images, which go into a file of their own. Peers in plain torch are written here; `apricot-select`
and `kmedoids` take part where they can be imported, from `--peers` too (they are no dependency). All sides use the same
number of threads.

Beside the medians stand the memory that a call adds, the time at half and at a quarter of the points, and two limits:
what reading all points once for every pick takes at the rate of the memory, and what the multiply-adds of all distances
that the plain rule asks for take at the faster of two rates, torch's of a square matrix product and the core's of a
search for the nearest of all points. Lazy rules may stay below them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import torch
from select_points import multiply_adds_per_second, points, result_name

from distillrs import _core, select

ALL, SOME, FEW = 60_000, 6_000, 5_000
CENTRES, HERD, FACILITIES, MEDOIDS = 1000, 500, 100, 50


def torch_k_center(data: torch.Tensor, k: int) -> list[int]:
    """One matrix-vector product for each pick."""
    lengths, near, pick, ids = data.square().sum(1), torch.full((len(data),), float("inf")), 0, []
    for _ in range(k):
        ids.append(pick)
        near = torch.minimum(near, lengths - 2 * (data @ data[pick]) + lengths[pick])
        pick = int(near.argmax())
    return ids


def torch_herding(data: torch.Tensor, k: int) -> list[int]:
    """One matrix-vector product for each pick."""
    mean, halves = data.mean(0), data.square().sum(1) / 2
    wanted, ids = mean.clone(), []
    for _ in range(k):
        pick = int(torch.addmv(halves, data, wanted, alpha=-1).argmin())
        ids.append(pick)
        halves[pick] = float("inf")
        wanted += mean - data[pick]
    return ids


def torch_facility_location(data: torch.Tensor, k: int) -> list[int]:
    """Lazy greedy over the whole matrix of similarities."""
    import heapq

    distances = torch.cdist(data, data).square()
    similarities = distances.max() - distances
    best = torch.zeros(len(data))
    heap = [(-float(gain), row, 0) for row, gain in enumerate(similarities.sum(1))]
    heapq.heapify(heap)
    ids: list[int] = []
    while len(ids) < k:
        gain, row, seen = heap[0]
        if seen == len(ids):
            heapq.heappop(heap)
            ids.append(row)
            best = torch.maximum(best, similarities[row])
        else:
            gain = -float((similarities[row] - best).clamp_(min=0).sum())
            heapq.heapreplace(heap, (gain, row, len(ids)))
    return ids


def covered(data: torch.Tensor, ids: list[int]) -> float:
    """Sum over the points of the largest distance of all, squared, minus that to the nearest pick."""
    wide = data.double()
    distances = torch.cdist(wide, wide).square()
    return float((distances.max() - distances[ids].min(0).values).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", default=None)
    parser.add_argument("--data", choices=["mnist", "cifar10"], default="mnist")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    _core.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    source, array = points(ALL, arguments.data)
    data = torch.from_numpy(array)
    products, reading = multiply_adds_per_second(array), measure.bytes_read_per_second()
    results: dict[str, Any] = {
        "points": source,
        "shape": list(array.shape),
        "threads": arguments.threads,
        "multiply_adds_per_second": products,
        "bytes_read_per_second": reading,
    }

    def compare(
        task: str,
        contenders: dict[str, Callable[[], object]],
        same: dict[str, Any],
        *,
        own: Callable[[torch.Tensor], object],
        rows: torch.Tensor,
        passes: int,
        distances: int,
    ) -> None:
        contenders = {"distillrs": lambda: own(rows), **contenders}
        added = {name: measure.added_bytes(work) for name, work in contenders.items()}
        seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds, warm_up=1))
        ratios = {name: other / seconds["distillrs"] for name, other in seconds.items() if name != "distillrs"}
        parts = {len(part): part.clone() for part in (rows[: len(rows) // 4], rows[: len(rows) // 2])}
        sizes = {str(size): (lambda part=part: own(part)) for size, part in parts.items()}
        results[task] = {
            "seconds": seconds,
            "ratios": ratios,
            "added_bytes": added,
            "points_bytes": rows.nbytes,
            "limits": {
                "reading for every pick": passes * rows.nbytes / reading,
                "multiply-adds of all distances": distances * rows.shape[1] / max(products.values()),
            },
            "seconds_of_fewer_points": measure.medians(measure.alternate(sizes, rounds=3, warm_up=1)),
            **same,
        }
        cells = "  ".join(f"{name} {other * 1e3:8.1f} ms" for name, other in seconds.items())
        print(f"{task:18} {cells}  ratios {', '.join(f'{ratio:.1f}' for ratio in ratios.values())}  {same}", flush=True)

    picks = select.k_center(data, CENTRES, start=0).ids.tolist()
    compare(
        "k_center",
        {"torch": lambda: torch_k_center(data, CENTRES)},
        {"same_picks": picks == torch_k_center(data, CENTRES)},
        own=lambda rows: select.k_center(rows, CENTRES, start=0),
        rows=data,
        passes=CENTRES,
        distances=CENTRES * len(data),
    )
    some = data[:SOME].clone()
    picks = select.herding(some, HERD).ids.tolist()
    compare(
        "herding",
        {"torch": lambda: torch_herding(some, HERD)},
        {"same_picks": picks == torch_herding(some, HERD)},
        own=lambda rows: select.herding(rows, HERD),
        rows=some,
        passes=HERD,
        distances=HERD * SOME,
    )
    few = data[:FEW].clone()
    ours = covered(few, select.facility_location(few, FACILITIES).ids.tolist())
    same = {"torch_objective": covered(few, torch_facility_location(few, FACILITIES)) / ours - 1}
    contenders: dict[str, Callable[[], object]] = {"torch": lambda: torch_facility_location(few, FACILITIES)}
    try:
        from apricot import FacilityLocationSelection
    except ImportError as missing:
        results["apricot"] = f"not measured: {missing}"
    else:

        def apricot() -> list[int]:
            chosen = FacilityLocationSelection(FACILITIES, metric="euclidean", optimizer="lazy").fit(few.numpy())
            return chosen.ranking.tolist()

        same["apricot_objective"] = covered(few, apricot()) / ours - 1
        contenders["apricot"] = apricot
    compare(
        "facility_location",
        contenders,
        same,
        own=lambda rows: select.facility_location(rows, FACILITIES),
        rows=few,
        passes=FACILITIES,
        distances=FEW * FEW,
    )
    start = torch.arange(MEDOIDS)
    found = select.k_medoids(few, MEDOIDS, start=start)
    contenders, same = {}, {}
    try:
        import kmedoids
    except ImportError as missing:
        results["kmedoids"] = f"not measured: {missing}"
    else:

        def peer() -> Any:
            return kmedoids.fasterpam(torch.cdist(few, few).numpy(), start.numpy().astype(np.uint64), n_cpu=1)

        theirs = peer()
        same["same_medoids"] = sorted(map(int, theirs.medoids)) == sorted(found.medoids.tolist())
        same["loss"] = theirs.loss / found.inertia - 1
        contenders["kmedoids"] = peer
    compare(
        "k_medoids",
        contenders,
        same,
        own=lambda rows: select.k_medoids(rows, MEDOIDS, start=start),
        rows=few,
        passes=MEDOIDS,
        distances=FEW * FEW,
    )
    measure.write(result_name("select_picks", arguments.data), results)


if __name__ == "__main__":
    main()
