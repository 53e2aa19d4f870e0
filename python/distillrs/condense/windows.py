"""Which part of which expert's path is matched, and with which minibatches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_choice, check_instance, check_whole, described
from distillrs.errors import argument_error
from distillrs.step import Step

Starts = range | Callable[[Step], range]
_MOST_STEPS = 1 << 32


class TrajectoryStore(Protocol):
    """What the engine needs of a store: :class:`distillrs.trajectory.Store` has it."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was given when the store was created."""
        ...

    def lengths(self) -> dict[str, int]:
        """Number of records of each complete trajectory."""
        ...

    def read(self, key: str, step: int, *, column: str) -> Tensor:
        """One record."""
        ...

    def window(
        self, key: str, *, column: str, start: int, span: int, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The records ``start`` and ``start + span``."""
        ...

    def sample(self, span: int, *, start: range, units: range, step: Step) -> list[tuple[str, int]]:
        """For each unit a key and a start, drawn from the windows that are there in full."""
        ...


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows (s, s + span) of an expert's path, drawn from the step.

    The draw depends on the step's seed, index and first unit alone, so that restarts and ranks agree, and goes over all
    complete experts of the store.

    Attributes:
        span: M, records from the start to the end of a window.
        start: The starts that are allowed, a range (its upper end is exclusive) or a schedule that gives one for a
            step, such as :class:`~distillrs.schedule.ExpandingWindow`. ``start + span`` must exist in the trajectory.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    span: int = 2
    start: Starts = range(5)

    def __post_init__(self) -> None:
        if isinstance(self.span, bool) or not isinstance(self.span, int) or self.span < 1:
            raise argument_error("span", self.span, "a positive integer")
        if isinstance(self.start, range):
            check_starts(self.start)
        elif not callable(self.start):
            raise argument_error("start", self.start, "a range, or a function from a Step to one")

    def starts(self, step: Step) -> range:
        """The starts that are allowed at a step."""
        return self.start if isinstance(self.start, range) else check_starts(self.start(step))

    def draw(self, store: TrajectoryStore, step: Step) -> tuple[str, int]:
        """An expert's key and a start.

        Raises:
            ArgumentError: No complete trajectory is long enough for any of the starts.
        """
        starts = self.starts(step)
        self.require(store, starts)
        unit = step.first_unit
        return store.sample(self.span, start=starts, units=range(unit, unit + 1), step=step)[0]

    def require(self, store: TrajectoryStore, starts: range) -> None:
        """Checks that every start has its end in the longest trajectory.

        Raises:
            ArgumentError: There is no complete trajectory, or none that reaches so far.
        """
        lengths = store.lengths()
        if not lengths:
            raise argument_error("store", "no complete trajectory", "at least one; incomplete ones are never sampled")
        longest = max(lengths.values())
        if max(starts) + self.span >= longest:
            raise argument_error(
                "start",
                f"{starts} with span {self.span}, which needs record {max(starts) + self.span}",
                f"starts up to {longest - 1 - self.span}: the longest trajectory has the records 0 to {longest - 1}",
            )


def check_store(store: object) -> None:
    """Refuses what is no store of trajectories.

    Raises:
        ArgumentError: It has not what :class:`TrajectoryStore` has.
    """
    # By its methods: a user's own store need not derive from anything.
    if isinstance(store, type) or not (hasattr(store, "lengths") and hasattr(store, "read")):
        raise argument_error("store", described(store), "a store of trajectories")


def check_starts(starts: object) -> range:
    """A range of starts: not empty, none below 0.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(starts, range) or not len(starts) or min(starts) < 0:
        raise argument_error("start", starts, "a range with at least one start, all from 0")
    return starts


def inner_batches(count: int, size: int | None, steps: int, step: Step) -> list[Tensor] | None:
    """The rows of each inner step's minibatch: shuffled passes over the set, each cut into minibatches.

    Args:
        count: N, number of examples.
        size: Of a minibatch; ``None``, or as large as the set, takes all examples in every step.
        steps: T.
        step: Of the run; the order is a pure function of it.

    Returns:
        T tensors of int64 rows, on the CPU, or ``None``. The last minibatch of a pass may be smaller.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_instance("step", step, Step, "a Step")
    for name, value in (("count", count), ("steps", steps), ("size", 1 if size is None else size)):
        allowed = "None or a positive integer" if name == "size" else f"1 to {_MOST_STEPS}"
        check_whole(name, value, allowed, least=1, most=None if name == "size" else _MOST_STEPS)
    if size is None or size >= count:
        return None
    batches: list[Tensor] = []
    turn = 0
    while len(batches) < steps:
        order = random.permutation(count, step=step, name=f"inner batches/{step.first_unit}/{turn}")
        batches += torch.split(order, size)
        turn += 1
    return batches[:steps]


def intermediate_targets(steps: int, span: int, *, weight: str = "one") -> dict[int, tuple[int, float]]:
    """Records on the way that the inner training should pass too, at evenly spaced steps.

    The j-th of the ``span - 1`` records between start and end is to be met at step ``(steps // span) * j`` (Shen et
    al., "Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories", 2023).

    Args:
        steps: T, at least ``span``.
        span: M.
        weight: "one", or "share": j / span for the j-th. The end always has 1.

    Returns:
        For each inner step (record after the start, weight).

    Raises:
        ArgumentError: Fewer steps than records, or an unknown weight.
    """
    check_choice("weight", weight, ("one", "share"))
    check_whole("span", span, "a positive integer", least=1)
    check_whole("steps", steps, f"at least span, {span}, so that each record has a step of its own", least=span)
    targets = {steps // span * j: (j, 1.0 if weight == "one" else j / span) for j in range(1, span)}
    return {**targets, steps: (span, 1.0)}


def to_device(batches: list[Tensor] | None, device: torch.device) -> list[Tensor] | None:
    """The minibatches on a device, in one transfer."""
    if batches is None or device.type == "cpu":
        return batches
    sizes = [len(rows) for rows in batches]
    return list(torch.split(torch.cat(batches).to(device), sizes))
