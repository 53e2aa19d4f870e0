"""One way to every kernel: the module of a source on a device, the checks of its arguments, the shape of the launch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from distillrs.errors import KernelCompileError, argument_error
from distillrs.ops._cuda._module import Argument, CupyLoader, Dimensions, Loader, Module
from distillrs.ops._cuda._sources import source

TYPES = {torch.float32: "float", torch.bfloat16: "__nv_bfloat16", torch.float16: "__half"}

# As in cuda/rows.cuh.
MAX_THREADS = 512
CHUNK = 8
MAX_COLUMNS = 2**31 - 1
_MAX_GRID = 2**31 - 1


# Source, macros, device.
_Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...], torch.device]


class Launcher:
    """Launches kernels; compiles each source once for each device and choice of types.

    Args:
        loader: What compiles.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._modules: dict[_Key, Module] = {}
        self._failures: dict[_Key, KernelCompileError] = {}
        self._lock = threading.Lock()

    @property
    def device_type(self) -> str:
        """Of the tensors that it takes."""
        return self._loader.device_type

    def module(self, name: str, types: Mapping[str, torch.dtype], device: torch.device) -> Module:
        """The module of a source, compiled if it is not yet.

        Args:
            name: The source's without its ending.
            types: Macros that name a type of logits.
            device: Where it will run.

        Raises:
            ArgumentError: The backend is not there.
            KernelCompileError: The compiler refuses the source.
        """
        defines = {macro: TYPES[dtype] for macro, dtype in types.items()}
        key = (name, tuple(sorted(defines.items())), device)
        with self._lock:
            if key in self._failures:
                # What failed once would fail again, after as long.
                raise self._failures[key].with_traceback(None)
            if key not in self._modules:
                try:
                    self._modules[key] = self._loader.load(source(f"{name}.cu"), f"{name}.cu", defines, device)
                except KernelCompileError as error:
                    self._failures[key] = error
                    raise
            return self._modules[key]

    def launch(
        self,
        name: str,
        kernel: str,
        types: Mapping[str, torch.dtype],
        device: torch.device,
        grid: Dimensions,
        block: Dimensions,
        arguments: Mapping[str, Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Starts a kernel.

        Args:
            name: The source's without its ending.
            kernel: Which of its kernels.
            types: Macros that name a type of values.
            device: That of every tensor.
            grid: Blocks; where there are none, nothing is started.
            block: Threads of each.
            arguments: By the names and in the order of the kernel's parameters.
            shared_bytes: Of dynamic shared memory.

        Raises:
            ArgumentError: For a tensor elsewhere.
        """
        for parameter, value in arguments.items():
            if isinstance(value, Tensor) and value.device != device:
                raise argument_error(parameter, f"a tensor on {value.device}", f"one on {device}")
        if 0 not in grid:
            self.module(name, types, device).launch(kernel, grid, block, arguments, shared_bytes)

    def launch_rows(
        self,
        name: str,
        types: Mapping[str, torch.dtype],
        device: torch.device,
        rows: int,
        columns: int,
        arguments: Mapping[str, Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Starts the kernel of a source's own name, which works on rows, one block for each.

        Args:
            name: The source's without its ending.
            types: Macros that name a type of logits.
            device: That of every tensor.
            rows: How many; 0 starts nothing.
            columns: How many of a row the threads share among them.
            arguments: By the names and in the order of the kernel's parameters.
            shared_bytes: Of dynamic shared memory.

        Raises:
            ArgumentError: For a tensor elsewhere, or a row that is too long.
        """
        if columns > MAX_COLUMNS:
            raise argument_error("vocabulary", columns, f"at most {MAX_COLUMNS} for the CUDA kernels")
        block = (threads_for(columns), 1, 1)
        grid = (min(rows, _MAX_GRID), 1, 1)
        self.launch(name, name, types, device, grid, block, arguments, shared_bytes)


def threads_for(columns: int) -> int:
    """Threads of a block: whole warps, a chunk for each thread where there are enough columns.

    Args:
        columns: Of a row.
    """
    warps = -(-columns // (32 * CHUNK))
    return min(MAX_THREADS, 32 * max(1, warps))


def layout_arguments(name: str, tensor: Tensor | None, layout: tuple[int, ...] | None) -> dict[str, Argument]:
    """The four parameters of a tensor whose rows have two strides.

    Args:
        name: Of the tensor.
        tensor: ``[..., columns]``.
        layout: As ``distillrs.ops._layout.row_layout`` gives it.
    """
    _, _, inner, outer_stride, inner_stride = layout if layout is not None else (0, 0, 1, 0, 0)
    return {
        name: tensor,
        f"{name}_inner": np.int64(inner),
        f"{name}_outer_stride": np.int64(outer_stride),
        f"{name}_inner_stride": np.int64(inner_stride),
    }


_active = Launcher(CupyLoader())


def active() -> Launcher:
    """The launcher that serves the backend "cuda"."""
    return _active


@contextmanager
def serving(launcher: Launcher) -> Iterator[None]:
    """Another launcher serves the backend "cuda" meanwhile: for tests, whose launcher runs the kernels on the CPU.

    Args:
        launcher: Which.
    """
    global _active
    before, _active = _active, launcher
    try:
        yield
    finally:
        _active = before
