"""The one call that every engine's objective answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import nn

from distillrs.step import Loss, Step


@runtime_checkable
class Objective(Protocol):
    """An object that gives losses and owns no network, optimiser, device, logger or loop.

    ``objective(batch, step)`` returns a :class:`~distillrs.Loss`. With several optimisers, one call per turn::

        for turn in objective.turns(step):
            loss = objective(batch, step, turn=turn)
            loss.total.backward()
            optimisers[turn].step()
    """

    def __call__(self, batch: Any, step: Step | int, *, turn: str | None = None) -> Loss:
        """The loss of one turn at one step."""
        ...

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """Names of the optimisers to step, in order."""
        ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What each optimiser trains; evaluated when asked, so that sharding may come first."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Only what the objective owns."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Only what the objective owns, plus the state of its guards and ramps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restores what :meth:`state_dict` gave."""
        ...
