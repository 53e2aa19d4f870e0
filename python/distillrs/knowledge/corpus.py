"""Where examples of language models come from: written by a teacher and checked, mixed from sources, cut into tasks."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_callable, check_instance, check_number, check_text, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.inputs import IGNORED
from distillrs.knowledge.numerics import is_number
from distillrs.step import Step

Fields = Mapping[str, str]
"""Texts of one example by name."""

Generator = Callable[[Fields, Step], Fields]
"""Writes fields for an input; the step is one of its own for each input and attempt, for draws."""

Check = Callable[[Fields], bool | float]
"""Whether an example is good, or how much it is to weigh."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example and where it comes from.

    Attributes:
        fields: Its texts: those of the input and those that were written.
        weight: How much it counts, above 0.
        source: Who wrote it.
        unit: Number of its input.
        attempt: Which attempt passed the check, from 0.
    """

    fields: Fields
    weight: float = 1.0
    source: str = "given"
    unit: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.fields, Mapping) or not all(
            isinstance(name, str) and isinstance(text, str) for name, text in self.fields.items()
        ):
            raise argument_error("fields", self.fields, "a mapping from names to texts")
        check_number("weight", self.weight, "a number above 0", above=0)
        check_text("source", self.source)
        for name in ("unit", "attempt"):
            check_whole(name, getattr(self, name), "a whole number from 0", least=0)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples, and the numbers of inputs for which none was good.

    Attributes:
        examples: In the order of the inputs.
        rejected: Inputs without an example.
    """

    examples: tuple[Example, ...]
    rejected: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.examples, tuple) or not all(isinstance(each, Example) for each in self.examples):
            raise argument_error("examples", self.examples, "a tuple of Example")
        if not isinstance(self.rejected, tuple) or not all(isinstance(each, int) for each in self.rejected):
            raise argument_error("rejected", self.rejected, "a tuple of inputs' numbers")

    @staticmethod
    def written(
        inputs: Iterable[Fields],
        write: Generator,
        *,
        source: str = "teacher",
        check: Check | None = None,
        attempts: int = 1,
        seed: int = 0,
    ) -> Corpus:
        """Has a teacher write fields for every input, and keeps what passes a check.

        Args:
            inputs: What the teacher is given.
            write: Gives the fields to add; an exception of its own is the caller's.
            source: The writer's name.
            check: False or 0 turns an example down; a number is its weight. ``None`` takes all.
            attempts: How often it may try for one input; the step of attempt a has index a.
            seed: Of the steps; input i has ``first_unit=i``.

        Raises:
            ArgumentError: No attempt, fields that are no texts or that stand in the input already with another text,
                or a weight that is negative or not finite.
        """
        check_whole("attempts", attempts, "a whole number from 1", least=1)
        check_callable("write", write, "a function of an input and a step")
        if check is not None:
            check_callable("check", check, "None or a function of an example's fields")
        check_text("source", source)
        try:
            numbered = [*enumerate(inputs)]
        except TypeError as failure:
            raise argument_error("inputs", type(inputs).__name__, "mappings from names to texts") from failure
        examples: list[Example] = []
        rejected: list[int] = []
        for unit, given in numbered:
            if not isinstance(given, Mapping):
                raise argument_error(f"inputs[{unit}]", type(given).__name__, "a mapping from names to texts")
            for attempt in range(attempts):
                fields = _joined(given, write(given, Step(attempt, seed=seed, first_unit=unit)))
                weight = 1.0 if check is None else _weight(check(fields))
                if weight > 0:
                    examples.append(Example(fields, weight, source, unit, attempt))
                    break
            else:
                rejected.append(unit)
        return Corpus(tuple(examples), tuple(rejected))

    def __len__(self) -> int:
        return len(self.examples)

    def __add__(self, other: Corpus) -> Corpus:
        """Both corpora's examples, this one's first."""
        return Corpus(self.examples + other.examples, self.rejected + other.rejected)

    def sources(self) -> dict[str, int]:
        """How many examples each source wrote."""
        return dict(Counter(example.source for example in self.examples))


@dataclass(frozen=True, slots=True)
class Task:
    """What a model is asked and what it is to answer: templates over an example's fields.

    Attributes:
        prompt: Such as "[label] {question}"; no loss falls on it.
        answer: Such as "{label}".
    """

    prompt: str
    answer: str

    def __post_init__(self) -> None:
        for name in ("prompt", "answer"):
            if not isinstance(getattr(self, name), str):
                raise argument_error(name, getattr(self, name), "a template, such as '{question}'")

    def texts(self, fields: Fields) -> tuple[str, str]:
        """The prompt and the answer of an example.

        Raises:
            ArgumentError: A template names a field that the example has not, or is no template.
        """
        texts = []
        for template in (self.prompt, self.answer):
            try:
                texts.append(template.format_map(dict(fields)))
            except KeyError as missing:
                raise argument_error("template", str(missing), f"one of the fields {', '.join(fields)}") from None
            except (ValueError, AttributeError, IndexError) as failure:
                allowed = "text with {name} for a field, and {{ and }} for braces"
                raise argument_error("template", f"{template!r}: {failure}", allowed) from None
        return texts[0], texts[1]


def paired_batch(
    examples: Sequence[Example],
    tasks: Sequence[Task],
    encode: Callable[[str], Sequence[int]],
    *,
    end: int,
    pad: int = 0,
    max_length: int | None = None,
    start: int | None = None,
) -> dict[str, Tensor]:
    """A batch in which every example stands once for each task.

    For a decoder alone a row is prompt and answer, one after the other. With ``start`` the batch is for an encoder and
    a decoder: the encoder reads the prompt, the decoder begins with ``start`` and says the answer.

    Args:
        examples: n examples.
        tasks: Their tasks; row ``t n + i`` is example i in task t.
        encode: Gives a text's token ids, without special tokens; prompt and answer are encoded apart, so that where the
            answer begins does not depend on it.
        end: Token that ends an answer, and is learned.
        pad: Token behind the end.
        max_length: Longer rows are refused, since a cut answer would teach to stop early.
        start: Token that a decoder's row begins with; ``None`` for a decoder alone.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` (-100 for prompts and padding): int64 ``[t n, L]``;
        ``task``: int64 ``[t n]``; ``weight``: float32 ``[t n]``. With ``start`` also ``decoder_input_ids``, int64
        ``[t n, A]`` as the labels, which then stand at their own places.

    Raises:
        ArgumentError: No tasks, or a row that is too long.
    """
    for name, value, kind in (("examples", examples, Example), ("tasks", tasks, Task)):
        if not isinstance(value, list | tuple) or not all(isinstance(each, kind) for each in value):
            raise argument_error(name, value, f"a list of {kind.__name__}")
    if not tasks:
        raise argument_error("tasks", tasks, "at least one Task")
    check_callable("encode", encode, "a function of a text that gives token ids")
    for name, token in (("end", end), ("pad", pad), *([] if start is None else [("start", start)])):
        check_whole(name, token, "a token, a whole number from 0", least=0, most=2**63 - 1)
    if max_length is not None:
        check_whole("max_length", max_length, "None or a number of tokens from 1", least=1)
    given: list[list[int]] = []
    due: list[list[int]] = []
    said: list[list[int]] = []
    for task in tasks:
        for example in examples:
            prompt, answer = (_encoded(encode(text)) for text in task.texts(example.fields))
            given.append(prompt if start is not None else [*prompt, *answer, end])
            due.append([*answer, end] if start is not None else [*(IGNORED for _ in prompt), *answer, end])
            said.append([start, *answer] if start is not None else [])
    longest = max((len(ids) for ids in (*given, *due)), default=0)
    if max_length is not None and longest > max_length:
        raise argument_error("examples", f"a row of {longest} tokens", f"at most max_length = {max_length}")
    decoder = {} if start is None else {"decoder_input_ids": _padded(said, pad)}
    return {
        "input_ids": _padded(given, pad),
        "attention_mask": _padded([[1 for _ in ids] for ids in given], 0),
        "labels": _padded(due, IGNORED),
        **decoder,
        "task": torch.arange(len(tasks)).repeat_interleave(len(examples)),
        "weight": torch.tensor([example.weight for example in examples] * len(tasks), dtype=torch.float32),
    }


def _encoded(tokens: Any) -> list[int]:
    try:
        return [operator.index(token) for token in tokens]
    except TypeError:
        raise argument_error("encode", f"a function that gives {tokens!r}", "one that gives token ids") from None


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Rows of one length, int64 [rows, longest]."""
    found = torch.full((len(rows), max(map(len, rows), default=0)), pad)
    for row, tokens in enumerate(rows):
        found[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return found


TextSource = Callable[[Tensor, Step], Tensor]
"""Gives token ids ``[n, L]`` for global ids of rows ``[n]`` at a step."""


class TextMix:
    """Rows of text from several sources in given shares: fixed data, a teacher's text, the student's own.

    Which source a row comes from is a draw of its own (seed, step, unit), so neither the batch nor the rank changes it;
    a source with share 0 is never asked.

    Args:
        sources: By name; each is asked once a batch, for the rows that are its own.
        shares: By the same names, not negative, not all 0; normalised here.

    Raises:
        ArgumentError: Names or shares that do not fit.
    """

    def __init__(self, sources: Mapping[str, TextSource], shares: Mapping[str, float]) -> None:
        for name, given in (("sources", sources), ("shares", shares)):
            check_instance(name, given, Mapping, "a mapping by the sources' names")
        for source in sources.values():
            check_callable("sources", source, "functions of units and a step, by name")
        if set(sources) != set(shares):
            raise argument_error("shares", sorted(shares), f"one for each of {sorted(sources)}")
        are_shares = all(is_number(share) and share >= 0 for share in shares.values())
        if not sources or not are_shares or not any(shares.values()):
            raise argument_error("shares", dict(shares), "finite numbers from 0, not all 0")
        self.sources = dict(sources)
        total = sum(shares.values())
        self.shares = {name: shares[name] / total for name in self.sources}

    def origins(self, units: random.Units, step: Step | int) -> Tensor:
        """Number of the source of each row, int64 [n], in the order of the sources.

        Args:
            units: A count, or global ids of the rows.
            step: Where in the run.
        """
        drawn = random.uniform(units, step=step, name="text mix", dtype=torch.float64)
        limits = torch.tensor(list(self.shares.values()), dtype=torch.float64).cumsum(0)
        last = max(place for place, share in enumerate(self.shares.values()) if share > 0)
        return torch.searchsorted(limits, drawn, right=True).clamp(max=last)

    def batch(self, count: int, step: Step | int) -> tuple[Tensor, Tensor]:
        """Rows of one batch.

        Args:
            count: How many; they are the units from ``step.first_unit``.
            step: Where in the run.

        Returns:
            Token ids int64 ``[count, L]`` and the number of each row's source, int64 ``[count]``.

        Raises:
            ArgumentError: Sources whose rows differ in length or number.
        """
        step = Step.of(step)
        check_whole("count", count, "a number of rows from 1", least=1, most=2**62)
        units = torch.arange(step.first_unit, step.first_unit + count)
        origins = self.origins(units, step)
        rows: Tensor | None = None
        for number, (name, source) in enumerate(self.sources.items()):
            own = (origins == number).nonzero()[:, 0]
            if not len(own):
                continue
            ids: Any = source(units[own], step)
            if not isinstance(ids, Tensor):
                raise argument_error("sources", f"{type(ids).__name__} from {name!r}", "int64 rows of one length")
            width = ids.shape[1] if rows is None and ids.ndim == 2 else (rows.shape[1] if rows is not None else -1)
            if ids.dtype != torch.int64 or ids.shape != (len(own), width):
                got = f"{ids.dtype} {tuple(ids.shape)} from {name!r}"
                raise argument_error("sources", got, f"int64 rows of one length, {len(own)} of them")
            rows = ids.new_zeros(count, width) if rows is None else rows
            rows[own.to(rows.device)] = ids
        if rows is None:
            raise argument_error("count", count, "at least one row")
        return rows, origins


def _weight(passed: Any) -> float:
    try:
        weight = -1.0 if isinstance(passed, str) else float(passed)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 <= weight < math.inf:
        raise argument_error("check", passed, "a truth value, or a finite weight from 0")
    return weight


def _joined(given: Fields, added: Fields) -> Fields:
    if not isinstance(added, Mapping) or not all(isinstance(text, str) for text in added.values()):
        raise argument_error("write", added, "a function that returns texts by name")
    for name in set(given) & set(added):
        if given[name] != added[name]:
            raise argument_error("write", f"another {name!r} than the input's", "fields that the input has not")
    return {**given, **added}
