"""Auxiliaries: what a matcher trains with beside its gaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distillrs.diffusion.checks import is_number
from distillrs.diffusion.flow_map import FlowMap
from distillrs.diffusion.matching.reals import modules_of
from distillrs.diffusion.matching.scene import Scene, check_scale, mean_of, scale_at
from distillrs.diffusion.matching.tally import Tally
from distillrs.diffusion.state_map import StateMap
from distillrs.diffusion.states import Batch
from distillrs.errors import argument_error
from distillrs.ops import Gaussian, PairKernel, energy
from distillrs.schedule import Ramp
from distillrs.step import Step


class AuxiliaryLoss(NamedTuple):
    """Of one auxiliary.

    Attributes:
        rows: Of each row, ``[n]``, before the scale.
        scale: Its factor.
        terms: What is reported.
    """

    rows: Tensor
    scale: float
    terms: dict[str, Tensor]


class Auxiliary:
    """A further loss; each of the three says nothing unless it is defined.

    Attributes:
        trained_by: In whose turn the parameters of its own are trained, "generator" or "critic".
    """

    __slots__ = ()

    trained_by = "critic"

    @property
    def owned(self) -> nn.Module | None:
        """The module whose parameters and state are the matcher's; ``None`` for none."""
        return self if isinstance(self, nn.Module) else None

    def on_sample(self, scene: Scene) -> AuxiliaryLoss | None:
        """In the generator's turn, on the samples; its gradient goes to them alone, through whatever networks."""
        return None

    def on_critic(self, scene: Scene) -> AuxiliaryLoss | None:
        """In the critic's turn; its gradient goes to the critic's parameters and to the auxiliary's own."""
        return None

    def on_generator(self, generator: StateMap, batch: Batch, step: Step, tally: Tally) -> tuple[Tensor, float] | None:
        """In the generator's turn, on the generator itself: a loss that is normalised already, and its factor."""
        return None

    def check(self, generator: StateMap) -> None:
        """Refuses a generator that it cannot serve, with the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class MeanVariance(Auxiliary):
    """``KL(N(m, s^2) || N(mean, deviation^2))`` with ``m`` and ``s`` over the elements of each sample.

    Holds samples that guidance alone would drive to saturation: "Decoupled DMD" (2025).

    Attributes:
        mean: Of the data's elements.
        deviation: Of the data's elements, above 0.
        scale: Factor, a number or a ramp.
    """

    mean: float
    deviation: float
    scale: float | Ramp = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.mean):
            raise argument_error("mean", self.mean, "a finite number")
        if not (is_number(self.deviation) and self.deviation > 0):
            raise argument_error("deviation", self.deviation, "a positive number")
        check_scale("scale", self.scale)

    def on_sample(self, scene: Scene) -> AuxiliaryLoss:
        """See the class."""
        elements = scene.rolled.x.flatten(1)
        elements = elements.to(torch.promote_types(elements.dtype, torch.float32))
        own = elements.mean(1)
        # Torch's own warns of no rows.
        variance = (elements - own[:, None]).square().mean(1)
        share = (variance + (own - self.mean).square()) / self.deviation**2
        rows = (share - 1 - (variance / self.deviation**2).log()) / 2
        return AuxiliaryLoss(rows, scale_at(self.scale, scene.step), {"mean_variance": mean_of(rows)})


@dataclass(frozen=True, slots=True, eq=False)
class KernelMoments(Auxiliary):
    """The squared maximum mean discrepancy between features of samples and of the batch's examples.

    Gretton et al. (2012); biased, and of the call's rows, so that micro-batches do not add up to the batch.

    Attributes:
        features: ``[n, ...]`` to ``[n, ...]``: a network with random weights, for example, and never the one whose
            features the result is judged by. ``None`` takes the elements themselves.
        kernel: See :func:`distillrs.ops.energy`.
        scale: Factor, a number or a ramp.
    """

    features: Callable[[Tensor], Tensor] | None = None
    kernel: PairKernel = field(default_factory=lambda: Gaussian(1.0))
    scale: float | Ramp = 1.0

    def __post_init__(self) -> None:
        if self.features is not None and not callable(self.features):
            raise argument_error("features", self.features, "a function of the samples, or None")
        if not isinstance(self.kernel, PairKernel):
            raise argument_error("kernel", self.kernel, "a kernel of ops (Gaussian, Laplacian, ...)")
        check_scale("scale", self.scale)

    def on_sample(self, scene: Scene) -> AuxiliaryLoss:
        """See the class."""
        if scene.batch.x0 is None:
            raise argument_error("x0", None, "clean examples, whose moments are matched")
        x, data = scene.rolled.x, scene.batch.x0
        if self.features is not None:
            x = self.features(x)
            with torch.no_grad():
                data = self.features(data)
        x, data = x.flatten(1), data.flatten(1).to(x.dtype)
        n, m = 1 / max(len(x), 1), 1 / max(len(data), 1)
        value = (
            energy(x, x, self.kernel) * n * n
            + energy(data, data, self.kernel) * m * m
            - 2 * energy(x, data, self.kernel) * n * m
        )
        return AuxiliaryLoss(value.expand(len(x)), scale_at(self.scale, scene.step), {"kernel_moments": value.detach()})


@dataclass(frozen=True, slots=True, eq=False)
class Consistency(Auxiliary):
    """A flow-map objective of the same network: a semigroup defect, a shortcut, a regression onto a teacher's pairs.

    Attributes:
        objective: Built on the generator's own adapter.
        scale: Factor, a number or a ramp.
    """

    objective: FlowMap
    scale: float | Ramp = 1.0

    trained_by = "generator"

    def __post_init__(self) -> None:
        if not isinstance(self.objective, FlowMap):
            raise argument_error("objective", type(self.objective).__name__, "a FlowMap")
        check_scale("scale", self.scale)

    @property
    def owned(self) -> nn.Module:
        """The objective, whose learned weights are trained with the generator."""
        return self.objective

    def on_generator(self, generator: StateMap, batch: Batch, step: Step, tally: Tally) -> tuple[Tensor, float]:
        """See the class."""
        module = generator.network.module
        roles = [(module, "generator"), *((teacher, "real") for teacher in modules_of(self.objective._source[0]))]
        with _counting(roles, tally):
            loss = self.objective(batch, step, student=module)
        return loss.total, scale_at(self.scale, step)

    def check(self, generator: StateMap) -> None:
        """It must train the generator."""
        if self.objective.map.network.module is not generator.network.module:
            raise argument_error("objective", "a FlowMap of another network", "one of the generator's own network")


@contextmanager
def _counting(roles: list[tuple[nn.Module, str]], tally: Tally) -> Iterator[None]:
    def hook(role: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            # Networks of diffusers give a tuple.
            value = output if isinstance(output, Tensor) else output[0]
            tally.add(role, len(inputs[0]), bool(value.requires_grad))

        return count

    handles = [module.register_forward_hook(hook(role)) for module, role in roles]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
