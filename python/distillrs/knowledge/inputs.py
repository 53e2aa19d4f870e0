"""A batch as the networks take it and as the terms read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from distillrs.errors import argument_error, unknown_name_error

IGNORED = -100
"""The label of rows that do not count, as everywhere in torch."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a network is called with, and every entry of the batch by name.

    Attributes:
        args: Positional arguments of the networks.
        kwargs: Named arguments of the networks.
        fields: Entries that terms, targets and teachers read by name: "labels", "ids", masks.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """An entry of the batch.

        Args:
            name: Its name.

        Raises:
            UnknownNameError: The batch has no such entry.
            ArgumentError: It is no tensor.
        """
        if name not in self.fields:
            raise unknown_name_error("batch entry", name, list(self.fields))
        value = self.fields[name]
        if not isinstance(value, Tensor):
            raise argument_error(f"batch[{name!r}]", type(value).__name__, "a tensor")
        return value

    def has(self, name: str) -> bool:
        """Whether the batch has an entry of that name."""
        return self.fields.get(name) is not None

    @property
    def examples(self) -> int:
        """Length of the first axis of the first tensor that the networks get.

        Raises:
            ArgumentError: They get none.
        """
        for value in (*self.args, *self.kwargs.values()):
            if isinstance(value, Tensor) and value.ndim:
                return len(value)
        raise argument_error("batch", "no tensor with an axis", "at least one among what the networks get")


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Calls a network with other entries of the batch than the student, as ``FrozenTeacher(inputs=...)`` takes it.

    ``Prefixed("teacher_", ("input_ids", "attention_mask"))`` gives the teacher ``batch["teacher_input_ids"]`` as
    ``input_ids``. Entries that the batch has not are left out, but for the first.

    Attributes:
        prefix: Before the names in the batch.
        names: The network's named arguments.
    """

    prefix: str
    names: tuple[str, ...] = ("input_ids", "attention_mask")

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str):
            raise argument_error("prefix", self.prefix, "a string")
        if not isinstance(self.names, tuple) or not self.names or not all(isinstance(each, str) for each in self.names):
            raise argument_error("names", self.names, "a tuple of at least one name of an argument")

    @property
    def entries(self) -> tuple[str, ...]:
        """Their names in the batch, to be withheld from the student."""
        return tuple(self.prefix + name for name in self.names)

    def __call__(self, inputs: Inputs) -> Inputs:
        """The batch as the other network takes it."""
        inputs.tensor(self.entries[0])
        named = zip(self.names, self.entries, strict=True)
        return Inputs((), {name: inputs.fields[entry] for name, entry in named if inputs.has(entry)}, inputs.fields)


InputsFunction: TypeAlias = Callable[[Any], Inputs]


def read_batch(batch: Any, labels: str, ids: str, withheld: Iterable[str]) -> Inputs:
    """Reads the usual forms of a batch.

    Args:
        batch: A mapping, whose entries the networks get as named arguments but for those withheld; a pair or triple of
            inputs, labels and ids, of which the networks get the first; a tensor; or :class:`Inputs`.
        labels: Name of the labels, which are withheld.
        ids: Name of the examples' ids, which are withheld.
        withheld: Further entries of a mapping that the networks do not get.

    Raises:
        ArgumentError: For a batch of another form.
    """
    if isinstance(batch, Inputs):
        return batch
    if isinstance(batch, Mapping):
        hidden = {labels, ids, *withheld}
        return Inputs((), {name: value for name, value in batch.items() if name not in hidden}, dict(batch))
    if isinstance(batch, Tensor):
        return Inputs((batch,))
    if isinstance(batch, list | tuple) and 1 <= len(batch) <= 3:
        return Inputs((batch[0],), {}, dict(zip((labels, ids), batch[1:], strict=False)))
    got = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else type(batch).__name__
    raise argument_error(
        "batch",
        got,
        "a mapping, a tensor, (inputs, labels), (inputs, labels, ids), or Objective(inputs=...) to read it",
    )
