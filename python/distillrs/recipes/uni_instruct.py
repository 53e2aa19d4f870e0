"""One-step generators by divergences of the whole diffusion, and the corners of that family."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from distillrs.diffusion import (
    DistributionGap,
    ExpandedGap,
    FisherGap,
    Gap,
    LevelWeight,
    Match,
    Matcher,
    MeanAbsolute,
    Score,
    one_step,
)
from distillrs.diffusion.metrics import Reduction
from distillrs.ops import ForwardKL, RowDivergence
from distillrs.recipes._maps import preconditioned
from distillrs.recipes._matching import AnyNetwork, discriminator, fake_score, generator, real_score
from distillrs.registry import recipe
from distillrs.schedule import EDM, Kind, Levels, LogNormal, Path, PreconditionedWeight, TimeLaw, Uniform, karras

_LEVELS = "Levels are a Karras grid of 1000 without its 200 noisiest; the critic's law and weight are EDM's."
_RATIO = (
    "The ratio of densities is exp(mean logit), bounded by `ratio_limit`, and the weights are not divided by a running "
    "mean."
)


@recipe(
    id="uni-instruct",
    source="Wang, Bai, Luo, Chen, Sun: Uni-Instruct: One-step Diffusion Model through Unified Diffusion Divergence "
    "Instruction, 2025",
    equation="(phi - phi')|d|^2 + 2 phi d.(s_F - s(x_t|x)), d = s_R - s_F, phi = r^2 f''(r)",
    deviations=[_LEVELS, _RATIO, "The discriminator only tells the ratio unless `generator_adversary` is above 0."],
    engine="diffusion",
)
def uni_instruct(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork,
    head: nn.Module,
    features: str | None = None,
    divergence: RowDivergence | None = None,
    path: Path | None = None,
    kind: Kind = "F",
    sigma: float = 2.5,
    ratio: int = 1,
    ratio_limit: float = 5.0,
    generator_adversary: float = 0.0,
    critic_adversary: float = 1e-2,
    scale: float = 100.0,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """An f-divergence between data and samples, expanded over the levels of noise.

    ``D_f = integral of g^2 / 2 E[phi(r) |d|^2] dt``; in terms of clean states, real R and fake F::

        L = ((phi - phi') |R - F|^2 + 2 phi (R - F).(F - x)) / mean|x - R|

    differentiated through the states with all networks frozen; ``r = exp(logit)`` of a discriminator on F's features.

    Args:
        network: The generator, called with (x, t, **condition); it begins as the teacher.
        teacher: The teacher, or any score.
        critic: F; it begins as the teacher.
        head: The discriminator's last part, on features of F.
        features: Name of the part of F whose output they are.
        divergence: p is the data, q the samples; the forward KL divergence by default.
        path: ``EDM()`` by default; plain modules then get EDM's input and clock.
        kind: What the networks predict.
        sigma: Level at which the generator is called.
        ratio: Updates of F for each of the generator.
        ratio_limit: Bound of ``|log r|``.
        generator_adversary: Factor of the generator's adversarial loss.
        critic_adversary: Factor of the discriminator's.
        scale: Factor of the sums over elements.
        shape: Of an example, where batches bring none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; batches bring examples for the discriminator.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    gap = ExpandedGap(ForwardKL() if divergence is None else divergence)
    return _edm(
        network, teacher, critic, gap, path, kind, sigma, ratio, scale, shape, seed,
        ratio_limit=ratio_limit, head=head, features=features, adversary=(generator_adversary, critic_adversary),
    )  # fmt: skip


@recipe(
    id="sid",
    source="Zhou, Zheng, Wang, Yin, Huang: Score identity Distillation, ICML 2024",
    equation="d.(s_R - s(x_t|x)) - a|d|^2, d = s_R - s_F, through both networks' inputs",
    deviations=[_LEVELS],
    engine="diffusion",
)
def sid(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork,
    a: float = 1.2,
    path: Path | None = None,
    kind: Kind = "F",
    sigma: float = 2.5,
    ratio: int = 1,
    scale: float = 100.0,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """Score identity distillation: ``((R - F).(R - x) - a |R - F|^2) / mean|x - R|``, summed over elements.

    Args:
        network: The generator, called with (x, t, **condition); it begins as the teacher.
        teacher: The teacher, or any score.
        critic: F; it begins as the teacher.
        a: 0.5 is the gradient of the Fisher divergence, 1 score implicit matching, 1.2 the paper's choice.
        path: ``EDM()`` by default; plain modules then get EDM's input and clock.
        kind: What the networks predict.
        sigma: Level at which the generator is called.
        ratio: Updates of F for each of the generator.
        scale: Factor of the sums over elements.
        shape: Of an example, where batches bring none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return _edm(network, teacher, critic, FisherGap(a), path, kind, sigma, ratio, scale, shape, seed)


@recipe(
    id="diff_instruct",
    source="Luo, Hu, Zhang, Sun, Li, Zhang: Diff-Instruct: A Universal Approach for Transferring Knowledge From "
    "Pre-trained Diffusion Models, NeurIPS 2023",
    equation="gradient alpha^2 / sigma^2 (F(x_t) - R(x_t)) on x: that of the integral of KL(q_t || p_t) over levels",
    deviations=[
        "All levels weigh alike in the integral.",
        "Scores are in evaluation mode, in place of shared dropout.",
    ],
    engine="diffusion",
)
def diff_instruct(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork,
    path: Path | None = None,
    kind: Kind = "F",
    sigma: float = 2.5,
    ratio: int = 1,
    law: TimeLaw | None = None,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """The reverse KL divergence integrated over levels.

    Args:
        network: The generator, called with (x, t, **condition); it begins as the teacher.
        teacher: The teacher, or any score.
        critic: F; it begins as the teacher.
        path: ``EDM()`` by default; plain modules then get EDM's input and clock.
        kind: What the networks predict.
        sigma: Level at which the generator is called.
        ratio: Updates of F for each of the generator.
        law: Of the levels; EDM's by default.
        shape: Of an example, where batches bring none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return _edm(
        network, teacher, critic, DistributionGap(), path, kind, sigma, ratio, 1.0, shape, seed, law=law, exact=True
    )


@recipe(
    id="f_distill",
    source="Xu, Nie, Vahdat: One-step Diffusion Models with f-Divergence Distribution Matching, 2025",
    equation="h(r) (F(x_t) - R(x_t)) / mean|x - R| on x, h(r) = r^2 f''(r)",
    deviations=[_LEVELS, _RATIO],
    engine="diffusion",
)
def f_distill(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork,
    head: nn.Module,
    features: str | None = None,
    divergence: RowDivergence | None = None,
    path: Path | None = None,
    kind: Kind = "F",
    sigma: float = 2.5,
    ratio: int = 5,
    ratio_limit: float = 5.0,
    generator_adversary: float = 1e-3,
    critic_adversary: float = 1e-2,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """Distribution matching weighted by the ratio of densities: modes that samples miss weigh more.

    Args:
        network: The generator, called with (x, t, **condition); it begins as the teacher.
        teacher: The teacher, or any score.
        critic: F; it begins as the teacher.
        head: The discriminator's last part, on features of F.
        features: Name of the part of F whose output they are.
        divergence: p is the data, q the samples; the forward KL divergence by default.
        path: ``EDM()`` by default; plain modules then get EDM's input and clock.
        kind: What the networks predict.
        sigma: Level at which the generator is called.
        ratio: Updates of F for each of the generator.
        ratio_limit: Bound of ``|log r|``.
        generator_adversary: Factor of the generator's adversarial loss.
        critic_adversary: Factor of the discriminator's.
        shape: Of an example, where batches bring none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; batches bring examples for the discriminator.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    gap = DistributionGap(ForwardKL() if divergence is None else divergence)
    return _edm(
        network, teacher, critic, gap, path, kind, sigma, ratio, 1.0, shape, seed,
        ratio_limit=ratio_limit, head=head, features=features, adversary=(generator_adversary, critic_adversary),
    )  # fmt: skip


def _edm(
    network: AnyNetwork,
    teacher: AnyNetwork | Score,
    critic: AnyNetwork,
    gap: Gap,
    path: Path | None,
    kind: Kind,
    sigma: float,
    ratio: int,
    scale: float,
    shape: Sequence[int] | None,
    seed: int,
    *,
    law: TimeLaw | None = None,
    exact: bool = False,
    ratio_limit: float | None = None,
    head: nn.Module | None = None,
    features: str | None = None,
    adversary: tuple[float, float] = (0.0, 0.0),
) -> Matcher:
    """One call at a level and one gap; ``exact`` weighs as the KL divergence does, not by the distance to R."""
    path = EDM() if path is None else path
    if isinstance(path, EDM):
        own = [preconditioned(part, path) if isinstance(part, nn.Module) else part for part in (network, critic)]
        network, critic = own
        if isinstance(teacher, nn.Module):
            teacher = preconditioned(teacher.eval().requires_grad_(False), path)
    fitted: TimeLaw = LogNormal(-1.2, 1.2, path=path) if isinstance(path, EDM) else Uniform(0.02, 0.98)
    if law is None:
        law = (
            fitted
            if exact or not isinstance(path, EDM)
            else Levels(tuple(karras(1000, path=path).times[200:-1].tolist()))
        )
    weight = LevelWeight("noise", 2.0) if exact else MeanAbsolute(1e-5)
    reduction: Reduction = "sum" if gap.second_order else "mean"
    return Matcher(
        generator(network, path, kind),
        real=real_score(teacher, kind, None),
        critic=fake_score(critic, kind, law=fitted, compare="x0", weight=PreconditionedWeight()),
        rollout=one_step(float(path.clock(sigma, of="ratio"))),
        terms=[Match(gap, weight, law=law, reduction=reduction, scale=scale, ratio_limit=ratio_limit)],
        auxiliaries=discriminator(head, features, *adversary, law=law),
        ratio=ratio,
        shape=shape,
        seed=seed,
    )
