"""Compiled sources: what the launcher asks of one, and those of cupy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from distillrs.errors import KernelCompileError, argument_error

# A tensor stands for its address, None for no address.
Argument: TypeAlias = Tensor | np.generic | None
Dimensions: TypeAlias = tuple[int, int, int]

STANDARD = "--std=c++17"
_LOG_TAIL = 3000


class Module(Protocol):
    """A compiled source."""

    def launch(
        self, kernel: str, grid: Dimensions, block: Dimensions, arguments: Mapping[str, Argument], shared_bytes: int
    ) -> None:
        """Starts a kernel; ``arguments`` are in the order of its parameters and have their names."""


class Loader(Protocol):
    """What compiles sources for the devices of one kind."""

    @property
    def device_type(self) -> str:
        """Of the tensors that the modules take."""

    def load(self, text: str, name: str, defines: Mapping[str, str], device: torch.device) -> Module:
        """Compiles a source.

        Raises:
            ArgumentError: The backend is not there.
            KernelCompileError: The compiler refuses the source.
        """


def options(defines: Mapping[str, str]) -> tuple[str, ...]:
    """What the compiler is told.

    Args:
        defines: Macros.
    """
    return (STANDARD, *(f"-D{name}={value}" for name, value in sorted(defines.items())))


class CupyLoader:
    """Compiles with NVRTC through cupy, which also keeps binaries on disk, by the source's text."""

    @property
    def device_type(self) -> str:
        """CUDA."""
        return "cuda"

    def load(self, text: str, name: str, defines: Mapping[str, str], device: torch.device) -> Module:
        """Compiles a source for the device's architecture.

        Raises:
            ArgumentError: There is no cupy.
            KernelCompileError: The compiler refuses the source.
        """
        extra = f"cuda{(torch.version.cuda or '13').split('.')[0]}"
        try:
            import cupy
        except ImportError as error:
            got = f"'cuda' without cupy ({error})"
            allowed = f"'cuda' after `pip install 'distillrs[{extra}]'`, or backend='torch'"
            raise argument_error("backend", got, allowed) from error
        flags = options(defines)
        try:
            with torch.cuda.device(device):
                module = cupy.RawModule(code=text, options=flags, backend="nvrtc")
                module.compile()
        except Exception as error:
            # cupy raises its own exception, but also others where it does not find headers or a library.
            log = error.get_message() if hasattr(error, "get_message") else str(error)
            raise compile_error(name, _architecture(device), flags, log, extra) from error
        return CupyModule(module, device)


def compile_error(name: str, architecture: str, flags: tuple[str, ...], log: str, extra: str) -> KernelCompileError:
    """The error for a source that does not compile.

    Args:
        name: The source's.
        architecture: What it was compiled for.
        flags: The compiler's options.
        log: All that the compiler said.
        extra: Of this package, that brings a compiler and headers that fit each other.
    """
    message = (
        f"{name} for {architecture} with {' '.join(flags)} does not compile:\n{log[-_LOG_TAIL:].strip()}\n"
        f"`pip install --upgrade 'distillrs[{extra}]'` brings a compiler and headers that fit each other, and "
        "`distillrs doctor` shows which are there; backend='torch' needs neither."
    )
    return KernelCompileError(message, kernel=name, architecture=architecture, options=flags)


def _architecture(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


class CupyModule:
    """A module of cupy on one device.

    Args:
        module: A ``cupy.RawModule``.
        device: Its device.
    """

    def __init__(self, module: Any, device: torch.device) -> None:
        self._module = module
        self._device = device
        self._functions: dict[str, Any] = {}

    def launch(
        self, kernel: str, grid: Dimensions, block: Dimensions, arguments: Mapping[str, Argument], shared_bytes: int
    ) -> None:
        """Starts a kernel on torch's current stream of the device; does not wait for it."""
        function = self._functions.get(kernel)
        if function is None:
            function = self._functions[kernel] = self._module.get_function(kernel)
        values = tuple(_plain(value) for value in arguments.values())
        with torch.cuda.device(self._device), _stream(torch.cuda.current_stream(self._device)):
            function(grid, block, values, shared_mem=shared_bytes)


def _plain(value: Argument) -> np.generic:
    if value is None:
        return np.uint64(0)
    return np.uint64(value.data_ptr()) if isinstance(value, Tensor) else value


def _stream(stream: Any) -> Any:
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
        return cupy.cuda.Stream.from_external(stream)
    # An older cupy, or a torch that does not speak the protocol.
    return cupy.cuda.ExternalStream(stream.cuda_stream, stream.device_index)
