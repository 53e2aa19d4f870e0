"""Records in memory, the oldest making room for new ones."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_instance, check_whole, device_of
from distillrs.errors import DataError, KeyNotFound, argument_error, unknown_name_error
from distillrs.random import Units
from distillrs.step import Step
from distillrs.trajectory.buffers import record_tensor
from distillrs.trajectory.schema import Column, Schema
from distillrs.trajectory.windows import check_span


class Ring:
    """A bounded buffer of records with the columns of a store.

    Every record has an id that counts up from 0 and is never used again. When the ring is full, a new record takes
    the place of the oldest, or of the one with the lowest value in a version column (the oldest of those). Values are
    kept as they are: codecs belong to disks.

    Args:
        schema: The columns. Ragged ones are kept one tensor for each record.
        capacity: Most records that are held.
        version: A column of one number by which records are evicted; ``None`` evicts the oldest.
        device: Where fixed-shape columns lie.

    Raises:
        ArgumentError: An argument is not allowed.
    """

    def __init__(
        self, schema: Schema, capacity: int, *, version: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if not isinstance(schema, Schema):
            raise argument_error("schema", schema, "a Schema(name=Column(...), ...)")
        check_whole("capacity", capacity, "a number of records of at least 1", least=1)
        device = device_of("device", device)
        if version is not None:
            column = schema.column(version)[1]
            if column.shape != () or column.ragged:
                raise argument_error("version", version, "a column of shape ()")
        self._schema = schema
        self._capacity = capacity
        self._version = version
        self._next = 0
        self._ids = torch.full((capacity,), -1, dtype=torch.int64)
        self._fixed: dict[str, Tensor] = {}
        self._ragged: dict[str, list[Tensor]] = {}
        for name, column in schema.items():
            if column.ragged:
                self._ragged[name] = [torch.empty((0, *column.shape), dtype=column.dtype) for _ in range(capacity)]
            else:
                self._fixed[name] = torch.zeros((capacity, *column.shape), dtype=column.dtype, device=device)
        self._slots: dict[int, int] = {}

    @property
    def schema(self) -> Schema:
        """The columns."""
        return self._schema

    @property
    def capacity(self) -> int:
        """Most records that are held."""
        return self._capacity

    def __len__(self) -> int:
        """Records that are held."""
        return len(self._slots)

    def __contains__(self, id: object) -> bool:
        """Whether the record of this id is still held."""
        return id in self._slots

    def ids(self) -> Tensor:
        """[len(ring)] int64 ids of the records that are held, rising."""
        return torch.tensor(sorted(self._slots), dtype=torch.int64)

    def append(self, **columns: Any) -> int:
        """Adds one record and evicts one if the ring is full.

        Args:
            **columns: As :meth:`Writer.append` takes them; the values are copied.

        Returns:
            The record's id.

        Raises:
            ArgumentError: A column is missing, unknown, or of another type or shape; nothing changes then.
        """
        for name in columns:
            if name not in self._schema:
                raise unknown_name_error("column", name, list(self._schema))
        if len(columns) != len(self._schema):
            raise argument_error("columns", ", ".join(columns) or "none", f"all of {', '.join(self._schema)}")
        values = {name: _value(name, columns[name], column) for name, column in self._schema.items()}
        slot = self._free_slot()
        self._slots.pop(int(self._ids[slot]), None)
        for name, value in values.items():
            if name in self._fixed:
                self._fixed[name][slot].copy_(value)
            else:
                self._ragged[name][slot] = value.clone()
        id = self._next
        self._next += 1
        self._ids[slot] = id
        self._slots[id] = slot
        return id

    def evict(self, ids: Sequence[int] | Tensor) -> None:
        """Lets go of records; ids that are not held are passed over."""
        for id in _as_list("ids", ids):
            slot = self._slots.pop(id, None)
            if slot is not None:
                self._ids[slot] = -1

    def read(self, ids: int | Sequence[int] | Tensor, column: str | None = None) -> Tensor:
        """Copies of records.

        Args:
            ids: One id, or several.
            column: Which column; ``None`` if there is only one.

        Returns:
            [*shape] for one id ([rows, *shape] if ragged), [len(ids), *shape] for several.

        Raises:
            KeyNotFound: A record is not held (any more).
            ArgumentError: Several records of a ragged column were asked for.
        """
        name, kind = self._schema.column(column)
        if kind.ragged:
            if not isinstance(ids, int):
                raise argument_error("ids", ids, f"one id: column {name!r} is ragged")
            return self._ragged[name][self._slot(ids)].clone()
        if isinstance(ids, int):
            return self._fixed[name][self._slot(ids)].clone()
        slots = torch.tensor([self._slot(id) for id in _as_list("ids", ids)], dtype=torch.int64)
        values = self._fixed[name]
        return values.index_select(0, slots.to(values.device))

    def window(self, id: int, column: str | None = None, *, span: int) -> tuple[Tensor, Tensor]:
        """The records ``id`` and ``id + span``, as :meth:`Store.window` gives them.

        Raises:
            KeyNotFound: One of them is not held (any more).
        """
        check_span(span)
        if isinstance(id, bool) or not isinstance(id, int):
            raise argument_error("id", id, "the id of a record, a whole number")
        return self.read(id, column), self.read(id + span, column)

    def sample(self, *, units: Units = 1, step: Step | int = 0, span: int | None = None, name: str = "ring") -> Tensor:
        """Draws records uniformly, with replacement, seeded; the same on every rank that holds the same ids.

        Args:
            units: How many, or their global ids.
            step: Where the run stands.
            span: Draw only ids whose record ``span`` later is held too.
            name: Name of the draw.

        Returns:
            [len(units)] int64 ids.

        Raises:
            DataError: No record can be drawn.
            ArgumentError: ``span`` is not a number of records of at least 1.
        """
        held = sorted(self._slots)
        if span is not None:
            check_span(span)
            held = [id for id in held if id + span in self._slots]
        if not held:
            what = "no record" if span is None else f"no two records that lie {span} apart"
            raise DataError(f"ring: it holds {what}; append some first")
        picks = random.integers(units, len(held), step=step, name=name)
        return torch.tensor(held, dtype=torch.int64)[picks]

    def state_dict(self) -> dict[str, Any]:
        """Everything that is held, as tensors and numbers; for checkpoints."""
        held = self.ids()
        slots = [self._slots[id] for id in held.tolist()]
        columns: dict[str, Any] = {name: values[slots].cpu().clone() for name, values in self._fixed.items()}
        columns |= {name: [values[slot].clone() for slot in slots] for name, values in self._ragged.items()}
        return {"ids": held, "next": self._next, "columns": columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, into a ring of the same schema and enough capacity.

        Raises:
            ArgumentError: The state does not fit this ring; nothing changes then.
        """
        check_instance("state", state, Mapping, "what Ring.state_dict() gives")
        try:
            held, following = _as_list("state", state["ids"]), operator.index(state["next"])
            columns = dict(state["columns"])
        except (KeyError, TypeError, ValueError) as failure:
            raise argument_error("state", sorted(map(str, state)), "what Ring.state_dict() gives") from failure
        if len(held) > self._capacity:
            raise argument_error("state", f"{len(held)} records", f"at most the capacity, {self._capacity}")
        if set(columns) != set(self._schema) or any(len(values) != len(held) for values in columns.values()):
            raise argument_error(
                "state", sorted(columns), f"columns {', '.join(self._schema)} of {len(held)} records each"
            )
        if len(set(held)) != len(held) or any(not 0 <= id < following for id in held):
            raise argument_error("state", held, f"distinct ids from 0 to {following - 1}")
        records = {
            name: [_value(name, value, column) for value in columns[name]] for name, column in self._schema.items()
        }
        self._ids.fill_(-1)
        self._slots.clear()
        for slot, id in enumerate(held):
            for name, values in records.items():
                if name in self._fixed:
                    self._fixed[name][slot].copy_(values[slot])
                else:
                    self._ragged[name][slot] = values[slot].clone()
            self._ids[slot] = id
            self._slots[id] = slot
        self._next = following

    def _free_slot(self) -> int:
        if len(self._slots) < self._capacity:
            return int((self._ids < 0).nonzero()[0])
        if self._version is None:
            return self._slots[min(self._slots)]
        versions = self._fixed[self._version].cpu()
        lowest = (versions == versions.min()).nonzero().flatten()
        return int(lowest[self._ids[lowest].argmin()])

    def _slot(self, id: int) -> int:
        if id not in self._slots:
            raise KeyNotFound(f"id: got {id}, allowed is one of the {len(self._slots)} ids that the ring holds")
        return self._slots[id]


def _as_list(name: str, ids: Sequence[int] | Tensor) -> list[int]:
    try:
        return [operator.index(id) for id in (ids.tolist() if isinstance(ids, Tensor) else ids)]
    except (TypeError, RuntimeError) as failure:
        raise argument_error(name, ids, "ids of records, whole numbers") from failure


def _value(name: str, value: Any, column: Column) -> Tensor:
    # A fixed-shape tensor on the ring's device must not travel through the CPU.
    if isinstance(value, Tensor) and not column.ragged and value.device.type != "cpu":
        fits = value.dtype == column.dtype and tuple(value.shape) == column.shape
        return value.detach() if fits else record_tensor(name, value, column)
    return record_tensor(name, value, column)
