"""What a condensation of graphs leaves behind: the set, the report; and before it the plan."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from distillrs.cli import report
from distillrs.cli.folder import CONFIG, Folder
from distillrs.cli.graphs.judging import DISTILLED, FULL, GraphComparison
from distillrs.cli.graphs.plan import PreparedGraphs
from distillrs.condense import TreeSets
from distillrs.configuration import to_dict
from distillrs.evaluate import accounting
from distillrs.evaluate.data import GraphBundle

SETS = "condensed.safetensors"
_FILES = (SETS, "report.md", "report.json", CONFIG)


def describe_graphs(bundle: GraphBundle) -> dict[str, Any]:
    """What a report says of a data set of graphs."""
    return {
        "name": bundle.name,
        "classes": bundle.classes,
        "node_labels": bundle.node_labels,
        "edge_labels": bundle.edge_labels,
        "train": len(bundle.train),
        "validation": len(bundle.validation),
        "test": len(bundle.test),
        "stored_bytes": bundle.train.stored_bytes(),
    }


def make_plan(prepared: PreparedGraphs) -> dict[str, Any]:
    """Sizes and counts of what a run would do."""
    settings = prepared.settings
    return {
        "format": report.FORMAT,
        "data": describe_graphs(prepared.bundle),
        "method": prepared.card.id,
        "network": _network(prepared),
        "evaluation": {"seeds": list(settings.evaluation.seeds), "steps": settings.evaluation.training.steps},
        "out": settings.out,
        "device": settings.device,
        "threads": settings.threads,
    }


def _network(prepared: PreparedGraphs) -> dict[str, Any]:
    parameters = sum(each.numel() for each in prepared.network(0).parameters())
    return {"name": prepared.settings.network.name, "depth": prepared.depth, "parameters": parameters}


def plan_table(plan: Mapping[str, Any]) -> Table:
    """The plan for people."""
    data, network, evaluation = plan["data"], plan["network"], plan["evaluation"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row(
        "data",
        f"{data['name']}: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} test graphs, "
        f"{data['classes']} classes",
    )
    table.add_row("network", f"{network['name']} of {network['depth']} layers, {network['parameters']:,} parameters")
    table.add_row("distil", plan["method"])
    seeds = ", ".join(map(str, evaluation["seeds"]))
    table.add_row("evaluate", f"seeds {seeds}, {evaluation['steps']:,} steps for each set")
    table.add_row("results", f"{plan['out']} (device {plan['device']}, {plan['threads']} threads)")
    return table


def make_report(
    prepared: PreparedGraphs, sets: TreeSets, found: GraphComparison, seconds: Mapping[str, float], command: str
) -> dict[str, Any]:
    """The report as one dictionary, from which the table and the text are made."""
    card, settings = prepared.card, prepared.settings
    return {
        "format": report.FORMAT,
        "command": command,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "accuracy": {name: summary.to_dict() for name, summary in found.accuracy.items()},
        "area_under_curve": {name: summary.to_dict() for name, summary in found.area.items()},
        "validation": {name: summary.to_dict() for name, summary in found.validation.items()},
        "examples": found.examples,
        "stored_bytes": found.stored_bytes[DISTILLED],
        "bytes": found.stored_bytes,
        "comparison": {"labels": "hard", "paired": found.paired()},
        "distillation": {
            "sets_of_class": sets.y.bincount(minlength=prepared.bundle.classes).tolist(),
            "trees": len(sets.levels[-1].labels),
            "share_of_bytes": found.stored_bytes[DISTILLED] / found.stored_bytes[FULL],
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_rss_bytes": accounting.peak_memory(),
        "data": describe_graphs(prepared.bundle),
        "method": {
            "id": card.id,
            "source": card.source,
            "equation": card.equation,
            "deviations": list(card.deviations),
        },
        "network": _network(prepared),
        "configuration": to_dict(settings),
        "versions": report.versions(),
        "machine": report.machine(),
        "files": list(_FILES),
    }


def write(folder: Folder, figures: Mapping[str, Any]) -> None:
    """Writes the report; it comes last."""
    folder.write("report.md", to_markdown(figures))
    folder.write("report.json", report.to_json(figures))


def headline(figures: Mapping[str, Any]) -> str:
    """One line that says what was done."""
    return f"{figures['data']['name']}, {figures['method']['id']}, {figures['network']['name']}"


_COLUMNS = ("trained on", "graphs", "bytes", "test accuracy", "std", "area under curve", "seeds")


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, entry in figures["accuracy"].items():
        area = figures["area_under_curve"].get(name)
        rows.append(
            (
                report.SETS.get(name, name.replace("_", " ")),
                f"{figures['examples'][name]:,}",
                f"{figures['bytes'][name]:,}",
                report.percent(entry["mean"]),
                "" if entry["std"] is None else report.percent(entry["std"]),
                "" if area is None else f"{area['mean']:.3f}",
                ", ".join(map(str, entry["seeds"])),
            )
        )
    return rows


def table(figures: Mapping[str, Any]) -> Table:
    """What the terminal shows at the end."""
    view = Table(title=headline(figures), title_justify="left", title_style="bold", header_style="bold", box=None)
    view.add_column(_COLUMNS[0], style="bold")
    for name in _COLUMNS[1:-1]:
        view.add_column(name, justify="right")
    view.add_column(_COLUMNS[-1])
    for row in _rows(figures):
        view.add_row(*row, style="green" if row[0] == report.SETS[DISTILLED] else "")
    return view


def to_markdown(figures: Mapping[str, Any]) -> str:
    """The report for people."""
    data, paired = figures["data"], figures["comparison"]["paired"]["random_real"]
    where = "above" if paired["mean"] >= 0 else "below"
    own = figures["accuracy"][DISTILLED]["mean"]
    verdict = (
        f"Trained on the condensed set, fresh networks reach {report.percent(own)} on the test graphs, "
        f"{abs(100 * paired['mean']):.1f} points {where} random graphs of at most as many bytes under the same training"
    )
    if paired["interval"] is not None:
        low, high = (100 * end for end in paired["interval"])
        verdict += f" ({paired['confidence']:.0%} interval of the difference {low:.1f} to {high:.1f} points)"
    made, network = figures["distillation"], figures["network"]
    lines = [
        f"# {headline(figures)}",
        "",
        f"`{figures['command']}`",
        "",
        f"{verdict}.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|---|",
        *(f"| {' | '.join(row)} |" for row in _rows(figures)),
        "",
        "## How it was made",
        "",
        f"- Method: {figures['method']['id']} ({figures['method']['source']}): `{figures['method']['equation']}`",
        *(f"  - differs from the publication: {text}" for text in figures["method"]["deviations"]),
        f"- Data: {data['name']}, {data['train']:,} graphs for training, {data['validation']:,} for validation, "
        f"{data['test']:,} for the test, split by the seed",
        f"- Condensed: {made['trees']:,} trees in {' + '.join(map(str, made['sets_of_class']))} sets of the classes, "
        f"{report.percent(made['share_of_bytes'])} of the training graphs' bytes",
        f"- Network: {network['name']} of {network['depth']} layers, {network['parameters']:,} parameters; the same "
        "steps, rate and batches for every set",
        f"- Time: {', '.join(f'{name} {report.duration(value)}' for name, value in figures['seconds'].items())}",
        f"- Peak memory: {report.size(figures['peak_rss_bytes'])}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in figures['versions'].items())}",
        "",
        "Random and selected graphs take at most the condensed set's bytes, with at least one of each class. Nothing "
        "was chosen by a figure: to choose a support, look at `validation` in report.json, not at the test. "
        "`distillrs condense --config config.toml` repeats this run.",
    ]
    return "\n".join(lines) + "\n"
