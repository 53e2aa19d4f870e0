"""Rollouts as data: which call is made at which level, with or without a gradient, and what it does to a cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

from distillrs import random
from distillrs.checks import check_number, check_whole
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule.grids import Grid, check_grid
from distillrs.step import Step

CacheOperation: TypeAlias = Literal["none", "read", "write"]


@dataclass(frozen=True, slots=True)
class Move:
    """One network call of a rollout.

    Attributes:
        unit: What is being made: a chunk of frames, from 0.
        step: The number of the call within its unit, from 0.
        level: Time at which the network is called.
        to: Time at which the state is after it; 0 for the network's own estimate of the data.
        gradient: Whether the call is differentiated.
        cache: ``read``: it sees the units before; ``write``: it sees them and stores this one.
    """

    unit: int
    step: int
    level: float
    to: float
    gradient: bool = False
    cache: CacheOperation = "none"

    def __post_init__(self) -> None:
        for name, number in (("unit", self.unit), ("step", self.step)):
            check_whole(name, number, "an integer from 0", least=0)
        if self.cache not in get_args(CacheOperation):
            raise unknown_name_error("cache operation", self.cache, list(get_args(CacheOperation)))
        check_number("level", self.level, "a time from 0 to 1", least=0, most=1)
        check_number("to", self.to, f"a time from 0 to level, {self.level}", least=0, most=self.level)
        if self.cache == "write" and self.gradient:
            raise argument_error("gradient", True, "False for a call that writes the cache: what it stores is detached")


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """The calls of a rollout in order.

    A plan is a pure function of what it is made from, so every rank makes the same one without talking: ranks that
    leave a rollout at different steps have different graphs, and wait for each other for ever.

    Attributes:
        moves: The calls; units in order, and in each unit steps in order.
    """

    moves: tuple[Move, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.moves, tuple) or not self.moves or not all(isinstance(m, Move) for m in self.moves):
            raise argument_error("moves", self.moves, "a tuple of one or more Move")
        unit, step = 0, -1
        for move in self.moves:
            follows = (move.unit == unit and move.step == step + 1) or (move.unit == unit + 1 and move.step == 0)
            if not follows:
                got = f"unit {move.unit}, step {move.step} after unit {unit}, step {step}"
                raise argument_error("moves", got, "units from 0 in order, and steps from 0 in order in each")
            unit, step = move.unit, move.step

    @property
    def evaluations(self) -> int:
        """Network calls."""
        return len(self.moves)

    @property
    def gradient_evaluations(self) -> int:
        """Network calls that are differentiated."""
        return sum(move.gradient for move in self.moves)

    @property
    def units(self) -> int:
        """Number of units."""
        return self.moves[-1].unit + 1

    @classmethod
    def trajectory(cls, grid: Grid, gradient: Literal["none", "last", "all"] = "last") -> RolloutPlan:
        """Every step of a grid; a grid of one step gives the one-step generator.

        Args:
            grid: The levels.
            gradient: Which calls are differentiated.

        Raises:
            ArgumentError: For what is no grid, or another ``gradient``.
        """
        check_grid("grid", grid)
        if gradient not in ("none", "last", "all"):
            raise argument_error("gradient", gradient, "'none', 'last' or 'all'")
        return _planned(grid._times, grid.steps, gradient)

    @classmethod
    def simulated(cls, grid: Grid, *, step: Step | int, name: str = "exit") -> RolloutPlan:
        """A grid up to a drawn call, whose estimate of the data is the sample; that call alone is differentiated.

        Inputs of a few-step generator as it meets them when it samples: Yin et al., "Improved distribution matching
        distillation for fast image synthesis" (2024). The call is drawn for all ranks and units at once.

        Args:
            grid: The levels.
            step: Where in the run.
            name: What the draw is for.

        Raises:
            ArgumentError: For what is no grid, or a name that is no text.
        """
        check_grid("grid", grid)
        return _planned(grid._times, _exit(grid, step, name), "last", leave=True)

    @classmethod
    def autoregressive(
        cls, grid: Grid, units: int, *, step: Step | int, name: str = "exit", context_level: float = 0.0
    ) -> RolloutPlan:
        """Units in a row, each up to the drawn call, then a call on the finished unit to fill the cache.

        Huang et al., "Self forcing" (2025): one exit for all units, a gradient in each unit's last call only, and none
        in the calls that fill the cache, which run at the level that the context has in inference.

        Args:
            grid: The levels.
            units: Number of units.
            step: Where in the run.
            name: What the draw is for.
            context_level: Time of the calls that fill the cache.

        Raises:
            ArgumentError: For what is no grid, fewer than one unit, or a level outside [0, 1].
        """
        check_grid("grid", grid)
        check_whole("units", units, "a positive number of units", least=1)
        check_number("context_level", context_level, "a time from 0 to 1", least=0, most=1)
        return _in_a_row(grid._times, int(units), _exit(grid, step, name), float(context_level))


def _exit(grid: Grid, step: Step | int, name: str) -> int:
    return int(random.integers(range(1), grid.steps, step=step, name=name)) + 1


# A run asks for one of a few plans at every step, and a plan cannot be changed: each is made once.
@lru_cache(maxsize=256)
def _planned(times: tuple[float, ...], calls: int, gradient: str, leave: bool = False) -> RolloutPlan:
    return RolloutPlan(tuple(_unit(times, 0, calls, gradient, "none", leave)))


@lru_cache(maxsize=256)
def _in_a_row(times: tuple[float, ...], units: int, calls: int, context_level: float) -> RolloutPlan:
    moves: list[Move] = []
    for unit in range(units):
        moves += _unit(times, unit, calls, "last", "read", leave=True)
        # Nothing comes after the last unit.
        if unit < units - 1:
            moves.append(Move(unit, calls, context_level, context_level, cache="write"))
    return RolloutPlan(tuple(moves))


def _unit(
    times: tuple[float, ...], unit: int, calls: int, gradient: str, cache: CacheOperation, leave: bool = False
) -> list[Move]:
    moves = []
    for index in range(calls):
        last = index == calls - 1
        to = 0.0 if last and leave else times[index + 1]
        moves.append(Move(unit, index, times[index], to, gradient == "all" or (gradient == "last" and last), cache))
    return moves
