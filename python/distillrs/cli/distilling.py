"""The phase that moves the synthetic set."""

from __future__ import annotations

import inspect
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

import distillrs as dr
from distillrs import configuration, evaluate, fitting, random
from distillrs.cli import interrupt, options
from distillrs.cli.folder import LABELS, Folder
from distillrs.cli.preparation import Prepared
from distillrs.cli.progress import Progress
from distillrs.cli.settings import OptimiserSettings, identity, same_identity
from distillrs.condense.views import ViewLabels, ViewPlan, write_labels
from distillrs.errors import ArgumentError, argument_error
from distillrs.trajectory import Fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from distillrs.condense import Committee, CondensedSet, Synthetic
    from distillrs.trajectory import Store

_SAVE_SECONDS = 15.0
_BATCH = 512


@dataclass
class Record:
    """What was seen while the set was moved.

    Attributes:
        losses: Of each step.
        validation: (step, accuracy on validation examples) of each check; step n is the state before the n-th step.
        best_step: The checked step with the highest accuracy, the first of equals.
        best: The synthetic set's state at that step.
        skipped: Steps that the objective's guard left out.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = -1
    best: dict[str, Tensor] = field(default_factory=dict)
    skipped: int = 0

    @property
    def best_accuracy(self) -> float:
        """Accuracy on validation examples at the best step."""
        return dict(self.validation).get(self.best_step, -1.0)

    def check(self, step: int, accuracy: float, state: Mapping[str, Tensor]) -> None:
        """Takes in a check and keeps the state if it is the best so far."""
        if accuracy > self.best_accuracy:
            self.best_step = step
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        self.validation.append((step, accuracy))


def begin(prepared: Prepared, store: Store | None, teachers: Committee | None = None) -> tuple[Synthetic, Any]:
    """The synthetic set as the recipe starts it, and the recipe's objective; ``None`` if the set is finished."""
    card, settings = prepared.card, prepared.settings
    given = options.arguments(card, "options", settings.method.options)
    real = prepared.x_train, prepared.y_train
    if not card.moves:
        finished: Synthetic = card.function(*real, settings.per_class, teachers, seed=settings.seed, **given)
        return finished.to(prepared.device), None
    network = prepared.network(settings.seed)
    sources = {"store": store, "network": network, "teachers": teachers, "seed": settings.seed}
    make_initial = options.functions(card)["initial"]
    # Each start asks for what it works from, and not every method has experts or teachers.
    asked = inspect.signature(make_initial).parameters
    synthetic: Synthetic = make_initial(
        *real,
        settings.per_class,
        **{name: source for name, source in sources.items() if name in asked},
        **options.arguments(card, "initial", settings.method.initial),
    ).to(prepared.device)
    if card.needs == "experts":
        return synthetic, card.function(store, network, synthetic, **given)
    if card.needs == "teachers":
        return synthetic, card.function(teachers, synthetic, **given)
    return synthetic, card.function(*real, prepared.network, synthetic, **given)


def condensed(prepared: Prepared, synthetic: Synthetic, teachers: Committee | None = None) -> CondensedSet:
    """The set as it would be saved now; labels of views are asked of the teachers when they are needed."""
    small = synthetic.condensed(
        transform=prepared.transform,
        training=prepared.settings.evaluation.training,
        classes=list(prepared.bundle.classes),
    )
    if prepared.card.views is not None and teachers is not None:
        small.views = ViewLabels(view_plan(prepared), voice(prepared, teachers))
    return small


def view_plan(prepared: Prepared) -> ViewPlan:
    """How the views are made that the recipe's labels belong to."""
    given = options.arguments(prepared.card, "views", prepared.settings.method.views or {})
    assert prepared.card.views is not None
    plan: ViewPlan = prepared.card.views(seed=prepared.settings.seed, **given)
    return plan


def voice(prepared: Prepared, teachers: Committee) -> Callable[[Tensor], Tensor]:
    """The teachers' logits for images on the CPU."""
    return lambda images: teachers.vote(images.to(prepared.device), batch=_BATCH).cpu()


def distil(
    prepared: Prepared, store: Store | None, folder: Folder, progress: Progress, teachers: Committee | None = None
) -> tuple[CondensedSet, Record]:
    """Moves the synthetic set and keeps its best state on the validation examples.

    The state is written from time to time and at an interruption; the same call then goes on from there and ends with
    the same numbers as a run that was never interrupted.

    Args:
        prepared: See :func:`distillrs.cli.preparation.prepare`.
        store: The experts, for a method that needs them.
        folder: Where the state is kept.
        progress: Where to report.
        teachers: For a method that needs them.
    """
    settings = prepared.settings.distillation
    synthetic, objective = begin(prepared, store, teachers)
    validation = prepared.bundle.validation.through(prepared.transform)
    record, state = _restore(prepared, folder)
    first = 0 if state is None else int(state["next"])

    def check(step: int) -> None:
        accuracy = validate(prepared, condensed(prepared, synthetic, teachers), validation)
        record.check(step, accuracy, synthetic.state_dict())

    if objective is None:
        with progress.phase("distil", 1, "sets") as phase:
            check(0)
            phase.update(1, validation=f"{record.best_accuracy:.1%}")
        return condensed(prepared, synthetic.cpu(), teachers), record

    with interrupt.deferred() as request, progress.phase("distil", settings.steps, "steps", start=first) as phase:
        saved = time.monotonic()
        if state is None:
            check(0)

        def after_step(at: fitting.Progress) -> None:
            nonlocal saved
            done = at.step.index + 1
            record.losses.append(float(at.loss.terms.get("matching", at.loss.total)))
            record.skipped += at.skipped
            # Before the state is kept, which has the optimiser's rates.
            _schedule(prepared, at.optimisers, done)
            if done % settings.validate_every == 0 or done == settings.steps:
                check(done)
            now = time.monotonic()
            if request.signal is not None or done == settings.steps or now - saved >= _SAVE_SECONDS:
                saved = now
                _save(prepared, folder, record, at.state())
            phase.update(
                done,
                loss=record.losses[-1],
                validation=f"{record.validation[-1][1]:.1%}",
                best=f"{record.best_accuracy:.1%}",
            )
            request.obey()

        if first < settings.steps:
            dr.fit(
                objective,
                _rates(prepared, objective),
                settings.steps,
                seed=prepared.settings.seed,
                callback=after_step,
                state=state,
            )
        phase.update(settings.steps, best=f"{record.best_accuracy:.1%}")
    synthetic.load_state_dict(record.best)
    return condensed(prepared, synthetic.cpu(), teachers), record


def relabel(prepared: Prepared, small: CondensedSet, teachers: Committee, folder: Folder) -> ViewLabels:
    """Writes the teachers' labels of all views beside the set, in the place of those that are there."""
    path = folder.path / LABELS
    # The folder is this run's own, and of what was there half may be gone already.
    shutil.rmtree(path, ignore_errors=True)
    names = [str(number) for number in range(len(teachers))]
    states = {
        f"{name}.{key}": value
        for number, name in enumerate(names)
        for key, value in teachers[number].state_dict().items()
    }
    return write_labels(
        view_plan(prepared),
        small.images,
        voice(prepared, teachers),
        path,
        classes=small.class_count,
        fingerprint=Fingerprint.of(states),
    )


def validate(prepared: Prepared, small: CondensedSet, validation: evaluate.Validation) -> float:
    """Mean accuracy on validation examples of fresh networks that are trained on a condensed set."""
    accuracies = []
    for index in range(prepared.settings.distillation.validation_networks):
        seed = random.generator_seed(dr.Step(index, seed=prepared.settings.seed), "validation network")
        network = prepared.network(seed)
        evaluate.train(network, small, seed=seed)
        accuracies.append(evaluate.accuracy(network, validation.x, validation.y))
    return sum(accuracies) / len(accuracies)


def _rates(prepared: Prepared, objective: Any) -> dict[str, dict[str, float]] | torch.optim.Optimizer:
    """A rate for each group that the objective has; a recipe may name defaults for groups that are not learned."""
    groups, wanted = objective.parameter_groups(), prepared.settings.distillation.optimisers
    named = {
        name: optimiser for name, optimiser in wanted.items() if name in groups or name not in prepared.card.optimisers
    }
    if all(optimiser.betas is None for optimiser in named.values()):
        return {name: {"lr": one.lr, "momentum": one.momentum} for name, one in named.items()}
    return _adam(groups, named)


def _adam(groups: Mapping[str, Any], named: Mapping[str, OptimiserSettings]) -> torch.optim.Adam:
    made = []
    for name, parameters in groups.items():
        betas = named[name].betas if name in named else None
        if betas is None:
            raise argument_error(f"distillation.optimisers.{name}.betas", None, "Adam's, as another group has them")
        made.append({"params": parameters, "name": name, "lr": named[name].lr, "betas": betas})
    return torch.optim.Adam(made)


def _schedule(prepared: Prepared, optimisers: Mapping[str, torch.optim.Optimizer], done: int) -> None:
    """Sets the rates of the step after ``done`` steps."""
    settings = prepared.settings.distillation
    for optimiser in optimisers.values():
        for group in optimiser.param_groups:
            named = settings.optimisers.get(group.get("name", ""))
            if named is not None and named.schedule == "cosine":
                group["lr"] = named.lr * (1 + math.cos(math.pi * done / settings.steps)) / 2


def _save(prepared: Prepared, folder: Folder, record: Record, state: dict[str, Any]) -> None:
    folder.save_state(
        {"identity": configuration.to_toml(identity(prepared.settings)), "fit": state, "record": asdict(record)}
    )


def _restore(prepared: Prepared, folder: Folder) -> tuple[Record, dict[str, Any] | None]:
    state = folder.load_state()
    if state is None:
        return Record(), None
    if not same_identity(state.get("identity"), prepared.settings):
        raise ArgumentError(
            f"out: the unfinished run in {folder.path} has another configuration; allowed is the same, or --overwrite"
        )
    kept = dict(state["record"])
    kept["validation"] = [(int(step), float(accuracy)) for step, accuracy in kept["validation"]]
    return Record(**kept), state["fit"]
