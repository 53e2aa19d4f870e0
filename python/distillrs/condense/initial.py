"""Choosing the real examples from which a synthetic set starts, by what experts make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from distillrs import random, select
from distillrs.checks import check_floating, check_text, check_whole, described
from distillrs.condense.functional import FunctionalNetwork, require_layout
from distillrs.condense.labels import HardLabels, check_classes
from distillrs.condense.windows import TrajectoryStore, check_store
from distillrs.errors import DataError, argument_error
from distillrs.step import Step


@dataclass(frozen=True, slots=True)
class Judgement:
    """What experts say of real examples.

    Attributes:
        right: int64 ``[n]``, how many experts give the example its class.
        logits: ``[n, C]``, mean logits over those experts; zero where there is none.
        experts: How many were asked.
    """

    right: Tensor
    logits: Tensor
    experts: int


def judge(
    store: TrajectoryStore,
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    experts: int | None = None,
    record: int | None = None,
    column: str = "theta",
    batch: int = 1024,
) -> Judgement:
    """Asks experts to classify real examples, in evaluation mode and without augmentation.

    Args:
        store: Experts' trajectories.
        network: Their architecture.
        x: ``[n, ...]`` examples in the network's input space.
        y: int64 ``[n]`` classes.
        experts: How many to ask, the first by key; ``None`` for all.
        record: Which record of each trajectory; ``None`` for its last.
        column: The store's column of parameters.
        batch: Examples in one forward pass.

    Raises:
        ArgumentError: A value that is not allowed, or no complete trajectory.
        SchemaMismatch: The trajectories belong to another architecture.
    """
    _check_examples(x, y)
    right = torch.zeros(len(y), dtype=torch.int64, device=x.device)
    total: Tensor | None = None
    asked = 0
    if experts is not None:
        check_whole("experts", experts, "None or a positive number", least=1)
    if record is not None:
        check_whole("record", record, "None or a record from 0", least=0)
    for call in _experts(store, network, x, _complete(store)[:experts], record, column):
        logits = _in_batches(call, x, batch)
        if int(y.max()) >= logits.shape[1]:
            raise argument_error("y", int(y.max()), f"class numbers below the network's {logits.shape[1]}")
        correct = logits.argmax(1) == y.to(logits.device)
        right += correct
        chosen = torch.where(correct[:, None], logits, torch.zeros_like(logits))
        total = chosen if total is None else total + chosen
        asked += 1
    assert total is not None  # an empty store was refused
    return Judgement(right, total / right.clamp_min(1)[:, None], asked)


def rightly_classified(y: Tensor, right: Tensor, per_class: int, *, seed: int = 0) -> Tensor:
    """Rows of examples drawn at random from those that at least one expert classifies rightly, class after class.

    Args:
        y: int64 ``[n]`` classes.
        right: int64 ``[n]``, see :class:`Judgement`.
        per_class: Examples of each class.
        seed: Of the draw.

    Returns:
        int64 ``[classes * per_class]``

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has too few such examples; names it and the counts.
    """
    check_classes("y", y, len(y) if isinstance(y, Tensor) and y.ndim else 1)
    if not isinstance(right, Tensor) or right.is_meta or right.layout != torch.strided or right.shape != y.shape:
        raise argument_error("right", described(right), f"int64 of the shape of y, {tuple(y.shape)}")
    rows = []
    for label, members in _by_class(y, per_class):
        known = members[right[members] > 0]
        if len(known) < per_class:
            raise DataError(
                f"per_class: got {per_class}, but only {len(known)} of the {len(members)} examples of class {label} "
                "are classified rightly by an expert; allowed is at most that many (train experts longer, or add data)"
            )
        order = random.permutation(len(known), step=Step(0, seed=seed), name=f"initial/{label}")
        rows.append(known[order[:per_class].to(known.device)])
    return torch.cat(rows)


def expert_features(
    store: TrajectoryStore,
    network: nn.Module,
    x: Tensor,
    *,
    expert: str | None = None,
    column: str = "theta",
    batch: int = 1024,
) -> Tensor:
    """Logits that one expert's last record gives to real examples; the points among which centres are looked for.

    Args:
        store: Experts' trajectories.
        network: Their architecture.
        x: ``[n, ...]`` examples in the network's input space.
        expert: Its key; ``None`` for the first.
        column: The store's column of parameters.
        batch: Examples in one forward pass.

    Returns:
        ``[n, C]``

    Raises:
        ArgumentError: No complete trajectory, or none of this name.
    """
    complete = _complete(store)
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    if expert is not None and (not isinstance(expert, str) or expert not in complete):
        raise argument_error("expert", expert, f"one of the {len(complete)} complete trajectories")
    calls = _experts(store, network, x, [expert or complete[0]], None, column)
    return _in_batches(next(calls), x, batch)


def nearest_to_centres(points: Tensor, y: Tensor, per_class: int, *, seed: int = 0) -> Tensor:
    """Rows of the examples nearest to the k-means centres of each class, class after class, all different.

    Args:
        points: ``[n, d]`` features of the examples.
        y: int64 ``[n]`` classes.
        per_class: Centres, and so examples, of each class.
        seed: Of the centres' start.

    Returns:
        int64 ``[classes * per_class]``

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has fewer than ``per_class`` examples; names it and the counts.
    """
    check_floating("points", points, "floating [n, d], n >= 1", axes=2, rows=1)
    check_classes("y", y, len(y) if isinstance(y, Tensor) and y.ndim else 1)
    if len(points) != len(y):
        raise argument_error("points", tuple(points.shape), f"[{len(y)}, d]")
    rows = []
    for label, members in _by_class(y, per_class):
        own = points[members].detach().cpu()
        centres = select.k_means(own, per_class, seed=random.generator_seed(Step(0, seed=seed), f"k-means/{label}"))
        near = select.nearest(centres.centres, own, per_class).ids
        rows.append(members[_distinct(near).to(members.device)])
    return torch.cat(rows)


def _distinct(near: Tensor) -> Tensor:
    """For each centre its nearest example that no earlier centre took."""
    taken: list[int] = []
    for candidates in near.tolist():
        # k neighbours suffice for the k-th centre: at most k - 1 of them are taken.
        taken.append(next(each for each in candidates if each not in taken))
    return torch.tensor(taken)


def _by_class(y: Tensor, per_class: int) -> Iterator[tuple[int, Tensor]]:
    check_whole("per_class", per_class, "a positive integer", least=1)
    for label in range(HardLabels(y).classes):
        members = (y == label).nonzero()[:, 0]
        if len(members) < per_class:
            raise DataError(
                f"per_class: got {per_class}, but class {label} has {len(members)} of the {len(y)} examples; "
                "allowed is at most the size of the smallest class"
            )
        yield label, members


def _check_examples(x: Tensor, y: Tensor) -> None:
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    check_classes("y", y, len(x))


def _complete(store: TrajectoryStore) -> list[str]:
    check_store(store)
    keys = sorted(store.lengths())
    if not keys:
        raise argument_error("store", "no complete trajectory", "at least one")
    return keys


def _experts(
    store: TrajectoryStore, network: nn.Module, x: Tensor, keys: list[str], record: int | None, column: str
) -> Iterator[Callable[[Tensor], Tensor]]:
    """One function from examples to logits for each expert."""
    check_text("column", column)
    functional = FunctionalNetwork(network).to(x.device)
    require_layout(store.metadata.get("layout"), functional.layout)
    lengths = store.lengths()
    for key in keys:
        if record is not None and not 0 <= record < lengths[key]:
            raise argument_error("record", record, f"None or a record from 0 to {lengths[key] - 1} of {key!r}")
        vector = store.read(key, lengths[key] - 1 if record is None else record, column=column).to(x)
        yield partial(functional, vector)


@torch.no_grad()
def _in_batches(call: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
    check_whole("batch", batch, "a positive integer", least=1)
    return torch.cat([call(x[first : first + batch]) for first in range(0, len(x), batch)])
