"""``distillrs distill-sampler``: from images to a sampler that takes a few steps, with proof."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from distillrs.cli import exit_codes, interrupt
from distillrs.cli.arguments import Common, Running
from distillrs.cli.progress import Progress, choose
from distillrs.cli.running import command, resumable, use_threads

if TYPE_CHECKING:
    from distillrs.cli.folder import Folder
    from distillrs.cli.sampler.judging import Verdict
    from distillrs.cli.sampler.plan import Prepared
    from distillrs.evaluate.accounting import Timer


@dataclass(frozen=True)
class DistillSampler(Running, Common):
    """Distil a sampler of many steps into one of a few, and judge it against its teacher and real examples.

    Trains a small teacher on the data by flow matching, distils it, and draws from both with the same noise. OUT then
    holds student.safetensors, README.md (its card), samples.png, report.json, config.toml, teacher.safetensors, and
    trajectories.safetensors (for `distillrs schedule --optimise`). After Ctrl-C the same command goes on where it
    stopped.

    Example: distillrs distill-sampler --data digits --method flow-map --steps 4 --out out/sampler
    """

    method: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="flow-map: the teacher's own samples in fewer steps; dmd2: samples of the same distribution.",
            help_behavior_hint="(default: flow-map)",
        ),
    ] = None
    steps: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Steps of the student.", help_behavior_hint="(default: 4)"),
    ] = None
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            metavar="KEY=VALUE",
            help="Change a setting: an option of the method by its name (off_diagonal=0.5 of flow-map, ratio=3 of "
            "dmd2) or any key of config.toml (student.steps=3000). --dry-run shows them all.",
        ),
    ] = ()
    network: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help="mlp or unet.", help_behavior_hint="(default: chosen for the data)"),
    ] = None
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FOLDER", help="Where results go.", help_behavior_hint="(default: out/DATA-STEPS-steps-METHOD)"
        ),
    ] = None

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        from distillrs.evaluate.accounting import Timer

        timer = Timer()
        with timer.phase("data"):
            prepared = self._load(messages)
        if self.dry_run:
            show_plan(prepared, output, as_json=self.json)
            return exit_codes.SUCCESS
        progress = choose(messages, quiet=self.json)
        report, verdict = distill(prepared, timer, progress, command(), overwrite=self.overwrite)
        if self.json:
            from distillrs.cli.report import to_json

            output.out(to_json(report), end="", highlight=False)
        else:
            show_result(prepared, report, verdict, output)
        return exit_codes.SUCCESS

    def _load(self, messages: Console) -> Prepared:
        from distillrs.cli.doctor import usable_processors
        from distillrs.cli.plan import source
        from distillrs.cli.sampler import plan
        from distillrs.configuration import read_toml
        from distillrs.evaluate import data

        asked = plan.request(read_toml(self.config) if self.config else {}, self.flags(), self.set)
        found = source(asked)
        with messages.status("loading the data") if messages.is_terminal else contextlib.nullcontext():
            bundle = data.load(found.data, limit=found.limit, duplicates=found.duplicates, seed=found.seed)
        settings = plan.resolve(asked, bundle, processors=usable_processors())
        # Before anything is computed, the transform included: sums depend on the number of threads.
        use_threads(settings.threads)
        return plan.prepare(settings, bundle)


def distill(
    prepared: Prepared, timer: Timer, progress: Progress, words: str, *, overwrite: bool = False
) -> tuple[dict[str, Any], Verdict]:
    """Runs the phases and writes the results.

    Args:
        prepared: See :func:`distillrs.cli.sampler.plan.prepare`.
        timer: Counts the seconds of each phase.
        progress: Where to report.
        words: The command, for the card and for whoever goes on after an interruption.
        overwrite: Throw away results of another configuration.

    Returns:
        The report, and the samples.

    Raises:
        KeyboardInterrupt: After Ctrl-C; the same call goes on from there.
        TrainingDivergedError: A loss that is not finite.
        ArgumentError: The folder holds another configuration.
    """
    from distillrs.cli.folder import Folder
    from distillrs.cli.sampler.results import RESULTS

    folder = Folder(Path(prepared.settings.out), "distill-sampler", RESULTS)
    with folder.held(), interrupt.terminable():
        folder.claim(prepared.settings, overwrite=overwrite)
        return _run(prepared, folder, timer, progress, words)


def _run(
    prepared: Prepared, folder: Folder, timer: Timer, progress: Progress, words: str
) -> tuple[dict[str, Any], Verdict]:
    from distillrs.cli.sampler import phases, results
    from distillrs.cli.sampler.judging import judge

    with resumable(folder, timer, words):
        with timer.phase("teacher"):
            teacher, taught = phases.train_teacher(prepared, folder, progress)
        with timer.phase("distil"):
            student, learnt, sizes = phases.distil(prepared, teacher, folder, progress)
        samplers = {"teacher": prepared.teacher(teacher), "student": prepared.student(student)}
        with timer.phase("evaluate"):
            verdict = judge(prepared, samplers["teacher"], samplers["student"], progress)
            ways = phases.trajectories(prepared, teacher)
        records = {"teacher": taught, "student": learnt}
        report = results.make_report(prepared, verdict, records, sizes, timer.seconds, words)
        results.write(folder, prepared, samplers, ways, verdict, report, progress)
    folder.finish()
    return report, verdict


def show_plan(prepared: Prepared, output: Console, *, as_json: bool) -> None:
    """What would be done, without doing it."""
    from distillrs.cli.sampler.results import make_plan, plan_table
    from distillrs.configuration import to_dict, to_toml

    plan = make_plan(prepared)
    if as_json:
        output.out(json.dumps(plan | {"configuration": to_dict(prepared.settings)}, indent=2), highlight=False)
        return
    output.print(plan_table(plan), highlight=False, markup=False)
    output.print()
    output.out(to_toml(to_dict(prepared.settings)), end="", highlight=False)


def show_result(prepared: Prepared, report: dict[str, Any], verdict: Verdict, output: Console) -> None:
    """A few samples, where letters can show them, and the table."""
    from distillrs.cli.report import size
    from distillrs.cli.sampler.results import sketches, table

    settings, real = prepared.settings, prepared.bundle.x_train
    names = [f"teacher, {settings.teacher.sampling_steps}", f"student, {settings.steps}"]
    drawn = sketches(verdict, names, (float(real.min()), float(real.max()) + 1e-12))
    if drawn:
        output.out(f"\n{drawn}", highlight=False)
    output.print(table(report), highlight=False, markup=False)
    words = f"\n{settings.out}: {', '.join(report['files'])} (peak memory {size(report['peak_rss_bytes'])})"
    output.print(words, highlight=False, markup=False, soft_wrap=True)
