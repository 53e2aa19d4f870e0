"""What is measured on a real and on a synthetic set, and how far apart the two are found.

A signal is called with a network, real examples and synthetic ones, and gives a number whose gradient goes to the
synthetic examples alone. The real side is a constant: it is measured without a graph. Of batch normalisation the real
side is not even measured, for the network has kept it; see :mod:`distillrs.condense.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from distillrs import ops
from distillrs.checks import check_callable, check_choice, check_floating, check_instance
from distillrs.errors import argument_error
from distillrs.ops import PairKernel
from distillrs.training import LossFunction, classification_loss

Features = Callable[[nn.Module, Tensor], Tensor]
_FEATURES = "a function from a network and images [n, ...] to features [n, d]"


class Examples(NamedTuple):
    """A batch as a signal sees it.

    Attributes:
        images: [n, ...] In the network's input space.
        labels: int64 [n].
        classes: How many classes there are; a batch need not have all of them.
    """

    images: Tensor
    labels: Tensor
    classes: int


class Signal(Protocol):
    """A measurement, and the gap between what it gives for two sets.

    Attributes:
        of_parameters: Whether it needs gradients of the network's parameters.
    """

    of_parameters: ClassVar[bool]

    def __call__(self, network: nn.Module, real: Examples, synthetic: Examples) -> Tensor:
        """A scalar, 0 where the two agree, with a graph to the synthetic images alone.

        Classes that either side lacks count nothing.
        """
        ...


def penultimate(network: nn.Module, images: Tensor) -> Tensor:
    """What goes into a network's last linear layer: the field's usual embedding.

    Args:
        network: With at least one ``nn.Linear``.
        images: [n, ...].

    Returns:
        [n, d], with its graph.

    Raises:
        ArgumentError: The network has no linear layer, or its last one is not called once.
    """
    check_instance("network", network, nn.Module, "a module with an nn.Linear")
    check_floating("images", images, "floating images [n, ...]", least_axes=1)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        allowed = "a module with an nn.Linear; give features= for another embedding"
        raise argument_error("network", type(network).__name__, allowed)
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network(images)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise argument_error("network", f"{len(seen)} calls of its last linear layer", "one; give features= instead")
    return seen[0].flatten(1)


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each class.

    Args:
        features: [n, d].
        labels: int64 [n].
        classes: C.

    Returns:
        Means [C, d], in 32 bits at least, 0 where there is no row, and the number of rows of each class [C].
    """
    counts = torch.bincount(labels, minlength=classes)
    # A sum of many rows leaves the range of 16 bits, or their precision.
    features = wide(features)
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / counts.clamp_min(1)[:, None], counts


@dataclass(frozen=True, slots=True)
class ClassMeans:
    """Distance between the mean features of each class: the signal of distribution matching.

    ``sum_c |mean_{y=c} phi(x) - mean_{y=c} phi(s)|^2`` (Zhao and Bilen, "Dataset Condensation with Distribution
    Matching", WACV 2023).

    Attributes:
        features: phi, from (network, images [n, ...]) to [n, d].
    """

    features: Features = penultimate
    of_parameters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_callable("features", self.features, _FEATURES)

    def __call__(self, network: nn.Module, real: Examples, synthetic: Examples) -> Tensor:
        """See :class:`Signal`."""
        with torch.no_grad():
            wanted, there = class_means(self.features(network, real.images), real.labels, real.classes)
        found, here = class_means(self.features(network, synthetic.images), synthetic.labels, synthetic.classes)
        both = ((there > 0) & (here > 0))[:, None]
        # torch.where, so that a class without examples adds no gradient, not even one of 0 times infinity.
        return torch.where(both, found - wanted, torch.zeros_like(found)).square().sum()


@dataclass(frozen=True, slots=True)
class KernelMoments:
    """Squared maximum mean discrepancy of the features of each class: all moments that a kernel sees.

    ``sum_c E k(s, s') + E k(x, x') - 2 E k(s, x)`` over examples of class c (Gretton et al., JMLR 2012; the biased
    estimate, which is never negative). With a linear kernel this is :class:`ClassMeans`.

    Attributes:
        kernel: k, a kernel of :mod:`distillrs.ops`.
        features: From (network, images [n, ...]) to [n, d].
    """

    kernel: PairKernel
    features: Features = penultimate
    of_parameters: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_callable("features", self.features, _FEATURES)

    def __call__(self, network: nn.Module, real: Examples, synthetic: Examples) -> Tensor:
        """See :class:`Signal`."""
        with torch.no_grad():
            reference = self.features(network, real.images)
        features = self.features(network, synthetic.images)
        total = features.new_zeros(())
        for x, s in _by_class(real, synthetic):
            total = total + self._discrepancy(reference[x], features[s])
        return total

    def _discrepancy(self, x: Tensor, s: Tensor) -> Tensor:
        a, b = x.new_full((len(x),), 1 / len(x)), s.new_full((len(s),), 1 / len(s))
        own = ops.energy(s, s, self.kernel, x_weights=b, y_weights=b)
        theirs = ops.energy(x, x, self.kernel, x_weights=a, y_weights=a)
        between = ops.energy(s, x, self.kernel, x_weights=b, y_weights=a)
        discrepancy: Tensor = own + theirs - 2 * between
        return discrepancy


@dataclass(frozen=True, slots=True)
class GradientSignal:
    """Distance between the gradients that training would follow: the signal of gradient matching.

    For each class, ``D(grad_theta loss(f(x), c), grad_theta loss(f(s), c))``, summed over classes. "cosine" is
    ``sum_layers sum_rows (1 - cos)`` over the rows of each weight, one for each output unit; vectors (biases, scales)
    count nothing (Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021). "euclidean" is the
    squared distance of all of them.

    The graph of every class is held until the backward pass.

    Attributes:
        distance: "cosine" or "euclidean".
        loss: Of (logits, labels).
    """

    distance: Literal["cosine", "euclidean"] = "cosine"
    loss: LossFunction = classification_loss
    of_parameters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("distance", self.distance, ("cosine", "euclidean"))
        check_callable("loss", self.loss, "a function of logits and labels")

    def __call__(self, network: nn.Module, real: Examples, synthetic: Examples) -> Tensor:
        """See :class:`Signal`."""
        parameters = [each for each in network.parameters() if each.requires_grad]
        if not parameters:
            raise argument_error("network", type(network).__name__, "a module with parameters that require gradients")
        total = wide(synthetic.images.new_zeros(()))
        with torch.enable_grad():
            for x, s in _by_class(real, synthetic):
                value = self.loss(network(real.images[x].detach()), real.labels[x])
                wanted = torch.autograd.grad(value, parameters)
                value = self.loss(network(synthetic.images[s]), synthetic.labels[s])
                found = torch.autograd.grad(value, parameters, create_graph=True)
                total = total + gradient_distance(found, wanted, self.distance)
        return total


def gradient_distance(
    found: Sequence[Tensor], wanted: Sequence[Tensor], distance: Literal["cosine", "euclidean"]
) -> Tensor:
    """Distance of two lists of gradients; see :class:`GradientSignal`.

    Args:
        found: One tensor for each parameter.
        wanted: As many, of the same shapes.
        distance: "cosine" or "euclidean".

    Returns:
        Scalar, in 32 bits at least.
    """
    found, wanted = [wide(each) for each in found], [wide(each) for each in wanted]
    if distance == "euclidean":
        return torch.stack([(a - b).square().sum() for a, b in zip(found, wanted, strict=True)]).sum()
    total = found[0].new_zeros(())
    for a, b in zip(found, wanted, strict=True):
        if a.ndim < 2:
            continue
        a, b = a.flatten(1), b.flatten(1)
        # The small number keeps a row without a gradient from dividing by zero; it is the authors'.
        lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1) + 1e-6
        total = total + (1 - (a * b).sum(1) / lengths).sum()
    return total


def wide(values: Tensor) -> Tensor:
    """The same in 32 bits, if they had fewer."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _by_class(real: Examples, synthetic: Examples) -> list[tuple[Tensor, Tensor]]:
    """Rows of each class that both sides have."""
    pairs = []
    for label in range(synthetic.classes):
        x, s = (real.labels == label).nonzero()[:, 0], (synthetic.labels == label).nonzero()[:, 0]
        if len(x) and len(s):
            pairs.append((x, s))
    return pairs
