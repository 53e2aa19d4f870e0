"""A teacher's states along a grid, in a trajectory store, for states that are taken from there."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from distillrs import random
from distillrs.diffusion.checks import check_shape
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.states import Batch
from distillrs.errors import DataError, argument_error
from distillrs.random import Units
from distillrs.schedule import Grid
from distillrs.schedule.grids import check_grid
from distillrs.step import Step
from distillrs.trajectory import Codec, Column, Schema, Store

_COLUMN = "state"


class StoredPaths:
    """Paths of one grid, each a trajectory of a store with one record for each of the grid's times.

    ::

        paths = StoredPaths.create("paths", grid, shape=(64,))
        paths.record(schedule.integrate(grid, noise, teacher, every=True).transpose(0, 1))
        batch = Batch(path_states=paths.draw(256, step=step))

    Attributes:
        store: The store.
        grid: The times of the records, from noise.

    Args:
        store: With one column of states, as :meth:`create` makes it or of your own.
        grid: The times of its records.

    Raises:
        ArgumentError: For what is no store or no grid, a store of several columns, or one that was made for other
            times.
    """

    __slots__ = ("_keys", "grid", "store")

    def __init__(self, store: Store, grid: Grid) -> None:
        if not isinstance(store, Store):
            raise argument_error("store", type(store).__name__, "a trajectory.Store")
        check_grid("grid", grid)
        if len(list(store.schema)) != 1:
            raise argument_error("store", f"columns {', '.join(store.schema)}", "a store of one column, the states")
        told = store.metadata.get("times")
        if told is not None and told != grid.times.tolist():
            raise argument_error("grid", grid, f"the times that the store was made for, {told}")
        self.store, self.grid = store, grid
        self._keys: list[str] | None = None

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        grid: Grid,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        codec: str | Codec = "raw",
        exist_ok: bool = False,
    ) -> StoredPaths:
        """Makes a store for the paths of a grid.

        Args:
            folder: Where.
            grid: The times.
            shape: Of one state.
            dtype: Of the states.
            codec: How they are kept; see :class:`~distillrs.trajectory.Column`.
            exist_ok: Whether a store of the same kind may be there, to go on with it.

        Raises:
            ArgumentError: For what is no grid or no shape.
            StoreExists: There is one.
        """
        check_grid("grid", grid)
        check_shape("shape", shape)
        schema = Schema(**{_COLUMN: Column(shape, dtype, codec)})
        return cls(Store.create(folder, schema, {"times": grid.times.tolist()}, exist_ok=exist_ok), grid)

    def __len__(self) -> int:
        """Number of complete paths."""
        return len(self._complete())

    def record(self, states: Tensor, *, first: int = 0) -> None:
        """Adds paths; those that are complete already are left as they are.

        Args:
            states: ``[n, steps + 1, ...]``, on any device.
            first: Number of the first one.

        Raises:
            ArgumentError: For states of another shape or type than the store's.
        """
        points = self.grid.steps + 1
        if not isinstance(states, Tensor) or states.dim() < 2 or states.shape[1] != points:
            got = f"shape {tuple(states.shape)}" if isinstance(states, Tensor) else type(states).__name__
            raise argument_error("states", got, f"a tensor [n, {points}, ...]: the grid's times")
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise argument_error("first", first, "a number from 0")
        column = next(iter(self.store.schema))
        for number, path in enumerate(states.detach().cpu(), first):
            key = f"path-{number:09d}"
            if key in self.store:
                continue
            with self.store.begin(key, resume_at=0) as writer:
                for state in path:
                    writer.append(**{column: state})
        self._keys = None

    def draw(
        self, units: Units, *, step: Step | int, name: str = "path", device: torch.device | str | None = None
    ) -> Tensor:
        """Draws paths, each of the complete ones equally likely; for ``Batch.path_states``.

        Args:
            units: Whom to draw for; see :mod:`distillrs.random`.
            step: Where in the run.
            name: What the draw is for.
            device: Where the result goes; the CPU by default.

        Returns:
            ``[len(units), steps + 1, ...]``, of the store's type.

        Raises:
            DataError: There is no complete path, or one of another length than the grid's.
        """
        keys = self._complete()
        if not keys:
            raise DataError("store: it holds no complete path; record one")
        chosen = random.integers(units, len(keys), step=step, name=name).tolist()
        column = next(iter(self.store.schema))
        points = range(self.grid.steps + 1)
        found = {index: self.store.read(keys[index], points, column) for index in sorted(set(chosen))}
        if not chosen:
            return self.store.read(keys[0], points, column)[None][:0].to(device)
        return torch.stack([found[index] for index in chosen]).to(device)

    def batch(
        self,
        rows: int,
        *,
        step: Step | int,
        name: str = "path",
        device: torch.device | str | None = None,
        condition: Condition = None,
        null_condition: Condition = None,
    ) -> Batch:
        """A batch of drawn paths for :class:`TeacherPath`; arguments are those of :meth:`draw` and :class:`Batch`."""
        states = self.draw(rows, step=step, name=name, device=device)
        return Batch(condition=condition, null_condition=null_condition, path_states=states)

    def _complete(self) -> list[str]:
        if self._keys is None:
            lengths = self.store.lengths()
            for key, length in lengths.items():
                if length != self.grid.steps + 1:
                    raise DataError(f"{key}: it has {length} records, the grid has {self.grid.steps + 1} times")
            self._keys = list(lengths)
        return self._keys
