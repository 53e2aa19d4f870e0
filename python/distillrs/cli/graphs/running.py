"""The phases of a condensation of graphs, one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from distillrs.cli import interrupt
from distillrs.cli.folder import Folder
from distillrs.cli.graphs import judging, results
from distillrs.cli.graphs.plan import PreparedGraphs
from distillrs.cli.progress import Progress
from distillrs.cli.report import size
from distillrs.cli.running import resumable
from distillrs.configuration import to_dict, to_toml
from distillrs.evaluate.accounting import Timer


def condense_graphs(
    prepared: PreparedGraphs, timer: Timer, progress: Progress, words: str, *, overwrite: bool = False
) -> dict[str, Any]:
    """Runs the phases and writes the results.

    Args:
        prepared: See :func:`distillrs.cli.graphs.plan.prepare`.
        timer: Counts the seconds of each phase.
        progress: Where to report.
        words: The command, for the report and for whoever goes on after an interruption.
        overwrite: Throw away results of another configuration.

    Returns:
        The report.

    Raises:
        KeyboardInterrupt: After Ctrl-C; the same call goes on from there.
    """
    folder = Folder(Path(prepared.settings.out))
    with folder.held(), interrupt.terminable():
        folder.claim(prepared.settings, overwrite=overwrite)
        with resumable(folder, timer, words):
            with timer.phase("distil"), progress.phase("distil", 1, "sets") as phase:
                sets = judging.condensed(prepared)
                sets.save(folder.path / results.SETS)
                phase.update(1, trees=len(sets.levels[-1].labels))
            with timer.phase("evaluate"):
                found = judging.judge(prepared, sets, folder, progress)
            report = results.make_report(prepared, sets, found, timer.seconds, words)
            results.write(folder, report)
        folder.finish()
    return report


def show_plan(prepared: PreparedGraphs, output: Console, *, as_json: bool) -> None:
    """What would be done, without doing it."""
    plan = results.make_plan(prepared)
    if as_json:
        output.out(json.dumps(plan | {"configuration": to_dict(prepared.settings)}, indent=2), highlight=False)
        return
    output.print(results.plan_table(plan), highlight=False)
    output.print()
    output.out(to_toml(to_dict(prepared.settings)), end="", highlight=False)


def show_result(prepared: PreparedGraphs, report: dict[str, Any], output: Console) -> None:
    """The table at the end."""
    output.print()
    output.print(results.table(report), highlight=False)
    output.print(
        f"\n{prepared.settings.out}: {', '.join(report['files'])} ({size(report['stored_bytes'])} of data, "
        f"peak memory {size(report['peak_rss_bytes'])})",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
