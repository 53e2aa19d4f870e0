"""A teacher's answers on disk, about 200 bytes a token."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import (
    KeyConflict,
    KeyNotFound,
    SchemaMismatch,
    StoreCorrupt,
    StoreIOError,
    StoreLocked,
    StoreMissing,
    StoreVersionError,
    argument_error,
)
from distillrs.ops import TopK
from distillrs.trajectory.buffers import announce_write, describe, memory, output_tensor
from distillrs.trajectory.fingerprint import UNCHECKED, Fingerprint, _Unchecked
from distillrs.trajectory.reports import VerifyReport
from distillrs.trajectory.schema import Column, Schema
from distillrs.trajectory.store import Store, Verify
from distillrs.trajectory.writer import Writer

T = TypeVar("T")

_FORMAT = 0
_METADATA = "teacher_cache"
_LOGITS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TOKENS = 1 << 24
_DOCUMENTS = 1 << 24
_WRITERS = 1 << 15
_FLUSH_BYTES = 64 << 20
_ROLL_BYTES = 1 << 30


class Sampled(NamedTuple):
    """Tokens that were drawn from the teacher.

    Attributes:
        ids: [...] The tokens, int64.
        log_probs: [...] Their natural log-probabilities under the teacher at temperature 1.
    """

    ids: Tensor
    log_probs: Tensor


def key_of(text: str | bytes) -> str:
    """The default key of a document: a digest of its text's bytes, so that another tokenizer finds it too.

    Args:
        text: The document; a string counts as UTF-8.
    """
    content = text.encode() if isinstance(text, str) else bytes(text)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class TeacherCache:
    """A teacher's most probable tokens for every position of many documents, in a store.

    A row of about 200 bytes keeps the ids and log-probabilities of ``k`` tokens, the mass of all others, and the
    log-partition at each temperature that will be used. ``docs/teacher-cache-format.md`` has the bytes and the error of
    every field. Any number of processes may write one cache; readers never write; what was flushed survives a crash.

    Made by :meth:`create` or :meth:`open`. As a context manager, a cache that may write seals what it wrote at the end
    of the block.
    """

    def __init__(self, store: Store, form: dict[str, Any]) -> None:
        self._store = store
        self._form = form
        self._layout = json.dumps({name: form[name] for name in _LAYOUT})
        self._row_bytes = _core.teacher_row_bytes(self._layout)
        self._rows = _core.TeacherRows.load(store._core, self._layout)
        self._written: dict[str, bytes] = {}
        self._writer: Writer | None = None
        self._unflushed = 0
        self._in_log = 0

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        vocabulary: int,
        k: int,
        fingerprint: Fingerprint | _Unchecked,
        *,
        temperatures: Sequence[float] = (1.0,),
        code: Literal["u8", "f16"] = "u8",
        sampled: bool = False,
        offsets: bool = False,
        exist_ok: bool = False,
    ) -> TeacherCache:
        """Makes a cache, or joins one that is there; documents that dead writers left are completed.

        Args:
            path: The directory to make.
            vocabulary: Size of the teacher's vocabulary, up to 2^24.
            k: Tokens to keep at each position, up to 4096; 0 keeps the sampled token only.
            fingerprint: What the answers depend on, or ``UNCHECKED``.
            temperatures: Divergences' temperatures that will be used; 1 is always among them.
            code: ``"u8"``: eight bits a log-probability with a scale for each row; ``"f16"``: sixteen.
            sampled: Also keep the sampled token and its log-probability.
            offsets: Also keep each document's byte offsets.
            exist_ok: Join a cache of the same settings and fingerprint.

        Raises:
            StoreExists: There is one, and ``exist_ok`` is false.
            SchemaMismatch: The cache there has other settings or another fingerprint.
            ArgumentError: An argument is not allowed.
        """
        if not isinstance(fingerprint, (Fingerprint, _Unchecked)):
            raise argument_error("fingerprint", fingerprint, "Fingerprint.of(...), or UNCHECKED by name")
        form = {
            "format": _FORMAT,
            "vocabulary": _count("vocabulary", vocabulary),
            "k": _count("k", k),
            "code": code,
            "temperatures": _temperatures(temperatures),
            "sampled": bool(sampled),
            "offsets": bool(offsets),
            "fingerprint": fingerprint.to_dict() if isinstance(fingerprint, Fingerprint) else None,
        }
        row_bytes = _core.teacher_row_bytes(json.dumps({name: form[name] for name in _LAYOUT}))
        columns = {"rows": Column((row_bytes,), "uint8", ragged=True), "key": Column((), "uint8", ragged=True)}
        if offsets:
            columns["offsets"] = Column((), "int64", ragged=True)
        if exist_ok:
            try:
                with Store.open(path) as there:
                    form["fingerprint"] = _checked_fingerprint(there, fingerprint)
            except StoreMissing:
                pass
        cache = cls(Store.create(path, Schema(**columns), {_METADATA: form}, exist_ok=exist_ok), form)
        cache._complete_dead_writers()
        return cache

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], fingerprint: Fingerprint | _Unchecked, *, verify: Verify = "first"
    ) -> TeacherCache:
        """Opens a cache to read. Documents that living writers flushed, and those of dead ones, are seen.

        Args:
            path: Its directory.
            fingerprint: That of the teacher, tokenizer and template in use, or ``UNCHECKED``.
            verify: When checksums are looked at: at a document's first touch in this process, at each, or never.

        Raises:
            StoreMissing: There is none.
            SchemaMismatch: The fingerprint differs, or the store is no teacher cache.
        """
        if not isinstance(fingerprint, (Fingerprint, _Unchecked)):
            raise argument_error("fingerprint", fingerprint, "Fingerprint.of(...), or UNCHECKED by name")
        store = Store.open(path, verify=verify)
        _checked_fingerprint(store, fingerprint)
        return cls(store, store.metadata[_METADATA])

    @property
    def path(self) -> Path:
        """The cache's directory."""
        return self._store.path

    @property
    def writable(self) -> bool:
        """Whether :meth:`append` is allowed."""
        return self._store.writable

    @property
    def vocabulary(self) -> int:
        """Size of the teacher's vocabulary."""
        return int(self._form["vocabulary"])

    @property
    def k(self) -> int:
        """Tokens kept at each position."""
        return int(self._form["k"])

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures whose log-partition is kept; the first is 1."""
        return tuple(self._form["temperatures"])

    @property
    def fingerprint(self) -> Fingerprint | _Unchecked:
        """What the answers depend on, as it was given to :meth:`create`."""
        form = self._form["fingerprint"]
        return UNCHECKED if form is None else Fingerprint(**form)

    @property
    def row_bytes(self) -> int:
        """Bytes of payload for each token."""
        return self._row_bytes

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        self._see_written()
        return self._rows.size[1]

    @property
    def conflicts(self) -> list[str]:
        """Keys that two processes wrote at the same time with different content; the lower-numbered writer's counts."""
        return self._rows.conflicts()

    def append(
        self,
        key: str,
        answers: Tensor | TopK | Sampled,
        *,
        sampled: Tensor | Sampled | None = None,
        ids: Tensor | None = None,
        offsets: Tensor | Sequence[int] | None = None,
    ) -> bool:
        """Writes the answers for one document; durable after the next :meth:`flush`.

        Args:
            key: The document's name; see :func:`key_of`.
            answers: [tokens, vocabulary] logits (float32, bfloat16 or float16; -inf for excluded ids), or a TopK of
                shape [tokens, k] with the log-partitions of this cache's temperatures; a :class:`Sampled` if the cache
                has ``k=0`` and there are no logits.
            sampled: [tokens] The sampled tokens, if the cache keeps them; beside a TopK a :class:`Sampled`.
            ids: [tokens, k] int64; the ids to keep instead of the k largest (the student's, or the union of both), -1
                where there are fewer. With logits only.
            offsets: [tokens + 1] First byte of each token in the text, then the text's length, if the cache keeps them.

        Returns:
            False if the document is already there with the same content; nothing is written then.

        Raises:
            KeyConflict: The key is there with other content.
            ArgumentError: An argument does not fit; nothing is written then.
            StoreIOError: The disk refused; what was flushed is intact, and append may be tried again.
        """
        if not self.writable:
            raise argument_error("cache", "one opened to read", "one from TeacherCache.create(..., exist_ok=True)")
        name = _key_bytes(key)
        packed, tokens = self._pack(answers, sampled, ids)
        places = self._offsets(offsets, tokens)
        digest = hashlib.blake2b(packed, digest_size=16)
        if places is not None:
            digest.update(places.numpy().data)
        if self._is_there(key, digest.digest(), packed, places):
            return False
        columns: list[tuple[str, tuple[int, int], int | None]] = [
            ("rows", _address(packed), tokens),
            ("key", _address(name), len(name)),
        ]
        if places is not None:
            columns.append(("offsets", memory(places), len(places)))
        self._room()._core.append(columns)
        self._written[key] = digest.digest()
        self._unflushed += len(packed)
        self._in_log += len(packed)
        if self._unflushed >= _FLUSH_BYTES:
            self.flush()
        return True

    def flush(self) -> None:
        """Makes every appended document durable: they survive a power cut once this returns."""
        if self._writer is not None:
            self._writer.flush()
        self._unflushed = 0

    def refresh(self) -> None:
        """Takes in what other processes wrote since. Numbers of rows stay the same."""
        self._store.refresh()
        self._rows = _core.TeacherRows.load(self._store._core, self._layout)

    def keys(self) -> list[str]:
        """Keys of the documents, sorted."""
        self._see_written()
        return self._rows.keys()

    def __len__(self) -> int:
        """Number of documents."""
        self._see_written()
        return self._rows.size[0]

    def __contains__(self, key: object) -> bool:
        """Whether there is a document of this key."""
        return isinstance(key, str) and (key in self._written or self._rows.find(key) is not None)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that have no document yet, in their order.

        Args:
            keys: Keys of documents.
        """
        return [key for key in keys if key not in self]

    def index(self, keys: Sequence[str]) -> Tensor:
        """Number of the first row of each document; the row of its position p is that number plus p.

        Numbers stay the same when the cache grows, so they may be kept beside the documents.

        Args:
            keys: Keys of documents.

        Returns:
            [len(keys)] int64.

        Raises:
            KeyNotFound: Some keys have no document.
        """
        return self._found(keys, 0)

    def lengths(self, keys: Sequence[str]) -> Tensor:
        """Number of tokens of each document.

        Args:
            keys: Keys of documents.

        Returns:
            [len(keys)] int64.

        Raises:
            KeyNotFound: Some keys have no document.
        """
        return self._found(keys, 1)

    def gather(
        self,
        rows: Tensor | Sequence[int],
        *,
        device: torch.device | str | None = None,
        out: TopK | None = None,
        dtype: torch.dtype = torch.int64,
    ) -> TopK:
        """Rows in any order, unpacked by the core in threads without the interpreter's lock.

        Args:
            rows: [...] Numbers from :meth:`index` plus positions; -1 for no row.
            device: Where the result goes; ``None`` is the CPU.
            out: A result of an earlier call for the same shape, to be filled again.
            dtype: Of the ids: int64, or int32 in half the memory.

        Returns:
            [..., k] entries, sorted by falling probability; of a row -1 ids 0, log-probabilities minus infinity and a
            tail of log-mass 0, which weigh nothing under a row weight of 0.

        Raises:
            ArgumentError: A row is not there, or ``out`` does not fit.
            StoreCorrupt: The bytes contradict their checksum or the format.
        """
        numbers = _row_numbers(rows)
        if self.k == 0:
            raise argument_error(
                "cache", "one of sampled tokens only (k=0)", "one with k of at least 1, or gather_sampled"
            )
        target = torch.device("cpu" if device is None else device)
        if out is not None and not isinstance(out, TopK):
            raise argument_error("out", type(out).__name__, "a TopK")
        if dtype not in (torch.int32, torch.int64):
            raise argument_error("dtype", str(dtype), "torch.int32 or torch.int64")
        shape = tuple(numbers.shape)
        local = out if out is not None and target.type == "cpu" else None
        pinned = target.type == "cuda"
        reused = (None, None, None) if local is None else (local.ids, local.log_probs, local.tail_log_mass)
        ids = _filled("ids", reused[0], (*shape, self.k), dtype, pinned)
        log_probs = _filled("log_probs", reused[1], (*shape, self.k), torch.float32, pinned)
        tail = _filled("tail_log_mass", reused[2], shape, torch.float32, pinned)
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
            out.ids.copy_(ids, non_blocking=True)
            out.log_probs.copy_(log_probs, non_blocking=True)
            out.tail_log_mass.copy_(tail, non_blocking=True)
            for each, column in self._columns(partitions).items():
                out.log_partition[each].copy_(column)
            return out
        ids, log_probs, tail, partitions = (
            each.to(target, non_blocking=True) for each in (ids, log_probs, tail, partitions)
        )
        return TopK(ids, log_probs, tail, self._columns(partitions))

    def _columns(self, partitions: Tensor) -> dict[float, Tensor]:
        """The log-partitions by temperature; that of temperature 1 is 0 and goes without saying."""
        return {each: partitions[..., index] for index, each in enumerate(self.temperatures) if index}

    def gather_sampled(self, rows: Tensor | Sequence[int], *, device: torch.device | str | None = None) -> Sampled:
        """The sampled token of each row.

        Args:
            rows: [...] As for :meth:`gather`.
            device: Where the result goes; ``None`` is the CPU.

        Returns:
            [...] Tokens and log-probabilities; of a row -1 token 0 and minus infinity.

        Raises:
            ArgumentError: The cache keeps none, or a row is not there.
            StoreCorrupt: The bytes contradict their checksum or the format.
        """
        numbers = _row_numbers(rows)
        ids, log_probs = torch.empty(numbers.shape, dtype=torch.int64), torch.empty(numbers.shape)
        self._retried(lambda: self._rows.gather_sampled(memory(numbers), memory(ids), memory(log_probs)))
        target = "cpu" if device is None else device
        return Sampled(ids.to(target), log_probs.to(target))

    def offsets(self, key: str) -> Tensor:
        """First byte of each token of a document in its text, then the text's length.

        Args:
            key: The document.

        Returns:
            [tokens + 1] int64.

        Raises:
            KeyNotFound: There is no document of this key.
            ArgumentError: The cache keeps no offsets.
        """
        if not self._form["offsets"]:
            raise argument_error("cache", "one without byte offsets", "one made with offsets=True")
        self._found([key], 0)
        place = self._rows.place(key)
        assert place is not None
        return self._store.read(*place, "offsets")

    def info(self) -> dict[str, Any]:
        """The store's files and sizes, and what the cache holds."""
        return {**self._store.info(), "documents": len(self), "tokens": self.tokens, "row_bytes": self.row_bytes}

    def verify(self) -> VerifyReport:
        """Reads everything and names every damaged place."""
        return self._store.verify()

    def close(self) -> None:
        """Completes what this process wrote, durably, and lets go of files and locks without sealing."""
        try:
            self._end_writer()
        finally:
            self._store.close()

    def __enter__(self) -> TeacherCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Documents are appended whole, so they count whatever ended the block.
        try:
            self._end_writer()
        finally:
            self._store.__exit__(kind, failure, trace)

    def __reduce__(self) -> tuple[Callable[[str, Verify], TeacherCache], tuple[str, Verify]]:
        """Pickles the path; whoever unpickles it opens the cache to read."""
        return (_reopen, (os.path.abspath(self.path), self._store._verify))

    def __repr__(self) -> str:
        return f"TeacherCache({str(self.path)!r}, vocabulary={self.vocabulary}, k={self.k})"

    def _pack(
        self, answers: Tensor | TopK | Sampled, sampled: Tensor | Sampled | None, ids: Tensor | None
    ) -> tuple[bytes, int]:
        if isinstance(answers, Sampled):
            if self.k != 0 or sampled is not None or ids is not None:
                raise argument_error("answers", "sampled tokens alone", "logits or a TopK, as the cache has k > 0")
            none = torch.empty(len(answers.ids), 0)
            return self._pack_top_k(TopK(none.long(), none, torch.zeros(len(none)), {}), answers)
        if isinstance(answers, TopK):
            if ids is not None:
                raise argument_error("ids", "ids beside a TopK", "None: the TopK has its own")
            if sampled is not None and not isinstance(sampled, Sampled):
                raise argument_error("sampled", type(sampled).__name__, "a Sampled(ids, log_probs) beside a TopK")
            return self._pack_top_k(answers, sampled)
        if not isinstance(answers, Tensor):
            raise argument_error("answers", type(answers).__name__, "logits, a TopK or a Sampled")
        if answers.ndim != 2 or answers.shape[1] != self.vocabulary or answers.dtype not in _LOGITS:
            raise argument_error(
                "answers",
                describe(answers),
                f"logits of shape [tokens, {self.vocabulary}], the cache's vocabulary, in float32, bfloat16 or float16",
            )
        if isinstance(sampled, Sampled):
            raise argument_error("sampled", "a Sampled beside logits", "the tokens alone: the logits have the rest")
        logits = answers.detach()
        tokens = _token_count(logits.shape[0])
        chosen = _integers("ids", ids, (tokens, self.k))
        drawn = _integers("sampled", sampled, (tokens,))
        if logits.device.type != "cpu" and self.k > 0 and chosen is None:
            return self._pack_on_device(logits, drawn)
        logits = logits.cpu().contiguous()
        packed = _core.teacher_pack_logits(
            self._layout,
            _LOGITS[logits.dtype],
            tokens,
            memory(logits),
            None if chosen is None else memory(chosen),
            None if drawn is None else memory(drawn),
        )
        return packed, tokens

    def _pack_on_device(self, logits: Tensor, drawn: Tensor | None) -> tuple[bytes, int]:
        """Selects where the logits are, so that a few hundred numbers a row cross the bus and not the vocabulary."""
        rows = TopK.from_logits(logits, self.k, self.temperatures)
        token = None
        if drawn is not None:
            there = drawn.to(logits.device)
            token = Sampled(drawn, torch.log_softmax(logits.float(), -1).gather(-1, there[:, None]).squeeze(-1))
        return self._pack_top_k(rows, token)

    def _pack_top_k(self, rows: TopK, sampled: Sampled | None) -> tuple[bytes, int]:
        tokens = _token_count(rows.ids.shape[0] if rows.ids.ndim == 2 else -1)
        ids = _integers("ids", rows.ids, (tokens, self.k))
        assert ids is not None
        log_probs = _reals("log_probs", rows.log_probs, (tokens, self.k))
        tail = _reals("tail_log_mass", rows.tail_log_mass, (tokens,))
        zeros = torch.zeros(tokens)
        absent = [each for each in self.temperatures[1:] if each not in rows.log_partition]
        if absent:
            raise argument_error("log_partition", f"none for {absent}", f"one for each of {self.temperatures}")
        columns = [zeros, *(_reals("log_partition", rows.log_partition[T], (tokens,)) for T in self.temperatures[1:])]
        partitions = torch.stack(columns, 1).contiguous()
        token = None
        if sampled is not None:
            drawn = _integers("sampled.ids", sampled.ids, (tokens,))
            assert drawn is not None
            drawn_log_probs = _reals("sampled.log_probs", sampled.log_probs, (tokens,))
            token = (memory(drawn), memory(drawn_log_probs))
        packed = _core.teacher_pack_top_k(
            self._layout, tokens, memory(ids), memory(log_probs), memory(tail), memory(partitions), token
        )
        return packed, tokens

    def _offsets(self, offsets: Tensor | Sequence[int] | None, tokens: int) -> Tensor | None:
        kept = self._form["offsets"]
        if (offsets is not None) != kept:
            allowed = f"[{tokens + 1}] byte offsets" if kept else "None, as the cache keeps none"
            raise argument_error("offsets", "None" if offsets is None else "offsets", allowed)
        if offsets is None:
            return None
        found = _integers("offsets", torch.as_tensor(offsets), (tokens + 1,))
        assert found is not None
        if int(found[0]) < 0 or bool((found[1:] < found[:-1]).any()):
            raise argument_error("offsets", "offsets that fall", "byte offsets that rise from 0 or more")
        return found

    def _is_there(self, key: str, digest: bytes, packed: bytes, places: Tensor | None) -> bool:
        known = self._written.get(key)
        if known is not None:
            same = known == digest
        elif self._rows.find(key) is not None:
            same = self._retried(lambda: self._rows.packed(key)) == packed
            if same and places is not None:
                same = torch.equal(self.offsets(key), places)
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

    def _found(self, keys: Sequence[str], part: int) -> Tensor:
        if isinstance(keys, str):
            raise argument_error("keys", keys, "a sequence of keys")
        if any(key in self._written for key in keys):
            self._see_written()
        found = [self._rows.find(key) for key in keys]
        absent = [key for key, place in zip(keys, found, strict=True) if place is None]
        if absent:
            others = f", nor are {len(absent) - 1} others; see missing(keys)" if len(absent) > 1 else ""
            raise KeyNotFound(f"{absent[0]!r} is not in {self.path}{others}")
        return torch.tensor([place[part] for place in found if place is not None], dtype=torch.int64)

    def _retried(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except StoreIOError as failure:
            if not isinstance(failure, OSError) or failure.errno != 2:
                raise
            # Another process sealed the log since it was listed; row numbers stay the same.
            self.refresh()
            return action()


_LAYOUT = ("vocabulary", "k", "code", "temperatures", "sampled")


def _checked_fingerprint(store: Store, fingerprint: Fingerprint | _Unchecked) -> dict[str, Any] | None:
    """The fingerprint of the cache there, after it was compared with the one in use."""
    form = store.metadata.get(_METADATA)
    if not isinstance(form, dict) or any(name not in form for name in ("format", "fingerprint", "offsets", *_LAYOUT)):
        raise SchemaMismatch(f"{store.path} is a store, but no teacher cache")
    if form["format"] != _FORMAT:
        raise StoreVersionError(f"{store.path} has teacher cache format {form['format']}; this build reads {_FORMAT}")
    there: dict[str, Any] | None = form["fingerprint"]
    if isinstance(fingerprint, Fingerprint):
        if there is None:
            raise SchemaMismatch(
                f"fingerprint of {store.path} differs: UNCHECKED there, {fingerprint} in use; "
                "pass UNCHECKED to take it as it is"
            )
        Fingerprint(**there).check(fingerprint, str(store.path))
    return there


def _reopen(path: str, verify: Verify) -> TeacherCache:
    return TeacherCache.open(path, UNCHECKED, verify=verify)


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise argument_error(name, value, "a whole number from 0")
    return value


def _temperatures(temperatures: Sequence[float]) -> list[float]:
    allowed = "positive numbers, each once"
    try:
        found = [float(each) for each in temperatures]
    except TypeError as failure:
        raise argument_error("temperatures", temperatures, allowed) from failure
    if len(set(found)) != len(found) or not all(0 < each < float("inf") for each in found):
        raise argument_error("temperatures", temperatures, allowed)
    return [1.0, *(each for each in found if each != 1.0)]


def _key_bytes(key: str) -> bytes:
    if not isinstance(key, str) or not key:
        raise argument_error("key", key, "a string that is not empty; key_of(text) makes one")
    return key.encode()


def _address(content: bytes) -> tuple[int, int]:
    return (np.frombuffer(content, np.uint8).ctypes.data if content else 0), len(content)


def _token_count(tokens: int) -> int:
    if not 0 <= tokens < _TOKENS:
        raise argument_error("answers", f"{tokens} tokens", f"rows of shape [tokens, ...], fewer than {_TOKENS}")
    return tokens


def _integers(name: str, value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.is_floating_point() or tuple(value.shape) != shape:
        got = describe(value) if isinstance(value, Tensor) else type(value).__name__
        raise argument_error(name, got, f"integers of shape {list(shape)}")
    return value.detach().to("cpu", torch.int64).contiguous()


def _reals(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
        got = describe(value) if isinstance(value, Tensor) else type(value).__name__
        raise argument_error(name, got, f"a floating tensor of shape {list(shape)}")
    return value.detach().to("cpu", torch.float32).contiguous()


def _row_numbers(rows: Tensor | Sequence[int]) -> Tensor:
    numbers = rows if isinstance(rows, Tensor) else torch.as_tensor(rows)
    if numbers.is_floating_point() or numbers.dtype is torch.bool:
        if numbers.numel():
            raise argument_error("rows", describe(numbers), "int64 row numbers")
        numbers = numbers.long()
    return numbers.detach().to("cpu", torch.int64).contiguous()


def _filled(name: str, out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> Tensor:
    if out is None and pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return output_tensor(f"out.{name}", out, shape, dtype)
