"""Training the heads of a network of pairs, and recording experts of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_whole
from distillrs.condense.experts import Snapshots, WritableStore
from distillrs.condense.pairs import PairNetwork, Pairs, contrastive_loss
from distillrs.errors import TrainingDivergedError, argument_error
from distillrs.frozen import kept_modes
from distillrs.step import Step
from distillrs.training import TrainingSettings
from distillrs.trajectory import ParameterLayout

PairLoss = Callable[[Pairs, Tensor], Tensor]


def plain_pair_loss(embedded: Pairs, rows: Tensor) -> Tensor:
    """:func:`~distillrs.condense.pairs.contrastive_loss` of a minibatch, whichever its rows are."""
    return contrastive_loss(embedded)


def train_pairs(
    network: PairNetwork,
    pairs: Pairs,
    settings: TrainingSettings,
    *,
    rates: Sequence[float] | None = None,
    loss: PairLoss = plain_pair_loss,
    after_epoch: Callable[[int, PairNetwork], None] | None = None,
    seed: int = 0,
) -> list[float]:
    """Trains the heads in place by stochastic gradient descent over shuffled minibatches.

    The encoders are asked once, as they are frozen and pairs are not augmented. A last minibatch of a single pair has
    nothing to be told apart from and is left out. The order is a pure function of (``seed``, epoch).

    Args:
        network: Two heads on frozen encoders.
        pairs: What is learned.
        settings: How to train; without an augmentation.
        rates: Of the image head and of the text head, instead of the settings' learning rate; both follow its schedule.
        loss: Of (unit vectors of a minibatch, its row numbers int64 [m]), a scalar.
        after_epoch: Called with (epoch from 0, network) after each epoch.
        seed: Of the order.

    Returns:
        Mean loss of each epoch's minibatches.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
        TrainingDivergedError: A loss that is not finite.
    """
    if settings.augmentation:
        raise argument_error("settings", f"augmentation {settings.augmentation!r}", "none: pairs are not augmented")
    if pairs.checked("pairs").rows < 2 or settings.batch_size < 2:
        got = f"{pairs.rows} pairs in minibatches of {settings.batch_size}"
        raise argument_error("pairs", got, "at least 2 of each: a pair is told apart from another one")
    factors = [1.0, 1.0] if rates is None else [float(rate) / settings.learning_rate for rate in rates]
    if len(factors) != 2 or not all(0 < factor < math.inf for factor in factors):
        raise argument_error("rates", rates, "None or two numbers above 0")
    heads = (network.image_head, network.text_head)
    groups = [{"params": list(head.parameters()), "factor": each} for head, each in zip(heads, factors, strict=True)]
    optimiser = torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    with torch.no_grad():
        features = network.encode(pairs)
    means = []
    with kept_modes(network):
        for epoch in range(settings.epochs):
            network.train()
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(epoch) * group["factor"]
            order = random.permutation(pairs.rows, step=Step(epoch, seed=seed), name="order of pairs")
            values = []
            for rows in torch.split(order, settings.batch_size):
                if len(rows) < 2:
                    continue
                optimiser.zero_grad(set_to_none=True)
                value = loss(network(features.at(rows)), rows)
                value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
                optimiser.step()
                values.append(value.detach())
            means.append(float(torch.stack(values).mean()))
            if not math.isfinite(means[-1]):
                raise TrainingDivergedError(
                    f"training of pairs diverged: the loss is {means[-1]} in epoch {epoch}; a smaller learning rate "
                    "usually helps",
                    epoch=epoch,
                )
            if after_epoch is not None:
                after_epoch(epoch, network)
    return means


def record_pair_experts(
    store: WritableStore,
    network: Callable[[int], PairNetwork],
    pairs: Pairs,
    settings: TrainingSettings,
    *,
    count: int,
    loss: PairLoss = plain_pair_loss,
    shared_start: bool = False,
    seed: int = 0,
    column: str = "theta",
) -> list[str]:
    """Trains heads on real pairs and records them before training and after each epoch.

    Experts that are in the store are left as they are.

    Args:
        store: Where to.
        network: Makes a fresh network from a seed.
        pairs: The real pairs.
        settings: How each expert is trained.
        count: How many.
        loss: See :func:`train_pairs`.
        shared_start: Whether all of them begin at the same heads and differ by the order of the pairs alone; else each
            has heads of its own.
        seed: Of heads and orders.
        column: Of the store.

    Returns:
        Keys of the experts, "expert-0" and so on.
    """
    check_whole("count", count, "a positive integer", least=1)
    known, keys = set(store.keys()), [f"expert-{number}" for number in range(count)]
    for number, key in enumerate(keys):
        if key in known:
            continue
        own = random.generator_seed(Step(number, seed=seed), "pair expert")
        first = random.generator_seed(Step(0, seed=seed), "pair expert") if shared_start else own
        expert = network(first)
        with store.begin(key) as writer:
            snapshots = Snapshots(writer, ParameterLayout.of(expert), column)
            snapshots.record(expert)

            def keep(_: int, trained: PairNetwork, snapshots: Snapshots = snapshots) -> None:
                snapshots.record(trained)

            train_pairs(expert, pairs, settings, loss=loss, after_epoch=keep, seed=own)
    return keys
