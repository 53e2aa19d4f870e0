"""Soft labels of augmented views on disk, keyed by image and view."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillrs import _core
from distillrs.augment import Augmentation
from distillrs.checks import check_choice, check_flag, check_number, check_path, device_of
from distillrs.errors import (
    ArgumentError,
    KeyConflict,
    KeyNotFound,
    SchemaMismatch,
    StoreMissing,
    argument_error,
)
from distillrs.ops import TopK
from distillrs.step import Step
from distillrs.trajectory.buffers import describe, memory
from distillrs.trajectory.documents import Documents, check_fingerprint, checked_temperatures
from distillrs.trajectory.fingerprint import Fingerprint, _Unchecked
from distillrs.trajectory.label_index import (
    IMAGE_BITS,
    SEEDS,
    VIEWS,
    Integers,
    LabelIndex,
    document_key,
    key_codes,
    read_index,
)
from distillrs.trajectory.packed_rows import filled, row_numbers, token_count
from distillrs.trajectory.store import Store


class LabelCache(Documents):
    """A teacher's answers for views of images, in a store: what a condensed set's labels are.

    A view is an augmented copy of an image. Its crop is not kept: a view's draw is a pure function of (seed, view,
    image), so the seed that stands beside the labels brings it back, in whatever batches, order and processes it is
    asked for (:meth:`augment`). That is the reason why labels here are found by image and view and never by their
    place in a run: a changed batch size or worker order cannot shift them.

    A label is every class in 16 or 8 bits, or the most likely ``k`` with the others' mass;
    ``docs/label-cache-format.md`` has the bytes and the error of each. Any number of processes may write one cache;
    readers never write; what was flushed survives a crash.

    Made by :meth:`create` or :meth:`open`. As a context manager, a cache that may write seals what it wrote at the end
    of the block.
    """

    _METADATA: ClassVar[str] = "label_cache"
    _WHAT: ClassVar[str] = "label cache"
    _FORMAT: ClassVar[int] = 0
    _SETTINGS: ClassVar[tuple[str, ...]] = ("dense", "augmentation")

    def __init__(self, store: Store, form: dict[str, Any]) -> None:
        super().__init__(store, form)
        self._known: LabelIndex | None = None
        # Images by view that were appended since the index was made.
        self._fresh: dict[int, list[Integers]] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        classes: int,
        fingerprint: Fingerprint | _Unchecked,
        *,
        k: int | None = None,
        code: Literal["u8", "f16"] = "f16",
        temperatures: Sequence[float] = (1.0,),
        augmentation: Augmentation | str | None = None,
        exist_ok: bool = False,
    ) -> LabelCache:
        """Makes a cache, or joins one that is there; what dead writers left is completed.

        Args:
            path: The directory to make.
            classes: Number of classes, up to 2^16; up to 2^24 with ``k``.
            fingerprint: What the answers depend on, or ``UNCHECKED``.
            k: Keep the most likely classes only, so many; ``None`` keeps every class.
            code: ``"f16"``: sixteen bits a class; ``"u8"``: eight with a scale for each label.
            temperatures: With ``k``, those that will be used beside 1; every class at hand serves any.
            augmentation: How views are made: one of ours, which :meth:`augment` replays; words that say how; or
                ``None`` for images as they are.
            exist_ok: Join a cache of the same settings, augmentation and fingerprint.

        Raises:
            StoreExists: There is one, and ``exist_ok`` is false.
            SchemaMismatch: The cache there has other settings, another augmentation or another fingerprint.
            ArgumentError: An argument is not allowed.
        """
        check_fingerprint(fingerprint)
        check_flag("exist_ok", exist_ok)
        kept = checked_temperatures(temperatures)
        if k is None and len(kept) > 1:
            raise argument_error("temperatures", temperatures, "(1.0,) without k: every class at hand serves any other")
        check_choice("code", code, ("u8", "f16"))
        if not (augmentation is None or isinstance(augmentation, (Augmentation, str))):
            raise argument_error("augmentation", augmentation, "an Augmentation, words, or None")
        form: dict[str, Any] = {
            "format": cls._FORMAT,
            "vocabulary": _whole("classes", classes, 1, 1 << 24),
            "k": 0 if k is None else _whole("k", k, 1, 4096),
            "code": code,
            "temperatures": kept,
            "sampled": False,
            "dense": k is None,
            "augmentation": _described(augmentation),
            "fingerprint": fingerprint.to_dict() if isinstance(fingerprint, Fingerprint) else None,
        }
        if exist_ok:
            check_path("path", path)
            try:
                with Store.open(path) as there:
                    _check_augmentation(there, form["augmentation"])
            except StoreMissing:
                pass
        return cls._create(path, form, {}, fingerprint, exist_ok)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self._form["vocabulary"])

    @property
    def dense(self) -> bool:
        """Whether a label has every class; otherwise the most likely ``k``."""
        return bool(self._form["dense"])

    @property
    def augmentation(self) -> Augmentation | str | None:
        """How views are made, as it was given to :meth:`create`."""
        form = self._form["augmentation"]
        if not isinstance(form, dict):
            return None if form is None else str(form)
        try:
            return Augmentation(**form)
        except (TypeError, ArgumentError) as failure:
            raise SchemaMismatch(f"{self.path} has an augmentation that this build does not know: {form}") from failure

    @property
    def conflicts(self) -> list[tuple[int, int]]:
        """(image, view) that two processes labelled differently at the same time; the lower-numbered writer's counts.

        Differently means another label or another seed.
        """
        index = self._index()
        kept, others, codes = index.twice
        # Of documents with the very same key the core lists those that differ, and gives one of them to the index.
        for key, first, other in self._rows.conflict_rows():
            found = np.arange(index.counts[index.document(np.array([first]))[0]])
            kept, others = np.concatenate([kept, first + found]), np.concatenate([others, other + found])
            codes = np.concatenate([codes, key_codes(key, len(found), str(self.path))])
        differ = (self._packed(kept) != self._packed(others)).any(1)
        differ |= index.seeds[index.document(kept)] != index.seeds[index.document(others)]
        return sorted({(int(code & (1 << IMAGE_BITS) - 1), int(code >> IMAGE_BITS)) for code in codes[differ]})

    def __len__(self) -> int:
        """Number of labels."""
        return len(self._index().codes)

    @property
    def nbytes(self) -> int:
        """Bytes of all labels, without what stands around them: ``row_bytes`` for each."""
        return len(self) * self.row_bytes

    @property
    def framing_bytes(self) -> int:
        """Bytes on disk beside the labels': which image and view they are of, seeds, checksums, headers."""
        return int(self._store.info()["bytes"]) - self.nbytes

    def views(self) -> list[int]:
        """Views of which there are labels, rising."""
        return [int(view) for view in np.unique(self._index().codes >> IMAGE_BITS)]

    def images(self, view: int) -> Tensor:
        """Images that are labelled in a view.

        Args:
            view: The view's number.

        Returns:
            int64 [n], rising.
        """
        codes = self._index().codes
        low = _whole("view", view, 0, VIEWS - 1) << IMAGE_BITS
        first, last = np.searchsorted(codes, [low, low + (1 << IMAGE_BITS)])
        return torch.from_numpy(codes[first:last] - low)

    def append(self, images: Tensor | Sequence[int], view: int, answers: Tensor | TopK, *, seed: int = 0) -> int:
        """Writes the labels of images in one view; durable after the next :meth:`flush`.

        A few hundred images or more at a time keep the framing small, best with numbers in a row.

        Args:
            images: int64 [n] Numbers of the images, each once, from 0 to 2^40 - 1.
            view: Number of the view, from 0 to 2^23 - 1; the epoch, for example.
            answers: [n, classes] logits, floating, -inf for classes without probability; or with ``k`` a TopK of shape
                [n, k] with the log-partitions of this cache's temperatures.
            seed: What the views were drawn with, from 0 to 2^63 - 1; see :meth:`augment`.

        Returns:
            How many were written; those that are there already with the same content are not written again.

        Raises:
            KeyConflict: An image has another label, or one of another seed, in this view. Nothing is written then.
            ArgumentError: An argument does not fit; nothing is written then.
            StoreIOError: The disk refused; what was flushed is intact, and append may be tried again.
        """
        ids = _image_numbers(images)
        view, seed = _whole("view", view, 0, VIEWS - 1), _whole("seed", seed, 0, SEEDS - 1)
        order = np.argsort(ids, kind="stable")
        if len(ids) and (np.diff(ids[order]) == 0).any():
            raise argument_error("images", "an image twice", "each image once in a view")
        ids = ids[order]
        packed = self._pack(answers, torch.from_numpy(order))
        fresh = ~self._is_labelled(ids, view, seed, packed)
        if not fresh.any():
            return 0
        count = int(fresh.sum())
        self._append_document(document_key(view, seed, ids[fresh]), packed[fresh].tobytes(), count, {})
        self._fresh.setdefault(view, []).append(ids[fresh])
        return count

    def missing(self, images: Tensor | Sequence[int], view: int) -> Tensor:
        """Those of the images that have no label in a view yet, in their order.

        Args:
            images: int64 [n] Numbers of images.
            view: The view's number.

        Returns:
            int64 [m].
        """
        ids = _image_numbers(images)
        place = self._places(ids, np.full_like(ids, _whole("view", view, 0, VIEWS - 1)))
        return torch.from_numpy(ids[place < 0])

    def index(self, images: Tensor | Sequence[int], views: Tensor | Sequence[int] | int) -> Tensor:
        """Rows of labels, which stay the same when the cache grows.

        Args:
            images: [...] int64 Numbers of images.
            views: Their views: one number, or as many as images (broadcast).

        Returns:
            [...] int64.

        Raises:
            KeyNotFound: Some have no label.
        """
        shape, ids, of = _pairs(images, views)
        rows = self._places(ids, of)
        absent = (rows < 0).nonzero()[0]
        if len(absent):
            image, view = int(ids[absent[0]]), int(of[absent[0]])
            others = f", nor have {len(absent) - 1} others; see missing(images, view)" if len(absent) > 1 else ""
            raise KeyNotFound(f"image {image} has no label in view {view} in {self.path}{others}")
        return torch.from_numpy(rows).reshape(shape)

    def gather(
        self,
        rows: Tensor | Sequence[int],
        *,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
    ) -> Tensor | TopK:
        """Labels in any order, unpacked by the core in threads without the interpreter's lock.

        Args:
            rows: [...] From :meth:`index`; -1 for no label.
            temperature: Of the distribution: p^(1/T), normalised. With ``k``, one of :attr:`temperatures`.
            device: Where the result goes; ``None`` is the CPU.

        Returns:
            Where every class is kept [..., classes] float32 log-probabilities that add up to 1, of a row -1 even ones;
            else a TopK [..., k], of a row -1 with all mass in the tail. Either is a teacher for a divergence.

        Raises:
            ArgumentError: A row is not there, or the temperature is not allowed.
            StoreCorrupt: The bytes contradict their checksum or the format.
        """
        numbers = row_numbers(rows)
        if not self.dense:
            return self._gather_top_k(numbers, device, None, torch.int64).at(temperature)
        check_number("temperature", temperature, "a positive, finite number", above=0)
        temperature = float(temperature)
        target = device_of("device", device)
        out = filled("out", None, (*numbers.shape, self.classes), torch.float32, target.type == "cuda")
        self._retried(lambda: self._rows.gather_dense(memory(numbers), memory(out)))
        out = out.to(target, non_blocking=True)
        return (out if temperature == 1 else out / temperature).log_softmax(-1)

    def seeds(self, rows: Tensor | Sequence[int]) -> Tensor:
        """What the views of labels were drawn with.

        Args:
            rows: [...] From :meth:`index`.

        Returns:
            [...] int64.

        Raises:
            ArgumentError: A row is not there.
        """
        index, numbers = self._index(), row_numbers(rows)
        found = numbers.numpy().reshape(-1)
        place = index.document(found)
        if len(found):
            there = place >= 0
            there[there] = (found - index.starts[place])[there] < index.counts[place[there]]
            if not there.all():
                raise argument_error("rows", int(found[~there][0]), "rows of this cache, from index(images, views)")
        return torch.from_numpy(index.seeds[place]).reshape(numbers.shape)

    def augment(
        self,
        pixels: Tensor,
        images: Tensor | Sequence[int],
        views: Tensor | Sequence[int] | int,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Views of images: with a seed those that are to be labelled, without one those that were.

        A draw depends on (seed, view, image) alone, so whoever asks in whatever batch gets the same views, bit for bit.

        Args:
            pixels: [n, channels, height, width] The images as they are.
            images: int64 [n] Their numbers.
            views: Their views: one number, or int64 [n].
            seed: From 0 to 2^63 - 1, the same that :meth:`append` will be given; ``None`` looks up the labels' seeds.

        Returns:
            [n, channels, height, width].

        Raises:
            KeyNotFound: There is no seed and some have no label.
            ArgumentError: The cache has no augmentation that can be replayed, or an argument does not fit.
        """
        augmentation = self.augmentation
        if isinstance(augmentation, str):
            raise argument_error(
                "cache", f"one of views made by {augmentation!r}", "one with an Augmentation; see seeds"
            )
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            got = describe(pixels) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise argument_error("pixels", got, "images [n, channels, height, width]")
        shape, ids, of = _pairs(images, views)
        if shape != (len(pixels),):
            got = f"{len(ids)} numbers" + ("" if len(shape) == 1 else f" of shape {list(shape)}")
            raise argument_error("images", got, f"{len(pixels)}, one for each of the pixels")
        count = len(pixels)
        if augmentation is None:
            return pixels
        if seed is None:
            seeds = self.seeds(self.index(torch.from_numpy(ids), torch.from_numpy(of))).numpy()
        else:
            seeds = np.full_like(ids, _whole("seed", seed, 0, SEEDS - 1))
        kinds, which = np.unique(np.stack([of, seeds], 1), axis=0, return_inverse=True)
        made = pixels
        for number, (view, drawn) in enumerate(kinds.tolist()):
            mine = torch.from_numpy((which.reshape(-1) == number).nonzero()[0])
            units = torch.from_numpy(ids)[mine]
            plan = augmentation.plan(units, step=Step(view, seed=drawn), shape=tuple(pixels.shape[1:]), name="label")
            mine = mine.to(pixels.device)
            transformed = augmentation.apply(pixels[mine], plan)
            made = transformed if len(mine) == count and len(kinds) == 1 else made.index_copy(0, mine, transformed)
        return made

    def refresh(self) -> None:
        """Takes in what other processes wrote since. Numbers of rows stay the same."""
        super().refresh()
        self._known = None

    def info(self) -> dict[str, Any]:
        """The store's files and sizes, and what the cache holds."""
        count = len(self)
        return {
            **self._store.info(),
            "labels": count,
            "views": len(self.views()),
            "row_bytes": self.row_bytes,
            "label_bytes": self.nbytes,
            "framing_bytes": self.framing_bytes,
        }

    def __repr__(self) -> str:
        kept = "every class" if self.dense else f"k={self.k}"
        return f"LabelCache({str(self.path)!r}, classes={self.classes}, {kept}, code={self._form['code']!r})"

    def _pack(self, answers: Tensor | TopK, order: Tensor) -> npt.NDArray[np.uint8]:
        """Packed rows [n, row_bytes] in an order."""
        count = token_count(len(order))
        if isinstance(answers, TopK):
            if self.dense:
                raise argument_error("answers", "a TopK", "logits, as the cache keeps every class")
            if tuple(answers.ids.shape) != (count, self.k):
                raise argument_error("answers", describe(answers.ids), f"a TopK of shape [{count}, {self.k}]")
            fields = [answers.ids, answers.log_probs, answers.tail_log_mass]
            ids, log_probs, tail = (each.cpu()[order] for each in fields)
            partitions = {each: column.cpu()[order] for each, column in answers.log_partition.items()}
            packed, _ = self._pack_top_k(TopK(ids, log_probs, tail, partitions), None)
        else:
            shape = [count, self.classes]
            if (
                not isinstance(answers, Tensor)
                or not answers.is_floating_point()
                or answers.itemsize < 2
                or list(answers.shape) != shape
            ):
                got = describe(answers) if isinstance(answers, Tensor) else type(answers).__name__
                raise argument_error("answers", got, f"logits of shape {shape}, floating, of 16 bits or more")
            logits = answers.detach().to("cpu", torch.float32)[order].contiguous()
            if self.dense:
                packed = _core.teacher_pack_dense(self._layout, count, memory(logits))
            else:
                packed = _core.teacher_pack_logits(self._layout, "float32", count, memory(logits), None, None)
        return np.frombuffer(packed, np.uint8).reshape(count, self.row_bytes)

    def _is_labelled(self, ids: Integers, view: int, seed: int, packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which images have the same label already; an error if one has another."""
        rows = self._places(ids, np.full_like(ids, view))
        there = rows >= 0
        if there.any():
            index = self._index()
            seeds = index.seeds[index.document(rows[there])]
            differ = (self._packed(rows[there]) != packed[there]).any(1) | (seeds != seed)
            if differ.any():
                first = int(differ.argmax())
                kind = f"of seed {seeds[first]}, not {seed}" if seeds[first] != seed else "with other content"
                raise KeyConflict(
                    f"image {ids[there][first]} is already labelled in view {view} in {self.path}, {kind}; use "
                    "missing(images, view) to label what is not there only"
                )
        return there

    def _packed(self, rows: Integers) -> npt.NDArray[np.uint8]:
        out = np.empty((len(rows), self.row_bytes), np.uint8)
        numbers = np.ascontiguousarray(rows)
        if out.size:
            places = (numbers.ctypes.data, numbers.nbytes), (out.ctypes.data, out.nbytes)
            self._retried(lambda: self._rows.gather_packed(*places))
        return out

    def _places(self, ids: Integers, views: Integers) -> Integers:
        """Rows of labels, -1 where there is none."""
        if any(np.isin(ids, piece).any() for view in np.unique(views) for piece in self._fresh.get(int(view), ())):
            self._see_written()
        index = self._index(fresh=False)
        return index.places(views << IMAGE_BITS | ids)

    def _index(self, *, fresh: bool = True) -> LabelIndex:
        if fresh and self._fresh:
            self._see_written()
        if self._known is None:
            self._known = read_index(self._rows, str(self.path))
        return self._known

    def _see_written(self) -> None:
        super()._see_written()
        self._fresh.clear()


def _described(augmentation: Augmentation | str | None) -> dict[str, Any] | str | None:
    if not isinstance(augmentation, Augmentation):
        return augmentation
    fields = [field.name for field in dataclasses.fields(augmentation) if field.init]
    return {name: getattr(augmentation, name) for name in fields}


def _check_augmentation(there: Store, asked: dict[str, Any] | str | None) -> None:
    form = there.metadata.get(LabelCache._METADATA)
    if isinstance(form, dict) and "augmentation" in form and form["augmentation"] != asked:
        raise SchemaMismatch(
            f"augmentation of {there.path} differs: {form['augmentation']} there, {asked} in use. Labels of one kind "
            "of view are none of another: write a new cache"
        )


def _whole(name: str, value: int, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise argument_error(name, value, f"a whole number from {least} to {most}")
    return value


def _integers(name: str, values: Tensor | Sequence[int] | int) -> Tensor:
    try:
        found = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as failure:
        raise argument_error(name, type(values).__name__, "whole numbers") from failure
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype is torch.bool):
        raise argument_error(name, describe(found), "whole numbers")
    return found.detach().to("cpu", torch.int64)


def _bounded(name: str, values: Tensor, most: int) -> None:
    if values.numel() and not (int(values.min()) >= 0 and int(values.max()) <= most):
        got = int(values.min()) if int(values.min()) < 0 else int(values.max())
        raise argument_error(name, got, f"whole numbers from 0 to {most}")


def _image_numbers(images: Tensor | Sequence[int]) -> Integers:
    found = _integers("images", images)
    if found.ndim != 1:
        raise argument_error("images", describe(found), "whole numbers of shape [n]")
    _bounded("images", found, (1 << IMAGE_BITS) - 1)
    return found.contiguous().numpy()


def _pairs(
    images: Tensor | Sequence[int], views: Tensor | Sequence[int] | int
) -> tuple[tuple[int, ...], Integers, Integers]:
    """The common shape of images and views, and both flat."""
    ids, of = _integers("images", images), _integers("views", views)
    _bounded("images", ids, (1 << IMAGE_BITS) - 1)
    _bounded("views", of, VIEWS - 1)
    try:
        shape = tuple(torch.broadcast_shapes(ids.shape, of.shape))  # type: ignore[no-untyped-call]  # untyped in torch
    except RuntimeError as failure:
        raise argument_error(
            "views", list(of.shape), f"one, or a shape that fits that of images {list(ids.shape)}"
        ) from failure
    first, second = (each.expand(shape).reshape(-1).contiguous().numpy() for each in (ids, of))
    return shape, first, second
