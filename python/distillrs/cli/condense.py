"""``distillrs condense``: from a data set to a small one that trains as well as possible, with proof."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from distillrs.cli import exit_codes, interrupt
from distillrs.cli.arguments import Choices, Running
from distillrs.cli.progress import Progress, choose
from distillrs.cli.running import command, resumable, use_threads

if TYPE_CHECKING:
    from distillrs.cli.folder import Folder
    from distillrs.cli.preparation import Prepared
    from distillrs.cli.settings import CondenseSettings
    from distillrs.condense import Committee
    from distillrs.evaluate.accounting import Timer
    from distillrs.trajectory import Store


@dataclass(frozen=True)
class Condense(Running, Choices):
    """Condense a data set to a few synthetic examples, and judge them fairly.

    Records expert trajectories or trains teachers, if the method needs them, moves a small set until it trains like
    the real one, and compares it with random and with selected real examples and with all of the data. OUT then holds
    condensed.safetensors, condensed.png, curve.png, report.md, report.json and config.toml. After Ctrl-C the same
    command goes on where it stopped.

    Example: distillrs condense --data digits --per-class 1 --method tesla --out out/demo
    """

    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FOLDER", help="Where results go.", help_behavior_hint="(default: out/DATA-PER_CLASS-METHOD)"
        ),
    ] = None

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        from distillrs.evaluate.accounting import Timer

        timer = Timer()
        with timer.phase("data"):
            prepared = load(self, messages)
        if self.dry_run:
            show_plan(prepared, output, as_json=self.json)
            return exit_codes.SUCCESS
        report = condense(prepared, timer, choose(messages, quiet=self.json), command(), overwrite=self.overwrite)
        if self.json:
            from distillrs.cli.report import to_json

            output.out(to_json(report), end="", highlight=False)
        else:
            show_result(prepared.settings, report, output)
        return exit_codes.SUCCESS


def load(choices: Choices, messages: Console) -> Prepared:
    """Everything up to the first phase: the configuration, the data, the architecture."""
    from distillrs.cli import plan
    from distillrs.cli.doctor import usable_processors
    from distillrs.cli.preparation import prepare
    from distillrs.configuration import read_toml
    from distillrs.evaluate import data

    asked, card = plan.request(read_toml(choices.config) if choices.config else {}, choices.flags(), choices.set)
    source = plan.source(asked)
    with messages.status("loading the data") if messages.is_terminal else contextlib.nullcontext():
        bundle = data.load(source.data, limit=source.limit, duplicates=source.duplicates, seed=source.seed)
    settings = plan.resolve(asked, card, bundle, processors=usable_processors())
    # Before anything is computed, the transform included: sums depend on the number of threads.
    use_threads(settings.threads)
    return prepare(settings, bundle, card)


def condense(
    prepared: Prepared, timer: Timer, progress: Progress, words: str, *, overwrite: bool = False
) -> dict[str, Any]:
    """Runs the phases and writes the results.

    Args:
        prepared: See :func:`distillrs.cli.preparation.prepare`.
        timer: Counts the seconds of each phase.
        progress: Where to report.
        words: The command, for the report and for whoever goes on after an interruption.
        overwrite: Throw away results of another configuration.

    Returns:
        The report.

    Raises:
        KeyboardInterrupt: After Ctrl-C; the same call goes on from there.
    """
    from distillrs.cli.folder import Folder

    folder = Folder(Path(prepared.settings.out))
    with folder.held(), interrupt.terminable():
        folder.claim(prepared.settings, overwrite=overwrite)
        return _run(prepared, folder, timer, progress, words)


def _run(prepared: Prepared, folder: Folder, timer: Timer, progress: Progress, words: str) -> dict[str, Any]:
    from distillrs.cli.distilling import distil, relabel
    from distillrs.cli.judging import judge
    from distillrs.cli.recording import complete
    from distillrs.cli.results import make_report, write
    from distillrs.cli.teaching import teach

    store: Store | None = None
    teachers: Committee | None = None
    store_bytes = 0
    with resumable(folder, timer, words), contextlib.ExitStack() as stack:
        if prepared.card.needs == "experts":
            with timer.phase("experts"):
                store = stack.enter_context(complete(prepared, progress))
        elif prepared.card.needs == "teachers":
            with timer.phase("teachers"):
                teachers = teach(prepared, progress)
            store_bytes = sum(path.stat().st_size for path in prepared.store_path.glob("teacher-*"))
        with timer.phase("distil"):
            small, record = distil(prepared, store, folder, progress, teachers)
        if store is not None:
            store_bytes = store.info()["bytes"]
        if teachers is not None and prepared.card.views is not None:
            with timer.phase("relabel"):
                small.views = relabel(prepared, small, teachers, folder)
        small.save(folder.path)
        with timer.phase("evaluate"):
            comparison = judge(prepared, small, progress, teachers)
        report = make_report(prepared, small, record, comparison, timer.seconds, store_bytes, words)
        write(folder, prepared, small, record, report, progress)
    folder.finish()
    return report


def show_plan(prepared: Prepared, output: Console, *, as_json: bool) -> None:
    """What would be done, without doing it."""
    from distillrs.cli.results import make_plan, plan_table
    from distillrs.configuration import to_dict, to_toml

    plan = make_plan(prepared)
    if as_json:
        output.out(json.dumps(plan | {"configuration": to_dict(prepared.settings)}, indent=2), highlight=False)
        return
    output.print(plan_table(plan), highlight=False)
    output.print()
    output.out(to_toml(to_dict(prepared.settings)), end="", highlight=False)


def show_result(settings: CondenseSettings, report: dict[str, Any], output: Console) -> None:
    """The table at the end."""
    from distillrs.cli.report import size, table

    output.print()
    output.print(table(report), highlight=False)
    output.print(
        f"\n{settings.out}: {', '.join(report['files'])} ({size(report['stored_bytes'])} of data, "
        f"peak memory {size(report['peak_rss_bytes'])})",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
