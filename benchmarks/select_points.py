"""k-means and nearest neighbours against scikit-learn on MNIST-sized points.

Usage::

    python benchmarks/select_points.py [--data mnist|cifar10] [--rounds N] [--points N]

Points are 64 principal components of MNIST where `DISTILLRS_DATA` has it, else normal mixtures of the same size; or of
CIFAR-10's training images, which go into a file of their own. Both sides start from the same centres, run 20 rounds of
Lloyd and use the same number of threads. The limit of k-means is that of plain rounds: the multiply-adds of all
distances at the faster of two rates, torch's of a square matrix product and the core's of a search for the nearest of
all points.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import measure
import numpy as np
import torch

from distillrs import _core, random, select
from distillrs.evaluate.data import load

COLUMNS, CLUSTERS, ROUNDS, QUERIES, NEIGHBOURS = 64, 100, 20, 2000, 10


def points(count: int, data: str = "mnist") -> tuple[str, np.ndarray]:
    """Where the points come from, and the points: float32 `[count, 64]`, fewer where there are fewer."""
    if data == "cifar10":
        return data, components(load(data, duplicates="drop", validation_share=0.01).x_train[:count])
    path = Path(os.environ.get("DISTILLRS_DATA", "")) / "mnist.npz"
    if path.is_file():
        return data, components(torch.from_numpy(np.load(path)["x_train"][:count]) / 255)
    centres = random.normal(200, COLUMNS, step=0, name="centres")
    owners = random.integers(count, 200, step=0, name="owners")
    return "mixture", (centres[owners] + random.normal(count, COLUMNS, step=0, name="points")).numpy()


def components(images: torch.Tensor) -> np.ndarray:
    """Their leading principal components, float32 `[images, 64]`."""
    flat = images.float().flatten(1)
    centred = flat - flat.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    return (centred @ directions[:, -COLUMNS:]).contiguous().numpy()


def result_name(script: str, data: str) -> str:
    """The file of figures; those of other data than MNIST stand in one of their own."""
    return script if data == "mnist" else f"{script}_{data}"


def multiply_adds_per_second(data: np.ndarray) -> dict[str, float]:
    """Rates of products on the threads that are set: torch's, and those of the core's kernel."""
    work = {"search": lambda: select.nearest(data[:QUERIES], data, 1)}
    seconds = measure.medians(measure.alternate(work, rounds=5))["search"]
    return {
        "torch, square product": measure.multiply_adds_per_second(),
        "distillrs, nearest of all points": len(data[:QUERIES]) * data.size / seconds,
    }


def main() -> None:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--points", type=int, default=60_000)
    parser.add_argument("--data", choices=["mnist", "cifar10"], default="mnist")
    arguments = parser.parse_args()
    source, data = points(arguments.points, arguments.data)
    start = data[random.choice(len(data), CLUSTERS, step=0, name="start").numpy()]
    peer = KMeans(CLUSTERS, init=start, n_init=1, max_iter=ROUNDS, tol=0.0, algorithm="lloyd")
    search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(data)
    queries = data[:QUERIES] + np.float32(0.01)
    results: dict[str, object] = {"points": source, "shape": list(data.shape)}
    warnings.simplefilter("ignore", ConvergenceWarning)
    for threads in (1, 2):
        _core.set_threads(threads)
        torch.set_num_threads(threads)
        products = multiply_adds_per_second(data)
        with threadpool_limits(threads):
            added = {
                "distillrs": measure.added_bytes(
                    lambda: select.k_means(data, CLUSTERS, start=start, iterations=ROUNDS)
                ),
                "scikit-learn": measure.added_bytes(lambda: peer.fit(data)),
            }
            parts = {
                str(count): (lambda count=count: select.k_means(data[:count], CLUSTERS, start=start, iterations=ROUNDS))
                for count in (len(data) // 4, len(data) // 2)
            }
            fewer = measure.medians(measure.alternate(parts, rounds=3, warm_up=1))
            ours = select.k_means(data, CLUSTERS, start=start, iterations=ROUNDS)
            theirs = peer.fit(data)
            clustering = measure.medians(
                measure.alternate(
                    {
                        "distillrs": lambda: select.k_means(data, CLUSTERS, start=start, iterations=ROUNDS),
                        "scikit-learn": lambda: peer.fit(data),
                    },
                    rounds=arguments.rounds,
                    warm_up=1,
                )
            )
            neighbours = measure.medians(
                measure.alternate(
                    {
                        "distillrs": lambda: select.nearest(queries, data, NEIGHBOURS),
                        "scikit-learn": lambda: search.kneighbors(queries),
                    },
                    rounds=arguments.rounds,
                    warm_up=1,
                )
            )
        results[f"threads_{threads}"] = {
            "k_means_seconds": clustering,
            "k_means_ratio": clustering["scikit-learn"] / clustering["distillrs"],
            "k_means_added_bytes": added,
            "k_means_seconds_of_fewer_points": fewer,
            "multiply_adds_per_second": products,
            "k_means_limit_seconds": (ROUNDS + 1) * CLUSTERS * data.size / max(products.values()),
            "inertia_difference": abs(ours.inertia - theirs.inertia_) / theirs.inertia_,
            "nearest_seconds": neighbours,
            "nearest_ratio": neighbours["scikit-learn"] / neighbours["distillrs"],
        }
        for task, row in (("k-means", clustering), ("nearest", neighbours)):
            cells = "  ".join(f"{name} {seconds * 1e3:8.1f} ms" for name, seconds in row.items())
            print(f"{task:8} {threads} threads  {cells}  ratio {row['scikit-learn'] / row['distillrs']:.2f}")
        print(f"inertia differs by {abs(ours.inertia - theirs.inertia_) / theirs.inertia_:.1e} of itself")
    measure.write(result_name("select_points", arguments.data), results)


if __name__ == "__main__":
    main()
