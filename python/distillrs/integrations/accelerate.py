"""Accelerate: an objective in a loop of your own over an ``Accelerator``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from distillrs.checks import check_instance
from distillrs.errors import argument_error
from distillrs.integrations.bookkeeping import (
    average_gradients,
    count_items,
    examples_of,
    own_parameters,
    single_turn,
    total_over_processes,
)
from distillrs.step import Loss, Step

__all__ = ["Distil"]


class Distil:
    """Calls an objective with what it needs to know of the loop, and passes its gradients on as Accelerate wants them.

    ::

        distil = integrations.accelerate.Distil(accelerator, objective, total=steps)
        model, optimizer, loader = accelerator.prepare(student, optimizer, loader)
        for batches in distil.windows(loader):            # the batches of one optimiser step
            for batch in batches:
                loss = distil.backward(model, batch)
            optimizer.step()
            optimizer.zero_grad()

    The optimiser is made of ``objective.parameter_groups()``. The loss is that of one large batch, however it is cut
    into micro-batches and over processes. ``accelerator.save_state`` and ``load_state`` keep the objective's state and
    the place in the run.

    Args:
        accelerator: The ``accelerate.Accelerator``; its ``gradient_accumulation_steps`` are a window's batches.
        objective: One with a single turn. It follows the accelerator's device.
        seed: Of the run.
        total: Length of the run in optimiser steps, for ramps.

    Raises:
        ArgumentError: No accelerator, no objective, or one with several turns.
    """

    def __init__(self, accelerator: Any, objective: Any, *, seed: int = 0, total: int | None = None) -> None:
        if not callable(getattr(accelerator, "register_for_checkpointing", None)):
            raise argument_error("accelerator", type(accelerator).__name__, "an accelerate.Accelerator")
        single_turn(objective)
        self.accelerator = accelerator
        self.objective = objective.to(accelerator.device) if isinstance(objective, nn.Module) else objective
        self.step = Step(0, seed=seed, total=total)
        self._left = 0
        self._first = 0
        self._items = 1
        self._batch_size = 1
        accelerator.register_for_checkpointing(self)

    def windows(self, loader: Iterable[Any]) -> Iterator[list[Any]]:
        """The batches of each optimiser step; the last window of an epoch may be shorter.

        Args:
            loader: As ``accelerator.prepare`` gave it.

        Raises:
            ArgumentError: Something that gives no batches.
        """
        if not isinstance(loader, Iterable):
            raise argument_error("loader", type(loader).__name__, "what accelerator.prepare() made of a loader")
        size = int(self.accelerator.gradient_accumulation_steps)
        window: list[Any] = []
        for batch in loader:
            window.append(batch)
            if len(window) == size:
                yield self._begin(window)
                window = []
        if window:
            yield self._begin(window)

    def backward(self, model: nn.Module, batch: Any) -> Loss:
        """The loss of one of a window's batches, after its gradients were added up.

        Args:
            model: The student as ``accelerator.prepare`` gave it.
            batch: The next one of the window.

        Returns:
            This batch's part of the step's loss, detached: parts of a window and of all processes add up to it.

        Raises:
            ArgumentError: No module, or more batches than the window has, whose gradients nobody would bring together.
        """
        check_instance("model", model, nn.Module, "the student as accelerator.prepare() gave it")
        if self._left < 1:
            raise argument_error("batch", "one more than the window has", "each batch of windows(loader), once")
        accelerator = self.accelerator
        world, rank = int(accelerator.num_processes), int(accelerator.process_index)
        self._left -= 1
        is_last = self._left == 0
        # accumulate() would ask the loader, which has told its end before the last batch of a window is used.
        accelerator.gradient_state._set_sync_gradients(is_last)
        step = Step(
            self.step.index,
            seed=self.step.seed,
            total=self.step.total,
            first_unit=(self._first * world + rank) * self._batch_size,
            items=self._items,
        )
        self._first += 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss: Loss = self.objective(batch, step, student=model)
            # It divides by the accumulation's steps, and gradients are averaged over processes.
            accelerator.backward(loss.total * (world * int(accelerator.gradient_accumulation_steps)))
        if is_last:
            student = {id(parameter) for parameter in model.parameters()}
            average_gradients(each for each in own_parameters(self.objective) if id(each) not in student)
            self.step = self.step.at(self.step.index + 1)
        return Loss(loss.total.detach(), loss.terms)

    def state_dict(self) -> dict[str, Any]:
        """The objective's state and the place in the run."""
        return {"index": self.step.index, "objective": self.objective.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from :meth:`state_dict`.

        Raises:
            ArgumentError: The state of something else.
        """
        if not isinstance(state, dict) or not {"index", "objective"} <= set(state):
            raise argument_error("state", type(state).__name__, "what state_dict() gave")
        self.step = self.step.at(int(state["index"]))
        self.objective.load_state_dict(state["objective"])

    def _begin(self, window: list[Any]) -> list[Any]:
        device = self.accelerator.device
        counts = torch.stack([count_items(self.objective, batch).to(device) for batch in window])
        self._items = max(1, int(total_over_processes(counts.sum())))
        self._left, self._first = len(window), 0
        self._batch_size = examples_of(window[0])
        return window
