"""Element types by name: torch's own names in Python, safetensors' names on disk."""

from __future__ import annotations

import torch

from distillrs.errors import argument_error

_ON_DISK = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_FROM_DISK = {name: dtype for dtype, name in _ON_DISK.items()}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _ON_DISK}

HALF_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2})


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """The torch type of that name, or the type itself.

    Raises:
        ArgumentError: A store cannot hold this type.
    """
    found = _BY_NAME.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in _ON_DISK:
        raise argument_error("dtype", dtype if isinstance(dtype, str) else str(dtype), f"one of {', '.join(_BY_NAME)}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """A type's name without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def disk_name(dtype: torch.dtype) -> str:
    """The name that the safetensors format gives to a type."""
    return _ON_DISK[dtype]


def from_disk_name(name: str) -> torch.dtype:
    """The type that the safetensors format calls ``name``.

    Raises:
        ArgumentError: There is none.
    """
    if name not in _FROM_DISK:
        raise argument_error("dtype", name, f"one of {', '.join(_FROM_DISK)}")
    return _FROM_DISK[name]
