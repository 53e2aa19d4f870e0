"""The five residuals: what vanishes for the map of a flow, as something to compare.

Each gives a prediction that carries the graph and a target that does not. Coefficients and tangents are computed in
float64 and float32 at least; an undetached derivative in the target would train a second-order objective.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_number
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.derivatives import JVP, Derivative, Solver
from distillrs.diffusion.forward import jvp
from distillrs.diffusion.heads import Head, HeadWeights
from distillrs.diffusion.randomness import Replay
from distillrs.diffusion.scores import Score, velocity_of
from distillrs.diffusion.sources import AnySource
from distillrs.diffusion.state_map import StateMap, per_row
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Path, Ramp
from distillrs.step import Step

Space: TypeAlias = Literal["state", "network"]
"""What is compared: the map's value, or the network's output that would give the target."""

Scale: TypeAlias = Literal["solve", "state"] | Callable[[Path, Tensor, Tensor], Tensor]


class Compared(NamedTuple):
    """What a metric compares, both ``[n, ...]``.

    Attributes:
        prediction: With its graph.
        target: Without one.
    """

    prediction: Tensor
    target: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The rows that a residual is looked at.

    Attributes:
        map: The student's map.
        target_map: The map that makes targets; the student's or an average.
        source: Bound; ``None`` for residuals without one.
        replay: Of the dropout.
        x: States, ``[n, ...]``.
        t: Their times, float64 ``[n]``.
        r: Where the map is to end.
        middle: Where it is cut.
        end: The state at ``r``.
        condition: Of the rows.
        step: Where in the run.
        units: Global ids of the rows, int64 ``[n]`` on the CPU.
    """

    map: StateMap
    target_map: StateMap
    source: Score | None
    replay: Replay
    x: Tensor
    t: Tensor
    r: Tensor
    middle: Tensor | None
    end: Tensor | None
    condition: Condition
    step: Step
    units: Tensor

    @property
    def path(self) -> Path:
        """The path."""
        return self.map.path

    def score(self) -> Score:
        """The source."""
        assert self.source is not None
        return self.source

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The source's velocity, without a graph."""
        return velocity_of(self.score(), self.path, x, t, self.condition)

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, r: Tensor, told: Tensor | None = None) -> Tensor:
        """The target map's value; ``told`` is the second time that the network hears, if it is another."""
        output = self.replay(lambda: self.target_map.output(x, t, r if told is None else told, self.condition))
        return self.target_map.join(output, x, t, r).to(x.dtype)

    def output(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """The student's network, with its graph."""
        return self.map.output(x, t, r, self.condition)


class Residual(ABC):
    """One of the five, with its source if that is not the objective's.

    Attributes:
        needs_source: Whether it asks a source at all.
        needs_anywhere: Whether it asks it at other states than the noised examples.
        needs_any_end: Whether it moves the map's end.
        needs_end_state: Whether it compares with a known endpoint.
    """

    __slots__ = ()

    source: AnySource | None
    needs_source: bool = True
    needs_anywhere: bool = False
    needs_any_end: bool = True
    needs_end_state: bool = False

    @abstractmethod
    def compare(self, problem: Problem) -> Compared:
        """Prediction and target of rows."""

    def check(self, path: Path, head: Head) -> None:
        """Refuses heads that it makes no sense with."""
        return

    def parts(self) -> tuple[Residual | None, Residual]:
        """The residual on the diagonal, if that is another, and off it."""
        return None, self


@dataclass(frozen=True, slots=True)
class Diagonal(Residual):
    """``dPhi/dr`` at ``r = t`` equals the velocity: flow matching, in the kind that the network predicts.

    The law's second time is not looked at.

    Attributes:
        source: Whose velocity; ``None`` for the objective's.
    """

    source: AnySource | None = None

    def compare(self, problem: Problem) -> Compared:
        """The network on the diagonal, and the velocity as its output."""
        x, t = problem.x, problem.t
        output = problem.replay(lambda: problem.output(x, t, t))
        velocity = problem.velocity(x, t)
        return Compared(output, problem.map.head.output_of_velocity(problem.path, velocity, x, t))


@dataclass(frozen=True, slots=True)
class Eulerian(Residual):
    """``dPhi(x_t, t, r)/dt = 0`` along the velocity: the start of the map does not matter.

    Continuous, with ``dPhi/dt = A u + A_t x + B_t F + B dF/dt`` and everything but the first ``F`` detached:

    - ``scale="solve"``: ``F`` against ``F - (dPhi/dt) / B_t``, the output that would make it vanish: mean flows.
    - ``scale="state"``: ``Phi`` against ``Phi - dPhi/dt``: the limit of discrete consistency, over the step.
    - a function ``s(path, t, r)``: ``F`` against ``F - s dPhi/dt``.
    - ``differentiate=True``: the derivative by the time alone, ``A_t x + B_t F + B F_t``, with its graph, against
      ``-(A u + B F_x u)`` without one: Boffi, Albergo, Vanden-Eijnden, "How to build a consistency model: learning flow
      maps via self-distillation" (2025).

    With a :class:`Solver`, ``Phi(x_t, t, r)`` against ``Phi(x_s, s, r)`` of the state one step along the source: Song
    et al., "Consistency models" (2023).

    Attributes:
        derivative: ``JVP()``, ``Central(h)`` or ``Solver(h)``.
        source: Whose velocity; ``None`` for the objective's.
        scale: Of a continuous residual; see above.
        warm_up: Multiplies ``A_t x + B dF/dt``, from 0 to 1: Lu and Song (2024).
        space: Of a discrete residual.
        differentiate: See above.
    """

    derivative: Derivative | Solver = field(default_factory=JVP)
    source: AnySource | None = None
    scale: Scale = "solve"
    warm_up: Ramp | None = None
    space: Space = "state"
    differentiate: bool = False

    needs_any_end = False

    def __post_init__(self) -> None:
        _check_derivative(self.derivative)
        _check_space(self.space)
        if not callable(self.scale) and self.scale not in ("solve", "state"):
            raise unknown_name_error("scale", self.scale, ["solve", "state"])
        if isinstance(self.derivative, Solver) and (self.warm_up is not None or self.scale != "solve"):
            raise argument_error("derivative", self.derivative, "JVP() or Central(h) where scale or warm_up are set")
        if self.differentiate and isinstance(self.derivative, Solver):
            raise argument_error("differentiate", True, "False with a Solver, which has no derivative")
        if self.differentiate and (self.warm_up is not None or self.scale != "solve"):
            raise argument_error("differentiate", True, "False where scale or warm_up are set")

    @property
    def needs_anywhere(self) -> bool:  # type: ignore[override]  # depends on the solver
        """A second evaluation is not at a noised example."""
        return isinstance(self.derivative, Solver) and self.derivative.method == "heun"

    def check(self, path: Path, head: Head) -> None:
        """Refuses heads whose ``B_t`` vanishes somewhere."""
        if not isinstance(self.derivative, Solver) and self.scale == "solve" and not self.differentiate:
            _check_solvable(path, head, 0, "scale", "'state' or a function")

    def compare(self, problem: Problem) -> Compared:
        """See the class."""
        if isinstance(self.derivative, Solver):
            return self._discrete(problem, self.derivative)
        if self.differentiate:
            return self._apart(problem, self.derivative)
        x, t, r = problem.x, problem.t, problem.r
        velocity = problem.velocity(x, t)
        output, slope = self.derivative.along(
            problem.output,
            (x, t, r),
            (velocity, torch.ones_like(t), torch.zeros_like(r)),
            problem.map.network.module,
            problem.replay,
            False,
        )
        head, path = problem.map.head, problem.path
        with torch.no_grad():
            (state, network), (state_t, network_t) = _rates(head, path, t, r, 0)
            motion = per_row(state, x) * velocity + per_row(network_t, x) * output
            rest = per_row(state_t, x) * x + per_row(network, x) * slope
            ramp = 1.0 if self.warm_up is None else self.warm_up(problem.step)
            rate = motion + ramp * rest
            if self.scale == "solve":
                target = output - rate / per_row(network_t, x)
            elif callable(self.scale):
                target = output - per_row(self.scale(path, t, r), x) * rate
        if self.scale == "state":
            value = problem.map.join(output, x, t, r)
            return Compared(value, value.detach() - rate)
        return Compared(output, target)

    def _apart(self, problem: Problem, derivative: Derivative) -> Compared:
        x, t, r = problem.x, problem.t, problem.r
        module, replay = problem.map.network.module, problem.replay
        still, zero = torch.zeros_like(x), torch.zeros_like(t)
        velocity = problem.velocity(x, t)
        (state, network), (state_t, network_t) = _rates(problem.map.head, problem.path, t, r, 0)
        by_time = (still, torch.ones_like(t), zero)
        output, slope = derivative.along(problem.output, (x, t, r), by_time, module, replay, True)
        rate = per_row(state_t, x) * x + per_row(network_t, x) * output + per_row(network, x) * slope
        with torch.no_grad():
            by_state = derivative.along(problem.output, (x, t, r), (velocity, zero, zero), module, replay, False)
            target = -(per_row(state, x) * velocity + per_row(network, x) * by_state.slope)
        return Compared(rate, target)

    def _discrete(self, problem: Problem, solver: Solver) -> Compared:
        x, t, r = problem.x, problem.t, problem.r
        s = _middle(problem, "Eulerian") if solver.step is None else torch.maximum(t - solver.step, r)
        nearer = solver.advance(problem.score(), problem.path, x, t, s, problem.condition)
        output = problem.replay(lambda: problem.output(x, t, r))
        return _in_space(problem, output, problem.target(nearer, s, r), self.space)


@dataclass(frozen=True, slots=True)
class Lagrangian(Residual):
    """``dPhi/dr = u(Phi, r)``: the end of the map moves along the flow. No derivative by the state.

    Continuous, with ``dPhi/dr = A_r x + B_r F + B dF/dr``:

    - ``differentiate=False``: ``F`` against ``F - (dPhi/dr - u) / B_r``, detached: a time derivative alone, as Tong et
      al., "Flow map distillation without data" (2025).
    - ``differentiate=True``: ``dPhi/dr`` with its graph against ``u`` at the detached state: Boffi, Albergo,
      Vanden-Eijnden, "How to build a consistency model: learning flow maps via self-distillation" (2025).

    With a :class:`Solver`, ``Phi(x, t, r)`` against one step along the source from ``Phi(x, t, m)``: Gu et al.,
    "BOOT" (2023).

    Attributes:
        derivative: ``JVP()``, ``Central(h)`` or ``Solver(h)``.
        source: Whose velocity; ``None`` for the objective's. It is asked at the map's own states.
        differentiate: See above.
        space: Of a discrete residual.
    """

    derivative: Derivative | Solver = field(default_factory=JVP)
    source: AnySource | None = None
    differentiate: bool = False
    space: Space = "state"

    needs_anywhere = True

    def __post_init__(self) -> None:
        _check_derivative(self.derivative)
        _check_space(self.space)
        if isinstance(self.derivative, Solver) and self.differentiate:
            raise argument_error("differentiate", True, "False with a Solver, which has no derivative")

    def check(self, path: Path, head: Head) -> None:
        """Refuses heads whose ``B_r`` vanishes somewhere."""
        if not isinstance(self.derivative, Solver) and not self.differentiate:
            _check_solvable(path, head, 1, "differentiate", "True")

    def compare(self, problem: Problem) -> Compared:
        """See the class."""
        if isinstance(self.derivative, Solver):
            return self._discrete(problem, self.derivative)
        x, t, r = problem.x, problem.t, problem.r
        output, slope = self.derivative.along(
            problem.output,
            (x, t, r),
            (torch.zeros_like(x), torch.zeros_like(t), torch.ones_like(r)),
            problem.map.network.module,
            problem.replay,
            self.differentiate,
        )
        (state, network), (state_r, network_r) = _rates(problem.map.head, problem.path, t, r, 1)
        value = (per_row(state, x) * x + per_row(network, x) * output.detach()).to(x.dtype)
        velocity = problem.velocity(value, r)
        rate = per_row(state_r, x) * x + per_row(network_r, x) * output + per_row(network, x) * slope
        if self.differentiate:
            return Compared(rate, velocity)
        with torch.no_grad():
            target = output - (rate - velocity) / per_row(network_r, x)
        return Compared(output, target)

    def _discrete(self, problem: Problem, solver: Solver) -> Compared:
        x, t, r = problem.x, problem.t, problem.r
        m = _middle(problem, "Lagrangian") if solver.step is None else torch.minimum(r + solver.step, t)
        before = problem.target(x, t, m)
        target = solver.advance(problem.score(), problem.path, before, m, r, problem.condition)
        output = problem.replay(lambda: problem.output(x, t, r))
        return _in_space(problem, output, target, self.space)


@dataclass(frozen=True, slots=True)
class Semigroup(Residual):
    """``Phi(x, t, r) = Phi(Phi(x, t, m), m, r)``: one long way against two short ones.

    Frans et al., "One step diffusion via shortcut models" (2024). With a solver the two short ways are the source's
    steps: Salimans and Ho, "Progressive distillation for fast sampling of diffusion models" (2022).

    Attributes:
        via: ``None`` for the map itself, or a :class:`Solver` (without a step) for the source.
        source: Of the solver; ``None`` for the objective's.
        middle: Where the way is cut if the law does not say: ``midpoint``, or ``uniform`` between the ends.
        instant: Short ways up to this length are taken with the network's velocity on the diagonal, ``F(x, t, t)``:
            nothing else trains the shortest ones.
        space: What is compared.
    """

    via: Solver | None = None
    source: AnySource | None = None
    middle: Literal["midpoint", "uniform"] = "midpoint"
    instant: float = 0.0
    space: Space = "network"

    needs_anywhere = True

    def __post_init__(self) -> None:
        _check_space(self.space)
        if self.middle not in ("midpoint", "uniform"):
            raise unknown_name_error("middle", self.middle, ["midpoint", "uniform"])
        check_number("instant", self.instant, "a time from 0 to 1", least=0, most=1)
        if self.via is not None and (not isinstance(self.via, Solver) or self.via.step is not None):
            raise argument_error("via", self.via, "None or a Solver without a step: the way's halves are its steps")
        if self.via is not None and self.instant:
            raise argument_error("instant", self.instant, "0 with a solver")

    @property
    def needs_source(self) -> bool:  # type: ignore[override]  # depends on the halves
        """The map's own halves need none."""
        return self.via is not None

    def compare(self, problem: Problem) -> Compared:
        """See the class."""
        x, t, r = problem.x, problem.t, problem.r
        m = self._cut(problem)
        if self.via is None:
            half = problem.target(x, t, m, torch.where(t - m <= self.instant, t, m))
            target = problem.target(half, m, r, torch.where(m - r <= self.instant, m, r))
        else:
            half = self.via.advance(problem.score(), problem.path, x, t, m, problem.condition)
            target = self.via.advance(problem.score(), problem.path, half, m, r, problem.condition)
        output = problem.replay(lambda: problem.output(x, t, r))
        return _in_space(problem, output, target, self.space)

    def _cut(self, problem: Problem) -> Tensor:
        if problem.middle is not None:
            return problem.middle
        if self.middle == "midpoint":
            return (problem.t + problem.r) / 2
        share = random.uniform(problem.units, step=problem.step, name="middle", dtype=torch.float64)
        return problem.r + share.to(problem.r.device) * (problem.t - problem.r)


@dataclass(frozen=True, slots=True)
class Endpoint(Residual):
    """``Phi(x_t, t, r)`` equals a stored ``x_r``: regression onto paths that a teacher walked.

    Attributes:
        space: What is compared.
    """

    space: Space = "network"

    source = None
    needs_source = False
    needs_any_end = False
    needs_end_state = True

    def __post_init__(self) -> None:
        _check_space(self.space)

    def compare(self, problem: Problem) -> Compared:
        """See the class."""
        if problem.end is None:
            allowed = "the noise that belongs to x0: independent noise has no known endpoint"
            raise argument_error("noise", None, allowed)
        output = problem.replay(lambda: problem.output(problem.x, problem.t, problem.r))
        return _in_space(problem, output, problem.end, self.space)


@dataclass(frozen=True, slots=True)
class OnAndOff(Residual):
    """One residual for rows on the diagonal, ``r = t``, and another for those off it.

    Without the first nothing ties a bootstrapped map to the flow; about three quarters of the rows usually have it.

    Attributes:
        on: For ``r = t``; usually ``Diagonal(Data())``.
        off: For the others.
    """

    on: Residual
    off: Residual

    source = None

    def __post_init__(self) -> None:
        for name in ("on", "off"):
            if not isinstance(getattr(self, name), Residual) or isinstance(getattr(self, name), OnAndOff):
                raise argument_error(name, getattr(self, name), "one of the five residuals")

    def compare(self, problem: Problem) -> Compared:
        """Never called: the objective splits the rows."""
        raise TypeError("OnAndOff is split by the objective")

    def parts(self) -> tuple[Residual | None, Residual]:
        """Both."""
        return self.on, self.off


def trig_scale(path: Path, t: Tensor, r: Tensor) -> Tensor:
    """The tangent's factor of Lu and Song (2024) on the path Trig: ``F + cos(a) dPhi/da`` with the angle ``a``."""
    return -path.alpha(t) * (2 / math.pi)


def _rates(head: Head, path: Path, t: Tensor, r: Tensor, which: int) -> tuple[HeadWeights, HeadWeights]:
    """Coefficients and their derivatives by ``t`` (0) or ``r`` (1), float64."""
    times = (t.detach(), r.detach())
    moved = times[which]
    found: Any = jvp(
        lambda time: head.weights(path, *((time, times[1]) if which == 0 else (times[0], time))),
        (moved,),
        (torch.ones_like(moved),),
    )
    weights, rates = found
    return HeadWeights(*weights), HeadWeights(*rates)


def _check_solvable(path: Path, head: Head, which: int, name: str, other: str) -> None:
    """Refuses heads through whose ``B_t`` or ``B_r`` one cannot divide."""
    side = torch.linspace(0.05, 0.95, 13, dtype=torch.float64)
    t, r = (part.reshape(-1) for part in torch.meshgrid(side, side, indexing="ij"))
    end = head.end(path)
    r = torch.minimum(t, r) if end is None else torch.full_like(t, end)
    _, rates = _rates(head, path, t, r, which)
    rates_of = rates.network.abs()
    to_data = _rates(head, path, t, torch.zeros_like(t), which)[1].network.abs()
    if float(rates_of.min()) <= 1e-9 or (end is None and float(to_data.min()) <= 1e-9):
        derivative = "B_t" if which == 0 else "B_r"
        allowed = f"{other}: {derivative} of this head vanishes, so no output makes the residual vanish"
        raise argument_error(name, f"one that divides by {derivative} with the head {head}", allowed)


def _middle(problem: Problem, name: str) -> Tensor:
    if problem.middle is None:
        allowed = f"a law with a middle (Adjacent, Nested), or {name}(Solver(step)): nothing says where the step ends"
        raise argument_error("pairs", "a law of two times", allowed)
    return problem.middle


def _in_space(problem: Problem, output: Tensor, target: Tensor, space: Space) -> Compared:
    x, t, r = problem.x, problem.t, problem.r
    if space == "state":
        return Compared(problem.map.join(output, x, t, r), target)
    with torch.no_grad():
        state, network = (per_row(weight, x) for weight in problem.map.head.weights(problem.path, t, r))
        # On the diagonal the map is the identity whatever the output is: nothing to learn.
        wanted = (target - state * x) / network.where(network != 0, torch.ones_like(network))
        wanted = torch.where(network != 0, wanted, output.to(wanted.dtype))
    return Compared(output, wanted)


def _check_derivative(value: object) -> None:
    if not isinstance(value, (Derivative, Solver)):
        raise argument_error("derivative", value, "JVP(), Central(h) or Solver(h)")


def _check_space(value: str) -> None:
    if value not in ("state", "network"):
        raise unknown_name_error("space", value, ["state", "network"])
