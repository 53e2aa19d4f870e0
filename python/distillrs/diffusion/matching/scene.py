"""What the parts of a matcher see of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distillrs.diffusion.checks import is_number
from distillrs.diffusion.matching.critics import Critic
from distillrs.diffusion.matching.ratios import LogRatio
from distillrs.diffusion.matching.rollouts import Rolled
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.diffusion.scores import Score
from distillrs.diffusion.states import Batch
from distillrs.errors import argument_error
from distillrs.schedule import Path, Ramp
from distillrs.step import Step

RESERVED = ("loss", "evaluations", "backwards")
"""What every loss of a matcher reports; neither terms nor critics have these names."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One call of a matcher.

    Attributes:
        path: The path.
        rolled: The samples: leaves that take a gradient in the generator's turn, without a graph in the critic's.
        batch: The batch.
        step: Where in the run.
        real: The real score of this step; ``None`` in the critic's turn.
        critics: By name; their calls are counted.
        networks: Networks that features may be taken of: the critics', and "real".
        ratio: The density ratio that the matcher's adversary knows.
    """

    path: Path
    rolled: Rolled
    batch: Batch
    step: Step
    real: Score | None
    critics: Mapping[str, Critic]
    networks: Mapping[str, NetworkAdapter]
    ratio: LogRatio | None = None


def scale_at(scale: float | Ramp, step: Step) -> float:
    """A number or a ramp at a step."""
    return float(scale(step)) if callable(scale) else float(scale)


def mean_of(rows: Tensor) -> Tensor:
    """What is reported of rows ``[n]``: their mean, 0 where there are none."""
    return rows.detach().sum() / max(len(rows), 1)


def check_scale(name: str, scale: object) -> None:
    """Refuses what is neither a finite number nor a ramp."""
    if not callable(scale) and not is_number(scale):
        raise argument_error(name, scale, "a finite number or a ramp")
