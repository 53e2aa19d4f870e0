"""Pictures of a condensed set and of its making. They need the ``plot`` extra (matplotlib)."""

from __future__ import annotations

import importlib.util
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from distillrs.errors import argument_error
from distillrs.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEEDS_PLOT = "pictures need matplotlib: pip install 'distillrs[plot]'"

INK = "#1f2430"
QUIET = "#6b7280"
ACCENT = "#0f766e"
SECOND = "#b45309"
PAGE = "#ffffff"
_MOST_CELLS = 200
_MOST_COLUMNS = 10

Floats = npt.NDArray[np.floating[Any]]


def available() -> bool:
    """Whether the ``plot`` extra is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True)
class Grid:
    """Examples to be shown with their labels.

    Attributes:
        examples: Raw examples, [N, 1, H, W] (grey), [N, 3, H, W] (colour), or any other [N, ...] (drawn as a signal).
        labels: Class numbers, [N].
        classes: Name of each class.
        title: First line.
        subtitle: Second line, smaller.
        bounds: Least and greatest raw value that the real examples have; what lies outside is drawn at the border.

    Raises:
        ArgumentError: Shapes that do not fit.
    """

    examples: Floats
    labels: npt.NDArray[np.integer[Any]]
    classes: Sequence[str]
    title: str
    subtitle: str = ""
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.examples.ndim < 2 or len(self.examples) == 0:
            raise argument_error("examples", self.examples.shape, "[N, ...] with N >= 1")
        if self.labels.shape != (len(self.examples),):
            raise argument_error("labels", self.labels.shape, f"[{len(self.examples)}], one for each example")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise argument_error("labels", int(self.labels.max()), f"class numbers below {len(self.classes)}")
        if not self.bounds[0] < self.bounds[1]:
            raise argument_error("bounds", self.bounds, "(least, greatest), in that order")


@dataclass(frozen=True)
class Layout:
    """Which example stands in which cell.

    Attributes:
        rows: Number of rows.
        columns: Number of columns.
        cells: (row, column, index of the example), in reading order.
        row_classes: Class of each row, or empty where each cell has its own caption.
        left_out: Examples that found no place.
    """

    rows: int
    columns: int
    cells: tuple[tuple[int, int, int], ...]
    row_classes: tuple[int, ...]
    left_out: int


def arrange(labels: npt.NDArray[np.integer[Any]]) -> Layout:
    """One row for each class; a single block with a caption under each cell where every class has one example.

    Args:
        labels: Class numbers, [N].
    """
    present = np.unique(labels)
    members = {int(label): np.flatnonzero(labels == label) for label in present}
    most = max(len(indices) for indices in members.values())
    if most == 1:
        order = [int(members[int(label)][0]) for label in present][:_MOST_CELLS]
        columns = min(len(order), 5 if len(order) <= 20 else _MOST_COLUMNS)
        cells = tuple((place // columns, place % columns, index) for place, index in enumerate(order))
        return Layout(math.ceil(len(order) / columns), columns, cells, (), len(labels) - len(cells))
    columns = min(most, _MOST_COLUMNS)
    shown = [int(label) for label in present][: max(1, _MOST_CELLS // columns)]
    cells = tuple(
        (row, column, int(index))
        for row, label in enumerate(shown)
        for column, index in enumerate(members[label][:columns])
    )
    return Layout(len(shown), columns, cells, tuple(shown), len(labels) - len(cells))


def as_pixels(example: Floats, bounds: tuple[float, float]) -> Floats | None:
    """One raw example as a picture with values from 0 to 1: [H, W] or [H, W, 3]; ``None`` if it is none."""
    if example.ndim == 2:
        picture = example
    elif example.ndim == 3 and example.shape[0] in (1, 3):
        picture = example[0] if example.shape[0] == 1 else np.moveaxis(example, 0, -1)
    else:
        return None
    low, high = bounds
    pixels: Floats = np.clip((picture - low) / (high - low), 0, 1)
    return pixels


def draw_grid(grid: Grid) -> Figure:
    """The labelled grid."""
    from matplotlib.figure import Figure

    layout = arrange(grid.labels)
    side = 1.25 if layout.row_classes == () else 0.85
    left = (
        0.3 if not layout.row_classes else 0.45 + 0.085 * max(len(grid.classes[label]) for label in layout.row_classes)
    )
    top, bottom, right = 0.85 if grid.subtitle else 0.62, 0.3 if layout.left_out == 0 else 0.45, 0.3
    caption = 0.3 if not layout.row_classes else 0.0
    gap = 0.12 if not layout.row_classes else 0.05
    width = max(left + right + layout.columns * side + (layout.columns - 1) * gap, 4.6)
    height = top + bottom + layout.rows * (side + caption) + (layout.rows - 1) * gap
    figure = Figure(figsize=(width, height), facecolor=PAGE)
    figure.text(left / width, 1 - 0.22 / height, grid.title, va="top", size=13, weight="bold", color=INK)
    if grid.subtitle:
        figure.text(left / width, 1 - 0.50 / height, grid.subtitle, va="top", size=8.5, color=QUIET)
    # Signals share one scale, so that their heights can be compared.
    scale = (min(grid.bounds[0], float(grid.examples.min())), max(grid.bounds[1], float(grid.examples.max())))
    for row, column, index in layout.cells:
        x = left + column * (side + gap)
        y = height - top - side - row * (side + caption + gap)
        axes = figure.add_axes((x / width, y / height, side / width, side / height))
        _draw_example(axes, grid.examples[index], grid.bounds, scale)
        name = grid.classes[int(grid.labels[index])]
        if not layout.row_classes:
            axes.set_title(textwrap.shorten(name, 18, placeholder="…"), y=-0.21, size=9, color=INK, pad=0)
        elif column == 0:
            axes.text(-0.12, 0.5, name, transform=axes.transAxes, ha="right", va="center", size=9, color=INK)
    if layout.left_out:
        text = f"{layout.left_out} more not shown"
        figure.text(left / width, 0.15 / height, text, va="bottom", size=8, color=QUIET)
    return figure


def _draw_example(axes: Axes, example: Floats, bounds: tuple[float, float], scale: tuple[float, float]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor("#d1d5db")
        spine.set_linewidth(0.6)
    picture = as_pixels(example, bounds)
    if picture is None:
        values = example.reshape(-1)
        axes.fill_between(np.arange(len(values)), values, step="mid", color=ACCENT, alpha=0.25, linewidth=0)
        axes.step(np.arange(len(values)), values, where="mid", color=ACCENT, linewidth=0.9)
        margin = 0.05 * (scale[1] - scale[0])
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.set_ylim(scale[0] - margin, scale[1] + margin)
        return
    # Small pictures keep their hard pixel edges; large ones are scaled down smoothly.
    interpolation = "nearest" if max(picture.shape[:2]) <= 64 else "antialiased"
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation=interpolation)


@dataclass(frozen=True)
class Curve:
    """How the distillation went.

    Attributes:
        steps: Number of each recorded step.
        losses: Loss at each of them.
        validation: (step, accuracy in [0, 1]) of each check.
        best_step: The step whose set was kept.
        references: Accuracies in [0, 1] to compare with, by name, drawn as level lines.
        title: First line.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    validation: Sequence[tuple[int, float]]
    best_step: int | None
    references: dict[str, float]
    title: str


def draw_curve(curve: Curve) -> Figure:
    """Loss above, validation accuracy below, over the steps of the distillation."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 5.0), facecolor=PAGE)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1])
    figure.subplots_adjust(left=0.11, right=0.97, top=0.88, bottom=0.1, hspace=0.14)
    figure.text(0.11, 0.955, curve.title, size=12, weight="bold", color=INK, va="center")
    for axes in (upper, lower):
        plain(axes)

    losses = np.asarray(curve.losses, dtype=np.float64)
    finite = np.isfinite(losses)
    if finite.any():
        steps = np.asarray(curve.steps)[finite]
        upper.plot(steps, losses[finite], color=ACCENT, linewidth=0.6, alpha=0.35)
        smooth = running_mean(losses[finite], max(1, finite.sum() // 40))
        upper.plot(steps, smooth, color=ACCENT, linewidth=1.6, label="loss (running mean)")
        if (losses[finite] > 0).all() and losses[finite].max() > 20 * losses[finite].min():
            upper.set_yscale("log")
        upper.legend(frameon=False, fontsize=8, labelcolor=INK)
    upper.set_ylabel("loss", size=9, color=INK)

    if curve.validation:
        checked, accuracies = zip(*curve.validation, strict=True)
        lower.plot(checked, accuracies, color=ACCENT, linewidth=1.6, marker="o", markersize=3.5, label="validation")
        best = dict(curve.validation).get(curve.best_step) if curve.best_step is not None else None
        if best is not None:
            lower.plot([curve.best_step], [best], "o", markersize=9, mfc="none", mec=SECOND, mew=1.6, label="kept")
    for (name, accuracy), style in zip(curve.references.items(), _styles(), strict=False):
        lower.axhline(accuracy, color=QUIET, linewidth=1.1, linestyle=style, label=name)
    lower.set_ylabel("accuracy", size=9, color=INK)
    lower.set_xlabel("step", size=9, color=INK)
    lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if lower.get_legend_handles_labels()[0]:
        lower.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    return figure


def plain(axes: Axes) -> None:
    """Axes with a faint grid and two spines."""
    axes.grid(visible=True, color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor("#9ca3af")


def _styles() -> list[Any]:
    return ["--", ":", "-.", (0, (1, 4))]


def running_mean(values: Floats, window: int) -> Floats:
    """Mean over the last ``window`` values (fewer at the start), [n] to [n]."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    mean: Floats = (total[ends] - total[starts]) / (ends - starts)
    return mean


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all. Equal figures give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    # matplotlib writes its version into the file; the same data should give the same file.
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=160, metadata={"Software": None})
    write_whole(path, buffer.getvalue())
