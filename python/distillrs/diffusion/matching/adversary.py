"""Adversaries: a discriminator on features of a network that is there anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs import random
from distillrs.diffusion.checks import check_adapter, is_number
from distillrs.diffusion.conditions import Condition
from distillrs.diffusion.matching.auxiliaries import Auxiliary, AuxiliaryLoss
from distillrs.diffusion.matching.levels import Noised, draw_noised
from distillrs.diffusion.matching.ratios import LogRatio
from distillrs.diffusion.matching.rollouts import Rolled
from distillrs.diffusion.matching.scene import Scene, check_scale, mean_of, scale_at
from distillrs.diffusion.networks import NetworkAdapter
from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule import Ramp, TimeLaw, Uniform

AdversaryLoss: TypeAlias = Literal["logistic", "hinge", "relativistic"]
"""See :class:`Adversary`."""


class Adversary(Auxiliary, nn.Module):
    """Tells noised samples from noised examples by features of a network, and the generator deceives it.

    A head turns features into logits, large where the data are; a row's loss is the mean over its logits:

    - ``logistic``: ``softplus(-real) + softplus(fake)``, the generator's ``softplus(-fake)``. Its mean logit is an
      estimate of ``log r``, what weights of f-divergences and expanded gaps take.
    - ``hinge``: ``relu(1 - real) + relu(1 + fake)``, the generator's ``-fake``.
    - ``relativistic``: ``softplus(fake - real)`` of row with row, the generator's ``softplus(real - fake)``:
      Jolicoeur-Martineau, "The relativistic discriminator" (2018).

    On a critic's features the discriminator trains the critic, too, as in Yin et al., "Improved distribution matching
    distillation for fast image synthesis" (2024); on the teacher's ("real") it trains the head alone. In the
    generator's turn neither has a gradient, but their inputs have.

    Args:
        head: Features to logits, ``[n]`` or ``[n, ...]``. It is the objective's own: trained with the critic, saved.
        features: Name of the network's part whose output they are; ``None`` for the network's output.
        on: Name of the critic, "real", or the adapter of another network, which is not trained.
        law: Of the levels, of samples and examples apart.
        loss: See above.
        scale: Factor of the generator's loss, a number or a ramp.
        critic_scale: Factor of the critic's.
        penalty: ``gamma`` of ``gamma / 2 |d logit / d x|^2`` on noised examples: Mescheder, Geiger, Nowozin (2018).
        difference: Deviation of the noise whose change of the logit stands for the derivative, ``gamma / 2
            (change / deviation)^2``; ``None`` for the derivative itself.
    """

    def __init__(
        self,
        head: nn.Module,
        *,
        features: str | None = None,
        on: str | NetworkAdapter = "critic",
        law: TimeLaw | None = None,
        loss: AdversaryLoss = "logistic",
        scale: float | Ramp = 1e-3,
        critic_scale: float = 1e-2,
        penalty: float = 0.0,
        difference: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(head, nn.Module):
            raise argument_error("head", type(head).__name__, "a torch module")
        if loss not in get_args(AdversaryLoss):
            raise unknown_name_error("loss", loss, list(get_args(AdversaryLoss)))
        law = Uniform() if law is None else law
        if not isinstance(law, TimeLaw):
            raise argument_error("law", law, "a law of time")
        check_scale("scale", scale)
        for name, value in (("critic_scale", critic_scale), ("penalty", penalty)):
            if not (is_number(value) and value >= 0):
                raise argument_error(name, value, "a number from 0")
        if difference is not None and not (is_number(difference) and difference > 0):
            raise argument_error("difference", difference, "a positive number or None")
        if features is not None and not isinstance(features, str):
            raise argument_error("features", features, "the name of a part of the network, or None")
        if not isinstance(on, str):
            check_adapter("on", on)
        self.head = head
        # In a tuple: another network is used, never owned.
        self._on = (on,)
        self.features, self.law, self.loss, self.scale = features, law, loss, scale
        self.critic_scale, self.penalty, self.difference = critic_scale, penalty, difference

    def on_sample(self, scene: Scene) -> AuxiliaryLoss:
        """How well the samples deceive."""
        network = self.network(scene.networks)
        condition = scene.batch.condition
        fake = self._noised(scene, scene.rolled, "fake")
        logits = self._logits(network, fake.x_t, fake.t, condition)
        if self.loss == "logistic":
            losses = functional.softplus(-logits)
        elif self.loss == "hinge":
            losses = -logits
        else:
            with torch.no_grad():
                real = self._examples(scene)
                other = self._logits(network, real.x_t, real.t, condition)
            losses = functional.softplus(other - logits)
        rows = losses.flatten(1).mean(1)
        return AuxiliaryLoss(rows, scale_at(self.scale, scene.step), {"adversary": mean_of(rows)})

    def on_critic(self, scene: Scene) -> AuxiliaryLoss:
        """How well samples and examples are told apart."""
        network = self.network(scene.networks)
        condition = scene.batch.condition
        with torch.no_grad():
            fake, real = self._noised(scene, scene.rolled, "fake"), self._examples(scene)
        exact = bool(self.penalty) and self.difference is None
        x_real = real.x_t.requires_grad_() if exact else real.x_t
        of_fake = self._logits(network, fake.x_t, fake.t, condition)
        # The slope is there also where no gradients are wanted, as in validation.
        with torch.set_grad_enabled(torch.is_grad_enabled() or exact):
            of_real = self._logits(network, x_real, real.t, condition)
        if self.loss == "logistic":
            losses = functional.softplus(-of_real) + functional.softplus(of_fake)
        elif self.loss == "hinge":
            losses = functional.relu(1 - of_real) + functional.relu(1 + of_fake)
        else:
            losses = functional.softplus(of_fake - of_real)
        rows = losses.flatten(1).mean(1)
        terms = {
            "adversary": mean_of(rows),
            "adversary/real": mean_of(of_real.mean(1)),
            "adversary/fake": mean_of(of_fake.mean(1)),
        }
        if self.penalty:
            penalty = self._penalty(network, x_real, real.t, condition, of_real, scene)
            rows = rows + self.penalty / 2 * penalty
            terms["adversary/penalty"] = mean_of(penalty)
        return AuxiliaryLoss(rows, self.critic_scale, terms)

    def network(self, networks: Mapping[str, NetworkAdapter]) -> NetworkAdapter:
        """The network whose features are looked at.

        Raises:
            ArgumentError: If there is none of that name.
        """
        on = self._on[0]
        if not isinstance(on, str):
            return on
        if on not in networks:
            raise unknown_name_error("on", on, sorted(networks))
        return networks[on]

    def ratio(self, networks: Mapping[str, NetworkAdapter]) -> LogRatio:
        """Its estimate of the density ratio.

        Raises:
            ArgumentError: For a loss whose logits are none.
        """
        if self.loss != "logistic":
            raise argument_error("loss", self.loss, "'logistic' where a ratio of densities is needed")
        return _Ratio(self, self.network(networks))

    def _noised(self, scene: Scene, rolled: Rolled, name: str) -> Noised:
        return draw_noised(scene.path, rolled, self.law, "all", scene.step, f"adversary/{name}")

    def _examples(self, scene: Scene) -> Noised:
        if scene.batch.x0 is None:
            raise argument_error("x0", None, "clean examples, which the adversary tells samples from")
        # Within the same bounds as the samples, and noised from the data.
        return self._noised(scene, replace(scene.rolled, x=scene.batch.x0, state=None), "real")

    def _logits(self, network: NetworkAdapter, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        logits = self.head(features_of(network, self.features, x, t, condition))
        if not isinstance(logits, Tensor) or not logits.dim() or len(logits) != len(x):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise argument_error("head", f"logits of {got}", f"[{len(x)}] or [{len(x)}, ...]")
        rows = logits[:, None] if logits.dim() == 1 else logits.flatten(1)
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def _penalty(
        self, network: NetworkAdapter, x: Tensor, t: Tensor, condition: Condition, logits: Tensor, scene: Scene
    ) -> Tensor:
        if self.difference is None:
            graph = torch.is_grad_enabled()
            with torch.enable_grad():
                total = logits.mean(1).sum()
            (slope,) = torch.autograd.grad(total, x, create_graph=graph)
            return slope.flatten(1).square().sum(1)
        noise = random.normal(
            len(x), *x.shape[1:], step=scene.step, name="adversary/penalty", dtype=x.dtype, device=x.device
        )
        moved = self._logits(network, x + self.difference * noise, t, condition)
        return ((moved - logits).mean(1) / self.difference).square()


@dataclass(frozen=True, slots=True, eq=False)
class _Ratio:
    adversary: Adversary
    network: NetworkAdapter

    def log_ratio(self, x: Tensor, t: Tensor, condition: Condition = None) -> Tensor:
        return self.adversary._logits(self.network, x, t, condition).mean(1)


def features_of(network: NetworkAdapter, name: str | None, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """What a part of a network gives for noisy states.

    Args:
        network: In its adapter.
        name: Of the part, as ``module.get_submodule`` takes it; ``None`` for the network itself.
        x: ``[n, ...]``.
        t: float64 ``[n]``.
        condition: Of the rows.

    Raises:
        ArgumentError: For a part that is not there, was not called, or gives no tensor.
    """
    if name is None:
        return network(x, t, t, condition)
    seen: list[Any] = []
    handle = part_of(network.module, name).register_forward_hook(lambda part, inputs, output: seen.append(output))
    try:
        network(x, t, t, condition)
    finally:
        handle.remove()
    if not seen or not isinstance(seen[-1], Tensor):
        got = "no call" if not seen else type(seen[-1]).__name__
        raise argument_error("features", f"{name!r}, which gave {got}", "a part that is called and gives a tensor")
    value: Tensor = seen[-1]
    return value


def part_of(module: nn.Module, name: str) -> nn.Module:
    """A part of a network by its name, through wrappers (data parallel, compiled, frozen)."""
    inner = module
    for _ in range(8):
        try:
            return inner.get_submodule(name)
        except AttributeError:
            wrapped = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
            if not isinstance(wrapped, nn.Module):
                break
            inner = wrapped
    known = [part for part, _ in inner.named_modules() if part]
    raise unknown_name_error("features", name, known)
