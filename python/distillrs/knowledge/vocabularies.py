"""Logits of two vocabularies over the tokens that both have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distillrs import _core
from distillrs.checks import check_choice, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.numerics import wide


def shared_tokens(student: Sequence[bytes | None], teacher: Sequence[bytes | None]) -> Tensor:
    """The teacher's token with the same bytes for each token of the student.

    Args:
        student: The bytes of each of the student's tokens, by id; ``None`` or no bytes for special ones, which are like
            no other. See :func:`distillrs.integrations.transformers.token_bytes`.
        teacher: Of the teacher's.

    Returns:
        int64 ``[student's vocabulary]``, -1 for a token that the teacher has not. Of several tokens with the same bytes
        the first of each side belong together.

    Raises:
        ArgumentError: Something that is no bytes.
    """
    packed: list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = []
    for name, tokens in (("student", student), ("teacher", teacher)):
        if not isinstance(tokens, list | tuple):
            raise argument_error(name, type(tokens).__name__, "a list of bytes, or None, by id")
        for number, token in enumerate(tokens):
            if token is not None and not isinstance(token, bytes):
                raise argument_error(f"{name}[{number}]", token, "bytes or None")
        pieces = [token or b"" for token in tokens]
        lengths = np.fromiter((len(piece) for piece in pieces), np.int64, len(pieces))
        offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        packed += [np.frombuffer(b"".join(pieces), np.uint8), offsets]
    found = np.empty(len(student), np.int64)
    _core.shared_tokens(packed[0].data, packed[1].data, packed[2].data, packed[3].data, found.data)
    return torch.from_numpy(found)


class VocabularyMap(nn.Module):
    """Next-token distributions over tokens that both sides have: ``[..., V]`` and ``[..., V']`` to ``[..., S + 1]``.

    Both sides come as log-probabilities at temperature 1. The last column is the mass outside of what they share, so a
    divergence is that of coarser events, and never above the full one.

    Args:
        teacher_ids: int64 ``[V]``: the teacher's token for each of the student's, -1 for none
            (:func:`shared_tokens`).
        teacher_vocabulary: V'.
        outside: "event": the mass outside is an event of its own; "renormalised": shared tokens alone, ``[..., S]``,
            each side brought to a sum of 1, which says nothing about how likely any of them is.

    Raises:
        ArgumentError: Nothing is shared, a teacher's token twice, or one that it has not; with "event" a side that has
            nothing outside, whose event could not happen.
    """

    student_ids: Tensor
    teacher_ids: Tensor
    student_outside: Tensor
    teacher_outside: Tensor

    def __init__(
        self, teacher_ids: Tensor, teacher_vocabulary: int, *, outside: Literal["event", "renormalised"] = "event"
    ) -> None:
        super().__init__()
        check_choice("outside", outside, ("event", "renormalised"))
        check_whole("teacher_vocabulary", teacher_vocabulary, "a positive number of tokens", least=1, most=2**31)
        if not isinstance(teacher_ids, Tensor) or teacher_ids.dtype != torch.int64 or teacher_ids.ndim != 1:
            raise argument_error("teacher_ids", teacher_ids, "int64 [student's vocabulary]")
        shared = teacher_ids[teacher_ids >= 0]
        if not len(shared) or int(shared.max()) >= teacher_vocabulary or len(set(shared.tolist())) < len(shared):
            got = f"{len(shared)} shared tokens, the largest {int(shared.max()) if len(shared) else None}"
            raise argument_error("teacher_ids", got, f"distinct ids below {teacher_vocabulary}, at least one")
        missing = torch.ones(teacher_vocabulary, dtype=torch.bool)
        missing[shared] = False
        parts = {
            "student_ids": (teacher_ids >= 0).nonzero()[:, 0],
            "teacher_ids": shared,
            "student_outside": (teacher_ids < 0).nonzero()[:, 0],
            "teacher_outside": missing.nonzero()[:, 0],
        }
        if outside == "event" and not (len(parts["student_outside"]) and len(parts["teacher_outside"])):
            allowed = "'renormalised' where a side has no token outside of what is shared"
            raise argument_error("outside", outside, allowed)
        for name, ids in parts.items():
            self.register_buffer(name, ids.clone(), persistent=False)
        self.vocabularies = (len(teacher_ids), teacher_vocabulary)
        self.outside = outside

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of both sides.

        Raises:
            ArgumentError: Logits of other vocabularies.
        """
        return (
            self._log_probs("student", student, self.vocabularies[0], self.student_ids, self.student_outside),
            self._log_probs("teacher", teacher, self.vocabularies[1], self.teacher_ids, self.teacher_outside),
        )

    def _log_probs(self, name: str, logits: Tensor, vocabulary: int, inside: Tensor, outside: Tensor) -> Tensor:
        if not isinstance(logits, Tensor) or logits.shape[-1] != vocabulary:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise argument_error(name, got, f"logits of {vocabulary} tokens, as the map was made for")
        logits = wide(logits)
        shared = logits[..., inside]
        if self.outside == "renormalised":
            return shared.log_softmax(-1)
        # From the others themselves: one less the shared mass would lose what a confident side leaves them.
        others = logits[..., outside].logsumexp(-1, keepdim=True)
        return torch.cat([shared, others], -1).log_softmax(-1)
