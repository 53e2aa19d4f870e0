"""Sampled trajectories of a teacher, from which grids are chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distillrs.checks import is_number
from distillrs.errors import DataError, argument_error
from distillrs.files import write_whole
from distillrs.schedule._times import check_values
from distillrs.schedule.grids import Grid
from distillrs.schedule.path import Kind, Path
from distillrs.schedule.solvers import Solver, Velocity, integrate

FORMAT = "distillrs.trajectories"
VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Trajectories:
    """States and velocities of several samples at the times of a fine grid.

    Attributes:
        grid: The fine grid, ``n`` steps.
        states: ``[n + 1, samples, ...]``, float32 or float64.
        velocities: ``[n, samples, ...]``: at every state but the last.
    """

    grid: Grid
    states: Tensor
    velocities: Tensor

    def __post_init__(self) -> None:
        check_values("states", self.states)
        check_values("velocities", self.velocities)
        points = self.grid.steps + 1
        if self.states.dim() < 2 or len(self.states) != points:
            raise argument_error("states", f"shape {tuple(self.states.shape)}", f"[{points}, samples, ...]")
        expected = (points - 1, *self.states.shape[1:])
        if tuple(self.velocities.shape) != expected:
            raise argument_error("velocities", f"shape {tuple(self.velocities.shape)}", f"shape {expected}")
        for name, values in (("states", self.states), ("velocities", self.velocities)):
            if values.dtype not in (torch.float32, torch.float64):
                raise argument_error(name, values.dtype, "float32 or float64")
            if not bool(values.isfinite().all()):
                raise argument_error(name, "values that are not finite", "finite values")

    @classmethod
    def record(
        cls, grid: Grid, x: Tensor, predict: Velocity, *, solver: Solver = "heun", kind: Kind = "velocity"
    ) -> Trajectories:
        """Runs a teacher along a fine grid; its velocities are taken at the states of the solver.

        Args:
            grid: The fine grid.
            x: States at its first time, ``[samples, ...]``.
            predict: The teacher; see :func:`integrate`.
            solver: The solver.
            kind: What the teacher predicts.
        """
        with torch.no_grad():
            states = integrate(grid, x, predict, solver=solver, kind=kind, every=True)
            velocities = [
                grid.path.convert(predict(state, t), state, t, kind=kind, to="velocity")
                for state, t in zip(states[:-1], grid.times[:-1], strict=True)
            ]
        return cls(grid, states, torch.stack(velocities))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them as a safetensors file with ``times``, ``states`` and ``velocities``, whole or not at all.

        Args:
            path: The file; its folder is made if it is not there.
        """
        page = {
            "format": FORMAT,
            "version": VERSION,
            "path": repr(self.grid.path),
            "alphas": self.grid.alphas.tolist(),
            "sigmas": self.grid.sigmas.tolist(),
        }
        tensors = {"times": self.grid.times, "states": self.states, "velocities": self.velocities}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        file = FilePath(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, safetensors.torch.save(tensors, {"distillrs": json.dumps(page, sort_keys=True)}))

    @classmethod
    def load(cls, file: str | os.PathLike[str], path: Path) -> Trajectories:
        """Reads what :meth:`save` wrote, or any safetensors file with those three tensors.

        Args:
            file: The file.
            path: What the times are of.

        Raises:
            DataError: There is no such file.
            ArgumentError: A file of another kind, one that says it is of another path, or tensors that do not fit.
        """
        try:
            with safetensors.safe_open(os.fspath(file), "pt") as opened:
                metadata = opened.metadata() or {}
                missing = {"times", "states", "velocities"} - set(opened.keys())
                if missing:
                    allowed = "a file with the tensors times, states and velocities"
                    raise argument_error("trajectories", f"{file} without {', '.join(sorted(missing))}", allowed)
                tensors = {name: opened.get_tensor(name) for name in ("times", "states", "velocities")}
        except FileNotFoundError as failure:
            raise DataError(f"trajectories: there is no file {file}") from failure
        except (safetensors.SafetensorError, OSError) as failure:
            raise argument_error("trajectories", str(file), f"a safetensors file ({failure})") from failure
        page = _page(file, metadata)
        if tensors["times"].dim() != 1 or not tensors["times"].is_floating_point():
            got = f"shape {tuple(tensors['times'].shape)} of {tensors['times'].dtype}"
            raise argument_error("times", got, "floating-point times along one axis")
        grid = Grid(tensors["times"].double(), path)
        if not _same_path(page, grid):
            raise argument_error("path", repr(path), f"that of the trajectories in {file}, {page.get('path')}")
        return cls(grid, tensors["states"], tensors["velocities"])


def _page(file: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, object]:
    """What the file says of itself; nothing where another program wrote it."""
    try:
        page = json.loads(metadata.get("distillrs", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(page, dict) or page.get("format") != FORMAT:
        return {}
    if page.get("version") != VERSION:
        allowed = f"trajectories of version {VERSION}, the only one that this version reads"
        raise argument_error("trajectories", f"{file} of version {page.get('version')!r}", allowed)
    return page


def _same_path(page: Mapping[str, object], grid: Grid) -> bool:
    """Whether the path has the levels that the file says; words alone say 80 and 80.0 of one, and shorten tables."""
    if "alphas" not in page or "sigmas" not in page:
        return page.get("path", repr(grid.path)) == repr(grid.path)
    for name, own in (("alphas", grid.alphas), ("sigmas", grid.sigmas)):
        said = page[name]
        if not isinstance(said, list) or len(said) != len(own) or not all(map(is_number, said)):
            return False
        if not torch.allclose(own, torch.tensor(said, dtype=torch.float64), rtol=1e-9, atol=1e-12):
            return False
    return True
