"""Rectified flows after one reflow, trained better."""

from __future__ import annotations

from torch import Tensor, nn

from distillrs.diffusion import (
    Data,
    Diagonal,
    FlowMap,
    InKinds,
    KindMetric,
    Metric,
    NetworkAdapter,
    NoisedData,
    PseudoHuber,
)
from distillrs.recipes._maps import adapted
from distillrs.registry import recipe
from distillrs.schedule import RectifiedFlow, Triangle, UShaped


@recipe(
    id="rfpp",
    source="Lee, Lin, Fanti: Improving the Training of Rectified Flows, NeurIPS 2024",
    equation="(1 - t) (sqrt(|v(x_t, t) - (z - x)|^2 + c^2) - c) / D + d(x_t - t v(x_t, t), x) / t, c = .00054 D, "
    "p(t) ~ exp(a t) + exp(a (1 - t))",
    deviations=["Without a perceptual distance the first term stands alone: LPIPS needs a pretrained network."],
    engine="diffusion",
)
def rfpp(
    network: nn.Module | NetworkAdapter,
    perceptual: Metric | None = None,
    over_time: bool = True,
    sharpness: float = 4.0,
    huber: float = 0.00054,
    seed: int = 0,
) -> FlowMap:
    """One reflow on pairs of noise z and what a teacher makes of it, x: ``Batch(x, noise=z)``.

    One round is enough where the pairs' lines hardly cross; then what counts is where errors are made (both ends of
    time), how they are measured, and where training begins: a denoiser of EDM is a velocity through
    :class:`distillrs.diffusion.Translated`. Samples of a few steps are best drawn with ``method="anchor"``, which goes
    on with the noise that it began with.

    Args:
        network: v, called with (x_t, t, **condition).
        perceptual: d, of images; any function of two ``[n, ...]`` to ``[n]``.
        over_time: Whether d is divided by t (the paper's last configuration).
        sharpness: a.
        huber: c over the dimension.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    parts = [KindMetric("velocity", PseudoHuber(huber, growth="linear", reduction="mean"), _signal)]
    if perceptual is not None:
        parts.append(KindMetric("x0", perceptual, _over_time if over_time else None))
    return FlowMap(
        adapted(network, times="t"),
        path=RectifiedFlow(),
        states=NoisedData(coupled=True),
        residual=Diagonal(Data()),
        pairs=Triangle(diagonal=1.0, diagonal_law=UShaped(sharpness)),
        metric=InKinds(tuple(parts)),
        seed=seed,
    )


def _signal(t: Tensor) -> Tensor:
    return 1 - t


def _over_time(t: Tensor) -> Tensor:
    # The least time of the paper's law.
    return 1 / t.clamp(min=1e-5)
