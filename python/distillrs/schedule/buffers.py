"""Moving buffers: frames of a stream at different levels of noise that fall together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from distillrs import random
from distillrs.errors import argument_error
from distillrs.random import Units
from distillrs.schedule.grids import Grid, check_grid
from distillrs.step import Step


class BufferMove(NamedTuple):
    """One network call on the whole buffer.

    Attributes:
        first: Number of the stream's frame that stands first in the buffer.
        levels: Time of each frame at the call, oldest frame first: float64 ``[frames]``.
        to: Time of each frame after it; 0 for those that are finished then.
        pops: Frames that leave the buffer after the call, from its front.
        pushes: Frames of pure noise that enter after the call, at its back.
    """

    first: int
    levels: Tensor
    to: Tensor
    pops: int
    pushes: int


@dataclass(frozen=True, slots=True)
class MovingBuffer:
    """A window over a stream in which each chunk of frames is nearer to data than the one behind it.

    A grid of ``chunks * micro_steps`` steps is split among the chunks: in micro-step ``m`` the chunk ``i`` places from
    the back stands at the grid's time ``i * micro_steps + m``. After ``micro_steps`` calls the front chunk has reached
    the grid's end and leaves, and a chunk of noise enters: Kodaira et al., "StreamDiT: real-time streaming
    text-to-video generation" (2025); with chunks of one frame and one micro-step the buffer of Hoeg et al., "Streaming
    diffusion policy" (2024).

    Attributes:
        grid: From noise to data; its steps are a multiple of ``chunks``.
        chunks: Chunks in the full buffer.
        chunk_frames: Frames of a chunk, which share their level.
    """

    grid: Grid
    chunks: int
    chunk_frames: int = 1

    def __post_init__(self) -> None:
        check_grid("grid", self.grid)
        for name in ("chunks", "chunk_frames"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "a positive integer")
        if self.grid.steps % self.chunks:
            raise argument_error("chunks", self.chunks, f"a divisor of the grid's {self.grid.steps} steps")

    @property
    def frames(self) -> int:
        """Frames of the full buffer."""
        return self.chunks * self.chunk_frames

    @property
    def micro_steps(self) -> int:
        """Calls from one chunk that leaves to the next."""
        return self.grid.steps // self.chunks

    def levels(self, micro_step: int, chunks: int | None = None) -> Tensor:
        """Times of the frames of a buffer before a micro-step.

        Args:
            micro_step: 0 to :attr:`micro_steps`; the last is the state after the last call, before the front leaves.
            chunks: Chunks that are there, from the back; ``None`` for all.

        Returns:
            float64 ``[chunks * chunk_frames]``, rising.

        Raises:
            ArgumentError: For numbers out of range.
        """
        chunks = self.chunks if chunks is None else chunks
        if not 0 <= micro_step <= self.micro_steps:
            raise argument_error("micro_step", micro_step, f"an integer from 0 to {self.micro_steps}")
        if not 1 <= chunks <= self.chunks:
            raise argument_error("chunks", chunks, f"an integer from 1 to {self.chunks}")
        rows = torch.arange(chunks - 1, -1, -1) * self.micro_steps + micro_step
        return self.grid.times[rows].repeat_interleave(self.chunk_frames)

    def plan(self, chunks: int, start: Literal["grow", "full"] = "grow") -> list[BufferMove]:
        """The calls that give so many chunks of the stream.

        Args:
            chunks: Chunks to finish.
            start: ``grow``: the buffer begins with one chunk of noise and is filled from behind; it takes
                ``grid.steps`` calls to the first chunk. ``full``: it begins with all its chunks, which the caller has
                brought to :meth:`levels` ``(0)``, by noise added to given frames for example; ``micro_steps`` calls.

        Raises:
            ArgumentError: For fewer chunks than one, or another ``start``.
        """
        if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1:
            raise argument_error("chunks", chunks, "a positive integer")
        if start not in ("grow", "full"):
            raise argument_error("start", start, "'grow' or 'full'")
        present = 1 if start == "grow" else self.chunks
        moves: list[BufferMove] = []
        done = 0
        while done < chunks:
            finishes = present == self.chunks
            for micro_step in range(self.micro_steps):
                last = micro_step == self.micro_steps - 1
                moves.append(
                    BufferMove(
                        done * self.chunk_frames,
                        self.levels(micro_step, present),
                        self.levels(micro_step + 1, present),
                        self.chunk_frames if last and finishes else 0,
                        self.chunk_frames if last else 0,
                    )
                )
            done += finishes
            present = min(present + 1, self.chunks)
        return moves

    def draw(
        self, units: Units, *, step: Step | int, name: str = "t", device: torch.device | str | None = None
    ) -> Tensor:
        """Draws levels to train at: those of the full buffer at a time between two calls, each equally likely.

        All frames of a unit fall by the same share of their micro-step, so the levels are those that the stream has
        and those in between.

        Args:
            units: Whom to draw for; see :mod:`distillrs.random`.
            step: Where in the run.
            name: What the draw is for.
            device: Where the result goes; the CPU by default.

        Returns:
            float64 ``[len(units), frames]``, rising along the frames.
        """
        share = random.uniform(units, step=step, name=name, dtype=torch.float64) * self.micro_steps
        whole = share.floor().clamp(max=self.micro_steps - 1).long()
        table = torch.stack([self.levels(micro_step) for micro_step in range(self.micro_steps + 1)])
        part = (share - whole)[:, None]
        return (table[whole] + part * (table[whole + 1] - table[whole])).to(device)
