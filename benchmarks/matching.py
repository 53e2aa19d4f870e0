"""Distribution matching: the published loop written down plainly against `Matcher`, and adapters against copies.

Usage::

    python benchmarks/matching.py [--rounds N] [--rows N] [--width N]

A round is five steps of DMD2's loop at a ratio of 5:1: one update of the generator and five of the critic, with their
optimisers, two threads on both sides. The peer draws from torch's generator, freezes the critic in the generator's turn
and fits it on the sample that is there, as the authors' code does. The ideal count of forward units (a forward pass 1,
a backward pass 2) is 5 for the generator's update without guidance and 3 or 4 for the critic's.

Memory is counted as bytes of parameters, gradients and Adam's moments of a frozen teacher, a student and a critic: once
as three networks, once as one frozen base with two adapters; and as the peak of a process of its own for each.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable

import measure
import torch
from torch import Tensor, nn

from distillrs import _core
from distillrs.diffusion import (
    Batch,
    Critic,
    Jump,
    LowRank,
    Match,
    Matcher,
    MeanAbsolute,
    Network,
    SharedBase,
    StateMap,
    Teacher,
)
from distillrs.frozen import Frozen
from distillrs.schedule import RectifiedFlow

STEPS = 5


class Perceptron(nn.Module):
    """Four layers on the state and its time; predicts the velocity."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        sizes = [features + 1, width, width, width]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return self.layers(torch.cat([x, t[:, None]], 1))


def optimisers(groups: dict[str, list[nn.Parameter]]) -> dict[str, torch.optim.Optimizer]:
    return {turn: torch.optim.AdamW(group, lr=1e-4) for turn, group in groups.items()}


def plain(student: nn.Module, teacher: nn.Module, fake: nn.Module, rows: int, features: int) -> Callable[[], None]:
    """The loop as it is published: generator first, critic on its sample."""
    adam = optimisers({"generator": list(student.parameters()), "critic": list(fake.parameters())})

    def clean(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        return x - t[:, None] * network(x, t)

    def noised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, noise = torch.rand(len(x)) * 0.96 + 0.02, torch.randn_like(x)
        return (1 - t[:, None]) * x + t[:, None] * noise, t, noise

    def run() -> None:
        for index in range(STEPS):
            z, one = torch.randn(rows, features), torch.ones(rows)
            moves = index % STEPS == 0
            with torch.set_grad_enabled(moves):
                x = clean(student, z, one)
            if moves:
                fake.requires_grad_(False)
                with torch.no_grad():
                    x_t, t, _ = noised(x)
                    real = clean(teacher, x_t, t)
                    grad = (clean(fake, x_t, t) - real) / (x - real).abs().mean(1, keepdim=True)
                    grad = torch.nan_to_num(grad)
                loss = 0.5 * nn.functional.mse_loss(x, (x - grad).detach())
                adam["generator"].zero_grad()
                loss.backward()
                adam["generator"].step()
                fake.requires_grad_(True)
            x = x.detach()
            x_t, t, noise = noised(x)
            loss = (fake(x_t, t) - (noise - x)).square().mean()
            adam["critic"].zero_grad()
            loss.backward()
            adam["critic"].step()

    return run


def matched(student: nn.Module, teacher: nn.Module, fake: nn.Module, rows: int, features: int) -> Callable[[], None]:
    matcher = build(student, teacher, fake, features)
    adam = optimisers(matcher.parameter_groups())
    batch, count = Batch(size=rows), itertools.count()

    def run() -> None:
        for _ in range(STEPS):
            step = next(count)
            for turn in matcher.turns(step):
                loss = matcher(batch, step, turn=turn)
                adam[turn].zero_grad()
                loss.total.backward()
                adam[turn].step()

    return run


def build(student: nn.Module, teacher: nn.Module, fake: nn.Module, features: int) -> Matcher:
    return Matcher(
        StateMap(Network(student, times="t"), RectifiedFlow(), Jump("velocity")),
        real=Teacher(Network(teacher, times="t"), "velocity"),
        critic=Critic(Network(fake, times="t"), "velocity"),
        terms=[Match(weights=MeanAbsolute(), mask_non_finite=True)],
        ratio=STEPS,
        shape=(features,),
    )


def roles(kind: str, features: int, width: int, rank: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Student, teacher and critic: three networks, or views of one."""
    torch.manual_seed(0)
    network = Perceptron(features, width)
    if kind == "copies":
        student, fake = copy.deepcopy(network), copy.deepcopy(network)
        return student, Frozen(network), fake
    base = SharedBase(network, {"student": LowRank(rank), "critic": LowRank(rank)})
    return base.view("student"), base.view(None), base.view("critic")


def held(kind: str, rows: int, features: int, width: int, rank: int) -> dict[str, int]:
    """Bytes of tensors after a round of updates, and the process's peak."""
    student, teacher, fake = roles(kind, features, width, rank)
    matched(student, teacher, fake, rows, features)()
    inner = teacher.module if isinstance(teacher, Frozen) else teacher
    own = {id(value): value for part in (student, inner, fake) for value in part.parameters()}.values()
    trained = [value for value in own if value.requires_grad]
    # A gradient and Adam's two moments for each trained parameter.
    tensors = sum(value.nbytes for value in own) + 3 * sum(value.nbytes for value in trained)
    return {"tensors": tensors, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--memory", choices=["copies", "adapters", "nothing"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    features, rank, wide = 64, 16, 2048
    _core.set_threads(2)
    torch.set_num_threads(2)
    if arguments.memory == "nothing":
        print(json.dumps({"tensors": 0, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return
    if arguments.memory:
        print(json.dumps(held(arguments.memory, 64, features, wide, rank)))
        return
    contenders = {
        name: make(*roles("copies", features, arguments.width, rank), arguments.rows, features)
        for name, make in (("plain", plain), ("matcher", matched))
    }
    seconds = measure.medians(measure.alternate(contenders, rounds=arguments.rounds, warm_up=3))
    ratio = seconds["matcher"] / seconds["plain"]
    for name, value in seconds.items():
        print(f"{name:10} {value * 1e3:8.2f} ms for one update of the generator and {STEPS} of the critic")
    print(f"{'':10} {ratio:8.2f} of plain")
    memory = {}
    for kind in ("nothing", "copies", "adapters"):
        command = [sys.executable, __file__, "--memory", kind]
        memory[kind] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for kind in ("copies", "adapters"):
        memory[kind]["peak_above_import"] = memory[kind]["peak"] - memory["nothing"]["peak"]
        print(f"{kind:10} {memory[kind]['tensors'] / 2**20:8.1f} MiB of tensors")
        print(f"{'':10} {memory[kind]['peak_above_import'] / 2**20:8.1f} MiB above the import at the peak")
    measure.write(
        "matching",
        {
            "rows": arguments.rows,
            "width": arguments.width,
            "seconds": seconds,
            "times_plain": ratio,
            "memory_width": wide,
            "rank": rank,
            "memory": {kind: memory[kind] for kind in ("copies", "adapters")},
        },
    )


if __name__ == "__main__":
    main()
