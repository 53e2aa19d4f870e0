"""Flat trajectories."""

from __future__ import annotations

from torch import Tensor, nn

from distillrs.augment import Augmentation
from distillrs.condense import Synthetic, TrajectoryMatching, TrajectoryStore, Unroll, Windows
from distillrs.condense.experts import ExpertTraining
from distillrs.condense.modifiers import SharpnessAware
from distillrs.condense.unroll import Gradient
from distillrs.condense.windows import Starts
from distillrs.errors import renamed
from distillrs.registry import recipe
from distillrs.training import TrainingSettings


def ftd_experts(
    network: nn.Module,
    training: TrainingSettings,
    radius: float = 0.01,
    adaptive: bool = True,
    surrogate_gap: float = 0.4,
    mix: float = 1.0,
) -> ExpertTraining:
    """Experts on flat trajectories: sharpness-aware steps.

    With g the gradient at θ and g_s the one at θ + ε, on the same minibatch::

        ε = radius θ² g / ‖ |θ| g ‖      (adaptive, as the code)        or     ε = radius g / ‖g‖      (as the paper)
        step along (1 - mix) g + mix g_s - surrogate_gap (g - (<g, g_s> / <g_s, g_s>) g_s)

    The defaults are those of the authors' run script. The paper's own form is ``adaptive=False, surrogate_gap=0`` with
    ``mix`` its α: .3 for CIFAR-10 with 1 and 10 images per class, else 1. Both train 100 experts for 50 epochs by SGD
    of rate .01 without momentum or decay.

    Args:
        network: Not used; here because every recipe's experts are made from a network and its training.
        training: Settings of each expert.
        radius: ρ. The code's default of 2.0 is not what its script ran.
        adaptive: Scale the ascent by the weights.
        surrogate_gap: Weight a of the part of g that is perpendicular to g_s.
        mix: Weight of g_s.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return ExpertTraining(training, SharpnessAware(radius, adaptive, surrogate_gap, mix))


def ftd_initial(
    x: Tensor,
    y: Tensor,
    per_class: int,
    *,
    store: TrajectoryStore | None = None,
    network: nn.Module | None = None,
    seed: int = 0,
    inner_lr: float = 0.01,
    average: float = 0.999,
) -> Synthetic:
    """Random real examples with hard labels, of which a moving average is kept: ``X̄ <- average X̄ + (1 - average) X``.

    Args:
        x: ``[n, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        per_class: Examples of each class.
        store: Not used.
        network: Not used.
        seed: Of the draw.
        inner_lr: Start of the learned rate β.
        average: Decay of the average, which is what is evaluated and saved; .999 to .9999 in the paper.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has fewer than ``per_class`` examples.
    """
    return Synthetic.from_real(x, y, per_class, "hard", seed, inner_lr=inner_lr, average=average)


@recipe(
    id="ftd",
    source="Du, Jiang, Tan, Zhou, Li: Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation, "
    "CVPR 2023",
    equation="|theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2 on experts that minimise L(theta) + alpha "
    "(max_{|e|<=rho} L(theta + e) - L(theta)); evaluated is the moving average of the images",
    deviations=[
        "Experts are trained as the authors' code does (surrogate gap with adaptive ascent, rho .01, a .4); the form "
        "in the paper is ftd_experts(adaptive=False, surrogate_gap=0, mix=alpha).",
        "The default gradient is the exact adjoint, the same as the paper's in memory that does not grow with T.",
        "Every example has its own draw of the augmentation in every inner step (the code picks one operation for the "
        "whole minibatch).",
        "The second pass of an expert's step replays dropout and leaves running statistics alone.",
        "beta is kept above 1e-6; an update whose loss is not finite is skipped.",
    ],
    experts=ftd_experts,
    initial=ftd_initial,
    optimisers={"images": {"lr": 100.0, "momentum": 0.5}, "inner_lr": {"lr": 1e-5, "momentum": 0.5}},
)
def ftd(
    store: TrajectoryStore,
    network: nn.Module,
    synthetic: Synthetic,
    inner_steps: int = 30,
    span: int = 2,
    start: Starts = range(20),
    gradient: Gradient = "adjoint",
    augment: str | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> TrajectoryMatching:
    """FTD: trajectory matching against experts on flat trajectories.

    A student that is trained from scratch is never quite where the expert was, and the error that it carries into each
    matched segment adds up. Where the loss is flat the error changes the next segment less, so the experts are trained
    to stay there (:func:`ftd_experts`); the matching itself is that of MTT::

        theta_{i+1} = theta_i - beta grad_theta CE(f(A(X_bi); theta_i), Y_bi),   theta_0 = theta*_s,   s ~ U{starts}
        L(X, beta)  = |theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2
        X̄          <- d X̄ + (1 - d) X        after every step (:func:`ftd_initial`)

    The defaults are those for CIFAR-10 with ten images per class: T 30, M 2, starts 0 to 19, rate 100 for X.

    Args:
        store: Flat experts' trajectories, column "theta": one record per epoch, the first before training.
        network: Their architecture.
        synthetic: What is trained; made by :func:`ftd_initial`, or ``Synthetic(..., average=0.999)``.
        inner_steps: T.
        span: M, in records.
        start: Starts s, or a schedule of them; the range's upper end is exclusive.
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
