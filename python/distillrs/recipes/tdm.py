"""Trajectory distribution matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distillrs.diffusion import AlongTrajectory, Match, Matcher, MeanAbsolute, Score
from distillrs.errors import argument_error
from distillrs.recipes._matching import AnyNetwork, ElementHuber, fake_score, generator, real_score
from distillrs.registry import recipe
from distillrs.schedule import VP, Grid, Kind, MinSNR, Path, Uniform, spaced


@recipe(
    id="tdm",
    source="Luo, Hu, Song, Sun, Huang, Tang: Learning Few-Step Diffusion Models by Trajectory Distribution Matching, "
    "2025",
    equation="huber(x, sg(x - (F - R_w) / mean|x - R_w|)) at x_t = a x_s + s_(t|s) eps, x_s of the generator's ODE",
    deviations=[
        "The grid spans the whole path in equal steps unless one is given; the public demonstration keeps to the last "
        "900 of 1000 levels.",
        "Intervals of the steps do not overlap; the variant with levels up to 1, for which the critic is told the "
        "step, is not built.",
    ],
    engine="diffusion",
)
def tdm(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork,
    steps: int = 4,
    path: Path | None = None,
    kind: Kind = "noise",
    grid: Grid | None = None,
    guidance: float | None = 4.5,
    huber: float = 1e-3,
    target: Literal["sample", "transition"] = "sample",
    ratio: int = 1,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """Matches the distributions of all states of a deterministic few-step generator, not of its end alone.

    The generator runs its ODE without a gradient; each row's drawn step gives ``x`` and ``x_s = alpha_s x + sigma_s
    eps_hat``. Noise is added to ``x_s``, up to a level within the step's own interval::

        x_t = a_(t|s) x_s + s_(t|s) eps        g = (F(x_t, t) - R_w(x_t, t)) / mean|x - R_w|

    and ``x`` moves against ``g`` under a pseudo-Huber loss. F regresses ``x`` with the weight ``min(SNR, 5)
    exp(mean(eps^2) / 2 - mean(eps_x^2) / 2)``, ``eps_x`` the whole noise in ``x_t``. No data are used.

    Args:
        network: The generator, called with (x, t, **condition); it begins as the teacher.
        teacher: The teacher, or any score.
        critic: F; it begins as the teacher.
        steps: K.
        path: ``VP.betas()`` by default.
        kind: What the networks predict.
        grid: The generator's times; equal steps by default.
        guidance: w of ``u + w (c - u)``; ``None`` for none.
        huber: c of the loss, over single elements.
        target: "transition" fits F with the exact target of ``x_t`` given ``x_s`` in place of the paper's.
        ratio: Updates of F for each of the generator.
        shape: Of an example, where batches bring none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; samples are drawn with ``diffusion.sample(objective.map, noise, grid)``.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    path = VP.betas() if path is None else path
    if grid is not None and not isinstance(grid, Grid):
        raise argument_error("grid", grid, "a Grid, or None for equal steps")
    grid = spaced(steps, path) if grid is None else grid
    law = Uniform()
    return Matcher(
        generator(network, path, kind),
        real=real_score(teacher, kind, guidance),
        critic=fake_score(critic, kind, law=law, within="below", compare="x0", weight=MinSNR(5.0), target=target),
        rollout=AlongTrajectory(grid),
        terms=[Match(weights=MeanAbsolute(), law=law, within="below", metric=ElementHuber(huber))],
        ratio=ratio,
        shape=shape,
        seed=seed,
    )
