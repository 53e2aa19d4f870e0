"""Packed rows of a teacher cache, unpacked where they will be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda._launcher import active
from distillrs.ops._cuda._module import Argument

# As in cuda/store_decode.cu.
WARPS = 4


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where the fields of a row lie, as docs/teacher-cache-format.md has it.

    Attributes:
        vocabulary: Ids are below this.
        k: Entries of a row.
        is_half: Whether log-probabilities are float16, not eight-bit steps.
        temperatures: How many, with temperature 1.
        row_bytes: Bytes of a row.
    """

    vocabulary: int
    k: int
    is_half: bool
    temperatures: int
    row_bytes: int

    @property
    def id_bits(self) -> int:
        """Bits of an id."""
        return max(1, (self.vocabulary - 1).bit_length())

    @property
    def codes_at(self) -> int:
        """Where the log-probabilities begin."""
        return -(-self.k * self.id_bits // 8)

    @property
    def head_at(self) -> int:
        """Where the top's log-probability and the scale lie."""
        return self.codes_at + (2 * self.k if self.is_half else self.k - 1)

    @property
    def tail_at(self) -> int:
        """Where the tail's log-mass lies."""
        return self.head_at + (0 if self.is_half else 6)

    @property
    def partitions_at(self) -> int:
        """Where the log-partitions begin."""
        return self.tail_at + 2


def is_served(device: torch.device) -> bool:
    """Whether tensors on a device are the kernels' kind."""
    return device.type == active().device_type


def prepare(device: torch.device) -> None:
    """Compiles what a call needs.

    Raises:
        ArgumentError: The backend is not there.
        KernelCompileError: The compiler refuses the source.
    """
    active().module("store_decode", {}, device)


def unpack(
    layout: RowLayout, packed: Tensor, places: Tensor | None, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids and log-probabilities ``[rows, k]``, tail ``[rows]``, log-partitions ``[rows, temperatures]``.

    Nobody waits for the device, so a row that no encoder writes raises nothing: its log-probabilities, tail and
    log-partitions are not numbers.

    Args:
        layout: Of a row; ``k`` is at least 1.
        packed: uint8, the rows' bytes.
        places: int64 ``[rows]``: which packed row each one is, -1 for none; ``None`` for all in their order.
        rows: How many.
        dtype: Of the ids: int64 or int32.
    """
    device = packed.device
    ids = torch.empty(rows, layout.k, dtype=dtype, device=device)
    log_probs = torch.empty(rows, layout.k, dtype=torch.float32, device=device)
    tail = torch.empty(rows, dtype=torch.float32, device=device)
    partitions = torch.empty(rows, layout.temperatures, dtype=torch.float32, device=device)
    arguments: dict[str, Argument] = {
        "packed": packed,
        "places": places,
        "rows": np.int64(rows),
        "row_bytes": np.uint32(layout.row_bytes),
        "k": np.uint32(layout.k),
        "id_bits": np.uint32(layout.id_bits),
        "vocabulary": np.uint32(layout.vocabulary),
        "is_half": np.int32(layout.is_half),
        "codes_at": np.uint32(layout.codes_at),
        "head_at": np.uint32(layout.head_at),
        "tail_at": np.uint32(layout.tail_at),
        "partitions_at": np.uint32(layout.partitions_at),
        "temperatures": np.uint32(layout.temperatures),
        "wide_ids": ids if dtype == torch.int64 else None,
        "narrow_ids": ids if dtype == torch.int32 else None,
        "log_probs": log_probs,
        "tail": tail,
        "partitions": partitions,
    }
    grid = (-(-rows // WARPS), 1, 1)
    active().launch("store_decode", "store_decode", {}, device, grid, (32 * WARPS, 1, 1), arguments)
    return ids, log_probs, tail, partitions
