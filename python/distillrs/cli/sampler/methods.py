"""The methods of ``distillrs distill-sampler``: which recipe, what it is given, and how the student then samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distillrs import recipes, schedule
from distillrs.cli.options import Option, options_of
from distillrs.configuration import convert
from distillrs.diffusion import JVP
from distillrs.diffusion import SamplerMethod as Way
from distillrs.diffusion.networks import Times
from distillrs.errors import argument_error, unknown_name_error
from distillrs.objective import Objective
from distillrs.registry import RecipeCard, find_recipe
from distillrs.schedule import Grid, RectifiedFlow


@dataclass(frozen=True)
class Distillation:
    """A student under training.

    Attributes:
        objective: What is minimised.
        networks: All that is trained, by name; "student" is one of them.
        moved: The turn at which the student moves.
    """

    objective: Objective
    networks: dict[str, nn.Module]
    moved: str


@dataclass(frozen=True)
class Method:
    """A way to distil a sampler on a rectified flow whose networks predict velocities.

    Attributes:
        name: As ``--method`` takes it.
        recipe: The published system.
        begin: Makes the objective from (teacher, shape, number of steps, the recipe's options).
        times: Which times the student is told.
        way: How it samples.
        grid: The times at which a student trained for so many steps is called when it takes fewer: (steps, fewer).
        turns: Of the objective.
        given: Arguments of the recipe that are not options.
        defaults: Options that differ from the recipe's.
    """

    name: str
    recipe: str
    begin: Callable[[nn.Module, tuple[int, ...], int, Mapping[str, Any]], Distillation]
    times: Times
    way: Way
    grid: Callable[[int, int], Grid]
    turns: tuple[str, ...]
    given: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def card(self) -> RecipeCard:
        """What the recipe says of itself."""
        return find_recipe(self.recipe)

    def options(self) -> dict[str, Option]:
        """What a user may set."""
        known = options_of(self.card.function, "options")
        return {name: option for name, option in known.items() if name not in self.given}

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Checks options and adds the defaults, in a form that TOML can hold.

        Raises:
            UnknownNameError: An option that the method does not have.
            ArgumentError: A value of the wrong type.
        """
        known = self.options()
        for name in values:
            if name not in known:
                raise unknown_name_error("method.options", name, list(known))
        plain = {}
        for name, option in known.items():
            value = values.get(name, self.defaults.get(name, option.default))
            if value is None:
                continue
            convert(value, option.hint, f"method.options.{name}")
            plain[name] = value
        return plain

    def arguments(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options as the recipe takes them."""
        known = self.options()
        return {name: convert(value, known[name].hint, f"method.options.{name}") for name, value in values.items()}


def _copy(teacher: nn.Module) -> nn.Module:
    return copy.deepcopy(teacher).train().requires_grad_(True)


def _flow_map(teacher: nn.Module, shape: tuple[int, ...], steps: int, options: Mapping[str, Any]) -> Distillation:
    student = _copy(teacher)
    objective = recipes.mf_rae(student, "distil", teacher, derivative=JVP(), **options)
    return Distillation(objective, {"student": student}, "student")


def _dmd2(teacher: nn.Module, shape: tuple[int, ...], steps: int, options: Mapping[str, Any]) -> Distillation:
    student, critic = _copy(teacher), _copy(teacher)
    levels = tuple(_levels(steps, steps).times[:-1].tolist())
    path = RectifiedFlow()
    objective = recipes.dmd2(student, teacher, critic, path, "velocity", levels=levels, shape=shape, **options)
    return Distillation(objective, {"student": student, "critic": critic}, "generator")


def _even(steps: int, fewer: int) -> Grid:
    return schedule.spaced(fewer, RectifiedFlow())


def _levels(steps: int, fewer: int) -> Grid:
    """Some of the levels at which a generator was trained, the first always, and then the data."""
    levels = schedule.spaced(steps, RectifiedFlow()).times[:-1]
    chosen = [round(index * steps / fewer) for index in range(fewer)]
    return Grid([*levels[chosen].tolist(), 0.0], RectifiedFlow())


_METHODS = (
    Method(
        name="flow-map",
        recipe="mf_rae",
        begin=_flow_map,
        times="t_gap",
        way="ode",
        grid=_even,
        turns=("student",),
        given=("network", "stage", "grid", "derivative", "condition_dropout"),
        # Far steps are what is wanted of a map, and they begin at the noise.
        defaults={"off_diagonal": 0.75, "mean": 0.4, "std": 1.2},
    ),
    Method(
        name="dmd2",
        recipe="dmd2",
        begin=_dmd2,
        times="t",
        way="renoise",
        grid=_levels,
        turns=("generator", "critic"),
        given=(
            "network",
            "critic",
            "path",
            "kind",
            "levels",
            "guidance",
            "head",
            "features",
            "generator_adversary",
            "critic_adversary",
            "shape",
        ),
    ),
)
METHODS = {method.name: method for method in _METHODS}


def find(name: str) -> Method:
    """The method of that name.

    Raises:
        UnknownNameError: There is none.
        ArgumentError: The id of a method's recipe; the message has the method's name.
    """
    if name in METHODS:
        return METHODS[name]
    if name in {method.recipe for method in _METHODS}:
        own = next(method.name for method in _METHODS if method.recipe == name)
        raise argument_error("method", name, f"{own!r}, as this command calls it")
    raise unknown_name_error("method", name, list(METHODS))
