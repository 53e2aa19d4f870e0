"""Sources: whose velocity the map is to follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from distillrs.diffusion.checks import check_adapter, is_number
from distillrs.diffusion.conditions import Condition, rows_of, select
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.diffusion.randomness import Replay
from distillrs.diffusion.scores import Score, predict_both, velocity_of
from distillrs.diffusion.state_map import StateMap, per_row
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Convention, Path, Prediction, guide


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a call of the objective knows, for sources that depend on it.

    Attributes:
        map: The student's map.
        replay: Of its dropout.
        x0: Clean examples, ``[n, ...]``, where the states are noised data.
        noise: Their noise.
        null_condition: What stands for no condition.
        dropped: bool ``[n]``: rows whose condition was dropped.
        chosen: Which rows of the batch these are; ``None`` for all.
    """

    map: StateMap
    replay: Replay
    x0: Tensor | None
    noise: Tensor | None
    null_condition: Condition
    dropped: Tensor | None
    chosen: Tensor | None = None

    @property
    def path(self) -> Path:
        """The path."""
        return self.map.path

    def rows(self, rows: Tensor) -> Call:
        """The same for some rows."""
        return replace(
            self,
            x0=rows_of(self.x0, rows),
            noise=rows_of(self.noise, rows),
            null_condition=select(self.null_condition, rows),
            dropped=rows_of(self.dropped, rows),
            chosen=rows if self.chosen is None else self.chosen[rows],
        )


class Source(ABC):
    """A score that depends on the call: bound, it is one.

    Attributes:
        anywhere: Whether it knows the velocity at any state, or at the noised examples alone.
    """

    __slots__ = ()

    @property
    def anywhere(self) -> bool:
        """Whether it knows the velocity at any state, or at the noised examples alone."""
        return True

    @abstractmethod
    def bind(self, call: Call) -> Score:
        """The score of this call."""


AnySource: TypeAlias = Source | Score
"""A source, or a score that needs nothing of the call: a teacher, an exact score."""


@dataclass(frozen=True, slots=True)
class Data(Source):
    """The velocity of the noised example itself, ``alpha' x0 + sigma' eps``: its mean is that of the flow.

    Known at the noised examples alone, so only residuals that look there take it.
    """

    @property
    def anywhere(self) -> bool:
        """Only at the noised examples."""
        return False

    def bind(self, call: Call) -> Score:
        """The conditional velocity."""
        if call.x0 is None or call.noise is None:
            raise argument_error("source", "Data()", "another source: these states are not noised data")
        return _Conditional(call.path, call.x0, call.noise)


@dataclass(frozen=True, slots=True, eq=False)
class _Conditional:
    path: Path
    x0: Tensor
    noise: Tensor

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        rate, growth = self.path.alpha_derivative(t), self.path.sigma_derivative(t)
        return Prediction((per_row(rate, x) * self.x0 + per_row(growth, x) * self.noise).to(x.dtype), "velocity")


@dataclass(frozen=True, slots=True)
class Self(Source):
    """The student's own velocity, on its diagonal, with its present weights and without a gradient."""

    def bind(self, call: Call) -> Score:
        """The present weights, with the call's dropout."""
        return _Replayed(call.map, call.replay)


@dataclass(frozen=True, slots=True, eq=False)
class _Replayed:
    map: StateMap
    replay: Replay

    @torch.no_grad()
    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        return self.replay(lambda: self.map.predict(x, t, condition))


@dataclass(frozen=True, slots=True)
class Averaged(Source):
    """The velocity of a moving average of the student, on its diagonal.

    Attributes:
        network: The average (``torch.optim.swa_utils.AveragedModel``), in the student's adapter; whoever trains updates
            it.
    """

    network: NetworkAdapter

    def __post_init__(self) -> None:
        check_adapter("network", self.network)

    def bind(self, call: Call) -> Score:
        """The average with the student's head."""
        return replace(call.map, network=self.network)


@dataclass(frozen=True, slots=True)
class Guided(Source):
    """Another source's velocity with classifier-free guidance, both predictions in one call.

    For :class:`Data`, whose velocity knows no class, the unconditional one is the student's own at the null condition:
    ``u + w (v - u)``, as guided mean flows are trained (Geng et al., 2025). Rows whose condition was dropped are not
    guided.

    Attributes:
        score: The source that is guided.
        scale: ``w``; or the name of the condition's entry that holds each row's, ``[n]``. That entry is for a student
            that takes the guidance as an input; the guided score, which knows none, is not told it.
        convention: What ``w`` multiplies; see :func:`distillrs.schedule.guide`.
        null: The condition that stands for none; ``None`` takes the batch's.
    """

    score: AnySource
    scale: float | str
    convention: Convention = "from_unconditional"
    null: Condition = None

    def __post_init__(self) -> None:
        if self.convention not in ("from_unconditional", "from_conditional"):
            raise unknown_name_error("convention", self.convention, ["from_unconditional", "from_conditional"])
        if isinstance(self.score, Guided):
            raise argument_error("score", self.score, "a source that is not guided already")
        if not isinstance(self.score, (Source, Score)):
            raise argument_error("score", self.score, "a score or a source")
        if not isinstance(self.scale, str) and not is_number(self.scale):
            raise argument_error("scale", self.scale, "a finite number, or the name of the condition's entry")
        if isinstance(self.scale, str) and isinstance(self.score, Source):
            allowed = f"a number with {type(self.score).__name__}: only a teacher does without the student's guidance"
            raise argument_error("scale", self.scale, allowed)

    @property
    def anywhere(self) -> bool:
        """As the source that is guided."""
        return not isinstance(self.score, Source) or self.score.anywhere

    def bind(self, call: Call) -> Score:
        """The guided velocity of this call."""
        null = call.null_condition
        if self.null is not None:
            null = self.null if call.chosen is None else select(self.null, call.chosen)
        if null is None:
            raise argument_error("null_condition", None, "the condition that stands for none: guidance needs one")
        own = Self().bind(call) if isinstance(self.score, Data) else None
        return _GuidedScore(self, bound(self.score, call), own, call.path, null, call.dropped)

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        """Outside an objective: of a plain score, with ``null`` given."""
        if isinstance(self.score, Source) or self.null is None:
            raise argument_error(
                "null", self.null, "the condition that stands for none, and a score that needs no batch"
            )
        scale, told, null = self.strength(condition, self.null)
        conditional, unconditional, kind = predict_both(self.score, x, t, told, null)
        return Prediction(guide(conditional, unconditional, scale, self.convention), kind)

    def strength(self, condition: Condition, null: Condition) -> tuple[float | Tensor, Condition, Condition]:
        """``w`` of the rows, and both conditions as the guided score is told them."""
        name = self.scale
        if not isinstance(name, str):
            return name, condition, null
        value = (condition or {}).get(name)
        if not isinstance(value, Tensor):
            raise argument_error("condition", sorted(condition or {}), f"an entry {name!r}, the guidance of each row")

        def without(entries: Condition) -> Condition:
            return {key: entry for key, entry in (entries or {}).items() if key != name}

        return value.detach(), without(condition), without(null)


@dataclass(frozen=True, slots=True, eq=False)
class _GuidedScore:
    guided: Guided
    score: Score
    unconditional: Score | None
    path: Path
    null: Condition
    dropped: Tensor | None

    def predict(self, x: Tensor, t: Tensor, condition: Condition = None) -> Prediction:
        scale, told, null = self.guided.strength(condition, self.null)
        if self.unconditional is None:
            one, other, kind = predict_both(self.score, x, t, told, null)
        else:
            one, kind = velocity_of(self.score, self.path, x, t, condition), "velocity"
            other = velocity_of(self.unconditional, self.path, x, t, self.null)
        found = guide(one, other, scale, self.guided.convention)
        if self.dropped is not None:
            found = torch.where(self.dropped.reshape(-1, *(1,) * (x.dim() - 1)), one, found)
        return Prediction(found, kind)


def bound(source: AnySource, call: Call) -> Score:
    """The score of a call."""
    return source.bind(call) if isinstance(source, Source) else source


def check_source(name: str, source: object) -> None:
    """Refuses what is neither a source nor a score."""
    if not isinstance(source, (Source, Score)):
        raise argument_error(name, type(source).__name__, "a source (Data(), Self(), Guided(...)) or a Score")
