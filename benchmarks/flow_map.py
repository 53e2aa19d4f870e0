"""Updates of flow-map objectives against the same mathematics written down plainly, and against flow matching.

Usage::

    python benchmarks/flow_map.py [--rounds N]

Two sizes: 256 rows of a network 512 wide, and 1024 rows of one 1024 wide; what does not grow with the network shows
between them. An update is draw, loss and backward pass of one batch; the peers draw their noise and times from torch's
generator. Both sides use the same perceptron and two threads. The ratio to flow matching stands beside its ideal count
of forward units (a forward pass 1, a backward pass 2, a forward derivative 1): 3 for flow matching, 4 for the others.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import measure
import torch
from torch import Tensor, nn

from distillrs import _core, recipes
from distillrs.diffusion import Batch, Data, Diagonal, FlowMap, Network
from distillrs.schedule import RectifiedFlow, Triangle
from distillrs.step import Step

SIZES = ((256, 512), (1024, 1024))
IDEAL = {"flow matching": 1.0, "mean flow": 4 / 3, "consistency training": 4 / 3}


class Perceptron(nn.Module):
    """Four layers on the state and its times."""

    def __init__(self, times: int, features: int, width: int) -> None:
        super().__init__()
        sizes = [features + times, width, width, width]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, x: Tensor, *times: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return self.layers(torch.cat([x, torch.stack(times, 1)], 1))


def flow_matching(network: nn.Module, x0: Tensor) -> Tensor:
    t, noise = torch.rand(len(x0)), torch.randn_like(x0)
    x = (1 - t[:, None]) * x0 + t[:, None] * noise
    return (network(x, t, torch.zeros_like(t)) - (noise - x0)).square().sum(1).mean()


def mean_flow(network: nn.Module, x0: Tensor) -> Tensor:
    both = torch.sigmoid(torch.randn(2, len(x0)) - 0.4)
    t, r = both.amax(0), both.amin(0)
    r = torch.where(torch.rand(len(x0)) < 0.75, t, r)
    noise = torch.randn_like(x0)
    z, velocity = (1 - t[:, None]) * x0 + t[:, None] * noise, noise - x0

    def average(z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return network(z, t, t - r)

    output, slope = torch.func.jvp(average, (z, t, r), (velocity, torch.ones_like(t), torch.zeros_like(r)))
    error = (output - (velocity - (t - r)[:, None] * slope).detach()).square().sum(1)
    return (error / (error.detach() + 1e-3)).mean()


def consistency(network: nn.Module, x0: Tensor) -> Tensor:
    levels = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 40) ** 7
    place = torch.randint(0, 39, (len(x0),))
    sigma, nearer = levels[place, None], levels[place + 1, None]

    def f(x: Tensor, sigma: Tensor) -> Tensor:
        skip, root = 0.25 / ((sigma - 0.002) ** 2 + 0.25), (sigma**2 + 0.25).sqrt()
        return skip * x + 0.5 * (sigma - 0.002) / root * network(x / root, sigma[:, 0].log() / 4)

    noise = torch.randn_like(x0)
    with torch.no_grad():
        target = f(x0 + nearer * noise, nearer)
    return (f(x0 + sigma * noise, sigma) - target).square().mean()


def update(loss: Callable[[], Tensor], network: nn.Module) -> Callable[[], None]:
    def run() -> None:
        network.zero_grad()
        loss().backward()

    return run


def measured(rows: int, width: int, rounds: int) -> dict[str, Any]:
    """Seconds of every update at one size, and their ratios."""
    torch.manual_seed(0)
    x0 = torch.randn(rows, 64)
    one, two = (Perceptron(times, 64, width) for times in (1, 2))
    step = Step(500, total=1000)
    matching = FlowMap(
        Network(two, times="t_gap"), path=RectifiedFlow(), residual=Diagonal(Data()), pairs=Triangle(1.0)
    )
    mean = recipes.mean_flow(two)
    training = recipes.consistency_training(one, start_levels=40, end_levels=40)
    contenders = {
        "flow matching, plain": update(lambda: flow_matching(two, x0), two),
        "flow matching": update(lambda: matching(Batch(x0), step).total, two),
        "mean flow, plain": update(lambda: mean_flow(two, x0), two),
        "mean flow": update(lambda: mean(Batch(x0), step).total, two),
        "consistency training, plain": update(lambda: consistency(one, x0), one),
        "consistency training": update(lambda: training(Batch(x0), step).total, one),
    }
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=5))
    ratios = {name: seconds[name] / seconds[f"{name}, plain"] for name in IDEAL}
    to_matching = {name: seconds[name] / seconds["flow matching, plain"] for name in IDEAL}
    print(f"{rows} rows, width {width}")
    for name, value in seconds.items():
        print(f"  {name:28} {value * 1e3:8.2f} ms")
    for name in IDEAL:
        print(f"  {name:28} {ratios[name]:5.2f} of plain   {to_matching[name]:5.2f} of plain flow matching")
    return {
        "rows": rows,
        "width": width,
        "seconds": seconds,
        "times_plain": ratios,
        "milliseconds_more": {name: 1e3 * (seconds[name] - seconds[f"{name}, plain"]) for name in IDEAL},
        "times_flow_matching": to_matching,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    _core.set_threads(2)
    torch.set_num_threads(2)
    sizes = [measured(rows, width, arguments.rounds) for rows, width in SIZES]
    measure.write("flow_map", {"sizes": sizes, "ideal_times_flow_matching": IDEAL})


if __name__ == "__main__":
    main()
