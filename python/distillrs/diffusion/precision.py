"""A warning where a network's derivative by time would drown in the rounding of TF32."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_told: set[str] = set()


def warn_of_tf32(x: Tensor, module: nn.Module) -> None:
    """Warns once of each kind of product that TF32 rounds to ten bits.

    The setting itself is left as it is: it belongs to whoever trains, and a compiled network may not have it changed
    under its feet.

    Args:
        x: The network's input.
        module: The network.
    """
    if torch.compiler.is_compiling() or not _multiplies_in_float32(x):
        return
    found = {"matrices": _matrices_in_tf32()}
    if "convolutions" not in _told:
        found["convolutions"] = _convolutions_in_tf32() and any(isinstance(part, _ConvNd) for part in module.modules())
    for what, rounded in found.items():
        if not rounded or what in _told:
            continue
        _told.add(what)
        setting = "cuda.matmul" if what == "matrices" else "cudnn.conv"
        warnings.warn(
            f"products of {what} are in TF32, whose ten bits are too few for a derivative of the network by time: the "
            f"target's tangent has an error of some per cent. Set torch.backends.{setting}.fp32_precision = 'ieee'",
            stacklevel=3,
        )


def _multiplies_in_float32(x: Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cuda")


def _matrices_in_tf32() -> bool:
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return bool(torch.backends.cuda.matmul.allow_tf32 if setting is None else setting == "tf32")


def _convolutions_in_tf32() -> bool:
    setting = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    return bool(torch.backends.cudnn.allow_tf32 if setting is None else setting == "tf32")
