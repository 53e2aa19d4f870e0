"""The divergences that the fused backends know, and a divergence as its parts."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs.ops._divergences import (
    Alpha,
    ForwardKL,
    JensenShannon,
    Mixture,
    ReverseKL,
    RowDivergence,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)

# The parameter of each, if it has one. The core knows them by name, the kernels by their place (`Kind` in
# cuda/divergences.cuh).
PARAMETERS: dict[type[RowDivergence], str | None] = {
    ForwardKL: None,
    ReverseKL: None,
    JensenShannon: "beta",
    SkewKL: "alpha",
    SkewReverseKL: "alpha",
    TotalVariation: None,
    Alpha: "a",
}


def parts_of(divergence: RowDivergence) -> dict[RowDivergence, float | Tensor]:
    """The parts with their weights."""
    return dict(divergence.weights) if type(divergence) is Mixture else {divergence: 1.0}


def parameter_of(part: RowDivergence) -> float:
    """Its parameter; 0 if it has none."""
    name = PARAMETERS[type(part)]
    return float(getattr(part, name)) if name is not None else 0.0


def refusal(divergence: RowDivergence) -> tuple[str, str] | None:
    """Why a fused backend cannot serve a divergence, and what it could; ``None`` if it can."""
    for part in parts_of(divergence):
        # A subclass may have changed the formulas.
        if type(part) not in PARAMETERS:
            return f"the divergence {part}", "the divergences of distillrs.ops"
    return None


def row_weights(weight: float | Tensor, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """float64 ``[n]``: a part's weight in each row.

    Args:
        weight: One for all, or one for each row.
        shape: Leading axes of the rows.
        device: Where they will be used.
    """
    if not isinstance(weight, Tensor):
        return torch.full(shape, weight, dtype=torch.float64, device=device).reshape(-1)
    return weight.to(device, torch.float64).expand(shape).reshape(-1)
