"""The exceptions of distillrs.

Every one is a :class:`DistillrsError` and also the built-in exception that a caller without distillrs would expect.
The names mirror the core's error enum. All can be pickled, so that they cross process borders.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class DistillrsError(Exception):
    """Base of everything that distillrs raises on purpose."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        for name, value in details.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        # OSError and KeyError format their arguments in their own way; the message alone is what helps here.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args[0] if self.args else "", dict(self.__dict__)))


def _rebuild(kind: type[DistillrsError], message: str, details: dict[str, Any]) -> DistillrsError:
    return kind(message, **details)


class ArgumentError(DistillrsError, ValueError):
    """An argument that is not allowed; the message names it, what it got and what it takes."""


class UnknownNameError(ArgumentError):
    """A name that is not known; the message lists the nearest ones."""


class DataError(DistillrsError, ValueError):
    """A data set that is missing, malformed or unfit; the message says how to mend it."""


class TrainingDivergedError(DistillrsError, ArithmeticError):
    """A loss, gradient or parameter became infinite or not a number."""


class KernelCompileError(DistillrsError, RuntimeError):
    """A CUDA source that the compiler on this machine refuses; the message has its log's end and a remedy.

    Attributes:
        kernel: The source's name.
        architecture: What it was compiled for.
        options: The compiler's options.
    """

    kernel: str
    architecture: str
    options: tuple[str, ...]


class StoreError(DistillrsError):
    """Base of what a trajectory store raises."""


class KeyNotFound(StoreError, KeyError):
    """A key that the store does not hold."""


class KeyConflict(StoreError, ValueError):
    """A key that the store already holds with other content."""


class StoreMissing(StoreError, FileNotFoundError):
    """No store where one was to be opened."""


class StoreExists(StoreError, FileExistsError):
    """A store where a new one was to be created."""


class SchemaMismatch(StoreError, ValueError):
    """The schema on disk and the schema asked for differ."""


class StoreLocked(StoreError, OSError):
    """Another living writer holds the lock.

    Attributes:
        host: Host of the holder.
        process: Process id of the holder, or a word where it is not known.
    """

    host: str
    process: str


class StoreCorrupt(StoreError, OSError):
    """Bytes on disk that contradict their checksum or the format.

    Attributes:
        path: The damaged file.
        offset: Byte offset of the damage in it.
    """

    path: os.PathLike[str]
    offset: int


class StoreVersionError(StoreError, OSError):
    """A file of a format version that this build cannot read."""


class StoreIOError(StoreError, OSError):
    """The operating system refused to read or write (a full disk, a missing permission)."""


def argument_error(name: str, got: object, allowed: str) -> ArgumentError:
    """An :class:`ArgumentError` in the library's one form.

    Args:
        name: The argument, as the caller wrote it.
        got: What was passed.
        allowed: What would have been accepted.
    """
    return ArgumentError(f"{name}: got {got!r}, allowed is {allowed}")


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Refusals in a block by the names that arguments have for the block's caller.

    Args:
        names: Of each argument of a part that the block calls, the caller's own name.

    Raises:
        ArgumentError: What the block raises, under the caller's name.
    """
    try:
        yield
    except ArgumentError as failure:
        name, colon, rest = str(failure).partition(": ")
        if not colon or name not in names:
            raise
        raise type(failure)(f"{names[name]}: {rest}") from failure


def unknown_name_error(kind: str, name: object, known: list[str]) -> UnknownNameError:
    """An :class:`UnknownNameError` that suggests the nearest known name.

    Args:
        kind: What the name was to name ("data set", "configuration key").
        name: The unknown name, or whatever stood in its place.
        known: All names that would have been accepted.
    """
    import difflib

    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"{kind}: got {name!r}, allowed is one of {', '.join(sorted(known))}{hint}")
