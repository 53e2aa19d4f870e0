"""Distillation by a committee that votes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

from torch import Tensor

from distillrs.augment import Augmentation
from distillrs.checks import check_callable, check_instance, check_number
from distillrs.condense import BatchNormStatistics, Committee, HardLabels, Recovery, Synthetic, ViewPlan
from distillrs.condense.patches import Difficulty, realistic_images
from distillrs.errors import argument_error, renamed
from distillrs.recipes._signals import channel_box
from distillrs.registry import recipe

_LABEL_TEMPERATURE = 10.0
_T = TypeVar("_T")


def cv_dd_prior(
    teachers: Committee, condense: Callable[[Committee], _T], score: Callable[[_T], float]
) -> tuple[float, ...]:
    """What each member is worth alone: the accuracy in percent that data distilled with it reaches.

    A committee with it is ``Committee(members, prior=cv_dd_prior(...))``. Choose on validation examples, never on those
    of the test.

    Args:
        teachers: The members; their weights play no part.
        condense: From a committee of one to what is distilled with it.
        score: From that to an accuracy from 0 to 1.

    Returns:
        A number for each member, from 0 to 100.

    Raises:
        ArgumentError: A score that is no accuracy.
    """
    check_instance("teachers", teachers, Committee, "a Committee")
    check_callable("condense", condense, "a function of a committee")
    check_callable("score", score, "a function that gives an accuracy from 0 to 1")
    found = []
    for number in range(len(teachers)):
        accuracy = float(score(condense(Committee([teachers[number]]))))
        if not (math.isfinite(accuracy) and 0 <= accuracy <= 1):
            raise argument_error("score", f"{accuracy} for member {number}", "an accuracy from 0 to 1")
        found.append(100 * accuracy)
    return tuple(found)


def cv_dd_initial(
    x: Tensor,
    y: Tensor,
    per_class: int,
    teachers: Committee,
    *,
    seed: int = 0,
    factor: int = 1,
    candidates: int = 300,
    crops: int = 5,
    patch_area: float = 0.5,
    difficulty: Difficulty = "medium",
    inner_lr: float = 0.01,
) -> Synthetic:
    """Patches of real images, neither those that the teachers are surest of nor those that they doubt.

    Args:
        x: ``[n, C, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        per_class: Images of each class.
        teachers: Who judges.
        seed: Of all draws.
        factor: Patches along each side of an image.
        candidates: Images of a class that are looked at.
        crops: Of each image.
        patch_area: Smallest share of an image that a crop has.
        difficulty: "easy", "medium" or "hard"; see :func:`distillrs.condense.patches.realistic_patches`.
        inner_lr: The learning rate that is stored with the set.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has too few examples.
    """
    with renamed(area="patch_area"):
        images, labels = realistic_images(
            x,
            y,
            per_class,
            teachers,
            factor=factor,
            candidates=candidates,
            crops=crops,
            area=patch_area,
            difficulty=difficulty,
            seed=seed,
        )
    classes = HardLabels(labels, int(y.max()) + 1)
    return Synthetic(images, classes, inner_lr=inner_lr, learn_inner_lr=False, box=channel_box(x))


def cv_dd_views(
    count: int = 300,
    area: float = 0.08,
    mix: Literal["none", "cutmix", "mixup"] = "cutmix",
    temperature: float = 20.0,
    batch: int = 16,
    seed: int = 0,
) -> ViewPlan:
    """The views that the committee labels, and which of them share a batch.

    Args:
        count: Number of views.
        area: Smallest share of an image that a crop has.
        mix: "cutmix", "mixup" or "none".
        temperature: At which committee and student are compared.
        batch: Images whose statistics normalise each other, in the committee and in the student.
        seed: Of all draws.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return ViewPlan(count, "resizedcrop_flip", area, mix, temperature, seed, batch)


def cv_dd_voice(teachers: Committee, temperature: float = _LABEL_TEMPERATURE) -> Callable[[Tensor], Tensor]:
    """The committee's labels of a batch: every member normalises by the batch, and all of them vote.

    Nothing that a member keeps is changed.

    Args:
        teachers: The committee.
        temperature: Of its weights.

    Returns:
        A function from images ``[n, ...]`` to logits ``[n, C]``.
    """
    check_instance("teachers", teachers, Committee, "a Committee")
    check_number("temperature", temperature, "a finite number above 0", above=0)
    return partial(teachers.vote, statistics="batch", temperature=temperature)


@recipe(
    id="cv-dd",
    source="Cui, Bi, Luo, Zhao, Liu, Shen: Dataset Distillation via Committee Voting, 2025; recovering and relabelling "
    "of Yin, Xing, Shen: Squeeze, Recover and Relabel, NeurIPS 2023",
    equation="sum_k w_k (CE(f_k(A(s)), y) + r sum_l w_l (|mu_kl - mu*_kl| + |sigma^2_kl - sigma^2*_kl|)), two members "
    "k for each group of images, w = softmax(prior / 5); labels sum_k softmax(prior / 10)_k f_k(view), f_k normalised "
    "by the view's batch",
    deviations=[
        "There is no random roll of the images.",
        "Images begin as the patches around the median of the loss; how the authors' set of medium patches was made is "
        "not known.",
        "A student sees the batches that were labelled together as they are, 16 by default; the code labels halves of "
        "its batches and has the student accumulate two of them.",
        "From the command line the members are of one architecture, so that all of them weigh alike and the prior has "
        "nothing to tell apart.",
        "From the command line, of the checked states the one that is best on validation examples is kept, not the "
        "last.",
        "From the command line students are trained as on every other set, by gradient descent with the factor T^2 and "
        "not by AdamW with a smoothed cosine.",
    ],
    needs="teachers",
    initial=cv_dd_initial,
    views=cv_dd_views,
    voice=cv_dd_voice,
    network={"name": "convnet", "options": {"normalisation": "batch"}},
    optimisers={"images": {"lr": 0.25, "betas": (0.5, 0.9), "schedule": "cosine"}},
)
def cv_dd(
    teachers: Committee,
    synthetic: Synthetic,
    strength: float = 0.01,
    area: float = 0.08,
    members: int = 2,
    weight_temperature: float = 5.0,
    normalised: bool = False,
    seed: int = 0,
) -> Recovery:
    """CV-DD: images are recovered under several networks at once, each heard as much as it is worth.

    For the j-th image of every class ``members`` of the committee are drawn, once for the run::

        L = sum_k w_k (CE(f_k(A(s)), y) + strength BN_k(A(s))),  w = softmax over the drawn of prior_k / 5

    The prior of a member is the accuracy in percent that data distilled with it alone reaches (:func:`cv_dd_prior`).
    The paper has 4000 steps of Adam with rate 0.25 (betas 0.5 and 0.9, cosine), ``strength`` 0.01 and five networks of
    different architectures. With one member this is the paper's SRe2L++.

    Args:
        teachers: Networks with batch normalisation, trained on the real data, with their prior.
        synthetic: What is trained; made by :func:`cv_dd_initial`.
        strength: r, factor of the statistics; its scale depends on the network.
        area: Smallest area of a crop.
        members: Teachers for each group of images.
        weight_temperature: Of the weights.
        normalised: Whether a layer's statistics are compared relative to their size, so that one ``strength`` serves
            networks whose statistics differ by orders of magnitude.
        seed: Of steps that are given as plain numbers.

    Returns:
        The objective; its group is "images".

    Raises:
        ArgumentError: A value that is not allowed, or a teacher without batch normalisation.
    """
    with renamed(temperature="weight_temperature", resizedcrop="area"):
        return Recovery(
            teachers,
            synthetic,
            strength=strength,
            statistics=BatchNormStatistics(normalised=normalised),
            augmentation=Augmentation("resizedcrop_flip", combine="all", resizedcrop=area),
            members=members,
            redraw=False,
            temperature=weight_temperature,
            seed=seed,
        )
