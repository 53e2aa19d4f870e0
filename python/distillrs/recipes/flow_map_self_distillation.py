"""Flow maps that distil themselves."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import nn

from distillrs.diffusion import (
    JVP,
    Data,
    Derivative,
    Diagonal,
    Eulerian,
    FlowMap,
    Lagrangian,
    LogVariance,
    NetworkAdapter,
    OnAndOff,
    Residual,
    Self,
    Semigroup,
)
from distillrs.errors import unknown_name_error
from distillrs.recipes._maps import adapted
from distillrs.registry import recipe
from distillrs.schedule import RectifiedFlow, Triangle, Uniform

Condition: TypeAlias = Literal["lagrangian", "eulerian", "midpoint", "uniform"]


@recipe(
    id="flow-map-self-distillation",
    source="Boffi, Albergo, Vanden-Eijnden: How to Build a Consistency Model: Learning Flow Maps via "
    "Self-Distillation, NeurIPS 2025",
    equation="|v(x, t, t) - (eps - x0)|^2 and, off the diagonal, |d_r X - sg v(X, r, r)|^2, "
    "|d_t X + sg(d_x X v(x, t, t))|^2 or |v(x, t, r) - sg(mean of v over two parts)|^2; exp(-w) L + w",
    deviations=[
        "Time runs from data at 0; the paper's from noise.",
        "The share off the diagonal is drawn row by row, not as a fixed part of the batch.",
    ],
    engine="diffusion",
)
def flow_map_self_distillation(
    network: nn.Module | NetworkAdapter,
    off: Condition = "lagrangian",
    off_diagonal: float = 0.25,
    learned_weight: bool = True,
    derivative: Derivative | None = None,
    seed: int = 0,
) -> FlowMap:
    """A map ``X(x, t, r) = x + (r - t) v(x, t, r)`` and its own teacher, ``v(x, t, t)``, in one network from scratch.

    Off the diagonal one of:

    - ``lagrangian``: the end of the map moves along the network's own velocity, ``|d_r X - sg v(sg X, r, r)|^2``.
    - ``eulerian``: its start does not matter, ``|d_t X + sg(d_x X v(x, t, t))|^2``.
    - ``midpoint``, ``uniform``: the way is the sum of two, cut in the middle or anywhere.

    Each row's loss is weighted by ``exp(-w(t, r)) L + w(t, r)`` with a learned w, whose parameters are the objective's.

    Args:
        network: v, called with (x, t, r, **condition).
        off: See above.
        off_diagonal: Share of rows off the diagonal.
        learned_weight: Whether there is a w.
        derivative: ``None`` for forward mode; :class:`~distillrs.diffusion.Central` for networks without it.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    if off not in get_args(Condition):
        raise unknown_name_error("off", off, list(get_args(Condition)))
    slope = JVP() if derivative is None else derivative
    residuals: dict[str, Residual] = {
        "lagrangian": Lagrangian(slope, source=Self(), differentiate=True),
        "eulerian": Eulerian(slope, source=Self(), differentiate=True),
        "midpoint": Semigroup(),
        "uniform": Semigroup(middle="uniform"),
    }
    return FlowMap(
        adapted(network, times="t_r"),
        path=RectifiedFlow(),
        residual=OnAndOff(on=Diagonal(Data()), off=residuals[off]),
        pairs=Triangle(diagonal=1 - off_diagonal, law=Uniform(), diagonal_law=Uniform()),
        balance=LogVariance() if learned_weight else (),
        seed=seed,
    )
