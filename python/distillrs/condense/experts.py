"""Training experts and recording their trajectories into a store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_callable, check_floating, check_instance, check_text, check_whole, described
from distillrs.errors import ArgumentError, KeyConflict, StoreLocked, argument_error
from distillrs.files import write_whole
from distillrs.step import Step
from distillrs.training import LossFunction, Position, StepRule, TrainingSettings, plain, train
from distillrs.trajectory.layout import ParameterLayout

_MOST_EXPERTS = 1 << 20

Outcome = Literal["recorded", "complete", "locked"]


class Writer(Protocol):
    """The part of a trajectory's writer that recording needs."""

    def __len__(self) -> int: ...

    def append(self, **columns: Tensor) -> object:
        """Adds one record."""
        ...

    def flush(self) -> None:
        """Makes what was appended durable."""
        ...


class WritableStore(Protocol):
    """The part of a trajectory store that recording needs."""

    def keys(self) -> Iterable[str]:
        """Keys of the complete trajectories."""
        ...

    def begin(self, key: str, resume_at: int | None = None) -> AbstractContextManager[Writer]:
        """Opens a trajectory for writing, cut to ``resume_at`` records."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Records a network's parameters; a callback for a training loop of one's own.

    Called once before training and once after each epoch, it makes the trajectory that matching takes::

        with store.begin("expert-0") as writer:
            snapshots = Snapshots(writer, ParameterLayout.of(model))
            snapshots.record(model)
            for epoch in range(epochs):
                ...
                snapshots.record(model)

    Attributes:
        writer: The writer of one trajectory.
        layout: How the parameters lie in a record.
        column: Name of the column.
    """

    writer: Writer
    layout: ParameterLayout
    column: str = "theta"

    def record(self, model: nn.Module) -> None:
        """Appends a copy of the model's parameters; durable when it returns."""
        # Not a view: a store that held one would see every record become the last one.
        self.writer.append(**{self.column: self.layout.flatten(model)})
        self.writer.flush()


@dataclass(frozen=True, slots=True)
class ExpertProgress:
    """Where recording stands, after one epoch.

    Attributes:
        key: The expert that is trained.
        expert: Its number among those of this shard, from 0.
        experts: How many this shard has.
        epoch: Epochs of it that are done.
        epochs: How many it trains for.
        loss: Mean training loss of the last epoch.
    """

    key: str
    expert: int
    experts: int
    epoch: int
    epochs: int
    loss: float


@dataclass(frozen=True, slots=True)
class ExpertTraining:
    """How experts are trained; what it records is one vector of parameters before training and after each epoch.

    Attributes:
        training: Settings of each expert's training.
        rule: How a minibatch's gradient is formed: plain, or one of :mod:`distillrs.condense.modifiers`.
    """

    training: TrainingSettings
    rule: StepRule = plain

    def describe(self) -> dict[str, Any]:
        """What was asked for, as plain values for metadata and reports."""
        return {"training": self.training.to_dict(), "rule": describe_rule(self.rule)}

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of :meth:`describe`; equal descriptions train equal experts from equal seeds."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:32]

    def record(
        self,
        store: WritableStore,
        network: Callable[[int], nn.Module],
        x: Tensor,
        y: Tensor,
        *,
        keys: int | Sequence[str],
        shard: tuple[int, int] = (0, 1),
        seed: int = 0,
        column: str = "theta",
        checkpoints: str | os.PathLike[str] | None = None,
        on_progress: Callable[[ExpertProgress], None] | None = None,
    ) -> dict[str, Outcome]:
        """Trains the experts that the store still lacks, one after the other.

        An expert depends on ``seed`` and its key alone, so any number of processes, each with its shard, make the same
        store as one. Complete experts are skipped, as are those that another process is writing at the moment. One
        that was interrupted goes on behind its last checkpoint if ``checkpoints`` has one of the same data and initial
        weights, and from its initial weights otherwise; either way the trajectory is, on the same machine and thread
        count, bit for bit that of an uninterrupted run.

        Args:
            store: Open for writing, with a column of the network's layout.
            network: Makes a freshly initialised network from a seed, on the device on which it is to be trained.
            x: ``[n, ...]`` examples in the network's input space.
            y: int64 ``[n]`` classes, or ``[n, C]`` probabilities.
            keys: Names of all experts, or how many: ``"expert-0"``, ``"expert-1"`` and so on.
            shard: ``(i, N)``: this process takes every N-th expert from the i-th on.
            seed: Of the experts; each has its own, derived from it and its key.
            column: Name of the store's column.
            checkpoints: Folder for the state of unfinished experts, made if it is missing; a file is removed when its
                expert is complete.
            on_progress: Called after each epoch.

        Returns:
            For each key of the shard whether it was recorded now, was complete before, or is locked by another process.

        Raises:
            ArgumentError: A value that is not allowed, or a network with running statistics.
            TrainingDivergedError: A loss or a parameter is not finite; the trajectory stays incomplete.
        """
        check_callable("network", network, "a function from a seed to a module")
        check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
        check_instance("y", y, Tensor, "int64 [n] or probabilities [n, C]")
        check_text("column", column)
        if on_progress is not None:
            check_callable("on_progress", on_progress, "None or a function of ExpertProgress")
        names = _expert_keys(keys)
        index, count = _checked_shard(shard)
        mine = names[index::count]
        done = set(store.keys())
        data = "" if checkpoints is None else _digest([x, y])
        outcomes: dict[str, Outcome] = {}
        for number, key in enumerate(mine):
            if key in done:
                outcomes[key] = "complete"
                continue
            expert_seed = random.generator_seed(Step(0, seed=seed), f"expert/{key}")
            run = _Run(self, key, expert_seed, network, None if checkpoints is None else Path(checkpoints), data)

            def report(epoch: int, loss: float, key: str = key, number: int = number) -> None:
                if on_progress is not None:
                    on_progress(ExpertProgress(key, number, len(mine), epoch, self.training.epochs, loss))

            try:
                run.train(store, x, y, column, report)
            except StoreLocked:
                outcomes[key] = "locked"
            except KeyConflict:
                # Another process completed it since the keys were listed.
                outcomes[key] = "complete"
            else:
                outcomes[key] = "recorded"
        return outcomes


def describe_rule(rule: object) -> dict[str, Any] | str:
    """A rule as plain values: its settings, and those of the rules it wraps; a function by its name.

    Args:
        rule: A step rule, or a setting of one.

    Raises:
        ArgumentError: Neither a dataclass nor a named function of a module: nothing would tell it from another one.
    """
    if dataclasses.is_dataclass(rule) and not isinstance(rule, type):
        settings = {entry.name: getattr(rule, entry.name) for entry in dataclasses.fields(rule)}
        return {"name": type(rule).__qualname__} | {
            name: describe_rule(value) if callable(value) else value for name, value in settings.items()
        }
    name = getattr(rule, "__qualname__", "<")
    if "<" in name:
        raise argument_error("rule", rule, "a function defined in a module, or an instance of a dataclass")
    return f"{getattr(rule, '__module__', '')}:{name}"


class _Run:
    """One expert: its network, its optimiser and how far they have come."""

    def __init__(
        self,
        experts: ExpertTraining,
        key: str,
        seed: int,
        factory: Callable[[int], nn.Module],
        folder: Path | None,
        data: str,
    ) -> None:
        self._experts = experts
        self._key = key
        self._seed = seed
        self._factory = factory
        self._data = data
        self._path = None if folder is None else folder / f"{quote(key, safe='')}.safetensors"
        self._begin()

    def _begin(self) -> None:
        settings = self._experts.training
        self._epoch = 0
        self._network = self._factory(self._seed)
        self._layout = ParameterLayout.of(self._network)
        self._start = "" if self._path is None else _digest([*self._network.parameters(), *self._network.buffers()])
        if self._layout.has_running_statistics:
            raise argument_error(
                "network",
                f"a module with the running statistics {self._layout.running_statistics[0]!r}",
                "one without: a trajectory holds parameters only; use GroupNorm or InstanceNorm, or batch "
                "normalisation with track_running_stats=False",
            )
        self._optimiser = torch.optim.SGD(
            [parameter for parameter in self._network.parameters() if parameter.requires_grad],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )

    def train(
        self, store: WritableStore, x: Tensor, y: Tensor, column: str, report: Callable[[int, float], None]
    ) -> None:
        with self._writer(store) as writer:
            snapshots = Snapshots(writer, self._layout, column)
            if self._epoch == 0:
                snapshots.record(self._network)
            rule = _Averaged(self._experts.rule)

            def after_epoch(epoch: int, network: nn.Module) -> None:
                snapshots.record(network)
                self._epoch = epoch + 1
                # After the record is durable, so a checkpoint never stands further than its trajectory.
                self._save()
                report(self._epoch, rule.mean())

            train(
                self._network,
                x,
                y,
                self._experts.training,
                seed=self._seed,
                rule=rule,
                after_epoch=after_epoch,
                optimiser=self._optimiser,
                first_epoch=self._epoch,
            )
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _writer(self, store: WritableStore) -> AbstractContextManager[Writer]:
        # Reading the checkpoint needs no lock: whatever state it has, the trajectory is cut to the same epoch.
        if self._restore():
            try:
                return store.begin(self._key, resume_at=self._epoch + 1)
            except ArgumentError:
                # The store has fewer records than the checkpoint, because it is another one or was repaired.
                self._begin()
        return store.begin(self._key, resume_at=0)

    def _identity(self) -> dict[str, str]:
        return {
            "experts": self._experts.fingerprint,
            "layout": self._layout.fingerprint,
            "data": self._data,
            "start": self._start,
            "key": self._key,
            "seed": str(self._seed),
        }

    def _state(self) -> dict[str, Tensor]:
        """What, beside the epoch, the rest of the training depends on."""
        state = {f"parameter/{name}": value.detach() for name, value in self._network.named_parameters()}
        state |= {f"buffer/{name}": value for name, value in self._network.named_buffers()}
        for number, parameter in enumerate(self._optimiser.param_groups[0]["params"]):
            momentum = self._optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                state[f"momentum/{number}"] = momentum
        return state

    def _save(self) -> None:
        if self._path is None or self._epoch == self._experts.training.epochs:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.cpu().contiguous().clone() for name, value in self._state().items()}
        content = save(tensors, self._identity() | {"epoch": str(self._epoch)})
        write_whole(self._path, content)

    def _restore(self) -> bool:
        """Takes the state of this very expert from its checkpoint, if there is one."""
        if self._path is None or not self._path.exists():
            return False
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (SafetensorError, OSError):
            return False
        epoch = metadata.pop("epoch", "")
        if metadata != self._identity() or not epoch.isdecimal() or not 0 < int(epoch) < self._experts.training.epochs:
            return False
        for number, parameter in enumerate(self._optimiser.param_groups[0]["params"]):
            if f"momentum/{number}" in saved:
                self._optimiser.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
        state = self._state()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in saved.items()}:
            self._begin()
            return False
        with torch.no_grad():
            for name, value in state.items():
                value.copy_(saved[name])
        self._epoch = int(epoch)
        return True


class _Averaged:
    """A rule that also keeps the mean loss of the epoch, for progress."""

    def __init__(self, rule: StepRule) -> None:
        self._rule = rule
        self._values: list[Tensor] = []
        self._sizes: list[int] = []

    def __call__(
        self, network: nn.Module, images: Tensor, labels: Tensor, loss: LossFunction, position: Position
    ) -> Tensor:
        value = self._rule(network, images, labels, loss, position)
        if position.batch == 0:
            self._values.clear()
            self._sizes.clear()
        self._values.append(value)
        self._sizes.append(len(images))
        return value

    def mean(self) -> float:
        values = torch.stack(self._values).double().cpu()
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        return float((values * sizes).sum() / sizes.sum())


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _expert_keys(keys: int | Sequence[str]) -> list[str]:
    if isinstance(keys, int):
        check_whole("keys", keys, f"1 to {_MOST_EXPERTS} experts, or their names", least=1, most=_MOST_EXPERTS)
        return [f"expert-{number}" for number in range(keys)]
    allowed = "a number of experts, or distinct names of at least one"
    if not isinstance(keys, list | tuple) or not keys or not all(isinstance(each, str) for each in keys):
        raise argument_error("keys", described(keys), allowed)
    names = list(keys)
    if len(set(names)) != len(names):
        raise argument_error("keys", keys, allowed)
    return names


def _checked_shard(shard: tuple[int, int]) -> tuple[int, int]:
    allowed = "(i, N), whole numbers with 0 <= i < N"
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise argument_error("shard", described(shard), allowed)
    index, count = shard
    check_whole("shard", count, allowed, least=1)
    check_whole("shard", index, allowed, least=0, most=count - 1)
    return index, count
