"""Grids as the schedulers of diffusers, and back: ``pip install distillrs[diffusers]``."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import EDM, VP, AlphaTable, Grid, Kind, Path, RectifiedFlow, Solver

__all__ = ["ExportedScheduler", "from_scheduler", "path_of", "to_scheduler"]

# What diffusers calls the kinds that its schedulers for tables take.
_NAMES = {"noise": "epsilon", "x0": "sample", "v": "v_prediction"}


class ExportedScheduler(NamedTuple):
    """A scheduler and how to set it to the grid.

    Attributes:
        scheduler: Set to the grid already.
        call: Arguments of ``scheduler.set_timesteps``, and of a pipeline's call, which sets its scheduler anew:
            ``pipeline(..., **call)``.
    """

    scheduler: Any
    call: dict[str, Any]


def to_scheduler(grid: Grid, *, kind: Kind, solver: Solver = "ddim") -> ExportedScheduler:
    """The scheduler of diffusers that takes the same steps at the same levels.

    ========================  =============================  ============================================
    path, solver              scheduler                      kinds
    ========================  =============================  ============================================
    RectifiedFlow, euler      FlowMatchEulerDiscrete         velocity
    RectifiedFlow, ddim       FlowMatchEulerDiscrete         velocity (the same steps)
    VP from a table, ddim     EulerDiscrete                  noise, x0, v
    VP from a table, dpm++2m  DPMSolverMultistep             noise, x0, v; every level a row of the table
    EDM, ddim or euler        EDMEuler                       F
    ========================  =============================  ============================================

    EulerDiscrete takes Euler's step in ``sigma / alpha``, which is DDIM's step; its states are ours divided by
    ``alpha``. Between the rows of a table diffusers hands the network a number that is linear in ``log(sigma / alpha)``
    where our ``index`` clock is linear in ``log alpha``; on the rows both are the row.

    Args:
        grid: The levels; the last is 0, which the schedulers add themselves.
        kind: What the network predicts.
        solver: The steps.

    Raises:
        ArgumentError: For a combination that no scheduler of diffusers has; the message names one that it has.
    """
    path = grid.path
    if float(grid.times[-1]) != 0:
        raise argument_error("grid", f"a last time of {float(grid.times[-1]):.6g}", "one that ends at time 0")
    if isinstance(path, RectifiedFlow):
        return _flow(grid, kind, solver)
    if isinstance(path, EDM):
        return _edm(grid, path, kind, solver)
    if isinstance(path, VP) and isinstance(path.signal, AlphaTable):
        return _table(grid, path, kind, solver)
    raise argument_error("grid", path, "one of RectifiedFlow, EDM, or VP made from a table (VP.table, VP.betas)")


def from_scheduler(scheduler: Any) -> Grid:
    """The levels that a scheduler of diffusers is set to.

    Args:
        scheduler: FlowMatchEulerDiscrete, EulerDiscrete, DPMSolverMultistep or EDMEuler, after ``set_timesteps``.

    Raises:
        ArgumentError: For another scheduler, or one that is not set.
    """
    path = path_of(scheduler)
    if getattr(scheduler, "num_inference_steps", None) is None and type(scheduler).__name__ != "EDMEulerScheduler":
        raise argument_error("scheduler", "one that is not set", "one after set_timesteps")
    return Grid(path.clock(scheduler.sigmas.double(), of="ratio" if isinstance(path, VP) else "sigma"), path)


def path_of(scheduler: Any) -> Path:
    """The path that a scheduler of diffusers assumes; a table comes in the scheduler's own single precision.

    Raises:
        ArgumentError: For a scheduler that is not one of those of :func:`from_scheduler`.
    """
    name = type(scheduler).__name__
    config: Any = getattr(scheduler, "config", None)
    if name == "FlowMatchEulerDiscreteScheduler":
        if config.invert_sigmas:
            raise argument_error("scheduler", "invert_sigmas=True", "levels that fall")
        return RectifiedFlow()
    if name == "EDMEulerScheduler":
        return EDM(max(float(config.sigma_max), float(scheduler.sigmas.max())), float(config.sigma_data))
    if name == "DPMSolverMultistepScheduler" and config.use_flow_sigmas:
        return RectifiedFlow()
    if name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        return VP.table(scheduler.alphas_cumprod)
    known = ["FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
    raise unknown_name_error("scheduler", name, [*known, "EDMEulerScheduler"])


def _flow(grid: Grid, kind: Kind, solver: Solver) -> ExportedScheduler:
    _require("solver", solver, ("euler", "ddim"), "a rectified flow")
    _require("kind", kind, ("velocity",), "a rectified flow")
    return _set(_make("FlowMatchEulerDiscreteScheduler", shift=1.0), sigmas=grid.sigmas[:-1].tolist())


def _edm(grid: Grid, path: EDM, kind: Kind, solver: Solver) -> ExportedScheduler:
    # On this path the time is the level, so both are one step.
    _require("solver", solver, ("euler", "ddim"), "EDM")
    _require("kind", kind, ("F",), "EDM")
    sigmas = grid.sigmas[:-1]
    rho, high, low = 7.0, float(sigmas[0]), min(float(sigmas[-1]), float(sigmas[0]) / 2)
    scheduler = _make("EDMEulerScheduler", sigma_min=low, sigma_max=high, sigma_data=path.sigma_data, rho=rho)
    # It takes positions on its own curve of levels: those at which the curve has ours.
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    return _set(scheduler, sigmas=(top - sigmas ** (1 / rho)) / (top - bottom))


def _table(grid: Grid, path: VP, kind: Kind, solver: Solver) -> ExportedScheduler:
    _require("kind", kind, tuple(_NAMES), "a table")
    _require("solver", solver, ("ddim", "dpm++2m"), "a table")
    betas = _betas(path)
    settings: dict[str, Any] = {"trained_betas": betas.tolist(), "num_train_timesteps": len(betas)}
    settings["prediction_type"] = _NAMES[kind]
    if solver == "ddim":
        return _set(_make("EulerDiscreteScheduler", **settings), sigmas=grid.ratios.tolist())
    rows = path.clock(grid.times[:-1], to="index")
    away = (rows - rows.round()).abs()
    if float(away.max()) > 1e-6:
        allowed = "levels that are rows of the table: this scheduler takes no others; the solver 'ddim' takes any"
        raise argument_error("grid", f"row {float(rows[away.argmax()]):.6g}", allowed)
    scheduler = _make(
        "DPMSolverMultistepScheduler",
        **settings,
        solver_order=2,
        final_sigmas_type="zero",
        lower_order_final=False,
        euler_at_final=True,
    )
    return _set(scheduler, timesteps=rows.round().int().tolist())


def _betas(path: VP) -> Tensor:
    rows = torch.arange(-1, path._rows(), dtype=torch.float64)
    cumulative = path.alpha(path.clock(rows, of="index")).square()
    return 1 - cumulative[1:] / cumulative[:-1]


def _require(name: str, got: str, known: tuple[str, ...], what: str) -> None:
    if got not in known:
        raise argument_error(name, got, f"one of {', '.join(known)} for {what}")


def _make(name: str, **settings: Any) -> Any:
    return getattr(importlib.import_module("diffusers"), name)(**settings)


def _set(scheduler: Any, **call: Any) -> ExportedScheduler:
    scheduler.set_timesteps(**call)
    return ExportedScheduler(scheduler, call)
