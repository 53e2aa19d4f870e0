"""What ``distillrs distill-sampler`` leaves behind: samplers, picture, card and report; and before it the plan."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor

from distillrs.cli import pictures, report
from distillrs.cli.folder import CONFIG, Folder
from distillrs.cli.progress import Progress
from distillrs.cli.results import describe_data
from distillrs.cli.sampler.judging import Verdict
from distillrs.cli.sampler.phases import Record
from distillrs.cli.sampler.plan import Prepared
from distillrs.configuration import to_dict
from distillrs.diffusion import FewStepSampler
from distillrs.evaluate import accounting
from distillrs.schedule import Trajectories

FORMAT = 1
STUDENT, TEACHER, TRAJECTORIES = "student.safetensors", "teacher.safetensors", "trajectories.safetensors"
PICTURE, CARD, REPORT = "samples.png", "README.md", "report.json"
RESULTS = (STUDENT, TEACHER, TRAJECTORIES, PICTURE, CARD, REPORT)
_SHADES = " .:-=+*#%@"
_LARGEST_SKETCH = 12
_SKETCHED = 6


def make_plan(prepared: Prepared) -> dict[str, Any]:
    """Sizes and counts of what a run would do."""
    settings, card = prepared.settings, prepared.method.card
    parameters = sum(value.numel() for value in prepared.network().parameters())
    return {
        "format": FORMAT,
        "data": describe_data(prepared.bundle),
        "method": {"name": settings.method.name, "recipe": card.id, "source": card.source},
        "network": {"name": settings.network.name, "parameters": parameters},
        "teacher": {"steps": settings.teacher.steps, "batch_size": settings.teacher.batch_size},
        "student": {"steps": settings.student.steps, "batch_size": settings.student.batch_size},
        "evaluation": {"samples": settings.evaluation.samples, "steps": list(settings.counts)},
        "out": settings.out,
        "device": settings.device,
        "threads": settings.threads,
    }


def plan_table(plan: Mapping[str, Any]) -> Table:
    """The plan for people."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    data, method = plan["data"], plan["method"]
    shape = " x ".join(map(str, data["shape"]))
    table.add_row(
        "data", f"{data['name']}: {data['train']:,} training examples of {shape}, {len(data['classes'])} classes"
    )
    table.add_row("network", f"{plan['network']['name']}, {plan['network']['parameters']:,} parameters")
    for name in ("teacher", "student"):
        table.add_row(name, f"{plan[name]['steps']:,} steps of {plan[name]['batch_size']} examples")
    table.add_row("method", f"{method['name']}: recipe {method['recipe']} ({method['source']})")
    steps = ", ".join(map(str, plan["evaluation"]["steps"]))
    table.add_row("evaluate", f"{plan['evaluation']['samples']:,} samples each, student at {steps} steps")
    table.add_row("results", f"{plan['out']} (device {plan['device']}, {plan['threads']} threads)")
    return table


def make_report(
    prepared: Prepared,
    verdict: Verdict,
    records: Mapping[str, Record],
    sizes: Mapping[str, int],
    seconds: Mapping[str, float],
    command: str,
) -> dict[str, Any]:
    """The report as one dictionary, from which the card and the table are made."""
    settings, card = prepared.settings, prepared.method.card
    return {
        "format": FORMAT,
        "command": command,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "steps": settings.steps,
        "samplers": verdict.rows,
        "samples": settings.evaluation.samples,
        "training": {
            name: {
                "losses": record.losses,
                "checks": [{"step": step, "figure": figure} for step, figure in record.checks],
            }
            for name, record in records.items()
        },
        "parameters": dict(sizes),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_rss_bytes": accounting.peak_memory(),
        "data": describe_data(prepared.bundle),
        "method": {
            "name": settings.method.name,
            "id": card.id,
            "source": card.source,
            "equation": card.equation,
            "deviations": list(card.deviations),
        },
        "network": {"name": settings.network.name, "options": dict(settings.network.options)},
        "configuration": to_dict(settings),
        "versions": report.versions(),
        "machine": report.machine(),
        "files": [name for name in RESULTS if name != PICTURE or pictures.available()] + [CONFIG],
    }


def write(
    folder: Folder,
    prepared: Prepared,
    samplers: Mapping[str, FewStepSampler],
    ways: Trajectories,
    verdict: Verdict,
    figures: Mapping[str, Any],
    progress: Progress,
) -> None:
    """Writes everything into the folder; the report comes last."""
    samplers["student"].save(folder.path / STUDENT)
    samplers["teacher"].save(folder.path / TEACHER)
    ways.save(folder.path / TRAJECTORIES)
    if pictures.available():
        pictures.save(pictures.draw_grid(grid(prepared, verdict, figures)), folder.path / PICTURE)
    else:
        progress.note(pictures.NEEDS_PLOT)
    folder.write(CARD, card(figures))
    folder.write(REPORT, report.to_json(figures))


def grid(prepared: Prepared, verdict: Verdict, figures: Mapping[str, Any]) -> pictures.Grid:
    """One row for each sampler: the teacher, the student at each number of steps, the teacher at the student's own."""
    steps = prepared.settings.steps
    names = [name for name in verdict.pictures if name.startswith("student")]
    full = f"teacher, {prepared.settings.teacher.sampling_steps}"
    names = [full, *names, *([f"teacher, {steps}"] if f"teacher, {steps}" != full else [])]
    examples = np.concatenate([verdict.pictures[name].numpy() for name in names])
    real = prepared.bundle.x_train
    low, high = float(real.min()), float(real.max())
    return pictures.Grid(
        examples,
        np.repeat(np.arange(len(names)), len(verdict.labels)),
        [f"{name} step{'s' if not name.endswith(' 1') else ''}" for name in names],
        headline(figures),
        "each column begins with the same noise",
        (low, high) if low < high else (low - 0.5, low + 0.5),
    )


def headline(figures: Mapping[str, Any]) -> str:
    """One line that says what was done."""
    steps = figures["steps"]
    return f"{figures['data']['name']} in {steps} step{'s' if steps > 1 else ''}, {figures['method']['name']}"


def _name(row: Mapping[str, Any]) -> str:
    if row["steps"] is None:
        return "real training examples"
    return f"{row['name']}, {row['steps']} step{'s' if row['steps'] > 1 else ''}"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    paired = "" if row["paired_rmse"] is None else f"{row['paired_rmse']:.3f}"
    shares = (f"{row[name]:.3f}" for name in ("precision", "recall", "coverage"))
    return (_name(row), f"{row['frechet']:.3f}", *shares, paired)


_COLUMNS = ("samples of", "Frechet", "precision", "recall", "coverage", "paired RMSE")


def table(figures: Mapping[str, Any]) -> Table:
    """What the terminal shows at the end."""
    view = Table(title=headline(figures), title_justify="left", title_style="bold", header_style="bold", box=None)
    view.add_column(_COLUMNS[0], style="bold")
    for name in _COLUMNS[1:]:
        view.add_column(name, justify="right")
    for row in figures["samplers"]:
        view.add_row(*_cells(row), style="green" if row["name"] == "student" else "")
    return view


def card(figures: Mapping[str, Any]) -> str:
    """The model card."""
    data, method, steps = figures["data"], figures["method"], figures["steps"]
    settings = figures["configuration"]
    real = next(row for row in figures["samplers"] if row["name"] == "real")
    own = next(row for row in figures["samplers"] if row["name"] == "student" and row["steps"] == steps)
    teacher = next(row for row in figures["samplers"] if row["name"] == "teacher")
    few = [row for row in figures["samplers"] if row["name"] == "teacher" and row["steps"] == steps]
    beside = f"; the teacher itself in {steps}: {few[0]['paired_rmse']:.3f}" if few and few[0] is not teacher else ""
    shape = " x ".join(map(str, data["shape"]))
    unit = "standard deviations of the data" if settings["transform"] == "standardise" else "the units of the data"
    plural = "s" if steps > 1 else ""
    lines = [
        "---",
        "library_name: distillrs",
        "tags: [distillation, flow-matching, few-step]",
        "---",
        "",
        f"# {headline(figures)}",
        "",
        f"A sampler of examples like those of {data['name']} ({shape}, {len(data['classes'])} classes) that calls its "
        f"network {steps} time{plural}, distilled from one that calls it {teacher['steps']} times.",
        "",
        "```",
        "from distillrs.diffusion import FewStepSampler",
        "",
        f'sampler = FewStepSampler.load("{STUDENT}")',
        f"examples = sampler(16, steps={steps}, seed=0)  # {['n', *data['shape']]}, as the data are",
        "```",
        "",
        "## Figures",
        "",
        f"From the same noise as the teacher the student's samples are {own['paired_rmse']:.3f} away from the "
        f"teacher's (root mean square, in {unit}{beside}). Their Frechet distance to the "
        f"test set is {own['frechet']:.3f} (teacher {teacher['frechet']:.3f}, real training examples "
        f"{real['frechet']:.3f}).",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|",
        *(f"| {' | '.join(_cells(row))} |" for row in figures["samplers"]),
        "",
        f"{figures['samples']:,} samples each, classes in the training data's shares, against examples of the test "
        "set, on the values themselves as the network sees them; neighbourhoods reach to neighbour number "
        f"{settings['evaluation']['neighbours']}. Frechet distances on raw values compare samplers of one data set; "
        "they are no FID. Few examples are memorised easily: precision above that of real training examples says so.",
        "",
    ]
    if PICTURE in figures["files"]:
        lines += [f"![Samples of teacher and student]({PICTURE})", ""]
    taught, training = settings["teacher"], settings["student"]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in training["rates"].items())
    sizes = ", ".join(f"{name} {count:,}" for name, count in figures["parameters"].items())
    lines += [
        "## How it was made",
        "",
        f"- Method: {method['name']}, the recipe {method['id']} ({method['source']}): `{method['equation']}`",
        *(f"  - differs from the publication: {text}" for text in method["deviations"]),
        f"- Data: {data['name']}, {data['train']:,} training examples; fingerprint `{data['fingerprint']}`",
        f"- Network: {figures['network']['name']} {figures['network']['options']}; parameters: {sizes}",
        f"- Teacher: flow matching, {taught['steps']:,} steps of {taught['batch_size']} examples",
        f"- Student: {training['steps']:,} steps of {training['batch_size']} examples, learning rates {rates}",
        f"- Time: {', '.join(f'{name} {report.duration(value)}' for name, value in figures['seconds'].items())}",
        f"- Peak memory: {report.size(figures['peak_rss_bytes'])}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in figures['versions'].items())}",
        "",
        f"`{figures['command']}` made this; `distillrs distill-sampler --config {CONFIG}` repeats it, bit for bit on "
        "the same machine. No figure was used to choose anything.",
    ]
    return "\n".join(lines) + "\n"


def sketches(verdict: Verdict, names: Sequence[str], bounds: tuple[float, float]) -> str:
    """A few small grey samples of some samplers as text; empty for what is no small grey image.

    Args:
        verdict: The samples.
        names: Of the samplers.
        bounds: Raw values that are drawn empty and full.
    """
    lines = []
    for name in names:
        examples = verdict.pictures[name][:_SKETCHED]
        if examples.dim() != 4 or examples.shape[1] != 1 or max(examples.shape[2:]) > _LARGEST_SKETCH:
            return ""
        lines += [name, *_sketch(examples[:, 0], bounds), ""]
    return "\n".join(lines)


def _sketch(images: Tensor, bounds: tuple[float, float]) -> list[str]:
    low, high = bounds
    shares = ((images - low) / (high - low)).clamp(0, 1)
    levels = (shares * (len(_SHADES) - 1)).round().int()
    # Two letters to a pixel: letters are twice as high as wide.
    rows = levels.transpose(0, 1).tolist()
    return ["  ".join("".join(2 * _SHADES[level] for level in row) for row in line).rstrip() for line in rows]
