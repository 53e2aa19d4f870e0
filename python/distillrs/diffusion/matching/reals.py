"""Real scores: what the samples are drawn towards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.scores import Score, predict_both
from distillrs.diffusion.sources import Guided, Source
from distillrs.errors import argument_error
from distillrs.schedule import Path, Prediction, guide
from distillrs.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoints:
    """One score after another: a teacher's checkpoints from the generator's own ability up to the last.

    Attributes:
        scores: In the order in which they are followed; guided ones allowed.
        every: Steps with each; the last one stays.
    """

    scores: Sequence[Score]
    every: int

    def __post_init__(self) -> None:
        if not isinstance(self.scores, Sequence) or not self.scores:
            raise argument_error("scores", self.scores, "one or more scores")
        for score in self.scores:
            check_real(score)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise argument_error("every", self.every, "a positive number of steps")

    def at(self, step: Step) -> Score:
        """The score of a step."""
        return self.scores[min(step.index // self.every, len(self.scores) - 1)]


Real: TypeAlias = Score | Checkpoints
"""A score, one with guidance (:class:`~distillrs.diffusion.Guided`), or a sequence of them."""


class RealView(NamedTuple):
    """What the real score says of the clean state; all ``[n, ...]``, at least float32.

    Attributes:
        guided: ``R_w``; the conditional prediction where there is no guidance.
        conditional: ``R_c``.
        unconditional: ``R_u``; ``None`` without guidance.
    """

    guided: Tensor
    conditional: Tensor
    unconditional: Tensor | None


def predict_real(score: Score, path: Path, x: Tensor, t: Tensor, condition: Condition, null: Condition) -> RealView:
    """A real score's view of states ``[n, ...]`` at times ``[n]``; both predictions of guidance in one call.

    Raises:
        ArgumentError: Guidance without a condition that stands for none.
    """
    if not isinstance(score, Guided):
        found = as_x0(score.predict(x, t, condition), path, x, t)
        return RealView(found, found, None)
    null = null if score.null is None else score.null
    if null is None:
        raise argument_error("null_condition", None, "the condition that stands for none: guidance needs one")
    assert isinstance(score.score, Score)
    scale, told, null = score.strength(condition, null)
    conditional, unconditional, kind = predict_both(score.score, x, t, told, null)
    one, other = (as_x0(Prediction(value, kind), path, x, t) for value in (conditional, unconditional))
    return RealView(guide(one, other, scale, score.convention), one, other)


def as_x0(prediction: Prediction, path: Path, x: Tensor, t: Tensor) -> Tensor:
    """A prediction as one of the clean state, in float32 or wider: differences of two follow."""
    value, kind = prediction
    if value.shape != x.shape:
        raise argument_error("score", f"a prediction of shape {tuple(value.shape)}", f"the states', {tuple(x.shape)}")
    wide = torch.promote_types(torch.promote_types(value.dtype, x.dtype), torch.float32)
    return path.convert(value.to(wide), x.to(wide), t, kind=kind, to="x0")


def check_real(real: object) -> None:
    """Refuses what is no score of its own."""
    if isinstance(real, Checkpoints):
        return
    inner = real.score if isinstance(real, Guided) else real
    if isinstance(inner, Source) or not isinstance(inner, Score):
        allowed = "a Score (a Teacher, an exact one), Guided(...) around one, or Checkpoints(...)"
        raise argument_error("real", type(inner).__name__, allowed)


def modules_of(real: object) -> list[nn.Module]:
    """The modules of a score, as far as they can be found: exact scores have none."""
    if isinstance(real, Checkpoints):
        return [module for score in real.scores for module in modules_of(score)]
    inner = real.score if isinstance(real, Guided) else real
    module = getattr(getattr(inner, "network", None), "module", None)
    return [module] if isinstance(module, nn.Module) else []
