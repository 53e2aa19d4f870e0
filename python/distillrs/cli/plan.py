"""From what the user said to the whole configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from distillrs import configuration
from distillrs.cli import options, presets
from distillrs.cli.settings import CondenseSettings
from distillrs.configuration import convert, from_dict, merge
from distillrs.errors import argument_error, unknown_name_error
from distillrs.registry import RecipeCard, find_recipe, recipe_cards

if TYPE_CHECKING:
    from distillrs.evaluate.data import DataBundle

DEFAULT_METHOD = "tesla"
_TABLES = ("method", "network")


@dataclass(frozen=True)
class Source:
    """What has to be known before the data can be loaded.

    Attributes:
        data: Name or path.
        limit: At most so many training examples.
        duplicates: What happens to training examples that also stand in the test set.
        seed: Of the draws.
    """

    data: str
    limit: int | None
    duplicates: Literal["refuse", "drop"]
    seed: int


def request(
    file: Mapping[str, Any], flags: Mapping[str, Any], assignments: Sequence[str]
) -> tuple[dict[str, Any], RecipeCard]:
    """Puts together what was asked for: flags win over the file, assignments over flags.

    Args:
        file: Content of ``--config``.
        flags: Values of flags, as a nested configuration.
        assignments: ``key=value`` of each ``--set``: a dotted key of the configuration, or an option of the method by
            its name alone.

    Returns:
        A partial configuration, and the recipe.

    Raises:
        UnknownNameError: A key or an option that does not exist.
    """
    asked = merge(as_tables(file), as_tables(flags))
    pairs = [configuration.parse_assignment(text) for text in assignments]
    # The method first, because the others are looked up among its options.
    name, card = chosen(file, flags, assignments)
    if card.engine != "condense":
        # Those of graphs are taken too, by a plan of their own.
        listed = ", ".join(sorted(each.id for engine in ("condense", "graphs") for each in recipe_cards(engine)))
        raise argument_error("method", name, f"a method that condenses data ({listed}); this one is of {card.engine}")
    asked = merge(asked, {"method": {"name": name}})
    top = [field.name for field in fields(CondenseSettings)]
    for key, value in pairs:
        if key in ("method", "method.name"):
            continue
        if key in _TABLES:
            asked = merge(asked, {key: {"name": value}})
        elif "." in key or key in top:
            asked = merge(asked, configuration.nest(key, value))
        else:
            known = options.options_by_part(card)
            if not any(key in part for part in known.values()):
                names = {name for part in known.values() for name in part}
                raise unknown_name_error("set", key, sorted(names | set(top)))
            asked = merge(asked, {"method": {options.place(card, key): {key: value}}})
    return asked, card


def chosen(file: Mapping[str, Any], flags: Mapping[str, Any], assignments: Sequence[str]) -> tuple[str, RecipeCard]:
    """The method that was asked for, whichever engine it is of: its name as it was given, and its card.

    Args:
        file: Content of ``--config``.
        flags: Values of flags.
        assignments: ``key=value`` of each ``--set``.

    Raises:
        UnknownNameError: There is no such method.
    """
    name: object = merge(as_tables(file), as_tables(flags)).get("method", {}).get("name", DEFAULT_METHOD)
    for key, value in map(configuration.parse_assignment, assignments):
        if key in ("method", "method.name"):
            name = value
    named = convert(name, str, "method.name")
    return named, find_recipe(named)


def as_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    """``method = "tesla"`` is short for a table with that name."""
    tables = dict(values)
    for name in _TABLES:
        value = tables.get(name, {})
        if isinstance(value, str):
            tables[name] = {"name": value}
        elif not isinstance(value, Mapping):
            raise argument_error(name, value, "a name or a table")
    return tables


def source(asked: Mapping[str, Any]) -> Source:
    """The part of a request that says which data.

    Raises:
        ArgumentError: No data, or a value of the wrong type.
    """
    from distillrs.evaluate.data import NAMES

    if "data" not in asked:
        raise argument_error("data", "nothing", f"one of {', '.join(NAMES)}, or the path of a file or folder")
    data = convert(asked["data"], str, "data")
    return Source(
        data,
        convert(asked.get("limit"), int | None, "limit"),
        convert(asked.get("duplicates", "refuse"), Literal["refuse", "drop"], "duplicates"),
        convert(asked.get("seed", 0), int, "seed"),
    )


def resolve(asked: Mapping[str, Any], card: RecipeCard, bundle: DataBundle, *, processors: int) -> CondenseSettings:
    """Completes a request by the defaults for its data and its recipe.

    Args:
        asked: See :func:`request`.
        card: The recipe.
        bundle: The data.
        processors: How many may be used.

    Raises:
        UnknownNameError: A key that does not exist; the nearest one is suggested.
        ArgumentError: A value that is not allowed.
    """
    per_class = convert(asked.get("per_class", 1), int, "per_class")
    network = asked.get("network", {})
    name = convert(network.get("name", presets.network_name(bundle.shape, card)), str, "network.name")
    found = source(asked)
    basis = merge(
        presets.preset(bundle.shape, per_class, card, name, processors=processors),
        {
            "data": found.data,
            "per_class": per_class,
            "duplicates": found.duplicates,
            "out": default_out(found.data, per_class, card.id),
        },
    )
    settings = merge(basis, asked)
    method = dict(settings["method"])
    for part in options.PARTS:
        given = method.get(part, {})
        if not isinstance(given, Mapping):
            raise argument_error(f"method.{part}", given, "a table")
        method[part] = options.complete(card, part, given)
    if card.views is None:
        del method["views"]
    settings["method"] = method
    return from_dict(CondenseSettings, settings)


def default_out(data: str, per_class: int, method: str) -> str:
    """Where results go if nobody says."""
    return f"out/{stem(data)}-{per_class}-{method.rsplit(':', 1)[-1]}"


def stem(data: str) -> str:
    """A name or path of data as part of a folder's name."""
    return "".join(character if character.isalnum() else "-" for character in data.rsplit("/", 1)[-1].split(".")[0])
