"""The phase that trains networks on condensed, random, selected and all graphs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from distillrs import configuration
from distillrs.cli.folder import Folder
from distillrs.cli.graphs.plan import PreparedGraphs
from distillrs.cli.progress import Progress
from distillrs.cli.settings import identity, same_identity
from distillrs.condense import TreeSets
from distillrs.errors import ArgumentError, DataError
from distillrs.evaluate import Paired, Summary
from distillrs.evaluate.graph_sets import (
    SELECTIONS,
    Draw,
    random_graphs,
    score_graphs,
    selected_graphs,
    train_on_graphs,
)
from distillrs.graphs import Graphs

DISTILLED, RANDOM, FULL = "distilled", "random_real", "full_data"
_PHASE = "evaluation"


@dataclass(frozen=True)
class GraphComparison:
    """What was measured, each by the name of the set.

    Attributes:
        accuracy: On the test graphs, over the seeds.
        area: Under the ROC curve on the test graphs; empty unless there are two classes.
        validation: Accuracy on the validation graphs, on which choices may be made.
        examples: Number of graphs; of the condensed set of its sets of trees.
        stored_bytes: Of each set; the random graphs' are the mean over the seeds.
    """

    accuracy: dict[str, Summary]
    area: dict[str, Summary]
    validation: dict[str, Summary]
    examples: dict[str, int]
    stored_bytes: dict[str, int]

    def paired(self) -> dict[str, Any]:
        """The condensed set's accuracy minus each other's, seed by seed."""
        own = self.accuracy[DISTILLED]
        return {name: Paired.of(own, other).to_dict() for name, other in self.accuracy.items() if name != DISTILLED}


def condensed(prepared: PreparedGraphs) -> TreeSets:
    """The recipe's sets of the training graphs.

    Raises:
        DataError: A class has no set.
    """
    sets = prepared.transform(prepared.bundle.train)
    missing = sorted(set(prepared.bundle.train.y.tolist()) - set(sets.y.tolist()))
    if missing:
        raise DataError(
            f"support: got {prepared.settings.method.options.get('support')!r}, with which class {missing[0]} has no "
            "set of trees; allowed is a lower one (--set support=0.5)"
        )
    return sets


def judge(prepared: PreparedGraphs, sets: TreeSets, folder: Folder, progress: Progress) -> GraphComparison:
    """Trains a fresh network for each set and seed, the same steps, rate and draws for all of them.

    What is finished is kept in the folder, so that the same call goes on from there.

    Args:
        prepared: See :func:`distillrs.cli.graphs.plan.prepare`.
        sets: The condensed set.
        folder: Where figures are kept on the way.
        progress: Where to report.
    """
    judged, train = prepared.settings.evaluation, prepared.bundle.train
    size = sets.stored_bytes()
    fixed: dict[str, Graphs] = {DISTILLED: sets.graphs()}
    for how in SELECTIONS:
        fixed[how] = selected_graphs(train, size, how, depth=prepared.depth, seed=prepared.settings.seed)
    fixed[FULL] = train

    def examples(name: str, seed: int) -> Graphs:
        return random_graphs(train, size, seed=seed) if name == RANDOM else fixed[name]

    names = [DISTILLED, RANDOM, *SELECTIONS, FULL]
    figures = _restored(prepared, folder)
    with progress.phase("evaluate", len(names) * len(judged.seeds), "networks", start=len(figures)) as phase:
        for name in names:
            for seed in judged.seeds:
                key = f"{name}/{seed}"
                if key not in figures:
                    own = examples(name, seed)
                    figures[key] = _figures(prepared, own, seed, _draw(prepared, sets) if name == DISTILLED else None)
                    state = {"identity": configuration.to_toml(identity(prepared.settings)), "figures": figures}
                    folder.save_state(state, _PHASE)
                phase.update(len(figures), set=name.replace("_", " "))

    def summary(name: str, figure: str) -> Summary:
        return Summary.of([figures[f"{name}/{seed}"][figure] for seed in judged.seeds], judged.seeds)

    bytes_of = {name: [examples(name, seed).stored_bytes() for seed in judged.seeds] for name in (RANDOM, *SELECTIONS)}
    counted = {name: len(examples(name, judged.seeds[0])) for name in names}
    two = all(math.isfinite(each["area"]) for each in figures.values())
    return GraphComparison(
        {name: summary(name, "accuracy") for name in names},
        {name: summary(name, "area") for name in names} if two else {},
        {name: summary(name, "validation") for name in names},
        counted,
        {DISTILLED: size, FULL: train.stored_bytes()} | {n: round(sum(b) / len(b)) for n, b in bytes_of.items()},
    )


def _draw(prepared: PreparedGraphs, sets: TreeSets) -> Draw:
    by = prepared.settings.evaluation.draw
    return lambda units, step: sets.draw(units, step=step, by=by)


def _figures(prepared: PreparedGraphs, graphs: Graphs, seed: int, draw: Draw | None) -> dict[str, float]:
    network, bundle = prepared.network(seed), prepared.bundle
    training = prepared.settings.evaluation.training
    train_on_graphs(network, graphs.to(prepared.device), training, draw=draw, seed=seed)
    test = score_graphs(network, bundle.test.to(prepared.device))
    validation = score_graphs(network, bundle.validation.to(prepared.device))
    return {
        "accuracy": test.accuracy,
        "area": math.nan if test.area is None else test.area,
        "validation": validation.accuracy,
    }


def _restored(prepared: PreparedGraphs, folder: Folder) -> dict[str, dict[str, float]]:
    state = folder.load_state(_PHASE)
    if state is None:
        return {}
    if not same_identity(state.get("identity"), prepared.settings):
        raise ArgumentError(
            f"out: the unfinished run in {folder.path} has another configuration; allowed is the same, or --overwrite"
        )
    return dict(state["figures"])
