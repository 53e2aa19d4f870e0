"""Where arrays come from: names, array files, folders of images."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillrs.errors import DataError, argument_error, unknown_name_error
from distillrs.evaluate.data.rows import row_hashes

Array = NDArray[np.generic]

FOLDER_VARIABLE = "DISTILLRS_DATA"
FILES: dict[str, tuple[str, ...]] = {
    "mnist": ("mnist.npz",),
    "fashion": ("fashion.npz",),
    "cifar10": ("cifar10.npz", "cifar10_jpeg.npz"),
}
"""The files that a name stands for; the first one found is read."""

NAMES = ("digits", *FILES)

CLASSES: dict[str, tuple[str, ...]] = {
    "digits": tuple("0123456789"),
    "mnist": tuple("0123456789"),
    "fashion": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}  # fmt: skip

ARRAYS = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
DIGITS_TEST_SHARE = 0.2
# A small file may claim to be an enormous picture; 8192 x 8192 is beyond every data set of this kind.
_LARGEST_IMAGE = 1 << 26


@dataclass(frozen=True, eq=False)
class Source:
    """Arrays as they were found.

    Attributes:
        name: Of the data set.
        arrays: Some of :data:`ARRAYS`.
        classes: Names of the classes, where they are known.
    """

    name: str
    arrays: dict[str, Array]
    classes: tuple[str, ...] | None = None


def read_source(name: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Source:
    """Reads a named data set, an array file or a folder of images.

    Args:
        name: One of :data:`NAMES`, or a path.
        size: (height, width) to which images of a folder are resized.

    Raises:
        DataError: Nothing is there, or it is not what it should be; the message has the remedy.
        UnknownNameError: Neither a known name nor a path that exists.
    """
    path = Path(name)
    if isinstance(name, str) and name in NAMES:
        found = _digits() if name == "digits" else _named(name)
    elif path.is_dir():
        return image_folder(path, size)
    elif path.is_file():
        found = _array_file(path)
    elif name == "mutag":
        raise DataError("data set 'mutag' has graphs: evaluate.data.load_graphs reads it")
    elif isinstance(name, str) and os.sep not in name and not path.suffix:
        raise unknown_name_error("data set", name, [*NAMES, "a path"])
    else:
        raise DataError(f"data set {str(name)!r}: there is no such file or folder")
    if size is not None:
        raise argument_error("size", size, "None: only folders of images are resized")
    return found


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as failure:
        raise DataError(
            "data set 'digits' comes with scikit-learn, which is not installed: pip install 'distillrs[demo]'"
        ) from failure
    import torch

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    # The split is fixed for ever and needs no generator: within each class, the lowest hashes are the test set.
    hashes = row_hashes(torch.from_numpy(x))
    test = np.zeros(len(x), dtype=bool)
    for label in range(10):
        rows = sorted(np.flatnonzero(labels == label), key=lambda row: hashes[row])
        test[rows[: round(DIGITS_TEST_SHARE * len(rows))]] = True
    y = labels.astype(np.int64)
    return Source(
        "digits", {"x_train": x[~test], "y_train": y[~test], "x_test": x[test], "y_test": y[test]}, CLASSES["digits"]
    )


def _named(name: str) -> Source:
    remedy = f"make it with `distillrs data prepare {name} --source FOLDER_OF_DOWNLOADS --out FOLDER`"
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise DataError(f"data set {name!r}: set {FOLDER_VARIABLE} to the folder that holds {FILES[name][0]}; {remedy}")
    for file in FILES[name]:
        path = Path(folder) / file
        if path.is_file():
            source = _array_file(path)
            return Source(name, source.arrays, CLASSES[name])
    raise DataError(f"data set {name!r}: {FOLDER_VARIABLE} is {folder!r}, which has no {FILES[name][0]}; {remedy}")


def _array_file(path: Path) -> Source:
    if path.suffix == ".npz":
        arrays, classes = _read_npz(path)
    elif path.suffix == ".safetensors":
        arrays, classes = _read_safetensors(path)
    else:
        raise DataError(f"{path}: a data set is a .npz or .safetensors file, or a folder of images")
    if "jpeg_train" in arrays:
        arrays = _decoded(path, arrays)
    return Source(path.stem, arrays, classes)


def _read_npz(path: Path) -> tuple[dict[str, Array], tuple[str, ...] | None]:
    jpeg = tuple(f"{kind}_{part}" for kind in ("jpeg", "offsets") for part in ("train", "test"))
    arrays: dict[str, Array] = {}
    classes: tuple[str, ...] | None = None
    name = "it"
    # numpy takes whatever the content says, a lone array or a pickle, whatever the name of the file says.
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a readable .npz file (not an archive)")
    try:
        # Opened here, because numpy leaves the file open when it fails.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for name in file.files:
                if name in ARRAYS or name in jpeg:
                    arrays[name] = file[name]
                elif name == "classes":
                    classes = tuple(str(word) for word in np.atleast_1d(file[name]))
    except Exception as failure:  # A damaged archive makes zipfile, zlib and numpy raise many kinds of error.
        if "allow_pickle" in str(failure):
            raise DataError(
                f"{path}: {name} holds Python objects, which are never loaded; save plain arrays of numbers"
            ) from failure
        raise DataError(f"{path}: not a readable .npz file ({failure})") from failure
    return arrays, classes


def _read_safetensors(path: Path) -> tuple[dict[str, Array], tuple[str, ...] | None]:
    from safetensors import SafetensorError, safe_open

    classes: tuple[str, ...] | None = None
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            present = set(file.keys())
            arrays = {name: _as_array(file.get_tensor(name)) for name in ARRAYS if name in present}
        if "classes" in metadata:
            words = json.loads(metadata["classes"])
            classes = tuple(words) if isinstance(words, list) else (str(words),)
    except (SafetensorError, OSError, json.JSONDecodeError) as failure:
        raise DataError(f"{path}: not a readable .safetensors file ({failure})") from failure
    return arrays, classes


def _as_array(tensor: Any) -> Array:
    import torch

    # numpy has no bfloat16; float32 holds every value of the smaller floating types.
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        tensor = tensor.float()
    array: Array = tensor.numpy()
    return array


def _decoded(path: Path, arrays: dict[str, Array]) -> dict[str, Array]:
    result: dict[str, Array] = {}
    for part in ("train", "test"):
        names = (f"jpeg_{part}", f"offsets_{part}", f"y_{part}")
        for name in names:
            if name not in arrays:
                raise DataError(f"{path}: there is no {name}")
        data, offsets, labels = (arrays[name] for name in names)
        ends = offsets.astype(np.int64) if offsets.dtype.kind in "iu" else np.zeros(0, np.int64)
        if (
            data.dtype != np.uint8
            or data.ndim != 1
            or ends.shape != (len(labels) + 1,)
            or ends[0] != 0
            or ends[-1] != len(data)
            or bool((np.diff(ends) <= 0).any())
        ):
            raise DataError(f"{path}: offsets_{part} do not rise from 0 to the length of jpeg_{part}, one per label")
        packed = data.tobytes()
        images = [
            _image(io.BytesIO(packed[ends[one] : ends[one + 1]]), f"{path}: image {one} of {part}", "RGB", None)
            for one in range(len(labels))
        ]
        _same_shape(images, lambda one, part=part: f"{path}: image {one} of {part}")
        result[f"x_{part}"] = np.stack(images)
        result[f"y_{part}"] = labels
    return result


def image_folder(folder: Path, size: tuple[int, int] | None = None) -> Source:
    """Reads ``train/<class>/<image>`` and ``test/<class>/<image>``, and ``val/`` if it is there.

    Args:
        folder: Root. Classes are the sub-folders of ``train``, in the order of their names. Grey images stay grey if
            all are; hidden files are passed over.
        size: (height, width) to which every image is resized; without it all must have one size.

    Returns:
        Examples uint8 [N, H, W, C] or [N, H, W].

    Raises:
        DataError: A missing part, an odd file (it is named), or no Pillow.
    """
    if size is not None and (len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size)):
        raise argument_error("size", size, "None or (height, width) in pixels")
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder}: there is no {part}/ with one sub-folder per class")
    classes = tuple(entry.name for entry in _visible(folder / "train"))
    files: dict[str, list[tuple[Path, int]]] = {}
    for part in ("train", "val", "test"):
        if not (folder / part).is_dir():
            continue
        files[part] = []
        for entry in _visible(folder / part):
            if not entry.is_dir():
                raise DataError(f"{entry}: {part}/ holds one sub-folder per class, and nothing else")
            if entry.name not in classes:
                raise DataError(f"{entry}: train/ has no class of this name")
            for file in _visible(entry):
                if file.suffix.lower() not in IMAGE_SUFFIXES:
                    raise DataError(f"{file}: not an image by its name ({', '.join(IMAGE_SUFFIXES)})")
                files[part].append((file, classes.index(entry.name)))
    everything = [file for rows in files.values() for file, _ in rows]
    if not everything:
        raise DataError(f"{folder}: there is no image")
    mode = "L" if all(_is_grey(file) for file in everything) else "RGB"
    images = [_image(file, str(file), mode, size) for file in everything]
    _same_shape(images, lambda one: str(everything[one]))
    arrays: dict[str, Array] = {}
    start = 0
    for part, rows in files.items():
        if not rows:
            raise DataError(f"{folder / part}: there is no image")
        arrays[f"x_{part}"] = np.stack(images[start : start + len(rows)])
        arrays[f"y_{part}"] = np.array([label for _, label in rows], dtype=np.int64)
        start += len(rows)
    return Source(folder.resolve().name, arrays, classes)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as failure:
        raise DataError(
            "reading images needs Pillow, which is not installed: pip install 'distillrs[demo]'"
        ) from failure
    return Image


def _is_grey(file: Path) -> bool:
    library = _pillow()
    try:
        with library.open(file) as image:
            grey: bool = image.mode in ("1", "L")
    except Exception as failure:  # Pillow's readers raise many kinds of error on a broken file.
        raise DataError(f"{file}: not a readable image ({failure})") from failure
    return grey


def _image(file: Path | io.BytesIO, name: str, mode: str, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    library = _pillow()
    try:
        with library.open(file) as opened:
            _refuse_enormous(opened.width, opened.height)
            _refuse_deep(opened.mode)
            image = opened.convert(mode)
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), library.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.uint8)
    except Exception as failure:  # Pillow's readers raise many kinds of error on a broken file.
        raise DataError(f"{name}: not a readable image ({failure})") from failure


def _refuse_enormous(width: int, height: int) -> None:
    if width * height > _LARGEST_IMAGE:
        raise DataError(f"it claims {width} x {height} pixels")


def _refuse_deep(mode: str) -> None:
    # Pillow would clip these to 255 without a word.
    if mode.startswith(("I", "F")):
        raise DataError(f"its pixels have mode {mode!r}, allowed are 8 bits per channel; convert it first")


def _same_shape(images: list[NDArray[np.uint8]], name: Any) -> None:
    first = images[0].shape[:2]
    for one, image in enumerate(images):
        if image.shape[:2] != first:
            raise DataError(
                f"{name(one)}: {image.shape[0]} x {image.shape[1]} pixels, but {name(0)} has {first[0]} x {first[1]}; "
                "give all one size, or pass size=(height, width)"
            )
