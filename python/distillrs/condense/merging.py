"""One network between two experts and the place from which both set out."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs.checks import check_floating, check_instance, check_number
from distillrs.errors import argument_error
from distillrs.trajectory import ParameterLayout


def merge_about(one: Tensor, two: Tensor, anchor: Tensor, layout: ParameterLayout, *, amount: float = 1.0) -> Tensor:
    """Goes from an anchor towards the middle of two networks, as far as their directions agree.

    For each tensor of the parameters, ``theta = theta_0 + amount rho ((theta_1 + theta_2) / 2 - theta_0)`` with
    ``rho = 2 c / (1 + c)`` and c the cosine between ``theta_1 - theta_0`` and ``theta_2 - theta_0`` (Jang, Yun and Han,
    "Model Stock: All we need is just a few fine-tuned models", ECCV 2024, who take ``amount`` 1). A cosine below 0
    counts as 0, so that a tensor on whose direction the two disagree stays at the anchor; a tensor that one of them has
    not moved stays there, too.

    Args:
        one: [P] Parameters of the first network.
        two: [P] Of the second.
        anchor: [P] Where both began.
        layout: Where each tensor lies in the vectors.
        amount: From 0, the anchor, to 1.

    Returns:
        [P], without a graph.

    Raises:
        ArgumentError: Vectors that do not fit the layout, or an ``amount`` that is not allowed.
    """
    check_instance("layout", layout, ParameterLayout, "a ParameterLayout")
    for name, vector in (("one", one), ("two", two), ("anchor", anchor)):
        check_floating(name, vector, f"floating [{layout.size}]", axes=1)
        if vector.shape != (layout.size,):
            raise argument_error(name, tuple(vector.shape), f"({layout.size},)")
    check_number("amount", amount, "a number from 0 to 1", least=0, most=1)
    sizes = [slot.size for slot in layout.slots]
    merged = []
    with torch.no_grad():
        for a, b, origin in zip(*(torch.split(each, sizes) for each in (one, two, anchor)), strict=True):
            left, right = a - origin, b - origin
            lengths = torch.linalg.vector_norm(left) * torch.linalg.vector_norm(right)
            cosine = torch.where(lengths > 0, (left @ right / lengths).clamp(0, 1), torch.zeros_like(lengths))
            merged.append(origin + amount * 2 * cosine / (1 + cosine) * (left + right) / 2)
        return torch.cat(merged)
