"""What every trainer's hook has to count, own and bring together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.errors import argument_error


def count_items(objective: Any, batch: Any) -> Tensor:
    """The items of a batch that a loss is a mean over: what ``Step.items`` counts over micro-batches and ranks.

    The objective says it by its method ``count_items(batch)``, as :class:`~distillrs.knowledge.Objective` does.

    Args:
        objective: A :class:`~distillrs.knowledge.Objective`, or one with ``count_items``.
        batch: What it is called with.

    Returns:
        int64 [].

    Raises:
        ArgumentError: The objective cannot tell.
    """
    own = getattr(objective, "count_items", None)
    if not callable(own):
        raise argument_error(
            "objective", type(objective).__name__, "a knowledge.Objective, or one with count_items(batch)"
        )
    return torch.as_tensor(own(batch), dtype=torch.int64)


def examples_of(batch: Any) -> int:
    """Length of the first axis of a batch's first tensor, 1 if it has none.

    Args:
        batch: A mapping, a list or tuple, or a tensor.
    """
    values = batch.values() if hasattr(batch, "values") else batch if isinstance(batch, list | tuple) else [batch]
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 1)


def single_turn(objective: Any) -> None:
    """Refuses what is no objective, and one that needs more optimisers than the trainer has.

    Raises:
        ArgumentError: It is either.
    """
    if not callable(objective) or not callable(getattr(objective, "turns", None)):
        raise argument_error("objective", type(objective).__name__, "an objective, such as a knowledge.Objective")
    turns = objective.turns(0)
    if len(turns) != 1:
        raise argument_error("objective", f"turns {', '.join(turns)}", "one with a single turn; see distillrs.fit")


def own_parameters(objective: Any) -> list[nn.Parameter]:
    """What the objective trains beside the student: projectors, tables, learned scales."""
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over the processes, as DistributedDataParallel does for the student's; alone it does nothing.

    Args:
        parameters: The same on every process; those without a gradient count as zero.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    world = torch.distributed.get_world_size()
    if world == 1:
        return
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.distributed.all_reduce(gradient)
        parameter.grad = gradient.div_(world)


def total_over_processes(value: Tensor) -> Tensor:
    """The sum over the processes; the value itself in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


class Terms:
    """Sums of an objective's terms between two logs.

    Terms of micro-batches add up to the step's, as the total does; factors of a balance are averaged.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._calls = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Takes in the terms of one call.

        Args:
            terms: Detached scalars.
        """
        self._calls += 1
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()

    def take(self, steps: int) -> dict[str, float]:
        """The means over the steps since the last call, over all processes; starts anew.

        Args:
            steps: Optimiser steps since then.
        """
        names, calls = sorted(self._sums), self._calls
        if not names:
            return {}
        values = total_over_processes(torch.stack([self._sums[name].float() for name in names]))
        self._sums, self._calls = {}, 0
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        divisors = [calls * world if name.startswith("factor/") else max(1, steps) for name in names]
        return {name: value / divisor for name, value, divisor in zip(names, values.tolist(), divisors, strict=True)}
