"""Compiles CUDA sources for a GPU without one."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from cuda_host import toolkit


def compile_source(source: str, name: str, options: Sequence[str]) -> tuple[bool, bytes, str]:
    """Whether it compiled, the binary, and the compiler's log.

    Raises:
        FileNotFoundError: The compiler or NVIDIA's headers are not there.
    """
    library = toolkit.nvrtc()
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        flags = [*options, *(f"-I{folder}" for folder in toolkit.include_folders())]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        code = library.nvrtcCompileProgram(program, len(flags), array)
        log = _text(library, program, "ProgramLog")
        binary = _text(library, program, "CUBIN") if code == 0 else b""
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    return code == 0, binary, log.rstrip(b"\0").decode(errors="replace")


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw[: size.value]


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {library.nvrtcGetErrorString(code).decode()}")
