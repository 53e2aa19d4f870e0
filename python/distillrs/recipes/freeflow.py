"""FreeFlow: a flow's map learnt from noise alone, and corrected where its own errors pile up."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from distillrs.diffusion import (
    JVP,
    AdaptivePower,
    AverageVelocity,
    Consistency,
    Derivative,
    FlowMap,
    Guided,
    Lagrangian,
    Match,
    Matcher,
    MeanAbsolute,
    NetworkAdapter,
    PriorOnly,
    Score,
    StateMap,
    one_step,
)
from distillrs.diffusion.checks import check_shape
from distillrs.diffusion.matching.scene import check_scale
from distillrs.recipes._maps import adapted, check_guidance, teacher_score
from distillrs.recipes._matching import fake_score
from distillrs.registry import recipe
from distillrs.schedule import FromNoise, Ramp, RectifiedFlow, Uniform


@recipe(
    id="freeflow",
    source="Tong et al.: Flow Map Distillation Without Data, 2025",
    equation="|F(z, d) - sg(u(f, 1 - d) - d dF/dd)|^2, f = z - d F(z, d); gradient v_N(I_r, r) - u(I_r, r) on F(z, 1), "
    "I_r = (1 - r) f(z, 1) + r n",
    deviations=[
        "How the two parts are weighted against each other is an argument: the paper normalises both gradients, but "
        "its weights could not be verified. Here a row's prediction error has length near 1 (its power is 1/2), and "
        "the gap of velocities is divided by the mean of |(n - x) - u|.",
        "The network is told r = 1 - d, the time where the map ends.",
        "The laws of r and the critic's updates for each of the map are arguments with plain defaults: the paper's "
        "could not be verified.",
    ],
    engine="diffusion",
)
def freeflow(
    network: nn.Module | NetworkAdapter,
    teacher: nn.Module | NetworkAdapter | Score,
    shape: Sequence[int],
    critic: nn.Module | NetworkAdapter | None = None,
    guidance: float | None = None,
    prediction: float | Ramp = 1.0,
    correction: float | Ramp = 1.0,
    derivative: Derivative | None = None,
    power: float = 0.5,
    constant: float = 1e-3,
    low: float = 0.02,
    high: float = 0.98,
    ratio: int = 1,
    seed: int = 0,
) -> Matcher | FlowMap:
    """The map of a teacher's flow from pure noise ``z`` to any time; no data are read, ``Batch(size=n)`` is enough.

    The end of ``f(z, d) = z - d F(z, d)`` moves along the teacher's velocity u, which asks for a derivative by one
    number alone::

        prediction:  |F(z, d) - sg(u(f(z, d), 1 - d) - d dF/dd)|^2                     d ~ U(0, 1)
        correction:  I_r = (1 - r) f(z, 1) + r n      gradient on F(z, 1):  v_N(I_r, r) - u(I_r, r)

    The first alone follows its own states, and what it errs by at small d is in all that comes after. The second draws
    the distribution of one-step samples to the teacher's: v_N, the critic, is fitted by flow matching on them.

    Args:
        network: F, called with (z, r, **condition), ``r = 1 - d``; it begins as the teacher.
        teacher: u, called with (x, t, **condition), or any score.
        shape: Of an example. Noise is drawn on the CPU in float32; ``Batch(noise=z)`` brings another.
        critic: v_N, called as the teacher; it begins as that. ``None`` for the prediction alone.
        guidance: w of ``u + w (c - u)``; ``None`` for none. The batch then brings a null condition.
        prediction: Factor of the first part, with a critic; a number or a ramp.
        correction: Factor of the second, likewise.
        derivative: ``None`` for forward mode; :class:`~distillrs.diffusion.Central` for networks without it.
        power: Of a row's squared error that its loss is divided by; 0 for the plain loss.
        constant: Added to the error before.
        low: Least r of the correction and of the critic.
        high: Greatest.
        ratio: Updates of the critic for each of the map.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective, with the turns "generator" and "critic"; without a critic, a flow map's. One call of its map from
        time 1 to 0 is a sample.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_shape("shape", shape, "the shape of an example")
    check_guidance(guidance)
    for name, factor in (("prediction", prediction), ("correction", correction)):
        check_scale(name, factor)
    adapter, path = adapted(network, times="r"), RectifiedFlow()
    score = teacher_score(teacher, "velocity")
    if guidance is not None:
        score = Guided(score, guidance)
    flow = FlowMap(
        adapter,
        path=path,
        source=score,
        states=PriorOnly(tuple(shape)),
        residual=Lagrangian(JVP() if derivative is None else derivative),
        pairs=FromNoise(Uniform()),
        balance=AdaptivePower(power, constant),
        seed=seed,
    )
    if critic is None:
        return flow
    law = Uniform(low, high)
    return Matcher(
        StateMap(adapter, path, AverageVelocity()),
        real=score,
        critic=fake_score(critic, "velocity", law=law),
        rollout=one_step(),
        # The times divide out: F - R over mean |x - R| is v_N - u over mean |(n - x) - u|.
        terms=[Match(weights=MeanAbsolute(), law=law, scale=correction, mask_non_finite=True)],
        auxiliaries=[Consistency(flow, prediction)],
        ratio=ratio,
        shape=shape,
        seed=seed,
    )
