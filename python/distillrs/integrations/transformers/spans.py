"""Which bytes of a text each token of a tokenizer covers, and batches for two tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from distillrs.checks import check_flag, check_text, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge import token_chunks

_NONE = (-1, -1)


@dataclass(frozen=True, slots=True, eq=False)
class TokenSpans:
    """Tokens of some texts, padded on the right, with the bytes that they cover.

    Attributes:
        input_ids: int64 ``[B, L]``.
        attention_mask: int64 ``[B, L]``: 1 for tokens, 0 for padding.
        spans: int64 ``[B, L, 2]``: first byte and end of each token, as
            :func:`distillrs.knowledge.token_chunks` takes them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    spans: Tensor


def token_spans(
    tokenizer: Any, texts: Sequence[str], *, max_length: int | None = None, add_special_tokens: bool = True
) -> TokenSpans:
    """Tokenises texts and says which bytes each token covers.

    Three rules make the spans follow each other without gap or overlap. What a tokenizer leaves out between two tokens,
    such as WordPiece's whitespace, belongs to the later one, as the leading space of byte pairs does; what it leaves
    out at the end of a text belongs to none. Of tokens that make up one character, those of known bytes (byte-level
    pairs, byte fallback) have their own, and of others the last has all and those before it have none but count.
    Special tokens that the tokenizer adds are no part of the text.

    Args:
        tokenizer: A fast tokenizer, or a slow one whose tokens are bytes (ByT5's).
        texts: The texts.
        max_length: Longer ones are cut there, in tokens.
        add_special_tokens: Whether the tokenizer adds those.

    Raises:
        ArgumentError: A tokenizer that knows no offsets and whose tokens are not the text's bytes, or one that would
            cut the begin of a text: spans start at its first byte.
    """
    _check_tokenizer("tokenizer", tokenizer)
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise argument_error("texts", type(texts).__name__, "a list of strings")
    if max_length is not None:
        check_whole("max_length", max_length, "None or a whole number from 1", least=1)
    check_flag("add_special_tokens", add_special_tokens)
    settings: dict[str, Any] = {"add_special_tokens": add_special_tokens, "return_special_tokens_mask": True}
    if max_length is not None:
        if getattr(tokenizer, "truncation_side", "right") != "right":
            raise argument_error("tokenizer", "one with truncation_side='left'", "'right' together with max_length=")
        settings |= {"truncation": True, "max_length": max_length}
    if getattr(tokenizer, "is_fast", False):
        settings["return_offsets_mapping"] = True
    added = {int(id): str(token).encode() for id, token in tokenizer.added_tokens_decoder.items()}
    rows: list[tuple[list[int], list[tuple[int, int]]]] = []
    for text in texts:
        found = tokenizer(text, **settings)
        ids = [int(each) for each in found["input_ids"]]
        special = [bool(each) for each in found["special_tokens_mask"]]
        rows.append((ids, _row(tokenizer, added, text, ids, special, found.get("offset_mapping"))))
    longest = max((len(ids) for ids, _ in rows), default=0)
    input_ids = torch.full((len(rows), longest), int(getattr(tokenizer, "pad_token_id", None) or 0))
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    spans = torch.full((len(rows), longest, 2), -1)
    for row, (ids, own) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask[row, : len(ids)] = 1
        spans[row, : len(ids)] = torch.tensor(own, dtype=torch.int64).reshape(-1, 2)
    return TokenSpans(input_ids, mask, spans)


class AcrossTokenizers:
    """Makes batches of texts for a student and a teacher with tokenizers of their own; a ``collate_fn``.

    A batch has ``input_ids``, ``attention_mask``, ``labels`` (the ids, -100 for padding) and ``chunks`` for the
    student, and ``teacher_input_ids``, ``teacher_attention_mask`` and ``teacher_chunks``: what
    :func:`distillrs.recipes.alm` reads. The Trainer of transformers keeps the texts for it with
    ``remove_unused_columns=False``.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's.
        max_length: Longest row of the student, in its tokens.
        teacher_max_length: Longest row of the teacher.
        minimum_bytes: Smallest chunk.
        field: The text's name where the examples are mappings.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        max_length: int | None = None,
        teacher_max_length: int | None = None,
        minimum_bytes: int = 1,
        field: str = "text",
    ) -> None:
        for name, tokenizer in (("student", student), ("teacher", teacher)):
            _check_tokenizer(name, tokenizer)
        for name, length in (("max_length", max_length), ("teacher_max_length", teacher_max_length)):
            if length is not None:
                check_whole(name, length, "None or a whole number from 1", least=1)
        check_whole("minimum_bytes", minimum_bytes, "a number of bytes from 1", least=1)
        check_text("field", field, "the name of an entry")
        self.student = student
        self.teacher = teacher
        self.lengths = (max_length, teacher_max_length)
        self.minimum_bytes = minimum_bytes
        self.field = field

    def __call__(self, examples: Sequence[str | Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of texts, or of mappings with one.

        Raises:
            ArgumentError: An example without a text, or as of :func:`token_spans`.
        """
        if isinstance(examples, str) or not isinstance(examples, Iterable):
            raise argument_error("examples", type(examples).__name__, "a list of texts, or of mappings with one")
        texts: list[str] = []
        for number, each in enumerate(examples):
            text = each.get(self.field) if isinstance(each, Mapping) else each
            if not isinstance(text, str):
                got = f"{type(text).__name__} for {self.field!r}"
                raise argument_error(f"examples[{number}]", got, "a text, or a mapping with one")
            texts.append(text)
        own = token_spans(self.student, texts, max_length=self.lengths[0])
        other = token_spans(self.teacher, texts, max_length=self.lengths[1])
        chunks = token_chunks(own.spans, other.spans, minimum_bytes=self.minimum_bytes)
        return {
            "input_ids": own.input_ids,
            "attention_mask": own.attention_mask,
            "labels": own.input_ids.masked_fill(own.attention_mask == 0, -100),
            "chunks": chunks.student,
            "teacher_input_ids": other.input_ids,
            "teacher_attention_mask": other.attention_mask,
            "teacher_chunks": chunks.teacher,
        }


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes of every token of a vocabulary by its id, with its leading space; ``None`` for special ones.

    Tokens of byte-level vocabularies have their own bytes; in others the mark of a space ("▁") is a space, a byte
    fallback its byte, and a WordPiece token that begins a word has a space before it.

    Args:
        tokenizer: A fast tokenizer, or a slow one whose tokens are bytes.

    Returns:
        As many as the tokenizer has ids; ids without a token are ``None``.

    Raises:
        ArgumentError: No tokenizer.
    """
    _check_tokenizer("tokenizer", tokenizer)
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    found: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    special = set(tokenizer.all_special_ids)
    added = {int(id) for id in tokenizer.added_tokens_decoder}
    read = _reader(tokenizer)
    for token, number in vocabulary.items():
        if number not in special:
            is_literal = number in added and _fallback(token) is None
            found[number] = token.encode() if is_literal else read(token)
    return found


def begins_word(tokenizer: Any, size: int | None = None) -> Tensor:
    """Tokens after which a word has ended: those that start with whitespace, and the end of a text.

    What :class:`distillrs.knowledge.Boundary` takes.

    Args:
        tokenizer: As for :func:`token_bytes`.
        size: Columns of the model's logits, where they are more than the tokenizer's ids.

    Returns:
        bool ``[size]``.

    Raises:
        ArgumentError: A size below the tokenizer's ids.
    """
    tokens = token_bytes(tokenizer)
    size = len(tokens) if size is None else size
    check_whole("size", size, f"at least {len(tokens)}, the tokenizer's ids", least=len(tokens))
    mask = torch.zeros(size, dtype=torch.bool)
    for number, token in enumerate(tokens):
        mask[number] = token is not None and token[:1].isspace()
    if tokenizer.eos_token_id is not None:
        mask[tokenizer.eos_token_id] = True
    return mask


def _check_tokenizer(name: str, tokenizer: Any) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "added_tokens_decoder"):
        raise argument_error(name, type(tokenizer).__name__, "a tokenizer of transformers")


@cache
def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones themselves, others in turn."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _byte_level(token: str) -> bytes | None:
    alphabet = _alphabet()
    return bytes(alphabet[each] for each in token) if all(each in alphabet for each in token) else None


def _plain(token: str) -> bytes | None:
    return token.encode("latin-1") if all(ord(each) < 256 for each in token) else None


def _fallback(token: str) -> int | None:
    """The byte of `<0xE2>`."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def _row(
    tokenizer: Any,
    added: Mapping[int, bytes],
    text: str,
    ids: list[int],
    special: list[bool],
    offsets: Sequence[tuple[int, int]] | None,
) -> list[tuple[int, int]]:
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    for decode in (_byte_level, _plain):
        pieces = [
            b"" if skip else (added[id] if id in added else decode(token))
            for token, id, skip in zip(tokens, ids, special, strict=True)
        ]
        spans = _exact(text, [piece for piece in pieces if piece is not None], special)
        if len(pieces) == len(spans):
            return spans
    if offsets is None:
        allowed = "a fast tokenizer, which knows offsets, or one whose tokens are the text's bytes"
        raise argument_error("tokenizer", type(tokenizer).__name__, allowed)
    return _from_characters(text, tokens, special, offsets)


def _exact(text: str, pieces: list[bytes], special: list[bool]) -> list[tuple[int, int]]:
    """Spans of tokens whose bytes are the beginning of the text, or of it after a space; else none."""
    whole, joined = text.encode(), b"".join(pieces)
    ahead = 0
    if not whole.startswith(joined):
        if not (b" " + whole).startswith(joined):
            return []
        ahead = 1
    spans, reached = [], -ahead
    for piece, skip in zip(pieces, special, strict=False):
        end = reached + len(piece)
        spans.append(_NONE if skip else (max(reached, 0), max(end, 0)))
        reached = end
    return spans


def _from_characters(
    text: str, tokens: list[str], special: list[bool], offsets: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    byte_of = [0]
    for character in text:
        byte_of.append(byte_of[-1] + len(character.encode()))
    own = [place for place, skip in enumerate(special) if not skip]
    ends = {}
    for place, later in zip(own, [*own[1:], None], strict=True):
        first, last = offsets[place]
        # Tokens that share a character: the last has it.
        shared = later is not None and first <= offsets[later][0] < last
        ends[place] = byte_of[offsets[later][0] if shared and later is not None else last]
    _give_bytes(text, tokens, own, offsets, byte_of, ends)
    spans, reached = [_NONE] * len(tokens), 0
    for place in own:
        end = max(ends[place], reached)
        spans[place] = (reached, end)
        reached = end
    return spans


def _give_bytes(
    text: str,
    tokens: list[str],
    own: list[int],
    offsets: Sequence[tuple[int, int]],
    byte_of: list[int],
    ends: dict[int, int],
) -> None:
    """Ends of tokens that stand for one byte each, where together they are a character's bytes."""
    run: list[int] = []
    for place in [*own, None]:
        is_byte = place is not None and _fallback(tokens[place]) is not None
        if run and (not is_byte or place is None or tuple(offsets[place]) != tuple(offsets[run[0]])):
            first, last = offsets[run[0]]
            known = bytes(byte for byte in (_fallback(tokens[each]) for each in run) if byte is not None)
            if known == text[first:last].encode():
                ends |= {each: byte_of[first] + number + 1 for number, each in enumerate(run)}
            run = []
        if is_byte and place is not None:
            run.append(place)


def _reader(tokenizer: Any) -> Callable[[str], bytes | None]:
    """What gives a token's bytes, by the kind of the tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _plain
    settings = json.loads(backend.to_str())
    kinds: dict[str, Any] = {}
    for part in (settings.get("decoder"), settings.get("pre_tokenizer")):
        for each in [part, *((part or {}).get("decoders") or (part or {}).get("pretokenizers") or ())]:
            if each is not None:
                kinds.setdefault(each["type"], each)
    if "ByteLevel" in kinds:
        return _byte_level
    if settings["model"]["type"] == "WordPiece":
        prefix = str(settings["model"]["continuing_subword_prefix"])
        return lambda token: token.removeprefix(prefix).encode() if token.startswith(prefix) else b" " + token.encode()
    mark = str(kinds.get("Metaspace", {}).get("replacement", "▁"))

    def read(token: str) -> bytes | None:
        byte = _fallback(token)
        return token.replace(mark, " ").encode() if byte is None else bytes([byte])

    return read
