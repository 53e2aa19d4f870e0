"""A condensed set in other people's formats."""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from distillrs.checks import check_instance, check_path
from distillrs.condense.file import CondensedSet
from distillrs.errors import DistillrsError, argument_error
from distillrs.files import write_whole

_SPLIT = "train"
_METADATA = "metadata.jsonl"
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class ImageExport:
    """What writing a set as pictures took away.

    Attributes:
        files: How many pictures were written.
        clipped: Share of the values that lay outside 0 to 1 and were cut off.
        largest_error: Largest distance between a value and what its picture holds.
    """

    files: int
    clipped: float
    largest_error: float


def export_image_folder(data: CondensedSet, path: str | os.PathLike[str]) -> ImageExport:
    """Writes a set as PNG files, one folder for each class: ``path/train/CLASS/00000.png``.

    Other tools read it as it is (``torchvision.datasets.ImageFolder``, ``load_dataset("imagefolder", data_dir=path)``).
    A picture holds 8 bits from 0 to 1, and distilled values leave that range, so this loses what the safetensors file
    keeps: the return value says how much. ``metadata.jsonl`` beside the pictures has each one's class and, for soft
    labels, its probabilities; the learning rate and the training settings are in ``path/training.json``. Labels that
    belong to views stay behind: of such a set the pictures have their classes alone.

    Args:
        data: Of images with 1 or 3 channels.
        path: A folder that does not exist or is empty.

    Raises:
        ArgumentError: The examples are no images, or the folder is not empty.
        DistillrsError: Pillow is not installed.
    """
    check_instance("data", data, CondensedSet, "a CondensedSet")
    check_path("path", path)
    image = _imported("PIL.Image", "pillow")
    raw = data.raw().detach().float().cpu()
    if raw.ndim != 4 or raw.shape[1] not in (1, 3):
        raise argument_error("data", f"examples of shape {tuple(raw.shape[1:])}", "images [C, H, W] of 1 or 3 channels")
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise argument_error("path", str(folder), "a folder that does not exist or is empty")
    target = data.target().detach().cpu()
    soft = target.is_floating_point()
    labels = (target.argmax(1) if soft else target).tolist()
    names = _folder_names(data)
    pixels = (raw.clamp(0, 1) * 255).round().to(dtype=raw.dtype)
    rows = []
    for number, label in enumerate(labels):
        file = Path(names[label]) / f"{number:05d}.png"
        place = folder / _SPLIT / file
        place.parent.mkdir(parents=True, exist_ok=True)
        picture = pixels[number].permute(1, 2, 0).numpy().astype(np.uint8)
        image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(place)
        row: dict[str, Any] = {"file_name": file.as_posix(), "label": label}
        rows.append(row | ({"probabilities": target[number].tolist()} if soft else {}))
    write_whole(folder / _SPLIT / _METADATA, "".join(json.dumps(row) + "\n" for row in rows).encode())
    settings = {
        "inner_lr": data.inner_lr,
        "classes": names,
        "training": None if data.training is None else data.training.to_dict(),
    }
    write_whole(folder / "training.json", (json.dumps(settings, indent=2) + "\n").encode())
    clipped = float(((raw < 0) | (raw > 1)).double().mean())
    return ImageExport(len(labels), clipped, float((pixels / 255 - raw).abs().max()))


def to_hugging_face(data: CondensedSet) -> Any:
    """The set as a ``datasets.Dataset``, its values as they are.

    Columns are "values" (what the network sees, float32), "label" (a class with its name) and, for soft labels,
    "probabilities". Labels that belong to views stay behind.

    Args:
        data: The set.

    Raises:
        DistillrsError: The package ``datasets`` is not installed.
    """
    check_instance("data", data, CondensedSet, "a CondensedSet")
    datasets = _imported("datasets", "datasets")
    values = data.images.detach().float().cpu().numpy()
    target = data.target().detach().cpu()
    soft = target.is_floating_point()
    labels = target.argmax(1) if soft else target
    names = data.classes or [str(label) for label in range(data.class_count)]
    arrays = {3: "Array2D", 4: "Array3D", 5: "Array4D", 6: "Array5D"}
    floats = datasets.Value("float32")
    if values.ndim in arrays:
        kind = getattr(datasets, arrays[values.ndim])(shape=tuple(values.shape[1:]), dtype="float32")
    else:
        values, kind = values.reshape(len(values), -1), datasets.Sequence(floats)
    columns: dict[str, Any] = {"values": list(values), "label": labels.tolist()}
    features = {"values": kind, "label": datasets.ClassLabel(names=list(names))}
    if soft:
        columns["probabilities"] = target.float().tolist()
        features["probabilities"] = datasets.Sequence(floats)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _folder_names(data: CondensedSet) -> list[str]:
    width = len(str(data.class_count - 1))
    names = data.classes or [f"{label:0{width}d}" for label in range(data.class_count)]
    # Some file systems take names that differ in their case alone for the same.
    if len({name.casefold() for name in names if _is_folder_name(name)}) == data.class_count:
        return list(names)
    return [f"{label:0{width}d}" for label in range(data.class_count)]


def _is_folder_name(name: str) -> bool:
    """Whether every file system takes a class's name for a folder's: a file from a stranger may have any."""
    if not name or name[0] == "." or name[-1] in ". " or set(name) & set('/\\:*?"<>|') or not name.isprintable():
        return False
    # Printable text has no lone surrogates, so it can be encoded.
    return len(name.encode()) <= _LONGEST_NAME and name.casefold() != _METADATA


def _imported(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as failure:
        raise DistillrsError(f"this export needs the package {package!r}: pip install {package}") from failure
