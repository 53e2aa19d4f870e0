"""Signatures of sets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._points import Integers, integers, whole


@dataclass(frozen=True, slots=True, eq=False)
class MinHash:
    """Short signatures of ``n`` sets.

    Attributes:
        signatures: int64 ``[n, signatures]``: the least of each set's elements in each random order (the bits of an
            unsigned number: compare for equality only).
    """

    signatures: Tensor

    def __len__(self) -> int:
        return len(self.signatures)

    def jaccard(self, left: Integers, right: Integers) -> Tensor:
        """Estimates the Jaccard index, common elements over all elements, of pairs of sets.

        Unbiased, with a standard deviation of ``sqrt(J (1 - J) / signatures)`` (Broder 1997). Two empty sets have 1.

        Args:
            left: Integers ``[m]``: numbers of sets.
            right: Integers ``[m]``: the sets that they are compared with.

        Returns:
            float64 ``[m]``, from 0 to 1.

        Raises:
            ArgumentError: For numbers that no set has, or two of different lengths.
        """
        own = [self._places(name, rows) for name, rows in (("left", left), ("right", right))]
        if own[0].shape != own[1].shape:
            raise argument_error("right", f"{len(own[1])} sets", f"as many as left has, {len(own[0])}")
        left, right = own
        return (self.signatures[left] == self.signatures[right]).double().mean(-1)

    def candidates(self, bands: int, *, threshold: float = 0.0, most: int = 2**24) -> Tensor:
        """Pairs of sets that are probably similar.

        Signatures are cut into bands of equal width; a pair is a candidate if it agrees in the whole of some band. With
        ``b`` bands of ``r`` values that happens to sets of Jaccard index ``J`` with probability ``1 - (1 - J**r)**b``.

        Args:
            bands: Number of bands, a divisor of the number of signatures. More bands find more pairs.
            threshold: Least estimated Jaccard index of a pair, from 0 to 1.
            most: Most candidates before the threshold; equal sets alone can make as many as there are pairs.

        Returns:
            int64 ``[m, 2]``: pairs in rising order, the lower set first, each once.

        Raises:
            ArgumentError: For bands that do not divide the signatures, a threshold out of range, or more than ``most``
                candidates.
        """
        count = self.signatures.shape[1]
        bands = whole("bands", bands, 1, count)
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise argument_error("threshold", threshold, "a number from 0 to 1")
        values = np.ascontiguousarray(self.signatures.cpu().numpy()).view(np.uint64)
        found = _core.candidate_pairs(values.data, count, bands, whole("most", most, 0, 2**40))
        pairs = torch.tensor(found, dtype=torch.int64, device=self.signatures.device).reshape(-1, 2)
        return pairs[self.jaccard(pairs[:, 0], pairs[:, 1]) >= threshold]

    def _places(self, name: str, rows: Integers) -> Tensor:
        allowed = f"integers [m] from 0 to {len(self)} - 1"
        places = integers(name, rows, (None,), allowed)
        if places.size and not 0 <= places.min() <= places.max() < len(self):
            raise argument_error(name, int(places[(places < 0) | (places >= len(self))][0]), allowed)
        return torch.from_numpy(places).to(self.signatures.device)


def elements_of(sets: object) -> Iterator[tuple[int, Iterable[object]]]:
    """Each set with its place.

    Raises:
        ArgumentError: For what is no sequence of sets.
    """
    if not _is_iterable(sets):
        raise argument_error("sets", sets if isinstance(sets, str | bytes) else type(sets).__name__, "a list of sets")
    for place, members in enumerate(sets):
        if not _is_iterable(members):
            raise argument_error("sets", f"a {type(members).__name__} at {place}", "sets of numbers, texts or bytes")
        yield place, members


def _is_iterable(value: object) -> TypeGuard[Iterable[object]]:
    """Whether it has elements; a text is not read letter by letter, and a tensor without axes has none."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def min_hash(sets: Sequence[Iterable[int | str | bytes]], signatures: int = 128, *, seed: int = 0) -> MinHash:
    """Makes signatures of sets whose agreement estimates how much the sets have in common (Broder 1997).

    Near-duplicate texts, for example: make each text the set of its words or of its runs of five characters, and look
    at :meth:`MinHash.candidates`.

    Args:
        sets: ``n`` sets of whole numbers from -2^63 to 2^63 - 1, texts or bytes; repeated elements count once. Texts
            and bytes are known by 64 bits of a hash of their (UTF-8) bytes.
        signatures: Values of each signature.
        seed: Seed of the random orders; signatures of different seeds have nothing in common.

    Returns:
        The signatures, on the CPU.

    Raises:
        ArgumentError: For elements of another kind (the message has the set's place), or a number out of range.
    """
    signatures = whole("signatures", signatures, 1, 2**16)
    seed = whole("seed", seed, 0, 2**64 - 1)
    values: list[int] = []
    offsets = [0]
    for place, members in elements_of(sets):
        values.extend(_number(element, place) for element in members)
        offsets.append(len(values))
    flat, ends = np.array(values, dtype=np.int64), np.array(offsets, dtype=np.int64)
    found = np.empty((len(ends) - 1, signatures), np.uint64)
    _core.min_hash(flat.data, ends.data, signatures, seed, found.data)
    return MinHash(torch.from_numpy(found.view(np.int64)))


def _number(element: object, place: int) -> int:
    if isinstance(element, str):
        element = element.encode("utf-8", "surrogatepass")
    if isinstance(element, bytes):
        return int.from_bytes(hashlib.blake2b(element, digest_size=8).digest(), "little", signed=True)
    if isinstance(element, bool) or not isinstance(element, int | np.integer) or not -(2**63) <= element < 2**63:
        raise argument_error("sets", f"{element!r} in the set at {place}", "numbers of 64 bits, texts or bytes")
    return int(element)
