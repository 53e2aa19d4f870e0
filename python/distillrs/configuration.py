"""Frozen dataclasses as TOML files, and back.

A configuration is a frozen dataclass that validates itself at construction. Here it becomes a plain mapping
(:func:`to_dict`), a mapping becomes a configuration (:func:`from_dict`), and a mapping becomes a TOML file that
Python's own reader reads back to equal values (:func:`to_toml`). TOML has no word for "nothing", so a field that may
be ``None`` must default to ``None``: it is left out of the file.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple, TypeVar

from distillrs.errors import ArgumentError, argument_error, unknown_name_error
from distillrs.files import write_whole

T = TypeVar("T")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_INTEGER_LIMIT = 2**63  # TOML's integers are 64-bit and signed


class Difference(NamedTuple):
    """One key at which two configurations differ; a side that lacks the key has ``None``.

    Attributes:
        key: Dotted name.
        old: Value in the first configuration.
        new: Value in the second.
    """

    key: str
    old: object
    new: object


def to_dict(configuration: object) -> dict[str, Any]:
    """A configuration as nested dictionaries of TOML values.

    Args:
        configuration: Instance of a dataclass.

    Returns:
        Strings, numbers, booleans, lists and dictionaries. Fields that are ``None`` are left out.

    Raises:
        ArgumentError: A value has no form in TOML, or a ``None`` stands where the field's default is another value.
    """
    if not dataclasses.is_dataclass(configuration) or isinstance(configuration, type):
        raise argument_error("configuration", configuration, "an instance of a dataclass")
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(configuration):
        value = getattr(configuration, field.name)
        if value is None:
            if field.default is not None:
                raise argument_error(field.name, None, "a value: only a field whose default is None can be left out")
            continue
        plain[field.name] = _plain(value, field.name)
    return plain


def _plain(value: object, key: str) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items() if item is not None}
    if isinstance(value, range):
        if value.step != 1:
            raise argument_error(key, value, "a range of step 1")
        return [value.start, value.stop]
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    raise argument_error(key, value, "a string, number, boolean, path, list, mapping or dataclass")


def from_dict(kind: type[T], values: Mapping[str, object], *, where: str = "") -> T:
    """Builds a configuration from nested dictionaries, as TOML or JSON give them.

    Args:
        kind: The dataclass to build.
        values: Its fields; those left out take their defaults.
        where: Dotted name of this part within the whole file, for messages.

    Raises:
        UnknownNameError: A key that the dataclass does not have; the message suggests the nearest one.
        ArgumentError: A value of the wrong type or out of range, or a key that is required and missing.
    """
    if not dataclasses.is_dataclass(kind):
        raise argument_error("kind", kind, "a dataclass")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown_name_error(_join(where, "key"), name, list(fields))
        arguments[name] = convert(value, hints[name], _join(where, name))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise argument_error(_join(where, name), "nothing", "a value: this key is required")
    try:
        return kind(**arguments)
    except ArgumentError as refusal:
        if not where:
            raise
        raise type(refusal)(f"{where}.{refusal}") from refusal


def convert(value: object, hint: Any, key: str) -> Any:
    """A plain value as the type that an annotation asks for.

    Args:
        value: What TOML, JSON or the command line gave.
        hint: A resolved annotation: ``bool``, ``int``, ``float``, ``str``, ``Path``, ``Literal``, ``range`` (given as
            ``[start, stop]``), tuples, lists, mappings, dataclasses, and unions of these.
        key: Dotted name, for messages.

    Raises:
        ArgumentError: The value does not fit.
    """
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return convert(value, parameters[0], key)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, parameters, hint, key)
    if origin is typing.Literal:
        for allowed in parameters:
            # 1 == True: the type has to agree as well.
            if value == allowed and type(value) is type(allowed):
                return allowed
        raise argument_error(key, value, f"one of {', '.join(repr(item) for item in parameters)}")
    if hint is Any or hint is object:
        return value
    if hint is None or hint is types.NoneType:
        if value is None:
            return None
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value, where=key)
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is str:
        if isinstance(value, str):
            return value
    elif hint is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif hint is range:
        if isinstance(value, range):
            return value
        if isinstance(value, list | tuple) and len(value) == 2 and all(type(item) is int for item in value):
            return range(*value)
    elif (converted := _convert_container(value, origin or hint, parameters, key)) is not None:
        return converted
    raise argument_error(key, value, describe(hint))


def _convert_union(value: object, alternatives: tuple[Any, ...], hint: Any, key: str) -> Any:
    if value is None and types.NoneType in alternatives:
        return None
    refusals = []
    for alternative in alternatives:
        try:
            return convert(value, alternative, key)
        except ArgumentError as refusal:
            refusals.append(refusal)
    # With a single real alternative its own message says more ("one of 'a', 'b'") than the union's name.
    real = [refusal for refusal, kind in zip(refusals, alternatives, strict=True) if kind is not types.NoneType]
    if len(real) == 1:
        raise real[0]
    raise argument_error(key, value, describe(hint))


def _convert_container(value: object, container: Any, parameters: tuple[Any, ...], key: str) -> Any:
    if not isinstance(container, type):
        return None
    if issubclass(container, Mapping) and isinstance(value, Mapping):
        names, of = parameters if len(parameters) == 2 else (str, Any)
        return {_name(name, names, key): convert(item, of, f"{key}.{name}") for name, item in value.items()}
    if container is tuple and isinstance(value, list | tuple):
        if not parameters:
            return tuple(value)
        if len(parameters) == 2 and parameters[1] is Ellipsis:
            return tuple(convert(item, parameters[0], f"{key}[{n}]") for n, item in enumerate(value))
        if len(parameters) == len(value):
            pairs = enumerate(zip(value, parameters, strict=True))
            return tuple(convert(item, of, f"{key}[{n}]") for n, (item, of) in pairs)
    if issubclass(container, list) and isinstance(value, list | tuple):
        of = parameters[0] if parameters else Any
        return [convert(item, of, f"{key}[{n}]") for n, item in enumerate(value)]
    return None


def _name(name: object, hint: Any, key: str) -> object:
    # TOML and JSON know names alone, also where a mapping's keys are numbers.
    if hint is not int:
        return str(name)
    try:
        return int(str(name))
    except ValueError:
        raise argument_error(key, f"the name {name!r}", "whole numbers as names") from None


def describe(hint: Any) -> str:
    """An annotation in words, for messages and help."""
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        Path: "a path",
        range: "[start, stop] in whole numbers",
        types.NoneType: "nothing",
    }
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(item) for item in parameters if item is not types.NoneType)
    if origin is typing.Literal:
        return f"one of {', '.join(repr(item) for item in parameters)}"
    if origin is typing.Annotated:
        return describe(parameters[0])
    if origin is tuple and len(parameters) == 2 and parameters[1] is Ellipsis:
        return f"a list, each {describe(parameters[0])}"
    if origin is tuple:
        return f"[{', '.join(describe(item) for item in parameters)}]"
    if origin is list:
        return f"a list, each {describe(parameters[0])}"
    if dataclasses.is_dataclass(hint) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "a table"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def to_toml(values: Mapping[str, Any]) -> str:
    """Nested dictionaries as a TOML document.

    Args:
        values: Strings, numbers, booleans, lists and dictionaries; no ``None``.

    Returns:
        A document that ``tomllib.loads`` reads back to equal values: plain keys first, then one table for each
        nested dictionary.

    Raises:
        ArgumentError: A value that TOML cannot hold.
    """
    lines: list[str] = []
    _write_table(values, (), lines)
    return "\n".join(lines).strip("\n") + "\n" if lines else ""


def _write_table(values: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    scalars = {name: value for name, value in values.items() if name not in tables}
    if path and (scalars or not tables):
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(name)} = {_value(value, '.'.join((*path, name)))}" for name, value in scalars.items()]
    for name, table in tables.items():
        _write_table(table, (*path, name), lines)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name, name)


def _value(value: object, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            raise argument_error(key, value, "an integer of 64 bits, as TOML has them")
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return float.__repr__(value)  # the shortest text that reads back to the same bits, for numpy's float64 too
    if isinstance(value, str):
        return _string(value, key)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {_value(item, key)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, key) for item in value) + "]"
    raise argument_error(key, value, "a string, number, boolean, list or table")


def _string(text: str, key: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as failure:
        raise argument_error(key, text, "text that UTF-8 can hold") from failure
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\u{ord(character):04X}" if character < " " or character == "\x7f" else character


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Args:
        path: The file.

    Raises:
        ArgumentError: There is no such file, or it is not TOML; the message says where.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (FileNotFoundError, IsADirectoryError) as failure:
        raise argument_error("config", str(path), "a TOML file that exists") from failure
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise argument_error("config", str(path), f"a TOML file ({failure})") from failure


def load(kind: type[T], path: Path) -> T:
    """The configuration in a TOML file. See :func:`from_dict` for what is raised."""
    return from_dict(kind, read_toml(path))


def save(configuration: object, path: Path, *, comment: str = "") -> None:
    """Writes a configuration as a TOML file, whole or not at all.

    Args:
        configuration: Instance of a dataclass.
        path: The file; its folder must exist.
        comment: Lines to put on top.
    """
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    write_whole(path, (head + to_toml(to_dict(configuration))).encode())


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walks nested dictionaries as (dotted key, value), in order."""
    for name, value in values.items():
        key = _join(prefix, name)
        if isinstance(value, Mapping):
            yield from flatten(value, key)
        else:
            yield key, value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The keys at which two nested dictionaries differ, in the order of the first, then of the second."""
    left, right = dict(flatten(old)), dict(flatten(new))
    return [
        Difference(key, left.get(key), right.get(key)) for key in {**left, **right} if left.get(key) != right.get(key)
    ]


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries where those of ``change`` win, key by key."""
    merged = dict(base)
    for name, value in change.items():
        under = merged.get(name)
        merged[name] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits ``key=value`` as the command line gives it.

    The value is read as TOML (``20``, ``1e-3``, ``true``, ``[0, 5]``, ``"text"``); what is not TOML is a plain string,
    so that quotes are not needed around a word.

    Args:
        text: The assignment.

    Raises:
        ArgumentError: There is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise argument_error("set", text, "key=value")
    try:
        return key, tomllib.loads(f"value = {value.strip()}\n")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def nest(key: str, value: object) -> dict[str, Any]:
    """``a.b.c`` and a value as ``{"a": {"b": {"c": value}}}``."""
    nested: Any = value
    for part in reversed(key.split(".")):
        if not part:
            raise argument_error("key", key, "names with single dots between them")
        nested = {part: nested}
    result: dict[str, Any] = nested
    return result


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
