"""The phase that compares the student's samples with the teacher's and with real examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import distillrs as dr
from distillrs import random
from distillrs.cli.progress import Progress
from distillrs.cli.sampler.phases import draw
from distillrs.cli.sampler.plan import Prepared
from distillrs.diffusion import FewStepSampler
from distillrs.evaluate import generation

_COLUMNS = 10


@dataclass(frozen=True, eq=False)
class Verdict:
    """What came out.

    Attributes:
        rows: For each sampler and for real examples: name, steps, and the figures.
        pictures: Raw samples by name, ``[10, ...]`` each, a class to each column and one noise to it in all rows.
        labels: Class number of each column.
    """

    rows: list[dict[str, Any]]
    pictures: dict[str, Tensor]
    labels: Tensor


def judge(prepared: Prepared, teacher: FewStepSampler, student: FewStepSampler, progress: Progress) -> Verdict:
    """Draws samples from one set of noises with both, at each number of steps, and measures them.

    All figures are of values as the network sees them. Real examples are those of the test set, which no training saw;
    real training examples stand beside the samples, as what a perfect sampler would get.

    Args:
        prepared: See :func:`distillrs.cli.sampler.plan.prepare`.
        teacher: The teacher.
        student: The student.
        progress: Where to report.
    """
    settings, bundle = prepared.settings, prepared.bundle
    full, counts = settings.teacher.sampling_steps, settings.counts
    runs = [("teacher", teacher, full)]
    runs += [("student", student, count) for count in counts]
    runs += [("teacher", teacher, count) for count in counts if count != full]
    noise, labels = draw(prepared, settings.evaluation.samples, "evaluation")
    columns = torch.arange(_COLUMNS) % max(len(bundle.classes), 1)
    step = dr.Step(0, seed=settings.seed)
    start = random.normal(_COLUMNS, *bundle.shape, step=step, name="picture/noise", device=prepared.device)
    real = _real(prepared, bundle.x_test, "test")
    rows: list[dict[str, Any]] = [{"name": "real", "steps": None, "paired_rmse": None}]
    rows[0] |= _figures(prepared, _real(prepared, bundle.x_train, "train"), real)
    shown: dict[str, Tensor] = {}
    with progress.phase("evaluate", len(runs), "samplers") as phase:
        reference = None
        for done, (name, sampler, steps) in enumerate(runs, 1):
            found = sampler.run(noise, labels, steps=steps, seed=settings.seed)
            reference = found if reference is None else reference
            figures = _figures(prepared, found, real)
            distance = generation.paired_rmse(found, reference)
            rows.append({"name": name, "steps": steps, "paired_rmse": distance} | figures)
            seen = sampler.run(start, columns.to(prepared.device), steps=steps, seed=settings.seed)
            shown[f"{name}, {steps}"] = prepared.transform.inverse(seen.float().cpu())
            phase.update(done, sampler=f"{name} {steps}")
    return Verdict(rows, shown, columns)


def _figures(prepared: Prepared, samples: Tensor, real: Tensor) -> dict[str, float]:
    scores = generation.neighbourhood_scores(samples, real, prepared.settings.evaluation.neighbours)
    return {
        "frechet": generation.frechet_distance(samples, real),
        "precision": scores.precision,
        "recall": scores.recall,
        "coverage": scores.coverage,
    }


def _real(prepared: Prepared, x: Tensor, name: str) -> Tensor:
    count = min(len(x), prepared.settings.evaluation.samples)
    rows = random.choice(len(x), count, step=dr.Step(0, seed=prepared.settings.seed), name=f"real/{name}")
    return prepared.transform.forward(x[rows])
