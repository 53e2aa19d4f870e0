"""Trajectory matching in constant memory."""

from __future__ import annotations

from typing import Literal

from torch import nn

from distillrs.augment import Augmentation
from distillrs.condense import Synthetic, TrajectoryMatching, TrajectoryStore, Unroll, Windows
from distillrs.condense.unroll import Gradient
from distillrs.condense.windows import Starts
from distillrs.errors import renamed
from distillrs.registry import recipe


@recipe(
    id="tesla",
    source="Cui, Wang, Si, Hsieh: Scaling Up Dataset Distillation to ImageNet-1K with Constant Memory, ICML 2023",
    equation="|theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2, with few steps' graphs held at a time",
    deviations=[
        "The default gradient is the exact adjoint. The paper's own holds every theta_i fixed while it differentiates "
        "step i, which is not the gradient of the loss; it is here as gradient='truncated'.",
        "The authors' code loses a factor 2 of the images' gradient (it repeats a tuple) and keeps it for beta. Both "
        "have it here, so the rate of 1000 that the code uses for images is 500 here.",
        "Augmentations are replayed from the step and not kept, so that memory does not grow with T.",
        "T is 20 by default (the code has 50 for CIFAR-10 with one image per class).",
        "beta is kept above 1e-6; an update whose loss is not finite is skipped.",
    ],
    optimisers={"images": {"lr": 500.0, "momentum": 0.5}, "inner_lr": {"lr": 1e-7, "momentum": 0.5}},
)
def tesla(
    store: TrajectoryStore,
    network: nn.Module,
    synthetic: Synthetic,
    inner_steps: int = 20,
    span: int = 2,
    start: Starts = range(5),
    gradient: Gradient = "adjoint",
    augment: str | None = None,
    batch: int | None = None,
    seed: int = 0,
    labels: Literal["own", "expert"] = "own",
    graph_steps: int | None = None,
    checkpoint_every: int | None = None,
) -> TrajectoryMatching:
    """TESLA: trajectory matching whose memory does not grow with the length of the inner training.

    ::

        theta_{i+1} = theta_i - beta g_i,   g_i = grad_theta loss(f(A(X_bi); theta_i), Y_bi),   theta_0 = theta*_s
        L(X, beta)  = |theta_T - theta*_{s+M}|^2 / D,   D = |theta*_s - theta*_{s+M}|^2
        "truncated": dL/dX_bi = -(2 beta / D) d<r, g_i>/dX,   dL/dbeta = -(2 / D) <r, sum g_i>
                     with r = theta_T - theta*_{s+M}
        "adjoint":   r is replaced step by step by lambda_{i+1} D / 2, see distillrs.condense.Unroll

    The settings of the authors' code are: CIFAR-10 with one image per class T 50, M 2, starts 0 to 4, SGD with
    momentum 0.5 of rate 1000 for X and 1e-7 for beta, which starts at 0.01; ImageNet at 64 pixels T 10, M 3, 10 starts,
    rate 1e4, minibatches of 100.

    Args:
        store: Experts' trajectories, column "theta": one record per epoch, the first before training.
        network: Their architecture.
        synthetic: What is trained.
        inner_steps: T.
        span: M, in records.
        start: Starts s, or a schedule of them; the range's upper end is exclusive.
        gradient: "adjoint" (exact), "truncated" (the paper's) or "full" (exact, memory grows with T).
        augment: Strategy of :class:`~distillrs.augment.Augmentation`, or ``None``.
        batch: Examples of an inner minibatch; ``None`` takes all.
        seed: Of steps that are given as plain numbers.
        labels: "own", or "expert": at each step ``softmax f(X; theta*_{s+M})``, without a gradient; the synthetic set
            then needs ``SoftLabels(logits, learn=False)``.
        graph_steps: Inner steps whose graphs are held at a time, see :class:`~distillrs.condense.Unroll`.
        checkpoint_every: Keep the state of every so many inner steps only and recompute the others.

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
            unroll=Unroll(inner_steps, gradient, graph_steps=graph_steps, checkpoint_every=checkpoint_every),
            windows=Windows(span, start),
            augmentation=Augmentation(augment) if augment else None,
            batch=batch,
            labels=labels,
            seed=seed,
        )
