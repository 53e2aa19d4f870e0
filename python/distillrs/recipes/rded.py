"""Patches that teachers recognise."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs.condense import Committee, SoftLabels, Synthetic
from distillrs.condense.patches import mosaic, realistic_patches
from distillrs.errors import argument_error
from distillrs.registry import recipe


@recipe(
    id="rded",
    source="Sun, Shi, Yu, Lin: On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation "
    "Paradigm, CVPR 2024",
    equation="of each class the crops with the lowest loss -log p(c | crop) under a teacher, one of each image; labels "
    "f(image)",
    deviations=[
        "Each image has one label for good, not one for each view of the student's training.",
        "A committee may stand in the teacher's place.",
        "Where images are no images but vectors, they are taken whole.",
    ],
    needs="teachers",
    moves=False,
)
def rded(
    x: Tensor,
    y: Tensor,
    per_class: int,
    teachers: Committee,
    candidates: int = 300,
    crops: int = 5,
    factor: int = 1,
    area: float = 0.5,
    inner_lr: float = 0.01,
    batch: int = 512,
    seed: int = 0,
) -> Synthetic:
    """RDED: no pixel is optimised; the set is put together from the patches that a teacher is surest of.

    Of each of ``candidates`` real images of a class the best of ``crops`` random crops is kept, and of those the
    ``per_class * factor**2`` with the lowest loss; ``factor**2`` of them, shrunk, make one image. The paper has factor
    1 for images of 32 pixels and 2 for larger ones.

    Args:
        x: ``[n, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        per_class: Images of each class.
        teachers: Who judges and labels.
        candidates: Images of a class that are looked at.
        crops: Of each image.
        factor: Patches along each side of an image.
        area: Smallest share of an image that a crop has.
        inner_lr: The learning rate that is stored with the set.
        batch: Images in one pass through the teachers.
        seed: Of all draws.

    Returns:
        The set; nothing in it is to be trained.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has too few examples.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise argument_error("factor", factor, "a positive integer")
    patches, _ = realistic_patches(
        x,
        y,
        per_class * factor**2,
        teachers,
        candidates=max(candidates, per_class * factor**2),
        crops=crops if x.ndim == 4 else 0,
        area=area,
        seed=seed,
        batch=batch,
    )
    # The surest patches are spread over the images, so that no image has all the doubtful ones.
    classes = int(y.max()) + 1
    ranked = patches.reshape(classes, factor**2, per_class, *patches.shape[1:]).transpose(1, 2)
    images = mosaic(ranked.reshape(-1, *patches.shape[1:]), factor)
    logits = teachers.vote(images, batch=batch)
    return Synthetic(images, SoftLabels(logits.to(torch.float32), learn=False), inner_lr=inner_lr, learn_inner_lr=False)
