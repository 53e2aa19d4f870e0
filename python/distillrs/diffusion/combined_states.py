"""States of two kinds in one batch: blended in every row, or each row from one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_number
from distillrs.diffusion.state_map import per_row
from distillrs.diffusion.states import Batch, Drawn, States
from distillrs.errors import argument_error
from distillrs.schedule import Path, Times
from distillrs.step import Step


@dataclass(frozen=True, slots=True)
class Blend(States):
    """``w x + (1 - w) y`` of two states at the same times, of the same noise where both are drawn from noise.

    On the way between a noised example and what a solver made of it, as the sub-paths of Xu et al., "Accelerating image
    generation with sub-path linear approximation model" (2024), whose ``w`` is uniform. A blend lies on neither state's
    way through the flow: it is no noised example, and no end of it is known, so ``Data()`` and ``Endpoint()`` are
    refused.

    Attributes:
        first: States ``x``.
        second: States ``y``; at most one of the two may choose its own times, which are then those of both.
        share: ``w``, from 0 to 1; ``None`` draws it for each row, uniformly.
    """

    first: States
    second: States
    share: float | None = None

    def __post_init__(self) -> None:
        _check_two(self, Blend)
        if self.share is not None:
            check_number("share", self.share, "a share from 0 to 1, or None to draw it", least=0, most=1)
        if self.first.moves_times and self.second.moves_times:
            allowed = f"states at any time, as NoisedData(): {type(self.first).__name__} chooses the times of both"
            raise argument_error("second", self.second, allowed)

    def draw(self, batch: Batch, times: Times, path: Path, step: Step) -> Drawn:
        """See :class:`States`."""
        if self.second.moves_times:
            second = self.second.draw(batch, times, path, step)
            first = self.first.draw(batch, _times_of(second), path, step)
        else:
            first = self.first.draw(batch, times, path, step)
            second = self.second.draw(batch, _times_of(first), path, step)
        _check_shapes(first, second)
        if self.share is None:
            share = random.uniform(batch.rows, step=step, name="blend", dtype=torch.float64)
        else:
            share = torch.full((batch.rows,), float(self.share), dtype=torch.float64)
        weight = per_row(share, first.x)
        x = weight * first.x + (1 - weight) * second.x
        return Drawn(x.to(first.x.dtype), first.t, first.r, first.middle)

    @property
    def moves_times(self) -> bool:
        """As one of the two does."""
        return self.first.moves_times or self.second.moves_times


@dataclass(frozen=True, slots=True)
class Mix(States):
    """Each row's state from one of two kinds, drawn for the row: a teacher's own states among noised examples, say.

    What is known of a state (its noise, its end) is used only where it is known of both kinds. The batch brings what
    either asks for, in every row.

    Attributes:
        first: One kind.
        second: The other.
        share: Probability of the first, from 0 to 1.
    """

    first: States
    second: States
    share: float = 0.5

    def __post_init__(self) -> None:
        _check_two(self, Mix)
        check_number("share", self.share, "a probability from 0 to 1", least=0, most=1)

    def draw(self, batch: Batch, times: Times, path: Path, step: Step) -> Drawn:
        """See :class:`States`."""
        first, second = (kind.draw(batch, times, path, step) for kind in (self.first, self.second))
        _check_shapes(first, second)
        chosen = random.uniform(batch.rows, step=step, name="mix", dtype=torch.float64) < self.share
        chosen = chosen.to(first.x.device)

        def either(one: Tensor | None, other: Tensor | None) -> Tensor | None:
            if one is None or other is None:
                return None
            return torch.where(chosen.reshape(-1, *(1,) * (one.dim() - 1)), one, other)

        # The states and their first two times are never None, nor is one middle without the other.
        return Drawn(*(either(one, other) for one, other in zip(first, second, strict=True)))  # type: ignore[arg-type]

    @property
    def moves_times(self) -> bool:
        """In the rows of a kind that does."""
        return self.first.moves_times or self.second.moves_times

    @property
    def knows_noise(self) -> bool:
        """If both kinds do."""
        return self.first.knows_noise and self.second.knows_noise

    @property
    def may_know_ends(self) -> bool:
        """If both kinds may."""
        return self.first.may_know_ends and self.second.may_know_ends


def _check_two(states: Blend | Mix, kind: type[States]) -> None:
    for name in ("first", "second"):
        value = getattr(states, name)
        if not isinstance(value, States):
            raise argument_error(name, value, "states (NoisedData(), TeacherPath(...), PriorOnly(...))")
        if isinstance(value, kind):
            allowed = f"other states than {kind.__name__}: both would draw the same shares"
            raise argument_error(name, value, allowed)


def _times_of(drawn: Drawn) -> Times:
    return Times(drawn.t, drawn.r, drawn.middle)


def _check_shapes(first: Drawn, second: Drawn) -> None:
    if first.x.shape != second.x.shape:
        raise argument_error(
            "second", f"states of shape {tuple(second.x.shape)}", f"that of the first, {tuple(first.x.shape)}"
        )
