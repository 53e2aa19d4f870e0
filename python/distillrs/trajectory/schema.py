"""What the records of a trajectory hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from distillrs.checks import check_flag
from distillrs.errors import ArgumentError, argument_error, unknown_name_error
from distillrs.trajectory.codecs import Codec, Raw, codec_from_dict, codec_of, codec_to_dict
from distillrs.trajectory.dtypes import disk_name, dtype_name, dtype_of, from_disk_name

_MAXIMUM_NAME = 64


@dataclass(frozen=True, init=False)
class Column:
    """One named part of a record.

    Args:
        shape: Shape of one record; for a ragged column the shape of one row.
        dtype: A torch type or its name.
        codec: ``"raw"``, ``"half-delta"``, ``"delta-int8"``, ``"lossless"``, or one with its parameters.
        ragged: Whether each record has its own number of rows: values of shape [rows, *shape].
        tensor_sizes: Element counts of tensors that lie one after another in a record, for a codec that scales each
            on its own; empty for one.

    Raises:
        ArgumentError: An argument is not allowed, or the codec does not apply to the type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    codec: Codec
    ragged: bool
    tensor_sizes: tuple[int, ...]

    def __init__(
        self,
        shape: tuple[int, ...] | list[int],
        dtype: torch.dtype | str,
        codec: str | Codec = "raw",
        ragged: bool = False,
        tensor_sizes: tuple[int, ...] | list[int] = (),
    ) -> None:
        if not _are_counts(shape, 1):
            raise argument_error("shape", shape, "a tuple of positive extents; () for a single number")
        if not _are_counts(tensor_sizes, 0):
            raise argument_error("tensor_sizes", tensor_sizes, "a tuple of element counts from 0")
        check_flag("ragged", ragged)
        if tensor_sizes and sum(tensor_sizes) != prod(shape):
            raise argument_error(
                "tensor_sizes", f"a sum of {sum(tensor_sizes)}", f"a sum of {prod(shape)}, the elements of a record"
            )
        set_once = object.__setattr__
        set_once(self, "shape", tuple(shape))
        set_once(self, "dtype", dtype_of(dtype))
        set_once(self, "codec", codec_of(codec))
        set_once(self, "ragged", bool(ragged))
        set_once(self, "tensor_sizes", tuple(tensor_sizes))
        if ragged and not isinstance(self.codec, Raw):
            raise argument_error("codec", self.codec.name, "'raw' for a ragged column")
        if self.codec.name in ("half-delta", "delta-int8") and self.dtype not in (torch.float32, torch.float64):
            raise argument_error("dtype", dtype_name(self.dtype), f"float32 or float64 under codec {self.codec.name!r}")

    @property
    def size(self) -> int:
        """Elements of one record, or of one row of a ragged one."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one record, or of one row of a ragged one, before the codec."""
        return self.size * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """The form in which the store keeps it."""
        return {
            "shape": list(self.shape),
            "dtype": disk_name(self.dtype),
            "codec": codec_to_dict(self.codec),
            "ragged": self.ragged,
            "tensor_sizes": list(self.tensor_sizes),
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Column:
        """The column that :meth:`to_dict` described."""
        return cls(
            tuple(form["shape"]),
            from_disk_name(form["dtype"]),
            codec_from_dict(form.get("codec", "raw")),
            bool(form.get("ragged", False)),
            tuple(form.get("tensor_sizes", ())),
        )


class Schema(Mapping[str, Column]):
    """The columns of a store's records, by name and in order.

    ``Schema(theta=layout.column(codec="delta-int8"), loss=Column((), "float64"))``

    Args:
        **columns: At least one column. A name is a Python identifier of at most 64 characters.

    Raises:
        ArgumentError: There is no column, a name is not allowed, or a value is not a :class:`Column`.
    """

    def __init__(self, **columns: Column) -> None:
        if not columns:
            raise argument_error("columns", {}, "at least one name=Column(...)")
        for name, column in columns.items():
            if not name.isidentifier() or not name.isascii() or len(name) > _MAXIMUM_NAME:
                raise argument_error("columns", name, f"ASCII identifiers of at most {_MAXIMUM_NAME} characters")
            if not isinstance(column, Column):
                raise argument_error(name, column, "a Column")
        self._columns = dict(columns)

    def __getitem__(self, name: str) -> Column:
        """The column of that name; ``KeyError`` as mappings have it."""
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Schema({', '.join(f'{name}={column!r}' for name, column in self._columns.items())})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schema):
            return NotImplemented
        return list(self._columns.items()) == list(other._columns.items())

    def __hash__(self) -> int:
        return hash(tuple(self._columns.items()))

    def column(self, name: str | None) -> tuple[str, Column]:
        """A column by name; ``None`` is the only one.

        Raises:
            UnknownNameError: No column has this name.
            ArgumentError: No name was given and there are several columns.
        """
        if name is None:
            if len(self._columns) > 1:
                raise argument_error("column", None, f"one of {', '.join(self._columns)}")
            name = next(iter(self._columns))
        if not isinstance(name, str) or name not in self._columns:
            raise unknown_name_error("column", name, list(self._columns))
        return name, self._columns[name]

    def to_json(self) -> str:
        """The form in which the store keeps it."""
        return json.dumps({"columns": [{"name": name, **column.to_dict()} for name, column in self._columns.items()]})

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """The schema that :meth:`to_json` described.

        Raises:
            ArgumentError: The text is not a schema.
        """
        try:
            return cls(**{form["name"]: Column.from_dict(form) for form in json.loads(text)["columns"]})
        except ArgumentError:
            raise
        except (KeyError, TypeError, ValueError) as failure:
            raise argument_error("schema", text[:200], "what Schema.to_json() gives") from failure


def _are_counts(value: object, least: int) -> bool:
    """Whether this is a tuple or list of whole numbers from the least on."""
    return isinstance(value, (tuple, list)) and all(
        isinstance(each, int) and not isinstance(each, bool) and each >= least for each in value
    )
