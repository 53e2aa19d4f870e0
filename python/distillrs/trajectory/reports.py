"""What checking, mending and sealing a store found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Damage:
    """One place that contradicts its checksum or the format.

    Attributes:
        path: The damaged file.
        offset: Byte in it.
        reason: What is wrong there.
        key: Trajectory, where it is known.
        step: Record, where it is known.
        column: Column, where it is known.
    """

    path: str
    offset: int
    reason: str
    key: str | None = None
    step: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        where = [f"byte {self.offset}"]
        where += [f"{name} {value!r}" for name, value in (("key", self.key), ("column", self.column)) if value]
        where += [f"step {self.step}"] if self.step is not None else []
        return f"{self.path}: {', '.join(where)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of reading everything.

    Attributes:
        records: Records whose checksums hold.
        bytes: Bytes read.
        damage: Every damaged place.
        tails: What a killed writer left at the end of an open log, unacknowledged; harmless.
        missing: Steps that an earlier repair dropped.
    """

    records: int
    bytes: int
    damage: tuple[Damage, ...]
    tails: tuple[dict[str, Any], ...]
    missing: int

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damage

    @classmethod
    def of(cls, text: str) -> VerifyReport:
        """The report that the core gave as JSON."""
        form = json.loads(text)
        damage = tuple(Damage(**place) for place in form["damage"])
        return cls(form["records"], form["bytes"], damage, tuple(form["tails"]), form["missing"])


@dataclass(frozen=True, slots=True)
class RepairReport:
    """Result of a repair.

    Attributes:
        dropped: (key, step) of records that were damaged.
        dependants: (key, step) of sound records that could not be decoded without a damaged one.
        kept: Records that are still there.
        files: Files that were written anew.
        manifest_rebuilt: Whether the manifest was lost or damaged.
        lost: Trajectories of which nothing was left.
        set_aside: Files that could not be used and got the ending ``.damaged``.
        removed: Files that only repeated what stands elsewhere.
    """

    dropped: tuple[tuple[str, int], ...]
    dependants: tuple[tuple[str, int], ...]
    kept: int
    files: tuple[str, ...]
    manifest_rebuilt: bool
    lost: tuple[str, ...]
    set_aside: tuple[str, ...]
    removed: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> RepairReport:
        """The report that the core gave as JSON."""
        form = json.loads(text)
        dropped, dependants = (
            tuple((record["key"], record["step"]) for record in form[name]) for name in ("dropped", "dependants")
        )
        lost, set_aside, removed = (tuple(form[name]) for name in ("lost", "set_aside", "removed"))
        files = tuple(form["files"])
        return cls(dropped, dependants, form["kept"], files, form["manifest_rebuilt"], lost, set_aside, removed)


@dataclass(frozen=True, slots=True)
class SealReport:
    """Result of sealing.

    Attributes:
        sealed: Trajectories that moved into segments.
        segments: Files that were made.
        skipped: Complete trajectories that stayed in their logs, with the reason.
    """

    sealed: tuple[str, ...]
    segments: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, text: str) -> SealReport:
        """The report that the core gave as JSON."""
        form = json.loads(text)
        skipped = tuple((each["key"], each["reason"]) for each in form["skipped"])
        return cls(tuple(form["sealed"]), tuple(form["segments"]), skipped)


class CodecError(NamedTuple):
    """Error of a codec, measured as records were written, relative to the displacement between neighbours.

    Attributes:
        maximum: Largest relative error of a record.
        mean: Mean over the records that count.
        records: How many count: those stored as differences.
    """

    maximum: float
    mean: float
    records: int
