"""Rows of a data set: their hashes, their checks, and choices among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from distillrs import random
from distillrs.errors import DataError, argument_error
from distillrs.select import nearest as nearest_points
from distillrs.step import Step


def row_hashes(x: Tensor) -> list[bytes]:
    """A 128-bit hash of each example's numbers in float32.

    Args:
        x: Examples [N, ...], floating. Minus zero counts as zero.

    Returns:
        N hashes; equal examples, and for all practical purposes only those, have equal ones.
    """
    rows = (x.detach().to("cpu", torch.float32) + 0.0).flatten(1).contiguous().numpy()
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def rows_among(x: Tensor, others: Tensor) -> Tensor:
    """Which examples also stand in another set, by hash.

    Args:
        x: Examples [N, ...].
        others: Examples [M, ...].

    Returns:
        bool [N].
    """
    if len(x) == 0 or len(others) == 0 or x.shape[1:] != others.shape[1:]:
        return torch.zeros(len(x), dtype=torch.bool)
    known = set(row_hashes(others))
    return torch.tensor([row in known for row in row_hashes(x)], dtype=torch.bool)


def copies_among(x: Tensor, others: Tensor, *, tolerance: float = 1e-4) -> Tensor:
    """Which examples stand in another set but for rounding, as a transform leaves it (ZCA rounds by the batch).

    Args:
        x: Examples [N, ...].
        others: Examples [M, ...].
        tolerance: Largest difference of any number that still makes a copy, relative to the largest of the example.

    Returns:
        bool [N].
    """
    if len(x) == 0 or len(others) == 0 or x.shape[1:] != others.shape[1:]:
        return torch.zeros(len(x), dtype=torch.bool)
    flat, points = (each.detach().to("cpu", torch.float32).flatten(1) for each in (x, others))
    # A few random directions tell examples apart as well as all numbers do, at a fraction of the work.
    directions = random.normal(flat.shape[1], 16, step=0, name="copies")
    nearest = points[nearest_points(flat @ directions, points @ directions, 1).ids[:, 0]]
    return (flat - nearest).abs().amax(1) <= tolerance * nearest.abs().amax(1)


def fingerprint(parts: Sequence[tuple[str, Tensor]], words: Sequence[str] = ()) -> str:
    """SHA-256 of named tensors and words, in the order given, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in parts:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for word in words:
        # The length keeps ("ab", "c") apart from ("a", "bc").
        digest.update(f"{len(word)} {word}\n".encode())
    return digest.hexdigest()


def class_counts(y: Tensor, classes: int) -> list[int]:
    """How many rows each class has.

    Args:
        y: int64 [N], below ``classes``.
        classes: Number of classes.
    """
    counts: list[int] = torch.bincount(y, minlength=classes).tolist()
    return counts


def shares(weights: Sequence[int], total: int, *, limits: Sequence[int] | None = None, least: int = 1) -> list[int]:
    """Splits a total over classes in proportion to weights, by largest remainder.

    Args:
        weights: One for each class, from 0; not all 0.
        total: To be split.
        limits: Most that each class can have; by default the weights themselves, which are then its rows.
        least: At least so many for every class, as far as its limit allows.

    Returns:
        One number per class. Their sum is ``total``, or the sum of the limits if that is smaller, or more if ``least``
        asks for more.
    """
    most = list(weights if limits is None else limits)
    everything = sum(weights)
    exact = [Fraction(weight * total, everything) for weight in weights]
    given = [min(limit, max(int(share), least)) for limit, share in zip(most, exact, strict=True)]
    order = sorted(range(len(most)), key=lambda one: (given[one] - exact[one], one))
    missing = min(total, sum(most)) - sum(given)
    while missing > 0:
        for one in order:
            if missing > 0 and given[one] < most[one]:
                given[one] += 1
                missing -= 1
    # What `least` took too much comes back from the largest classes.
    while missing < 0 and max(given) > least:
        given[given.index(max(given))] -= 1
        missing += 1
    return given


def pick_per_class(y: Tensor, wanted: Sequence[int], *, seed: int, name: str) -> Tensor:
    """Draws rows of each class at random, without repetition.

    Args:
        y: int64 [N].
        wanted: How many of each class.
        seed: Of the draw.
        name: Of the draw.

    Returns:
        int64 row numbers, class by class, in the order drawn.

    Raises:
        DataError: A class has fewer rows than wanted.
    """
    picked = []
    for label, count in enumerate(wanted):
        rows = (y == label).nonzero().flatten()
        if len(rows) < count:
            raise DataError(f"class {label}: {count} examples are wanted, {len(rows)} are there")
        picked.append(rows[random.choice(len(rows), count, step=Step(label, seed=seed), name=name)])
    return torch.cat(picked) if picked else torch.empty(0, dtype=torch.int64)


def check_examples(name: str, x: Tensor) -> None:
    """Refuses examples that are not floating [N, ...] or not finite; the message names array and row."""
    if not x.is_floating_point() or x.ndim < 2:
        raise argument_error(name, f"{x.dtype} {tuple(x.shape)}", "floating examples [N, ...]")
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise DataError(f"{name}: row {bad} holds a value that is not finite ({int((~finite).sum())} rows do)")


def check_labels(name: str, y: Tensor, rows: int, classes: int | None = None) -> None:
    """Refuses labels that are not int64 [rows] from 0 to below ``classes``; the message names the array."""
    if y.dtype != torch.int64 or y.ndim != 1:
        raise argument_error(name, f"{y.dtype} {tuple(y.shape)}", "int64 class numbers [N]")
    if len(y) != rows:
        raise argument_error(name, f"{len(y)} labels", f"one for each of the {rows} examples")
    if rows and int(y.min()) < 0:
        raise argument_error(name, int(y.min()), "class numbers from 0")
    if rows and classes is not None and int(y.max()) >= classes:
        raise argument_error(name, int(y.max()), f"class numbers below {classes}")
