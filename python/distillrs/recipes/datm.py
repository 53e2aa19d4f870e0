"""Difficulty-aligned trajectory matching."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distillrs.augment import Augmentation
from distillrs.condense import (
    Guard,
    HardLabels,
    SoftLabels,
    Synthetic,
    TrajectoryMatching,
    TrajectoryStore,
    Unroll,
    Windows,
)
from distillrs.condense.experts import ExpertTraining
from distillrs.condense.initial import judge, rightly_classified
from distillrs.condense.unroll import Gradient
from distillrs.errors import renamed
from distillrs.recipes.ftd import ftd_experts
from distillrs.registry import recipe
from distillrs.schedule import ExpandingWindow
from distillrs.training import TrainingSettings


def datm_experts(
    network: nn.Module, training: TrainingSettings, radius: float = 0.01, surrogate_gap: float = 0.3
) -> ExpertTraining:
    """Experts on flat trajectories, see :func:`~distillrs.recipes.ftd_experts`; the paper trains 100 for 100 epochs.

    Args:
        network: Not used.
        training: Settings of each expert.
        radius: ρ of the adaptive ascent.
        surrogate_gap: Weight a of the perpendicular part.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return ftd_experts(network, training, radius=radius, surrogate_gap=surrogate_gap)


def datm_initial(
    x: Tensor,
    y: Tensor,
    per_class: int,
    *,
    store: TrajectoryStore,
    network: nn.Module,
    seed: int = 0,
    inner_lr: float = 0.01,
    labels: Literal["soft", "hard"] = "soft",
    judges: int | None = None,
) -> Synthetic:
    """Random real examples among those that some expert classifies rightly, with the logits of those that do.

    The logits start as the mean over the experts that are right, at the end of their training, and are learned.

    Args:
        x: ``[n, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        per_class: Examples of each class.
        store: Experts' trajectories.
        network: Their architecture.
        seed: Of the draw.
        inner_lr: Start of the learned rate β.
        labels: "soft", or "hard" for the examples' classes in place of logits.
        judges: How many experts are asked; ``None`` for all.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has fewer than ``per_class`` examples that an expert classifies rightly.
    """
    judged = judge(store, network, x, y, experts=judges)
    rows = rightly_classified(y, judged.right, per_class, seed=seed)
    logits = judged.logits[rows]
    kind = SoftLabels(logits) if labels == "soft" else HardLabels(y[rows], logits.shape[1])
    return Synthetic(x[rows], kind, inner_lr=inner_lr)


@recipe(
    id="datm",
    source="Guo, Wang, Cazenavette, Li, Zhang, You: Towards Lossless Dataset Distillation via Difficulty-Aligned "
    "Trajectory Matching, ICLR 2024",
    equation="|theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2, s ~ U[S-, U(t)), U(t) = min(S+, S0 + "
    "floor((S+ - S0) t / E)); inner loss -sum softmax(y) log softmax f(x) with learned y; no update above the guard",
    deviations=[
        "The default gradient is the exact adjoint (the code differentiates through all steps, or truncates as TESLA).",
        "An example may start the set if any of the experts asked has it right; its logits are the mean over those.",
        "Every example has its own draw of the augmentation in every inner step (the code picks one operation for the "
        "whole minibatch).",
        "beta is kept above 1e-6.",
    ],
    experts=datm_experts,
    initial=datm_initial,
    optimisers={
        "images": {"lr": 100.0, "momentum": 0.5},
        "labels": {"lr": 2.0, "momentum": 0.9},
        "inner_lr": {"lr": 1e-5, "momentum": 0.5},
    },
)
def datm(
    store: TrajectoryStore,
    network: nn.Module,
    synthetic: Synthetic,
    inner_steps: int = 40,
    span: int = 2,
    low: int = 0,
    first_high: int = 10,
    last_high: int = 20,
    expand_steps: int | None = 1000,
    guard: float = 1.0,
    gradient: Gradient = "adjoint",
    augment: str | None = None,
    batch: int | None = 1000,
    seed: int = 0,
) -> TrajectoryMatching:
    """DATM: match the part of the experts' paths whose difficulty fits the size of the synthetic set.

    Early in training a network learns easy patterns, which is all that a few images can carry; a large set gains from
    late windows, which carry hard ones. The window opens as training goes on::

        s ~ U[low, U(t)),   U(t) = min(last_high, first_high + floor((last_high - first_high) t / expand_steps))
        theta_0 = theta*_s,   theta_{i+1} = theta_i + beta grad_theta <softmax(y), log softmax f(A(X_bi); theta_i)>
        L(X, y, beta) = |theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2,   no update at all if L > guard

    The defaults are those for CIFAR-10 with ten images per class. Others of the authors' code: CIFAR-10 with 1: starts
    0 to 3 throughout, guard 1.1; with 50: [0, 20 -> 40) in 2000 steps; with 500 and 1000: [40, 60); CIFAR-100 with 100:
    [30, 70); Tiny ImageNet with 50: [40, 70). T is 40 to 100, the rate of the images 50 to 1e4, that of the labels 2 to
    10, over 10,000 steps. The set is to be evaluated with the learned β.

    Args:
        store: Flat experts' trajectories (:func:`datm_experts`), column "theta".
        network: Their architecture.
        synthetic: What is trained; made by :func:`datm_initial`. Hard labels work too.
        inner_steps: T.
        span: M, in records.
        low: S⁻, first start.
        first_high: S0, upper end of the starts at step 0 (exclusive).
        last_high: S⁺, upper end from ``expand_steps`` on (exclusive).
        expand_steps: E; ``None`` is the length of the run.
        guard: Largest loss that counts.
        gradient: "adjoint" (exact), "full" (the same, memory grows with T) or "truncated".
        augment: Strategy of :class:`~distillrs.augment.Augmentation`; the paper has
            "color_crop_cutout_flip_scale_rotate".
        batch: Examples of an inner minibatch; ``None`` takes all.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its groups are "images", "labels" if they are learned, and "inner_lr".

    Raises:
        ArgumentError: A value that is not allowed, or the store's trajectories are shorter than ``last_high + span``.
    """
    windows = Windows(span, ExpandingWindow(low, first_high, last_high, expand_steps))
    # Refused now, and not when the window has opened so far.
    windows.require(store, range(low, last_high))
    with renamed(steps="inner_steps", strategy="augment", threshold="guard"):
        return TrajectoryMatching(
            store,
            network,
            synthetic,
            unroll=Unroll(inner_steps, gradient=gradient),
            windows=windows,
            augmentation=Augmentation(augment) if augment else None,
            batch=batch,
            guard=Guard(guard),
            seed=seed,
        )
