"""Farthest-first traversal of points where they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillrs.ops._cuda._launcher import TYPES, active
from distillrs.ops._cuda._module import Argument

# As in cuda/farthest_first.cu.
THREADS = 256
# Every block looks at what each of them left: enough for any GPU, few enough to look at.
_BLOCKS = 1024


def is_served(points: Tensor) -> bool:
    """Whether points are of the kernel's kind."""
    return points.device.type == active().device_type and points.dtype in TYPES


def prepare(points: Tensor) -> None:
    """Compiles what a call needs.

    Raises:
        ArgumentError: The backend is not there.
        KernelCompileError: The compiler refuses the source.
    """
    active().module("farthest_first", {"POINTS": points.dtype}, points.device)


def bytes_needed(rows: int) -> int:
    """Of the device's memory beside the points and the picks."""
    return 8 * rows + 32 * _blocks(rows)


def traverse(points: Tensor, chosen: list[int], first: int | None, k: int) -> tuple[Tensor, Tensor]:
    """Picks ``[k]`` int64 and their distances to the nearest point picked or chosen before, float64 ``[k]``.

    Nothing is waited for between the picks.

    Args:
        points: ``[n, d]``, contiguous, finite.
        chosen: Rows that count as picked before.
        first: The first pick; ``None`` for the farthest of those chosen.
        k: Number of picks, at most the rows that are not chosen.
    """
    rows, device = len(points), points.device
    ids = torch.empty(k, dtype=torch.int64, device=device)
    gains = torch.empty(k, dtype=torch.float64, device=device)
    if k == 0:
        return ids, gains
    near = torch.full((rows,), torch.inf, dtype=torch.float64, device=device)
    blocks = _blocks(rows)
    # Two of each: a block writes what others still read of the step before.
    nears = torch.empty(2, blocks, dtype=torch.float64, device=device)
    places = torch.empty(2, blocks, dtype=torch.int64, device=device)
    steps: list[tuple[int | None, int | None]] = [(row, None) for row in chosen]
    steps += [(first if place == 0 else None, place) for place in range(k)]
    for number, (forced, place) in enumerate(steps):
        last, following = number % 2, 1 - number % 2
        arguments: dict[str, Argument] = {
            "points": points,
            "rows": np.int64(rows),
            "width": np.uint32(points.shape[1]),
            "forced": np.int64(-1 if forced is None else forced),
            "last_near": nears[last],
            "last_place": places[last],
            "near": near,
            "next_near": nears[following],
            "next_place": places[following],
            "pick": None if place is None else ids[place : place + 1],
            "gain": None if place is None else gains[place : place + 1],
        }
        types = {"POINTS": points.dtype}
        active().launch("farthest_first", "farthest_first", types, device, (blocks, 1, 1), (THREADS, 1, 1), arguments)
    return ids, gains


def _blocks(rows: int) -> int:
    return min(_BLOCKS, -(-rows // (THREADS // 32)))
