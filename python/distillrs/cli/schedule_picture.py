"""The picture of a grid of times. It needs the ``plot`` extra (matplotlib)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from distillrs.cli.pictures import ACCENT, INK, PAGE, QUIET, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from distillrs.schedule import Grid


def draw(grid: Grid, title: str) -> Figure:
    """Levels over the steps, and below them where the times lie.

    Args:
        grid: The times.
        title: First line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), facecolor=PAGE)
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1])
    figure.subplots_adjust(left=0.12, right=0.97, top=0.89, bottom=0.12, hspace=0.42)
    # A path made from a table has a long name.
    size = min(11.0, 620 / max(len(title), 1))
    figure.text(0.12, 0.955, title, size=size, weight="bold", color=INK, va="center")
    for axes in (upper, lower):
        plain(axes)
    ratios = grid.ratios.numpy()
    shown = np.isfinite(ratios) & (ratios > 0)
    steps = np.arange(len(ratios))
    upper.plot(steps[shown], ratios[shown], color=ACCENT, linewidth=1.4, marker="o", markersize=4)
    if shown.any():
        upper.set_yscale("log")
    left_out = [f"step {step}: {'pure noise' if np.isinf(ratios[step]) else 'data'}" for step in steps[~shown]]
    if left_out:
        upper.text(
            0.99, 0.95, "\n".join(left_out), transform=upper.transAxes, ha="right", va="top", size=8, color=QUIET
        )
    upper.set_xlim(-0.3, len(ratios) - 0.7)
    upper.set_xlabel("step", size=9, color=INK)
    upper.set_ylabel("noise / signal", size=9, color=INK)
    lower.vlines(grid.times.numpy(), 0, 1, color=ACCENT, linewidth=1.4)
    lower.set_xlim(1.02, -0.02)
    lower.set_yticks([])
    lower.set_xlabel("time, from noise to data", size=9, color=INK)
    return figure
