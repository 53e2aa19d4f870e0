"""What the benchmarks share: alternating timings, medians, and the record of a run."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import distillrs as dr

RESULTS = Path(__file__).resolve().parent / "results"


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int = 15, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each contender, taken in turns so that a slow phase of the machine hits all alike.

    Args:
        contenders: What to time, by name.
        rounds: Timed calls of each.
        warm_up: Calls of each before that.
    """
    for _ in range(warm_up):
        for work in contenders.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each contender, in seconds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def peak_bytes() -> int:
    """The most memory that this process has had resident (Linux).

    Not `ru_maxrss`: a process that is started anew has that of the one which started it to begin with.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def added_bytes(work: Callable[[], object]) -> int | None:
    """The most memory that a call has resident beside what was there before it (Linux).

    `None` where the system does not let go of the mark.
    """
    # What the allocator keeps of earlier calls would count as there before.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = peak_bytes()
    work()
    return peak_bytes() - before


def multiply_adds_per_second(size: int = 1024, rounds: int = 7) -> float:
    """Rate of a square product in float32, on the threads that torch is set to."""
    left, right, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    seconds = medians(alternate({"product": lambda: torch.mm(left, right, out=out)}, rounds=rounds))["product"]
    return size**3 / seconds


def bytes_read_per_second(size: int = 1 << 28, rounds: int = 7) -> float:
    """Rate at which memory beyond all caches is summed up, on the threads that torch is set to."""
    values = torch.ones(size // 4)
    return size / medians(alternate({"sum": values.sum}, rounds=rounds, warm_up=1))["sum"]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "simd": dr._core.simd_level(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "distillrs": dr.__version__,
    }


def write(name: str, results: Mapping[str, Any]) -> None:
    """Writes `benchmarks/results/NAME.json` beside the machine and the command that made it."""
    RESULTS.mkdir(exist_ok=True)
    command = f"python benchmarks/{name}.py"
    if sys.argv[1:]:
        command += " " + " ".join(sys.argv[1:])
    page = {"command": command, "machine": machine(), "results": dict(results)}
    (RESULTS / f"{name}.json").write_text(json.dumps(page, indent=1) + "\n")
