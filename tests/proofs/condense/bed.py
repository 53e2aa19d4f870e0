"""What the proofs over experts' trajectories share: Fashion-MNIST, recording, and measures of paths and students."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch
from torch import Tensor, nn

from distillrs import Objective, Step, condense, evaluate, fit, random, trajectory
from distillrs.condense import CondensedSet, ExpertTraining, FunctionalNetwork, Synthetic, Target, Unroll
from distillrs.training import TrainingSettings, classification_loss, train
from distillrs.transforms import Standardise
from proofs.ledger import CELLS, source_fingerprint

Factory = Callable[[int], nn.Module]
Rates = Mapping[str, Mapping[str, float]]
Part = Literal["test", "validation"]

FASHION_STUDENT = TrainingSettings(epochs=200, batch_size=100, learning_rate=0.05)
"""Training on a small set of Fashion-MNIST; the learned rate takes the place of this one."""

CHOOSING_SEED = 100
"""Of the runs that choose settings on validation data; none of a proof's own seeds."""


@dataclass(frozen=True)
class Images:
    """A data set in the network's input space, in parts for training, choosing and testing, with its networks."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    network: Factory

    @staticmethod
    def load(name: str, network: str, *, limit: int | None = None, **options: object) -> Images:
        bundle = evaluate.data.load(name, limit=limit)
        to_input = Standardise.fit(bundle.x_train).forward

        def factory(seed: int) -> nn.Module:
            return evaluate.networks.build(network, bundle.shape, len(bundle.classes), seed=seed, **options)

        x, x_val, x_test = (to_input(part) for part in (bundle.x_train, bundle.x_val, bundle.x_test))
        return Images(x, bundle.y_train, x_val, bundle.y_val, x_test, bundle.y_test, factory)

    @staticmethod
    @cache
    def fashion() -> Images:
        """10,000 rows of Fashion-MNIST (a tenth of them validates) and the ConvNet with two blocks of 8 channels."""
        return Images.load("fashion", "convnet", limit=10_000, width=8, depth=2)

    @staticmethod
    @cache
    def digits() -> Images:
        """The digits of scikit-learn and the perceptron 64-32-10."""
        return Images.load("digits", "mlp", widths=(32,))

    def record(self, name: str, experts: ExpertTraining, count: int, seed: int = 0) -> trajectory.Store:
        """A store of experts, opened for reading; it is kept beside the proofs' cells, so that a proof can go on.

        Args:
            name: Of the store, unique among those of one version of the sources.
            experts: How they are trained.
            count: How many.
            seed: Of the experts.
        """
        path = CELLS / "condense" / "stores" / f"{name}-{experts.fingerprint}-{source_fingerprint(Path(__file__))}"
        path.parent.mkdir(parents=True, exist_ok=True)
        layout = trajectory.ParameterLayout.of(self.network(0))
        metadata = {"layout": layout.to_dict(), "experts": experts.fingerprint, "seed": seed}
        schema = trajectory.Schema(theta=layout.column())
        with trajectory.Store.create(path, schema, metadata=metadata, exist_ok=True) as store:
            experts.record(store, self.network, self.x, self.y, keys=count, seed=seed)
        return trajectory.Store.open(path)

    def real(self, per_class: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random real examples, class after class."""
        rows = condense.draw_per_class(self.y, per_class, seed=seed)
        return self.x[rows], self.y[rows]

    def student(
        self, images: Tensor, labels: Tensor, settings: TrainingSettings, seed: int, *, on: Part = "test"
    ) -> float:
        """Accuracy of a fresh network that is trained on a small set."""
        model = self.network(1000 + seed)
        train(model, images, labels, settings, seed=seed)
        x, y = (self.x_test, self.y_test) if on == "test" else (self.x_val, self.y_val)
        return evaluate.accuracy(model, x, y)

    def judged(self, data: CondensedSet, settings: TrainingSettings, seed: int, *, on: Part = "test") -> float:
        """Accuracy of a fresh network trained on a condensed set with the rate that was learned with it."""
        return self.student(data.images, data.target(), replace(settings, learning_rate=data.inner_lr), seed, on=on)

    def expert_accuracy(self, store: trajectory.Store, record: int) -> float:
        """Mean test accuracy of the experts at a record."""
        return fmean(
            evaluate.accuracy(self._loaded(store.read(key, record)), self.x_test, self.y_test)
            for key in store.lengths()
        )

    def flatness(self, store: trajectory.Store, record: int, *, noise: float = 0.1, draws: int = 200) -> float:
        """Mean rise of the training loss when Gaussian noise of a share of the weights' norm is added to them."""
        rises = []
        for key in store.lengths():
            theta = store.read(key, record)
            drawn = random.normal(draws, len(theta), step=Step(record), name=f"flatness/{key}")
            before = self._loss(theta)
            rises += [self._loss(theta + noise * theta.norm() * each / each.norm()) - before for each in drawn]
        return fmean(rises)

    def accumulated_error(
        self, store: trajectory.Store, data: CondensedSet, *, inner_steps: int, span: int, record: int
    ) -> float:
        """Mean over experts of ‖θ̂ - θ*_e‖ / ‖θ*_e - θ_0‖ for a student that starts where the expert did.

        It takes ``inner_steps`` steps on the condensed set for every ``span`` records, up to record e, and is never
        put back onto the expert's path.
        """
        steps = inner_steps * record // span
        errors = []
        for key in store.lengths():
            start, end = store.read(key, 0), store.read(key, record)
            run = Unroll(steps)(
                FunctionalNetwork(self.network(0)),
                start,
                data.images,
                data.target(),
                data.inner_lr,
                {steps: Target(end, (end - start).square().sum())},
            )
            errors.append(run.loss.sqrt().item())
        return fmean(errors)

    def _loaded(self, theta: Tensor) -> nn.Module:
        model = self.network(0)
        trajectory.ParameterLayout.of(model).load(model, theta)
        return model

    @torch.no_grad()
    def _loss(self, theta: Tensor) -> float:
        return classification_loss(self._loaded(theta)(self.x), self.y).item()


def displacements(store: trajectory.Store) -> dict[str, list[float]]:
    """How far each expert moves in each epoch, ‖θ_{e+1} - θ_e‖."""
    found = {}
    for key, length in store.lengths().items():
        records = store.read(key, range(length))
        found[key] = [float((after - before).norm()) for before, after in pairwise(records)]
    return found


def variation(values: Sequence[float]) -> float:
    """Coefficient of variation: standard deviation over mean."""
    return stdev(values) / fmean(values)


def distil(objective: Objective, synthetic: Synthetic, rates: Rates, steps: int, seed: int) -> CondensedSet:
    """Runs an objective and takes what would be saved."""
    fit(objective, rates, steps, seed=seed)
    return synthetic.condensed()


def best(accuracy: Mapping[str, float]) -> str:
    """The name with the highest accuracy, the first of several."""
    return max(accuracy, key=lambda name: accuracy[name])
