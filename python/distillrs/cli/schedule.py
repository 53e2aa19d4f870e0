"""``distillrs schedule``: the times of a sampler, printed, drawn, and exported."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro
from rich.console import Console
from rich.table import Table

from distillrs.cli import exit_codes
from distillrs.errors import ArgumentError, argument_error

if TYPE_CHECKING:
    from distillrs import schedule

PathName = Literal["edm", "flow", "trig", "vp", "vp-cosine", "vp-table"]
Spacing = Literal["karras", "time", "log-snr", "angle", "table"]
# EDM's own, and the scale on which levels of other paths are ratios of noise to signal.
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0
# The flags that a spacing takes its levels from.
_LEVELS = {"karras": ("rho", "sigma_min", "sigma_max"), "log-snr": ("sigma_min", "sigma_max")}
_BAR = 32
FORMAT = "distillrs.grid"
FILE, PICTURE, CONFIG = "grid.json", "grid.png", "scheduler_config.json"


@dataclass(frozen=True)
class Schedule:
    """Print the grid of times that a sampler with few steps visits, and export it.

    With --optimise the times are those whose steps from a teacher's own states err least: the file holds the states and
    velocities of a teacher along a fine grid, as schedule.Trajectories.save and `distillrs distill-sampler` write them.
    OUT then holds grid.json, grid.png, and scheduler_config.json where diffusers is installed and has such a scheduler.

    Example: distillrs schedule --path edm --steps 8 --out out/grid
    """

    path: Annotated[
        str,
        tyro.conf.arg(
            metavar="NAME",
            help="edm; flow (rectified flow); trig; vp, vp-cosine (variance preserving); vp-table (the thousand "
            "rows of Stable Diffusion).",
        ),
    ] = "edm"
    steps: Annotated[int, tyro.conf.arg(metavar="N", help="Number of steps.")] = 8
    spacing: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="karras; equal steps of time, log-snr or angle; table (rows, for vp-table).",
            help_behavior_hint="(default: karras for edm, table for vp-table, else time)",
        ),
    ] = None
    shift: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="S", help="Equal steps of time, moved towards noise by S above 1.", help_behavior_hint=""
        ),
    ] = None
    rho: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="R", help="Of karras: the larger, the denser near the data.", help_behavior_hint="(default: 7)"
        ),
    ] = None
    sigma_min: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="S",
            help="Last level above 0, noise over signal, of karras and log-snr.",
            help_behavior_hint="(default: 0.002)",
        ),
    ] = None
    sigma_max: Annotated[
        float | None,
        tyro.conf.arg(
            metavar="S",
            help="First level, likewise; on edm also the path's own.",
            help_behavior_hint="(default: 80, or the most that the path has)",
        ),
    ] = None
    optimise: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help="Choose the times from these trajectories instead.", help_behavior_hint=""),
    ] = None
    solver: Annotated[
        Literal["euler", "ddim"], tyro.conf.arg(help="The sampler's steps, for --optimise and for the scheduler.")
    ] = "ddim"
    prediction: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="KIND",
            help="What the network predicts (noise, x0, v, velocity, F), for the scheduler.",
            help_behavior_hint="(default: F for edm, velocity for flow, else noise)",
        ),
    ] = None
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help="Where the files go.", help_behavior_hint="(default: none)")
    ] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs.", help_behavior_hint="")] = False

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        grid, error = self._grid()
        page = describe(grid, self.path)
        if error is not None:
            page["error"] = error
        exported, reason = self._export(grid)
        if exported is not None:
            page["scheduler"] = {"class": type(exported.scheduler).__name__, "call": _plain(exported.call)}
        if self.out is not None:
            self._write(self.out, grid, page, exported)
        if self.json:
            output.out(json.dumps(page, indent=2, allow_nan=False), highlight=False)
            return exit_codes.SUCCESS
        output.print(table(page), highlight=False, markup=False)
        if error is not None:
            text = f"\nsteps from the teacher's own states err by {error:.4g} in all (root mean square)"
            output.print(text, highlight=False, markup=False)
        if exported is not None:
            text = f"\nin diffusers: {type(exported.scheduler).__name__}, set by set_timesteps({_words(exported.call)})"
            output.print(text, highlight=False, markup=False, soft_wrap=True)
        elif reason:
            messages.print(f"no scheduler of diffusers: {reason}", style="dim", highlight=False, markup=False)
        if self.out is not None:
            output.print(f"\n{self.out}: {', '.join(page['files'])}", highlight=False, markup=False, soft_wrap=True)
        return exit_codes.SUCCESS

    def _grid(self) -> tuple[schedule.Grid, float | None]:
        from distillrs import schedule

        path = make_path(self.path, self.sigma_max)
        if self.optimise is None:
            spacing = self._spacing()
            self._refuse_unused(_LEVELS.get(spacing, ()), f"nothing with the spacing {spacing}, which has none")
            given = {name: getattr(self, name) for name in _LEVELS["karras"] if getattr(self, name) is not None}
            return make_grid(path, self.steps, spacing, self.shift, **given), None
        for name in ("spacing", "shift"):
            if getattr(self, name) is not None:
                raise argument_error(name, getattr(self, name), "nothing with --optimise, which chooses the times")
        self._refuse_unused((), "nothing with --optimise, which chooses the times")
        trajectories = schedule.Trajectories.load(self.optimise, path)
        found = schedule.optimise_grid(trajectories, path, (self.steps,), solver=self.solver)[self.steps]
        return found.grid, found.error

    def _refuse_unused(self, used: Sequence[str], allowed: str) -> None:
        for name in _LEVELS["karras"]:
            own = name == "sigma_max" and self.path == "edm"
            if getattr(self, name) is not None and name not in used and not own:
                raise argument_error(name, getattr(self, name), allowed)

    def _spacing(self) -> str:
        if self.spacing is not None:
            if self.spacing not in get_args(Spacing):
                raise argument_error("spacing", self.spacing, f"one of {', '.join(get_args(Spacing))}")
            if self.shift is not None and self.spacing != "time":
                raise argument_error("shift", self.shift, "nothing unless the spacing is time")
            return self.spacing
        if self.shift is not None:
            return "time"
        return {"edm": "karras", "vp-table": "table"}.get(self.path, "time")

    def _export(self, grid: schedule.Grid) -> tuple[Any, str]:
        """The scheduler of diffusers, or why there is none."""
        if self.out is None and self.prediction is None:
            return None, ""  # importing diffusers takes longer than everything else here
        from distillrs.integrations import diffusers

        kind: Any = self.prediction or {"edm": "F", "flow": "velocity"}.get(self.path, "noise")
        if importlib.util.find_spec("diffusers") is None:
            return None, "the package is not installed: pip install 'distillrs[diffusers]'"
        try:
            return diffusers.to_scheduler(grid, kind=kind, solver=self.solver), ""
        except ArgumentError as refusal:
            if self.prediction is not None:
                allowed = f"what a scheduler of diffusers has for this grid ({refusal})"
                raise argument_error("prediction", self.prediction, allowed) from refusal
            return None, str(refusal)

    def _write(self, out: Path, grid: schedule.Grid, page: dict[str, Any], exported: Any) -> None:
        from distillrs.cli import pictures, schedule_picture
        from distillrs.files import write_whole

        out.mkdir(parents=True, exist_ok=True)
        page["files"] = [FILE]
        if pictures.available():
            pictures.save(schedule_picture.draw(grid, headline(page)), out / PICTURE)
            page["files"].append(PICTURE)
        if exported is not None:
            write_whole(out / CONFIG, exported.scheduler.to_json_string().encode())
            page["files"].append(CONFIG)
        write_whole(out / FILE, (json.dumps(page, indent=2, allow_nan=False) + "\n").encode())


def make_path(name: str, sigma_max: float | None = None) -> schedule.Path:
    """A path by its name on the command line.

    Args:
        name: One of :data:`PathName`.
        sigma_max: Level at time 1, for ``edm``.

    Raises:
        ArgumentError: Another name.
    """
    from distillrs import schedule

    if name == "edm":
        return schedule.EDM(_SIGMA_MAX if sigma_max is None else sigma_max)
    known: dict[str, Callable[[], schedule.Path]] = {
        "flow": schedule.RectifiedFlow,
        "trig": schedule.Trig,
        "vp": schedule.VP.linear,
        "vp-cosine": schedule.VP.cosine,
        "vp-table": schedule.VP.betas,
    }
    if name not in known:
        raise argument_error("path", name, f"one of {', '.join(get_args(PathName))}")
    return known[name]()


def make_grid(
    path: schedule.Path,
    steps: int,
    spacing: str,
    shift: float | None = None,
    rho: float = 7.0,
    sigma_min: float = _SIGMA_MIN,
    sigma_max: float | None = None,
) -> schedule.Grid:
    """A grid that ends in the data.

    Args:
        path: What the times are of.
        steps: Number of steps.
        spacing: One of :data:`Spacing`.
        shift: Of equal steps of time.
        rho: Of ``karras``.
        sigma_min: Last level above 0, of ``karras`` and ``log-snr``.
        sigma_max: First level, likewise; ``None`` for 80 or the most that the path has.
    """
    from distillrs import schedule

    if spacing == "time":
        return schedule.spaced(steps, path) if shift is None else schedule.shifted(steps, shift, path)
    if spacing == "angle":
        return schedule.spaced(steps, path, of="angle")
    if spacing == "table":
        if not (isinstance(path, schedule.VP) and isinstance(path.signal, schedule.AlphaTable)):
            raise argument_error("spacing", spacing, "another one: only vp-table has rows")
        return schedule.ddim(steps, path)
    most = float(path.clock(1.0, to="ratio"))
    if sigma_max is None:
        sigma_max = min(_SIGMA_MAX, most)
    elif not (math.isfinite(sigma_max) and 0 < sigma_max <= most):
        raise argument_error("sigma_max", sigma_max, f"a level of the path: finite, above 0, at most {most:.6g}")
    if spacing == "karras":
        return schedule.karras(steps, sigma_min, sigma_max, rho, path=path)
    if not 0 < sigma_min < sigma_max:
        raise argument_error("sigma_min", sigma_min, f"above 0 and below sigma_max, {sigma_max:.6g}")
    start, end = (min(float(path.clock(level, of="ratio")), 1.0) for level in (sigma_max, sigma_min))
    return schedule.spaced(steps, path, of="log_snr", start=start, end=end, then_data=True)


def describe(grid: schedule.Grid, name: str) -> dict[str, Any]:
    """Everything of a grid as JSON values; an infinite log-SNR is ``None``."""
    return {
        "format": FORMAT,
        "version": 1,
        "path": name,
        "description": repr(grid.path),
        "steps": grid.steps,
        "times": grid.times.tolist(),
        "alphas": grid.alphas.tolist(),
        "sigmas": grid.sigmas.tolist(),
        "log_snr": [value if math.isfinite(value) else None for value in grid.log_snr.tolist()],
    }


def headline(page: dict[str, Any]) -> str:
    """One line that says what it is."""
    steps = page["steps"]
    return f"{page['description']}, {steps} step{'s' if steps > 1 else ''}"


def table(page: dict[str, Any]) -> Table:
    """The grid for people, with a bar that shows where each level lies in log-SNR."""
    view = Table(title=headline(page), title_justify="left", title_style="bold", box=None, header_style="bold")
    for name in ("step", "time", "alpha", "sigma", "log-SNR"):
        view.add_column(name, justify="right")
    view.add_column("noise" + " " * (_BAR - 9) + "data", no_wrap=True)
    finite = [value for value in page["log_snr"] if value is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    for index, time in enumerate(page["times"]):
        level = page["log_snr"][index]
        if level is None:
            place, shown = (0, "-inf") if index == 0 else (_BAR - 1, "inf")
        else:
            # The borders belong to the infinite ends.
            share = (level - low) / (high - low) if high > low else 0.5
            place, shown = 1 + round(share * (_BAR - 3)), f"{level:.3f}"
        bar = "-" * place + "o" + "-" * (_BAR - 1 - place)
        numbers = (f"{value:.5g}" for value in (time, page["alphas"][index], page["sigmas"][index]))
        view.add_row(str(index), *numbers, shown, bar)
    return view


def _plain(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in call.items()}


def _words(call: dict[str, Any]) -> str:
    parts = []
    for name, value in _plain(call).items():
        shown = ", ".join(f"{one:.6g}" for one in value)
        parts.append(f"{name}=[{shown}]")
    return ", ".join(parts)
