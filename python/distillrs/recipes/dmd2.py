"""Improved distribution matching distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from distillrs.diffusion import Match, Matcher, MeanAbsolute, NoisedInputs, Score, simulated
from distillrs.errors import argument_error
from distillrs.recipes._matching import AnyNetwork, discriminator, fake_score, generator, real_score
from distillrs.registry import recipe
from distillrs.schedule import VP, Kind, Path, Uniform


@recipe(
    id="dmd2",
    source="Yin, Gharbi, Park, Zhang, Shechtman, Durand, Freeman: Improved Distribution Matching Distillation for Fast "
    "Image Synthesis, NeurIPS 2024",
    equation="0.5 |x - sg(x - (F - R_w) / mean|x - R_w|)|^2 + l softplus(-D(x_t)); F fitted on sg(x), with D",
    deviations=[
        "A row whose direction is not finite is left out whole; the authors' code puts 0 for such elements.",
        "The critic's loss is not weighted by the level unless a weight is given to it.",
        "Levels of the critic are drawn from the range of the generator's term.",
    ],
    engine="diffusion",
)
def dmd2(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork,
    path: Path | None = None,
    kind: Kind = "noise",
    levels: tuple[float, ...] = (1.0,),
    guidance: float | None = None,
    ratio: int = 5,
    head: nn.Module | None = None,
    features: str | None = None,
    generator_adversary: float = 1e-3,
    critic_adversary: float = 1e-2,
    low: float = 0.02,
    high: float = 0.98,
    inputs: Literal["simulated", "data"] = "simulated",
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """Distribution matching with a critic at two speeds and a discriminator on its features.

    For a sample ``x`` of the generator, noised to ``t ~ U(low, high)``::

        g = (F(x_t, t) - R_w(x_t, t)) / mean|x - R_w|        L = 0.5 |x - sg(x - g)|^2 + l softplus(-D(x_t'))

    with R_w guided and F never guided. Every step fits F, and the discriminator D, on ``sg(x)``; the generator moves
    once in ``ratio`` steps. With several levels one is drawn for all rows and ranks; the calls before it are simulated
    without a gradient, each estimate noised again.

    Args:
        network: The generator, called with (x, t, **condition); it begins as the teacher.
        teacher: The teacher, or any score.
        critic: F; it begins as the teacher.
        path: ``VP.betas()`` by default, the table of Stable Diffusion.
        kind: What the networks predict.
        levels: Times at which the generator is called, from noise.
        guidance: w of ``u + w (c - u)``; 1.75 for Stable Diffusion 1.5, 8 for SDXL in the paper. ``None`` for none.
        ratio: Updates of F for each of the generator; 10 for Stable Diffusion 1.5 in the paper.
        head: D's last part, on features of F; ``None`` for no discriminator, and then no data are needed.
        features: Name of the part of F whose output they are; ``None`` for its output.
        generator_adversary: l: 3e-3 for ImageNet, 1e-3 for Stable Diffusion 1.5, 5e-3 for SDXL in the paper.
        critic_adversary: Factor of D's loss, whose gradient enters F, too.
        low: Least level of the gap.
        high: Greatest level of the gap.
        inputs: "data" takes noised data for the generator's inputs, which it never meets when it samples.
        shape: Of an example, where batches bring none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective, with the turns "generator" and "critic".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    if inputs not in ("simulated", "data"):
        raise argument_error("inputs", inputs, "'simulated' or 'data'")
    path = VP.betas() if path is None else path
    law = Uniform(low, high)
    return Matcher(
        generator(network, path, kind),
        real=real_score(teacher, kind, guidance),
        critic=fake_score(critic, kind, law=law),
        rollout=simulated(levels) if inputs == "simulated" else NoisedInputs(levels),
        terms=[Match(weights=MeanAbsolute(), law=law, mask_non_finite=True)],
        auxiliaries=discriminator(head, features, generator_adversary, critic_adversary),
        ratio=ratio,
        shape=shape,
        seed=seed,
    )
