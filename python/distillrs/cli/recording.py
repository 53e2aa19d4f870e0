"""The phase that records experts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from distillrs.cli.preparation import Prepared
from distillrs.cli.progress import Progress
from distillrs.errors import StoreMissing
from distillrs.trajectory import Schema, Store

if TYPE_CHECKING:
    from distillrs.condense.experts import ExpertProgress

_WAIT_SECONDS = 2.0


def recorded(prepared: Prepared) -> int:
    """How many of the experts are complete already."""
    try:
        with Store.open(prepared.store_path) as store:
            return len(store)
    except StoreMissing:  # no folder yet, or one that another process, or a killed one, has only just made
        return 0


def record(prepared: Prepared, progress: Progress, *, shard: tuple[int, int] = (0, 1)) -> dict[str, str]:
    """Trains and records the experts of a shard that the store lacks.

    Args:
        prepared: See :func:`distillrs.cli.preparation.prepare`.
        progress: Where to report.
        shard: (i, N): every N-th expert from the i-th on.

    Returns:
        For each expert of the shard "recorded", "complete" (it was there) or "locked" (another process writes it).
    """
    experts, settings = prepared.expert_training, prepared.settings
    column = prepared.layout.column(codec=settings.experts.codec)
    metadata = {"layout": prepared.layout.to_dict(), "experts": prepared.experts_description}
    prepared.store_path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints = prepared.store_path.with_name(f"{prepared.store_path.name}-unfinished")
    with Store.create(prepared.store_path, Schema(theta=column), metadata, exist_ok=True) as store:
        mine = range(shard[0], settings.experts.count, shard[1])
        epochs = settings.experts.training.epochs
        lengths = store.lengths(incomplete=True)
        done = _finished_epochs(store, lengths, epochs)
        with progress.phase("experts", len(mine) * epochs, "epochs", start=min(done, len(mine) * epochs)) as phase:
            outcomes = experts.record(
                store,
                prepared.network,
                prepared.x_train,
                prepared.y_train,
                keys=settings.experts.count,
                shard=shard,
                seed=settings.seed,
                checkpoints=checkpoints,
                on_progress=_reporter(phase.update),
            )
            phase.update(len(mine) * epochs)
    with contextlib.suppress(OSError):  # not empty while another process has an unfinished expert
        checkpoints.rmdir()
    return dict(outcomes)


def _finished_epochs(store: Store, lengths: dict[str, int], epochs: int) -> int:
    complete = set(store.keys())
    return sum(epochs if key in complete else max(0, length - 1) for key, length in lengths.items())


def _reporter(update: Callable[..., None]) -> Callable[[ExpertProgress], None]:
    def report(at: ExpertProgress) -> None:
        update(at.expert * at.epochs + at.epoch, expert=f"{at.expert + 1}/{at.experts}", loss=at.loss)

    return report


def complete(prepared: Prepared, progress: Progress) -> Store:
    """All experts, recorded here or by others.

    Experts that other processes are writing are waited for; if their writer dies, they are taken over.

    Returns:
        The store, open for reading.
    """
    count = prepared.settings.experts.count
    if recorded(prepared) == count:
        progress.note(f"experts: {count} are recorded already in {prepared.store_path}")
    else:
        waiting = False
        while "locked" in record(prepared, progress).values():
            if not waiting:
                progress.note("experts: waiting for those that other processes are recording")
            waiting = True
            time.sleep(_WAIT_SECONDS)
    return Store.open(prepared.store_path)
