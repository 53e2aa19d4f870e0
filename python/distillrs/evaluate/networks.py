"""The small networks that experts, teachers and evaluations use.

Each has no running statistics unless they are asked for, so that its parameters alone say what it does. The weights at
the start are a function of the seed; torch's own generators stay untouched.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from distillrs.errors import argument_error, unknown_name_error
from distillrs.step import Step
from distillrs.training import module_randomness

Shape = tuple[int, ...]


def linear(shape: Shape, classes: int) -> nn.Module:
    """Softmax regression: one linear map of the flattened example.

    Args:
        shape: Of one example, any.
        classes: Number of logits.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def mlp(shape: Shape, classes: int, *, widths: Sequence[int] = (32,)) -> nn.Module:
    """A perceptron with ReLU between its layers.

    Args:
        shape: Of one example, any; it is flattened.
        classes: Number of logits.
        widths: Of the hidden layers.
    """
    # A string is a sequence too, of strings: its letters fail the same check.
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise argument_error("widths", widths, "positive integers")
    layers: list[nn.Module] = [nn.Flatten()]
    before = math.prod(shape)
    for width in widths:
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))


def convnet(
    shape: Shape, classes: int, *, width: int = 128, depth: int = 3, normalisation: str = "instance"
) -> nn.Module:
    """The ConvNet of dataset condensation (Gidaris and Komodakis, 2018; Zhao, Mopuri and Bilen, 2021).

    ``depth`` blocks of 3 x 3 convolution, instance normalisation with scale and shift (one group per channel), ReLU
    and 2 x 2 average pooling, then one linear layer. Images of 28 x 28 are padded to 32 x 32 by the first convolution,
    as in the original.

    Args:
        shape: (C, H, W).
        classes: Number of logits.
        width: Channels of every block.
        depth: Number of blocks; the image must be at least 2**depth pixels high and wide.
        normalisation: "instance", or "batch": batch normalisation, which keeps running statistics.
    """
    if len(shape) != 3:
        raise argument_error("shape", shape, "(C, H, W): a convnet takes images; use 'mlp' for vectors")
    for name, value in (("width", width), ("depth", depth)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise argument_error(name, value, "a positive integer")
    if normalisation not in ("instance", "batch"):
        raise argument_error("normalisation", normalisation, "'instance' or 'batch'")
    channels, height, breadth = shape
    padded = 4 if (height, breadth) == (28, 28) else 0
    smallest = min(height, breadth) + padded
    if smallest < 2**depth:
        raise argument_error("depth", depth, f"at most {smallest.bit_length() - 1} for images of {height} x {breadth}")
    blocks: list[nn.Module] = []
    for block in range(depth):
        blocks += [
            nn.Conv2d(channels if block == 0 else width, width, 3, padding=1 + padded // 2 if block == 0 else 1),
            nn.GroupNorm(width, width, affine=True) if normalisation == "instance" else nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    features = width * ((height + padded) >> depth) * ((breadth + padded) >> depth)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, classes))


NETWORKS: dict[str, Callable[..., nn.Module]] = {"convnet": convnet, "linear": linear, "mlp": mlp}
"""The networks that :func:`build` knows by name."""


def build(name: str, shape: Sequence[int], classes: int, *, seed: int = 0, **options: Any) -> nn.Module:
    """A fresh network whose weights are a function of the seed.

    Args:
        name: "convnet", "linear", "mlp", or ``package.module:function`` for a function (shape, classes, **options)
            that returns a module; it is imported and called.
        shape: Of one example, without the batch.
        classes: Number of logits, from 2.
        seed: Of the initialisation.
        **options: Of the named network ("width", "depth", "widths").

    Returns:
        The network, on torch's default device, in training mode.

    Raises:
        UnknownNameError: An unknown network or option; the nearest name is suggested.
        ArgumentError: A value that is not allowed.
    """
    sizes = tuple(shape)
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise argument_error("shape", shape, "positive integers, one per axis of an example")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise argument_error("classes", classes, "an integer from 2")
    function = _find(name)
    _check_options(function, options)
    with module_randomness(Step(0, seed=seed), "network initialisation"):
        network = function(sizes, classes, **options)
    if not isinstance(network, nn.Module):
        raise argument_error("network", name, f"a function that returns a module, not {type(network).__name__}")
    return network


def _find(name: str) -> Callable[..., Any]:
    if name in NETWORKS:
        return NETWORKS[name]
    if ":" not in name:
        raise unknown_name_error("network", name, [*NETWORKS, "package.module:function"])
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as failure:
        raise argument_error("network", name, f"an importable package.module:function ({failure})") from failure
    if not callable(function):
        raise argument_error("network", name, "something that can be called as (shape, classes, **options)")
    found: Callable[..., Any] = function
    return found


def _check_options(function: Callable[..., Any], options: dict[str, Any]) -> None:
    parameters = list(inspect.signature(function).parameters.values())
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    # The first two are shape and classes, whatever a caller's own function names them.
    known = [parameter.name for parameter in parameters[2:]]
    for name in options:
        if name not in known:
            raise unknown_name_error("network option", name, known)
