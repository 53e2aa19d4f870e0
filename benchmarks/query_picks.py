"""PCoreSet's queries against a recomputation of all distances for each query.

Usage::

    python benchmarks/query_picks.py [--rounds N] [--threads N]

20,000 predictions over 100 classes, 100 of them labelled, 300 queries. Predictions are those of a mixture with 100
centres (k-means) on 64 principal components of MNIST where `DISTILLRS_DATA` has it, else of as many normal mixtures;
and softmaxes of normal logits. The peers measure the distances of all points to all centres anew for
each query: in one piece, and, as the authors' code does, in blocks of 1,000 points. A third one keeps the distances
from query to query and needs one pass over the points for each. All use the same number of threads.
"""

from __future__ import annotations

import argparse
from typing import Any

import measure
import torch
from select_points import points
from torch import Tensor

from distillrs import _core, random, recipes, select

POINTS, CLASSES, QUERIES, BLOCK = 20_000, 100, 300, 1_000


def predictions() -> dict[str, Tensor]:
    """float32 `[POINTS, CLASSES]`, by name."""
    source, array = points(POINTS)
    data = torch.from_numpy(array)
    clusters = select.k_means(data, CLASSES, iterations=20, seed=0)
    squares = torch.cdist(data, clusters.centres).square()
    width = squares.min(1).values.mean()
    found = {f"{source}, mixture": (-4 * squares / width).softmax(1)}
    for scale in (3.0, 10.0):
        found[f"normal logits times {scale:g}"] = (scale * random.normal(POINTS, CLASSES, step=0, name="p")).softmax(1)
    return found


def recomputed(p: Tensor, labelled: Tensor, k: int, block: int | None = None) -> list[int]:
    """All distances to all centres, once more for each query; picked points are centres, at distance 0."""
    centres = labelled.tolist()
    for _ in range(k):
        chosen = p[centres]
        near = torch.cat([torch.cdist(part, chosen).min(1).values for part in p.split(block or len(p))])
        near[centres] = -1.0
        centres.append(int(near.argmax()))
    return centres[len(labelled) :]


def kept(p: Tensor, labelled: Tensor, k: int) -> list[int]:
    """The distance to the nearest centre is kept; one matrix-vector product for each query."""
    lengths = p.square().sum(1)
    near = torch.cdist(p, p[labelled]).min(1).values.square()
    near[labelled] = -1.0
    ids: list[int] = []
    for _ in range(k):
        pick = int(near.argmax())
        ids.append(pick)
        near = torch.minimum(near, lengths - 2 * (p @ p[pick]) + lengths[pick])
        near[pick] = -1.0
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    _core.set_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    labelled = random.choice(POINTS, CLASSES, step=0, name="labelled").sort().values
    results: dict[str, Any] = {"shape": [POINTS, CLASSES], "queries": QUERIES, "threads": arguments.threads}
    for name, p in predictions().items():
        ids = recipes.pcoreset_queries(p, labelled, QUERIES).ids.tolist()
        contenders = {
            "distillrs": lambda p=p: recipes.pcoreset_queries(p, labelled, QUERIES),
            "recomputed": lambda p=p: recomputed(p, labelled, QUERIES),
            "recomputed in blocks": lambda p=p: recomputed(p, labelled, QUERIES, BLOCK),
            "kept": lambda p=p: kept(p, labelled, QUERIES),
        }
        seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds, warm_up=0))
        ratios = {peer: own / seconds["distillrs"] for peer, own in seconds.items() if peer != "distillrs"}
        # In float64, as rounding decides near ties among float32 distances.
        same = ids == recomputed(p.double(), labelled, QUERIES, BLOCK)
        results[name] = {"seconds": seconds, "ratios": ratios, "same_picks": same}
        cells = "  ".join(f"{peer} {own * 1e3:8.1f} ms" for peer, own in seconds.items())
        print(f"{name:24} {cells}  ratios {', '.join(f'{ratio:.1f}' for ratio in ratios.values())}  {same}", flush=True)
    measure.write("query_picks", results)


if __name__ == "__main__":
    main()
