"""The report of a condensation: one dictionary, from which ``report.json``, ``report.md`` and the table are made.

The dictionary holds every figure; the other forms only show it.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from typing import Any

from rich.table import Table

FORMAT = 1

SETS = {"distilled": "distilled", "random_real": "random real", "full_data": "full data"}


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    import numpy
    import torch

    import distillrs

    return {
        "distillrs": distillrs.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def machine() -> dict[str, Any]:
    """What a result was computed on."""
    import torch

    from distillrs import _core

    return {
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "core_vector_instructions": _core.simd_level(),
        "torch_vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }


def to_json(report: Mapping[str, Any]) -> str:
    """The report as JSON. A figure that is not finite becomes ``null``, which every reader understands."""
    return json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def percent(share: float) -> str:
    """0.9184 as ``91.8%``."""
    return f"{100 * share:.1f}%"


def size(count: float) -> str:
    """Bytes with a unit that one reads: ``2.6 kB`` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit always returns")


def duration(seconds: float) -> str:
    """Seconds as ``0.4 s``, ``12 s`` or ``3 min 20 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = int(seconds) // 3600, int(seconds) // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Name, examples, accuracy, deviation and seeds of each set that was judged."""
    rows = []
    for key, entry in report["accuracy"].items():
        examples = report["examples"].get(key)
        rows.append(
            (
                _name(key),
                "" if examples is None else f"{examples:,}",
                percent(entry["mean"]),
                percent(entry["std"]) if len(entry["seeds"]) > 1 else "",
                ", ".join(map(str, entry["seeds"])),
            )
        )
    return rows


def table(report: Mapping[str, Any]) -> Table:
    """What the terminal shows at the end."""
    view = Table(title=headline(report), title_justify="left", title_style="bold", header_style="bold", box=None)
    view.add_column("trained on", style="bold")
    for name in ("examples", "test accuracy", "std"):
        view.add_column(name, justify="right")
    view.add_column("seeds")
    for row in _rows(report):
        view.add_row(*row, style="green" if row[0] == "distilled" else "")
    return view


def headline(report: Mapping[str, Any]) -> str:
    """One line that says what was done."""
    count = report["per_class"]
    each = "1 example" if count == 1 else f"{count} examples"
    return f"{report['data']['name']}, {each} per class, {report['method']['id']}, {report['network']['name']}"


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"# {headline(report)}",
        "",
        f"`{report['command']}`",
        "",
        _verdict(report),
        "",
        "| trained on | examples | test accuracy | std | seeds |",
        "|---|---:|---:|---:|---|",
        *(f"| {' | '.join(row)} |" for row in _rows(report)),
        "",
    ]
    for name, caption in (("condensed.png", "The condensed set"), ("curve.png", "Loss and validation accuracy")):
        if name in report["files"]:
            lines += [f"![{caption}]({name})", ""]
    lines += ["## How it was made", ""]
    lines += [f"- Method: {report['method']['id']} ({report['method']['source']}): `{report['method']['equation']}`"]
    lines += [f"  - differs from the publication: {text}" for text in report["method"]["deviations"]]
    data = report["data"]
    lines += [
        f"- Data: {data['name']}, {data['train']:,} examples for training, {data['validation']:,} for validation, "
        f"{data['test']:,} for the test; fingerprint `{data['fingerprint']}`",
        f"- Network: {report['network']['name']}, {report['network']['parameters']:,} parameters",
        *_distillation(report["distillation"]),
        f"- Evaluation: learning rates chosen for each set on the validation examples: {_rates(report)}",
        f"- Stored: {size(report['stored_bytes'])}",
        f"- Time: {', '.join(f'{name} {duration(value)}' for name, value in report['seconds'].items())}",
        f"- Peak memory: {size(report['peak_rss_bytes'])}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in report['versions'].items())}",
        "",
        "Choices were made on the validation examples only; the test set was used once, for the table above. "
        "`distillrs condense --config config.toml` repeats this run.",
    ]
    return "\n".join(lines) + "\n"


def _verdict(report: Mapping[str, Any]) -> str:
    paired = report["comparison"]["paired"]["random_real"]
    where = "above" if paired["mean"] >= 0 else "below"
    text = (
        f"The distilled set trains fresh networks to {percent(report['accuracy']['distilled']['mean'])} on the test "
        f"set, {abs(100 * paired['mean']):.1f} points {where} as many random real examples under the same training "
        "settings"
    )
    if paired["interval"] is not None:
        low, high = (100 * end for end in paired["interval"])
        text += f" ({paired['confidence']:.0%} interval of the difference {low:.1f} to {high:.1f} points)"
    return f"{text}."


def _rates(report: Mapping[str, Any]) -> str:
    rates = report["comparison"]["learning_rates"]
    return ", ".join(f"{_name(key)} {rate:.3g}" for key, rate in rates.items())


def _name(key: str) -> str:
    return SETS.get(key, key.replace("_", " "))


def _distillation(distillation: Mapping[str, Any]) -> list[str]:
    if not distillation["steps"]:
        return ["- Distillation: none; the method gives the set as it is"]
    text = f"- Distillation: {distillation['steps']:,} steps"
    if distillation["best_step"] is not None:
        accuracy = percent(distillation["best_validation_accuracy"])
        text += f"; kept the set of step {distillation['best_step']:,} ({accuracy} on the validation examples)"
    if distillation["skipped_steps"]:
        text += f"; {distillation['skipped_steps']:,} steps skipped by the guard"
    return [text]
