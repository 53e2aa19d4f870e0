"""Makes the files that names stand for, out of the usual downloads.

Downloads are read as files from strangers: no pickle is executed, sizes are checked before anything is allocated.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillrs.errors import DataError, argument_error, unknown_name_error
from distillrs.evaluate.data.sources import FILES
from distillrs.files import whole_file

Bytes = NDArray[np.uint8]

_IDX = {
    "x_train": "train-images",
    "y_train": "train-labels",
    "x_test": "t10k-images",
    "y_test": "t10k-labels",
}
_CIFAR_TRAIN = tuple(f"data_batch_{batch}" for batch in range(1, 6))
_CIFAR_TEST = "test_batch"
_PIXELS = 3 * 32 * 32
# Far above every genuine file: Fashion-MNIST's largest part has 47 MB, a CIFAR-10 batch 31 MB.
_LARGEST = 1 << 28


def prepare(name: str, source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Makes ``mnist.npz``, ``fashion.npz`` or ``cifar10.npz``.

    Args:
        name: "mnist" or "fashion": from ``train-images-idx3-ubyte`` and its three companions, plain or ``.gz``;
            "cifar10": from ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, as folders or as the archives
            ``cifar-10-binary.tar.gz`` or ``cifar-10-python.tar.gz``.
        source: Folder with the downloads (or, for CIFAR-10, the unpacked folder itself).
        out: Folder to write into; it is made if it is not there. The file appears whole or not at all.

    Returns:
        The written file, with ``x_train, y_train, x_test, y_test`` in uint8.

    Raises:
        UnknownNameError: Another name.
        DataError: A download that is missing or damaged; the message names it.
    """
    makers: dict[str, Callable[[Path], dict[str, Bytes]]] = {"mnist": _idx, "fashion": _idx, "cifar10": _cifar}
    if name not in makers:
        raise unknown_name_error("data set to prepare", name, list(makers))
    folder = Path(source)
    if not folder.is_dir():
        raise argument_error("source", str(source), "a folder that holds the downloads")
    arrays = makers[name](folder)
    _check(name, arrays)
    target = Path(out) / FILES[name][0]
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, arrays)
    return target


def _write(target: Path, arrays: dict[str, Bytes]) -> None:
    with whole_file(target) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _check(name: str, arrays: dict[str, Bytes]) -> None:
    for part in ("train", "test"):
        rows, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if len(rows) != len(labels):
            raise DataError(f"{name}: {len(rows)} images and {len(labels)} labels in {part}")
        if len(labels) == 0 or set(np.unique(labels).tolist()) - set(range(10)):
            raise DataError(f"{name}: the labels in {part} are not classes 0 to 9")


def _idx(folder: Path) -> dict[str, Bytes]:
    arrays: dict[str, Bytes] = {}
    for name, stem in _IDX.items():
        axes = 3 if name.startswith("x") else 1
        spellings = [f"{stem}{dash}idx{axes}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
        path = next((folder / spelling for spelling in spellings if (folder / spelling).is_file()), None)
        if path is None:
            raise DataError(f"{folder}: there is no {spellings[0]} or {spellings[1]}")
        arrays[name] = _read_idx(path, axes)
    return arrays


def _read_idx(path: Path, axes: int) -> Bytes:
    content = _read_bounded(path)
    header = 4 + 4 * axes
    # Two zeros, 8 for unsigned bytes, the number of axes, then the sizes as big-endian integers.
    if len(content) < header or content[:4] != bytes((0, 0, 8, axes)):
        raise DataError(f"{path}: not an IDX file of bytes with {axes} axes")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if math.prod(shape) != len(content) - header:
        raise DataError(f"{path}: the header claims {math.prod(shape)} values, {len(content) - header} are there")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_bounded(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content: bytes = file.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as failure:
        raise DataError(f"{path}: cannot be read ({failure})") from failure
    if len(content) > _LARGEST:
        raise DataError(f"{path}: more than {_LARGEST} bytes, so not the file that its name says")
    return content


def _cifar(folder: Path) -> dict[str, Bytes]:
    for unpacked in (folder, folder / "cifar-10-batches-bin"):
        if (unpacked / f"{_CIFAR_TEST}.bin").is_file():
            return _cifar_parts(_folder_reader(unpacked, ".bin"), _parse_binary)
    for unpacked in (folder, folder / "cifar-10-batches-py"):
        if (unpacked / _CIFAR_TEST).is_file():
            return _cifar_parts(_folder_reader(unpacked, ""), _parse_pickle)
    for archive, inner, end, parse in (
        ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", _parse_binary),
        ("cifar-10-python.tar.gz", "cifar-10-batches-py", "", _parse_pickle),
    ):
        if (folder / archive).is_file():
            with _archive_reader(folder / archive, inner, end) as read:
                return _cifar_parts(read, parse)
    raise DataError(
        f"{folder}: there is no cifar-10-batches-bin or cifar-10-batches-py, "
        "and no cifar-10-binary.tar.gz or cifar-10-python.tar.gz"
    )


def _folder_reader(folder: Path, end: str) -> Callable[[str], tuple[str, bytes]]:
    def read(batch: str) -> tuple[str, bytes]:
        path = folder / f"{batch}{end}"
        if not path.is_file():
            raise DataError(f"{path}: missing")
        return str(path), _read_bounded(path)

    return read


@contextlib.contextmanager
def _archive_reader(path: Path, inner: str, end: str) -> Iterator[Callable[[str], tuple[str, bytes]]]:
    # Members are read in memory, never unpacked, so no name in the archive can reach the disk.
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = {member.name: member for member in archive if member.isfile()}

            def read(batch: str) -> tuple[str, bytes]:
                name = f"{inner}/{batch}{end}"
                member = members.get(name)
                if member is None:
                    raise DataError(f"{path}: there is no {name} in it")
                if member.size > _LARGEST:
                    raise DataError(f"{path}: {name} claims {member.size} bytes")
                file = archive.extractfile(member)
                return f"{path}: {name}", file.read() if file is not None else b""

            yield read
    except (tarfile.TarError, OSError, EOFError, zlib.error) as failure:
        raise DataError(f"{path}: cannot be read ({failure})") from failure


def _cifar_parts(
    read: Callable[[str], tuple[str, bytes]], parse: Callable[[str, bytes], tuple[Bytes, Bytes]]
) -> dict[str, Bytes]:
    train = [parse(*read(batch)) for batch in _CIFAR_TRAIN]
    test = parse(*read(_CIFAR_TEST))
    return {
        "x_train": np.concatenate([images for images, _ in train]).reshape(-1, 3, 32, 32),
        "y_train": np.concatenate([labels for _, labels in train]),
        "x_test": test[0].reshape(-1, 3, 32, 32),
        "y_test": test[1],
    }


def _parse_binary(name: str, content: bytes) -> tuple[Bytes, Bytes]:
    if len(content) == 0 or len(content) % (_PIXELS + 1):
        raise DataError(f"{name}: {len(content)} bytes are not a whole number of {_PIXELS + 1}-byte records")
    records = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + 1)
    return records[:, 1:], records[:, 0]


def _parse_pickle(name: str, content: bytes) -> tuple[Bytes, Bytes]:
    try:
        batch = _Plain(io.BytesIO(content), encoding="bytes").load()
    except DataError as failure:
        raise DataError(f"{name}: {failure}") from failure
    except Exception as failure:  # A hostile pickle can make the reader raise anything.
        raise DataError(f"{name}: not a batch of CIFAR-10 ({type(failure).__name__}: {failure})") from failure
    data = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    if not isinstance(data, _PickledArray) or not isinstance(labels, list):
        raise DataError(f"{name}: not a batch of CIFAR-10 (data and labels are missing)")
    if any(type(label) is not int or not 0 <= label < 10 for label in labels):
        raise DataError(f"{name}: labels that are not classes 0 to 9")
    images = data.images(name)
    if len(images) != len(labels):
        raise DataError(f"{name}: {len(images)} images and {len(labels)} labels")
    return images, np.array(labels, dtype=np.uint8)


class _PickledType:
    """Stands in for numpy's dtype: keeps its name, runs nothing."""

    def __init__(self, code: object = None, *rest: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _PickledArray:
    """Stands in for numpy's array: keeps the state that a pickle gives it, runs nothing."""

    def __init__(self, *arguments: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def images(self, name: str) -> Bytes:
        """The rows of 3072 bytes that the state describes."""
        state = self.state
        # numpy's state: version, shape, type, column order, bytes.
        if not isinstance(state, tuple) or len(state) != 5:
            raise DataError(f"{name}: data is not an array")
        _, shape, kind, by_column, content = state
        code = kind.code if isinstance(kind, _PickledType) else None
        if code not in (b"u1", "u1") or not isinstance(content, bytes) or by_column not in (0, False):
            raise DataError(f"{name}: data is not an array of bytes")
        if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != _PIXELS:
            raise DataError(f"{name}: data has shape {shape!r}, not [N, {_PIXELS}]")
        if type(shape[0]) is not int or shape[0] < 1 or shape[0] * _PIXELS != len(content):
            raise DataError(f"{name}: the array claims {shape[0]!r} rows, {len(content)} bytes are there")
        return np.frombuffer(content, np.uint8).reshape(shape)


def _encode(text: str, encoding: str) -> bytes:
    # Python 3 writes bytes as text for old protocols; only this one use of codecs is needed.
    if encoding != "latin1" or not isinstance(text, str):
        raise DataError("an encoding that no batch of CIFAR-10 uses")
    return text.encode("latin1")


class _Plain(pickle._Unpickler):
    """Reads the few types that a batch of CIFAR-10 has; every other name is refused.

    The reader written in Python keeps its memo in a dictionary; the one written in C can be made to allocate, and
    fill, tens of gigabytes by one forged memo index.
    """

    _ALLOWED: dict[tuple[str, str], Any] = {  # noqa: RUF012  # constant; pickle has no place for a class variable's type
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledType,
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name of numpy's."""
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise DataError(f"it asks for {module}.{name}, which no batch of CIFAR-10 needs; refused") from None

    def persistent_load(self, reference: object) -> Any:
        """Refuses references to things outside the file."""
        raise DataError("it refers to something outside the file; refused")
