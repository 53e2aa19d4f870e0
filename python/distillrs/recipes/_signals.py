"""What the recipes that match signals have in common."""

from __future__ import annotations

from torch import Tensor

from distillrs.condense import Synthetic

SIAMESE = "color_crop_cutout_flip_scale_rotate"
"""The published strategy of siamese augmentation."""


def real_initial(x: Tensor, y: Tensor, per_class: int, *, seed: int = 0, inner_lr: float = 0.01) -> Synthetic:
    """Real examples drawn at random, with their classes.

    Args:
        x: [n, ...] Real examples in the network's input space.
        y: int64 [n].
        per_class: Examples of each class.
        seed: Of the draw.
        inner_lr: The learning rate that is stored with the set; it is not learned.

    Raises:
        ArgumentError: A value that is not allowed.
        DataError: A class has fewer than ``per_class`` examples.
    """
    return Synthetic.from_real(x, y, per_class, "hard", seed, inner_lr=inner_lr, learn_inner_lr=False)


def channel_box(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel, between which an image is a possible one.

    Args:
        x: [n, C, ...] Real examples.

    Returns:
        Two tensors [C, 1, ...] that broadcast to an example.
    """
    axes, shape = [0, *range(2, x.ndim)], (-1, *(1,) * (x.ndim - 2))
    return x.amin(axes).reshape(shape), x.amax(axes).reshape(shape)
