"""The options of a recipe, read off its signature, so that no recipe needs a line of its own in the command line."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distillrs.configuration import convert, describe, to_dict
from distillrs.errors import ArgumentError, argument_error, unknown_name_error
from distillrs.registry import RecipeCard

_OF_DATA = ("x", "y", "per_class", "networks", "teachers")
# What the command line itself hands to each part; the rest of a signature are options.
_GIVEN = {
    "options": ("store", "network", "synthetic", "seed", "teacher", "average", *_OF_DATA),
    "experts": ("network", "training"),
    "initial": ("x", "y", "per_class", "store", "network", "seed", "teachers"),
    "views": ("seed",),
}
PARTS = tuple(_GIVEN)
# What recipes of other engines are called with.
_NETWORKS = ("student",)


@dataclass(frozen=True)
class Option:
    """One argument that a user may set.

    Attributes:
        name: As the signature has it.
        hint: Its annotation.
        default: Its default, or ``inspect.Parameter.empty``.
    """

    name: str
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    def describe(self) -> str:
        """What it takes, in words."""
        return describe(self.hint)


def functions(card: RecipeCard) -> dict[str, Callable[..., Any]]:
    """The functions of a recipe by the part of the configuration that holds their options."""
    from distillrs.cli import defaults

    if card.engine != "condense":
        return {"options": card.function}
    return {
        "options": card.function,
        "experts": card.experts or defaults.plain_experts,
        # A recipe that gives the finished set has nothing to start from.
        "initial": card.initial or (defaults.random_real if card.moves else defaults.nothing),
        "views": card.views or defaults.nothing,
    }


def options_of(function: Callable[..., Any], part: str) -> dict[str, Option]:
    """Options of one function of a recipe.

    Args:
        function: Recipe, experts' or initialisation function.
        part: "options", "experts" or "initial".
    """
    hints = _hints(function)
    return {
        name: Option(name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in (*_GIVEN[part], *_NETWORKS)
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function)
    except NameError:
        # A name that its module imports for type checkers only: then each annotation by itself, as far as it goes.
        names = getattr(function, "__globals__", {})
        found = {}
        for name, text in getattr(function, "__annotations__", {}).items():
            try:
                found[name] = eval(text, names) if isinstance(text, str) else text
            except NameError:
                found[name] = Any
        return found


def options_by_part(card: RecipeCard) -> dict[str, dict[str, Option]]:
    """All options of a recipe."""
    return {part: options_of(function, part) for part, function in functions(card).items()}


def place(card: RecipeCard, name: str) -> str:
    """The part that has an option of this name.

    Raises:
        UnknownNameError: No part has it; the nearest name is suggested.
        ArgumentError: Several parts have it; the message says how to name one.
    """
    known = options_by_part(card)
    parts = [part for part, options in known.items() if name in options]
    if not parts:
        raise unknown_name_error(f"option of {card.id}", name, sorted({one for part in known.values() for one in part}))
    if len(parts) > 1:
        raise argument_error("set", name, " or ".join(f"method.{part}.{name}" for part in parts))
    return parts[0]


def complete(card: RecipeCard, part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Checks options and adds the defaults, in a form that TOML can hold.

    Args:
        card: The recipe.
        part: "options", "experts" or "initial".
        values: What was asked for.

    Returns:
        Every option that has a value TOML can hold, in the order of the signature.

    Raises:
        UnknownNameError: An option that the recipe does not have.
        ArgumentError: A value of the wrong type, or a required option without one.
    """
    known = options_of(functions(card)[part], part)
    for name in values:
        if name not in known:
            raise unknown_name_error(f"method.{part}", name, list(known))
    plain: dict[str, Any] = {}
    for name, option in known.items():
        key = f"method.{part}.{name}"
        if name in values:
            convert(values[name], option.hint, key)
            plain[name] = values[name]
        elif option.required:
            raise argument_error(key, "nothing", f"{option.describe()}: {card.id} has no default for it")
        elif (default := _plain(option.default)) is not None:
            plain[name] = default
    return plain


def arguments(card: RecipeCard, part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the function takes them: a range for ``[0, 5]``, a float for ``1``."""
    known = options_of(functions(card)[part], part)
    return {name: convert(value, known[name].hint, f"method.{part}.{name}") for name, value in values.items()}


def _plain(default: object) -> Any:
    @dataclass(frozen=True)
    class Holder:
        value: Any

    try:
        return to_dict(Holder(default)).get("value") if default is not None else None
    except ArgumentError:
        return None  # an object that only code can give; the function's own default stands
