"""What every command that works for long does: its words, its threads, and going on after an interruption."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distillrs.cli.folder import Folder
    from distillrs.evaluate.accounting import Timer


def command() -> str:
    """What the user typed, as one would type it again."""
    return shlex.join(["distillrs", *sys.argv[1:]])


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
