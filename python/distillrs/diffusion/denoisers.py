"""Small networks of a state, one or two times, and a class: for beds, demonstrations and the command line.

They are called ``network(x, t, gap=None, label=None)``. ``gap`` is ``t - r``, the way that a map goes; a network that
was trained without one says the same for every gap until it is trained with one, so a student may begin as a copy of
its teacher. The weights at the start are a function of the seed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs.checks import check_whole
from distillrs.errors import argument_error, unknown_name_error
from distillrs.step import Step
from distillrs.training import module_randomness

# Half-turns over the whole time, slowest and fastest. Derivatives by the time grow with the fastest.
_SLOWEST, _FASTEST = 0.5, 8.0
# What a small network is far below; more is a mistake, or the claim of a file that means harm.
_WIDEST, _LARGEST_EXAMPLE = 2**16, 2**31


class _Context(nn.Module):
    """Times and class as one vector.

    Args:
        classes: Number of classes; 0 for none.
        width: Of the vector.
        waves: Sines, and as many cosines, of each time.
    """

    frequencies: Tensor

    def __init__(self, classes: int, width: int, waves: int = 16) -> None:
        super().__init__()
        exponents = torch.linspace(math.log2(_SLOWEST), math.log2(_FASTEST), waves, dtype=torch.float64)
        self.register_buffer("frequencies", (math.pi * 2**exponents).float(), persistent=False)
        self.time = nn.Linear(2 * waves, width)
        self.gap = nn.Linear(2 * waves, width)
        self.label = nn.Embedding(classes, width) if classes else None
        self.mix = nn.Linear(width, width)
        nn.init.zeros_(self.gap.weight)
        nn.init.zeros_(self.gap.bias)

    def forward(self, t: Tensor, gap: Tensor | None, label: Tensor | None) -> Tensor:
        """``[n, width]``."""
        value = self.time(self._waves(t))
        if gap is not None:
            value = value + self.gap(self._waves(gap))
        if self.label is not None:
            if label is None:
                raise argument_error("label", None, "int64 [n]: this network was made for classes")
            value = value + self.label(label)
        mixed: Tensor = self.mix(functional.silu(value))
        return functional.silu(mixed)

    def _waves(self, t: Tensor) -> Tensor:
        angles = t.to(self.frequencies.dtype)[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1).to(self.time.weight.dtype)


class _Layer(nn.Module):
    """A residual layer of a perceptron, shifted by the context; the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.shift = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        value: Tensor = self.second(functional.silu(self.first(self.norm(x)) + self.shift(context)))
        return x + value


class Perceptron(nn.Module):
    """A residual perceptron over the flattened state.

    Args:
        shape: Of one example.
        classes: Number of classes; 0 for none.
        width: Of the hidden layers.
        depth: Number of residual layers.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        _positive(width=width, depth=depth)
        size = math.prod(shape)
        self.context = _Context(classes, width)
        self.first = nn.Linear(size, width)
        self.layers = nn.ModuleList([_Layer(width) for _ in range(depth)])
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))

    def forward(self, x: Tensor, t: Tensor, gap: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """``[n, ...]``, of the shape of ``x``."""
        context = self.context(t, gap, label)
        value: Tensor = self.first(x.flatten(1)) + context
        for layer in self.layers:
            value = layer(value, context)
        out: Tensor = self.last(value)
        return out.reshape(x.shape)


class _Block(nn.Module):
    """Two convolutions with a shift by the context between them, beside a skip."""

    def __init__(self, channels: int, out: int, context: int, groups: int) -> None:
        super().__init__()
        self.before = nn.GroupNorm(math.gcd(groups, channels), channels)
        self.first = nn.Conv2d(channels, out, 3, padding=1)
        self.shift = nn.Linear(context, out)
        self.between = nn.GroupNorm(math.gcd(groups, out), out)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        value: Tensor = self.first(functional.silu(self.before(x))) + self.shift(context)[:, :, None, None]
        value = self.second(functional.silu(self.between(value)))
        kept: Tensor = self.skip(x)
        return kept + value


class UNet(nn.Module):
    """A small convolutional network that goes down to coarser images and up again, with a skip at each size.

    Args:
        shape: (C, H, W), at least ``2**(depth - 1)`` pixels high and wide.
        classes: Number of classes; 0 for none.
        width: Channels at full size; twice as many at every smaller one.
        depth: Number of sizes.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        _positive(width=width, depth=depth)
        if len(shape) != 3:
            raise argument_error("shape", shape, "(C, H, W): a unet takes images; use 'mlp' for vectors")
        # No power of two of a number that may come from a file.
        most = min(shape[1:]).bit_length()
        if depth > most:
            raise argument_error("depth", depth, f"at most {most} for images of {shape[1]} x {shape[2]}")
        context, groups = 4 * width, 8
        sizes = [width * 2**level for level in range(depth)]
        self.context = _Context(classes, context)
        self.first = nn.Conv2d(shape[0], width, 3, padding=1)
        before = [width, *sizes[:-1]]
        self.down = nn.ModuleList(
            [_Block(inner, outer, context, groups) for inner, outer in zip(before, sizes, strict=True)]
        )
        self.middle = _Block(sizes[-1], sizes[-1], context, groups)
        above = [*sizes[1:], sizes[-1]]
        self.up = nn.ModuleList(
            [_Block(below + own, own, context, groups) for below, own in zip(above, sizes, strict=True)]
        )
        self.last = nn.Sequential(nn.GroupNorm(math.gcd(groups, width), width), nn.SiLU())
        self.out = nn.Conv2d(width, shape[0], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, gap: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """``[n, C, H, W]``."""
        context = self.context(t, gap, label)
        value = self.first(x)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            value = block(functional.avg_pool2d(value, 2) if level else value, context)
            skips.append(value)
        value = self.middle(value, context)
        for level in reversed(range(len(skips))):
            own = skips[level]
            if value.shape[2:] != own.shape[2:]:
                # Odd sizes were halved downwards: up to the size of the skip.
                value = functional.interpolate(value, size=own.shape[2:], mode="nearest")
            value = self.up[level](torch.cat([value, own], 1), context)
        out: Tensor = self.out(self.last(value))
        return out


DENOISERS: dict[str, Callable[..., nn.Module]] = {"mlp": Perceptron, "unet": UNet}
"""The networks that :func:`build` knows by name."""


def build(name: str, shape: Sequence[int], classes: int = 0, *, seed: int = 0, **options: Any) -> nn.Module:
    """A fresh network ``(x, t, gap=None, label=None)`` whose weights are a function of the seed.

    Args:
        name: "mlp" or "unet".
        shape: Of one example, without the batch.
        classes: Number of classes; 0 for a network that is told none.
        seed: Of the initialisation.
        **options: "width" and "depth".

    Returns:
        The network, in training mode.

    Raises:
        UnknownNameError: An unknown network or option; the nearest name is suggested.
        ArgumentError: A value that is not allowed.
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise argument_error("shape", shape, "positive integers, one per axis of an example")
    if math.prod(sizes) > _LARGEST_EXAMPLE:
        raise argument_error("shape", shape, f"examples of at most {_LARGEST_EXAMPLE} numbers")
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise argument_error("classes", classes, "an integer from 0")
    check_options(name, options)
    with module_randomness(Step(0, seed=seed), "network initialisation"):
        return DENOISERS[name](sizes, classes, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuses a network that is not known, and options that it does not have.

    Args:
        name: See :func:`build`.
        options: Likewise; in a mapping, as files and configurations hold them.

    Raises:
        UnknownNameError: An unknown network or option; the nearest name is suggested.
    """
    if not isinstance(name, str) or name not in DENOISERS:
        raise unknown_name_error("network", str(name), list(DENOISERS))
    known = [one for one in inspect.signature(DENOISERS[name]).parameters if one not in ("shape", "classes")]
    for option in options:
        if option not in known:
            raise unknown_name_error(f"option of {name}", str(option), known)


def _positive(**values: int) -> None:
    for name, value in values.items():
        check_whole(name, value, f"a positive integer up to {_WIDEST}", least=1, most=_WIDEST)
