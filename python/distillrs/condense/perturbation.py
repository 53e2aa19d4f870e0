"""Moving the point from which the inner training starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_number
from distillrs.errors import argument_error
from distillrs.step import Step
from distillrs.trajectory.layout import ParameterLayout


@dataclass(frozen=True, slots=True)
class FilterPerturbation:
    """Perturbs the convolutions of a start vector: ``w + scale w ⊙ d / ‖d‖_F`` with d standard normal.

    A tensor counts as a convolution's when it has three axes or more (outputs, inputs and at least one side of the
    kernel); biases, normalisations and dense layers stay as they are. d is drawn anew for each tensor and step, and
    its norm runs over the whole tensor, as in AST (J. Shen et al., "Efficient Dataset Distillation through Alignment
    with Smooth and High-Quality Expert Trajectories", 2023).

    Attributes:
        scale: Size of the perturbation, from 0; the paper has 1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("scale", self.scale, "a finite number from 0", least=0)

    def __call__(self, vector: Tensor, layout: ParameterLayout, *, step: Step | int) -> Tensor:
        """The perturbed vector; ``vector`` itself stays as it is.

        Args:
            vector: ``[P]``, the parameters in the layout's order.
            layout: How they lie in it.
            step: Step of the run.

        Returns:
            ``[P]``

        Raises:
            ArgumentError: The vector has not the layout's size.
        """
        if vector.shape != (layout.size,):
            raise argument_error("vector", tuple(vector.shape), f"({layout.size},)")
        step = Step.of(step)
        unit = range(step.first_unit, step.first_unit + 1)
        moved = vector.clone()
        for slot in layout.slots:
            if len(slot.shape) < 3:
                continue
            drawn = random.normal(unit, slot.size, step=step, name=f"perturbation/{slot.name}", dtype=torch.float64)[0]
            # Normalised in double precision: the tensor may have millions of elements.
            direction = (self.scale / drawn.norm() * drawn).to(vector)
            moved[slot.offset : slot.offset + slot.size].mul_(1 + direction)
        return moved
