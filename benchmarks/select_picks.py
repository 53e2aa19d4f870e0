"""Greedy picks and medoids against their peers on MNIST-sized points.

Usage::

    python benchmarks/select_picks.py [--rounds N] [--peers FOLDER] [--threads N]

Points are 64 principal components of MNIST where `DISTILLRS_DATA` has it, else normal mixtures of the same size. Peers
in plain torch are written here; `apricot-select` and `kmedoids` take part where they can be imported, from `--peers`
too (they are no dependency). All sides use the same number of threads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import torch
from select_points import points

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
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(arguments.peers)
    _core.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    source, array = points(ALL)
    data = torch.from_numpy(array)
    results: dict[str, Any] = {"points": source, "shape": list(array.shape), "threads": arguments.threads}

    def compare(task: str, contenders: dict[str, Callable[[], object]], same: dict[str, Any]) -> None:
        seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds, warm_up=1))
        ratios = {name: own / seconds["distillrs"] for name, own in seconds.items() if name != "distillrs"}
        results[task] = {"seconds": seconds, "ratios": ratios, **same}
        cells = "  ".join(f"{name} {own * 1e3:8.1f} ms" for name, own in seconds.items())
        print(f"{task:18} {cells}  ratios {', '.join(f'{ratio:.1f}' for ratio in ratios.values())}  {same}", flush=True)

    picks = select.k_center(data, CENTRES, start=0).ids.tolist()
    compare(
        "k_center",
        {
            "distillrs": lambda: select.k_center(data, CENTRES, start=0),
            "torch": lambda: torch_k_center(data, CENTRES),
        },
        {"same_picks": picks == torch_k_center(data, CENTRES)},
    )
    some = data[:SOME].clone()
    picks = select.herding(some, HERD).ids.tolist()
    compare(
        "herding",
        {"distillrs": lambda: select.herding(some, HERD), "torch": lambda: torch_herding(some, HERD)},
        {"same_picks": picks == torch_herding(some, HERD)},
    )
    few = data[:FEW].clone()
    ours = covered(few, select.facility_location(few, FACILITIES).ids.tolist())
    same = {"torch_objective": covered(few, torch_facility_location(few, FACILITIES)) / ours - 1}
    contenders: dict[str, Callable[[], object]] = {
        "distillrs": lambda: select.facility_location(few, FACILITIES),
        "torch": lambda: torch_facility_location(few, FACILITIES),
    }
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
    compare("facility_location", contenders, same)
    start = torch.arange(MEDOIDS)
    found = select.k_medoids(few, MEDOIDS, start=start)
    contenders = {"distillrs": lambda: select.k_medoids(few, MEDOIDS, start=start)}
    same = {}
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
    compare("k_medoids", contenders, same)
    measure.write("select_picks", results)


if __name__ == "__main__":
    main()
