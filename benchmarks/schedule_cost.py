"""What a plan, a grid, a ramp and a draw cost beside a training step.

Usage::

    python benchmarks/schedule_cost.py [--rounds N]

The step is the smallest of the beds: plain flow matching of 256 rows with a perceptron 512 wide, its forward and
backward pass and AdamW. All are called in turns, each from scratch at another step. One thread, then two.

A grid is made once in a run; a plan, a ramp's value and the times of a batch at every step. The goal is one of plans
and grids.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import measure
import torch
from flow_map import Perceptron, flow_matching

from distillrs import _core
from distillrs.schedule import (
    EDM,
    Constant,
    Doubling,
    LinearRamp,
    LogNormal,
    RolloutPlan,
    Triangle,
    WarmUp,
    karras,
    shifted,
)
from distillrs.step import Step

ROWS, FEATURES, WIDTH = 256, 64, 512
CHUNKS = 7
GOAL = 0.01


def training_step() -> Callable[[], None]:
    torch.manual_seed(0)
    x0, network = torch.randn(ROWS, FEATURES), Perceptron(2, FEATURES, WIDTH)
    adam = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def run() -> None:
        adam.zero_grad()
        flow_matching(network, x0).backward()
        adam.step()

    return run


def schedules() -> dict[str, Callable[[], object]]:
    """What is made."""
    grid, path, steps = shifted(4, 5.0), EDM(), itertools.count()

    def step() -> Step:
        return Step(next(steps), seed=0, total=10**6)

    triangle, lognormal = Triangle(0.75), LogNormal(-1.1, 2.0, path=path)
    ramp, warm_up, doubling = LinearRamp(0.0, 1.0), WarmUp(Constant(1.0), 1000), Doubling(10, 125_000, 1280)
    return {
        "grid, karras of 18": lambda: karras(18, path=path),
        "grid, shifted of 8": lambda: shifted(8, 3.0),
        "plan, trajectory of 4": lambda: RolloutPlan.trajectory(grid),
        "plan, simulated up to 4": lambda: RolloutPlan.simulated(grid, step=step()),
        f"plan, autoregressive up to 4, {CHUNKS} chunks": lambda: RolloutPlan.autoregressive(grid, CHUNKS, step=step()),
        "ramp, linear": lambda: ramp(step()),
        "ramp, warm-up": lambda: warm_up(step()),
        "ramp, doubling": lambda: doubling(step()),
        f"draw of {ROWS}, lognormal": lambda: lognormal.draw(ROWS, step=step()),
        f"draw of {ROWS}, triangle (two times)": lambda: triangle.draw(ROWS, step=step()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=201)
    arguments = parser.parse_args()
    results: dict[str, object] = {"rows": ROWS, "width": WIDTH, "goal": GOAL}
    for threads in (1, 2):
        _core.set_threads(threads)
        torch.set_num_threads(threads)
        contenders = {"training step": training_step()} | schedules()
        seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds, warm_up=5))
        peer = seconds.pop("training step")
        shares = {name: value / peer for name, value in seconds.items()}
        results[f"threads_{threads}"] = {"training_step": peer, "seconds": seconds, "share_of_a_training_step": shares}
        print(f"{threads} threads, a training step takes {peer * 1e3:.2f} ms")
        for name, value in seconds.items():
            missed = name.startswith(("grid", "plan")) and shares[name] >= GOAL
            verdict = f"   not under {GOAL:.0%}" if missed else ""
            print(f"  {name:40} {value * 1e6:8.1f} us  {shares[name]:8.3%} of it{verdict}")
    measure.write("schedule_cost", results)


if __name__ == "__main__":
    main()
