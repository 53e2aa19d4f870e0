"""A teacher's answers on disk, about 200 bytes a token."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from distillrs import _core
from distillrs.checks import check_choice, check_flag, check_path, device_of
from distillrs.errors import KeyNotFound, SchemaMismatch, StoreMissing, argument_error
from distillrs.ops import TopK
from distillrs.trajectory.buffers import describe, memory
from distillrs.trajectory.documents import Documents, check_fingerprint, checked_temperatures
from distillrs.trajectory.fingerprint import Fingerprint, _Unchecked
from distillrs.trajectory.packed_rows import integers, row_numbers, token_count
from distillrs.trajectory.schema import Column
from distillrs.trajectory.store import Store
from distillrs.trajectory.support import SUPPORTS, Support, check_ids, check_same_support, check_support, top_k_of

_LOGITS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


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

    Raises:
        ArgumentError: Something else, or a string with half a character (a lone surrogate).
    """
    if not isinstance(text, str | bytes | bytearray | memoryview):
        raise argument_error("text", type(text).__name__, "a string or bytes")
    try:
        content = text.encode() if isinstance(text, str) else bytes(text)
    except UnicodeEncodeError as failure:
        got = f"half a character at place {failure.start}"
        raise argument_error("text", got, "a string that UTF-8 can encode") from failure
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class TeacherCache(Documents):
    """A teacher's most probable tokens for every position of many documents, in a store.

    A row of about 200 bytes keeps the ids and log-probabilities of ``k`` tokens, the mass of all others, and the
    log-partition at each temperature that will be used. ``docs/teacher-cache-format.md`` has the bytes and the error of
    every field. Any number of processes may write one cache; readers never write; what was flushed survives a crash.

    Made by :meth:`create` or :meth:`open`. As a context manager, a cache that may write seals what it wrote at the end
    of the block.
    """

    _METADATA: ClassVar[str] = "teacher_cache"
    _WHAT: ClassVar[str] = "teacher cache"
    _FORMAT: ClassVar[int] = 0
    _SETTINGS: ClassVar[tuple[str, ...]] = ("offsets",)

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
        support: Support = "teacher",
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
            support: Who chooses the tokens of a row: ``"teacher"``, its ``k`` largest; ``"student"``, whose ids come
                with every document; ``"union"``, the ids of both (:func:`union_support`).
            sampled: Also keep the sampled token and its log-probability.
            offsets: Also keep each document's byte offsets.
            exist_ok: Join a cache of the same settings and fingerprint.

        Raises:
            StoreExists: There is one, and ``exist_ok`` is false.
            SchemaMismatch: The cache there has other settings or another fingerprint.
            ArgumentError: An argument is not allowed.
        """
        check_fingerprint(fingerprint)
        for name, flag in (("sampled", sampled), ("offsets", offsets), ("exist_ok", exist_ok)):
            check_flag(name, flag)
        check_choice("code", code, ("u8", "f16"))
        form: dict[str, Any] = {
            "format": cls._FORMAT,
            "vocabulary": _count("vocabulary", vocabulary),
            "k": _count("k", k),
            "code": code,
            "temperatures": checked_temperatures(temperatures),
            "sampled": bool(sampled),
            "offsets": bool(offsets),
            "fingerprint": fingerprint.to_dict() if isinstance(fingerprint, Fingerprint) else None,
        }
        check_support(support, form["k"])
        if support != "teacher":
            # Caches from before there was a choice have the teacher's and say nothing; so do those of today.
            form["support"] = support
        if exist_ok:
            check_path("path", path)
            try:
                with Store.open(path) as there:
                    check_same_support(there, cls._METADATA, support)
            except StoreMissing:
                pass
        columns = {"offsets": Column((), "int64", ragged=True)} if offsets else {}
        return cls._create(path, form, columns, fingerprint, exist_ok)

    @property
    def vocabulary(self) -> int:
        """Size of the teacher's vocabulary."""
        return int(self._form["vocabulary"])

    @property
    def support(self) -> Support:
        """Who chose the tokens that a row keeps: "teacher", "student" or "union"."""
        support: Support = self._form.get("support", "teacher")
        return support

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
            ids: [tokens, k] int64; beside logits in a cache of support "student" (the student's) or "union"
                (:func:`union_support`), and only there: the ids to keep, -1 where there are fewer. A TopK has its own,
                which nobody can compare with the support.
            offsets: [tokens + 1] First byte of each token in the text, then the text's length, if the cache keeps them.

        Returns:
            False if the document is already there with the same content; nothing is written then.

        Raises:
            KeyConflict: The key is there with other content.
            ArgumentError: An argument does not fit; nothing is written then.
            StoreIOError: The disk refused; what was flushed is intact, and append may be tried again.
        """
        packed, tokens = self._pack(answers, sampled, ids)
        places = self._offsets(offsets, tokens)
        return self._append_document(_checked_key(key), packed, tokens, {} if places is None else {"offsets": places})

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

        Raises:
            ArgumentError: Something that is no sequence of strings; a string would be taken for one key a letter.
        """
        return [key for key in _checked_keys(keys) if key not in self]

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

        For a CUDA device the packed bytes travel and a kernel unpacks them there. Nobody waits for it, so what it finds
        to contradict the format raises nothing: the row's log-probabilities, tail and log-partitions are not numbers.

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
        numbers = row_numbers(rows)
        if self.k == 0:
            raise argument_error(
                "cache", "one of sampled tokens only (k=0)", "one with k of at least 1, or gather_sampled"
            )
        return self._gather_top_k(numbers, device, out, dtype)

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
        numbers, target = row_numbers(rows), device_of("device", device)
        ids, log_probs = torch.empty(numbers.shape, dtype=torch.int64), torch.empty(numbers.shape)
        self._retried(lambda: self._rows.gather_sampled(memory(numbers), memory(ids), memory(log_probs)))
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
        if answers.layout != torch.strided or answers.is_meta:
            raise argument_error("answers", f"{answers.layout} on {answers.device}", "a dense tensor with data")
        if answers.ndim != 2 or answers.shape[1] != self.vocabulary or answers.dtype not in _LOGITS:
            raise argument_error(
                "answers",
                describe(answers),
                f"logits of shape [tokens, {self.vocabulary}], the cache's vocabulary, in float32, bfloat16 or float16",
            )
        if isinstance(sampled, Sampled):
            raise argument_error("sampled", "a Sampled beside logits", "the tokens alone: the logits have the rest")
        logits = answers.detach()
        tokens = token_count(logits.shape[0])
        chosen = integers("ids", ids, (tokens, self.k))
        if self.k > 0 or ids is not None:
            check_ids(chosen, self.support, self.vocabulary)
        drawn = integers("sampled", sampled, (tokens,))
        if logits.device.type != "cpu" and self.k > 0:
            return self._pack_on_device(logits, chosen, drawn)
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

    def _pack_on_device(self, logits: Tensor, chosen: Tensor | None, drawn: Tensor | None) -> tuple[bytes, int]:
        """Selects where the logits are, so that a few hundred numbers a row cross the bus and not the vocabulary."""
        if chosen is None:
            rows = TopK.from_logits(logits, self.k, self.temperatures)
        else:
            rows = top_k_of(logits, chosen, self.temperatures)
        token = None
        if drawn is not None:
            there = drawn.to(logits.device)
            token = Sampled(drawn, torch.log_softmax(logits.float(), -1).gather(-1, there[:, None]).squeeze(-1))
        return self._pack_top_k(rows, token)

    @classmethod
    def _check_form(cls, store: Store, form: dict[str, Any]) -> None:
        super()._check_form(store, form)
        kept, support = form["offsets"], form.get("support", "teacher")
        if not isinstance(kept, bool) or kept != ("offsets" in store.schema):
            raise SchemaMismatch(f"{store.path} has offsets={kept!r:.80}, and columns {', '.join(store.schema)}")
        if not isinstance(support, str) or support not in SUPPORTS or (form["k"] == 0 and support != "teacher"):
            raise SchemaMismatch(f"{store.path} has support={support!r:.80}, which is none")

    def _offsets(self, offsets: Tensor | Sequence[int] | None, tokens: int) -> Tensor | None:
        kept = self._form["offsets"]
        if (offsets is not None) != kept:
            allowed = f"[{tokens + 1}] byte offsets" if kept else "None, as the cache keeps none"
            raise argument_error("offsets", "None" if offsets is None else "offsets", allowed)
        if offsets is None:
            return None
        try:
            given = torch.as_tensor(offsets)
        except (TypeError, ValueError, RuntimeError, OverflowError) as failure:
            raise argument_error("offsets", offsets, f"[{tokens + 1}] byte offsets") from failure
        found = integers("offsets", given, (tokens + 1,))
        assert found is not None
        if int(found[0]) < 0 or bool((found[1:] < found[:-1]).any()):
            raise argument_error("offsets", "offsets that fall", "byte offsets that rise from 0 or more")
        return found

    def _found(self, keys: Sequence[str], part: int) -> Tensor:
        keys = _checked_keys(keys)
        if any(key in self._written for key in keys):
            self._see_written()
        found = [self._rows.find(key) for key in keys]
        absent = [key for key, place in zip(keys, found, strict=True) if place is None]
        if absent:
            others = f", nor are {len(absent) - 1} others; see missing(keys)" if len(absent) > 1 else ""
            raise KeyNotFound(f"{absent[0]!r} is not in {self.path}{others}")
        return torch.tensor([place[part] for place in found if place is not None], dtype=torch.int64)


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise argument_error(name, value, "a whole number from 0")
    return value


def _checked_keys(keys: Iterable[str]) -> list[str]:
    allowed = "a sequence of keys, which are strings"
    if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
        raise argument_error("keys", keys, allowed)
    try:
        found = list(keys)
    except TypeError as failure:  # a tensor of no axes
        raise argument_error("keys", keys, allowed) from failure
    for place, key in enumerate(found):
        if not isinstance(key, str):
            raise argument_error(f"keys[{place}]", key, "a string")
    return found


def _checked_key(key: str) -> str:
    if not isinstance(key, str) or not key:
        raise argument_error("key", key, "a string that is not empty; key_of(text) makes one")
    return key
