"""Runs the kernels of a CUDA source on the CPU.

The source that the GPU gets is compiled with the host compiler under ``include/cuda_host.h``; only its declarations of
shared memory are rewritten. Two modes: "fast", and "check", which instruments every access and reports races, overruns,
misaligned accesses and barriers that not all threads reach, with file and line.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cuda_host import toolkit

Mode = Literal["fast", "check"]

HERE = Path(__file__).resolve().parent
FLAGS = {"fast": ["-O2"], "check": ["-O1", "-g", "-fsanitize=thread,alignment,bounds"]}
# Named, because the sanitizers' own runtime would be linked beside the hooks.
LIBRARIES = ["-lstdc++", "-lm", "-lc", "-lgcc", "-ldl"]
COMMON = ["-std=gnu++17", "-fno-strict-aliasing", "-fPIC", "-fno-omit-frame-pointer", "-w"]
MAX_REPORTS = 32


class KernelError(AssertionError):
    """What the shim saw in a launch."""

    def __init__(self, reports: list[Report]) -> None:
        super().__init__("\n".join(map(str, reports)))
        self.reports = reports


@dataclass(frozen=True)
class Report:
    """One thing that is wrong with a launch.

    Attributes:
        kind: "race", "overrun", "misaligned", "divergent barrier", "absent lane" or "launch".
        where: ``file:line``.
        other: ``file:line`` of the other access of a race.
        argument: Name of the kernel's parameter whose memory it concerns.
        offset: Bytes from its beginning.
        text: The rest.
    """

    kind: str
    where: str
    other: str
    argument: str
    offset: int
    text: str

    def __str__(self) -> str:
        """One line."""
        other = f" and {self.other}" if self.other else ""
        argument = f" [{self.argument}, byte {self.offset}]" if self.argument else ""
        return f"{self.kind} at {self.where}{other}{argument}: {self.text}"


class _Report(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_char * 24),
        ("where", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
        ("file", ctypes.c_char * 200),
        ("line", ctypes.c_int32),
        ("argument", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("block", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
        ("other_thread", ctypes.c_uint32),
        ("text", ctypes.c_char * 360),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64))


class _Entry(ctypes.Structure):
    _fields_ = (("call", ctypes.c_void_p), ("count", ctypes.c_int), ("sizes", ctypes.c_size_t * 64))


class HostModule:
    """A compiled source, with the ``launch`` that ``distillrs.ops._cuda`` asks of a module.

    Args:
        source: CUDA C++, self-contained but for NVIDIA's own headers.
        name: Its file name, for reports.
        defines: Macros.
        mode: "fast" or "check".
        seed: Order of blocks and threads: 0 as numbered, 1 the other way round, others at random.
    """

    def __init__(
        self, source: str, name: str, defines: Mapping[str, str] | None = None, mode: Mode = "fast", seed: int = 0
    ) -> None:
        self.path = build(source, name, tuple(sorted((defines or {}).items())), mode)
        self.library = ctypes.CDLL(str(self.path))
        self.parameters = signatures(source)
        self.mode = mode
        self.seed = seed

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Mapping[str, Tensor | np.generic | None],
        shared_bytes: int = 0,
    ) -> None:
        """Runs a kernel to its end.

        Raises:
            KernelError: With what the shim saw.
            TypeError: For arguments that are not the kernel's.
        """
        names = self.parameters[kernel]
        if list(arguments) != names:
            raise TypeError(f"{kernel}: got the arguments {list(arguments)}, its parameters are {names}")
        entry = _Entry.in_dll(self.library, f"cuda_host_entry_{kernel}")
        values, buffers = [], []
        for index, (name, value) in enumerate(arguments.items()):
            number, span = _value(value)
            if number.itemsize != entry.sizes[index]:
                raise TypeError(f"{kernel}: {name} has {number.itemsize} bytes, the parameter {entry.sizes[index]}")
            values.append(ctypes.create_string_buffer(number.tobytes(), number.itemsize))
            buffers.append(_Buffer(*span))
        if not 0 < np.prod(block) <= 1024 or min(*grid, *block) < 1 or max(grid[1:]) > 65535 or grid[0] >= 2**31:
            raise TypeError(f"{kernel}: a grid {grid} of blocks {block}, which no GPU launches")
        reports = (_Report * MAX_REPORTS)()
        addresses = (ctypes.c_void_p * max(len(values), 1))(*(ctypes.addressof(value) for value in values))
        count = self.library.cuda_host_launch(
            ctypes.byref(entry),
            (ctypes.c_uint32 * 6)(*grid, *block),
            addresses,
            ctypes.c_uint64(shared_bytes),
            (_Buffer * max(len(buffers), 1))(*buffers),
            len(buffers),
            ctypes.c_uint64(self.seed),
            int(self.mode == "check"),
            reports,
            MAX_REPORTS,
        )
        if count:
            raise KernelError([self._report(report, names) for report in reports[:count]])

    def _report(self, report: _Report, names: Sequence[str]) -> Report:
        where = f"{Path(report.file.decode()).name}:{report.line}" if report.line else self._line(report.where)
        return Report(
            kind=report.kind.decode(),
            where=where,
            other=self._line(report.other),
            argument=names[report.argument] if report.argument >= 0 else "",
            offset=report.offset,
            text=report.text.decode(),
        )

    def _line(self, offset: int) -> str:
        """The source line of an instruction; the hook's return address is one after it."""
        tool = shutil.which("addr2line")
        if not offset or tool is None:
            return ""
        out = subprocess.run(
            [tool, "-e", self.path, hex(offset - 1)], capture_output=True, text=True, check=True
        ).stdout
        file, _, line = out.strip().partition(":")
        return f"{Path(file).name}:{line.split(' ')[0]}"


class HostLoader:
    """Loads sources for the CPU, so that ``distillrs.ops._cuda`` launches them on its tensors.

    Args:
        mode: "fast" or "check".
        seed: Order of blocks and threads.
    """

    device_type = "cpu"

    def __init__(self, mode: Mode = "fast", seed: int = 0) -> None:
        self.mode = mode
        self.seed = seed

    def load(self, text: str, name: str, defines: Mapping[str, str], device: torch.device) -> HostModule:
        """The compiled source."""
        return HostModule(text, name, defines, self.mode, self.seed)


def _value(value: Tensor | np.generic | None) -> tuple[np.generic, tuple[int, int]]:
    """What a parameter gets, and the memory behind it: address and bytes."""
    if value is None:
        return np.uint64(0), (0, 0)
    if not isinstance(value, Tensor):
        return value, (0, 0)
    reach = 0 if value.numel() == 0 else 1
    if reach:
        reach += sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return np.uint64(value.data_ptr()), (value.data_ptr(), reach * value.element_size())


def signatures(source: str) -> dict[str, list[str]]:
    """The names of each kernel's parameters."""
    found = {}
    pattern = r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)'
    for name, parameters in re.findall(pattern, source):
        parts = [part for part in parameters.split(",") if part.strip()]
        found[name] = [re.search(r"(\w+)\s*$", part.strip())[1] for part in parts]
    return found


_SHARED = re.compile(r"(extern\s+)?__shared__\s+([\w:<>]+(?:\s+[\w:<>]+)*?)\s+(\w+)\s*((?:\[[^\]]*\]\s*)*);")


def rewritten(source: str) -> str:
    """The source with its shared arrays taken from the running block's memory; lines stay where they are."""

    def replace(match: re.Match[str]) -> str:
        is_dynamic, kind, name, dimensions = match.groups()
        if is_dynamic:
            return f"{kind}* {name} = cuda_host::dynamic_shared<{kind}>();"
        key = "[]{ static const char key = 0; return (const void*)&key; }()"
        return f"auto& {name} = cuda_host::shared<{kind}{dimensions}>({key});"

    text = _SHARED.sub(replace, source)
    code = re.sub(r"//[^\n]*", "", text)
    if "__shared__" in code:
        raise ValueError("a declaration of shared memory that the shim cannot read: one name each, on one line")
    return text


@cache
def compiler() -> str:
    """The host compiler.

    Raises:
        FileNotFoundError: There is none; the message says what brings it.
    """
    for name in (os.environ.get("CXX", ""), "g++", "c++"):
        if name and shutil.which(name):
            return name
    raise FileNotFoundError("no C++ compiler: the kernels' sources are tested with g++ (Debian: apt install g++)")


def cache_folder() -> Path:
    """Where libraries are kept, by the hash of all that goes into them."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base else Path.home() / ".cache"
    try:
        (folder / "distillrs" / "cuda_host").mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir())
        (folder / "distillrs" / "cuda_host").mkdir(parents=True, exist_ok=True)
    return folder / "distillrs" / "cuda_host"


@cache
def build(source: str, name: str, defines: tuple[tuple[str, str], ...], mode: Mode) -> Path:
    """The library of a source, compiled if it is not there yet.

    Raises:
        FileNotFoundError: No compiler or none of NVIDIA's headers.
        RuntimeError: The source does not compile; with the compiler's words.
    """
    kernels = "\n".join(f"CUDA_HOST_KERNEL({kernel})" for kernel in signatures(source))
    text = f'#include "cuda_host.h"\n#line 1 "{name}"\n{rewritten(source)}\n{kernels}\n'
    folders = [HERE / "include", *toolkit.include_folders()]
    flags = [*COMMON, *(f"-I{folder}" for folder in folders)]
    macros = [f"-D{key}={value}" for key, value in defines]
    parts = [path.read_text() for path in sorted((HERE / "include").rglob("*.h"))] + [
        (HERE / "runtime.cpp").read_text()
    ]
    # Not instrumented: the runtime keeps the shadow and holds the hooks.
    runtime = _made("runtime", ".o", (parts, flags), [*flags, "-O2", "-c", str(HERE / "runtime.cpp")])
    everything = (text, parts, flags, macros, FLAGS[mode])
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / "unit.cpp"
        unit.write_text(text)
        arguments = [*flags, *macros, *FLAGS[mode], "-nostdlib", "-shared", str(unit), str(runtime), *LIBRARIES]
        return _made(f"{Path(name).stem}-{mode}", ".so", everything, arguments)


def _made(name: str, ending: str, everything: object, arguments: list[str]) -> Path:
    """What the compiler makes of the arguments, kept by the hash of everything that goes in."""
    digest = hashlib.sha256(repr((everything, compiler(), version())).encode()).hexdigest()[:24]
    path = cache_folder() / f"{name}-{digest}{ending}"
    if not path.is_file():
        # Another process may be as far; both files are the same.
        staged = path.with_name(f"{path.stem}.{os.getpid()}{ending}")
        done = subprocess.run([compiler(), *arguments, "-o", str(staged)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler()} {' '.join(arguments)}\n{done.stderr[-4000:]}")
        os.replace(staged, path)
    return path


@cache
def version() -> str:
    """The compiler's name for itself."""
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
