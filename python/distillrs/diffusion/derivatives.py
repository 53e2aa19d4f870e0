"""How a residual differentiates a network along a direction, or steps along it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from distillrs.checks import check_number
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.forward import slope_along
from distillrs.diffusion.heads import Jump
from distillrs.diffusion.randomness import Replay
from distillrs.diffusion.scores import Score, velocity_of
from distillrs.diffusion.state_map import per_row
from distillrs.errors import ArgumentError, argument_error, unknown_name_error
from distillrs.schedule import Path

Function: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
Point: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Sloped(NamedTuple):
    """A function's value and its derivative along a direction, both ``[n, ...]``."""

    value: Tensor
    slope: Tensor


class Derivative(ABC):
    """A way to differentiate ``F(x, t, r)`` along ``(dx, dt, dr)``."""

    __slots__ = ()

    @abstractmethod
    def along(
        self, function: Function, point: Point, direction: Point, module: nn.Module, replay: Replay, graph: bool
    ) -> Sloped:
        """Value and slope.

        Args:
            function: ``F``.
            point: ``x`` ``[n, ...]``, float64 ``t`` and ``r`` ``[n]``.
            direction: Likewise.
            module: The network, to name what cannot be differentiated.
            replay: Of its dropout.
            graph: Whether the slope, too, is to be differentiated by the parameters.
        """


@dataclass(frozen=True, slots=True)
class JVP(Derivative):
    """Forward-mode differentiation (dual numbers): exact, about two forward calls.

    A network with a part that has no forward derivative (fused attention, some custom functions) is refused at the
    first call, with that part's name.
    """

    def along(
        self, function: Function, point: Point, direction: Point, module: nn.Module, replay: Replay, graph: bool
    ) -> Sloped:
        """See :class:`Derivative`."""
        try:
            found: Any = replay(lambda: slope_along(function, point, direction))
        except (RuntimeError, NotImplementedError) as failure:
            if isinstance(failure, ArgumentError) or not _lacks_forward(failure):
                raise
            raise _refusal(module, lambda: slope_along(function, point, direction), failure) from failure
        value, slope = found
        return Sloped(value, slope if graph else slope.detach())


@dataclass(frozen=True, slots=True)
class Central(Derivative):
    """Central differences: two more forward calls, of any network.

    The step is in the path's time, 0 to 1; 5e-3 here is 5 on a clock of a thousand. Steps that would leave [0, 1] or
    reach the data are cut. Networks in half precision need a larger step than their rounding, or :class:`JVP`.

    Attributes:
        step: Half the distance of the two points.
    """

    step: float = 5e-3

    def __post_init__(self) -> None:
        check_number("step", self.step, "a time above 0, below 0.5", above=0, below=0.5)

    def along(
        self, function: Function, point: Point, direction: Point, module: nn.Module, replay: Replay, graph: bool
    ) -> Sloped:
        """See :class:`Derivative`."""
        value = replay(lambda: function(*point))
        ahead = torch.full_like(point[1], self.step)
        behind = ahead.clone()
        for time, rate in zip(point[1:], direction[1:], strict=True):
            moves = rate != 0
            ahead = torch.where(moves, torch.minimum(ahead, (1 - time) / rate.where(moves, rate + 1)), ahead)
            # Half the way to the data at most: there sigma is 0, and a clock of its logarithm has no number.
            behind = torch.where(moves, torch.minimum(behind, time / rate.where(moves, rate + 1) / 2), behind)
        with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
            high = replay(lambda: function(*_moved(point, direction, ahead)))
            low = replay(lambda: function(*_moved(point, direction, -behind)))
            wide = torch.promote_types(high.dtype, torch.float32)
            slope = (high.to(wide) - low.to(wide)) / per_row(ahead + behind, high)
        return Sloped(value, slope)


def _moved(point: Point, direction: Point, way: Tensor) -> Point:
    x, t, r = point
    dx, dt, dr = direction
    return (x + per_row(way, x) * dx).to(x.dtype), t + way * dt, r + way * dr


@dataclass(frozen=True, slots=True)
class Solver:
    """A finite step of a solver in the derivative's place: consistency distillation, bootstrapping, halving.

    Attributes:
        step: Length in time; ``None`` takes it from the law of pairs, whose ``middle`` is where the step ends (or
            starts, for the Lagrangian residual).
        method: ``ddim`` is exact for data at one point, and carries a noised example along its own noise; ``euler``;
            ``heun``, with Euler's step where it ends in the data.
    """

    step: float | None = None
    method: Literal["ddim", "euler", "heun"] = "ddim"

    def __post_init__(self) -> None:
        if self.step is not None:
            check_number("step", self.step, "None or a time above 0, up to 1", above=0, most=1)
        if self.method not in ("ddim", "euler", "heun"):
            raise unknown_name_error("method", self.method, ["ddim", "euler", "heun"])

    @torch.no_grad()
    def advance(self, score: Score, path: Path, x: Tensor, t: Tensor, r: Tensor, condition: Condition) -> Tensor:
        """One step from ``t`` to ``r``, float64 ``[n]`` each; rows with ``r = t`` stay."""
        if self.method == "ddim":
            value, kind = score.predict(x, t, condition)
            # The jump of any kind is the same step; that of the kind itself needs no conversion at the ends.
            state, weight = Jump(kind).weights(path, t, r)
            moved = per_row(state, x) * x + per_row(weight, x) * value
        else:
            slope = velocity_of(score, path, x, t, condition)
            way = per_row(r - t, x)
            moved = x + way * slope
            if self.method == "heun":
                second = velocity_of(score, path, moved.to(x.dtype), r, condition)
                inside = (r > 0).reshape(way.shape)
                moved = x + way * torch.where(inside, (slope + second) / 2, slope)
        stays = (r == t).reshape(-1, *(1,) * (x.dim() - 1))
        return torch.where(stays, x, moved).to(x.dtype)


_MARKS = ("forward AD", "forward-mode", "forward mode", "jvp", "functorch")


def _lacks_forward(failure: BaseException) -> bool:
    return any(mark in str(failure) for mark in _MARKS)


def _refusal(module: nn.Module, run: Callable[[], object], failure: BaseException) -> ArgumentError:
    """Runs the failing call again, to see which part it was in."""
    inside: list[str] = []
    handles = []
    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(lambda _, __, name=name: inside.append(name)))
        handles.append(part.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        run()
    except (RuntimeError, NotImplementedError):
        pass
    finally:
        for handle in handles:
            handle.remove()
    name = inside[-1] if inside else ""
    part = dict(module.named_modules()).get(name, module)
    where = f"{name or 'the network'} ({type(part).__name__})"
    reason = str(failure).strip().splitlines()[0]
    return argument_error(
        "network",
        f"{where}, which has no forward-mode derivative: {reason}",
        "a network whose parts all have one (attention: torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or "
        "differences in place of JVP(): Central(5e-3)",
    )
