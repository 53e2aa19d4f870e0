"""Trajectories from and to other formats."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from distillrs.checks import check_instance, check_names, check_path
from distillrs.errors import DataError, StoreLocked, argument_error
from distillrs.files import whole_file
from distillrs.trajectory.buffers import as_bytes
from distillrs.trajectory.dtypes import disk_name, dtype_name
from distillrs.trajectory.layout import ParameterLayout
from distillrs.trajectory.schema import Column
from distillrs.trajectory.store import Store

_ALIGNMENT = 64
_STEPS_AT_ONCE = 8
_FORM = "distillrs trajectory 0"


def import_replay_buffers(
    paths: Iterable[str | os.PathLike[str]],
    store: Store,
    layout: ParameterLayout,
    *,
    column: str | None = None,
    on_expert: Callable[[str], None] | None = None,
) -> list[str]:
    """Copies the ``replay_buffer_*.pt`` files of trajectory-matching code bases into a store.

    A file holds nested lists [experts][snapshots][parameters]. It is mapped, not read, and nothing in it is executed;
    memory grows by one expert at most. Trajectories are named ``<file stem>-<expert, three digits>``. Those that are
    complete in the store, or that another process is importing, are passed over, so an interrupted import goes on.

    Args:
        paths: The files.
        store: Where to; made by ``Store.create`` with ``Schema(theta=layout.column())``, say.
        layout: The network that the experts were: its parameters in the order of ``model.parameters()``.
        column: Which column; ``None`` if there is only one.
        on_expert: Called with each name once its trajectory is complete.

    Returns:
        Names of the trajectories of these files that the store now holds complete.

    Raises:
        DataError: A file is not of this form, its parameters differ from ``layout``, or its snapshots all share one
            memory (recorded without a copy).
        ArgumentError: The store's columns do not fit ``layout``.
    """
    files = _files(paths)
    check_instance("store", store, Store, "a Store")
    check_instance("layout", layout, ParameterLayout, "a ParameterLayout")
    _check_callback("on_expert", on_expert)
    name, kind = store.schema.column(column)
    if len(store.schema) > 1:
        raise argument_error("store", f"columns {', '.join(store.schema)}", f"one whose only column is {name!r}")
    if kind.ragged or kind.shape != (layout.size,) or kind.dtype != layout.dtype:
        got = f"{name!r} of {dtype_name(kind.dtype)} {list(kind.shape)}"
        raise argument_error(
            "store", got, f"a column of {dtype_name(layout.dtype)} [{layout.size}], as layout.column() makes"
        )
    present = []
    for path in files:
        experts = _load_replay_buffer(path)
        for index in range(len(experts)):
            key = f"{path.stem}-{index:03d}"
            if key not in store:
                expert = experts[index]
                _check_expert(path, index, expert, layout)
                try:
                    _import_expert(store, key, name, expert, layout)
                except StoreLocked:
                    continue
                if on_expert is not None:
                    on_expert(key)
            # What was copied must not stay in memory while the rest follows.
            experts[index] = None
            present.append(key)
    return present


def _load_replay_buffer(path: Path) -> list[Any]:
    try:
        experts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as failure:
        raise DataError(f"paths: there is no file {path}") from failure
    except pickle.UnpicklingError as failure:
        raise DataError(f"{path}: it holds more than tensors and lists, which is not loaded ({failure})") from failure
    except (RuntimeError, EOFError, OSError) as failure:
        raise DataError(
            f"{path}: not a file that torch.save made since torch 1.6; an older one can be written anew with "
            f"torch.save(torch.load(path, weights_only=True), path) ({failure})"
        ) from failure
    if not isinstance(experts, list) or not experts:
        raise DataError(f"{path}: got {type(experts).__name__}, expected a list of experts")
    return experts


def _check_expert(path: Path, index: int, snapshots: Any, layout: ParameterLayout) -> None:
    where = f"{path}: expert {index}"
    if not isinstance(snapshots, list | tuple) or not snapshots:
        raise DataError(f"{where}: expected a list of snapshots")
    for epoch, parameters in enumerate(snapshots):
        if not isinstance(parameters, list | tuple) or not all(isinstance(value, Tensor) for value in parameters):
            raise DataError(f"{where}, snapshot {epoch}: expected a list of tensors")
        if len(parameters) != len(layout.slots):
            raise DataError(
                f"{where}, snapshot {epoch}: {len(parameters)} parameters, the layout has {len(layout.slots)}"
            )
        for slot, value in zip(layout.slots, parameters, strict=True):
            if tuple(value.shape) != slot.shape or value.dtype != layout.dtype:
                raise DataError(
                    f"{where}, snapshot {epoch}: {dtype_name(value.dtype)} {list(value.shape)} where the layout has "
                    f"{slot.name!r}, {dtype_name(layout.dtype)} {list(slot.shape)}"
                )
    if len(snapshots) > 1 and len({snapshot[0].data_ptr() for snapshot in snapshots}) == 1:
        raise DataError(
            f"{where}: all {len(snapshots)} snapshots are one memory, so every one shows the last epoch; they were "
            "recorded without a copy (p.detach().cpu() on a CPU); record them anew"
        )


def _import_expert(store: Store, key: str, column: str, snapshots: Sequence[Any], layout: ParameterLayout) -> None:
    vector = torch.empty(layout.size, dtype=layout.dtype)
    names = [slot.name for slot in layout.slots]
    with store.begin(key, resume_at=0) as writer:
        for parameters in snapshots:
            writer.append(**{column: layout.flatten(dict(zip(names, parameters, strict=True)), out=vector)})


def export_safetensors(
    store: Store,
    folder: str | os.PathLike[str],
    *,
    keys: Sequence[str] | None = None,
    on_trajectory: Callable[[str], None] | None = None,
) -> list[Path]:
    """Writes each trajectory as one plain safetensors file, decoded.

    A column of fixed shape is a tensor [T, *shape] under its name; a ragged one is ``<name>`` [rows, *shape] and
    ``<name>.offsets`` [T + 1] int64. The file's metadata holds the key. Records are streamed, so memory holds a few.

    Args:
        store: What to export.
        folder: Where to; made if it is not there. Files are named after the keys, unusual characters percent-encoded.
        keys: Which trajectories; ``None`` is all complete ones.
        on_trajectory: Called with each key once its file is there.

    Returns:
        The files, in the order of the keys.

    Raises:
        KeyNotFound: A key that the store does not hold.
        DataError: A trajectory misses records (see :meth:`Store.missing`) or has none.
        StoreCorrupt: Bytes contradict their checksum; that trajectory's file is not made.
    """
    check_instance("store", store, Store, "a Store")
    check_path("folder", folder)
    if keys is not None:
        check_names("keys", keys, "a list of the store's keys, or None for all")
    _check_callback("on_trajectory", on_trajectory)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lengths = store.lengths()
    files = []
    for key in lengths if keys is None else keys:
        gone = store.missing(key)
        if gone:
            raise DataError(f"{key}: a repair dropped its steps {gone[:10]}; export the others with keys=")
        if not lengths.get(key):
            raise DataError(f"{key}: it has no records, or is not complete")
        path = folder / f"{_file_name(key)}.safetensors"
        entries: dict[str, tuple[str, list[int], int]] = {}
        for name, column in store.schema.items():
            rows = lengths[key]
            if column.ragged:
                rows = sum(store._core.rows(key, name, step) for step in range(lengths[key]))
                entries[f"{name}.offsets"] = ("I64", [lengths[key] + 1], 8 * (lengths[key] + 1))
            entries[name] = (disk_name(column.dtype), [rows, *column.shape], rows * column.nbytes)
        _write_safetensors(
            path, {"format": _FORM, "key": key}, entries, _records(store, key, lengths[key], list(entries))
        )
        files.append(path)
        if on_trajectory is not None:
            on_trajectory(key)
    return files


def _files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    if isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable):
        raise argument_error("paths", paths, "a list of paths")
    found = list(paths)
    for each in found:
        check_path("paths", each)
    return [Path(each) for each in found]


def _check_callback(name: str, function: object) -> None:
    if function is not None and not callable(function):
        raise argument_error(name, function, "None or a function of a trajectory's name")


def _file_name(key: str) -> str:
    name = quote(key, safe=" ")
    # File systems end names at 255 bytes, and a temporary name is longer than the final one.
    return name if len(name) <= 180 else f"{name[:140]}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _records(store: Store, key: str, length: int, entries: list[str]) -> Iterator[Tensor]:
    """The data of the entries, in order, piece by piece."""
    for entry in entries:
        name = entry.removesuffix(".offsets")
        if entry != name:
            rows = [store._core.rows(key, name, step) for step in range(length)]
            yield torch.tensor([0, *rows], dtype=torch.int64).cumsum(0)
            continue
        column = store.schema[name]
        if column.ragged:
            yield from (store.read(key, step, name) for step in range(length))
            continue
        # Several steps in one pass share the decoding of a chain; a few at a time keep the memory small.
        for step in range(0, length, _STEPS_AT_ONCE):
            yield store.read(key, range(step, min(step + _STEPS_AT_ONCE, length)), name)


def _write_safetensors(
    path: Path, metadata: dict[str, str], entries: dict[str, tuple[str, list[int], int]], pieces: Iterator[Tensor]
) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            file.write(as_bytes(piece))


def import_safetensors(
    paths: Iterable[str | os.PathLike[str]],
    store: Store,
    *,
    on_trajectory: Callable[[str], None] | None = None,
) -> list[str]:
    """Copies files as :func:`export_safetensors` writes them into a store, one trajectory each.

    Any safetensors file does whose tensors are the store's columns with one leading axis of steps; it is named by the
    ``key`` in its metadata, or by its stem. Complete trajectories are passed over.

    Args:
        paths: The files.
        store: Where to.
        on_trajectory: Called with each key once its trajectory is complete.

    Returns:
        Names of the trajectories of these files that the store now holds complete.

    Raises:
        DataError: A file is missing, malformed, or does not fit the store's schema.
        StoreLocked: Another writer has one of the trajectories.
    """
    from safetensors import SafetensorError, safe_open

    check_instance("store", store, Store, "a Store")
    _check_callback("on_trajectory", on_trajectory)
    keys = []
    for path in _files(paths):
        if not path.is_file():
            raise DataError(f"paths: there is no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                key = (file.metadata() or {}).get("key", path.stem)
                if key not in store:
                    _import_file(path, file, store, key)
                    if on_trajectory is not None:
                        on_trajectory(key)
        except SafetensorError as failure:
            raise DataError(f"{path}: not a safetensors file ({failure})") from failure
        keys.append(key)
    return keys


def _import_file(path: Path, file: Any, store: Store, key: str) -> None:
    names = set(file.keys())
    ragged = {name: f"{name}.offsets" for name, column in store.schema.items() if column.ragged}
    expected = {*store.schema, *ragged.values()}
    if names != expected:
        raise DataError(f"{path}: it holds {', '.join(sorted(names))}, the store takes {', '.join(sorted(expected))}")
    slices = {name: file.get_slice(name) for name in store.schema}
    offsets = {name: _offsets(path, file, name, slices[name].get_shape()[0]) for name in ragged}
    lengths = set()
    for name, column in store.schema.items():
        _check_slice(path, name, slices[name], column)
        lengths.add(len(offsets[name]) - 1 if column.ragged else slices[name].get_shape()[0])
    if len(lengths) != 1:
        raise DataError(f"{path}: its columns have {sorted(lengths)} steps, not one number")
    with store.begin(key, resume_at=0) as writer:
        for step in range(lengths.pop()):
            record = {}
            for name, part in slices.items():
                rows = offsets.get(name)
                record[name] = part[step] if rows is None else part[rows[step] : rows[step + 1]]
            writer.append(**record)


def _offsets(path: Path, file: Any, name: str, rows: int) -> list[int]:
    tensor = file.get_tensor(f"{name}.offsets")
    offsets: list[int] = tensor.flatten().tolist()
    falling = any(first > second for first, second in pairwise(offsets))
    if (
        tensor.dtype != torch.int64
        or tensor.ndim != 1
        or not offsets
        or offsets[0] != 0
        or offsets[-1] != rows
        or falling
    ):
        raise DataError(f"{path}: {name}.offsets must be int64, rise from 0 and end at {rows}, the rows of {name}")
    return offsets


def _check_slice(path: Path, name: str, part: Any, column: Column) -> None:
    shape = tuple(part.get_shape())
    if part.get_dtype() != disk_name(column.dtype) or len(shape) == 0 or shape[1:] != column.shape:
        raise DataError(
            f"{path}: {name} is {part.get_dtype()} {list(shape)}, the store takes {disk_name(column.dtype)} "
            f"[{'rows' if column.ragged else 'T'}, {', '.join(map(str, column.shape))}]"
        )
