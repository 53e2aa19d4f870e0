"""Mean flows."""

from __future__ import annotations

from torch import nn

from distillrs.diffusion import (
    JVP,
    AdaptivePower,
    Central,
    Data,
    Eulerian,
    FlowMap,
    Guided,
    NetworkAdapter,
    SquaredError,
)
from distillrs.recipes._maps import adapted, check_guidance
from distillrs.registry import recipe
from distillrs.schedule import LogitNormal, RectifiedFlow, Triangle


@recipe(
    id="mean_flow",
    source="Geng, Deng, Bai, Kolter, He: Mean Flows for One-step Generative Modeling, 2025",
    equation="|u(z, r, t) - sg(v - (t - r)(v d_z u + d_t u))|^2 / sg(. + c)^p",
    deviations=[
        "The guided velocity is w v + (1 - w) u(z, t, t | none); the paper's mixing scale kappa is 0.",
        "The share off the diagonal is drawn row by row, not as a fixed part of the batch.",
    ],
    engine="diffusion",
)
def mean_flow(
    network: nn.Module | NetworkAdapter,
    off_diagonal: float = 0.25,
    mean: float = -0.4,
    std: float = 1.0,
    power: float = 1.0,
    constant: float = 1e-3,
    guidance: float | None = None,
    condition_dropout: float = 0.0,
    difference: float | None = None,
    seed: int = 0,
) -> FlowMap:
    """Mean flows on a rectified flow, ``z_t = (1 - t) x0 + t eps``.

    The network is the mean velocity from ``t`` down to ``r``. With ``v = eps - x0``, or the guided velocity, in the
    regression and in the direction of the derivative alike::

        target = v - (t - r) (v d_z u + d_t u)        L = |u - sg(target)|^2 / sg(|u - target|^2 + c)^p

    Args:
        network: u, called with (z, t, t - r, **condition).
        off_diagonal: Share of rows with r below t.
        mean: Of the logit of both times.
        std: Likewise.
        power: p.
        constant: c.
        guidance: w; ``None`` for none. The batch then brings a null condition.
        condition_dropout: Probability of a row to have the null condition; .1 in the paper with guidance.
        difference: Step of central differences in place of forward-mode derivatives; 5e-3 is common.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_guidance(guidance)
    source = Data() if guidance is None else Guided(Data(), guidance)
    return FlowMap(
        adapted(network, times="t_gap"),
        path=RectifiedFlow(),
        source=source,
        residual=Eulerian(JVP() if difference is None else Central(difference)),
        pairs=Triangle(diagonal=1 - off_diagonal, law=LogitNormal(mean, std)),
        metric=SquaredError("sum"),
        balance=AdaptivePower(power, constant),
        condition_dropout=condition_dropout,
        seed=seed,
    )
