"""Distribution matching."""

from __future__ import annotations

from torch import Tensor

from distillrs.augment import Augmentation
from distillrs.checks import check_instance
from distillrs.condense import ClassMeans, RealExamples, SignalMatching, Synthetic
from distillrs.condense.signal_matching import Networks
from distillrs.errors import renamed
from distillrs.recipes._signals import SIAMESE, real_initial
from distillrs.registry import recipe


@recipe(
    id="dm",
    source="Zhao, Bilen: Dataset Condensation with Distribution Matching, WACV 2023",
    equation="sum_c |mean_{x in c} f(A(x)) - mean_{s in c} f(A(s))|^2, f a fresh random network at each step",
    deviations=[
        "A and the network are drawn from (seed, step), not from the clock.",
        "In one step each image of a class has the same operation of A; the code draws the same for a class, too, but "
        "its seed is the second in which it runs.",
    ],
    needs="data",
    initial=real_initial,
    optimisers={"images": {"lr": 1.0, "momentum": 0.5}},
)
def dm(
    x: Tensor,
    y: Tensor,
    networks: Networks,
    synthetic: Synthetic,
    real_per_class: int = 256,
    augment: str | None = SIAMESE,
    seed: int = 0,
) -> SignalMatching:
    """DM: the mean features of each class should agree, in networks that were never trained.

    ::

        L = sum_c |(1/|R_c|) sum_{x in R_c} f(A_c(x)) - (1/|S_c|) sum_{s in S_c} f(A_c(s))|^2

    f is everything before a network's last linear layer, R_c are ``real_per_class`` examples drawn at each step, A_c is
    drawn anew for each class and step. No network is trained and no gradient is unrolled, which makes it the cheapest
    of the methods that move pixels. The authors take 20,000 steps with rate 1 and momentum 0.5, ten times that rate
    for 50 and more images per class.

    Args:
        x: ``[n, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        networks: Makes a fresh network from a seed.
        synthetic: What is trained; hard labels.
        real_per_class: Real examples of each class at a step.
        augment: Strategy of :class:`~distillrs.augment.Augmentation`; ``None`` or empty for none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its group is "images".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_instance("synthetic", synthetic, Synthetic, "a Synthetic")
    if augment is not None:
        check_instance("augment", augment, str, "None or the name of a strategy")
    with renamed(per_class="real_per_class", strategy="augment"):
        return SignalMatching(
            synthetic,
            RealExamples(x, y, per_class=real_per_class, classes=synthetic.classes),
            networks,
            ClassMeans(),
            augmentation=Augmentation(augment) if augment else None,
            seed=seed,
        )
