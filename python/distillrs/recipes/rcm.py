"""Continuous-time consistency with a score as its regulariser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from distillrs.checks import check_number, check_whole
from distillrs.diffusion import (
    JVP,
    Consistency,
    Critic,
    Derivative,
    Eulerian,
    FlowMap,
    Guided,
    Jump,
    MaskNonFinite,
    Match,
    Matcher,
    MeanAbsolute,
    Network,
    NetworkAdapter,
    Score,
    SquaredError,
    StateMap,
    TangentNormalisation,
    Teacher,
    Translated,
    simulated,
    trig_scale,
)
from distillrs.diffusion.checks import check_adapter
from distillrs.diffusion.matching.scene import check_scale
from distillrs.recipes._maps import check_guidance, frozen
from distillrs.registry import recipe
from distillrs.schedule import (
    LinearRamp,
    LogNormal,
    Path,
    Ramp,
    RectifiedFlow,
    Segments,
    Shifted,
    TimeLaw,
    Trig,
    Uniform,
)


@recipe(
    id="rcm",
    source="Zheng et al.: Large Scale Diffusion Distillation via Score-Regularized Continuous-Time Consistency, 2025",
    equation="100 |F - sg(F + g / (|g| + .1))|^2, g = -cos^2(a) (F - F_T) - w cos(a) sin(a) (x + dF/da); "
    "0.5 |x - sg(x - (x0_F - x0_T) / mean|x - x0_T|)|^2",
    deviations=[
        "The warm-up w multiplies the whole derivative, as in continuous-time consistency models; the authors' code "
        "leaves the derivative of F as it is, which is the same once w is 1.",
        "Tangents are computed in float32 at least, coefficients in float64; the authors' code has both in float64.",
        "Levels of the generator are equal parts of the angle unless others are given.",
    ],
    engine="diffusion",
)
def rcm(
    network: nn.Module | NetworkAdapter,
    teacher: nn.Module | NetworkAdapter | Score,
    critic: nn.Module | NetworkAdapter,
    guidance: float | None = None,
    consistency: float | Ramp = 100.0,
    matching: float | Ramp = 1.0,
    mean: float = 0.7,
    std: float = 1.6,
    shift: float = 5.0,
    warm_up: int = 1000,
    constant: float = 0.1,
    derivative: Derivative | None = None,
    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25),
    ratio: int = 4,
    shape: Sequence[int] | None = None,
    seed: int = 0,
) -> Matcher:
    """Continuous-time consistency distillation, whose modes are all there but blurred, with distribution matching.

    On the path ``x = cos(a) x0 + sin(a) eps`` with ``f = cos(a) x - sin(a) F``, the teacher's flow and the warm-up w::

        g = -cos^2(a) (F - F_T) - w cos(a) sin(a) (x + dF/da)             consistency |F - sg(F + g / (|g| + c))|^2
        x of 1 to N calls, the last with a gradient                        matching    0.5 |x - sg(x - gap)|^2
        gap = (x0_F(x_t) - x0_T(x_t)) / mean|x - x0_T|

    The critic x0_F is fitted on ``sg(x)`` with the weight ``1 / sin^2(a)`` on x0. A plain module is a velocity of the
    rectified flow ``(1 - t) x0 + t eps``, as its teacher is; it is used here through its input and output, with
    ``k = 1 / (cos(a) + sin(a))`` called at ``(k x, k sin(a))`` and ``F = k (v + (cos(a) - sin(a)) x)``. An adapter
    predicts F itself. Examples are to have deviation 1.

    Args:
        network: The student, called with (x, t, **condition); it begins as the teacher.
        teacher: Called likewise, or any score.
        critic: Likewise; it begins as the teacher.
        guidance: w of ``u + w (c - u)``, in both parts; ``None`` for none. The batch then brings a null condition.
        consistency: Factor of the first part, a number or a ramp; 0 leaves it out.
        matching: Factor of the second, likewise.
        mean: Of ``log tan(a)`` in the first part.
        std: Likewise.
        shift: Of the times of the gap and of the critic, uniform on the rectified flow before.
        warm_up: Steps in which w goes from 0 to 1; 0 for none.
        constant: c.
        derivative: ``None`` for forward mode; :class:`~distillrs.diffusion.Central` for networks without it.
        levels: Times of the generator's calls, ``2 a / pi``, from noise.
        ratio: Updates of the critic for each of the student; in the paper the student has one of five iterations.
        shape: Of an example, where batches bring none; the first part needs them.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective, with the turns "generator" and "critic"; samples are drawn with ``method="renoise"``.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_guidance(guidance)
    for name, factor in (("consistency", consistency), ("matching", matching)):
        check_scale(name, factor)
    check_number("mean", mean, "a finite number")
    check_number("std", std, "a positive number", above=0)
    check_whole("warm_up", warm_up, "a number of steps from 0", least=0)
    path = Trig(1.0)
    adapter = _on_trig("network", network, path)
    score = teacher if isinstance(teacher, Score) else Teacher(_on_trig("teacher", frozen(teacher), path), "F")
    if guidance is not None:
        score = Guided(score, guidance)
    law = _OfFlow(Shifted(Uniform(), shift), path)
    flow = FlowMap(
        adapter,
        path=path,
        head=Jump("F"),
        source=score,
        residual=Eulerian(
            JVP() if derivative is None else derivative,
            scale=trig_scale,
            warm_up=LinearRamp(0.0, 1.0, steps=warm_up) if warm_up else None,
        ),
        # log SNR is -2 log tan(a).
        pairs=Segments(1, LogNormal(-2 * mean, 2 * std, of="log_snr", path=path)),
        metric=SquaredError("sum"),
        balance=[MaskNonFinite(), TangentNormalisation(constant)],
        seed=seed,
    )
    return Matcher(
        StateMap(adapter, path, Jump("F")),
        real=score,
        # An error of F is one of x0 over sin(a).
        critic=Critic(_on_trig("critic", critic, path), "F", law=law),
        rollout=simulated(levels),
        terms=[Match(weights=MeanAbsolute(), law=law, scale=matching, mask_non_finite=True)],
        auxiliaries=[Consistency(flow, consistency)],
        ratio=ratio,
        shape=shape,
        seed=seed,
    )


def _on_trig(name: str, network: nn.Module | NetworkAdapter, path: Path) -> NetworkAdapter:
    if not isinstance(network, nn.Module):
        check_adapter(name, network)
        return network
    return Translated(Network(network, times="t"), RectifiedFlow(), "velocity", path, "F")


@dataclass(frozen=True, slots=True)
class _OfFlow(TimeLaw):
    """A law of a rectified flow's times, at equal log-SNR on another path."""

    law: TimeLaw
    path: Path

    def cdf(self, t: float | Tensor) -> Tensor:
        """That of the flow's time."""
        return self.law.cdf(RectifiedFlow().time_of_log_snr(self.path.log_snr(t)))

    def quantile(self, u: Tensor) -> Tensor:
        """The flow's, on the other path."""
        return self.path.time_of_log_snr(RectifiedFlow().log_snr(self.law.quantile(u)))
