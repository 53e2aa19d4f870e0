"""Updates of flow-map objectives against the same mathematics written down plainly, and against flow matching.

Usage::

    python benchmarks/flow_map.py [--rounds N]

Against plain peers at two sizes: 256 rows of a network 512 wide, and 1024 rows of one 1024 wide; what does not grow
with the network shows between them. An update is draw, loss and backward pass of one batch, without an optimiser; the
peers draw their noise and times from torch's generator. Both sides use the same perceptrons and two threads, and as
many forward passes and forward derivatives of them: they are counted before anything is timed.

Every recipe and every residual at the first size, beside plain flow matching. The ideal is a count of forward units
over the 3 of flow matching: a forward pass 1, a forward derivative 1 more, a backward pass 2, one through a forward
derivative 4. Of recipes that split a batch it is the mean over what they draw; the passes, too, are counted and must be
those.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import measure
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from distillrs import _core, recipes
from distillrs.diffusion import (
    JVP,
    Batch,
    Central,
    Data,
    Diagonal,
    Endpoint,
    Eulerian,
    FlowMap,
    Jump,
    Lagrangian,
    Matcher,
    Network,
    Semigroup,
    Solver,
    SquaredError,
    TangentNormalisation,
    Teacher,
    trig_scale,
)
from distillrs.frozen import Frozen
from distillrs.schedule import LinearRamp, LogNormal, RectifiedFlow, Segments, Triangle, Trig, spaced
from distillrs.step import Step

SIZES = ((256, 512), (1024, 1024))
FEATURES = 64
TOTAL = 1_000_000
# The middle of a run: warm-ups are over, and curricula stay where they are for longer than this takes.
STEPS = itertools.count(TOTAL // 2)

IDEAL = {
    "flow matching": 1.0,
    "mean flow": 4 / 3,
    "consistency training": 4 / 3,
    "consistency distillation": 2.0,
    "improved consistency training": 4 / 3,
    "continuous-time consistency": 5 / 3,
    "shortcut": 3.5 / 3,
}

UNITS = {
    "consistency_distillation": (4, 0, 2),
    "consistency_training": (2, 0, 2),
    "ict": (2, 0, 2),
    "mean_flow": (1, 1, 2),
    "mf_rae, mid-training": (1, 0, 2),
    "mf_rae, distil": (4, 0, 2),
    "mf_rae, tune": (3, 0, 2),
    "shortcut": (1.5, 0, 2),
    "progressive_distillation": (3, 0, 2),
    "flow_map_self_distillation, lagrangian": (1.25, 0.25, 2.5),
    "flow_map_self_distillation, eulerian": (1.5, 0.5, 2.5),
    "flow_map_self_distillation, midpoint": (1.5, 0, 2),
    "boot": (2.875, 0, 2),
    "rfpp": (1, 0, 2),
    "instaflow, reflow": (1, 0, 2),
    "instaflow, distil": (1, 0, 2),
    "guided_distillation, guidance": (3, 0, 2),
    "guided_distillation, halving": (3, 0, 2),
    "freeflow, generator": (5, 1, 4),
    "freeflow, critic": (2, 0, 2),
    "rcm of one level, generator": (5, 1, 4),
    "rcm of one level, critic": (2, 0, 2),
    "diagonal": (1, 0, 2),
    "eulerian, jvp": (2, 1, 2),
    "eulerian, central": (4, 0, 2),
    "eulerian, solver": (3, 0, 2),
    "lagrangian, jvp": (2, 1, 2),
    "semigroup": (3, 0, 2),
    "endpoint": (1, 0, 2),
}
"""Forward passes of an update, forward derivatives among them, and the units of its backward passes. The Eulerian
residual of the self-distillation has two directions, and the network's value with each. A score that corrects a map has
a pass of the map, of the teacher and of the critic to itself. With more levels than one rcm draws how many it calls."""


class Perceptron(nn.Module):
    """Four layers on the state, its times and the numbers that it is told."""

    def __init__(self, told: int, features: int, width: int) -> None:
        super().__init__()
        sizes = [features + told, width, width, width]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, x: Tensor, *times: Tensor, **condition: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return self.layers(torch.cat([x, torch.stack([*times, *condition.values()], 1)], 1))


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


def levels_of(count: int) -> Tensor:
    """EDM's, from noise."""
    return torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), count) ** 7


def consistent(network: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """A consistency model: the identity at .002."""
    skip, root = 0.25 / ((sigma - 0.002) ** 2 + 0.25), (sigma**2 + 0.25).sqrt()
    return skip * x + 0.5 * (sigma - 0.002) / root * network(x / root, sigma[:, 0].log() / 4)


def denoised(network: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """EDM's denoiser."""
    root = (sigma**2 + 0.25).sqrt()
    return 0.25 / root**2 * x + 0.5 * sigma / root * network(x / root, sigma[:, 0].log() / 4)


def consistency_training(network: nn.Module, x0: Tensor) -> Tensor:
    levels, place = levels_of(41), torch.randint(0, 40, (len(x0),))
    sigma, nearer = levels[place, None], levels[place + 1, None]
    noise = torch.randn_like(x0)
    with torch.no_grad():
        target = consistent(network, x0 + nearer * noise, nearer)
    return (consistent(network, x0 + sigma * noise, sigma) - target).square().mean()


def consistency_distillation(network: nn.Module, teacher: nn.Module, x0: Tensor) -> Tensor:
    levels, place = levels_of(18), torch.randint(0, 17, (len(x0),))
    sigma, nearer = levels[place, None], levels[place + 1, None]
    x = x0 + sigma * torch.randn_like(x0)
    with torch.no_grad():
        slope = (x - denoised(teacher, x, sigma)) / sigma
        there = x + (nearer - sigma) * slope
        second = (there - denoised(teacher, there, nearer)) / nearer
        target = consistent(network, x + (nearer - sigma) * (slope + second) / 2, nearer)
    return (consistent(network, x, sigma) - target).square().mean()


def improved_consistency_training(network: nn.Module, x0: Tensor) -> Tensor:
    # Eight stages of a run, from 10 levels to 1280; here the fifth.
    levels = levels_of(min(10 * 2 ** (TOTAL // 2 // (TOTAL // 8)), 1280) + 1)
    scores = torch.erf((levels.log() + 1.1) / (2**0.5 * 2.0))
    place = torch.multinomial(scores[:-1] - scores[1:], len(x0), replacement=True)
    sigma, nearer = levels[place, None], levels[place + 1, None]
    noise = torch.randn_like(x0)
    with torch.no_grad():
        target = consistent(network, x0 + nearer * noise, nearer)
    squares = (consistent(network, x0 + sigma * noise, sigma) - target).square().sum(1)
    c = 0.00054 * x0.shape[1] ** 0.5
    return (((squares + c * c).sqrt() - c) / (sigma - nearer)[:, 0]).mean()


def continuous_time_consistency(network: nn.Module, teacher: nn.Module, x0: Tensor) -> Tensor:
    angle = torch.atan((torch.randn(len(x0), 1) * 1.4 - 1.0).exp() / 0.5)
    cos, sin = angle.cos(), angle.sin()
    x = cos * x0 + sin * 0.5 * torch.randn_like(x0)
    with torch.no_grad():
        velocity = 0.5 * teacher(x / 0.5, angle[:, 0])
    both = cos * sin
    output, slope = torch.func.jvp(network, (x / 0.5, angle[:, 0]), (both * velocity / 0.5, both[:, 0]))
    slope, here = slope.detach(), output.detach()
    tangent = -(cos**2) * (0.5 * here - velocity) - (both * x + 0.5 * slope)
    tangent = tangent / (tangent.norm(dim=1, keepdim=True) + 0.1)
    return (output - here - tangent).square().mean()


def shortcut(network: nn.Module, x0: Tensor) -> Tensor:
    # A quarter of the rows, the first, has two half steps for a target.
    rows, long = len(x0), len(x0) // 4
    noise, size = torch.randn_like(x0), 0.5 ** torch.randint(0, 7, (long,))
    t = torch.cat([size * (1 + (torch.rand(long) / size).floor()), torch.rand(rows - long)])
    x = (1 - t[:, None]) * x0 + t[:, None] * noise
    with torch.no_grad():
        half = size / 2
        told = torch.where(half <= 2**-7, torch.zeros_like(half), half)
        one = network(x[:long], t[:long], told)
        two = network(x[:long] - half[:, None] * one, t[:long] - half, told)
        target = torch.cat([(one + two) / 2, (noise - x0)[long:]])
    size = torch.cat([size, torch.zeros(rows - long)])
    return (network(x, t, size) - target).square().mean()


def plain_update(loss: Callable[[], Tensor], network: nn.Module) -> Callable[[], None]:
    def run() -> None:
        network.zero_grad()
        loss().backward()

    return run


def update(objective: FlowMap | Matcher, batch: Batch, turn: str | None = None) -> Callable[[], None]:
    own = [value for group in objective.parameter_groups().values() for value in group]

    def run() -> None:
        for value in own:
            value.grad = None
        # Never twice the same step: a sample would be there already.
        objective(batch, Step(next(STEPS), total=TOTAL), turn=turn).total.backward()

    return run


def counted(work: Callable[[], object], networks: Sequence[nn.Module], rows: int, calls: int = 8) -> Tensor:
    """Forward passes of a call and forward derivatives among them, in batches: the mean of some calls."""
    passes = derivatives = 0

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal passes, derivatives
        passes += len(inputs[0])
        derivatives += len(inputs[0]) * any(forward_ad.unpack_dual(value).tangent is not None for value in inputs)

    handles = [network.register_forward_pre_hook(note) for network in networks]
    try:
        for _ in range(calls):
            work()
    finally:
        for handle in handles:
            handle.remove()
    return torch.tensor([passes, derivatives], dtype=torch.float64) / (calls * rows)


def check_passes(name: str, found: Tensor, expected: Tensor) -> None:
    """Refuses to time one thing as another. A share of the rows that is drawn is off by less than the tolerance."""
    if float((found - expected).abs().max()) > 0.1:
        raise RuntimeError(f"{name} takes (passes, derivatives) {found.tolist()}, not {expected.tolist()}")


def continuous(network: nn.Module, teacher: nn.Module) -> FlowMap:
    """Continuous-time consistency distillation of Lu and Song (2024), from parts."""
    path = Trig(0.5)

    def adapter(module: nn.Module) -> Network:
        return Network(module, times="t", clock="angle", path=path, scale_input=True)

    return FlowMap(
        adapter(network),
        path=path,
        head=Jump("F"),
        source=Teacher(adapter(Frozen(teacher)), "F"),
        residual=Eulerian(JVP(), scale=trig_scale, warm_up=LinearRamp(0.0, 1.0, steps=1000)),
        # log SNR is -2 log(sigma_data tan(a)), whose mean and deviation are -1 and 1.4.
        pairs=Segments(1, LogNormal(2.0, 2.8, of="log_snr", path=path)),
        metric=SquaredError("mean"),
        balance=TangentNormalisation(0.1),
    )


def measured(rows: int, width: int, rounds: int) -> dict[str, Any]:
    """Seconds of the updates that have a plain peer at one size, and their ratios."""
    torch.manual_seed(0)
    x0 = torch.randn(rows, FEATURES)
    one, teacher, two = (Perceptron(times, FEATURES, width) for times in (1, 1, 2))
    teacher.requires_grad_(False)
    batch = Batch(x0)
    matching = FlowMap(
        Network(two, times="t_gap"), path=RectifiedFlow(), residual=Diagonal(Data()), pairs=Triangle(1.0)
    )
    sides = {
        "flow matching": (two, lambda: flow_matching(two, x0), matching),
        "mean flow": (two, lambda: mean_flow(two, x0), recipes.mean_flow(two)),
        "consistency training": (
            one,
            lambda: consistency_training(one, x0),
            recipes.consistency_training(one, start_levels=40, end_levels=40),
        ),
        "consistency distillation": (
            one,
            lambda: consistency_distillation(one, teacher, x0),
            recipes.consistency_distillation(one, teacher),
        ),
        "improved consistency training": (one, lambda: improved_consistency_training(one, x0), recipes.ict(one)),
        "continuous-time consistency": (
            one,
            lambda: continuous_time_consistency(one, teacher, x0),
            continuous(one, teacher),
        ),
        "shortcut": (two, lambda: shortcut(two, x0), recipes.shortcut(two)),
    }
    contenders: dict[str, Callable[[], None]] = {}
    for name, (network, loss, objective) in sides.items():
        plain, ours = plain_update(loss, network), update(objective, batch)
        check_passes(name, *(counted(work, (one, teacher, two), rows) for work in (ours, plain)))
        contenders |= {f"{name}, plain": plain, name: ours}
    seconds = measure.medians(measure.alternate(contenders, rounds=rounds, warm_up=2))
    ratios = {name: seconds[name] / seconds[f"{name}, plain"] for name in IDEAL}
    to_matching = {name: seconds[name] / seconds["flow matching, plain"] for name in IDEAL}
    print(f"{rows} rows, width {width}")
    for name, value in seconds.items():
        print(f"  {name:38} {value * 1e3:8.2f} ms")
    for name in IDEAL:
        print(f"  {name:38} {ratios[name]:5.2f} of plain   {to_matching[name]:5.2f} of plain flow matching")
    return {
        "rows": rows,
        "width": width,
        "seconds": seconds,
        "times_plain": ratios,
        "milliseconds_more": {name: 1e3 * (seconds[name] - seconds[f"{name}, plain"]) for name in IDEAL},
        "times_flow_matching": to_matching,
    }


def of_recipes(x0: Tensor, networks: Callable[[int], nn.Module]) -> dict[str, Callable[[], None]]:
    """An update of every recipe, on new networks for so many numbers."""
    rows, noise, shape = len(x0), torch.randn_like(x0), (FEATURES,)
    one, two, three, teacher, edm, critic = (networks(told) for told in (1, 2, 3, 1, 1, 1))
    grid = spaced(16, RectifiedFlow())
    batch, pairs, empty = Batch(x0), Batch(x0, noise=noise), Batch(size=rows)
    states = Batch(path_states=torch.randn(rows, grid.steps + 1, FEATURES))
    label, told = torch.arange(rows) % 10 / 10, torch.linspace(0, 4, rows)
    guided = Batch(x0, {"label": label, "guidance": told}, {"label": -torch.ones(rows)})
    works = {
        "consistency_distillation": update(recipes.consistency_distillation(one, edm), batch),
        "consistency_training": update(recipes.consistency_training(one), batch),
        "ict": update(recipes.ict(one), batch),
        "mean_flow": update(recipes.mean_flow(two), batch),
        "mf_rae, mid-training": update(recipes.mf_rae(two, "mid_training", grid=grid), states),
        "mf_rae, distil": update(recipes.mf_rae(two, teacher=teacher), batch),
        "mf_rae, tune": update(recipes.mf_rae(two, "tune"), batch),
        "shortcut": update(recipes.shortcut(two), batch),
        "progressive_distillation": update(recipes.progressive_distillation(one, teacher), batch),
        "boot": update(recipes.boot(one, teacher, shape), empty),
        "rfpp": update(recipes.rfpp(one), pairs),
        "instaflow, reflow": update(recipes.instaflow(one), pairs),
        "instaflow, distil": update(recipes.instaflow(one, "distil"), pairs),
        "guided_distillation, guidance": update(recipes.guided_distillation(three, networks(2)), guided),
        "guided_distillation, halving": update(recipes.guided_distillation(three, networks(3), "halving"), guided),
    }
    for off in ("lagrangian", "eulerian", "midpoint"):
        works[f"flow_map_self_distillation, {off}"] = update(recipes.flow_map_self_distillation(two, off), batch)
    for name, matcher in (
        ("freeflow", recipes.freeflow(one, teacher, shape, critic)),
        ("rcm of one level", recipes.rcm(one, teacher, critic, levels=(1.0,))),
    ):
        works |= {f"{name}, {turn}": update(matcher, batch, turn) for turn in ("generator", "critic")}
    return works


def of_residuals(x0: Tensor, networks: Callable[[int], nn.Module]) -> dict[str, Callable[[], None]]:
    """An update of every residual on one network, along a teacher where it asks a velocity."""
    network, teacher = Network(networks(2)), Teacher(Network(Frozen(networks(1)), times="t"), "velocity")
    batch = Batch(x0, noise=torch.randn_like(x0))
    residuals = {
        "diagonal": Diagonal(Data()),
        "eulerian, jvp": Eulerian(JVP()),
        "eulerian, central": Eulerian(Central()),
        "eulerian, solver": Eulerian(Solver(0.05, "euler")),
        "lagrangian, jvp": Lagrangian(JVP()),
        "semigroup": Semigroup(),
        "endpoint": Endpoint(),
    }
    return {
        name: update(FlowMap(network, path=RectifiedFlow(), source=teacher, residual=residual), batch)
        for name, residual in residuals.items()
    }


def updates(rows: int, width: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of an update of every recipe and residual over those of plain flow matching, and the ideal."""
    torch.manual_seed(0)
    x0, made = torch.randn(rows, FEATURES), list[nn.Module]()

    def networks(told: int) -> nn.Module:
        made.append(Perceptron(told, FEATURES, width))
        return made[-1]

    two = networks(2)
    works = of_recipes(x0, networks) | of_residuals(x0, networks)
    if works.keys() != UNITS.keys():
        raise RuntimeError(f"timed or counted, not both: {sorted(works.keys() ^ UNITS.keys())}")
    for name, work in works.items():
        check_passes(name, counted(work, made, rows), torch.tensor(UNITS[name][:2], dtype=torch.float64))
    works = {"flow matching, plain": plain_update(lambda: flow_matching(two, x0), two)} | works
    seconds = measure.medians(measure.alternate(works, rounds=rounds, warm_up=2))
    peer = seconds.pop("flow matching, plain")
    print(f"{rows} rows, width {width}: {peer * 1e3:.2f} ms for plain flow matching")
    found = {"flow matching, plain": {"seconds": peer}}
    for name, value in seconds.items():
        ideal = sum(UNITS[name]) / 3
        found[name] = {"seconds": value, "times_flow_matching": value / peer, "ideal": ideal}
        print(f"  {name:38} {value * 1e3:8.2f} ms {value / peer:6.2f} of flow matching, {ideal:5.2f} ideal")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    _core.set_threads(2)
    torch.set_num_threads(2)
    sizes = [measured(rows, width, arguments.rounds) for rows, width in SIZES]
    every = updates(*SIZES[0], arguments.rounds)
    measure.write("flow_map", {"sizes": sizes, "ideal_times_flow_matching": IDEAL, "updates": every})


if __name__ == "__main__":
    main()
