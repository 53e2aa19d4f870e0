"""Gradient statistics of reliable data, distilled into how weak data moves a classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from distillrs.condense import GradientDistillation
from distillrs.registry import recipe


@recipe(
    id="opt-traj-distill",
    source="Fan, Liu, Chang, Zhang, Cai: Taxonomy Adaptive Cross-Domain Adaptation in Medical Imaging via Optimization "
    "Trajectory Distillation, ICCV 2023",
    equation="CE(source) + .1 CE(few) + .1 CE(mixed) + 1000 [MSE(U mu_s, U mu_m) + MSE(U v_s, U v_m)] + 1000 sum_new "
    "[(avg U mu_known - avg U mu_c)^2 + (avg U v_known - avg U v_c)^2], mu and v moving averages of mean and variance "
    "of the head's gradients",
    deviations=[
        "One head serves both class sets: across domains its rows of known classes are compared, under a softmax over "
        "these and on examples of these. The code has a head for each class set and merges the new classes into those "
        "of the source.",
        "Examples are classified as wholes, so that the few are put beside the unlabelled examples and not pasted into "
        "them; an unlabelled example without a sure pseudo-label counts nothing, where the code calls it background.",
        "Moving averages are divided by 1 - decay^t.",
        "Gradients are those of each example's own loss, not of its share in the mean, so that they do not depend on "
        "the size of the batch.",
        "Subspaces are formed anew at each whole ring of vectors.",
    ],
    optimisers={"student": {"lr": 1e-4, "betas": (0.9, 0.999)}},
    engine="gradients",
)
def opt_traj_distill(
    body: nn.Module,
    head: nn.Linear,
    known: Sequence[int],
    new: Sequence[int],
    weight: float = 1000.0,
    few: float = 0.1,
    mix: float = 0.1,
    decay: float = 0.95,
    warmup: int = 0,
    held: int | None = None,
    every: int | None = None,
    energy: float = 0.98,
) -> GradientDistillation:
    """Optimisation trajectory distillation: a new domain with new classes moves the head as the labelled one does.

    ::

        L = CE(source) + few CE(few) + mix CE(mixed) + weight (domain + class)

    See :class:`~distillrs.condense.GradientDistillation`. A step's batch is a
    :class:`~distillrs.condense.DomainBatch`, whose mixed part :func:`~distillrs.condense.mixed_target` makes from the
    few labelled and the unlabelled examples. The paper has Adam with rate 1e-4, a first epoch without the distilled
    terms (``warmup``), and, for the layers before the head, a :class:`~distillrs.condense.GradientAmplifier`.

    Args:
        body: From examples to features ``[n, D]``.
        head: From features to logits ``[n, C]``.
        known: Classes that the source domain has.
        new: Classes of which there are few labels alone.
        weight: Of the distilled terms.
        few: Weight of the few labelled examples.
        mix: Weight of the mixed examples.
        decay: Of the moving averages.
        warmup: Steps without the distilled terms.
        held: Vectors in each subspace's ring; ``None`` for 0.8 of their length, at most 300.
        every: Vectors from one decomposition to the next; ``None`` for a whole ring.
        energy: Share of the squares that a subspace holds.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return GradientDistillation(
        body,
        head,
        known=known,
        new=new,
        weight=weight,
        few=few,
        mix=mix,
        decay=decay,
        warmup=warmup,
        held=held,
        every=every,
        energy=energy,
    )
