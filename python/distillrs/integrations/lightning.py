"""Lightning: an objective in a module's ``training_step``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distillrs.errors import argument_error
from distillrs.integrations.bookkeeping import (
    average_gradients,
    count_items,
    examples_of,
    own_parameters,
    single_turn,
    total_over_processes,
)
from distillrs.step import Step

__all__ = ["distil"]


def distil(objective: Any, *, seed: int = 0) -> Any:
    """A callback that gives a ``LightningModule`` its loss.

    ::

        class Student(L.LightningModule):
            def training_step(self, batch, index):
                return distil.loss(self, batch)

            def configure_optimizers(self):
                groups = objective.parameter_groups().values()
                return torch.optim.AdamW([{"params": group} for group in groups], lr=1e-4)

        distil = integrations.lightning.distil(objective)
        trainer = L.Trainer(callbacks=[distil], accumulate_grad_batches=4)

    The module holds the student; it may hold the objective too, and if it does not, the callback saves and restores the
    objective's state and averages its own parameters' gradients over the processes. Lightning hands out one batch at a
    time, so the items of a whole step are known only at its end: gradients are then brought to the mean over all items
    of all micro-batches and processes, before they are clipped. ``distil/loss`` and the terms are logged for each
    optimiser step.

    Args:
        objective: One with a single turn.
        seed: Of the run.

    Raises:
        ArgumentError: No objective, one with several turns, or a seed that is none.
        ModuleNotFoundError: lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError as failure:
        raise ModuleNotFoundError("lightning is not installed: pip install 'distillrs[lightning]'") from failure
    single_turn(objective)
    Step(0, seed=seed)
    kind = type("Distil", (_Hooks, Callback), {"__doc__": _Hooks.__doc__})
    return kind(objective, seed)


class _Hooks:
    """See :func:`distil`."""

    def __init__(self, objective: Any, seed: int) -> None:
        super().__init__()
        self.objective = objective
        self.seed = seed
        # Gradients are collected per so many items: about those of a batch, so that losses look as one expects.
        self._unit: int | None = None
        self._micro_batch = 0
        self._size = 0
        self._items: Tensor | None = None
        self._sums: dict[str, Tensor] = {}

    def loss(self, module: Any, batch: Any) -> Tensor:
        """What ``training_step`` returns: the part of the step's loss that this batch has, up to a factor near 1.

        Args:
            module: The ``LightningModule``.
            batch: What the objective is called with.
        """
        trainer = module.trainer
        if not (module.training and torch.is_grad_enabled()):
            evaluated: Tensor = self.objective(
                batch, Step(trainer.global_step, seed=self.seed, total=_total(trainer))
            ).total
            return evaluated
        count = count_items(self.objective, batch).to(module.device)
        if self._unit is None:
            self._unit = max(1, int(total_over_processes(count)) // trainer.world_size)
        if self._micro_batch == 0:
            # The last batch of an epoch may be shorter; units go on from the window's usual size.
            self._size = examples_of(batch)
        step = Step(
            trainer.global_step,
            seed=self.seed,
            total=_total(trainer),
            first_unit=(self._micro_batch * trainer.world_size + trainer.global_rank) * self._size,
            items=self._unit,
        )
        loss = self.objective(batch, step)
        self._micro_batch += 1
        self._items = count if self._items is None else self._items + count
        for name, value in {"loss": loss.total.detach(), **loss.terms}.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        total: Tensor = loss.total
        return total

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """The objective follows the module's device; what an interrupted run had collected is dropped."""
        self._micro_batch, self._items, self._sums = 0, None, {}
        if isinstance(self.objective, nn.Module):
            self.objective.to(module.device)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Brings the collected gradients to the mean over all items."""
        if self._items is None or self._unit is None:
            return
        inside = {id(parameter) for parameter in module.parameters()}
        average_gradients(each for each in own_parameters(self.objective) if id(each) not in inside)
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name].double() for name in names] + [self._items.double()])
        *values, items = total_over_processes(sums)
        # Lightning divides by the accumulation's batches, and gradients are averaged over the processes.
        share = self._unit / items.clamp(min=1)
        factor = float(share * trainer.accumulate_grad_batches * trainer.world_size)
        gradients = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)
        micro = self._micro_batch * trainer.world_size
        for name, value in zip(names, values, strict=True):
            is_factor = name.startswith("factor/")
            module.log(f"distil/{name}", (value / micro if is_factor else value * share).float())
        self._micro_batch, self._items, self._sums = 0, None, {}

    def state_dict(self) -> dict[str, Any]:
        """The objective's state."""
        return {"objective": self.objective.state_dict(), "unit": self._unit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`.

        Raises:
            ArgumentError: The state of something else.
        """
        if not isinstance(state, dict) or not {"objective", "unit"} <= set(state):
            raise argument_error("state", type(state).__name__, "what state_dict() gave")
        self.objective.load_state_dict(state["objective"])
        self._unit = state["unit"]


def _total(trainer: Any) -> int | None:
    steps = trainer.estimated_stepping_batches
    return int(steps) if steps < float("inf") else None
