"""Windows of a run, read ahead."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillrs.checks import check_flag, check_instance, check_text, check_whole
from distillrs.errors import StoreError, argument_error
from distillrs.step import Step
from distillrs.trajectory.windows import Starts, check_span, starts_at

if TYPE_CHECKING:
    from distillrs.trajectory.store import Store


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """The windows of one step.

    Attributes:
        step: Index of the step they were drawn for.
        windows: (key, start) for each unit.
        first: [units, *shape] The records at the starts.
        last: [units, *shape] The records ``span`` later.
    """

    step: int
    windows: list[tuple[str, int]]
    first: Tensor
    last: Tensor


class WindowLoader:
    """Iterates over the windows of a run; each ``iter()`` starts one reading thread.

    The buffers are reused: a batch is valid until the next one is asked for. Copy it (to a device, say) to keep it.

    Args:
        store: What to read.
        span: Steps from a window's first to its last record.
        start: Starts to draw from, as in :meth:`Store.sample`.
        steps: The run's steps: their number, or a range to go on after a restart.
        column: Which column; ``None`` if there is only one. Not a ragged one.
        units: Windows of each step: their number, or their global ids (this rank's share).
        seed: Seed of the run.
        prefetch: Batches that are read ahead, at least 1.
        pin_memory: Use page-locked buffers, for copies to a GPU that overlap with work.
        name: Name of the draw.

    Raises:
        ArgumentError: An argument is not allowed.
    """

    def __init__(
        self,
        store: Store,
        span: int,
        start: Starts = None,
        *,
        steps: int | range,
        column: str | None = None,
        units: int | range = 1,
        seed: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        name: str = "window",
    ) -> None:
        from distillrs.trajectory.store import Store

        check_instance("store", store, Store, "a Store")
        check_whole("prefetch", prefetch, "at least 1 batch", least=1)
        check_flag("pin_memory", pin_memory)
        check_text("name", name)
        if not callable(start):
            starts_at(start, Step(0, seed=seed))
        self._store = store
        self._span = check_span(span)
        self._start = start
        self._steps = _numbers("steps", steps, "a number of steps or a rising range from 0")
        self._units = _numbers("units", units, "at least 1 window for each step, or a range of global ids")
        self._column, kind = store.schema.column(column)
        self._seed = seed
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        self._name = name
        if kind.ragged:
            raise argument_error("column", self._column, "a column of fixed shape")
        if len(self._units) < 1:
            raise argument_error("units", units, "at least 1 window for each step")
        if self._steps.step < 1 or self._steps.start < 0:
            raise argument_error("steps", steps, "a number of steps or a rising range from 0")
        if pin_memory and not torch.cuda.is_available():
            raise argument_error("pin_memory", True, "False where there is no CUDA device")

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._steps)

    def __iter__(self) -> WindowIterator:
        return WindowIterator(self)

    def _buffers(self) -> tuple[Tensor, Tensor]:
        column = self._store.schema[self._column]
        shape = (len(self._units), *column.shape)
        first, last = (torch.empty(shape, dtype=column.dtype, pin_memory=self._pin_memory) for _ in range(2))
        return first, last

    def _read(self, index: int, first: Tensor, last: Tensor) -> WindowBatch:
        step = Step(index, seed=self._seed)
        windows = self._store.sample(self._span, self._start, units=self._units, step=step, name=self._name)
        for unit, (key, start) in enumerate(windows):
            self._store.window(key, self._column, start=start, span=self._span, out=(first[unit], last[unit]))
        return WindowBatch(index, windows, first, last)


def _numbers(name: str, value: int | range, allowed: str) -> range:
    if isinstance(value, range):
        return value
    check_whole(name, value, allowed, least=0, most=2**63 - 1)
    return range(value)


_Free = queue.SimpleQueue[tuple[Tensor, Tensor] | None]
_Ready = queue.SimpleQueue[WindowBatch | BaseException | None]


class WindowIterator(Iterator[WindowBatch]):
    """One pass of a :class:`WindowLoader`; close it, use it in a ``with`` block, or drop it to end its thread."""

    def __init__(self, loader: WindowLoader) -> None:
        self._process = os.getpid()
        self._free: _Free = queue.SimpleQueue()
        self._ready: _Ready = queue.SimpleQueue()
        self._held: WindowBatch | None = None
        self._ended = False
        self._stop = threading.Event()
        # One set more than are read ahead: the consumer holds one.
        for _ in range(min(loader._prefetch, max(1, len(loader))) + 1):
            self._free.put(loader._buffers())
        # The thread knows the queues only, so that a dropped iterator is collected and ends it.
        self._thread = threading.Thread(
            target=_read_ahead,
            args=(loader, self._free, self._ready, self._stop),
            name="distillrs-windows",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> WindowIterator:
        return self

    def __next__(self) -> WindowBatch:
        """The next batch; the buffers of the one before are reused from now on.

        Raises:
            StoreError: The process was forked after ``iter()``: threads do not survive a fork.
        """
        if self._ended:
            raise StopIteration
        if os.getpid() != self._process:
            raise StoreError(
                "loader: it was started before a fork, and its thread stayed behind; start it in the child"
            )
        if self._held is not None:
            self._free.put((self._held.first, self._held.last))
            self._held = None
        found = self._ready.get()
        if isinstance(found, WindowBatch):
            self._held = found
            return found
        self.close()
        if found is None:
            raise StopIteration
        raise found

    def close(self) -> None:
        """Ends the thread and waits for it; safe to call again."""
        self._ended = True
        self._held = None
        self._stop.set()
        self._free.put(None)
        if os.getpid() == self._process and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> WindowIterator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Not close(): a finaliser must not wait for another thread.
        if hasattr(self, "_stop"):
            self._stop.set()
            self._free.put(None)


def _read_ahead(loader: WindowLoader, free: _Free, ready: _Ready, stop: threading.Event) -> None:
    try:
        for index in loader._steps:
            buffers = free.get()
            if buffers is None or stop.is_set():
                return
            ready.put(loader._read(index, *buffers))
        ready.put(None)
    except BaseException as failure:  # whatever it is, the consumer must hear of it
        ready.put(failure)
