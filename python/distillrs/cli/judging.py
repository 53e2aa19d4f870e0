"""The phase that compares the distilled set with what stands against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillrs import evaluate
from distillrs.cli.preparation import Prepared
from distillrs.cli.progress import Progress

if TYPE_CHECKING:
    from distillrs.condense import CondensedSet


def judge(prepared: Prepared, small: CondensedSet, progress: Progress) -> evaluate.Comparison:
    """Trains fresh networks on the distilled set, on random real examples and on all of the data.

    Args:
        prepared: See :func:`distillrs.cli.preparation.prepare`.
        small: The distilled set.
        progress: Where to report.
    """
    settings = prepared.settings.evaluation
    with progress.phase("evaluate", 0, "networks") as phase:
        return evaluate.compare(
            small,
            prepared.bundle,
            prepared.network,
            seeds=settings.seeds,
            settings=settings.training,
            full_data_settings=settings.full_data,
            learning_rates=settings.learning_rates,
            device=prepared.device,
            on_progress=lambda done, total, name: phase.update(done, total=total, set=name.replace("_", " ")),
        )
