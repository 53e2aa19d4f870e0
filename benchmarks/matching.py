"""Distribution matching: a published loop written plainly against `Matcher`, adapters against copies, recipes' updates.

Usage::

    python benchmarks/matching.py [--rounds N]

A round is five steps of DMD2's loop at a ratio of 5:1: one update of the generator and five of the critic, with their
optimisers, two threads on both sides, at two sizes of the network and its batch. The peer draws from torch's generator,
freezes the critic in the generator's turn and fits it on the sample that is there, as the authors' code does. The ideal
count of forward units (a forward pass 1, a backward pass 2) is 5 for the generator's update without guidance and 3 or 4
for the critic's.

An update of a recipe is draw, rollout, loss and backward pass of one turn and one batch, without an optimiser, beside
plain flow matching of the same network. The ideal is in forward units over the 3 of flow matching; a backward pass that
is differentiated to the inputs alone counts 1. The number of forward passes is the one that the objective counts. The
critic's turns make a sample of their own, as most do at a ratio above 1.

Memory is counted as bytes of parameters, gradients and Adam's moments of a frozen teacher, a student and a critic: once
as three networks, once as one frozen base with two adapters; and as the peak of a process of its own for each.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Callable

import measure
import torch
from torch import Tensor, nn

from distillrs import _core, recipes
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
SIZES = ((256, 512), (1024, 1024))
"""Rows and width; recipes are timed at the first."""

UNITS = {
    "dmd2": {"generator": (3, 2), "critic": (2, 2)},
    "dmd2, discriminator": {"generator": (4, 3), "critic": (4, 6)},
    "tdm, four steps": {"generator": (6, 2), "critic": (5, 2)},
    "swiftbrush": {"generator": (3, 2), "critic": (2, 2)},
    "swiftbrush, adapter": {"generator": (3, 2), "critic": (2, 2)},
    "sid": {"generator": (3, 4), "critic": (2, 2)},
    "uni_instruct": {"generator": (4, 5), "critic": (4, 6)},
}
"""Forward passes of a turn, and the units of its backward passes: 2 for each network that is trained on, 1 for each
that passes a gradient on to its input."""


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


def loop(rows: int, features: int, width: int, rounds: int) -> dict[str, float]:
    """Seconds of a round, written plainly and by `Matcher`."""
    contenders = {
        name: make(*roles("copies", features, width, 0), rows, features)
        for name, make in (("plain", plain), ("matcher", matched))
    }
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=3))
    for name, value in seconds.items():
        print(f"{name:10} {value * 1e3:8.2f} ms for one update of the generator and {STEPS} of the critic")
    ratio = seconds["matcher"] / seconds["plain"]
    print(f"{'':10} {ratio:8.2f} of plain, {rows} rows, width {width}")
    return seconds | {"times_plain": ratio}


def flow_matching(network: nn.Module, x0: Tensor) -> Tensor:
    t, noise = torch.rand(len(x0)), torch.randn_like(x0)
    x = (1 - t[:, None]) * x0 + t[:, None] * noise
    return (network(x, t) - (noise - x0)).square().mean()


def built(name: str, features: int, width: int, rank: int) -> Matcher:
    """A recipe on copies of one network, or on a critic that is an adapter of the teacher."""
    student, teacher, fake = roles("copies", features, width, rank)
    shared = {"path": RectifiedFlow(), "kind": "velocity", "shape": (features,)}
    head, last = nn.Linear(width, 1), "layers.5"
    if name == "dmd2":
        return recipes.dmd2(student, teacher, fake, **shared)
    if name == "dmd2, discriminator":
        return recipes.dmd2(student, teacher, fake, head=head, features=last, **shared)
    if name == "tdm, four steps":
        return recipes.tdm(student, teacher, fake, guidance=None, **shared)
    if name == "sid":
        return recipes.sid(student, teacher, fake, **shared)
    if name == "uni_instruct":
        return recipes.uni_instruct(student, teacher, fake, head, last, **shared)
    if name == "swiftbrush, adapter":
        base = SharedBase(teacher.module, {"critic": LowRank(rank)})
        teacher, fake = base.view(None), base.view("critic")
    return recipes.swiftbrush(student, teacher, fake, guidance=None, **shared)


def turns(objective: Matcher, batch: Batch, passes: dict[str, tuple[int, int]]) -> dict[str, Callable[[], None]]:
    """An update of each turn; the passes that it counts must be those that are expected of it."""
    count = itertools.count(1)
    own = [value for group in objective.parameter_groups().values() for value in group]

    def of(turn: str) -> Callable[[], None]:
        def run() -> None:
            # Never twice the same step: its sample would be there already.
            loss = objective(batch, next(count), turn=turn)
            for value in own:
                value.grad = None
            loss.total.backward()

        return run

    for turn, (forward, _) in passes.items():
        found = round(float(objective(batch, next(count), turn=turn).terms["evaluations"]))
        if found != forward:
            raise RuntimeError(f"the {turn}'s turn takes {found} forward passes, not {forward}")
    return {turn: of(turn) for turn in passes}


def updates(rows: int, features: int, width: int, rank: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of an update of each recipe's turns, over those of plain flow matching, and the ideal."""
    torch.manual_seed(0)
    x0, network = torch.randn(rows, features), Perceptron(features, width)

    def plainly() -> None:
        network.zero_grad()
        flow_matching(network, x0).backward()

    contenders: dict[str, Callable[[], None]] = {"flow matching, plain": plainly}
    ideals = {}
    for name, passes in UNITS.items():
        for turn, work in turns(built(name, features, width, rank), Batch(x0), passes).items():
            contenders[f"{name}, {turn}"] = work
            ideals[f"{name}, {turn}"] = sum(passes[turn]) / 3
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=3))
    peer = seconds.pop("flow matching, plain")
    print(f"{'flow matching, plain':32} {peer * 1e3:8.2f} ms")
    found = {"flow matching, plain": {"seconds": peer}}
    for name, value in seconds.items():
        found[name] = {"seconds": value, "times_flow_matching": value / peer, "ideal": ideals[name]}
        print(f"{name:32} {value * 1e3:8.2f} ms {value / peer:6.2f} of flow matching, {ideals[name]:5.2f} ideal")
    return found


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
    return {"tensors": tensors, "peak": measure.peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--memory", choices=["copies", "adapters", "nothing"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    features, rank, wide = 64, 16, 2048
    _core.set_threads(2)
    torch.set_num_threads(2)
    if arguments.memory == "nothing":
        print(json.dumps({"tensors": 0, "peak": measure.peak_bytes()}))
        return
    if arguments.memory:
        print(json.dumps(held(arguments.memory, 64, features, wide, rank)))
        return
    loops = {f"{rows} x {width}": loop(rows, features, width, arguments.rounds) for rows, width in SIZES}
    every = updates(SIZES[0][0], features, SIZES[0][1], rank, arguments.rounds)
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
            "loop": loops,
            "rows": SIZES[0][0],
            "width": SIZES[0][1],
            "updates": every,
            "memory_width": wide,
            "rank": rank,
            "memory": {kind: memory[kind] for kind in ("copies", "adapters")},
        },
    )


if __name__ == "__main__":
    main()
