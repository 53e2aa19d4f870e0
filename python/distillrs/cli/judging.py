"""The phase that compares the distilled set with what stands against it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillrs import evaluate, select
from distillrs.cli.distilling import voice
from distillrs.cli.preparation import Prepared
from distillrs.cli.progress import Progress
from distillrs.cli.select import principal_components

if TYPE_CHECKING:
    from torch import Tensor

    from distillrs.condense import Committee, CondensedSet

# Beyond so many values, distances are measured along as many principal directions.
_MOST_VALUES = 256
_COMPONENTS = 64


def selected(prepared: Prepared) -> dict[str, Tensor]:
    """Rows of real examples that selection takes in the distilled set's place, as many of each class.

    Distances are those of the examples as the network sees them, along 64 principal directions if they are large.
    """
    points = prepared.x_train.flatten(1).cpu()
    if points.shape[1] > _MOST_VALUES:
        points = principal_components(points, _COMPONENTS)
    y, count, seed = prepared.bundle.y_train, prepared.settings.per_class, prepared.settings.seed
    return {
        "k_center": select.k_center(points, count, groups=y, seed=seed).ids,
        "herding": select.herding(points, count, groups=y).ids,
        "facility_location": select.facility_location(points, count, groups=y).ids,
    }


def judge(
    prepared: Prepared, small: CondensedSet, progress: Progress, teachers: Committee | None = None
) -> evaluate.Comparison:
    """Trains fresh networks on the distilled set, on random and on selected real examples and on all of the data.

    Args:
        prepared: See :func:`distillrs.cli.preparation.prepare`.
        small: The distilled set.
        progress: Where to report.
        teachers: Who gave the distilled set its soft labels, and so gives the real examples theirs; ``None`` leaves
            that to the networks trained on all of the data.
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
            teacher=None if teachers is None else voice(prepared, teachers),
            selected=selected(prepared),
            device=prepared.device,
            on_progress=lambda done, total, name: phase.update(done, total=total, set=name.replace("_", " ")),
        )
