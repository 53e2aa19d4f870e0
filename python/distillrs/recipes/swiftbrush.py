"""SwiftBrush: variational score distillation of a one-step generator, without images."""

from __future__ import annotations

from collections.abc import Sequence

from distillrs.diffusion import DistributionGap, LevelWeight, Match, Matcher, SampleGap, Score, one_step
from distillrs.recipes._matching import AnyNetwork, fake_score, generator, real_score
from distillrs.registry import recipe
from distillrs.schedule import VP, Kind, Path, Uniform


@recipe(
    id="swiftbrush",
    source="Nguyen, Tran: SwiftBrush: One-Step Text-to-Image Diffusion Model with Variational Score Distillation, "
    "CVPR 2024",
    equation="gradient eps_R^w(x_t) - eps_F(x_t) on x; F: |eps_F(x_t', t') - eps'|^2 on sg(x)",
    deviations=["The weight of the level is 1 in terms of noise predictions; the paper's w(t) could not be verified."],
    engine="diffusion",
)
def swiftbrush(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork | None,
    path: Path | None = None,
    kind: Kind = "noise",
    guidance: float | None = 4.5,
    low: float = 0.02,
    high: float = 0.98,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """One-step generators from conditions alone: no images, no pairs, no discriminator.

    The generator is the teacher read as a clean prediction at the last level, ``x = (z - sigma_T eps(z)) / alpha_T``::

        gradient on x:  eps_R^w(x_t, t) - eps_F(x_t, t)  =  alpha / sigma (F - R_w)        t ~ U(low, high)

    and F, the frozen teacher with a low-rank adapter of its own, is fitted one to one by ``|eps_F - eps'|^2``.

    Args:
        network: The generator, called with (x, t, **condition); it begins as the teacher.
        teacher: The teacher, or any score.
        critic: F: a view of a :class:`~distillrs.diffusion.SharedBase` of the teacher, rank 64 in the paper.
            ``None`` for score distillation without one, whose samples gather at modes.
        path: ``VP.betas()`` by default.
        kind: What the networks predict.
        guidance: w of ``u + w (c - u)``; ``None`` for none.
        low: Least level.
        high: Greatest level.
        shape: Of an example; the batches bring conditions alone: ``Batch(condition=..., size=n)``.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    path = VP.betas() if path is None else path
    law = Uniform(low, high)
    gap = SampleGap() if critic is None else DistributionGap()
    return Matcher(
        generator(network, path, kind),
        real=real_score(teacher, kind, guidance),
        critic=None if critic is None else fake_score(critic, kind, law=law, compare="noise"),
        rollout=one_step(),
        terms=[Match(gap, LevelWeight("noise"), law=law)],
        shape=shape,
        seed=seed,
    )
