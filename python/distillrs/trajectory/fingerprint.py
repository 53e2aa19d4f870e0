"""What a teacher's answers depend on, in a few words that can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from distillrs.checks import check_instance, check_number, check_text
from distillrs.errors import SchemaMismatch, argument_error
from distillrs.frozen import Frozen
from distillrs.trajectory.layout import _canonical, _is_sharded

_PIECE = 1 << 22
_TOKENIZER = (
    "a tokenizer with get_vocab() or to_str(), a mapping from tokens to ids, a string that names it, or None if there "
    "is none"
)


class _Unchecked:
    """The type of :data:`UNCHECKED`."""

    def __repr__(self) -> str:
        return "UNCHECKED"

    def __reduce__(self) -> str:
        return "UNCHECKED"


UNCHECKED: Final = _Unchecked()
"""Given in place of a fingerprint: nobody compares, and the caller answers for that."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Teacher, tokenizer, template and sampling temperature of a set of answers.

    Attributes:
        teacher: Digest of the parameters' and buffers' names, types, shapes and values.
        tokenizer: Digest of the vocabulary and, where the tokenizer shows them, merges and other rules.
        template: Digest of the chat template's or prompt's text.
        sampling_temperature: Temperature at which the texts were sampled; 1 if they were not.
    """

    teacher: str
    tokenizer: str
    template: str
    sampling_temperature: float

    def __post_init__(self) -> None:
        for name in ("teacher", "tokenizer", "template"):
            if not isinstance(getattr(self, name), str):
                raise argument_error(name, getattr(self, name), "a string; Fingerprint.of(...) makes it")
        check_number("sampling_temperature", self.sampling_temperature, "a number from 0", least=0)
        # A number of numpy would not go into the store's metadata.
        object.__setattr__(self, "sampling_temperature", float(self.sampling_temperature))

    @classmethod
    def of(
        cls,
        teacher: nn.Module | Mapping[str, Tensor] | str,
        tokenizer: object = None,
        template: str | None = None,
        sampling_temperature: float = 1.0,
    ) -> Fingerprint:
        """The fingerprint of what is in use.

        Every value of the teacher is read once, a piece at a time, so no copy of a large model is made. Names are those
        of the unwrapped model; a cast to another type gives another fingerprint, as it gives other answers.

        Args:
            teacher: The model, its state dictionary, or for one behind an interface a string that names its version.
            tokenizer: Anything with ``to_str()`` (``backend_tokenizer.to_str()``) or ``get_vocab()``, a vocabulary, or
                a string that names it.
            template: Text of the chat template or prompt.
            sampling_temperature: Temperature at which texts are sampled.

        Raises:
            ArgumentError: An argument is of another kind, or the teacher is sharded or on the meta device.
        """
        if template is not None and not isinstance(template, str):
            raise argument_error("template", type(template).__name__, "the template's text, or None")
        text = "none" if template is None else _digest(template.encode())
        return cls(_teacher(teacher), _tokenizer(tokenizer), text, sampling_temperature)

    def check(self, other: Fingerprint, what: str) -> None:
        """Compares with the fingerprint in use.

        Args:
            other: The one in use.
            what: What has this one, for the message.

        Raises:
            SchemaMismatch: They differ; the message names every part that does, with both values.
            ArgumentError: An argument of another kind.
        """
        check_text("what", what, "what has this fingerprint, such as the cache's path")
        check_instance("other", other, Fingerprint, "Fingerprint.of(...)")
        parts = [field.name for field in dataclasses.fields(self)]
        differing = [name for name in parts if getattr(self, name) != getattr(other, name)]
        if differing:
            each = "; ".join(f"{name} {getattr(self, name)} there, {getattr(other, name)} in use" for name in differing)
            raise SchemaMismatch(
                f"fingerprint of {what} differs: {each}. Answers of one teacher are no targets of another: write a new "
                "cache, or pass UNCHECKED"
            )

    def to_dict(self) -> dict[str, Any]:
        """The form in which a cache keeps it."""
        return dataclasses.asdict(self)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _teacher(teacher: nn.Module | Mapping[str, Tensor] | str) -> str:
    if isinstance(teacher, str):
        return f"named {teacher}"
    if isinstance(teacher, Frozen):
        teacher = teacher.module
    if isinstance(teacher, nn.Module):
        state: dict[str, Any] = dict(teacher.state_dict())
    elif isinstance(teacher, Mapping):
        state = dict(teacher)
    else:
        raise argument_error("teacher", type(teacher).__name__, "a module, its state dictionary or a string")
    values = {name: value for name, value in _canonical(state).items() if isinstance(value, Tensor)}
    if not values:
        raise argument_error("teacher", type(teacher).__name__, "one with parameters")
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(values):
        value = values[name].detach()
        if _is_sharded(value) or value.is_meta:
            place = "on the meta device" if value.is_meta else "sharded"
            raise argument_error("teacher", f"{name!r} {place}", "whole tensors with values, or a string that names it")
        header = json.dumps([name, str(value.dtype), list(value.shape)])
        digest.update(f"{len(header)}:{header}".encode())
        for piece in torch.split(value.reshape(-1), _PIECE) if value.numel() else ():
            digest.update(piece.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer(tokenizer: object) -> str:
    if tokenizer is None:
        return "none"
    if isinstance(tokenizer, str):
        return f"named {tokenizer}"
    rules: Any = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if callable(getattr(rules, "to_str", None)):
        form = json.loads(rules.to_str())
        # Calls with padding or truncation leave these behind; they change no token's id.
        for passing in ("padding", "truncation"):
            form.pop(passing, None)
        return _digest(json.dumps(form, sort_keys=True).encode())
    vocabulary: object = tokenizer
    if callable(getattr(tokenizer, "get_vocab", None)):
        vocabulary = tokenizer.get_vocab()  # type: ignore[attr-defined]  # duck-typed, looked for in the line above
    if not isinstance(vocabulary, Mapping):
        raise argument_error("tokenizer", type(tokenizer).__name__, _TOKENIZER)
    entries = sorted((str(token), int(number)) for token, number in vocabulary.items())
    return _digest(json.dumps(entries).encode())
