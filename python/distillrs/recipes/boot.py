"""BOOT: a map from noise, bootstrapped without data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from distillrs.checks import check_number
from distillrs.diffusion import (
    Diagonal,
    FlowMap,
    Guided,
    Jump,
    Lagrangian,
    NetworkAdapter,
    OnAndOff,
    PriorOnly,
    Score,
    Solver,
    Weighted,
)
from distillrs.diffusion.balance import Rows
from distillrs.errors import argument_error
from distillrs.recipes._maps import adapted, check_guidance, teacher_score
from distillrs.registry import recipe
from distillrs.schedule import VP, FromNoise, Kind, Path, Uniform, WithDiagonal


@recipe(
    id="boot",
    source="Gu, Zhai, Zhang, Liu, Susskind: BOOT: Data-free Distillation of Denoising Diffusion Models with "
    "Bootstrapping, 2023",
    equation="|g(eps, s) - sg((1 - rho) f_T(x_t, t) + rho g(eps, t))|^2 / (1 - rho)^2, x_t = alpha_t g(eps, t) + "
    "sigma_t eps, rho = sigma_s alpha_t / (sigma_t alpha_s); |g(eps, 1) - f_T(eps, 1)|^2",
    deviations=[
        "The boundary's loss has a share of the rows to itself instead of standing beside the other on every row.",
        "Where the path keeps some signal at time 1, eps is the rest of the state, as in a step of DDIM.",
    ],
    engine="diffusion",
)
def boot(
    network: nn.Module | NetworkAdapter,
    teacher: nn.Module | NetworkAdapter | Score,
    shape: tuple[int, ...],
    gap: float = 1 / 8,
    solver: Literal["ddim", "heun"] = "ddim",
    boundary: float = 0.125,
    boundary_weight: float = 1.0,
    guidance: float | None = None,
    path: Path | None = None,
    kind: Kind = "v",
    least: float = 0.0,
    seed: int = 0,
) -> FlowMap:
    """BOOT: the signal that the teacher's flow from a noise has reached at time ``s``, learnt from noise to data.

    No data are read: the batch is ``Batch(size=n)``, with conditions if the teacher has any. A share of the rows learns
    the boundary, where the flow begins; without it every other target is arbitrary.

    Args:
        network: g, called with (eps, s, **condition); it predicts the signal.
        teacher: A network called with (x, t, **condition), or any score.
        shape: Of an example.
        gap: ``t - s``.
        solver: "ddim" for the formula, "heun" for a step of second order in its place.
        boundary: Share of the rows at the boundary.
        boundary_weight: Of their losses.
        guidance: w of the teacher, ``u + w (c - u)``; ``None`` for none. The batch then brings a null condition.
        path: ``None`` for the cosine.
        kind: What the teacher's network predicts.
        least: Smallest s, where samples are taken.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; one call of its map from time 1 to ``least`` is a sample.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    path = VP.cosine() if path is None else path
    if solver not in ("ddim", "heun"):
        raise argument_error("solver", solver, "'ddim' or 'heun'")
    check_number("gap", gap, "a time above 0, up to 1", above=0, most=1)
    check_number("boundary", boundary, "a share from 0 to 1", least=0, most=1)
    check_number("boundary_weight", boundary_weight, "a positive number", above=0)
    check_number("least", least, "a time from 0 to below 1", least=0, below=1)
    check_guidance(guidance)
    score = teacher_score(teacher, kind)
    return FlowMap(
        adapted(network, times="r"),
        path=path,
        head=Jump("x0"),
        source=score if guidance is None else Guided(score, guidance),
        states=PriorOnly(shape),
        residual=OnAndOff(on=Diagonal(), off=Lagrangian(Solver(None, solver), space="network")),
        pairs=WithDiagonal(FromNoise(Uniform(least, 1.0), gap), boundary),
        balance=Weighted(_per_step(boundary_weight)),
        seed=seed,
    )


def _per_step(boundary: float) -> Callable[[Rows], Tensor]:
    def weight(rows: Rows) -> Tensor:
        assert rows.middle is not None
        alpha, sigma = rows.path.alpha, rows.path.sigma
        ratio = sigma(rows.r) * alpha(rows.middle) / (sigma(rows.middle) * alpha(rows.r).clamp(min=1e-12))
        on = rows.middle == rows.r
        return torch.where(on, torch.full_like(ratio, boundary), (1 - ratio.where(~on, ratio * 0)) ** -2)

    return weight
