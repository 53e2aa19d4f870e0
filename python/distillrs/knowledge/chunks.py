"""Chunks of a text that two tokenizers cut alike: where student and teacher of different vocabularies can be compared.

Every token has a span of bytes of the text; a chunk closes wherever both streams of tokens have reached the same byte.
Source: Minixhofer, Vulić, Ponti, Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.checks import check_text
from distillrs.errors import argument_error
from distillrs.knowledge.alignments import Aligned, BatchAlignment, Side
from distillrs.knowledge.inputs import Inputs
from distillrs.ops import row_statistics


@dataclass(frozen=True, slots=True, eq=False)
class TokenChunks:
    """Which chunk each token of a batch belongs to.

    Attributes:
        student: int64 ``[B, L]``: the chunk of each of the student's tokens, from 0 in each row; -1 for none.
        teacher: int64 ``[B, L']``: of the teacher's.
        ends: int64 ``[B, min(L, L')]``: the byte at which each chunk ends; -1 where there is none.
    """

    student: Tensor
    teacher: Tensor
    ends: Tensor

    def groups(self, side: Literal["student", "teacher"]) -> tuple[Tensor, Tensor]:
        """One side's tokens by chunk, over the whole batch.

        Args:
            side: "student" or "teacher".

        Returns:
            Offsets int64 ``[chunks + 1]`` and places of tokens in the flat ``[B * L]``, int64: chunk c has the places
            from ``offsets[c]`` to ``offsets[c + 1]``. Chunks are numbered row by row.

        Raises:
            ArgumentError: Another side.
        """
        if side not in ("student", "teacher"):
            raise argument_error("side", side, "'student' or 'teacher'")
        numbers = self.student if side == "student" else self.teacher
        counts = (self.ends >= 0).sum(1)
        before = counts.cumsum(0) - counts
        there = numbers >= 0
        chunk = (numbers + before[:, None])[there]
        sizes = torch.bincount(chunk, minlength=int(counts.sum()))
        return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), there.flatten().nonzero()[:, 0]


def token_chunks(
    student_spans: Tensor,
    teacher_spans: Tensor,
    *,
    minimum_bytes: int = 1,
    boundary: Tensor | None = None,
    threshold: float = 0.1,
) -> TokenChunks:
    """Numbers the chunks of two token streams of the same texts.

    Spans are plain data, made by :func:`distillrs.integrations.transformers.token_spans` or by hand: the first byte and
    the end of each token, which follow each other without gap or overlap; (b, b) for a token that has no byte of its
    own but counts, such as the first part of a character, which goes with the token after it; (-1, -1) for one that is
    no part of the text, such as padding and special tokens. Both sides begin at the same byte; they may end at
    different ones, and tokens behind the last common byte belong to no chunk.

    Args:
        student_spans: int64 ``[B, L, 2]``, bytes.
        teacher_spans: int64 ``[B, L', 2]``.
        minimum_bytes: Chunks below it are joined with the next; at the end of a row with the one before.
        boundary: ``[B, L']``: the teacher's log-probability that a word ends after each token; chunks are then joined
            until it exceeds the threshold, and what is open at the end of a row belongs to none.
        threshold: A probability, from 0 to below 1.

    Returns:
        The chunks, on the CPU.

    Raises:
        ArgumentError: Spans with a gap or an overlap or out of order (the message has the row), sides that begin at
            different bytes, or shapes that do not fit.
    """
    own, other = _spans("student_spans", student_spans), _spans("teacher_spans", teacher_spans)
    if len(own) != len(other):
        raise argument_error("teacher_spans", f"{len(other)} rows", f"the student's {len(own)} rows")
    if isinstance(minimum_bytes, bool) or not isinstance(minimum_bytes, int) or not 1 <= minimum_bytes < 2**62:
        raise argument_error("minimum_bytes", minimum_bytes, "a whole number from 1")
    log_threshold = _log_threshold(threshold)
    given = None
    if boundary is not None:
        if not isinstance(boundary, Tensor):
            raise argument_error("boundary", type(boundary).__name__, "None or a tensor of log-probabilities")
        if boundary.shape != other.shape[:2]:
            raise argument_error("boundary", f"shape {tuple(boundary.shape)}", f"{other.shape[:2]}, as the teacher's")
        given = np.ascontiguousarray(boundary.detach().to("cpu", torch.float32).numpy())
    rows, columns = len(own), min(own.shape[1], other.shape[1])
    found = [np.empty((rows, count), np.int64) for count in (own.shape[1], other.shape[1], columns)]
    data = None if given is None else given.data
    _core.token_chunks(
        rows, own.data, other.data, minimum_bytes, data, log_threshold, found[0].data, found[1].data, found[2].data
    )
    return TokenChunks(*(torch.from_numpy(each) for each in found))


def reference_chunks(
    student: Sequence[Sequence[tuple[int, int]]],
    teacher: Sequence[Sequence[tuple[int, int]]],
    minimum_bytes: int = 1,
    boundary: Sequence[Sequence[float]] | None = None,
    threshold: float = 0.1,
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """What :func:`token_chunks` means, byte by byte in plain Python; for tests and timings.

    Args:
        student: Spans of each row's tokens, well formed.
        teacher: Of the teacher's.
        minimum_bytes: See :func:`token_chunks`.
        boundary: See there.
        threshold: See there.

    Returns:
        The student's and the teacher's numbers of chunks, and the ends of the chunks there are, by row.
    """
    numbers: tuple[list[list[int]], list[list[int]]] = ([], [])
    all_ends = []
    for row, sides in enumerate(zip(student, teacher, strict=True)):
        # Of several tokens that end at a byte the first has it; the others have none of their own.
        reached: list[dict[int, int]] = [{}, {}]
        for side, places in zip(sides, reached, strict=True):
            for place, (first, end) in enumerate(side):
                if end > first >= 0:
                    places[end] = place
        starts = [next((first for first, _ in side if first >= 0), None) for side in sides]
        ends: list[int] = []
        common = sorted(set(reached[0]) & set(reached[1]))
        opened = starts[0] or 0
        for byte in common:
            likely = boundary is None or boundary[row][reached[1][byte]] > math.log(threshold)
            if byte - opened >= minimum_bytes and likely:
                ends.append(byte)
                opened = byte
        if boundary is None and common and common[-1] > opened:
            ends[-1:] = [common[-1]]
        all_ends.append(ends)
        for side, chunks in zip(sides, numbers, strict=True):
            line = []
            for first, end in side:
                # A token without a byte of its own goes with the one that begins where it stands.
                last = end if end > first else end + 1
                line.append(
                    next((chunk for chunk, close in enumerate(ends) if last <= close), -1) if first >= 0 else -1
                )
            chunks.append(line)
    return (*numbers, all_ends)


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """Chunks end where the teacher expects a word to end, and the likelihood of that end is part of them.

    Without it a chunk that could go on, "under" before "stand", has another likelihood for a tokenizer that must commit
    itself there than for one that need not. Each side's own log-probability of a boundary is added to its sum.

    Attributes:
        student: bool ``[V]``: tokens that begin a new word: those that start with whitespace, and the ends of texts.
        teacher: bool ``[V']``.
        threshold: Chunks are joined until the teacher's probability of a boundary exceeds it.
    """

    student: Tensor
    teacher: Tensor
    threshold: float = 0.1

    def __post_init__(self) -> None:
        for name, mask in (("student", self.student), ("teacher", self.teacher)):
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1 or not mask.any():
                raise argument_error(name, mask, "booleans [vocabulary], not all false")
        _log_threshold(self.threshold)


class Chunks(BatchAlignment):
    """Logits of two vocabularies to log-likelihoods of chunks: ``[B, L, V]`` and ``[B, L', V']`` to ``[B, M, 1]``.

    A chunk's log-likelihood is the sum over its tokens of their log-probabilities given all before them: that of token
    t is read from the logits at t - 1. A chunk with the first token of a row is therefore left out, unless a token that
    is no part of the text (a beginning of sequence) stands before it.

    The batch has the token ids of both sides, and the chunks of :func:`token_chunks`.

    Args:
        student_ids: Name of the student's token ids, ``[B, L]``.
        teacher_ids: Of the teacher's, ``[B, L']``.
        student_chunks: Name of ``TokenChunks.student``.
        teacher_chunks: Name of ``TokenChunks.teacher``.
        boundary: Joins chunks that the teacher would not end; ``None`` takes them as they are.
    """

    def __init__(
        self,
        student_ids: str = "input_ids",
        teacher_ids: str = "teacher_input_ids",
        *,
        student_chunks: str = "chunks",
        teacher_chunks: str = "teacher_chunks",
        boundary: Boundary | None = None,
    ) -> None:
        named = (("student_ids", student_ids), ("teacher_ids", teacher_ids))
        for name, entry in (*named, ("student_chunks", student_chunks), ("teacher_chunks", teacher_chunks)):
            check_text(name, entry, "the name of an entry of the batch")
        if boundary is not None and not isinstance(boundary, Boundary):
            raise argument_error("boundary", type(boundary).__name__, "None or a Boundary")
        self.names = ((student_ids, student_chunks), (teacher_ids, teacher_chunks))
        self.boundary = boundary

    def of_batch(self, student: Side, teacher: Side, inputs: Inputs) -> Aligned:
        """See :class:`BatchAlignment`.

        Raises:
            ArgumentError: Logits, ids or chunks whose shapes do not fit each other.
        """
        count = _count(student, teacher)
        sides = []
        for name, logits, (ids, chunks) in zip(("student", "teacher"), (student, teacher), self.names, strict=True):
            numbers = _numbers(name, logits, inputs, chunks, count)
            sides.append((logits, numbers, *_sums(logits, _ids(name, logits, inputs, ids), numbers, count)))
        (_, own, sums, present), (_, other, teacher_sums, teacher_present) = sides
        present = present & teacher_present
        if self.boundary is not None:
            ends = _ends(own, count), _ends(other, count)
            likely = [
                _mass(_taken(logits, end), mask)
                for logits, end, mask in zip(
                    (student, teacher), ends, (self.boundary.student, self.boundary.teacher), strict=True
                )
            ]
            there = (ends[0] >= 0) & (ends[1] >= 0)
            closes = there & (likely[1] > _log_threshold(self.boundary.threshold))
            joined = closes.cumsum(1) - closes.long()
            whole = [
                torch.where(present, each, 0.0) + torch.where(closes, end, 0.0)
                for each, end in zip((sums, teacher_sums), likely, strict=True)
            ]
            sums, teacher_sums = (torch.zeros_like(each).scatter_add(1, joined, each) for each in whole)
            broken = torch.zeros_like(joined).scatter_add(1, joined, (there & ~present).long()) > 0
            present = ~broken & (torch.arange(count, device=closes.device) < closes.sum(1, keepdim=True))
        return Aligned(sums[..., None], teacher_sums[..., None], present)


class ChunkEnds(BatchAlignment):
    """What stands at the last token of each chunk: ``[B, L, H]`` and ``[B, L', H']`` to ``[B, M, H]``, ``[B, M, H']``.

    Both sides have seen the same bytes there, so hidden states can be matched (with a ``Projector`` behind it in a
    ``Chain``), or next-token logits over shared tokens (:class:`VocabularyMap`).

    Args:
        student_chunks: Name of ``TokenChunks.student`` in the batch.
        teacher_chunks: Name of ``TokenChunks.teacher``.
    """

    def __init__(self, student_chunks: str = "chunks", teacher_chunks: str = "teacher_chunks") -> None:
        for name, entry in (("student_chunks", student_chunks), ("teacher_chunks", teacher_chunks)):
            check_text(name, entry, "the name of an entry of the batch")
        self.names = (student_chunks, teacher_chunks)

    def of_batch(self, student: Side, teacher: Side, inputs: Inputs) -> Aligned:
        """See :class:`BatchAlignment`.

        Raises:
            ArgumentError: Tensors and chunks whose shapes do not fit each other.
        """
        count = _count(student, teacher)
        own, other = (
            _ends(_numbers(side, tensor, inputs, name, count), count)
            for side, tensor, name in zip(("student", "teacher"), (student, teacher), self.names, strict=True)
        )
        return Aligned(_taken(student, own), _taken(teacher, other), (own >= 0) & (other >= 0))


def _spans(name: str, spans: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if not isinstance(spans, Tensor) or spans.dtype != torch.int64 or spans.ndim != 3 or spans.shape[2] != 2:
        got = f"{spans.dtype} {tuple(spans.shape)}" if isinstance(spans, Tensor) else type(spans).__name__
        raise argument_error(name, got, "int64 [rows, tokens, 2]")
    return np.ascontiguousarray(spans.detach().cpu().numpy())


def _log_threshold(threshold: float) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < 1:
        raise argument_error("threshold", threshold, "a probability from 0 to below 1")
    return math.log(threshold) if threshold else -math.inf


def _count(student: Side, teacher: Side) -> int:
    """The most chunks that both sides can have."""
    for name, side in (("student", student), ("teacher", teacher)):
        if not isinstance(side, Tensor) or side.ndim != 3:
            got = f"shape {tuple(side.shape)}" if isinstance(side, Tensor) else type(side).__name__
            raise argument_error(name, got, "[batch, tokens, features]")
    if len(student) != len(teacher):
        raise argument_error("teacher", f"{len(teacher)} rows", f"{len(student)}, the student's")
    return int(min(student.shape[1], teacher.shape[1]))


def _numbers(side: str, tensor: Tensor, inputs: Inputs, name: str, count: int) -> Tensor:
    """The chunk of each token, int64 [B, L]."""
    numbers = inputs.tensor(name)
    if numbers.dtype != torch.int64 or numbers.shape != tensor.shape[:2]:
        got = f"{numbers.dtype} {tuple(numbers.shape)}"
        raise argument_error(f"batch[{name!r}]", got, f"int64 {tuple(tensor.shape[:2])}, as the {side}'s tokens")
    # On a device the look would wait for it.
    if numbers.device.type == "cpu" and numbers.numel() and not -1 <= int(numbers.min()) <= int(numbers.max()) < count:
        got = f"chunks from {int(numbers.min())} to {int(numbers.max())}"
        raise argument_error(f"batch[{name!r}]", got, f"-1 for none, or from 0 to below {count}, the tokens of a side")
    return numbers


def _ids(side: str, logits: Tensor, inputs: Inputs, name: str) -> Tensor:
    ids = inputs.tensor(name)
    if ids.dtype != torch.int64 or ids.shape != logits.shape[:2]:
        got, allowed = f"{ids.dtype} {tuple(ids.shape)}", f"int64 {tuple(logits.shape[:2])}, as the {side}'s logits"
        raise argument_error(f"batch[{name!r}]", got, allowed)
    return ids


def _sums(logits: Tensor, ids: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each chunk, and whether it has one; [B, M]."""
    scored = numbers[:, 1:] >= 0
    # What stands before a token that is in no chunk may hold anything, and what follows may be no token of this side.
    before = torch.where(scored[..., None], logits[:, :-1], 0.0)
    chosen = row_statistics(before, ids[:, 1:].where(scored, 0)).chosen
    assert chosen is not None
    places = numbers.clamp(min=0)
    sums = chosen.new_zeros(len(ids), count).scatter_add(1, places[:, 1:], torch.where(scored, chosen, 0.0))
    size = torch.zeros_like(sums, dtype=torch.int64).scatter_add(1, places[:, 1:], scored.long())
    # Nothing predicts the first token of a row.
    unscored = torch.zeros_like(size).scatter_add(1, places[:, :1], (numbers[:, :1] >= 0).long())
    return sums, (size > 0) & (unscored == 0)


def _ends(numbers: Tensor, count: int) -> Tensor:
    """The place of each chunk's last token, int64 [B, M]; -1 for none."""
    places = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    ends = numbers.new_full((len(numbers), count), -1)
    return ends.scatter_reduce(1, numbers.clamp(min=0), places.where(numbers >= 0, -1), "amax")


def _taken(tensor: Tensor, places: Tensor) -> Tensor:
    """``[B, L, H]`` at places ``[B, M]``; zeros for -1."""
    taken = tensor.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, tensor.shape[-1]))
    return torch.where(places[..., None] >= 0, taken, 0.0)


def _mass(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of a set of tokens, [B, M]."""
    if len(mask) != logits.shape[-1]:
        raise argument_error("boundary", f"{len(mask)} tokens", f"{logits.shape[-1]}, as the logits")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide[..., mask.to(wide.device)].logsumexp(-1) - wide.logsumexp(-1)
