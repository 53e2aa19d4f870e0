"""What the benchmarks share: alternating timings, medians, and the record of a run."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import distillrs as dr

RESULTS = Path(__file__).resolve().parent / "results"

# A figure, what is asked of it, and whether it holds.
Bar = dict[str, Any]


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contender, taken in turns so that a slow phase of the machine hits all alike.

    Args:
        contenders: What to time, by name.
        rounds: Timed calls of each.
        warm_up: Calls of each before that.
        clock: What tells the seconds; `time.process_time` leaves out what other work on the machine takes.
    """
    for _ in range(warm_up):
        for work in contenders.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
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


def run_at(level: str) -> None:
    """Begins the script anew with vector instructions no wider than `level`, in the core and in PyTorch alike.

    Compiled code has its own setting, which :func:`compiled_like_the_core` makes.
    """
    if os.environ.get("DISTILLRS_SIMD") != level:
        os.environ.update(dict.fromkeys(("DISTILLRS_SIMD", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"), level))
        os.environ["MKL_ENABLE_INSTRUCTIONS"] = level.upper()
        os.execv(sys.executable, [sys.executable, *sys.argv])


def compiled_like_the_core() -> None:
    """Lets `torch.compile` make vectors no wider than the core's."""
    import torch._inductor.config as inductor

    inductor.cpp.simdlen = {"avx512": 512, "avx2": 256}.get(dr._core.simd_level(), 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def keep_freed_memory() -> None:
    """Makes glibc serve large blocks from its heap and never trim it: no page faults but of the first calls."""
    trim_threshold, mmap_max = -1, -4
    for option, value in ((trim_threshold, 2**31 - 1), (mmap_max, 0)):
        if not _libc().mallopt(option, value):
            raise RuntimeError("glibc's mallopt refused")


def extra_bytes(work: Callable[[], object]) -> int:
    """By how much a call's memory at its peak exceeds what is there before it (Linux, glibc).

    The call is made once before, so that code that it loads and buffers that stay for the next call are not its own;
    what the allocator keeps of freed memory is given back then, so that every page that the call takes is counted.
    """
    work()
    gc.collect()
    _libc().malloc_trim(0)
    # Sets the peak to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    work()
    return peak_bytes() - before


def bar(of: str, figure: float, *, at_least: float | None = None, at_most: float | None = None) -> Bar:
    """A figure beside the bound that is asked of it."""
    if (at_least is None) == (at_most is None):
        raise ValueError(f"{of}: one bound, at_least or at_most")
    if at_least is not None:
        return {"of": of, "figure": figure, "at_least": at_least, "held": figure >= at_least}
    return {"of": of, "figure": figure, "at_most": at_most, "held": at_most is not None and figure <= at_most}


def show_bars(bars: Sequence[Bar]) -> None:
    """Prints figures beside their bounds."""
    for row in bars:
        bound = f"at least {row['at_least']}" if "at_least" in row else f"at most {row['at_most']}"
        print(f"  {row['of']:60} {row['figure']:7.3f}, {bound}: {'held' if row['held'] else 'missed'}", flush=True)


def each_way(option: str, values: Sequence[str]) -> None:
    """Runs the script once for each value of an option, each in a process of its own."""
    for value in values:
        subprocess.run([sys.executable, *sys.argv, option, value], check=True)


def write(name: str, results: Mapping[str, Any]) -> None:
    """Writes `benchmarks/results/NAME.json` beside the machine and the command that made it."""
    RESULTS.mkdir(exist_ok=True)
    page = {"command": _command(), "machine": machine(), "results": dict(results)}
    (RESULTS / f"{name}.json").write_text(json.dumps(page, indent=1) + "\n")


def add(name: str, group: str, results: Mapping[str, Any]) -> None:
    """Writes the entries of one group of results into `benchmarks/results/NAME.json`, beside those that are there.

    A benchmark of many parts can so be run part by part. What another machine made, or another version, is dropped.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    here = {key: value for key, value in machine().items() if key != "simd"}
    page: dict[str, Any] = {"commands": [], "machine": here, "results": {}}
    if path.exists():
        found = json.loads(path.read_text())
        if found["machine"] == here:
            page = found
    page["commands"] = sorted({*page["commands"], _command()})
    page["results"].setdefault(group, {}).update(results)
    path.write_text(json.dumps(page, indent=1) + "\n")


def _command() -> str:
    return " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
