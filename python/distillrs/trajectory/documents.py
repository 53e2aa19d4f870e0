"""Packed rows of many documents in a store: what the caches of teachers and of labels share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.checks import check_flag, check_path, device_of, is_number
from distillrs.errors import (
    ArgumentError,
    KeyConflict,
    SchemaMismatch,
    StoreCorrupt,
    StoreIOError,
    StoreLocked,
    StoreMissing,
    StoreVersionError,
    argument_error,
)
from distillrs.ops import TopK, _backends
from distillrs.ops._cuda import _store as _cuda_store
from distillrs.trajectory.buffers import announce_write, memory
from distillrs.trajectory.fingerprint import UNCHECKED, Fingerprint, _Unchecked
from distillrs.trajectory.packed_rows import filled, integers, reals, token_count
from distillrs.trajectory.reports import VerifyReport
from distillrs.trajectory.schema import Column, Schema
from distillrs.trajectory.store import Store, Verify
from distillrs.trajectory.writer import Writer

T = TypeVar("T")

_DOCUMENTS = 1 << 24
_WRITERS = 1 << 15
_FLUSH_BYTES = 64 << 20
# Readings of rows whose logs other processes seal meanwhile.
_LOOKS = 16
_ROLL_BYTES = 1 << 30

_LAYOUT = ("vocabulary", "k", "code", "temperatures", "sampled")


class Documents:
    """Documents of packed rows, each under a key, written by any number of processes.

    Readers never write; what was flushed survives a crash. A subclass names its entry in the store's metadata
    (``_METADATA``), what it is (``_WHAT``), its format's version and the settings that every form has.
    """

    _METADATA: ClassVar[str]
    _WHAT: ClassVar[str]
    _FORMAT: ClassVar[int]
    _SETTINGS: ClassVar[tuple[str, ...]]

    def __init__(self, store: Store, form: dict[str, Any]) -> None:
        self._store = store
        self._form = form
        self._layout = layout_of(form)
        self._row_bytes = _core.teacher_row_bytes(self._layout)
        self._rows = _core.TeacherRows.load(store._core, self._layout)
        self._written: dict[str, bytes] = {}
        self._writer: Writer | None = None
        self._unflushed = 0
        self._in_log = 0

    @classmethod
    def _create(
        cls,
        path: str | os.PathLike[str],
        form: dict[str, Any],
        columns: dict[str, Column],
        fingerprint: Fingerprint | _Unchecked,
        exist_ok: bool,
    ) -> Self:
        """Makes or joins the store; documents that dead writers left are completed."""
        check_path("path", path)
        check_flag("exist_ok", exist_ok)
        row_bytes = _core.teacher_row_bytes(layout_of(form))
        columns = {
            "rows": Column((row_bytes,), "uint8", ragged=True),
            "key": Column((), "uint8", ragged=True),
            **columns,
        }
        if exist_ok:
            try:
                with Store.open(path) as there:
                    form = {**form, "fingerprint": cls._checked(there, fingerprint)}
            except StoreMissing:
                pass
        cache = cls(Store.create(path, Schema(**columns), {cls._METADATA: form}, exist_ok=exist_ok), form)
        cache._complete_dead_writers()
        return cache

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], fingerprint: Fingerprint | _Unchecked, *, verify: Verify = "first"
    ) -> Self:
        """Opens a cache to read. What living writers flushed, and what dead ones did, is seen.

        Args:
            path: Its directory.
            fingerprint: Of what the answers depend on, as it is in use; or ``UNCHECKED``.
            verify: When checksums are looked at: at a document's first touch in this process, at each, or never.

        Raises:
            StoreMissing: There is none.
            SchemaMismatch: The fingerprint differs, or the store is no such cache.
        """
        check_fingerprint(fingerprint)
        store = Store.open(path, verify=verify)
        cls._checked(store, fingerprint)
        return cls(store, store.metadata[cls._METADATA])

    @classmethod
    def _checked(cls, store: Store, fingerprint: Fingerprint | _Unchecked) -> dict[str, Any] | None:
        """The fingerprint of the cache there, after it was compared with the one in use."""
        form = store.metadata.get(cls._METADATA)
        due = ("format", "fingerprint", *cls._SETTINGS, *_LAYOUT)
        if not isinstance(form, dict) or any(name not in form for name in due):
            raise SchemaMismatch(f"{store.path} is a store, but no {cls._WHAT}")
        if form["format"] != cls._FORMAT:
            raise StoreVersionError(
                f"{store.path} has {cls._WHAT} format {form['format']}; this build reads {cls._FORMAT}"
            )
        cls._check_form(store, form)
        there: dict[str, Any] | None = form["fingerprint"]
        try:
            found = None if there is None else Fingerprint(**there)
        except (TypeError, ArgumentError) as failure:
            raise SchemaMismatch(f"{store.path} has a fingerprint that is none: {there!r:.200}") from failure
        if isinstance(fingerprint, Fingerprint):
            if found is None:
                raise SchemaMismatch(
                    f"fingerprint of {store.path} differs: UNCHECKED there, {fingerprint} in use; "
                    "pass UNCHECKED to take it as it is"
                )
            found.check(fingerprint, str(store.path))
        return there

    @classmethod
    def _check_form(cls, store: Store, form: dict[str, Any]) -> None:
        """Refuses settings that no cache can have; the core looks at those of a row's layout.

        Raises:
            SchemaMismatch: A stranger wrote them.
        """
        try:
            is_right = checked_temperatures(form["temperatures"]) == form["temperatures"]
        except ArgumentError:
            is_right = False
        if not is_right:
            got = f"{form['temperatures']!r:.80}"
            raise SchemaMismatch(f"{store.path} has temperatures={got}, which are not 1 and then others, each once")

    @property
    def path(self) -> Path:
        """The cache's directory."""
        return self._store.path

    @property
    def writable(self) -> bool:
        """Whether ``append`` is allowed."""
        return self._store.writable

    @property
    def k(self) -> int:
        """Entries kept of each row; 0 where a row has none."""
        return int(self._form["k"])

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures whose log-partition is kept; the first is 1."""
        return tuple(self._form["temperatures"])

    @property
    def fingerprint(self) -> Fingerprint | _Unchecked:
        """What the answers depend on, as it was given to ``create``."""
        form = self._form["fingerprint"]
        return UNCHECKED if form is None else Fingerprint(**form)

    @property
    def row_bytes(self) -> int:
        """Bytes of payload for each row."""
        return self._row_bytes

    def flush(self) -> None:
        """Makes all that was appended durable: it survives a power cut once this returns."""
        if self._writer is not None:
            self._writer.flush()
        self._unflushed = 0

    def refresh(self) -> None:
        """Takes in what other processes wrote since. Numbers of rows stay the same."""
        self._store.refresh()
        self._rows = _core.TeacherRows.load(self._store._core, self._layout)

    def verify(self) -> VerifyReport:
        """Reads everything and names every damaged place."""
        return self._store.verify()

    def close(self) -> None:
        """Completes what this process wrote, durably, and lets go of files and locks without sealing."""
        try:
            self._end_writer()
        finally:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Documents are appended whole, so they count whatever ended the block.
        try:
            self._end_writer()
        finally:
            self._store.__exit__(kind, failure, trace)

    def __reduce__(self) -> tuple[Callable[..., Documents], tuple[type[Documents], str, Verify]]:
        """Pickles the path; whoever unpickles it opens the cache to read."""
        return (_reopen, (type(self), os.path.abspath(self.path), self._store._verify))

    def _gather_top_k(
        self, numbers: Tensor, device: torch.device | str | None, out: TopK | None, dtype: torch.dtype
    ) -> TopK:
        target = device_of("device", device)
        if out is not None and not isinstance(out, TopK):
            raise argument_error("out", type(out).__name__, "a TopK")
        if not isinstance(dtype, torch.dtype) or dtype not in (torch.int32, torch.int64):
            raise argument_error("dtype", str(dtype), "torch.int32 or torch.int64")
        shape = tuple(numbers.shape)
        if _cuda_store.is_served(target) and _backends.is_ready(
            lambda: _cuda_store.prepare(target), f"rows for {target} are unpacked on the CPU, which is slower"
        ):
            return self._unpacked_there(numbers, target, out, dtype)
        local = out if out is not None and target.type == "cpu" else None
        pinned = target.type == "cuda"
        reused = (None, None, None) if local is None else (local.ids, local.log_probs, local.tail_log_mass)
        ids = filled("ids", reused[0], (*shape, self.k), dtype, pinned)
        log_probs = filled("log_probs", reused[1], (*shape, self.k), torch.float32, pinned)
        tail = filled("tail_log_mass", reused[2], shape, torch.float32, pinned)
        partitions = torch.empty((*shape, len(self.temperatures)), dtype=torch.float32, pin_memory=pinned)
        announce_write([ids, log_probs, tail])
        self._retried(
            lambda: self._rows.gather(
                memory(numbers),
                dtype is torch.int64,
                memory(ids),
                memory(log_probs),
                memory(tail),
                memory(partitions),
            )
        )
        if target.type != "cpu" and out is not None:
            return self._copied(out, ids, log_probs, tail, partitions)
        if local is not None:
            for each, column in self._columns(partitions).items():
                local.log_partition[each].copy_(column)
            return local
        ids, log_probs, tail, partitions = (
            each.to(target, non_blocking=True) for each in (ids, log_probs, tail, partitions)
        )
        return TopK(ids, log_probs, tail, self._columns(partitions))

    def _unpacked_there(self, numbers: Tensor, target: torch.device, out: TopK | None, dtype: torch.dtype) -> TopK:
        """The packed bytes travel, a quarter of what they stand for."""
        flat = numbers.reshape(-1)
        is_row = flat != -1
        there = flat[is_row]
        pinned = target.type == "cuda"
        packed = torch.empty(len(there) * self.row_bytes, dtype=torch.uint8, pin_memory=pinned)
        self._retried(lambda: self._rows.gather_packed(memory(there), memory(packed)))
        places = None
        if len(there) < len(flat):
            places = torch.where(is_row, is_row.cumsum(0) - 1, -1)
            places = (places.pin_memory() if pinned else places).to(target, non_blocking=True)
        layout = _cuda_store.RowLayout(
            vocabulary=int(self._form["vocabulary"]),
            k=self.k,
            is_half=self._form["code"] == "f16",
            temperatures=len(self.temperatures),
            row_bytes=self.row_bytes,
        )
        found = _cuda_store.unpack(layout, packed.to(target, non_blocking=True), places, len(flat), dtype)
        shape = tuple(numbers.shape)
        ids, log_probs, tail, partitions = (value.reshape(*shape, *value.shape[1:]) for value in found)
        if out is not None:
            return self._copied(out, ids, log_probs, tail, partitions)
        return TopK(ids, log_probs, tail, self._columns(partitions))

    def _copied(self, out: TopK, ids: Tensor, log_probs: Tensor, tail: Tensor, partitions: Tensor) -> TopK:
        out.ids.copy_(ids, non_blocking=True)
        out.log_probs.copy_(log_probs, non_blocking=True)
        out.tail_log_mass.copy_(tail, non_blocking=True)
        for each, column in self._columns(partitions).items():
            out.log_partition[each].copy_(column)
        return out

    def _columns(self, partitions: Tensor) -> dict[float, Tensor]:
        """The log-partitions by temperature; that of temperature 1 is 0 and goes without saying."""
        return {each: partitions[..., index] for index, each in enumerate(self.temperatures) if index}

    def _pack_top_k(self, rows: TopK, sampled: tuple[Tensor, Tensor] | None) -> tuple[bytes, int]:
        tokens = token_count(rows.ids.shape[0] if rows.ids.ndim == 2 else -1)
        ids = integers("ids", rows.ids, (tokens, self.k))
        assert ids is not None
        log_probs = reals("log_probs", rows.log_probs, (tokens, self.k))
        tail = reals("tail_log_mass", rows.tail_log_mass, (tokens,))
        zeros = torch.zeros(tokens)
        absent = [each for each in self.temperatures[1:] if each not in rows.log_partition]
        if absent:
            raise argument_error("log_partition", f"none for {absent}", f"one for each of {self.temperatures}")
        columns = [zeros, *(reals("log_partition", rows.log_partition[T], (tokens,)) for T in self.temperatures[1:])]
        partitions = torch.stack(columns, 1).contiguous()
        token = None
        if sampled is not None:
            drawn = integers("sampled.ids", sampled[0], (tokens,))
            assert drawn is not None
            drawn_log_probs = reals("sampled.log_probs", sampled[1], (tokens,))
            token = (memory(drawn), memory(drawn_log_probs))
        packed = _core.teacher_pack_top_k(
            self._layout, tokens, memory(ids), memory(log_probs), memory(tail), memory(partitions), token
        )
        return packed, tokens

    def _append_document(self, key: str, packed: bytes, rows: int, more: dict[str, Tensor]) -> bool:
        """Writes a document; False if it is there with the same content."""
        if not self.writable:
            raise argument_error(
                "cache", "one opened to read", f"one from {type(self).__name__}.create(..., exist_ok=True)"
            )
        name = key.encode()
        digest = hashlib.blake2b(packed, digest_size=16)
        for tensor in more.values():
            digest.update(tensor.numpy().data)
        if self._is_there(key, digest.digest(), packed, more):
            return False
        columns: list[tuple[str, tuple[int, int], int | None]] = [
            ("rows", _address(packed), rows),
            ("key", _address(name), len(name)),
            *((column, memory(tensor), len(tensor)) for column, tensor in more.items()),
        ]
        self._room()._core.append(columns)
        self._written[key] = digest.digest()
        self._unflushed += len(packed)
        self._in_log += len(packed)
        if self._unflushed >= _FLUSH_BYTES:
            self.flush()
        return True

    def _is_there(self, key: str, digest: bytes, packed: bytes, more: dict[str, Tensor]) -> bool:
        known = self._written.get(key)
        place = self._rows.place(key)
        if known is not None:
            same = known == digest
        elif place is not None:
            same = self._retried(lambda: self._rows.packed(key)) == packed
            same = same and all(self._store.read(*place, name).equal(tensor) for name, tensor in more.items())
        else:
            return False
        if not same:
            raise KeyConflict(
                f"{key!r} is already in {self.path} with other content: another text or teacher, or one that does not "
                "repeat itself bit for bit; use missing(keys) to write what is not there only"
            )
        return True

    def _room(self) -> Writer:
        """The writer, a new one when the last one's log is full."""
        if self._writer is not None and (self._in_log >= _ROLL_BYTES or len(self._writer) >= _DOCUMENTS):
            self._end_writer()
            self._store.seal()
        if self._writer is None:
            self._writer = self._new_writer()
        return self._writer

    def _new_writer(self) -> Writer:
        numbers = [int(name.removeprefix("writer-")) for name in self._store.lengths(incomplete=True)]
        for number in range(max(numbers, default=-1) + 1, _WRITERS):
            try:
                writer = self._store.begin(f"writer-{number:05d}")
            except (StoreLocked, KeyConflict):
                continue  # another process was faster
            if len(writer) == 0:
                return writer
            writer.complete()
        raise argument_error(
            "cache", f"one with {_WRITERS} writers", f"fewer than {_WRITERS}; write fewer, longer ones"
        )

    def _end_writer(self) -> None:
        writer, self._writer = self._writer, None
        self._unflushed = self._in_log = 0
        if writer is not None:
            writer.complete()

    def _complete_dead_writers(self) -> None:
        complete = self._store.lengths()
        for name in self._store.lengths(incomplete=True):
            if name in complete:
                continue
            try:
                self._store.begin(name).complete()
            except (StoreLocked, KeyConflict, StoreCorrupt):
                continue  # alive, completed meanwhile, or a case for a repair

    def _see_written(self) -> None:
        if any(self._rows.find(key) is None for key in self._written):
            self.refresh()
        if self._writer is None:
            self._written.clear()

    def _retried(self, action: Callable[[], T]) -> T:
        for _ in range(_LOOKS):
            try:
                return action()
            except StoreIOError as failure:
                if not isinstance(failure, OSError) or failure.errno != 2:
                    raise
                # Another process sealed a log since it was listed; row numbers stay the same.
                self.refresh()
        return action()


def layout_of(form: dict[str, Any]) -> str:
    """The part of a form that says where a row's fields lie, as the core takes it."""
    return json.dumps({name: form[name] for name in (*_LAYOUT, "dense") if name in form})


def check_fingerprint(fingerprint: object) -> None:
    """Refuses what is neither a fingerprint nor ``UNCHECKED``."""
    if not isinstance(fingerprint, (Fingerprint, _Unchecked)):
        raise argument_error("fingerprint", fingerprint, "Fingerprint.of(...), or UNCHECKED by name")


def checked_temperatures(temperatures: Sequence[float]) -> list[float]:
    """Temperatures as floats, 1 before all others."""
    allowed = "positive numbers, each once"
    given: Any = temperatures
    if isinstance(given, Tensor | np.ndarray):
        has_values = isinstance(given, np.ndarray) or (given.layout == torch.strided and not given.is_meta)
        given = given.tolist() if has_values else None
    is_list = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    if not is_list or not all(is_number(each) and each > 0 for each in given):
        raise argument_error("temperatures", temperatures, allowed)
    found = [float(each) for each in given]
    if len(set(found)) != len(found):
        raise argument_error("temperatures", temperatures, allowed)
    return [1.0, *(each for each in found if each != 1.0)]


def _reopen(kind: type[Documents], path: str, verify: Verify) -> Documents:
    return kind.open(path, UNCHECKED, verify=verify)


def _address(content: bytes) -> tuple[int, int]:
    return (np.frombuffer(content, np.uint8).ctypes.data if content else 0), len(content)
