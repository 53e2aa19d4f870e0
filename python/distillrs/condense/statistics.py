"""The signal that a trained network has kept of its data: the running statistics of batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillrs.checks import check_flag, check_instance, check_number
from distillrs.errors import argument_error

_REMEDY = "a network with batch normalisation that keeps running statistics, which are what a set is recovered from"


class Reading(NamedTuple):
    """What one pass through a network gave.

    Attributes:
        output: What the network returns, with its graph.
        gap: Scalar: how far the batch's statistics are from the running ones.
    """

    output: Tensor
    gap: Tensor


@dataclass(frozen=True, slots=True)
class BatchNormStatistics:
    """Distance between a batch's statistics and those that each normalising layer kept in training.

    ``sum_l w_l (|mu_l - running_mean_l| + |sigma^2_l - running_var_l|)``, w of the first layer ``first`` and 1 of the
    others; norms are Euclidean and not squared, variances are those of the batch as it is (divided by n). (Yin et al.,
    "Dreaming to Distill", CVPR 2020; Yin, Xing and Shen, "Squeeze, Recover and Relabel", NeurIPS 2023.) The scale
    differs from network to network by orders of magnitude, so a factor tuned on one does not carry over:
    ``normalised`` divides each layer's two norms by those of its running statistics.

    Attributes:
        first: Weight of the layer that the images reach first.
        normalised: Whether norms are relative.
    """

    first: float = 10.0
    normalised: bool = False

    def __post_init__(self) -> None:
        check_number("first", self.first, "a number from 0", least=0)
        check_flag("normalised", self.normalised)

    def __call__(self, network: nn.Module, images: Tensor) -> Reading:
        """Runs a network and measures what goes into its normalising layers.

        The network's mode is its caller's business; recovering uses evaluation mode, which normalises by the running
        statistics. They are read and never changed.

        Args:
            network: With batch normalisation, trained.
            images: [n, ...], n >= 2.

        Raises:
            ArgumentError: No layer keeps running statistics, or the network calls none of those that do.
        """
        layers = normalising_layers(network)
        gaps: list[Tensor] = []

        def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, _BatchNorm)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, variance = batch_statistics(inputs[0])
            gap = _gap(mean, layer.running_mean, self.normalised) + _gap(variance, layer.running_var, self.normalised)
            # Not the one that is registered first: modules may be registered in any order.
            gaps.append(gap if gaps else gap * self.first)

        handles = [layer.register_forward_pre_hook(measure) for layer in layers]
        try:
            output = network(images)
        finally:
            for handle in handles:
                handle.remove()
        if not gaps:
            raise argument_error("network", f"{type(network).__name__}, which calls none of its layers", _REMEDY)
        return Reading(output, torch.stack(gaps).sum())


def batch_statistics(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over a batch, as batch normalisation in training mode takes them.

    Args:
        inputs: [n, c, ...].

    Returns:
        Two tensors [c]; the variance is divided by the count, not by one less.
    """
    axes = [0, *range(2, inputs.ndim)]
    variance, mean = torch.var_mean(inputs, dim=axes, correction=0)
    return mean, variance


def normalising_layers(network: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics, in the order of their registration.

    Raises:
        ArgumentError: There is none.
    """
    check_instance("network", network, nn.Module, _REMEDY)
    layers = [each for each in network.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
    if not layers:
        raise argument_error("network", type(network).__name__, _REMEDY)
    return layers


@contextmanager
def normalising_by_batch(network: nn.Module) -> Iterator[None]:
    """For a block, batch normalisation uses the batch's own statistics, and nothing else is in training mode.

    Neither the running statistics nor their counter are touched, and dropout stays as it is: a teacher in plain
    training mode would change with every label it gives.
    """
    layers = [each for each in network.modules() if isinstance(each, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, (training, track) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, track


def _gap(found: Tensor, kept: Tensor, normalised: bool) -> Tensor:
    gap: Tensor = torch.linalg.vector_norm(found - kept)
    return gap / torch.linalg.vector_norm(kept).clamp_min(1e-12) if normalised else gap
