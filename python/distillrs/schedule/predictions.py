"""What a network says about a noisy state, and how two of its answers make a guided one."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

from torch import Tensor

from distillrs.errors import unknown_name_error
from distillrs.schedule._times import Time, as_float64, check_values, spread, work_dtype
from distillrs.schedule.path import Kind

Convention: TypeAlias = Literal["from_unconditional", "from_conditional"]
"""What a guidance scale multiplies; see :func:`guide`."""


class Prediction(NamedTuple):
    """A prediction and what it is of.

    Attributes:
        value: Of the state's shape.
        kind: See :meth:`Path.convert`.
    """

    value: Tensor
    kind: Kind


def guide(
    conditional: Tensor, unconditional: Tensor, scale: Time, convention: Convention = "from_unconditional"
) -> Tensor:
    """Classifier-free guidance: Ho and Salimans, "Classifier-free diffusion guidance" (2022).

    - ``from_unconditional``: ``u + w (c - u)``; 1 is the conditional prediction, 0 the unconditional one.
    - ``from_conditional``: ``c + w (c - u) = (1 + w) c - w u``; 0 is the conditional prediction. A scale here is one
      less than the same guidance above.

    Every kind of prediction is guided alike: at one state each is an affine function of any other.

    Args:
        conditional: ``c``, ``[n, ...]``.
        unconditional: ``u``, of the same shape and kind.
        scale: ``w``: a number, or ``[n]``.
        convention: What ``w`` multiplies.

    Returns:
        Of their shape.

    Raises:
        ArgumentError: For an unknown convention, or predictions of other shapes.
    """
    if convention not in get_args(Convention):
        raise unknown_name_error("convention", convention, list(get_args(Convention)))
    check_values("conditional", conditional)
    check_values("unconditional", unconditional, conditional)
    weight = spread(as_float64("scale", scale), conditional, work_dtype(conditional))
    base = unconditional if convention == "from_unconditional" else conditional
    return base + (weight * (conditional - unconditional)).to(base.dtype)
