"""Draws of time laws against torch's normal generator.

Usage::

    python benchmarks/time_laws.py [--rounds N] [--draws N]

Times are float64, so the peer that does the same work is `torch.randn` in float64; the one in float32 is there for
scale. Both sides use the same number of threads.
"""

from __future__ import annotations

import argparse

import measure
import torch

from distillrs import _core
from distillrs.schedule import LogitNormal, LogNormal, Segments, Shifted, Stratified, Triangle, Uniform, UShaped

LAWS = {
    "uniform": Uniform(),
    "lognormal": LogNormal(-1.1, 2.0),
    "lognormal, tails cut": LogNormal(-1.1, 2.0, tails="cut"),
    "logit-normal": LogitNormal(),
    "shifted logit-normal": Shifted(LogitNormal(), 3.0),
    "U-shaped": UShaped(),
    "stratified": Stratified(Uniform(), 1024),
    "triangle (two times)": Triangle(0.75),
    "segments (two times)": Segments(4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--draws", type=int, default=10**6)
    arguments = parser.parse_args()
    results: dict[str, object] = {"draws": arguments.draws}
    for threads in (1, 2):
        _core.set_threads(threads)
        torch.set_num_threads(threads)
        contenders = {
            "torch.randn float64": lambda: torch.randn(arguments.draws, dtype=torch.float64),
            "torch.randn float32": lambda: torch.randn(arguments.draws),
        }
        for name, law in LAWS.items():
            contenders[name] = lambda law=law: law.draw(arguments.draws, step=0)
        seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds))
        peer = seconds["torch.randn float64"]
        results[f"threads_{threads}"] = {
            "seconds": seconds,
            "times_torch_randn_float64": {name: seconds[name] / peer for name in LAWS},
        }
        for name, value in seconds.items():
            print(f"{threads} threads  {name:24} {value * 1e3:8.1f} ms  {value / peer:5.2f} of torch.randn float64")
    measure.write("time_laws", results)


if __name__ == "__main__":
    main()
