"""Weights on few levels: how a tensor becomes codes, and codes a tensor, with gradients for what is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_instance, check_number, check_whole, is_number
from distillrs.errors import argument_error
from distillrs.knowledge.numerics import wide
from distillrs.step import Step


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A tensor on few levels.

    Attributes:
        codes: uint8 ``[buckets, bucket]``: the level of each element; the last bucket is filled up.
        low: float32 ``[buckets, 1]``, the smallest value of each bucket.
        scale: float32 ``[buckets, 1]``, the distance to the largest.
        levels: float32 ``[levels]``, positions between 0 and 1.
    """

    codes: Tensor
    low: Tensor
    scale: Tensor
    levels: Tensor

    def decode(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """``levels[code] * scale + low``, of a shape and a type. Everything that evaluates or stores comes this way."""
        values = self.levels[self.codes.long()] * self.scale + self.low
        count = torch.Size(shape).numel()
        return values.flatten()[:count].view(shape).to(dtype)


def bucket_size(count: int, bucket: int | None) -> int:
    """Elements of a bucket of a tensor with so many."""
    return max(1, count if bucket is None else min(bucket, count))


def scaled(weight: Tensor, bucket: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """A tensor in buckets, each brought to [0, 1], with smallest values and distances.

    A bucket of equal values is 0 throughout. What is left of the last bucket repeats the last element.

    Args:
        weight: Any shape.
        bucket: Elements of a bucket; ``None`` takes all in one.

    Returns:
        ``[buckets, bucket]``, and ``[buckets, 1]`` twice.
    """
    flat = wide(weight).flatten()
    size = bucket_size(len(flat), bucket)
    missing = -len(flat) % size
    if missing:
        flat = torch.cat([flat, flat[-1:].expand(missing)])
    rows = flat.view(-1, size)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scale = high - low
    return torch.where(scale > 0, (rows - low) / scale.where(scale > 0, 1.0), 0.0), low, scale


class Quantiser(nn.Module):
    """What the parametrizations of a weight on few levels share.

    Args:
        bits: Of a code, 1 to 8.
        bucket: Elements that share smallest and largest value; ``None`` for the whole tensor.
    """

    def __init__(self, bits: int, bucket: int | None) -> None:
        super().__init__()
        self.bits = bits
        self.bucket = bucket

    def encode(self, weight: Tensor) -> Codes:
        """The codes that evaluation uses."""
        raise NotImplementedError


class UniformQuantiser(Quantiser):
    """``Q(v) = scale * round(s (v - low) / scale) / s + low`` with ``s = 2^bits - 1``, straight through.

    The gradient is taken at the quantised weight and reaches the weight unchanged. Source: Polino, Pascanu and
    Alistarh, Model compression via distillation and quantization, ICLR 2018.

    Args:
        bits: See :class:`Quantiser`.
        bucket: See :class:`Quantiser`.
        stochastic: Round up with the probability of the distance from below, in training alone; the draw belongs to the
            run's step, so that every micro-batch, rank and recomputation of a step sees the same weights.
        name: Of the parameter, for the draw.
        size: Its elements, for the draw.
    """

    noise: Tensor | None

    def __init__(self, bits: int, bucket: int | None, stochastic: bool = False, name: str = "", size: int = 0) -> None:
        super().__init__(bits, bucket)
        self.stochastic = stochastic
        self.name = name
        self.size = size
        # A function of the step, which a checkpoint has already.
        self.register_buffer("noise", None, persistent=False)

    def begin_step(self, step: Step) -> None:
        """Draws the rounding of a step."""
        if not self.stochastic or not self.training:
            return
        drawn = random.uniform(range(1), self.size, step=step, name=f"rounding of {self.name}")[0]
        if self.noise is None:
            self.noise = drawn
        else:
            self.noise.copy_(drawn)

    def encode(self, weight: Tensor) -> Codes:
        """Rounded to the nearest level."""
        return self._encode(weight, None)

    def _encode(self, weight: Tensor, noise: Tensor | None) -> Codes:
        rows, low, scale = scaled(weight.detach(), self.bucket)
        steps = float(2**self.bits - 1)
        at = rows * steps
        if noise is None:
            codes = at.round()
        else:
            filled = torch.cat([noise, noise.new_zeros(at.numel() - len(noise))]).view_as(at).to(at)
            codes = (at + filled).floor().clamp(max=steps)
        levels = torch.arange(2**self.bits, device=at.device, dtype=torch.float32) / steps
        return Codes(codes.to(torch.uint8), low.float(), scale.float(), levels)

    def forward(self, weight: Tensor) -> Tensor:
        """The quantised weight, with the weight's gradient.

        Raises:
            ArgumentError: Stochastic rounding in training before any step began.
        """
        noise = None
        if self.stochastic and self.training:
            if self.noise is None:
                allowed = "forms.begin_step(network, step) before it; knowledge.Objective does so"
                raise argument_error("rounding", "a forward pass in training without a step", allowed)
            noise = self.noise.to(weight.device)
        quantised = self._encode(weight, noise).decode(weight.shape, weight.dtype)
        # The difference is 0 exactly, so the value is the stored one to the last bit.
        return quantised + (weight - weight.detach())


class LevelQuantiser(Quantiser):
    """``Q(v) = scale * p[j(v)] + low``: the positions p are trained and the weight is not.

    ``dL/dp_j`` is the sum of ``scale * dL/dQ`` over the elements whose nearest level is j, which every forward pass
    finds anew. Source: as of :class:`UniformQuantiser`, section 3.

    Args:
        weight: Where the levels begin: at its quantiles.
        bits: See :class:`Quantiser`.
        bucket: See :class:`Quantiser`.
    """

    def __init__(self, weight: Tensor, bits: int, bucket: int | None) -> None:
        super().__init__(bits, bucket)
        self.levels = nn.Parameter(quantile_levels(weight, bits, bucket))
        self.was_trained = weight.requires_grad

    def nearest(self, rows: Tensor) -> Tensor:
        """int64: the nearest level of each value; of two as near the lower. Levels may be in any order."""
        levels = self.levels.detach().to(rows)
        order = levels.argsort()
        rising = levels[order]
        places = torch.bucketize(rows, (rising[1:] + rising[:-1]) / 2)
        found: Tensor = order[places]
        return found

    def encode(self, weight: Tensor) -> Codes:
        """The nearest levels."""
        rows, low, scale = scaled(weight.detach(), self.bucket)
        codes = self.nearest(rows).to(torch.uint8)
        return Codes(codes, low.float(), scale.float(), self.levels.float())

    def forward(self, weight: Tensor) -> Tensor:
        """The quantised weight; its gradient goes to the levels alone."""
        return self.encode(weight).decode(weight.shape, weight.dtype)


@torch.no_grad()
def quantile_levels(weight: Tensor, bits: int, bucket: int | None) -> Tensor:
    """float32 ``[2^bits]``: the middles of equally many scaled elements, so that each level begins with its share."""
    rows, _, _ = scaled(weight, bucket)
    values = rows.flatten()[: weight.numel()].sort().values
    count = 2**bits
    if not len(values):
        return torch.linspace(0, 1, count, device=weight.device)
    places = (torch.arange(count, device=values.device, dtype=torch.float64) + 0.5) / count * (len(values) - 1)
    below = places.floor().long()
    above = (below + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[below].double(), values[above].double(), places - below).float()


def bits_by_gradient(
    norms: dict[str, float], sizes: dict[str, int], bits: float, lowest: int = 1, highest: int = 8
) -> dict[str, int]:
    """Bits of each tensor, more for those with larger gradients, with a given mean.

    Every bit halves the distance between levels, so what is left of a tensor's first-order error is ``norm * 2^-bits``,
    at a price of its size in bits. The next bit goes where it takes away most for its price, as long as it is paid for.

    Args:
        norms: Length of the loss's gradient for each tensor, at least 0.
        sizes: Elements of each.
        bits: Mean bits of an element, at most.
        lowest: Bits that each has.
        highest: Bits that none exceeds, at most 8.

    Raises:
        ArgumentError: Other names in ``sizes``, a norm that is not finite, or bits that do not fit each other.
    """
    for argument, mapping in (("norms", norms), ("sizes", sizes)):
        check_instance(argument, mapping, dict, "a dictionary: {name: number}")
    if norms.keys() != sizes.keys() or not norms:
        raise argument_error("sizes", sorted(sizes), f"the names of norms, at least one: {sorted(norms)}")
    for name, norm in norms.items():
        if not is_number(norm) or norm < 0:
            raise argument_error("norms", f"{norm} for {name!r}", "finite numbers from 0")
        check_whole("sizes", sizes[name], "numbers of elements from 0", least=0)
    check_number("bits", bits, "a number from 1")
    for argument, bound in (("lowest", lowest), ("highest", highest)):
        check_whole(argument, bound, "a whole number from 1 to 8", least=1, most=8)
    if not 1 <= lowest <= highest <= 8 or not lowest <= bits:
        raise argument_error(
            "bits", f"{bits} from {lowest} to {highest}", "1 <= lowest <= bits, lowest <= highest <= 8"
        )
    given = dict.fromkeys(norms, lowest)
    left = int(bits * sum(sizes.values())) - lowest * sum(sizes.values())
    while True:
        open_names = [name for name in norms if given[name] < highest and 0 < sizes[name] <= left]
        if not open_names:
            return given
        best = max(open_names, key=lambda name: norms[name] * 2.0 ** -given[name] / sizes[name])
        given[best] += 1
        left -= sizes[best]
