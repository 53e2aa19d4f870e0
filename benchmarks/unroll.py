"""The three gradients of an unrolled training: bytes that graphs hold, and time, against automatic differentiation.

`full` keeps the graphs of all steps and is the peer; `adjoint` gives the same gradient, `truncated` an inexact one.
Times are those of the process on one thread, taken in turns in one run; the ratio is what counts.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import measure
import torch
from torch import nn

from distillrs import evaluate
from distillrs.condense import FunctionalNetwork, Target, Unroll
from distillrs.condense.unroll import memory_of_states

GRADIENTS: dict[str, dict[str, Any]] = {
    "full": {"gradient": "full"},
    "adjoint": {"gradient": "adjoint"},
    "adjoint, one graph": {"gradient": "adjoint", "graph_steps": 1},
    "truncated": {"gradient": "truncated"},
    "truncated, one graph": {"gradient": "truncated", "graph_steps": 1},
}
LENGTHS = (5, 10, 20, 40, 80)


class Bed:
    """A network, a window and some examples, all made up: neither bytes nor time depend on the values."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], examples: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = FunctionalNetwork(network)
        self.start = self.network.layout.flatten(network)
        step = 0.01 * torch.randn(self.start.shape, generator=generator)
        self.target = Target(self.start + step, float(step.square().sum()))
        self.images = torch.randn(examples, *shape, generator=generator, requires_grad=True)
        self.labels = torch.arange(examples) % 10
        self.rate = torch.tensor(0.02, requires_grad=True)

    def step(self, unroll: Unroll) -> None:
        """The loss and its gradient."""
        targets = {unroll.steps: self.target}
        loss = unroll(self.network, self.start, self.images, self.labels, self.rate, targets).loss
        torch.autograd.grad(loss, (self.images, self.rate))


class SavedBytes:
    """Counts the bytes of the distinct storages that graphs hold, and remembers the largest sum."""

    def __init__(self) -> None:
        self.storages: dict[int, list[int]] = {}
        self.now = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> Held:
        """Counts a tensor in."""
        storage = tensor.untyped_storage()
        entry = self.storages.setdefault(storage.data_ptr(), [0, storage.nbytes()])
        if entry[0] == 0:
            self.now += entry[1]
            self.peak = max(self.peak, self.now)
        entry[0] += 1
        return Held(tensor, self)

    def release(self, address: int) -> None:
        """Counts a tensor out."""
        entry = self.storages[address]
        entry[0] -= 1
        if entry[0] == 0:
            self.now -= entry[1]
            del self.storages[address]


class Held:
    """A saved tensor that says when its graph lets it go."""

    def __init__(self, tensor: torch.Tensor, counter: SavedBytes) -> None:
        self.tensor = tensor
        self.counter = counter
        self.address = tensor.untyped_storage().data_ptr()

    def __del__(self) -> None:
        self.counter.release(self.address)


def graph_bytes(bed: Bed, unroll: Unroll) -> int:
    """Largest number of bytes that graphs hold at one time during a step."""
    gc.collect()
    counter = SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda held: held.tensor):
        bed.step(unroll)
    return counter.peak


def seconds(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median process time of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, call in work.items():
            begin = time.process_time()
            call()
            if turn:
                taken[name].append(time.process_time() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def convnet(width: int, depth: int) -> nn.Module:
    return evaluate.networks.build("convnet", (1, 28, 28), 10, seed=0, width=width, depth=depth)


BEDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int, int]] = {
    # The catalogue's bed: small enough for calls to cost more than numbers.
    "perceptron 64-32-10, 10 examples": (
        lambda: evaluate.networks.build("mlp", (64,), 10, seed=0, widths=(32,)),
        (64,),
        10,
        20,
        40,
    ),
    "perceptron 64-256-10, 100 examples": (
        lambda: evaluate.networks.build("mlp", (64,), 10, seed=0, widths=(256,)),
        (64,),
        100,
        20,
        20,
    ),
    "convolutional 2 x 16, 28 x 28, 10 examples": (lambda: convnet(16, 2), (1, 28, 28), 10, 20, 5),
}


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"memory": {}, "time": {}}
    for name, (build, shape, examples, steps, rounds) in BEDS.items():
        bed = Bed(build(), shape, examples)
        held = {
            kind: {length: graph_bytes(bed, Unroll(length, **options)) for length in LENGTHS}
            for kind, options in GRADIENTS.items()
        }
        growth = {kind: values[80] / values[5] for kind, values in held.items()}
        states = {length: memory_of_states(Unroll(length), bed.network.size) for length in LENGTHS}
        results["memory"][name] = {
            "parameters": bed.network.size,
            "graph_bytes": held,
            "growth_5_to_80": growth,
            "state_bytes_at_most": states,
        }
        unrolls = {kind: Unroll(steps, **options) for kind, options in GRADIENTS.items()}
        taken = seconds({kind: partial(bed.step, unroll) for kind, unroll in unrolls.items()}, rounds)
        ratio = {kind: value / taken["full"] for kind, value in taken.items()}
        results["time"][name] = {"steps": steps, "median_seconds": taken, "over_full": ratio}
        print(name)
        for kind in GRADIENTS:
            print(
                f"  {kind:22} graphs {held[kind][5] / 1e6:8.2f} MB at T=5, {held[kind][80] / 1e6:8.2f} MB at T=80"
                f" ({growth[kind]:5.2f}x); T={steps}: {1e3 * taken[kind]:8.1f} ms ({ratio[kind]:.2f} of full)"
            )
    measure.write("unroll", results)


if __name__ == "__main__":
    main()
