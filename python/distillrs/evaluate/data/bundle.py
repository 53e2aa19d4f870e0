"""One data set with its three parts, checked once and then trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillrs.errors import DataError, argument_error
from distillrs.evaluate.data.rows import (
    check_examples,
    check_labels,
    class_counts,
    fingerprint,
    pick_per_class,
    rows_among,
    shares,
)

if TYPE_CHECKING:
    from distillrs.evaluate.validation import Validation

Duplicates = Literal["refuse", "drop"]
Array = NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class DataBundle:
    """Training, validation and test examples of one data set.

    Attributes:
        name: Of the data set.
        x_train: Raw examples, float32 [N, ...]; pixels lie in [0, 1], images are [N, C, H, W].
        y_train: int64 [N].
        x_val: float32 [V, ...].
        y_val: int64 [V].
        x_test: float32 [M, ...].
        y_test: int64 [M].
        classes: Name of each class.
        fingerprint: SHA-256 of everything above but the name.
        value_bytes: Bytes that one raw number takes in the original: 1 for pixels of 8 bits, else 4.
        dropped: Rows of the original training and validation parts that were left out because the test set has them.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]
    fingerprint: str
    value_bytes: int = 4
    dropped: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.x_train.shape[1:])

    @property
    def validation(self) -> Validation:
        """The validation part, as the type that choices take; checked against the test set."""
        from distillrs.evaluate.validation import Validation

        return Validation(self.x_val, self.y_val, test=self.x_test)


def make_bundle(
    name: str,
    arrays: Mapping[str, Array],
    *,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    duplicates: Duplicates = "refuse",
    validation_share: float = 0.1,
    seed: int = 0,
) -> DataBundle:
    """Checks arrays and makes a bundle of them.

    Args:
        name: Of the data set; it opens every error message.
        arrays: ``x_train, y_train, x_test, y_test`` and, or not, ``x_val, y_val``. Examples [N, ...] are uint8 (pixels
            or features from 0 to 255, divided by 255) or floating (taken as they are). Images of 8 bits may be
            [N, H, W], [N, C, H, W] or [N, H, W, C]. Labels [N] are integers from 0 to C - 1.
        classes: Their names; by default their numbers.
        limit: Takes at most so many training rows, stratified, before validation rows are taken from them.
        duplicates: What happens to training and validation rows that also stand in the test set.
        validation_share: Share of the training rows that validates where the arrays bring no validation part.
        seed: Of the draws for ``limit`` and validation.

    Returns:
        The bundle.

    Raises:
        DataError: Arrays that are missing or unfit; the message says which and how to mend it.
        ArgumentError: An argument that is not allowed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise argument_error("limit", limit, "None or a positive integer")
    if duplicates not in ("refuse", "drop"):
        raise argument_error("duplicates", duplicates, "'refuse' or 'drop'")
    if not 0 < validation_share < 1:
        raise argument_error("validation_share", validation_share, "a number above 0 and below 1")
    try:
        return _make(name, arrays, classes, limit, duplicates, validation_share, seed)
    except (DataError, ValueError) as failure:
        raise DataError(f"data set {name!r}: {failure}") from failure


def _make(
    name: str,
    arrays: Mapping[str, Array],
    classes: Sequence[str] | None,
    limit: int | None,
    duplicates: Duplicates,
    validation_share: float,
    seed: int,
) -> DataBundle:
    parts = ("train", "val", "test") if "x_val" in arrays or "y_val" in arrays else ("train", "test")
    for part in parts:
        for letter in "xy":
            if f"{letter}_{part}" not in arrays:
                raise DataError(f"there is no {letter}_{part}; it has {', '.join(sorted(arrays)) or 'nothing'}")
    x = {part: _examples(f"x_{part}", arrays[f"x_{part}"]) for part in parts}
    y = {part: _labels(f"y_{part}", arrays[f"y_{part}"]) for part in parts}
    value_bytes = 1 if arrays["x_train"].dtype == np.uint8 else 4
    for part in parts:
        if arrays[f"x_{part}"].dtype.kind != arrays["x_train"].dtype.kind:
            raise argument_error(f"x_{part}", arrays[f"x_{part}"].dtype.name, "the kind of numbers that x_train has")
        if x[part].shape[1:] != x["train"].shape[1:]:
            raise argument_error(f"x_{part}", tuple(x[part].shape[1:]), f"examples {tuple(x['train'].shape[1:])}")
        if len(x[part]) == 0:
            raise argument_error(f"x_{part}", "no example", "at least one")
        check_examples(f"x_{part}", x[part])
        check_labels(f"y_{part}", y[part], len(x[part]))
    names = _class_names(y["train"], classes)
    check_labels("y_train", y["train"], len(x["train"]), len(names))
    _check_every_class(y["train"], names)
    for part in parts:
        check_labels(f"y_{part}", y[part], len(x[part]), len(names))

    dropped = 0
    shared = {part: rows_among(x[part], x["test"]) for part in parts if part != "test"}
    if any(bool(rows.any()) for rows in shared.values()):
        if duplicates == "refuse":
            counts = " and ".join(f"{int(rows.sum())} of {len(rows)} rows of x_{part}" for part, rows in shared.items())
            raise DataError(f"{counts} also stand in x_test; remove them, or pass duplicates='drop' to leave them out")
        for part, rows in shared.items():
            x[part], y[part] = x[part][~rows], y[part][~rows]
            dropped += int(rows.sum())
    _check_every_class(y["train"], names)

    if limit is not None and limit < len(y["train"]):
        # One example trains and, where there is no validation part yet, another validates.
        least = 1 if "val" in x else 2
        if limit < least * len(names):
            raise argument_error("limit", limit, f"at least {least} examples for each of the {len(names)} classes")
        _keep(x, y, "train", shares(class_counts(y["train"], len(names)), limit, least=least), seed, "limit")
    if "val" not in x:
        _take_validation(x, y, len(names), validation_share, seed)
    stated = [(f"{letter}_{part}", which[part]) for part in ("train", "val", "test") for letter, which in
              (("x", x), ("y", y))]  # fmt: skip
    return DataBundle(
        name, x["train"], y["train"], x["val"], y["val"], x["test"], y["test"], names,
        fingerprint(stated, names), value_bytes, dropped,
    )  # fmt: skip


def _examples(name: str, array: Array) -> Tensor:
    if array.dtype == object:
        raise argument_error(name, "objects", "an array of numbers")
    if array.ndim < 2:
        raise argument_error(name, f"{array.dtype} {array.shape}", "examples [N, ...]")
    if array.dtype == np.uint8:
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
            array = np.moveaxis(array, 3, 1)
        return torch.from_numpy(np.ascontiguousarray(array)).float().div_(255)
    if array.dtype.kind != "f":
        raise argument_error(name, array.dtype.name, "uint8 from 0 to 255, or a floating type")
    # A copy, so that nobody's array changes or keeps a file mapped.
    with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite, which is refused with its row.
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _labels(name: str, array: Array) -> Tensor:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise argument_error(name, f"{array.dtype} {array.shape}", "integer class numbers [N]")
    return torch.from_numpy(array.astype(np.int64))


def _class_names(y: Tensor, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        # A label of a billion must become neither a list of a billion names nor a table of as many counts.
        if int(y.max()) >= len(y):
            _refuse_missing_class(y, int(y.max()) + 1)
        return tuple(str(label) for label in range(int(y.max()) + 1))
    names = tuple(classes)
    if any(not isinstance(name, str) or not name for name in names) or len(set(names)) != len(names):
        raise argument_error("classes", names, "different names, one for each class")
    return names


def _check_every_class(y: Tensor, names: tuple[str, ...]) -> None:
    if len(names) < 2:
        raise argument_error("y_train", "one class", "class numbers 0 .. C - 1 with C >= 2")
    if len(names) > len(y) or 0 in class_counts(y, len(names)):
        _refuse_missing_class(y, len(names))


def _refuse_missing_class(y: Tensor, classes: int) -> NoReturn:
    present = set(y.tolist())
    missing = next(label for label in range(classes) if label not in present)
    raise argument_error("y_train", f"no example of class {missing}", f"every class number from 0 to {classes - 1}")


def _keep(
    x: dict[str, Tensor], y: dict[str, Tensor], part: str, wanted: Sequence[int], seed: int, purpose: str
) -> None:
    rows = pick_per_class(y[part], wanted, seed=seed, name=f"data {purpose}").sort().values
    x[part], y[part] = x[part][rows], y[part][rows]


def _take_validation(x: dict[str, Tensor], y: dict[str, Tensor], classes: int, share: float, seed: int) -> None:
    counts = class_counts(y["train"], classes)
    if min(counts) < 2:
        label = counts.index(min(counts))
        raise DataError(
            f"class {label} has 1 training example, so none can be set apart for validation; bring x_val and y_val, "
            "raise the limit, or add examples"
        )
    wanted = [min(part, count - 1) for part, count in zip(
        shares(counts, max(classes, round(share * sum(counts)))), counts, strict=True)]  # fmt: skip
    rows = pick_per_class(y["train"], wanted, seed=seed, name="data validation").sort().values
    rest = torch.ones(len(y["train"]), dtype=torch.bool)
    rest[rows] = False
    x["val"], y["val"] = x["train"][rows], y["train"][rows]
    x["train"], y["train"] = x["train"][rest], y["train"][rest]
