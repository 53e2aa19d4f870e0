"""Trajectory matching of both modalities, with blended features."""

from __future__ import annotations

from typing import Literal

from distillrs import random
from distillrs.condense import PairedSynthetic, PairNetwork, Pairs, PairTargets, PairTrajectoryMatching, Unroll, Windows
from distillrs.condense.pair_trajectories import Sides
from distillrs.condense.pairs import check_pairs
from distillrs.condense.unroll import Gradient
from distillrs.condense.windows import TrajectoryStore
from distillrs.errors import DataError, renamed
from distillrs.registry import recipe
from distillrs.step import Step


def repblend_initial(
    pairs: Pairs,
    count: int,
    *,
    rank: int = 10,
    strength: float = 1.0,
    rates: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
) -> PairedSynthetic:
    """Random real pairs, with similarities of low rank beside the diagonal and rates that are learned.

    Similarities are stored as well: the authors take 99 pairs where others take 100.

    Args:
        pairs: The real pairs.
        count: Pairs of the synthetic set.
        rank: Of the similarities.
        strength: Their factor.
        rates: First learning rates of image head and text head.
        seed: Of the draw.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: There are fewer than ``count`` pairs.
    """
    targets = PairTargets(count, rank, strength=strength, seed=seed)
    if count > check_pairs("pairs", pairs).rows:
        raise DataError(f"count: got {count}, but there are {pairs.rows} pairs; allowed is at most as many")
    rows = random.choice(pairs.rows, count, step=Step(0, seed=seed), name="first pairs")
    return PairedSynthetic.from_real(pairs, rows, rates=rates, learn_rates=True, targets=targets)


@recipe(
    id="repblend",
    source="Zhang, Zhang, Du, Liu, Zhou: Beyond Modality Collapse: Representations Blending for Multimodal Dataset "
    "Distillation, 2025; similarities of Xu, Lin, Qiu, Lu, Li: Low-Rank Similarity Mining for Multimodal Dataset "
    "Distillation, ICML 2024",
    equation="|r_v|^2 / D_v + |r_t|^2 / D_t, r what is left to the expert's heads after T steps on blended features "
    "l e + (1 - l) e_pi, l uniform, targets diag(w) + (a / r) L R'",
    deviations=[
        "The gradient is the exact one; gradient='truncated' is that of the code.",
        "The strength of the similarities is 1; the scripts have one for each data set.",
        "Every group has its rate and momentum from the loop; the scripts' rates (100 to 5000 for both modalities, 5 "
        "to 500 for similarities, .01 for rates) belong to images of 224 pixels.",
    ],
    initial=repblend_initial,
    optimisers={
        "images": {"lr": 1000.0, "momentum": 0.5},
        "texts": {"lr": 1000.0, "momentum": 0.5},
        "similarities": {"lr": 10.0, "momentum": 0.5},
        "rates": {"lr": 0.01, "momentum": 0.5},
    },
    engine="pairs",
)
def repblend(
    store: TrajectoryStore,
    network: PairNetwork,
    synthetic: PairedSynthetic,
    inner_steps: int = 8,
    span: int = 1,
    start: range = range(2),
    batch: int | None = 20,
    gradient: Gradient = "adjoint",
    blended: bool = True,
    sides: Sides = "both",
    normalise: Literal["apart", "together"] = "apart",
    temperature: float = 0.07,
    seed: int = 0,
) -> PairTrajectoryMatching:
    """RepBlend: both heads are matched, on features that are blended so that the modalities do not shrink to cones.

    ::

        theta_{i+1} = theta_i - beta grad wBCE(cos(f_v(B e_v), f_t(B e_t)) / temperature, S),   B e = l e + (1 - l) e_pi
        L = |theta_v,T - theta*_v|^2 / D_v + |theta_t,T - theta*_t|^2 / D_t

    See :class:`~distillrs.condense.PairTrajectoryMatching`. The authors record 20 experts for 10 epochs with rate 0.1
    and take 3000 steps.

    Args:
        store: Experts' heads, recorded by :func:`~distillrs.condense.record_pair_experts`.
        network: Gives encoders and the heads' architecture.
        synthetic: What is trained; made by :func:`repblend_initial`.
        inner_steps: T.
        span: Records from the start to the end of a window.
        start: The starts that are allowed.
        batch: Pairs of an inner minibatch; ``None`` for all.
        gradient: "adjoint" or "full", both exact, or "truncated".
        blended: Whether features are blended.
        sides: Whose distances count: "both", "images" or "texts".
        normalise: "apart", each head by its own way (as for Flickr30K); "together", both by the sum (as for COCO).
        temperature: Of the similarities.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its groups are "images", "texts", "similarities" and "rates".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    with renamed(steps="inner_steps"):
        return PairTrajectoryMatching(
            store,
            network,
            synthetic,
            unroll=Unroll(inner_steps, gradient),
            windows=Windows(span, start),
            batch=batch,
            blended=blended,
            sides=sides,
            normalise=normalise,
            temperature=temperature,
            seed=seed,
        )
