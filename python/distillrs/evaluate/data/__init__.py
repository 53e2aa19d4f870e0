"""Data sets for evaluation: by name, from array files, from folders of images.

``load("digits")`` needs scikit-learn and no file; "mnist", "fashion" and "cifar10" are looked up in the folder that the
environment variable ``DISTILLRS_DATA`` names, and :func:`prepare` makes those files from the usual downloads. Sets of
graphs ("mutag") come by :func:`load_graphs`.
"""

from __future__ import annotations

import os

from distillrs.evaluate.data.bundle import DataBundle, Duplicates, make_bundle
from distillrs.evaluate.data.downloads import prepare
from distillrs.evaluate.data.graphs import GRAPH_NAMES, GraphBundle, load_graphs
from distillrs.evaluate.data.rows import row_hashes
from distillrs.evaluate.data.sources import FOLDER_VARIABLE, NAMES, read_source

__all__ = [
    "FOLDER_VARIABLE",
    "GRAPH_NAMES",
    "NAMES",
    "DataBundle",
    "GraphBundle",
    "load",
    "load_graphs",
    "make_bundle",
    "prepare",
    "row_hashes",
]


def load(
    name: str | os.PathLike[str],
    *,
    limit: int | None = None,
    duplicates: Duplicates = "refuse",
    size: tuple[int, int] | None = None,
    validation_share: float = 0.1,
    seed: int = 0,
) -> DataBundle:
    """Loads a data set with training, validation and test parts.

    Args:
        name: "digits" (8 x 8, a fixed fifth of each class is the test set), "mnist", "fashion", "cifar10"; or the path
            of an ``.npz`` or ``.safetensors`` file with ``x_train, y_train[, x_val, y_val], x_test, y_test`` (and, or
            not, ``classes``: an array of names, in safetensors JSON metadata of that name); or of a folder of images
            with one sub-folder per class under ``train/`` and ``test/``.
        limit: Takes at most so many training rows, stratified by class, before validation rows are taken from them.
        duplicates: "refuse" a data set whose training or validation rows also stand in the test set (by hash), or
            "drop" those rows from training and validation.
        size: (height, width) to which the images of a folder are resized.
        validation_share: Share of the training rows that validates where the data set brings no validation part;
            stratified by class.
        seed: Of the draws for ``limit`` and validation. The test set never depends on it.

    Returns:
        The bundle: float32 examples (8-bit values divided by 255), int64 labels.

    Raises:
        DataError: Missing or unfit data; the message has the remedy.
        ArgumentError: An argument that is not allowed.
    """
    source = read_source(name, size)
    return make_bundle(
        source.name,
        source.arrays,
        classes=source.classes,
        limit=limit,
        duplicates=duplicates,
        validation_share=validation_share,
        seed=seed,
    )
