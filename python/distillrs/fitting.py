"""A small optional loop for demonstrations, proofs and users without a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from distillrs.errors import argument_error, unknown_name_error
from distillrs.objective import Objective
from distillrs.step import Loss, Step

Rates = Mapping[str, Mapping[str, float] | float]


@dataclass(frozen=True, slots=True)
class Progress:
    """What the callback of :func:`fit` is given after each step.

    Attributes:
        step: The step that was just taken.
        turn: The name of the last turn.
        loss: Its loss.
        skipped: Whether the objective's guard had the optimiser's step left out.
        objective: The objective.
        optimisers: The optimisers by turn.
    """

    step: Step
    turn: str
    loss: Loss
    skipped: bool
    objective: Objective
    optimisers: Mapping[str, Optimizer]

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on after this step, as copies: pass it to :func:`fit` as ``state``.

        It holds tensors and plain values only, so that ``torch.load(..., weights_only=True)`` reads it.
        """
        state: dict[str, Any] = _copied(
            {
                "next": self.step.index + 1,
                "seed": self.step.seed,
                "objective": dict(self.objective.state_dict()),
                "optimisers": {turn: optimiser.state_dict() for turn, optimiser in self.optimisers.items()},
            }
        )
        return state


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a run did.

    Attributes:
        next: Index of the step that would come next.
        skipped: Steps that the objective's guard left out, counted in this call.
        terms: The terms of the last loss of each turn.
        optimisers: The optimisers by turn.
    """

    next: int
    skipped: int
    terms: dict[str, dict[str, Tensor]]
    optimisers: dict[str, Optimizer]


def fit(
    objective: Objective,
    optimisers: Mapping[str, Optimizer] | Optimizer | Rates,
    steps: int,
    *,
    seed: int = 0,
    batches: Iterable[Any] | Callable[[Step], Any] | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    state: Mapping[str, Any] | None = None,
) -> FitResult:
    """Runs an objective for some steps.

    For each step and each of the objective's turns: clear gradients, call, backward, step the turn's optimiser. A turn
    whose loss has ``terms["skipped"]`` is not stepped, so that a momentum does not move what the guard protects. An
    objective that has ``after_step()`` gets it called once at the end of every step that was taken.

    A run that is continued from :meth:`Progress.state` equals one that was never interrupted, as every draw is a
    function of the step.

    Args:
        objective: What is minimised.
        optimisers: One for each turn, by name; or one, for an objective with a single turn; or learning rates of its
            parameter groups, ``{"images": {"lr": 100.0, "momentum": 0.5}, "inner_lr": 1e-5}``, from which one
            ``torch.optim.SGD`` is made. Further keys of a group are SGD's. A group that is not named is refused.
        steps: Length of the whole run, also of a continued one; ramps see it as ``Step.total``.
        seed: Of the run.
        batches: What the objective is called with: one item for each step, or a function of the step (which a
            continued run needs); ``None`` passes ``None``.
        callback: Called after each step that has a turn; the run ends when it returns ``True``.
        state: What :meth:`Progress.state` gave.

    Raises:
        ArgumentError: Arguments that do not fit the objective, or a state of another seed.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise argument_error("steps", steps, "a positive integer")
    turns = objective.turns(Step(0, seed=seed, total=steps))
    by_turn = _optimisers(objective, optimisers, turns)
    first = 0
    if state is not None:
        if state["seed"] != seed:
            raise argument_error("seed", seed, f"{state['seed']}, with which the state was made")
        first = int(state["next"])
        objective.load_state_dict(dict(state["objective"]))
        for turn, optimiser in by_turn.items():
            optimiser.load_state_dict(_copied(state["optimisers"][turn]))
    items = iter(batches) if batches is not None and not callable(batches) else None
    if items is not None and first:
        raise argument_error("batches", "an iterable for a continued run", "a function of the step, or None")
    skipped = 0
    terms: dict[str, dict[str, Tensor]] = {}
    for index in range(first, steps):
        step = Step(index, seed=seed, total=steps)
        present = objective.turns(step)
        batch = batches(step) if callable(batches) else _next(items, index, steps) if items is not None else None
        if not present:
            continue
        taken = False
        for turn in present:
            # A turn need not come at every step, so one without an optimiser may first be met here.
            if turn not in by_turn:
                raise argument_error("optimisers", sorted(by_turn), f"an optimiser for the turn {turn!r} too")
            optimiser = by_turn[turn]
            optimiser.zero_grad(set_to_none=True)
            loss = objective(batch, step, turn=turn)
            loss.total.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            passed = "skipped" not in loss.terms or not bool(loss.terms["skipped"])
            if passed:
                optimiser.step()
            taken = taken or passed
            skipped += not passed
            terms[turn] = loss.terms
        after_step = getattr(objective, "after_step", None)
        if taken and after_step is not None:
            after_step()
        if callback is not None and callback(Progress(step, turn, loss, not passed, objective, by_turn)):
            return FitResult(index + 1, skipped, terms, by_turn)
    return FitResult(steps, skipped, terms, by_turn)


def _next(items: Iterator[Any], index: int, steps: int) -> Any:
    # Not next() alone: its StopIteration would silently end a caller's own generator.
    for item in items:
        return item
    raise argument_error("batches", f"{index} items", f"one for each of {steps} steps")


def sgd(objective: Objective, rates: Rates) -> torch.optim.SGD:
    """Gradient descent with a learning rate for each parameter group of an objective.

    Args:
        objective: Gives the groups.
        rates: See :func:`fit`.

    Raises:
        UnknownNameError: The objective has no such group.
        ArgumentError: A group without a rate, or a value that SGD does not take.
    """
    groups = objective.parameter_groups()
    for name in rates:
        if name not in groups:
            raise unknown_name_error("optimisers", name, list(groups))
    made = []
    for name, parameters in groups.items():
        if name not in rates:
            raise argument_error("optimisers", sorted(rates), f"a learning rate for {name!r} too")
        given = rates[name]
        options: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"lr": given}
        if "lr" not in options:
            raise argument_error(f"optimisers[{name!r}]", options, "a mapping with 'lr'")
        try:
            # Groups are not checked by torch, an optimiser's own defaults are.
            torch.optim.SGD(parameters, **options)
        except (TypeError, ValueError) as failure:
            allowed = f"options of torch.optim.SGD ({failure})"
            raise argument_error(f"optimisers[{name!r}]", options, allowed) from failure
        made.append({"params": parameters, "name": name, **options})
    return torch.optim.SGD(made, lr=0.0)


def _optimisers(
    objective: Objective, given: Mapping[str, Optimizer] | Optimizer | Rates, turns: tuple[str, ...]
) -> dict[str, Optimizer]:
    if isinstance(given, Optimizer):
        given = {turns[0]: given} if len(turns) == 1 else {}
    if given and all(isinstance(each, Optimizer) for each in given.values()):
        return {name: each for name, each in given.items() if isinstance(each, Optimizer)}
    if len(turns) != 1:
        raise argument_error("optimisers", type(given).__name__, f"one optimiser for each turn: {', '.join(turns)}")
    rates = {name: each for name, each in given.items() if not isinstance(each, Optimizer)}
    return {turns[0]: sgd(objective, rates)}


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(value) for value in state]
    return state
