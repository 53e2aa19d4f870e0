"""What a condensation leaves behind: the report, the pictures, and before it the plan."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from distillrs.cli import pictures, report
from distillrs.cli.distilling import Record
from distillrs.cli.folder import CONFIG, LABELS, Folder
from distillrs.cli.preparation import Prepared
from distillrs.cli.progress import Progress
from distillrs.cli.recording import recorded
from distillrs.cli.teaching import trained
from distillrs.condense.views import ViewLabels
from distillrs.configuration import to_dict
from distillrs.evaluate import accounting

if TYPE_CHECKING:
    from distillrs.condense import CondensedSet
    from distillrs.evaluate import Comparison, DataBundle

_ALWAYS = ("condensed.safetensors", "report.md", "report.json", CONFIG)
_PICTURES = ("condensed.png", "curve.png")


def describe_data(bundle: DataBundle) -> dict[str, Any]:
    """What a report says of a data set."""
    return {
        "name": bundle.name,
        "fingerprint": bundle.fingerprint,
        "shape": list(bundle.shape),
        "classes": list(bundle.classes),
        "train": len(bundle.x_train),
        "validation": len(bundle.x_val),
        "test": len(bundle.x_test),
        "dropped_duplicates": bundle.dropped,
    }


def make_plan(prepared: Prepared) -> dict[str, Any]:
    """Sizes and counts of what a run would do."""
    settings = prepared.settings
    parameters, experts = prepared.layout.size, settings.experts
    examples = settings.per_class * len(prepared.bundle.classes)
    numbers = prepared.bundle.x_train[0].numel()
    steps = settings.distillation.steps if prepared.card.moves else 0
    sources: dict[str, Any] = {}
    if prepared.card.needs == "experts":
        # Before the codec, which only makes it smaller.
        store_bytes = experts.count * (experts.training.epochs + 1) * parameters * 4
        sources["experts"] = {"recorded": recorded(prepared), "codec": experts.codec, "store_bytes": store_bytes}
    elif prepared.card.needs == "teachers":
        sources["teachers"] = {"recorded": trained(prepared), "store_bytes": experts.count * parameters * 4}
    for source in sources.values():
        source |= {"count": experts.count, "epochs": experts.training.epochs, "store": str(prepared.store_path)}
    return {
        "format": report.FORMAT,
        "data": describe_data(prepared.bundle),
        "method": prepared.card.id,
        "network": {"name": settings.network.name, "parameters": parameters},
        **sources,
        "distillation": {
            "steps": steps,
            "examples": examples,
            "numbers": examples * numbers,
        },
        "evaluation": {"seeds": list(settings.evaluation.seeds)},
        "out": settings.out,
        "device": settings.device,
        "threads": settings.threads,
    }


def plan_table(plan: Mapping[str, Any]) -> Table:
    """The plan for people."""
    data, distillation = plan["data"], plan["distillation"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    shape = " x ".join(map(str, data["shape"]))
    table.add_row(
        "data",
        f"{data['name']}: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} test "
        f"examples of {shape}, {len(data['classes'])} classes",
    )
    table.add_row("network", f"{plan['network']['name']}, {plan['network']['parameters']:,} parameters")
    for name in ("experts", "teachers"):
        if source := plan.get(name):
            codec = f" ({source['codec']})" if "codec" in source else ""
            table.add_row(
                name,
                f"{source['count']} x {source['epochs']} epochs, {source['recorded']} recorded already; "
                f"{report.size(source['store_bytes'])}{codec} in {source['store']}",
            )
    table.add_row("distil", f"{plan['method']}, {distillation['examples']} examples, {distillation['steps']:,} steps")
    table.add_row("evaluate", f"seeds {', '.join(map(str, plan['evaluation']['seeds']))}")
    table.add_row("results", f"{plan['out']} (device {plan['device']}, {plan['threads']} threads)")
    return table


def make_report(
    prepared: Prepared,
    small: CondensedSet,
    record: Record,
    comparison: Comparison,
    seconds: Mapping[str, float],
    store_bytes: int,
    command: str,
) -> dict[str, Any]:
    """The report as one dictionary. See :mod:`distillrs.cli.report` for its other forms."""
    card, settings = prepared.card, prepared.settings
    compared = comparison.to_dict()
    return {
        "format": report.FORMAT,
        "command": command,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "per_class": settings.per_class,
        "accuracy": compared.pop("accuracy"),
        "class_accuracy": compared.pop("per_class"),
        "examples": compared.pop("examples"),
        "stored_bytes": small.stored_bytes(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_rss_bytes": accounting.peak_memory(),
        "comparison": compared,
        "distillation": {
            "steps": len(record.losses),
            "best_step": record.best_step,
            "best_validation_accuracy": record.best_accuracy,
            "skipped_steps": record.skipped,
            "inner_lr": small.inner_lr,
            "losses": record.losses,
            "validation": [{"step": step, "accuracy": accuracy} for step, accuracy in record.validation],
        },
        **_sources(prepared, store_bytes),
        "data": describe_data(prepared.bundle),
        "method": {
            "id": card.id,
            "source": card.source,
            "equation": card.equation,
            "deviations": list(card.deviations),
        },
        "network": {"name": settings.network.name, "parameters": prepared.layout.size},
        "configuration": to_dict(settings),
        "versions": report.versions(),
        "machine": report.machine(),
        "files": [
            *_ALWAYS,
            *(_PICTURES if pictures.available() else ()),
            # Mixed labels are those of the images, which stand in the set itself.
            *((LABELS,) if isinstance(small.views, ViewLabels) else ()),
        ],
    }


def _sources(prepared: Prepared, store_bytes: int) -> dict[str, Any]:
    if prepared.card.needs == "data":
        return {}
    found = {
        "count": prepared.settings.experts.count,
        "store": str(prepared.store_path),
        "bytes": store_bytes,
        "description": prepared.experts_description,
    }
    return {prepared.card.needs: found}


def write(
    folder: Folder,
    prepared: Prepared,
    small: CondensedSet,
    record: Record,
    figures: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Writes pictures and reports into the folder."""
    if pictures.available():
        pictures.save(pictures.draw_grid(grid(prepared, small, figures)), folder.path / "condensed.png")
        pictures.save(pictures.draw_curve(curve(record, figures)), folder.path / "curve.png")
    else:
        progress.note(pictures.NEEDS_PLOT)
    folder.write("report.md", report.to_markdown(figures))
    folder.write("report.json", report.to_json(figures))


def grid(prepared: Prepared, small: CondensedSet, figures: Mapping[str, Any]) -> pictures.Grid:
    """The condensed examples as raw values, with their likeliest classes."""
    target = small.target()
    labels = target.argmax(1) if target.is_floating_point() else target
    raw = small.raw().float()
    mean = {name: report.percent(entry["mean"]) for name, entry in figures["accuracy"].items()}
    count = figures["per_class"]
    return pictures.Grid(
        raw.numpy(),
        labels.numpy(),
        prepared.bundle.classes,
        f"{prepared.bundle.name}, condensed to {count} example{'s' if count > 1 else ''} per class",
        f"{prepared.card.id}: {mean['distilled']} test accuracy, random real examples {mean['random_real']}",
        bounds(prepared.bundle.x_train, raw),
    )


def bounds(real: torch.Tensor, shown: torch.Tensor) -> tuple[float, float]:
    """Raw values between which to draw: those of the real examples, wider where the shown ones need it.

    Distilled pixels leave the range of real ones; cut off there, most of what was learned would not be seen. One
    percent at each end may be cut, so that a single extreme does not grey everything out.
    """
    flat = shown.flatten().double()
    tails = torch.quantile(flat[:: max(1, len(flat) // 100_000)], torch.tensor([0.01, 0.99], dtype=torch.float64))
    low, high = min(float(real.min()), float(tails[0])), max(float(real.max()), float(tails[1]))
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def curve(record: Record, figures: Mapping[str, Any]) -> pictures.Curve:
    """Loss and validation accuracy over the steps."""
    accuracy = figures["accuracy"]
    return pictures.Curve(
        range(1, len(record.losses) + 1),
        record.losses,
        record.validation,
        record.best_step,
        {f"{report.SETS[name]} (test)": accuracy[name]["mean"] for name in report.SETS if name in accuracy},
        report.headline(figures),
    )
