"""Shortcut models."""

from __future__ import annotations

from torch import nn

from distillrs.diffusion import Data, Diagonal, FlowMap, NetworkAdapter, OnAndOff, Semigroup
from distillrs.errors import argument_error
from distillrs.recipes._maps import adapted
from distillrs.registry import recipe
from distillrs.schedule import Nested, RectifiedFlow, Uniform, WithDiagonal


@recipe(
    id="shortcut",
    source="Frans, Hafner, Levine, Abbeel: One Step Diffusion via Shortcut Models, ICLR 2025",
    equation="|s(x, t, 0) - (eps - x0)|^2 + |s(x, t, 2d) - sg (s(x, t, d) + s(x', t - d, d)) / 2|^2",
    deviations=[
        "Time runs from data at 0; the paper's from noise.",
        "Flow-matching rows have times uniform in [0, 1], not on the 128 steps; their step size is 0, which the "
        "shortest halves use, too.",
        "Without guidance (the paper's images have it, 1.5, in the bootstrapped targets at the smallest step).",
        "The share that bootstraps is drawn row by row, not as a fixed part of the batch.",
    ],
    engine="diffusion",
)
def shortcut(
    network: nn.Module | NetworkAdapter,
    depth: int = 7,
    bootstrap: float = 0.25,
    average: nn.Module | NetworkAdapter | None = None,
    seed: int = 0,
) -> FlowMap:
    """Shortcut models on a rectified flow: the network is told how far it is to go.

    A quarter of the rows agree with two of the network's own half steps, the others with the velocity. The halves use
    the network's marginal velocities: from conditional ones the target would be the straight chord::

        x' = x - d s(x, t, d)        L = |s(x, t, 2d) - sg (s(x, t, d) + s(x', t - d, d)) / 2|^2

    Args:
        network: s, called with (x, t, step size, **condition).
        depth: The shortest half is ``2^-depth``.
        bootstrap: Share of rows with a step size above 0.
        average: The moving average of ``network`` that makes targets (rate .999 in the paper); ``None`` for the present
            weights.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    if not 0 <= bootstrap <= 1:
        raise argument_error("bootstrap", bootstrap, "a share from 0 to 1")
    return FlowMap(
        adapted(network, times="t_gap"),
        path=RectifiedFlow(),
        residual=OnAndOff(on=Diagonal(Data()), off=Semigroup(instant=2.0**-depth)),
        pairs=WithDiagonal(Nested(depth), 1 - bootstrap, Uniform()),
        target=None if average is None else adapted(average, "average", times="t_gap"),
        seed=seed,
    )
