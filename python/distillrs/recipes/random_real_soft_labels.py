"""The control: real examples drawn at random, labelled by teachers."""

from __future__ import annotations

from torch import Tensor

from distillrs.checks import check_floating, check_instance
from distillrs.condense import Committee, SoftLabels, Synthetic, draw_per_class
from distillrs.condense.labels import check_classes
from distillrs.registry import recipe


@recipe(
    id="random_real_soft_labels",
    source="The control of Qin, Deng, Alvarez-Melis: A Label is Worth a Thousand Images in Dataset Distillation, "
    "NeurIPS 2024",
    equation="y = f(x), x drawn at random from each class",
    deviations=["Each image has one label for good, not one for each view."],
    needs="teachers",
    moves=False,
)
def random_real_soft_labels(
    x: Tensor, y: Tensor, per_class: int, teachers: Committee, inner_lr: float = 0.01, batch: int = 512, seed: int = 0
) -> Synthetic:
    """Random real images with a teacher's labels: what a condensed set with soft labels has to beat.

    Args:
        x: ``[n, ...]`` real examples in the network's input space.
        y: int64 ``[n]`` classes.
        per_class: Examples of each class.
        teachers: Who labels, by vote.
        inner_lr: The learning rate that is stored with the set.
        batch: Images in one pass through the teachers.
        seed: Of the draw.

    Returns:
        The set; nothing in it is to be trained.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has fewer than ``per_class`` examples.
    """
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    check_instance("teachers", teachers, Committee, "a Committee")
    check_classes("y", y, len(x))
    rows = draw_per_class(y, per_class, seed=seed)
    images = x[rows]
    logits = teachers.vote(images, batch=batch)
    return Synthetic(images, SoftLabels(logits, learn=False), inner_lr=inner_lr, learn_inner_lr=False)
