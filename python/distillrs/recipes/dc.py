"""Gradient matching."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from distillrs.augment import Augmentation
from distillrs.checks import check_instance
from distillrs.condense import GradientSignal, RealExamples, SignalMatching, Synthetic
from distillrs.condense.signal_matching import Networks
from distillrs.errors import renamed
from distillrs.recipes._signals import SIAMESE, real_initial
from distillrs.registry import recipe
from distillrs.training import TrainingSettings


@recipe(
    id="dc",
    source="Zhao, Mopuri, Bilen: Dataset Condensation with Gradient Matching, ICLR 2021; with the siamese augmentation "
    "of Zhao, Bilen: Dataset Condensation with Differentiable Siamese Augmentation, ICML 2021",
    equation="sum_c sum_layers sum_rows (1 - cos(grad_theta loss(f(A(x)), c), grad_theta loss(f(A(s)), c))), theta "
    "trained on s between steps",
    deviations=[
        "A and the network are drawn from (seed, step), not from the clock.",
        "Networks with running statistics are refused (the code freezes them at those of a batch of real images).",
        "While a network is trained on the synthetic set, every image has its own draw of A in every epoch.",
    ],
    needs="data",
    initial=real_initial,
    optimisers={"images": {"lr": 0.1, "momentum": 0.5}},
)
def dc(
    x: Tensor,
    y: Tensor,
    networks: Networks,
    synthetic: Synthetic,
    every: int = 10,
    inner_epochs: int = 50,
    network_rate: float = 0.01,
    distance: Literal["cosine", "euclidean"] = "cosine",
    real_per_class: int = 256,
    augment: str | None = SIAMESE,
    seed: int = 0,
) -> SignalMatching:
    """DC with DSA: real and synthetic examples should pull a network's weights the same way.

    ::

        L = sum_c D(grad_theta loss(f_theta(A_c(R_c)), c), grad_theta loss(f_theta(A_c(S_c)), c))
        D(a, b) = sum_l sum_rows (1 - <a_l, b_l> / (|a_l| |b_l|))

    A network serves ``every`` steps; between two of them it is trained for ``inner_epochs`` epochs on the synthetic set
    as it stands. The authors' (every, inner_epochs) are (1, 1) for one image per class, (10, 50) for ten and (50, 10)
    for fifty; 1000 networks; rate 0.1 for the images, with momentum 0.5.

    Args:
        x: ``[n, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        networks: Makes a fresh network from a seed.
        synthetic: What is trained; hard labels.
        every: Steps for each network.
        inner_epochs: Epochs of the network's training between two steps.
        network_rate: Its learning rate.
        distance: D; "euclidean" is the squared distance of all gradients.
        real_per_class: Real examples of each class at a step.
        augment: Strategy of :class:`~distillrs.augment.Augmentation`; ``None`` or empty for none.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its group is "images", and it owns the present network's parameters as state.

    Raises:
        ArgumentError: A value that is not allowed, or a network with running statistics.
    """
    check_instance("synthetic", synthetic, Synthetic, "a Synthetic")
    if augment is not None:
        check_instance("augment", augment, str, "None or the name of a strategy")
    with renamed(per_class="real_per_class", strategy="augment", epochs="inner_epochs", learning_rate="network_rate"):
        return SignalMatching(
            synthetic,
            RealExamples(x, y, per_class=real_per_class, classes=synthetic.classes),
            networks,
            GradientSignal(distance),
            augmentation=Augmentation(augment) if augment else None,
            every=every,
            training=TrainingSettings(inner_epochs, 256, network_rate, augmentation=augment or None),
            seed=seed,
        )
