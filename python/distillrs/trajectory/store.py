"""The store of trajectories on disk."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillrs import _core
from distillrs.checks import check_choice, check_flag, check_path, check_text, check_whole
from distillrs.errors import SchemaMismatch, StoreError, StoreMissing, argument_error
from distillrs.random import Units
from distillrs.step import Step
from distillrs.trajectory.buffers import BITS, announce_write, memory, output_tensor
from distillrs.trajectory.reports import CodecError, RepairReport, SealReport, VerifyReport
from distillrs.trajectory.schema import Column, Schema
from distillrs.trajectory.windows import Starts, check_span, draw_windows, starts_at, window_choices
from distillrs.trajectory.writer import Writer

if TYPE_CHECKING:
    from distillrs.trajectory.loader import WindowLoader

Verify = Literal["first", "always", "never"]

_VERIFY = ("first", "always", "never")


class Ragged(NamedTuple):
    """Records of a ragged column.

    Attributes:
        values: [rows, *shape] The rows of all records, one after another.
        offsets: [records + 1] int64; record i has rows ``offsets[i]`` to ``offsets[i + 1]``.
    """

    values: Tensor
    offsets: Tensor


class Store:
    """Trajectories of records with named columns, in one directory.

    Any number of processes may write, each to its own trajectories; readers never write. Reading releases the
    interpreter's lock and works in threads, after a fork, and in workers that unpickle the store (which open it to
    read).

    Made by :meth:`create` or :meth:`open`. As a context manager, a store that may write seals what is complete at the
    end of the block.
    """

    def __init__(self, core: _core.TrajectoryStore, verify: Verify) -> None:
        self._core = core
        self._verify = verify
        self._schema = Schema.from_json(core.schema)
        self._lengths: dict[str, int] | None = None
        # The windows that the last draw chose from: looking at every trajectory at every step would add up.
        self._choices: tuple[tuple[int, range | None], list[tuple[str, Sequence[int]]]] | None = None
        self._writers: WeakSet[Writer] = WeakSet()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        schema: Schema,
        metadata: Mapping[str, Any] | None = None,
        *,
        exist_ok: bool = False,
    ) -> Store:
        """Makes a store, atomically: another process sees all of it or nothing.

        Args:
            path: The directory to make.
            schema: The columns of every record.
            metadata: Anything that JSON can hold; kept with the store.
            exist_ok: Join a store that is already there. Its schema must be the same, and its metadata too unless
                ``metadata`` is ``None``.

        Raises:
            StoreExists: There is one, and ``exist_ok`` is false.
            SchemaMismatch: The store there has another schema or other metadata.
            ArgumentError: An argument is not allowed.
        """
        if not isinstance(schema, Schema):
            raise argument_error("schema", schema, "a Schema(name=Column(...), ...)")
        check_path("path", path)
        check_flag("exist_ok", exist_ok)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise argument_error("metadata", type(metadata).__name__, "a mapping that JSON can hold, or None")
        try:
            text = json.dumps(dict(metadata or {}), allow_nan=False)
        except (TypeError, ValueError) as failure:
            raise argument_error("metadata", metadata, f"what JSON can hold ({failure})") from failure
        if metadata is None and exist_ok:
            text = _metadata_there(path) or text
        try:
            core = _core.TrajectoryStore.create(os.fspath(path), schema.to_json(), text, exist_ok)
        except SchemaMismatch:
            # Another process may have made the store between the two looks.
            there = _metadata_there(path)
            if metadata is not None or not exist_ok or there in (None, text):
                raise
            core = _core.TrajectoryStore.create(os.fspath(path), schema.to_json(), there, exist_ok)
        return cls(core, "first")

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: Verify = "first") -> Store:
        """Opens a store to read.

        Args:
            path: Its directory.
            verify: When checksums are looked at: at a record's first touch in this process, at each, or never.

        Raises:
            StoreMissing: There is none.
            StoreCorrupt: The store cannot be understood; see :meth:`repair`.
            StoreVersionError: A newer version of distillrs wrote it.
        """
        check_choice("verify", verify, _VERIFY)
        check_path("path", path)
        return cls(_core.TrajectoryStore.open(os.fspath(path), verify), verify)

    @staticmethod
    def repair(path: str | os.PathLike[str]) -> RepairReport:
        """Drops damaged records of a store, and only those; nobody may be writing to it.

        Args:
            path: Its directory.

        Raises:
            StoreLocked: Somebody writes to it.
            StoreMissing: There is none.
        """
        check_path("path", path)
        return RepairReport.of(_core.repair_store(os.fspath(path)))

    @property
    def path(self) -> Path:
        """The store's directory."""
        return Path(self._core.path)

    @property
    def schema(self) -> Schema:
        """The columns of every record."""
        return self._schema

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of what :meth:`create` was given."""
        copy: dict[str, Any] = json.loads(self._core.metadata)
        return copy

    @property
    def writable(self) -> bool:
        """Whether :meth:`begin` is allowed: the store was created or joined, not opened to read."""
        return self._core.writable

    def begin(self, key: str, resume_at: int | None = None) -> Writer:
        """Starts a trajectory, or goes on with an incomplete one.

        Args:
            key: Its name.
            resume_at: Drop records from this step on before going on; ``None`` keeps all. ``len(writer)`` says how many
                are there.

        Raises:
            StoreLocked: Another living writer has this trajectory; ``host`` and ``process`` say who.
            KeyConflict: The trajectory is complete.
            ArgumentError: The store was opened to read, or an argument is not allowed.
        """
        if not self.writable:
            raise argument_error("store", "one opened to read", "one from Store.create(path, schema, exist_ok=True)")
        _check_key(key)
        if resume_at is not None:
            allowed = "a number of records from 0, or None to keep all"
            check_whole("resume_at", resume_at, allowed, least=0, most=2**63 - 1)
        writer = Writer(self._core.begin(key, resume_at), self._schema, self)
        self._writers.add(writer)
        return writer

    def keys(self, *, incomplete: bool = False) -> list[str]:
        """Names of the complete trajectories, sorted.

        Args:
            incomplete: Also those that are not complete yet.
        """
        return list(self.lengths(incomplete=incomplete))

    def lengths(self, *, incomplete: bool = False) -> dict[str, int]:
        """Number of steps of each trajectory, in the order of :meth:`keys`.

        Args:
            incomplete: Also of those that are not complete yet.
        """
        check_flag("incomplete", incomplete)
        if incomplete:
            return self._core.lengths(True)
        return dict(self._complete())

    def __contains__(self, key: object) -> bool:
        """Whether a complete trajectory has this name."""
        return key in self._complete()

    def __len__(self) -> int:
        """Number of complete trajectories."""
        return len(self._complete())

    def missing(self, key: str) -> list[int]:
        """Steps that a repair dropped; reading one raises :class:`StoreCorrupt`."""
        _check_key(key)
        return self._core.missing(key)

    def refresh(self) -> None:
        """Takes in what other processes completed or sealed since the store was opened."""
        self._core.refresh()
        self._forget()

    def read(
        self, key: str, step: int | Sequence[int], column: str | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """One record, or several of one trajectory in one pass.

        Args:
            key: The trajectory; an incomplete one may be read by name.
            step: A step, or several (a range, a list) in any order.
            column: Which column; ``None`` if there is only one.
            out: [*shape], or [len(step), *shape] for several, to read into; contiguous, on the CPU.

        Returns:
            A tensor of the column's type: [*shape] for one step ([rows, *shape] if ragged), [len(step), *shape] for
            several.

        Raises:
            KeyNotFound: No trajectory has this name.
            ArgumentError: A step is out of range, ``out`` does not fit, or several steps of a ragged column (see
                :meth:`read_ragged`).
            StoreCorrupt: The bytes contradict their checksum.
        """
        name, kind = self._schema.column(column)
        several = isinstance(step, Sequence)
        steps = self._checked_steps(key, step if isinstance(step, Sequence) else [step])
        if several and kind.ragged:
            raise argument_error("step", step, f"one step of the ragged column {name!r}; read_ragged takes several")
        shape = self._shape(key, name, kind, steps[0]) if not several else (len(steps), *kind.shape)
        out = output_tensor("out", out, shape, kind.dtype)
        if steps:
            announce_write([out])
            rows = list(out.unbind()) if several else [out]
            self._core.read_into(key, name, steps, [memory(row) for row in rows])
        return out

    def read_ragged(self, key: str, steps: Sequence[int], column: str | None = None) -> Ragged:
        """Several records of a ragged column.

        Args:
            key: The trajectory.
            steps: Steps in any order.
            column: Which column; ``None`` if there is only one.

        Raises:
            KeyNotFound: No trajectory has this name.
            ArgumentError: A step is out of range, or the column is not ragged.
            StoreCorrupt: The bytes contradict their checksum.
        """
        name, kind = self._schema.column(column)
        if not kind.ragged:
            raise argument_error("column", name, "a ragged column")
        steps = self._checked_steps(key, steps)
        counts = torch.tensor([0, *(self._core.rows(key, name, step) for step in steps)], dtype=torch.int64)
        offsets = counts.cumsum(0)
        values = torch.empty((int(offsets[-1]), *kind.shape), dtype=kind.dtype)
        if steps:
            pieces = torch.split(values, counts[1:].tolist())
            self._core.read_into(key, name, steps, [memory(piece) for piece in pieces])
        return Ragged(values, offsets)

    def window(
        self,
        key: str,
        column: str | None = None,
        *,
        start: int,
        span: int,
        out: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The records at ``start`` and ``start + span``.

        Args:
            key: The trajectory.
            column: Which column; ``None`` if there is only one.
            start: Step of the first record.
            span: Steps to the last record, at least 1.
            out: Two tensors [*shape] to read into; contiguous, on the CPU.

        Returns:
            Both records, [*shape] each, of the column's type.

        Raises:
            KeyNotFound: No trajectory has this name.
            ArgumentError: The window does not lie in the trajectory, or ``out`` does not fit.
            StoreCorrupt: The bytes contradict their checksum.
        """
        check_span(span)
        name, kind = self._schema.column(column)
        length = self._length(key)
        first = _index(start)
        if first is None or not 0 <= first < length - span:
            allowed = f"a step from 0 to {length - span - 1}" if length > span else "no step at all"
            raise argument_error(
                "start", start, f"{allowed}: {key!r} has {length} steps, and start + span = start + {span} must be one"
            )
        steps = [first, first + span]
        shapes = [self._shape(key, name, kind, step) for step in steps]
        if out is None:
            start_record, end_record = (torch.empty(shape, dtype=kind.dtype) for shape in shapes)
        elif isinstance(out, Sequence) and len(out) == 2:
            start_record = output_tensor("out[0]", out[0], shapes[0], kind.dtype)
            end_record = output_tensor("out[1]", out[1], shapes[1], kind.dtype)
            announce_write((start_record, end_record))
        else:
            raise argument_error("out", type(out).__name__, "a pair of tensors")
        self._core.read_into(key, name, steps, [memory(start_record), memory(end_record)])
        return start_record, end_record

    def view(self, key: str, step: int, column: str | None = None) -> npt.NDArray[Any]:
        """One record without a copy where it lies in the file as it is (codec ``raw``, sealed).

        torch has no read-only tensors, and writing to a mapped file would end the process; numpy refuses it. For
        a tensor take :meth:`read`.

        Args:
            key: The trajectory.
            step: The record.
            column: Which column; ``None`` if there is only one.

        Returns:
            A read-only array [*shape] that keeps its mapping alive, also after :meth:`close`. Types that numpy lacks
            come as their bits: bfloat16 as uint16, the float8 types as uint8.

        Raises:
            KeyNotFound: No trajectory has this name.
            ArgumentError: The step is out of range.
            StoreCorrupt: The bytes contradict their checksum.
        """
        name, kind = self._schema.column(column)
        [step] = self._checked_steps(key, [step])
        shape = self._shape(key, name, kind, step)
        array: npt.NDArray[Any] = np.frombuffer(
            memoryview(self._core.view(key, name, step)), dtype=_numpy_dtype(kind.dtype)
        )
        return array.reshape(shape)

    def sample(
        self, span: int, start: Starts = None, *, units: Units = 1, step: Step | int = 0, name: str = "window"
    ) -> list[tuple[str, int]]:
        """Draws windows of complete trajectories, seeded, the same on every rank and after a restart.

        A trajectory is drawn uniformly, then a start uniformly among those whose window it holds whole. Trajectories
        that other processes complete later are seen after :meth:`refresh`; for draws that repeat, record first.

        Args:
            span: Steps from a window's first to its last record.
            start: Starts to draw from: a range (its end is excluded), ``None`` for all there are, or a curriculum:
                a function of the step that gives a range or its excluded end.
            units: How many windows, or their global ids (a range or an int64 tensor).
            step: Where the run stands.
            name: Name of the draw; samplers with different names draw independently.

        Returns:
            (key, start) for each unit.

        Raises:
            ArgumentError: No complete trajectory holds a window that begins in ``start``.
            DataError: There is no complete trajectory.
        """
        step = Step.of(step)
        check_span(span)
        check_text("name", name)
        allowed = starts_at(start, step)
        known = self._choices
        if known is None or known[0] != (span, allowed):
            choices = window_choices(self._complete(), self.missing, span, allowed)
            known = self._choices = ((span, allowed), choices)
        return draw_windows(known[1], units, step, name)

    def loader(
        self,
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
    ) -> WindowLoader:
        """Windows for a whole run, read ahead by one thread into reused buffers.

        See :class:`~distillrs.trajectory.WindowLoader` for the arguments and for how long a batch is valid.
        """
        from distillrs.trajectory.loader import WindowLoader

        return WindowLoader(
            self,
            span,
            start,
            steps=steps,
            column=column,
            units=units,
            seed=seed,
            prefetch=prefetch,
            pin_memory=pin_memory,
            name=name,
        )

    def codec_error(self, key: str, column: str | None = None) -> CodecError | None:
        """Error of a column's codec relative to the displacement between neighbours, measured as it was written.

        Returns:
            ``None`` for an exact codec.

        Raises:
            KeyNotFound: No trajectory has this name.
        """
        _check_key(key)
        found = self._core.codec_error(key, self._schema.column(column)[0])
        return None if found is None else CodecError(*found)

    def info(self) -> dict[str, Any]:
        """Format version, schema, metadata, files with sizes, trajectories, bytes, damage known so far."""
        form: dict[str, Any] = json.loads(self._core.info())
        return form

    def verify(self) -> VerifyReport:
        """Reads everything and names every damaged place by file, byte, trajectory, step and column."""
        return VerifyReport.of(self._core.verify())

    def seal(self) -> SealReport:
        """Moves complete trajectories from their logs into segments that any safetensors reader opens.

        Raises:
            ArgumentError: The store was opened to read.
        """
        if not self.writable:
            raise argument_error("store", "one opened to read", "one from Store.create(path, schema, exist_ok=True)")
        report = SealReport.of(self._core.seal())
        self.refresh()
        return report

    def close(self) -> None:
        """Lets go of files and locks without sealing; open writers leave their trajectories incomplete."""
        for writer in list(self._writers):
            writer.close()
        self._core.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in list(self._writers):
            writer.close()
        try:
            # Sealing copies; whoever presses Ctrl-C does not wait for it. Complete logs are durable as they are.
            if self.writable and (kind is None or issubclass(kind, Exception)):
                self.seal()
        except StoreError as second:
            if failure is None:
                raise
            failure.add_note(f"sealing {self.path} failed as well: {second}")
        finally:
            self.close()

    def __reduce__(self) -> tuple[Callable[[str, Verify], Store], tuple[str, Verify]]:
        """Pickles the path; whoever unpickles it opens the store to read."""
        return (_reopen, (os.path.abspath(self._core.path), self._verify))

    def __repr__(self) -> str:
        return f"Store({self._core.path!r}, {self._schema!r})"

    def _forget(self) -> None:
        """Asks the core anew next time. It knows by itself what this process completed, and looks when it is asked."""
        self._lengths = None
        self._choices = None

    def _complete(self) -> dict[str, int]:
        lengths = self._lengths
        if lengths is None:
            lengths = self._lengths = self._core.lengths(False)
        return lengths

    def _length(self, key: str) -> int:
        _check_key(key)
        length = self._complete().get(key)
        if length is None:
            length = self._core.lengths(True).get(key)
        if length is None:
            # The core's error names the key and the store.
            self._core.missing(key)
            raise AssertionError(f"the core lists {key!r} without a length")
        return length

    def _checked_steps(self, key: str, steps: Sequence[int]) -> list[int]:
        length = self._length(key)
        checked = []
        for step in steps:
            index = _index(step)
            if index is None or not 0 <= index < length:
                raise argument_error("step", step, f"a step from 0 to {length - 1} of {key!r}")
            checked.append(index)
        return checked

    def _shape(self, key: str, name: str, kind: Column, step: int) -> tuple[int, ...]:
        return (self._core.rows(key, name, step), *kind.shape) if kind.ragged else kind.shape


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise argument_error("key", key, "the name of a trajectory, a string")


def _index(value: object) -> int | None:
    """A whole number of any kind, numpy's too; None for anything else."""
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what is no number is what it refuses
    except TypeError:
        return None


def _reopen(path: str, verify: Verify) -> Store:
    return Store.open(path, verify=verify)


def _metadata_there(path: str | os.PathLike[str]) -> str | None:
    try:
        return _core.TrajectoryStore.open(os.fspath(path), "never").metadata
    except StoreMissing:
        return None


def _numpy_dtype(dtype: torch.dtype) -> npt.DTypeLike:
    found: npt.DTypeLike = torch.empty(0, dtype=BITS.get(dtype, dtype)).numpy().dtype
    return found
