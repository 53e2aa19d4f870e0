"""Chosen grids against hand-set ones on the exact flow of the digits, and the time that choosing takes.

Usage::

    python benchmarks/optimise_grid.py [--seeds N]

The teacher is the exact velocity of scikit-learn's 1,797 digits, standardised, with a Gaussian bandwidth of 0.3, on a
rectified flow; the reference is Heun's method in 40 steps. Grids are chosen on 64 noises and judged on 256 others, by
the root mean square between the last states from the same noise. What any grid could
reach is estimated by a simplex search of the times on the 256 themselves, from the refined grid and from shifted ones:
no choice that anybody could make, but a bound. Choosing is timed on random trajectories of 200 times and 49,152
features, against the same costs computed pair by pair.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import measure
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from distillrs import _core, random
from distillrs.schedule import (
    Grid,
    RectifiedFlow,
    Trajectories,
    Trig,
    integrate,
    karras,
    optimise_grid,
    shifted,
    spaced,
)  # fmt: skip

BANDWIDTH, PATH = 0.3, RectifiedFlow()
METHODS = ("local", "propagated", "refined")
BOUND = "searched on the held-out noise"
CHOSEN = (*METHODS, BOUND)


def digits() -> Tensor:
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().data)
    return (images - images.mean()) / images.std()


def velocity(data: Tensor):
    lengths = data.square().sum(1)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = float(PATH.alpha(t)), float(PATH.sigma(t))
        variance = alpha**2 * BANDWIDTH**2 + sigma**2
        # |x|^2 is the same for all data and leaves the softmax alone.
        scores = (alpha * (x @ data.T) - alpha**2 / 2 * lengths) / variance
        mean = scores.softmax(1) @ data
        share = alpha * BANDWIDTH**2 / variance
        return PATH.convert(mean + share * (x - alpha * mean), x, t, kind="x0", to="velocity")

    return predict


def hand_set(steps: int) -> dict[str, Grid]:
    return {
        "uniform": spaced(steps, PATH),
        "karras": Grid([1.0, *karras(steps, 0.02, 80.0).on(PATH).times[1:].tolist()], PATH),
        "angle": spaced(steps, Trig()).on(PATH),
        **{f"shift {shift}": shifted(steps, shift) for shift in (1.5, 2.0, 3.0, 5.0)},
    }


def quality(seeds: int) -> dict[str, object]:
    predict = velocity(digits())
    fine = spaced(40, PATH)
    rows: dict[str, object] = {}
    for steps in (4, 8):
        table: dict[str, list[float]] = {}
        for seed in range(seeds):
            step = dr_step(seed)
            noise = random.normal(320, 64, step=step, name="noise", dtype=torch.float64)
            trajectories = Trajectories.record(fine, noise[:64], predict)
            ends = integrate(fine, noise[64:], predict, solver="heun")
            grids = hand_set(steps)
            for method in METHODS:
                grids[method] = optimise_grid(trajectories, PATH, (steps,), method, predict)[steps].grid

            def error(grid: Grid, noise: Tensor = noise[64:], ends: Tensor = ends) -> float:
                return float((integrate(grid, noise, predict) - ends).square().mean().sqrt())

            for name, grid in grids.items():
                table.setdefault(name, []).append(error(grid))
            starts = [grids["refined"], shifted(steps, 1.5), shifted(steps, 3.0)]
            table.setdefault(BOUND, []).append(min(searched(start, error) for start in starts))
        means = {name: statistics.mean(errors) for name, errors in table.items()}
        best = min(value for name, value in means.items() if name not in CHOSEN)
        for name, value in means.items():
            print(f"{steps} steps  {name:12} paired RMSE {value:.3f}  {value / best:.2f} of the best hand-set grid")
        rows[f"steps_{steps}"] = {
            "paired_rmse": table,
            "refined_of_best_hand_set": means["refined"] / best,
            "any_grid_of_best_hand_set": means[BOUND] / best,
        }
    return rows


def searched(start: Grid, error: Callable[[Grid], float]) -> float:
    """The least error that Nelder and Mead's simplex finds over all times of as many steps."""

    def grid(logits: np.ndarray) -> Grid:
        gaps = torch.from_numpy(np.append(logits, 0.0)).softmax(0)
        return Grid([1.0, *(1 - gaps.cumsum(0)[:-1]).tolist(), 0.0], PATH)

    gaps = (-torch.diff(start.times)).log()
    found = minimize(
        lambda logits: error(grid(logits)),
        (gaps - gaps[-1])[:-1].numpy(),
        method="Nelder-Mead",
        options={"maxfev": 400, "adaptive": True},
    )
    return float(found.fun)


def dr_step(seed: int):
    from distillrs import Step

    return Step(0, seed=seed)


def pairwise(trajectories: Trajectories) -> Tensor:
    """The local costs as a loop over pairs."""
    times, states, velocities = trajectories.grid.times, trajectories.states, trajectories.velocities
    costs = torch.zeros(len(states), len(states), dtype=torch.float64)
    for i in range(len(states) - 1):
        for j in range(i + 1, len(states)):
            costs[i, j] = (states[i] + float(times[j] - times[i]) * velocities[i] - states[j]).square().sum()
    return costs


def speed(rounds: int) -> dict[str, object]:
    torch.set_num_threads(1)
    _core.set_threads(1)
    grid = spaced(199, PATH)
    states = random.normal(200, 16, 3072, step=0, name="states").cumsum(0)
    velocities = random.normal(199, 16, 3072, step=0, name="velocities")
    trajectories = Trajectories(grid, states, velocities)
    seconds = measure.medians(
        measure.alternate(
            {
                "local, all numbers of steps to 32": lambda: optimise_grid(trajectories, steps=range(1, 33)),
                "pairs in a loop": lambda: pairwise(trajectories),
            },
            rounds=rounds,
            warm_up=1,
        )
    )
    ours, loop = seconds.values()
    print(f"local {ours * 1e3:.0f} ms, pairs in a loop {loop * 1e3:.0f} ms, ratio {loop / ours:.1f}")
    return {"seconds": seconds, "ratio": loop / ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = {"speed": speed(arguments.rounds), "quality": quality(arguments.seeds)}
    measure.write("optimise_grid", results)


if __name__ == "__main__":
    main()
