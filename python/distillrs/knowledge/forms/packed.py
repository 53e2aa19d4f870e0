"""The file of a network whose weights lie on few levels.

One safetensors file. Its metadata has ``distillrs.form`` = "few levels", ``version`` = "0" and ``entries``: JSON, a
list of [name, shape, type, bits, bucket, whether levels were learned], in the order in which their parts lie in
``codes.<bits>`` (a stream of ``rust/distillrs-core/src/forms/codes.rs`` with the codes of all entries of so many
bits), ``low``, ``scale`` (float32, one for each bucket) and ``levels`` (float32, 2^bits for each entry with learned
ones). A code c of a bucket stands for ``levels[c] * scale + low``; levels that were not learned are ``c / (2^bits -
1)``. Every other tensor of the network is ``plain.<name>``; ``same`` (JSON) maps names of tied tensors to the one that
is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import astuple, dataclass
from math import prod
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from distillrs import _core
from distillrs.errors import ArgumentError, DataError
from distillrs.files import write_whole
from distillrs.knowledge.forms.levels import Codes

KIND = "few levels"
VERSION = "0"
TYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
# More elements than any parameter has; sizes of a hostile file must not overflow on the way to being refused.
_MOST = 2**40


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor on few levels.

    Attributes:
        name: The parameter's.
        shape: Its shape.
        dtype: Its type's name.
        bits: Of a code.
        bucket: Elements of a bucket.
        learned: Whether its levels are in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    bucket: int
    learned: bool

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def buckets(self) -> int:
        """Buckets; a tensor without elements has none."""
        return -(-self.count // self.bucket)


def write(
    path: str | os.PathLike[str],
    entries: Sequence[Entry],
    codes: Sequence[Codes],
    rest: Mapping[str, Tensor],
    same: Mapping[str, str],
) -> int:
    """Writes a file whole or not at all.

    Args:
        path: The file; its folder must exist.
        entries: What lies on few levels.
        codes: Of each.
        rest: All other tensors by name.
        same: Further names, each with the one whose tensor it shares.

    Returns:
        Its size in bytes.
    """
    tensors: dict[str, Tensor] = {}
    by_bits: dict[int, list[Tensor]] = {}
    for entry, found in zip(entries, codes, strict=True):
        by_bits.setdefault(entry.bits, []).append(found.codes.detach().cpu().flatten()[: entry.count])
    for bits, pieces in by_bits.items():
        joined = torch.cat(pieces).contiguous()
        stream = _core.encode_codes((joined.data_ptr(), joined.nbytes), bits)
        tensors[f"codes.{bits}"] = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
    for name, columns in (("low", [each.low for each in codes]), ("scale", [each.scale for each in codes])):
        tensors[name] = torch.cat([column.detach().cpu().flatten() for column in columns])
    learned = [found.levels.detach().cpu() for entry, found in zip(entries, codes, strict=True) if entry.learned]
    if learned:
        tensors["levels"] = torch.cat(learned)
    tensors |= {f"plain.{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in rest.items()}
    listed = json.dumps([astuple(entry) for entry in entries], separators=(",", ":"))
    about = {"distillrs.form": KIND, "version": VERSION, "entries": listed}
    about |= {"same": json.dumps(dict(same))} if same else {}
    content = save(tensors, about)
    write_whole(Path(path), content)
    return len(content)


def shared_names(state: Mapping[str, Tensor], first: Container[str]) -> dict[str, str]:
    """Names of tied tensors, and under which name each is kept: one of ``first`` if there is one.

    Args:
        state: Tensors by name.
        first: Names that are kept rather than others.
    """
    kept: dict[tuple[int, torch.Size], str] = {}
    found = {}
    for name in sorted(state, key=lambda name: name not in first):
        tensor = state[name]
        other = kept.setdefault((tensor.data_ptr(), tensor.shape), name)
        if other != name and tensor.numel():
            found[name] = other
    return found


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file, by name, as they were evaluated.

    Args:
        path: The file. It may come from anybody: no size that it states is believed before it is checked.

    Raises:
        DataError: Damage, another kind of file or a later version; the message has what.
        OSError: It cannot be read.
    """
    content = Path(path).read_bytes()
    try:
        with safetensors.safe_open(path, "pt") as file:
            about: Any = file.metadata() or {}
        tensors = load(content)
        return _state(about, tensors)
    except DataError as failure:
        raise DataError(f"{path}: {failure}") from failure
    except (safetensors.SafetensorError, ArgumentError, ValueError, KeyError, TypeError, RecursionError) as failure:
        raise DataError(f"{path}: damaged ({failure})") from failure


def _state(about: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if about.get("distillrs.form") != KIND:
        raise DataError("no file of weights on few levels")
    if about.get("version") != VERSION:
        raise DataError(f"version {about.get('version')!r}, and this build reads {VERSION}")
    state = _decode(_entries(about.get("entries", "")), tensors)
    for name, other in dict(json.loads(about.get("same", "{}"))).items():
        if name in state:
            raise DataError(f"{name!r} twice")
        state[name] = state[other]
    return state


def _entries(text: str) -> list[Entry]:
    found = []
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise DataError("entries that are no list")
    for row in rows:
        if not isinstance(row, list) or len(row) != 6:
            raise DataError(f"the entry {row!r}")
        name, shape, dtype, bits, bucket, learned = row
        sizes = [*shape, bits, bucket] if isinstance(shape, list) else [None]
        if (
            not isinstance(name, str)
            or dtype not in TYPES
            or not isinstance(learned, bool)
            or not all(type(size) is int and 0 <= size <= _MOST for size in sizes)
            or not 1 <= bits <= 8
            or bucket < 1
            or len(shape) > 8
            or prod(shape) > _MOST
        ):
            raise DataError(f"the entry {row!r}")
        found.append(Entry(name, tuple(shape), dtype, bits, bucket, learned))
    if len({entry.name for entry in found}) != len(found):
        raise DataError("two entries of one name")
    return found


def _decode(entries: list[Entry], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {name.removeprefix("plain."): tensor for name, tensor in tensors.items() if name.startswith("plain.")}
    taken = {f"plain.{name}" for name in state}
    low, scale, levels = (_Column(tensors.get(name, torch.empty(0)), name) for name in ("low", "scale", "levels"))
    taken |= {"low", "scale", "levels"}
    streams: dict[int, _Column] = {}
    for bits in sorted({entry.bits for entry in entries}):
        count = sum(entry.count for entry in entries if entry.bits == bits)
        stream = tensors[f"codes.{bits}"]
        taken.add(f"codes.{bits}")
        # Before memory is taken for what is stated: a code has at least one bit.
        if stream.dtype != torch.uint8 or stream.ndim != 1 or count > 8 * stream.numel():
            raise DataError(f"{stream.numel()} bytes for {count} codes")
        out = torch.empty(count, dtype=torch.uint8)
        stream = stream.contiguous()
        _core.decode_codes((stream.data_ptr(), stream.nbytes), bits, (out.data_ptr(), out.nbytes))
        streams[bits] = _Column(out, f"codes.{bits}", torch.uint8)
    for entry in entries:
        if entry.name in state:
            raise DataError(f"{entry.name!r} twice")
        # Else a small file could ask for a large, empty bucket.
        if entry.bucket > max(entry.count, 1):
            raise DataError(f"a bucket of {entry.bucket} for {entry.count} elements")
        codes = streams[entry.bits].take(entry.count)
        missing = entry.buckets * entry.bucket - entry.count
        codes = torch.cat([codes, codes.new_zeros(missing)]).view(entry.buckets, entry.bucket)
        own = levels.take(2**entry.bits) if entry.learned else torch.arange(2**entry.bits) / float(2**entry.bits - 1)
        found = Codes(codes, low.take(entry.buckets)[:, None], scale.take(entry.buckets)[:, None], own)
        state[entry.name] = found.decode(entry.shape, TYPES[entry.dtype])
    for column in (low, scale, levels, *streams.values()):
        column.finish()
    if taken != tensors.keys() | {"low", "scale", "levels"}:
        raise DataError(f"the tensors {sorted(tensors.keys() - taken)[:3]}")
    return state


class _Column:
    """A vector that is read piece by piece."""

    def __init__(self, values: Tensor, name: str, dtype: torch.dtype = torch.float32) -> None:
        if values.ndim != 1 or values.dtype != dtype:
            raise DataError(f"{name} of {values.dtype} and shape {list(values.shape)}")
        self.values = values
        self.name = name
        self.at = 0

    def take(self, count: int) -> Tensor:
        """The next values."""
        if count > len(self.values) - self.at:
            raise DataError(f"{len(self.values)} values of {self.name}, which are too few")
        self.at += count
        return self.values[self.at - count : self.at]

    def finish(self) -> None:
        """Refuses values that nobody took."""
        if self.at != len(self.values):
            raise DataError(f"{len(self.values)} values of {self.name} where {self.at} are due")
