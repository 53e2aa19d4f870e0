"""Training the heads of a network of pairs, and recording experts of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_callable, check_flag, check_instance, check_text, check_whole, numbers
from distillrs.condense.experts import Snapshots, WritableStore
from distillrs.condense.pairs import PairNetwork, Pairs, check_pairs, contrastive_loss
from distillrs.errors import TrainingDivergedError, argument_error
from distillrs.frozen import kept_modes
from distillrs.step import Step
from distillrs.training import TrainingSettings
from distillrs.trajectory import ParameterLayout

PairLoss = Callable[[Pairs, Tensor], Tensor]
_MOST_EXPERTS = 1 << 20


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
    check_instance("network", network, PairNetwork, "a PairNetwork")
    check_pairs("pairs", pairs)
    check_instance("settings", settings, TrainingSettings, "TrainingSettings")
    check_callable("loss", loss, "a function of unit vectors and row numbers")
    if after_epoch is not None:
        check_callable("after_epoch", after_epoch, "None or a function of (epoch, network)")
    if settings.augmentation:
        raise argument_error("settings", f"augmentation {settings.augmentation!r}", "none: pairs are not augmented")
    if pairs.rows < 2 or settings.batch_size < 2:
        got = f"{pairs.rows} pairs in minibatches of {settings.batch_size}"
        raise argument_error("pairs", got, "at least 2 of each: a pair is told apart from another one")
    begun = (settings.learning_rate,) * 2 if rates is None else numbers("rates", rates)
    if len(begun) != 2 or not min(begun) > 0:
        raise argument_error("rates", rates, "None or two numbers above 0")
    factors = [rate / settings.learning_rate for rate in begun]
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
    check_whole("count", count, f"a whole number from 1 to {_MOST_EXPERTS}", least=1, most=_MOST_EXPERTS)
    check_callable("network", network, "a function from a seed to a PairNetwork")
    check_pairs("pairs", pairs)
    check_instance("settings", settings, TrainingSettings, "TrainingSettings")
    check_flag("shared_start", shared_start)
    check_text("column", column)
    known, keys = set(store.keys()), [f"expert-{number}" for number in range(count)]
    for number, key in enumerate(keys):
        if key in known:
            continue
        own = random.generator_seed(Step(number, seed=seed), "pair expert")
        first = random.generator_seed(Step(0, seed=seed), "pair expert") if shared_start else own
        expert = network(first)
        check_instance("network", expert, PairNetwork, "a function from a seed to a PairNetwork")
        with store.begin(key) as writer:
            snapshots = Snapshots(writer, ParameterLayout.of(expert), column)
            snapshots.record(expert)

            def keep(_: int, trained: PairNetwork, snapshots: Snapshots = snapshots) -> None:
                snapshots.record(trained)

            train_pairs(expert, pairs, settings, loss=loss, after_epoch=keep, seed=own)
    return keys
