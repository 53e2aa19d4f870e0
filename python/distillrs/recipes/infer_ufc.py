"""One universal compensator for the images of all classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_floating, check_instance, check_number, check_whole
from distillrs.condense import (
    BatchNormStatistics,
    BlockAdditive,
    Committee,
    HardLabels,
    Recovery,
    Synthetic,
    ViewPlan,
    draw_per_class,
)
from distillrs.condense.labels import check_classes
from distillrs.errors import argument_error, renamed
from distillrs.recipes._signals import channel_box
from distillrs.registry import recipe
from distillrs.step import Step


def _least_per_class(classes: int, teachers: int) -> int:
    """Images of each class that take the room of a block: its images and its compensators."""
    return -(-(classes + teachers) // classes)


def infer_ufc_initial(
    x: Tensor,
    y: Tensor,
    per_class: int,
    teachers: Committee,
    *,
    noise: float = 0.0,
    inner_lr: float = 0.01,
    seed: int = 0,
) -> Synthetic:
    """Blocks of one real image of each class, each with a compensator for every teacher that is added to all of them.

    As many blocks as fit: K blocks of C images and M compensators take no more room than ``per_class`` images of each
    class, K (C + M) <= per_class C. They make K C M examples.

    Args:
        x: ``[n, C, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        per_class: The room, in images of each class.
        teachers: For how many there are compensators.
        noise: Standard deviation of a compensator at the start; 0 begins with the images as they are.
        inner_lr: The learning rate that is stored with the set.
        seed: Of images and noise.

    Raises:
        ArgumentError: A value that is not allowed, or room for less than a block.
        DataError: A class has too few examples.
    """
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    check_classes("y", y, len(x))
    check_instance("teachers", teachers, Committee, "a Committee")
    classes, members = int(y.max()) + 1, len(teachers)
    check_whole("per_class", per_class, "a positive integer", least=1)
    check_number("noise", noise, "a number from 0", least=0)
    if per_class < (least := _least_per_class(classes, members)):
        allowed = f"at least {least}: a block has {classes} images and {members} compensators"
        raise argument_error("per_class", per_class, allowed)
    blocks = per_class * classes // (classes + members)
    rows = draw_per_class(y, blocks, seed=seed, classes=classes).reshape(classes, blocks).T.flatten()
    shape = (members, *x.shape[1:])
    offsets = float(noise) * random.normal(blocks, *shape, step=Step(0, seed=seed), name="compensators").to(x)
    labels = torch.arange(classes, device=y.device).repeat_interleave(members).repeat(blocks)
    return Synthetic(
        x[rows],
        HardLabels(labels, classes),
        inner_lr=inner_lr,
        learn_inner_lr=False,
        box=channel_box(x),
        factors=BlockAdditive(offsets),
        learn_images=False,
    )


def infer_ufc_views(
    count: int = 300, augmentation: str = "", area: float = 0.08, temperature: float = 20.0, seed: int = 0
) -> ViewPlan:
    """The mixtures that a student is trained on; labels are mixed as the images are, and are those of whole images.

    Args:
        count: Number of views.
        augmentation: Of the images before they are mixed, such as "flip"; it should leave their labels as they are.
        area: Smallest share of an image that a resized crop has, if there is one.
        temperature: At which labels and student are compared.
        seed: Of all draws.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    with renamed(strategy="augmentation"):
        return ViewPlan(count, augmentation, area, "mixup", temperature, seed)


class Compensation(Recovery):
    """:class:`~distillrs.condense.Recovery` of blocks, each compensator under the one teacher that it is for."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The compensators alone; the images are real."""
        return {"compensators": self.synthetic.parameter_groups()["images"]}


@recipe(
    id="infer-ufc",
    source="Zhang, Du, Liu, Zhou: Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature "
    "Compensator, ICLR 2025",
    equation="u_kj = argmin sum_{(x, y) in P_k} (CE(f_j(x + u), y) + r sum_l w_l (|mu_l - mu*_l| + |sigma^2_l - "
    "sigma^2*_l|)), P_k one real image of each class; labels mean_m f_m(x + u), mixed as the images are",
    deviations=[
        "The authors' code is not to be had: the strength, the steps, the rate, how a compensator begins (here at 0) "
        "and the labels' temperature are those of squeeze, recover and relabel, or chosen here.",
        "Sums of image and compensator are not cut to the images' range.",
        "Labels are mixed as probabilities at their temperature, and are kept in 16 bits; a mixture's weight is "
        "uniform.",
        "The cross-entropy is the mean over a block's images, not the sum.",
        "From the command line the teachers are of one architecture and differ by their seeds.",
        "From the command line, of the checked states the one that is best on validation examples is kept, not the "
        "last.",
    ],
    needs="teachers",
    initial=infer_ufc_initial,
    views=infer_ufc_views,
    view_labels="mixed",
    least_per_class=_least_per_class,
    network={"name": "convnet", "options": {"normalisation": "batch"}},
    optimisers={"compensators": {"lr": 0.25, "betas": (0.5, 0.9), "schedule": "cosine"}},
)
def infer_ufc(
    teachers: Committee, synthetic: Synthetic, strength: float = 0.01, normalised: bool = False, seed: int = 0
) -> Recovery:
    """INFER: one instance for all classes. What images lack, a few shared offsets add.

    ::

        x_kij = x_ki + u_kj,   L = sum_kj (mean_i CE(f_j(x_kij), i) + strength BN_j(x_k.j))

    An offset sees the images of all classes at once, so that it cannot draw any of them; it carries what they have in
    common, and C + M stored images make C M. Each example is labelled once, by the mean of all teachers, and a
    student's views are mixtures with mixed labels: labels take as many bytes as one view's would.

    Args:
        teachers: Networks with batch normalisation, trained on the real data, one for each compensator of a block.
        synthetic: What is trained; made by :func:`infer_ufc_initial` with the same teachers.
        strength: r, factor of the statistics; its scale depends on the network.
        normalised: Whether a layer's statistics are compared relative to their size.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its group is "compensators".

    Raises:
        ArgumentError: A value that is not allowed, a set without a compensator for each teacher, or a teacher without
            batch normalisation.
    """
    check_instance("teachers", teachers, Committee, "a Committee")
    check_instance("synthetic", synthetic, Synthetic, "a Synthetic")
    factors = synthetic.factors
    if not isinstance(factors, BlockAdditive) or factors.offsets.shape[1] != len(teachers):
        got = "none" if factors is None else f"{factors.kind!r}"
        if isinstance(factors, BlockAdditive):
            got = f"{factors.offsets.shape[1]} offsets in a block"
        raise argument_error("synthetic", f"factors: {got}", f"BlockAdditive with {len(teachers)} offsets in a block")
    return Compensation(
        teachers,
        synthetic,
        strength=strength,
        statistics=BatchNormStatistics(normalised=normalised),
        members=range(len(teachers)),
        seed=seed,
    )
