"""The phase that trains teachers: whole networks, running statistics and all, of which no path is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from distillrs import evaluate, random
from distillrs.files import write_whole
from distillrs.step import Step
from distillrs.training import train

if TYPE_CHECKING:
    from torch import nn

    from distillrs.cli.preparation import Prepared
    from distillrs.cli.progress import Progress
    from distillrs.condense import Committee


def trained(prepared: Prepared) -> int:
    """How many of the teachers are there already."""
    return sum(_file(prepared, number).is_file() for number in range(prepared.settings.experts.count))


def teach(prepared: Prepared, progress: Progress) -> Committee:
    """A committee of networks trained on the real data, each weighed alike; those on disk are taken from there.

    Args:
        prepared: See :func:`distillrs.cli.preparation.prepare`.
        progress: Where to report.
    """
    from distillrs.condense import Committee

    settings = prepared.settings.experts
    epochs = settings.training.epochs
    members = []
    with progress.phase("teachers", settings.count * epochs, "epochs") as phase:
        for number in range(settings.count):
            seed = random.generator_seed(Step(0, seed=prepared.settings.seed), f"teacher/{number}")
            network, done = prepared.network(seed), number * epochs

            def report(epoch: int, _: nn.Module, done: int = done) -> None:
                phase.update(done + epoch + 1)

            if not _restore(network, _file(prepared, number)):
                train(
                    network,
                    prepared.x_train,
                    prepared.y_train,
                    settings.training,
                    seed=seed,
                    after_epoch=report,
                )
                _write(network, _file(prepared, number))
            phase.update(done + epochs)
            members.append(network)
    return Committee(members)


def accuracies(prepared: Prepared, teachers: Committee) -> list[float]:
    """Of each teacher on the validation examples."""
    validation = prepared.bundle.validation.through(prepared.transform)
    return [evaluate.accuracy(teachers[number], validation.x, validation.y) for number in range(len(teachers))]


def _file(prepared: Prepared, number: int) -> Path:
    return prepared.store_path / f"teacher-{number}.safetensors"


def _write(network: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Cloned, because tied weights share memory, which the format refuses.
    write_whole(path, save({name: value.cpu().contiguous().clone() for name, value in network.state_dict().items()}))


def _restore(network: nn.Module, path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        saved = load(path.read_bytes())
    except (SafetensorError, OSError):
        return False
    known = network.state_dict()
    if {name: (value.shape, value.dtype) for name, value in saved.items()} != {
        name: (value.shape, value.dtype) for name, value in known.items()
    }:
        return False
    with torch.no_grad():
        for name, value in known.items():
            value.copy_(saved[name])
    return True
