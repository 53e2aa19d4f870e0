"""Matching training trajectories."""

from __future__ import annotations

from torch import nn

from distillrs.augment import Augmentation
from distillrs.condense import Synthetic, TrajectoryMatching, TrajectoryStore, Unroll, Windows
from distillrs.condense.unroll import Gradient
from distillrs.condense.windows import Starts
from distillrs.errors import renamed
from distillrs.registry import recipe


@recipe(
    id="mtt",
    source="Cazenavette, Wang, Torralba, Efros, Zhu: Dataset Distillation by Matching Training Trajectories, CVPR 2022",
    equation="|theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2 after T steps of SGD on the synthetic set",
    deviations=[
        "Every example has its own draw of the augmentation in every inner step (the code picks one operation for the "
        "whole minibatch).",
        "beta is kept above 1e-6; an update whose loss is not finite is skipped.",
    ],
    optimisers={"images": {"lr": 1000.0, "momentum": 0.5}, "inner_lr": {"lr": 1e-5, "momentum": 0.5}},
)
def mtt(
    store: TrajectoryStore,
    network: nn.Module,
    synthetic: Synthetic,
    inner_steps: int = 50,
    span: int = 2,
    start: Starts = range(5),
    gradient: Gradient = "full",
    augment: str | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> TrajectoryMatching:
    """MTT: the synthetic set is moved until T steps on it lead where an expert went in M epochs.

    ::

        theta_{i+1} = theta_i - beta grad_theta CE(f(A(X_bi); theta_i), Y_bi),   theta_0 = theta*_s,   s ~ U{starts}
        L(X, beta)  = |theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2

    The defaults are those of the paper for CIFAR-10 with one image per class: T 50, M 2, starts 0 to 4, beta from 0.01,
    and SGD with momentum 0.5 of rate 1000 for X and 1e-5 for beta.

    Args:
        store: Experts' trajectories, column "theta": one record per epoch, the first before training.
        network: Their architecture.
        synthetic: What is trained; the paper has hard labels, a learned rate and real images to start from.
        inner_steps: T.
        span: M, in records.
        start: Starts s, or a schedule of them; the range's upper end is exclusive.
        gradient: "full" as in the paper; "adjoint" is the same gradient in memory that does not grow with T.
        augment: Strategy of :class:`~distillrs.augment.Augmentation`; the paper has
            "color_crop_cutout_flip_scale_rotate".
        batch: Examples of an inner minibatch; ``None`` takes all.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its groups are "images", "labels" if they are learned, and "inner_lr".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    with renamed(steps="inner_steps", strategy="augment"):
        return TrajectoryMatching(
            store,
            network,
            synthetic,
            unroll=Unroll(inner_steps, gradient=gradient),
            windows=Windows(span, start),
            augmentation=Augmentation(augment) if augment else None,
            batch=batch,
            seed=seed,
        )
