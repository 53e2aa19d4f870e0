"""The check of an objective."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.errors import ArgumentError
from distillrs.step import Loss, Step


def check_objective(
    objective: Any,
    batch: Any,
    *,
    step: int = 3,
    total: int = 10,
    seed: int = 0,
    networks: Sequence[nn.Module] = (),
    parts: Sequence[Any] | None = None,
    items: int | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Checks what a trainer counts on in an objective, on copies of it and of its networks.

    A loss has a graph, is a finite number and reaches what its turn trains; its terms are detached numbers; the same
    batch and step give the same loss, whatever torch's global generator holds; turns are named and others refused;
    groups hold parameters that are trained; what is owned comes back from the state, and what was given is not owned.
    With ``parts`` the losses of micro-batches under ``Step.items`` add up to that of the whole batch.

    Dropout and other draws of the networks from torch's global generator must be off.

    Args:
        objective: The objective.
        batch: What it is called with.
        step: Number of the step to try.
        total: Length of the run, for ramps.
        seed: Of the run.
        networks: What was given to it: none of their parameters may be owned.
        parts: The batch in micro-batches, in order; ``None`` leaves this promise out.
        items: Count that the whole batch's loss is a mean over; ``None`` asks ``objective.count_items``.
        tolerance: Largest relative difference between the parts' sum and the whole.

    Raises:
        AssertionError: The objective breaks one of these promises.
    """
    at = Step(step, seed=seed, total=total)
    turns = objective.turns(at)
    assert isinstance(turns, tuple), f"turns are a {type(turns).__name__}, not a tuple"
    assert turns, "there is no turn"
    assert all(isinstance(turn, str) for turn in turns), f"turns are named, not {turns}"
    _check_owned(objective, networks)
    for turn in dict.fromkeys(turns):
        _check_turn(objective, batch, at, turn)
        if parts is not None:
            _check_parts(objective, batch, parts, at, turn, items, tolerance)
    twin = copy.deepcopy(objective)
    _checked_loss(twin(batch, at, turn=turns[0]), "a second call")
    refusal = _refusal(lambda: _checked_loss(twin(batch, step, turn=turns[0]), "a plain number as the step"))
    # A ramp without a length of its own needs the run's.
    assert refusal is None or refusal.startswith("step"), f"a plain number as the step is refused: {refusal}"
    assert _refusal(lambda: twin(batch, at, turn="no turn of this name")) is not None, "a turn that is none is taken"
    _check_state(objective, twin)


def _refusal(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except ArgumentError as refused:
        return str(refused)
    return None


def _check_turn(objective: Any, batch: Any, at: Step, turn: str) -> None:
    first, second = copy.deepcopy(objective), copy.deepcopy(objective)
    losses = []
    for twin, other in ((first, 1), (second, 2)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(other)
            losses.append(_checked_loss(twin(batch, at, turn=turn), f"turn {turn!r}"))
    mine, again = losses
    assert torch.equal(mine.total, again.total), (
        f"turn {turn!r}: the same batch and step give {float(mine.total.detach()):.9g} and "
        f"{float(again.total.detach()):.9g}: a draw from a global generator, or a state that is shared"
    )
    groups = first.parameter_groups()
    assert isinstance(groups, Mapping), f"parameter groups are a {type(groups).__name__}, not a mapping"
    trained = [parameter for group in groups.values() for parameter in group]
    assert all(isinstance(each, nn.Parameter) for each in trained), "a group holds something else than parameters"
    assert len({id(each) for each in trained}) == len(trained), "a parameter stands in two groups"
    for parameter in trained:
        parameter.grad = None
    mine.total.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    gradients = [each.grad for each in trained if each.grad is not None]
    assert gradients, f"turn {turn!r}: the loss reaches no parameter of the groups"
    assert all(bool(gradient.isfinite().all()) for gradient in gradients), f"turn {turn!r}: a gradient is not finite"


def _checked_loss(loss: Any, where: str) -> Loss:
    assert isinstance(loss, Loss), f"{where}: a {type(loss).__name__} and no distillrs.Loss"
    assert loss.total.ndim == 0, f"{where}: the total has the shape {tuple(loss.total.shape)}"
    assert loss.total.requires_grad, f"{where}: the total has no graph"
    assert bool(loss.total.isfinite()), f"{where}: the total is {float(loss.total.detach())}"
    for name, term in loss.terms.items():
        assert isinstance(name, str), f"{where}: a term is named {name!r}"
        assert isinstance(term, Tensor), f"{where}: the term {name!r} is a {type(term).__name__}, not a tensor"
        assert term.ndim == 0, f"{where}: the term {name!r} has the shape {tuple(term.shape)}"
        assert not term.requires_grad, f"{where}: the term {name!r} carries a graph"
    return loss


def _check_owned(objective: Any, networks: Sequence[nn.Module]) -> None:
    given = {id(each): name for network in networks for name, each in network.named_parameters()}
    owned = list(objective.parameters())
    for each in owned:
        assert id(each) not in given, f"the objective owns {given[id(each)]!r} of a network that was given"
    state = [value for value in objective.state_dict().values() if isinstance(value, Tensor)]
    places = {each.data_ptr(): name for network in networks for name, each in network.named_parameters()}
    for value in state:
        assert not value.numel() or value.data_ptr() not in places, (
            f"the objective's state holds {places[value.data_ptr()]!r} of a network that was given"
        )


def _check_parts(
    objective: Any, batch: Any, parts: Sequence[Any], at: Step, turn: str, items: int | None, tolerance: float
) -> None:
    count = int(objective.count_items(batch)) if items is None else items
    whole_run, cut_run = copy.deepcopy(objective), copy.deepcopy(objective)
    whole = float(whole_run(batch, _of(at, 0, count), turn=turn).total.detach())
    first, added = 0, 0.0
    for part in parts:
        added += float(cut_run(part, _of(at, first, count), turn=turn).total.detach())
        first += _examples(part)
    assert abs(added - whole) <= tolerance * max(1.0, abs(whole)), (
        f"turn {turn!r}: parts add up to {added:.9g}, the whole batch gives {whole:.9g}"
    )


def _of(at: Step, first: int, items: int) -> Step:
    return Step(at.index, seed=at.seed, total=at.total, first_unit=first, items=items)


def _examples(batch: Any) -> int:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else [batch]
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 1)


def _check_state(objective: Any, after: Any) -> None:
    """What a copy has after some calls goes into another copy, which then has the same."""
    state = copy.deepcopy(after.state_dict())
    fresh = copy.deepcopy(objective)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    fresh.load_state_dict(state)
    found = fresh.state_dict()
    assert found.keys() == state.keys(), f"the state has {sorted(found)} after {sorted(state)} was loaded"
    for name, value in state.items():
        if isinstance(value, Tensor):
            assert torch.equal(found[name], value), f"{name!r} does not come back from the state"
    for mine, theirs in zip(fresh.parameters(), after.parameters(), strict=True):
        assert torch.equal(mine, theirs), "a parameter that the objective owns is not in its state"
