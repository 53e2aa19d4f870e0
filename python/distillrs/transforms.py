"""How raw examples map to what a network sees, and back.

A condensed set lives in the network's input space. Its transform is stored beside it, so that the test set sees the
same one and the examples can be shown as pixels. A transform is described by JSON (:meth:`Transform.describe`) and
named tensors (:meth:`Transform.tensors`); :func:`restore` puts the two together again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from distillrs.errors import argument_error, unknown_name_error


@runtime_checkable
class Transform(Protocol):
    """A fixed, invertible map of examples. Nothing is fitted after construction."""

    def forward(self, raw: Tensor) -> Tensor:
        """From raw examples [N, ...] to the network's input, same shape, type and device."""
        ...

    def inverse(self, x: Tensor) -> Tensor:
        """From the network's input [N, ...] to raw examples, same shape, type and device."""
        ...

    def describe(self) -> dict[str, Any]:
        """Kind and plain settings, as JSON and TOML can hold them."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that belong to the description, by name."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Raw examples are what the network sees."""

    def forward(self, raw: Tensor) -> Tensor:
        """The examples [N, ...] themselves."""
        return raw

    def inverse(self, x: Tensor) -> Tensor:
        """The examples [N, ...] themselves."""
        return x

    def describe(self) -> dict[str, Any]:
        """``{"kind": "identity"}``."""
        return {"kind": "identity"}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class Standardise:
    """``(x - mean) / std`` per channel.

    Attributes:
        mean: [C], along the first axis after the batch (channels of an image, entries of a vector); [1] serves any C.
        std: [C], above 0.

    Raises:
        ArgumentError: Shapes that differ, or values that are not finite or not above 0.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 1 or len(value) == 0:
                raise argument_error(name, _shown(value), "a floating tensor [C], C >= 1")
            if not bool(torch.isfinite(value).all()):
                raise argument_error(name, "a value that is not finite", "finite values")
            object.__setattr__(self, name, value.detach().clone())
        if self.mean.shape != self.std.shape:
            raise argument_error("std", tuple(self.std.shape), f"the shape of mean, {tuple(self.mean.shape)}")
        if not bool((self.std > 0).all()):
            raise argument_error("std", float(self.std.min()), "values above 0")

    @classmethod
    def fit(cls, x: Tensor) -> Standardise:
        """Mean and standard deviation of each channel.

        Args:
            x: Examples [N, C, ...], floating. Computed in float64; the result has float32.

        Returns:
            The transform. A channel that never varies keeps its scale (its ``std`` is 1).
        """
        if not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
            raise argument_error("x", _shown(x), "floating examples [N, C, ...], N >= 1")
        axes = [0, *range(2, x.ndim)]
        mean = x.mean(axes, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        # In pieces: a float64 copy of all examples would be twice the data set.
        for piece in torch.split(x, 4096):
            shape = (1, -1, *[1] * (x.ndim - 2))
            squares += (piece.double() - mean.reshape(shape)).square_().sum(axes)
        std = (squares / (x.numel() / len(mean))).sqrt()
        # Rounding leaves a constant channel a deviation of about 1e-17, which would blow noise up to full size.
        constant = std <= 1e-9 * (1 + mean.abs())
        return cls(mean.float(), torch.where(constant, torch.ones_like(std), std).float())

    def forward(self, raw: Tensor) -> Tensor:
        """Standardised examples, same shape as ``raw`` [N, C, ...]."""
        mean, std = self._shaped(raw)
        return (raw - mean) / std

    def inverse(self, x: Tensor) -> Tensor:
        """Raw examples, same shape as ``x`` [N, C, ...]."""
        mean, std = self._shaped(x)
        return x * std + mean

    def describe(self) -> dict[str, Any]:
        """``{"kind": "standardise"}``; the numbers are tensors."""
        return {"kind": "standardise"}

    def tensors(self) -> dict[str, Tensor]:
        """``mean`` and ``std``, [C]."""
        return {"mean": self.mean, "std": self.std}

    def _shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        channels = len(self.mean)
        if not x.is_floating_point() or x.ndim < 2 or channels not in (1, x.shape[1]):
            raise argument_error("x", _shown(x), f"floating examples [N, {channels}, ...]")
        shape = (1, channels, *(1,) * (x.ndim - 2))
        return self.mean.to(x).reshape(shape), self.std.to(x).reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Zca:
    """Whitening that stays nearest to the original: ``(x - mean) V (S + r)^(-1/2) V'`` (Bell and Sejnowski, 1997).

    V and S are eigenvectors and eigenvalues of the covariance of the flattened examples; r keeps directions without
    variance from exploding. The inverse is exact, because S + r > 0.

    Attributes:
        mean: [D].
        directions: V, [D, D], orthonormal columns.
        variances: S, [D], from 0.
        regularisation: r, above 0.

    Raises:
        ArgumentError: Shapes or values that do not fit.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    regularisation: float

    def __post_init__(self) -> None:
        size = self.mean.numel()
        wanted = {"mean": (size,), "directions": (size, size), "variances": (size,)}
        for name, shape in wanted.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or not value.is_floating_point():
                raise argument_error(name, _shown(value), f"a floating tensor {list(shape)}")
            if not bool(torch.isfinite(value).all()):
                raise argument_error(name, "a value that is not finite", "finite values")
        if not math.isfinite(self.regularisation) or self.regularisation <= 0:
            raise argument_error("regularisation", self.regularisation, "a finite number above 0")
        if bool((self.variances < 0).any()):
            raise argument_error("variances", float(self.variances.min()), "values from 0")

    @classmethod
    def fit(cls, x: Tensor, regularisation: float = 0.1) -> Zca:
        """Fits mean and covariance, in float64.

        Args:
            x: Examples [N, ...], floating, N >= 2.
            regularisation: Added to every variance; 0.1 is what trajectory matching uses for pixels from 0 to 1.

        Returns:
            The transform, with float32 tensors.
        """
        if not x.is_floating_point() or x.ndim < 2 or len(x) < 2:
            raise argument_error("x", _shown(x), "floating examples [N, ...], N >= 2")
        size = x[0].numel()
        mean = x.flatten(1).mean(0, dtype=torch.float64)
        covariance = torch.zeros(size, size, dtype=torch.float64, device=x.device)
        # In pieces: a float64 copy of all examples would be twice the data set.
        for piece in torch.split(x.flatten(1), 4096):
            centred = piece.double() - mean
            covariance.addmm_(centred.T, centred)
        variances, directions = torch.linalg.eigh(covariance / (len(x) - 1))
        return cls(mean.float(), directions.float(), variances.clamp(min=0).float(), float(regularisation))

    def forward(self, raw: Tensor) -> Tensor:
        """Whitened examples, same shape as ``raw`` [N, ...] with D numbers each."""
        scale = (self.variances.to(raw) + self.regularisation).rsqrt()
        return self._rescaled(self._flat(raw) - self.mean.to(raw), scale).reshape(raw.shape)

    def inverse(self, x: Tensor) -> Tensor:
        """Raw examples, same shape as ``x`` [N, ...] with D numbers each."""
        scale = (self.variances.to(x) + self.regularisation).sqrt()
        return (self._rescaled(self._flat(x), scale) + self.mean.to(x)).reshape(x.shape)

    def describe(self) -> dict[str, Any]:
        """``{"kind": "zca", "regularisation": ...}``; the rest are tensors."""
        return {"kind": "zca", "regularisation": self.regularisation}

    def tensors(self) -> dict[str, Tensor]:
        """``mean`` [D], ``directions`` [D, D], ``variances`` [D]."""
        return {"mean": self.mean, "directions": self.directions, "variances": self.variances}

    def _flat(self, x: Tensor) -> Tensor:
        size = len(self.mean)
        if not x.is_floating_point() or x.ndim < 2 or x.shape[1:].numel() != size:
            raise argument_error("x", _shown(x), f"floating examples [N, ...] of {size} numbers each")
        return x.flatten(1)

    def _rescaled(self, flat: Tensor, scale: Tensor) -> Tensor:
        directions = self.directions.to(flat)
        return ((flat @ directions) * scale) @ directions.T


def restore(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Transform:
    """The transform that :meth:`Transform.describe` and :meth:`Transform.tensors` gave.

    Args:
        description: From a file that may come from a stranger; everything is checked.
        tensors: By name, without any prefix that a file may have added.

    Returns:
        The transform.

    Raises:
        UnknownNameError: A kind that is not known.
        ArgumentError: A part that is missing or does not fit.
    """
    kinds = {
        "identity": ((), ()),
        "standardise": ((), ("mean", "std")),
        "zca": (("regularisation",), ("mean", "directions", "variances")),
    }
    kind = description.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise unknown_name_error("transform", str(kind), list(kinds))
    settings, names = kinds[kind]
    for name in settings:
        value = description.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise argument_error(f"transform {kind}: {name}", value, "a number")
    for name in names:
        if name not in tensors:
            raise argument_error(f"transform {kind}: {name}", "nothing", "a tensor of that name")
    if kind == "standardise":
        return Standardise(tensors["mean"], tensors["std"])
    if kind == "zca":
        return Zca(tensors["mean"], tensors["directions"], tensors["variances"], float(description["regularisation"]))
    return Identity()


def _shown(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
