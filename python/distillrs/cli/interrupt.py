"""Stopping in good order: Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what a scheduler sends before it kills."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within this block SIGTERM unwinds the stack as Ctrl-C does, so that files and locks are closed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; an embedding program keeps its own handlers
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Request:
    """Whether a stop was asked for.

    Attributes:
        signal: The exception to leave with; ``None`` while nobody asked.
    """

    def __init__(self) -> None:
        self.signal: KeyboardInterrupt | None = None

    def obey(self) -> None:
        """Leaves if a stop was asked for; to be called where the state is whole.

        Raises:
            KeyboardInterrupt: It was.
        """
        if self.signal is not None:
            raise self.signal


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
    """Within this block a first Ctrl-C or SIGTERM only leaves a request; a second one acts at once.

    An interruption between two changes of one state would leave them in disagreement. A loop looks at the request
    where its state is whole.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if request.signal is not None:
            raise kind
        request.signal = kind()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
