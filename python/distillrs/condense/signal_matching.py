"""The objective: a signal measured on the synthetic set should be that of the real set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.augment import Augmentation
from distillrs.checks import check_callable, check_instance, check_turn, check_whole
from distillrs.condense.labels import HardLabels, check_classes
from distillrs.condense.matching import TURN
from distillrs.condense.real import RealExamples
from distillrs.condense.signals import Examples, Signal
from distillrs.condense.synthetic import Synthetic
from distillrs.errors import argument_error
from distillrs.step import Loss, Step
from distillrs.training import TrainingSettings, module_randomness, train
from distillrs.trajectory import ParameterLayout

Networks = Callable[[int], nn.Module]


class SignalMatching(nn.Module):
    """The gap between a signal on real examples and the same on the synthetic ones, in networks drawn at random.

    ``L = signal(f, A(x), A(s))``. A network f serves ``every`` steps in a row and is then replaced by a fresh one.
    Where ``training`` is given, f is trained on the synthetic set, as it stands, before each step but its first, so
    that the signal is matched along the path of training and not only at its start. A is siamese: one draw for each
    class and step, common to the real and the synthetic examples (Zhao and Bilen, "Dataset Condensation with
    Differentiable Siamese Augmentation", ICML 2021).

    Everything that is drawn is a pure function of the step. The objective owns the synthetic set and, where a network
    is trained, its parameters; both are its state, so that a run goes on where it stopped. A call out of order starts
    from the network's beginning and trains it as long as it should have been, on the set as it stands.

    Args:
        synthetic: What is trained; its labels must be :class:`HardLabels`.
        real: The real set.
        networks: Makes a fresh network from a seed; it gives logits [n, C].
        signal: What is measured.
        augmentation: Of both sides, for images; its ``siamese`` is not used. ``None`` for none.
        every: Steps that one network serves.
        training: How it is trained between two steps ("epochs" passes over the synthetic set); ``None`` for not at all.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
    """

    vector: Tensor
    at: Tensor

    def __init__(
        self,
        synthetic: Synthetic,
        real: RealExamples,
        networks: Networks,
        signal: Signal,
        *,
        augmentation: Augmentation | None = None,
        every: int = 1,
        training: TrainingSettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_instance("synthetic", synthetic, Synthetic, "a Synthetic")
        check_instance("real", real, RealExamples, "RealExamples")
        check_callable("networks", networks, "a function from a seed to a module")
        check_callable("signal", signal, "a Signal, such as ClassMeans()")
        if augmentation is not None:
            check_instance("augmentation", augmentation, Augmentation, "None or an Augmentation")
        if training is not None:
            check_instance("training", training, TrainingSettings, "None or TrainingSettings")
        if not isinstance(synthetic.labels, HardLabels):
            raise argument_error("synthetic", "soft labels", "HardLabels: the signal is measured class by class")
        if synthetic.classes != real.classes:
            raise argument_error("synthetic", f"{synthetic.classes} classes", f"those of the real set, {real.classes}")
        if synthetic.example_shape != tuple(real.x.shape[1:]):
            raise argument_error(
                "synthetic", f"examples of shape {synthetic.example_shape}", f"those of x, {tuple(real.x.shape[1:])}"
            )
        check_whole("every", every, "a positive integer", least=1)
        if augmentation is not None and len(synthetic.example_shape) != 3:
            got = f"{augmentation.strategy!r} for examples of shape {synthetic.example_shape}"
            raise argument_error("augmentation", got, "None")
        self.synthetic = synthetic
        self.real = real
        self.networks = networks
        self.signal = signal
        self.augmentation = None if augmentation is None else replace(augmentation, siamese=False)
        self.every = every
        self.training_settings = training
        self.seed = Step(0, seed=seed).seed
        self._trained = training is not None and every > 1
        # Outside torch's registry: what is kept of it is the vector.
        self._live: list[tuple[int, int, nn.Module]] = []
        if training is None:
            return
        network = self._fresh(Step(0, seed=seed)).to(synthetic.images)
        layout = ParameterLayout.of(network)
        if layout.has_running_statistics:
            raise argument_error(
                "networks",
                f"a module with the running statistics {layout.running_statistics[0]!r}",
                "one whose parameters are all its state: GroupNorm, InstanceNorm, or batch normalisation with "
                "track_running_stats=False",
            )
        if self._trained:
            self.register_buffer("vector", layout.flatten(network).detach())
            # The step whose network it is, and that step's seed; of seeds the last 63 bits, which a tensor holds.
            self.register_buffer("at", torch.tensor([-1, -1]))

    def forward(self, batch: Any = None, step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: ``None`` draws real examples; or ``(x [n, ...], y int64 [n])``, the real examples of this step,
                n >= 1.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "synthetic".

        Returns:
            ``total`` is the gap divided by ``step.items`` if that is given; ``terms["matching"]`` is the gap itself.

        Raises:
            ArgumentError: A ``turn`` or a ``batch`` that is not allowed.
        """
        check_turn(turn, TURN)
        step = Step.of(step, self.seed)
        self.synthetic.project()
        images = self.synthetic.examples()
        network = self._network(step)
        real = self.real.draw(step) if batch is None else self._given(batch)
        real = Examples(real.images.to(images), real.labels.to(images.device), real.classes)
        synthetic = Examples(images, self.synthetic.targets(), self.synthetic.classes)
        # Dropout in a network is a draw as any other.
        with module_randomness(step, "matching network's modules", images.device):
            gap = self.signal(network, self._seen(real, step), self._seen(synthetic, step))
        return Loss(gap / (step.items or 1), {"matching": gap.detach()})

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "synthetic", steps all groups."""
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The images alone: neither a rate nor labels have a part in the signal."""
        return {"images": self.synthetic.parameter_groups()["images"]}

    def after_step(self) -> None:
        """See :meth:`Synthetic.after_step`; :func:`distillrs.fit` calls it after each step of the optimiser."""
        self.synthetic.after_step()

    def _given(self, batch: Any) -> Examples:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(e, Tensor) for e in batch):
            raise argument_error("batch", type(batch).__name__, "None or (x [n, ...], y int64 [n])")
        x, y = batch
        if not x.is_floating_point() or tuple(x.shape[1:]) != self.synthetic.example_shape:
            allowed = f"floating examples of shape {self.synthetic.example_shape}"
            raise argument_error("batch[0]", f"{x.dtype} {tuple(x.shape)}", allowed)
        check_classes("batch[1]", y, len(x), self.real.classes)
        return Examples(x, y, self.real.classes)

    def _seen(self, examples: Examples, step: Step) -> Examples:
        if self.augmentation is None:
            return examples
        # A draw belongs to a unit, and here the unit is the class: equal classes are transformed alike on both sides.
        plan = self.augmentation.plan(
            examples.labels.cpu(),
            step=replace(step, first_unit=0),
            name="siamese augmentation",
            shape=self.synthetic.example_shape,
            device=examples.images.device,
        )
        return examples._replace(images=self.augmentation.apply(examples.images, plan))

    def _fresh(self, step: Step) -> nn.Module:
        episode = step.at(step.index // self.every)
        network = self.networks(random.generator_seed(episode, "matching network"))
        if not isinstance(network, nn.Module):
            raise argument_error(
                "networks", f"a function that gives {type(network).__name__}", "one that gives a module"
            )
        return network

    def _network(self, step: Step) -> nn.Module:
        episode = (step.seed, step.index // self.every)
        if not self._live or self._live[0][:2] != episode:
            self._live = [(*episode, self._fresh(step))]
        # Each time, because the objective may have been moved since the network was made.
        network = self._live[0][2].to(self.synthetic.images)
        if self._trained:
            self._bring(network, step)
        # Whether a gradient is formed for weights that nobody reads.
        network.requires_grad_(getattr(self.signal, "of_parameters", True))
        return network

    def _bring(self, network: nn.Module, step: Step) -> None:
        """Trains the network on to a step, from where the state has it or else from its beginning."""
        layout, place, seed = ParameterLayout.of(network), step.index % self.every, step.seed % 2**63
        network.requires_grad_(True)
        index, kept = self.at.tolist()
        if kept == seed and place and index in (step.index, step.index - 1):
            layout.load(network, self.vector)
            rounds = step.index - index
        else:
            layout.load(network, layout.flatten(self._fresh(step).to(self.synthetic.images)))
            rounds = place
        for each in range(step.index - rounds + 1, step.index + 1):
            self._train(network, step.at(each))
        self.vector.copy_(layout.flatten(network).detach())
        self.at.copy_(torch.tensor([step.index, seed]))

    def _train(self, network: nn.Module, step: Step) -> None:
        assert self.training_settings is not None
        train(
            network,
            self.synthetic.examples().detach(),
            self.synthetic.targets(),
            self.training_settings,
            seed=random.generator_seed(step, "matching network's training"),
        )
