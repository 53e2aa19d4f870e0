"""Distribution matching for pairs of images and texts."""

from __future__ import annotations

from torch import Tensor

from distillrs import ops
from distillrs.condense import PairDistributionMatching, PairedSynthetic, PairNetwork, Pairs, spread_pairs
from distillrs.condense.windows import TrajectoryStore
from distillrs.registry import recipe


def mdm_initial(
    pairs: Pairs, network: PairNetwork, count: int, *, rates: tuple[float, float] = (0.1, 0.1), seed: int = 0
) -> PairedSynthetic:
    """The real pairs nearest to as many centres of both encoders' features.

    Args:
        pairs: The real pairs.
        network: Whose encoders are asked.
        count: Pairs of the synthetic set.
        rates: Learning rates of image head and text head that are stored with the set.
        seed: Of the centres' start.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: There are fewer than ``count`` pairs.
    """
    return PairedSynthetic.from_real(pairs, spread_pairs(network, pairs, count, seed=seed), rates=rates)


@recipe(
    id="mdm",
    source="Multimodal Distribution Matching for Vision-Language Dataset Distillation, 2026",
    equation="InfoNCE(s) + .8 D(u_x, u_s) + .8 D(g_x, g_s), u and g the directions of z_v + z_t and z_v - z_t, D^2 = "
    "E k(x, x') + E k(s, s') - 2 E k(x, s), k = exp(-angle^2 / (2 .5^2)); z under experts merged about their start",
    deviations=[
        "Centres of the first pairs are those of plain k-means of unit vectors; they are not scaled to unit length "
        "again from round to round.",
        "A tensor on whose direction two experts disagree (a cosine below 0) stays at the start; what the code does "
        "there is not known.",
        "Real pairs of a step are 512 drawn at random; the paper's number is not known.",
    ],
    initial=mdm_initial,
    optimisers={"images": {"lr": 100.0, "momentum": 0.5}, "texts": {"lr": 100.0, "momentum": 0.5}},
    engine="pairs",
)
def mdm(
    store: TrajectoryStore,
    network: PairNetwork,
    real: Pairs,
    synthetic: PairedSynthetic,
    common: float = 0.8,
    gap: float = 0.8,
    bandwidth: float = 0.5,
    temperature: float = 0.07,
    amount: float = 0.5,
    batch: int | None = 64,
    real_batch: int = 512,
    clip: float | None = 1.0,
    records: range | None = None,
    anchor: Tensor | None = None,
    seed: int = 0,
) -> PairDistributionMatching:
    """MDM: what two modalities have in common and where they differ is spread over the sphere as in the real pairs.

    ::

        L = InfoNCE(s, temperature) + common D(u_x, u_s) + gap D(g_x, g_s)

    See :class:`~distillrs.condense.PairDistributionMatching`. No training is unrolled, so that a step costs a pass
    through encoders and heads. The script has rates from 100 to 1000 with momentum 0.5 and a gradient of length
    1 at most.

    D leaves out a point's kernel with itself inside a set, as the code does. :func:`mdm_initial` gives pairs that lie
    farther apart than real ones do, so that what is under the root begins below 0; there D counts as 0 and has no
    gradient, and InfoNCE alone moves the set until D is above 0. Of sets drawn at random, whose estimates lie around
    0, some begin above it.

    Args:
        store: Experts' heads, recorded by :func:`~distillrs.condense.record_pair_experts` with ``shared_start=True``.
        network: Gives encoders and the heads' architecture.
        real: The real pairs.
        synthetic: What is trained; made by :func:`mdm_initial`.
        common: Weight of what the modalities have in common.
        gap: Weight of where they differ.
        bandwidth: sigma of the kernel, in radians.
        temperature: Of InfoNCE.
        amount: How far the merged heads go from the start.
        batch: Synthetic pairs at a step; ``None`` for all.
        real_batch: Real pairs at a step.
        clip: Largest length of the gradient; ``None`` for any.
        records: Of the experts, which may be drawn; ``None`` for all but the start.
        anchor: ``[P]`` heads from which experts set out; ``None`` for their common first record.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its groups are "images" and "texts".

    Raises:
        ArgumentError: A value that is not allowed, or experts that have no start in common.
    """
    return PairDistributionMatching(
        store,
        network,
        real,
        synthetic,
        kernel=ops.Geodesic(bandwidth),
        common=common,
        gap=gap,
        temperature=temperature,
        amount=amount,
        batch=batch,
        real_batch=real_batch,
        clip=clip,
        records=records,
        anchor=anchor,
        seed=seed,
    )
