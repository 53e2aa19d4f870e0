"""What every command that works for long does: its words, its threads, and going on after an interruption."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distillrs.cli.folder import Folder
    from distillrs.evaluate.accounting import Timer


_TYPED: ContextVar[tuple[str, ...] | None] = ContextVar("typed", default=None)


@contextlib.contextmanager
def typed(words: Sequence[str]) -> Iterator[None]:
    """For a block, these are the words after the program's name, whatever the process was started with."""
    before = _TYPED.set(tuple(words))
    try:
        yield
    finally:
        _TYPED.reset(before)


def command() -> str:
    """What the user typed, as one would type it again."""
    words = _TYPED.get()
    return shlex.join(["distillrs", *(sys.argv[1:] if words is None else words)])


def use_threads(count: int) -> None:
    """Sets the number of threads for torch and for the core."""
    import torch

    from distillrs import _core

    torch.set_num_threads(count)
    _core.set_threads(count)


@contextlib.contextmanager
def resumable(folder: Folder, timer: Timer, words: str) -> Iterator[None]:
    """Adds the seconds of an interrupted run to this one's, and says how to go on if this one is interrupted."""
    for name, seconds in folder.load_seconds().items():
        timer.seconds[name] = timer.seconds.get(name, 0.0) + seconds
    try:
        yield
    except KeyboardInterrupt as stop:
        folder.save_seconds(timer.seconds)
        stop.add_note(f"go on with: {words}")
        raise
