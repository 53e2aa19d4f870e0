"""The fair comparison of a distilled set with what stands against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from distillrs.errors import DataError, TrainingDivergedError, argument_error
from distillrs.evaluate import scores
from distillrs.evaluate.accounting import Timer, equal_bytes_count
from distillrs.evaluate.data.bundle import DataBundle
from distillrs.evaluate.data.rows import class_counts, copies_among, shares
from distillrs.evaluate.measure import accuracy, class_accuracies, predictions
from distillrs.evaluate.small_sets import LabelledViews, RealSet, SmallSet, counts_of, random_real, train
from distillrs.evaluate.statistics import Paired, Summary
from distillrs.evaluate.validation import Validation, choose_best
from distillrs.frozen import evaluating
from distillrs.training import TrainingSettings
from distillrs.transforms import Identity, Transform

T = TypeVar("T")
NetworkFactory = Callable[[int], nn.Module]
Teacher = Callable[[Tensor], Tensor]
Progress = Callable[[int, int, str], None]

DISTILLED = "distilled"
RANDOM_REAL = "random_real"
FULL_DATA = "full_data"
DISTILLED_HARD = "distilled_hard"
EQUAL_BYTES = "random_real_equal_bytes"
_BATCH = 512
_TUNING_FACTORS = (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` measured. Every dictionary is keyed by the name of a set.

    Attributes:
        accuracy: On the test set, over the seeds.
        per_class: Mean test accuracy of each class over the seeds; ``None`` for a class that the test set lacks.
        paired: "distilled" minus each other set, seed by seed.
        labels: The kind of the distilled set's labels; the random real set has the same. "views": probabilities of
            each view.
        learning_rates: That were used.
        tuning: Validation accuracy of each rate that was tried; ``None`` where training diverged.
        examples: Number of examples.
        stored_bytes: Of each set. Real examples count as the distilled set's file would hold them, the full data as
            in the original.
        equal_bytes: How many real examples with class numbers the distilled set's bytes would buy: held in the same
            types ("same_types"), and as the original holds them ("original_types").
        seconds: Of training and evaluating each set, and of "tuning".
        scores: DD-Ranking's, as far as the sets for them are there; see :mod:`distillrs.evaluate.scores`.
        settings: Of the small sets, with the learning rate at the start of the search.
        full_data_settings: Of the full data.
    """

    accuracy: dict[str, Summary]
    per_class: dict[str, list[float | None]]
    paired: dict[str, Paired]
    labels: Literal["hard", "soft", "views"]
    learning_rates: dict[str, float]
    tuning: dict[str, dict[float, float | None]]
    examples: dict[str, int]
    stored_bytes: dict[str, int]
    equal_bytes: dict[str, int]
    seconds: dict[str, float]
    scores: dict[str, float]
    settings: TrainingSettings
    full_data_settings: TrainingSettings | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a report has them."""
        return {
            "accuracy": {name: summary.to_dict() for name, summary in self.accuracy.items()},
            "per_class": {name: list(values) for name, values in self.per_class.items()},
            "paired": {name: paired.to_dict() for name, paired in self.paired.items()},
            "labels": self.labels,
            "learning_rates": dict(self.learning_rates),
            "tuning": {
                name: [{"learning_rate": rate, "validation_accuracy": found} for rate, found in tried.items()]
                for name, tried in self.tuning.items()
            },
            "examples": dict(self.examples),
            "stored_bytes": dict(self.stored_bytes),
            "equal_bytes": dict(self.equal_bytes),
            "seconds": dict(self.seconds),
            "scores": dict(self.scores),
            "settings": self.settings.to_dict(),
            "full_data_settings": None if self.full_data_settings is None else self.full_data_settings.to_dict(),
        }


def compare(
    distilled: SmallSet,
    bundle: DataBundle,
    network_factory: NetworkFactory,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: TrainingSettings | None = None,
    full_data_settings: TrainingSettings | None = None,
    learning_rates: Sequence[float] | None = None,
    teacher: nn.Module | Teacher | None = None,
    others: Mapping[str, SmallSet] | None = None,
    selected: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> Comparison:
    """Evaluates a distilled set beside random real examples and the full data.

    All small sets are treated alike: fresh networks from the same seeds, the same training settings and so the same
    views, the same search over learning rates on the validation part. Besides "distilled" there are

    - "random_real": real examples, as many of each class as the distilled set has, drawn anew for each seed, with the
      same kind of labels: class numbers, or probabilities from the teacher;
    - "random_real_equal_bytes": if the distilled set's bytes would buy more real examples with class numbers (soft
      labels, factors), so many;
    - "distilled_hard": for soft labels, the distilled examples with their likeliest class (DD-Ranking's HLR needs it);
    - "full_data": if ``full_data_settings`` are given.

    The test set is touched once, by networks that are already chosen.

    Args:
        distilled: The set in question.
        bundle: The real data. The distilled set's transform is applied to all of it.
        network_factory: From a seed to a fresh network.
        seeds: Of network, order, augmentation and random choice; all different.
        settings: Of the small sets; by default those that the distilled set brings.
        full_data_settings: Of the full data; ``None`` leaves it out.
        learning_rates: Rates that every small set may choose from, on the validation part, at the first seed. By
            default 0.3, 1 and 3 times the settings' rate; the settings' rate, and the learned one of the
            distilled set (``inner_lr``), are always among them. An empty sequence tries just these.
        teacher: For soft labels: gives logits [n, C] of examples in the network's input space. By default the mean
            probabilities of the networks trained on the full data.
        others: Further small sets by name, treated the same way. Their transform must be the distilled set's.
        selected: Rows of the training part that were selected, by the name of how: each a further set of real
            examples, with labels as the random real ones have them.
        device: Where networks are trained.
        on_progress: Called with (runs done, runs in all, name of the set).

    Returns:
        The comparison.

    Raises:
        ArgumentError: Arguments that do not fit.
        DataError: Distilled examples that stand in the test set, or too few real examples of a class.
        TrainingDivergedError: A training run that diverged, after the rates that diverge were ruled out.
    """
    run = _Run(distilled, bundle, network_factory, tuple(seeds), settings, device, on_progress)
    return run.compare(full_data_settings, learning_rates, teacher, dict(others or {}), dict(selected or {}))


class _Run:
    """One comparison: what all its parts share."""

    def __init__(
        self,
        distilled: SmallSet,
        bundle: DataBundle,
        network_factory: NetworkFactory,
        seeds: tuple[int, ...],
        settings: TrainingSettings | None,
        device: torch.device | str,
        on_progress: Progress | None,
    ) -> None:
        if not isinstance(bundle, DataBundle):
            raise argument_error("bundle", type(bundle).__name__, "a DataBundle")
        if not seeds or len(set(seeds)) != len(seeds):
            raise argument_error("seeds", seeds, "one or more different seeds")
        chosen = settings if settings is not None else distilled.training
        if chosen is None:
            raise argument_error("settings", None, "training settings: the distilled set brings none")
        self.distilled = distilled
        self.bundle = bundle
        self.factory = network_factory
        self.seeds = seeds
        self.settings = chosen
        self.device = torch.device(device)
        self.transform: Transform = distilled.transform or Identity()
        self.views: LabelledViews | None = getattr(distilled, "views", None)
        # Before anything is trained; networks of hard labels would not find it out.
        if self.views is not None and chosen.augmentation:
            allowed = "None: labels of views belong to the views as they are"
            raise argument_error("settings.augmentation", chosen.augmentation, allowed)
        self.classes = len(bundle.classes)
        self.validation: Validation = bundle.validation.through(self.transform)
        self.x_test = self.transform.forward(bundle.x_test)
        self.timer = Timer()
        self.on_progress = on_progress
        self.done = self.total = 0
        self.accuracy: dict[str, Summary] = {}
        self.per_class: dict[str, list[float | None]] = {}
        self.rates: dict[str, float] = {}
        self.tuning: dict[str, dict[float, float | None]] = {}
        self.examples: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def compare(
        self,
        full_data_settings: TrainingSettings | None,
        learning_rates: Sequence[float] | None,
        teacher: nn.Module | Teacher | None,
        others: dict[str, SmallSet],
        selected: dict[str, Tensor],
    ) -> Comparison:
        target = self.distilled.target()
        soft = target.is_floating_point() or self.views is not None
        if soft and teacher is None and full_data_settings is None:
            raise argument_error("teacher", None, "a teacher, or full_data_settings to train one: the labels are soft")
        reserved = {DISTILLED, RANDOM_REAL, FULL_DATA, DISTILLED_HARD, EQUAL_BYTES}
        for argument, names in (("others", set(others)), ("selected", set(selected))):
            if reserved & names:
                raise argument_error(argument, sorted(reserved & names), f"names other than {sorted(reserved)}")
            reserved |= names
        for name, rows in selected.items():
            _check_rows(name, rows, len(self.bundle.x_train))
        for name, other in {DISTILLED: self.distilled, **others}.items():
            self._check_set(name, other)

        counts = counts_of(target, self.classes)
        equal_bytes = self._equal_bytes()
        small = [DISTILLED, RANDOM_REAL, *selected, *([DISTILLED_HARD] if soft else []), *others]
        available = class_counts(self.bundle.y_train, self.classes)
        bought = min(equal_bytes["same_types"], sum(available))
        if bought > sum(counts):
            small.append(EQUAL_BYTES)
        rates = self._rates(learning_rates)
        # The winner of the search is the first seed's network, so only the losers are extra runs.
        self.total = len(small) * (len(rates) + len(self.seeds) - 1)
        self.total += len(self.seeds) if full_data_settings is not None else 0

        if full_data_settings is not None:
            networks = self._full_data(full_data_settings)
            if soft and teacher is None:
                teacher = _Committee(networks)
        self._small_set(DISTILLED, lambda seed: self.distilled, rates)
        self._small_set(
            RANDOM_REAL, lambda seed: self._labelled(random_real(
                self.bundle, counts, seed=seed, transform=self.transform), teacher if soft else None), rates
        )  # fmt: skip
        for name, rows in selected.items():
            real = self._labelled(self._real(rows), teacher if soft else None)
            self._small_set(name, lambda seed, real=real: real, rates)  # type: ignore[misc]  # bound in this round
        if soft:
            classes = target.argmax(1) if target.is_floating_point() else target
            hard = RealSet(self.distilled.images, classes, self.transform)
            self._small_set(DISTILLED_HARD, lambda seed: hard, rates)
        if bought > sum(counts):
            # As balanced as the distilled set, as far as the data allow.
            wanted = shares(counts, bought, limits=available, least=0)
            self._small_set(
                EQUAL_BYTES, lambda seed: random_real(self.bundle, wanted, seed=seed, transform=self.transform), rates
            )
        for name, other in others.items():
            self._small_set(name, lambda seed, other=other: other, rates)  # type: ignore[misc]  # bound in this round
        # The full data come last in every table, although their networks may have been needed as teachers first.
        _full_data_last(self.accuracy)
        _full_data_last(self.per_class)
        _full_data_last(self.rates)
        _full_data_last(self.examples)
        _full_data_last(self.bytes)
        _full_data_last(self.timer.seconds)
        return Comparison(
            accuracy=self.accuracy,
            per_class=self.per_class,
            paired={
                name: Paired.of(self.accuracy[DISTILLED], summary)
                for name, summary in self.accuracy.items()
                if name != DISTILLED
            },
            labels="views" if self.views is not None else "soft" if soft else "hard",
            learning_rates=self.rates,
            tuning=self.tuning,
            examples=self.examples,
            stored_bytes=self.bytes,
            equal_bytes=equal_bytes,
            seconds=self.timer.seconds,
            scores=self._scores(DISTILLED_HARD if soft else DISTILLED),
            settings=self.settings,
            full_data_settings=full_data_settings,
        )

    def _real(self, rows: Tensor) -> RealSet:
        images = self.transform.forward(self.bundle.x_train[rows])
        return RealSet(images, self.bundle.y_train[rows], self.transform)

    def _check_set(self, name: str, data: SmallSet) -> None:
        if tuple(data.images.shape[1:]) != self.bundle.shape:
            raise argument_error(
                name, tuple(data.images.shape[1:]), f"examples of the data's shape {self.bundle.shape}"
            )
        if not _same_transform(data.transform or Identity(), self.transform):
            raise argument_error(name, "another transform", "the distilled set's: all sets see the same test set")
        target = data.target()
        if target.is_floating_point() and target.shape[1] != self.classes:
            raise argument_error(name, f"{target.shape[1]} classes", f"the data's {self.classes}")
        shared = int(copies_among(data.images, self.x_test).sum())
        if shared:
            raise DataError(f"{name}: {shared} of {len(data.images)} examples stand in the test set")

    def _equal_bytes(self) -> dict[str, int]:
        budget = self.distilled.stored_bytes()
        example = self.bundle.x_train[0].numel()
        images = self.distilled.images
        return {
            "same_types": equal_bytes_count(budget, example * images.element_size() + 8),
            "original_types": equal_bytes_count(budget, example * self.bundle.value_bytes + 1),
        }

    def _rates(self, learning_rates: Sequence[float] | None) -> list[float]:
        own = self.settings.learning_rate
        asked = (
            [float(f"{own * factor:.6g}") for factor in _TUNING_FACTORS]
            if learning_rates is None
            else list(learning_rates)
        )
        learned = getattr(self.distilled, "inner_lr", None)
        # Rounded to single precision: a rate that went through a file must not be tried twice.
        rates = {float(torch.tensor(rate)): rate for rate in [own, *([float(learned)] if learned else []), *asked]}
        return [dataclasses.replace(self.settings, learning_rate=rate).learning_rate for rate in rates.values()]

    def _labelled(self, real: RealSet, teacher: nn.Module | Teacher | None) -> RealSet:
        if teacher is None:
            return real
        if self.views is not None:
            voice = _voice(teacher, self.device)
            return dataclasses.replace(real, views=self.views.by(voice), classes=self.classes)
        # In batches, because a large set's activations need not fit into memory.
        logits = _voice(teacher, self.device)(real.images)
        if logits.shape != (len(real.images), self.classes):
            raise argument_error("teacher", tuple(logits.shape), f"logits {(len(real.images), self.classes)}")
        return RealSet(real.images, logits.float().softmax(1), real.transform)

    def _small_set(self, name: str, data: Callable[[int], SmallSet], rates: list[float]) -> None:
        first = self.seeds[0]
        with self.timer.phase("tuning" if len(rates) > 1 else name):
            small = data(first)
            networks = [self._trained(name, small, rate, first, tried=len(rates)) for rate in rates]
            choice = choose_best(networks, self.validation, _score) if len(rates) > 1 else None
        best = 0 if choice is None else choice.index
        if choice is not None:
            self.tuning[name] = {
                rate: None if network is None else score
                for rate, network, score in zip(rates, networks, choice.scores, strict=True)
            }
        self.rates[name] = rates[best]
        with self.timer.phase(name):
            found = []
            for seed in self.seeds:
                network = networks[best] if seed == first else self._trained(name, data(seed), rates[best], seed)
                assert network is not None
                found.append(predictions(network, self.x_test))
            self._keep(name, found)
        self.examples[name] = len(small.images)
        self.bytes[name] = small.stored_bytes()

    def _trained(self, name: str, data: SmallSet, rate: float, seed: int, *, tried: int = 1) -> nn.Module | None:
        network = self.factory(seed).to(self.device)
        settings = dataclasses.replace(self.settings, learning_rate=rate)
        try:
            train(network, data, settings=settings, seed=seed)
        except TrainingDivergedError as failure:
            if tried == 1:
                raise TrainingDivergedError(f"{name}, seed {seed}, learning rate {rate:g}: {failure}") from failure
            return None
        finally:
            self._advance(name)
        return network

    def _full_data(self, settings: TrainingSettings) -> list[nn.Module]:
        networks = []
        with self.timer.phase(FULL_DATA):
            everything = RealSet(self.transform.forward(self.bundle.x_train), self.bundle.y_train, self.transform)
            for seed in self.seeds:
                network = self.factory(seed).to(self.device)
                train(network, everything, settings=settings, seed=seed)
                networks.append(network)
                self._advance(FULL_DATA)
            self._keep(FULL_DATA, [predictions(network, self.x_test) for network in networks])
        self.rates[FULL_DATA] = settings.learning_rate
        self.examples[FULL_DATA] = len(everything.images)
        numbers = self.bundle.x_train.numel() * self.bundle.value_bytes
        self.bytes[FULL_DATA] = numbers + len(self.bundle.y_train)
        return networks

    def _keep(self, name: str, found: list[Tensor]) -> None:
        y = self.bundle.y_test
        self.accuracy[name] = Summary.of([float((one == y).double().mean()) for one in found], self.seeds)
        by_seed = [class_accuracies(one, y, self.classes) for one in found]
        self.per_class[name] = [
            None if None in values else sum(value or 0.0 for value in values) / len(values)
            for values in zip(*by_seed, strict=True)
        ]

    def _scores(self, hard: str) -> dict[str, float]:
        found = {}
        improvement = scores.improvement_over_random(self.accuracy[DISTILLED].mean, self.accuracy[RANDOM_REAL].mean)
        found["improvement_over_random"] = improvement
        if FULL_DATA in self.accuracy:
            recovery = scores.hard_label_recovery(self.accuracy[FULL_DATA].mean, self.accuracy[hard].mean)
            found["hard_label_recovery"] = recovery
            found["label_robust_score"] = scores.label_robust_score(improvement, recovery)
        return found

    def _advance(self, name: str) -> None:
        self.done += 1
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, name)


def _check_rows(name: str, rows: Tensor, count: int) -> None:
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.ndim != 1 or not len(rows):
        got = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise argument_error(name, got, "int64 rows [n], n >= 1")
    if int(rows.min()) < 0 or int(rows.max()) >= count:
        raise argument_error(name, f"rows {int(rows.min())} to {int(rows.max())}", f"rows from 0 to {count - 1}")


def _full_data_last(figures: dict[str, T]) -> None:
    if FULL_DATA in figures:
        figures[FULL_DATA] = figures.pop(FULL_DATA)


class _Committee:
    """Networks that answer with the logarithm of their mean probability."""

    def __init__(self, networks: list[nn.Module]) -> None:
        self.networks = networks

    def __call__(self, x: Tensor) -> Tensor:
        votes = []
        for network in self.networks:
            with evaluating(network):
                votes.append(network(x).softmax(1))
        # The floor keeps the logarithm finite; it is far below what a float32 softmax distinguishes.
        return torch.stack(votes).mean(0).clamp_min(1e-30).log()


def _voice(teacher: nn.Module | Teacher, device: torch.device) -> Teacher:
    """The teacher as a function of images on the CPU, without a graph."""

    def ask(images: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(teacher) if isinstance(teacher, nn.Module) else nullcontext():
            return torch.cat([teacher(piece.to(device)).cpu() for piece in torch.split(images, _BATCH)])

    return ask


def _score(network: nn.Module | None, validation: Validation) -> float:
    return float("nan") if network is None else accuracy(network, validation.x, validation.y)


def _same_transform(one: Transform, two: Transform) -> bool:
    left, right = one.tensors(), two.tensors()
    return (
        one.describe() == two.describe()
        and left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
    )


__all__ = ["Comparison", "NetworkFactory", "Progress", "Teacher", "compare"]
