"""Which row of a label cache belongs to which image and view."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distillrs import _core
from distillrs.errors import StoreCorrupt

IMAGE_BITS = 40
VIEWS = 1 << 23
SEEDS = 1 << 63

Integers = npt.NDArray[np.int64]

_RUN = r"\d{1,13}(?:-\d{1,13})?"
_KEY = re.compile(rf"view (\d{{1,7}}) seed (\d{{1,19}}) images ({_RUN}(?:,{_RUN})*)", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class LabelIndex:
    """Where each label lies.

    Attributes:
        codes: View and image of each label in one number, rising.
        rows: The row of each.
        starts: First row of each document, rising.
        counts: Labels of each document.
        seeds: Seed of each document.
        twice: Labels that two documents have: the row that counts, the other one, and the code.
    """

    codes: Integers
    rows: Integers
    starts: Integers
    counts: Integers
    seeds: Integers
    twice: tuple[Integers, Integers, Integers]

    def places(self, codes: Integers) -> Integers:
        """The row of each code, -1 where there is none."""
        place = np.searchsorted(self.codes, codes)
        found = place < len(self.codes)
        found[found] = self.codes[place[found]] == codes[found]
        rows = np.full_like(codes, -1)
        rows[found] = self.rows[place[found]]
        return rows

    def document(self, rows: Integers) -> Integers:
        """The document of each row, the one before it if there is none; -1 before the first."""
        return np.searchsorted(self.starts, rows, side="right").astype(np.int64) - 1


def read_index(rows: _core.TeacherRows, path: str) -> LabelIndex:
    """The index of the documents that are there.

    Args:
        rows: The documents.
        path: Of the cache, for messages.

    Raises:
        StoreCorrupt: A document's key says something else than its rows.
    """
    documents = []
    for key in rows.keys():  # noqa: SIM118  # a method of the core's, no mapping's
        place = rows.find(key)
        assert place is not None
        documents.append((*place, *_parsed(key, place[1], path)))
    # Writers count in order: of two labels for one view of an image the first is taken.
    documents.sort(key=lambda each: each[0])
    starts, counts, views, seeds = (np.array([each[part] for each in documents], np.int64) for part in range(4))
    ids = [each[4] for each in documents]
    codes = np.repeat(views, counts) << IMAGE_BITS | np.concatenate([*ids, np.empty(0, np.int64)])
    numbers = np.arange(len(codes)) + np.repeat(starts - _sums_before(counts), counts)
    order = np.argsort(codes, kind="stable")
    codes, numbers = codes[order], numbers[order]
    again = np.zeros(len(codes), np.bool_)
    again[1:] = codes[1:] == codes[:-1]
    kept = numbers[np.maximum.accumulate(np.where(again, 0, np.arange(len(codes))))]
    return LabelIndex(
        codes[~again], numbers[~again], starts, counts, seeds, (kept[again], numbers[again], codes[again])
    )


def document_key(view: int, seed: int, ids: Integers) -> str:
    """What a document holds, in words that are its key: runs of images as first-last.

    Args:
        view: The view of all.
        seed: The seed of all.
        ids: Images, rising, at least one.
    """
    breaks = (np.diff(ids) != 1).nonzero()[0] + 1
    firsts, lasts = ids[np.concatenate([[0], breaks])], ids[np.concatenate([breaks - 1, [len(ids) - 1]])]
    runs = (f"{first}-{last}" if last > first else f"{first}" for first, last in zip(firsts, lasts, strict=True))
    return f"view {view} seed {seed} images {','.join(runs)}"


def key_codes(key: str, count: int, path: str) -> Integers:
    """Codes of a document of so many labels; see :func:`read_index`."""
    view, _, ids = _parsed(key, count, path)
    return view << IMAGE_BITS | ids


def _parsed(key: str, count: int, path: str) -> tuple[int, int, Integers]:
    """View, seed and images; the words are a stranger's."""
    match = _KEY.fullmatch(key)
    if match is not None:
        view, seed = int(match[1]), int(match[2])
        runs = [run.partition("-") for run in match[3].split(",")]
        firsts = np.array([int(first) for first, _, _ in runs], np.int64)
        lasts = np.array([int(last or first) for first, _, last in runs], np.int64)
        sizes = lasts - firsts + 1
        rising = (sizes > 0).all() and (firsts[1:] > lasts[:-1]).all() and lasts[-1] < 1 << IMAGE_BITS
        # The sum is compared before anything of its size is made.
        if view < VIEWS and seed < SEEDS and rising and int(sizes.sum()) == count:
            return view, seed, np.arange(count) + np.repeat(firsts - _sums_before(sizes), sizes)
    raise StoreCorrupt(
        f"{path} has a document of {count} labels whose key says otherwise: {key[:200]!r}", path=path, offset=0
    )


def _sums_before(sizes: Integers) -> Integers:
    sums: Integers = sizes.cumsum() - sizes
    return sums
