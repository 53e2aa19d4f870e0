"""Alignment with smooth expert trajectories."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distillrs.augment import Augmentation
from distillrs.condense import (
    BalancedScale,
    ClippedLoss,
    ExpertTraining,
    FilterPerturbation,
    HardLabels,
    InputGradientPenalty,
    Synthetic,
    TrajectoryMatching,
    TrajectoryStore,
    Unroll,
    Windows,
    intermediate_targets,
)
from distillrs.condense.initial import expert_features, nearest_to_centres
from distillrs.condense.unroll import Gradient
from distillrs.errors import argument_error, renamed
from distillrs.registry import recipe
from distillrs.training import TrainingSettings


def smooth_expert_experts(
    network: nn.Module,
    training: TrainingSettings,
    clip_start: float = 0.5,
    clip_increment: float = 0.05,
    clip_epochs: int = 10,
    penalty: float = 2.0,
) -> ExpertTraining:
    """Experts that are trained with momentum and yet move smoothly.

    ::

        c_e CE(f(A(x)), y) + penalty mean (‖∂x Σ_k f_k(x)‖ - 1)²
        c_e = .5, .55, ..., .95 in the first 10 epochs, then 1

    The penalty is taken on the examples before augmentation, its norm over the channel axis alone. The authors train by
    SGD of rate .003, momentum .9 and decay 1e-3, with the rate times .6 in the second half.

    Args:
        network: Not used; here because every recipe's experts are made from a network and its training.
        training: Settings of each expert.
        clip_start: Factor of the loss in epoch 0.
        clip_increment: Added with each epoch.
        clip_epochs: How many epochs are weighed down.
        penalty: Factor of the input-gradient penalty; 0 leaves it out.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return ExpertTraining(training, ClippedLoss(clip_start, clip_increment, clip_epochs, InputGradientPenalty(penalty)))


def smooth_expert_initial(
    x: Tensor,
    y: Tensor,
    per_class: int,
    *,
    store: TrajectoryStore,
    network: nn.Module,
    seed: int = 0,
    inner_lr: float = 0.01,
) -> Synthetic:
    """The real examples nearest to the k-means centres of each class, among one expert's final logits; hard labels.

    Args:
        x: ``[n, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        per_class: Examples of each class.
        store: Experts' trajectories; the first complete one is asked.
        network: Their architecture.
        seed: Of the centres' start.
        inner_lr: Start of the learned rate β.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has fewer than ``per_class`` examples.
    """
    rows = nearest_to_centres(expert_features(store, network, x), y, per_class, seed=seed)
    return Synthetic(x[rows], HardLabels(y[rows]), inner_lr=inner_lr)


@recipe(
    id="smooth-expert",
    source="Shen, Yang, Lam: Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert "
    "Trajectories, 2023",
    equation="sum_j w_j |theta_{(T//M) j} - theta*_{s+j}|^2 / |theta*_s - theta*_{s+j}|^2 from a perturbed theta*_s, "
    "inner steps with momentum on a loss scaled by b(s)",
    deviations=[
        "The default gradient is the exact adjoint, the same as the paper's in memory that does not grow with T.",
        "The features for k-means are those of the first complete expert.",
        "An example is never chosen for two centres: the later one takes its next nearest.",
        "Every example has its own draw of the augmentation in every inner step (the code picks one operation for the "
        "whole minibatch).",
        "beta is kept above 1e-6; an update whose loss is not finite is skipped.",
    ],
    experts=smooth_expert_experts,
    initial=smooth_expert_initial,
    optimisers={"images": {"lr": 100.0, "momentum": 0.5}, "inner_lr": {"lr": 1e-5, "momentum": 0.5}},
    training={
        "learning_rate": 0.003,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "schedule": "step",
        "drop_at": [0.5],
        "drop_factor": 0.6,
    },
)
def smooth_expert(
    store: TrajectoryStore,
    network: nn.Module,
    synthetic: Synthetic,
    inner_steps: int = 40,
    span: int = 3,
    start: range = range(15),
    momentum: float = 0.9,
    balanced: bool = True,
    intermediate: Literal["one", "share", "none"] = "one",
    perturbation: float = 1.0,
    gradient: Gradient = "adjoint",
    augment: str | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> TrajectoryMatching:
    """AST: trajectory matching against smooth experts, meeting them on the way too.

    ::

        theta_0 = theta*_s + theta*_s ⊙ d / ‖d‖_F on convolutions, d ~ N(0, 1);   s ~ U{starts}, S their upper end
        v_{i+1} = .9 v_i + b(s) grad_theta CE(f(A(X_bi); theta_i), Y_bi),   theta_{i+1} = theta_i - beta v_{i+1}
        b(s) = log_5(s - S/2 + 8) from s = S/2 on,   1 / log_5(S/2 - s + 8) before
        L(X, beta) = sum_{j=1..M} w_j |theta_{t_j} - theta*_{s+j}|^2 / |theta*_s - theta*_{s+j}|^2,
                     t_j = (T // M) j for j < M, t_M = T;   w_M = 1,   w_j = 1, or j / M

    The defaults are those of the authors' script for CIFAR-100 with one image per class: T 40, M 3, starts 0 to 14,
    rate 100 for X (their readme has T 20, M 3, starts 0 to 19, rate 1000).

    Args:
        store: Smooth experts' trajectories (:func:`smooth_expert_experts`), column "theta".
        network: Their architecture.
        synthetic: What is trained; made by :func:`smooth_expert_initial`.
        inner_steps: T, at least ``span``.
        span: M, in records.
        start: Starts s; the range's upper end is exclusive.
        momentum: Of the inner steps.
        balanced: Whether the inner loss is scaled by b(s).
        intermediate: Weights of the records on the way: "one", "share" (j / M), or "none" to match the end alone.
        perturbation: Size of the start's perturbation; 0 leaves it out.
        gradient: "adjoint" (exact), "full" (the same, memory grows with T) or "truncated".
        augment: Strategy of :class:`~distillrs.augment.Augmentation`; the paper has
            "color_crop_cutout_flip_scale_rotate".
        batch: Examples of an inner minibatch; ``None`` takes all.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its groups are "images", "labels" if they are learned, and "inner_lr".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    if intermediate not in ("one", "share", "none"):
        raise argument_error("intermediate", intermediate, "'one', 'share' or 'none'")
    if not isinstance(start, range) or not len(start):
        raise argument_error("start", start, "a range with at least one start")
    with renamed(steps="inner_steps", strategy="augment", scale="perturbation"):
        return TrajectoryMatching(
            store,
            network,
            synthetic,
            unroll=Unroll(inner_steps, gradient=gradient, momentum=momentum),
            windows=Windows(span, start),
            augmentation=Augmentation(augment) if augment else None,
            batch=batch,
            targets=None if intermediate == "none" else intermediate_targets(inner_steps, span, weight=intermediate),
            perturbation=FilterPerturbation(perturbation) if perturbation else None,
            inner_scale=BalancedScale(start.stop) if balanced else None,
            seed=seed,
        )
