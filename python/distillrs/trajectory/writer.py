"""The one writer of one trajectory."""

from __future__ import annotations

import json
from types import TracebackType
from typing import TYPE_CHECKING, Any

from distillrs.errors import argument_error, unknown_name_error
from distillrs.trajectory.buffers import memory, record_tensor
from distillrs.trajectory.schema import Schema

if TYPE_CHECKING:
    from distillrs._core import TrajectoryWriter
    from distillrs.trajectory.store import Store


class Writer:
    """Appends the records of one trajectory; made by :meth:`Store.begin`.

    As a context manager it completes the trajectory at the end of the block, unless it was closed there. An exception
    leaves it incomplete: what was appended is kept and can be resumed, but is never sampled.
    """

    def __init__(self, core: TrajectoryWriter, schema: Schema, store: Store) -> None:
        self._core = core
        self._schema = schema
        self._store = store
        self._open = True

    @property
    def key(self) -> str:
        """Name of the trajectory."""
        return self._core.key

    @property
    def discarded(self) -> dict[str, int]:
        """What resuming dropped: ``bytes`` of a torn end and ``records`` from ``resume_at`` on."""
        counts: dict[str, int] = json.loads(self._core.discarded)
        return counts

    def __len__(self) -> int:
        """Records so far, those before a resumption included."""
        return len(self._core)

    def append(self, **columns: Any) -> int:
        """Writes one record; it is durable after the next :meth:`flush`.

        Args:
            **columns: Every column of the schema: a tensor (any device) or array of exactly its type and shape, a
                ragged one of shape [rows, *shape]; numbers and lists of them are converted.

        Returns:
            The record's step.

        Raises:
            ArgumentError: A column is missing, unknown, or of another type or shape; nothing is written then.
            StoreIOError: The disk refused; records that were flushed before are intact, and append may be tried again.
        """
        for name in columns:
            if name not in self._schema:
                raise unknown_name_error("column", name, list(self._schema))
        missing = [name for name in self._schema if name not in columns]
        if missing:
            raise argument_error("columns", ", ".join(columns) or "none", f"all of {', '.join(self._schema)}")
        tensors = {name: record_tensor(name, columns[name], column) for name, column in self._schema.items()}
        return self._core.append(
            [
                (name, memory(tensor), tensor.shape[0] if self._schema[name].ragged else None)
                for name, tensor in tensors.items()
            ]
        )

    def flush(self) -> None:
        """Makes every appended record durable: they survive a power cut once this returns."""
        self._core.flush()

    def complete(self) -> None:
        """Ends the trajectory, durably; it can be read and sampled from now on."""
        self._core.complete()
        self._open = False
        self._store._forget()

    def close(self) -> None:
        """Leaves the trajectory as it is, incomplete unless :meth:`complete` came first, and frees its lock."""
        self._open = False
        self._core.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._open:
                self.complete()
        finally:
            # Also when completing failed: whoever tries again must not find the lock taken by this very process.
            self.close()
