"""What a set costs to keep and what a run cost to make: bytes, seconds, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from distillrs.errors import argument_error


def tensor_bytes(value: Tensor) -> int:
    """Bytes that a tensor's numbers take when they are stored as they are."""
    return value.numel() * value.element_size()


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """What a small set stores, by kind.

    Attributes:
        images: Examples, or the bases that factors combine.
        labels: Class numbers or logits.
        factors: What turns bases into examples.
        rates: Learned rates and other single numbers.
    """

    images: int
    labels: int
    factors: int = 0
    rates: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "labels", "factors", "rates"):
            if getattr(self, name) < 0:
                raise argument_error(name, getattr(self, name), "a number of bytes from 0")

    @property
    def total(self) -> int:
        """All of them."""
        return self.images + self.labels + self.factors + self.rates

    def to_dict(self) -> dict[str, int]:
        """By kind, and the total."""
        return {
            "images": self.images,
            "labels": self.labels,
            "factors": self.factors,
            "rates": self.rates,
            "total": self.total,
        }


def count_stored(
    images: Tensor,
    labels: Tensor,
    factors: Mapping[str, Tensor] | None = None,
    rates: Mapping[str, Tensor] | None = None,
) -> StoredBytes:
    """Counts the bytes of a small set's tensors as a file holds them.

    Args:
        images: [N, ...].
        labels: int64 [N], or logits or probabilities [N, C].
        factors: By name.
        rates: By name.
    """
    return StoredBytes(
        tensor_bytes(images),
        tensor_bytes(labels),
        sum(tensor_bytes(value) for value in (factors or {}).values()),
        sum(tensor_bytes(value) for value in (rates or {}).values()),
    )


def equal_bytes_count(budget: int, example_bytes: int) -> int:
    """How many real examples a budget of bytes buys.

    Args:
        budget: Bytes, from 0.
        example_bytes: Of one example with its class number, from 1.
    """
    if budget < 0:
        raise argument_error("budget", budget, "a number of bytes from 0")
    if example_bytes < 1:
        raise argument_error("example_bytes", example_bytes, "a positive number of bytes")
    return budget // example_bytes


@dataclass(slots=True)
class Timer:
    """Seconds by phase; a phase that is entered again adds up.

    Attributes:
        seconds: By name, in the order of first use.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the wall-clock time of a block, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    if sys.platform == "win32":
        return _windows_peak()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, the others kibibytes.
    return peak if sys.platform == "darwin" else peak * 1024


def _windows_peak() -> int:
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        # PROCESS_MEMORY_COUNTERS of psapi.h; the names are Windows's own.
        _fields_ = [  # ctypes reads this attribute, a class variable's type would hide nothing
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("WorkingSetSize", ctypes.c_size_t),
            ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
            ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
            ("PagefileUsage", ctypes.c_size_t),
            ("PeakPagefileUsage", ctypes.c_size_t),
        ]

    windll = ctypes.windll  # type: ignore[attr-defined]  # there on Windows only
    counters = Counters(cb=ctypes.sizeof(Counters))
    current = windll.kernel32.GetCurrentProcess
    current.restype = wintypes.HANDLE
    query = windll.psapi.GetProcessMemoryInfo
    query.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
    if not query(current(), ctypes.byref(counters), counters.cb):
        raise OSError("GetProcessMemoryInfo failed")
    return int(counters.PeakWorkingSetSize)
