"""Patches of real images that teachers recognise, put together to new ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from distillrs import random
from distillrs.augment import Augmentation
from distillrs.checks import check_choice, check_floating, check_instance, check_number, check_whole
from distillrs.condense.committee import Committee
from distillrs.condense.labels import check_classes
from distillrs.errors import DataError, argument_error
from distillrs.step import Step

Difficulty = Literal["easy", "medium", "hard"]
_MOST_CROPS = 1 << 16


def realistic_patches(
    x: Tensor,
    y: Tensor,
    per_class: int,
    teachers: Committee,
    *,
    candidates: int = 300,
    crops: int = 5,
    area: float = 0.5,
    difficulty: Difficulty = "easy",
    seed: int = 0,
    batch: int = 512,
) -> tuple[Tensor, Tensor]:
    """The patches of each class that teachers are surest of, at most one of each image.

    Of ``candidates`` images of a class, drawn at random, each gives ``crops`` resized crops; its best is the one with
    the lowest cross-entropy of its class under the teachers, and the best of the images are taken, the lowest first
    (Sun et al., "On the Diversity and Realism of Distilled Dataset", CVPR 2024).

    Args:
        x: [n, ...] Real examples in the network's input space; crops are taken of images [n, C, H, W] alone.
        y: int64 [n].
        per_class: Patches of each class.
        teachers: Who judges.
        candidates: Images of a class that are looked at; a class with fewer gives all that it has.
        crops: Of each image; 0 takes images as they are.
        area: Smallest share of an image that a crop has.
        difficulty: Which of the images' best patches are taken: "easy": those with the lowest losses; "medium": those
            around the median; "hard": those with the highest. The order is rising in each case.
        seed: Of all draws.
        batch: Images in one pass through the teachers.

    Returns:
        Patches [C * per_class, ...] of the size of x, class after class, and their classes.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has too few examples.
    """
    for name, value in (("per_class", per_class), ("candidates", candidates)):
        check_whole(name, value, "a whole number from 1", least=1)
    check_whole("crops", crops, f"a whole number from 0 to {_MOST_CROPS}", least=0, most=_MOST_CROPS)
    check_instance("teachers", teachers, Committee, "a Committee")
    check_choice("difficulty", difficulty, get_args(Difficulty))
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    if candidates < per_class:
        raise argument_error("candidates", candidates, f"at least per_class, {per_class}")
    if crops and x.ndim != 4:
        raise argument_error("crops", crops, f"0 for examples of shape {tuple(x.shape[1:])}: crops are of images")
    check_number("area", area, "a share above 0, at most 1", above=0, most=1)
    check_classes("y", y, len(x))
    crop = Augmentation("resizedcrop", resizedcrop=area)
    step = Step(0, seed=seed)
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for label in range(int(y.max()) + 1):
        members = (y == label).nonzero()[:, 0].cpu()
        if len(members) < per_class:
            raise DataError(
                f"per_class: got {per_class}, but class {label} has {len(members)} of the {len(y)} examples; "
                "allowed is at most the size of the smallest class"
            )
        drawn = random.choice(len(members), min(candidates, len(members)), step=step, name=f"candidates/{label}")
        rows = members[drawn]
        images = x[rows.to(x.device)]
        losses: list[Tensor] = []
        views: list[Tensor] = []
        for number in range(max(1, crops)):
            seen = images
            if crops:
                plan = crop.plan(rows, step=replace(step, index=number), name="patch", shape=tuple(x.shape[1:]))
                seen = crop.apply(images, plan)
            logits = teachers.vote(seen, batch=batch)
            if logits.ndim != 2 or logits.shape[1] <= label:
                raise argument_error("teachers", f"logits {tuple(logits.shape)}", f"[n, classes] of {int(y.max()) + 1}")
            losses.append(-logits.log_softmax(1)[:, label])
            views.append(seen)
        best, which = torch.stack(losses).min(0)
        spare = len(rows) - per_class
        first = {"easy": 0, "medium": spare // 2, "hard": spare}[difficulty]
        order = best.sort(stable=True).indices[first : first + per_class]
        found.append(torch.stack(views)[which[order], order])
        labels.append(torch.full((per_class,), label, device=x.device))
    return torch.cat(found), torch.cat(labels)


def realistic_images(
    x: Tensor,
    y: Tensor,
    per_class: int,
    teachers: Committee,
    *,
    factor: int = 1,
    candidates: int = 300,
    crops: int = 5,
    area: float = 0.5,
    difficulty: Difficulty = "easy",
    seed: int = 0,
    batch: int = 512,
) -> tuple[Tensor, Tensor]:
    """Images of ``factor`` x ``factor`` patches that teachers recognise; see :func:`realistic_patches`.

    Args:
        x: [n, ...] Real examples in the network's input space; where they are no images, they are taken whole.
        y: int64 [n].
        per_class: Images of each class.
        teachers: Who judges.
        factor: Patches along each side of an image.
        candidates: Images of a class that are looked at, at least as many as patches are needed.
        crops: Of each image.
        area: Smallest share of an image that a crop has.
        difficulty: Which patches are taken.
        seed: Of all draws.
        batch: Images in one pass through the teachers.

    Returns:
        Images [C * per_class, ...], class after class, and their classes.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has too few examples.
    """
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    for name, value in (("per_class", per_class), ("factor", factor), ("candidates", candidates)):
        check_whole(name, value, "a whole number from 1", least=1)
    patches, labels = realistic_patches(
        x,
        y,
        per_class * factor**2,
        teachers,
        candidates=max(candidates, per_class * factor**2),
        crops=crops if x.ndim == 4 else 0,
        area=area,
        difficulty=difficulty,
        seed=seed,
        batch=batch,
    )
    # The surest patches are spread over the images, so that no image has all the doubtful ones.
    ranked = patches.reshape(-1, factor**2, per_class, *patches.shape[1:]).transpose(1, 2)
    return mosaic(ranked.reshape(-1, *patches.shape[1:]), factor), labels[:: factor**2]


def mosaic(patches: Tensor, factor: int) -> Tensor:
    """Images of ``factor`` x ``factor`` patches each, shrunk by area, in rows.

    Args:
        patches: [n factor^2, C, H, W], H and W multiples of ``factor``; [n, ...] of any shape for factor 1.
        factor: Patches along a side.

    Returns:
        [n, C, H, W].

    Raises:
        ArgumentError: Shapes that do not fit.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise argument_error("factor", factor, "a positive integer")
    if factor == 1:
        return patches
    if patches.ndim != 4 or len(patches) % factor**2 or patches.shape[2] % factor or patches.shape[3] % factor:
        allowed = f"images [n, C, H, W] with n a multiple of {factor**2}, H and W of {factor}"
        raise argument_error("patches", tuple(patches.shape), allowed)
    count, channels, height, width = patches.shape
    # The mean of factor x factor pixels: what scaling by area is for a whole ratio.
    small = patches.reshape(count, channels, height // factor, factor, width // factor, factor).mean((3, 5))
    grid = small.reshape(-1, factor, factor, channels, height // factor, width // factor)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)
