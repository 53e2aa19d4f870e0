"""``distillrs experts``: one share of an expert farm."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console

from distillrs.cli import exit_codes, interrupt
from distillrs.cli.arguments import Choices
from distillrs.cli.progress import choose
from distillrs.errors import argument_error


@dataclass(frozen=True)
class Experts(Choices):
    """Record the expert trajectories that `distillrs condense` with the same flags would record.

    Any number of processes may share one --store: each takes its shard, and complete experts are skipped. Without
    --shard it is taken from the launcher: a SLURM job array, torchrun, or srun.

    Example: distillrs experts --data mnist --method datm --network convnet --store farm --shard 3/16
    """

    shard: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="i/N",
            help="Take every N-th expert from the i-th on, i from 0.",
            help_behavior_hint="(default: the launcher's, or 0/1)",
        ),
    ] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs, without progress.", help_behavior_hint="")] = (
        False
    )

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        from distillrs.cli.condense import load
        from distillrs.cli.recording import record
        from distillrs.cli.running import command

        shard = parse_shard(self.shard) if self.shard is not None else launcher_shard(os.environ)
        prepared = load(self, messages)
        if prepared.card.needs != "experts":
            raise argument_error("method", prepared.card.id, "a method that learns from experts' trajectories")
        try:
            with interrupt.terminable():
                outcomes = record(prepared, choose(messages, quiet=self.json), shard=shard)
        except KeyboardInterrupt as stop:
            stop.add_note(f"go on with: {command()}")
            raise
        counts = {kind: sum(one == kind for one in outcomes.values()) for kind in ("recorded", "complete", "locked")}
        if self.json:
            found: dict[str, Any] = {"store": str(prepared.store_path), "shard": list(shard), "experts": outcomes}
            output.out(json.dumps(found, indent=2), highlight=False)
        else:
            words = f"{counts['recorded']} recorded now, {counts['complete']} complete before"
            if counts["locked"]:
                words += f", {counts['locked']} are being recorded by another process"
            output.print(f"shard {shard[0]}/{shard[1]}: {words}", highlight=False)
            output.print(f"store: {prepared.store_path}", highlight=False, markup=False, soft_wrap=True)
        return exit_codes.SUCCESS


def parse_shard(text: str) -> tuple[int, int]:
    """``3/16`` as (3, 16).

    Raises:
        ArgumentError: It is not of the form i/N with 0 <= i < N.
    """
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise argument_error("shard", text, "i/N with 0 <= i < N, such as 0/4")


def launcher_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """The share that SLURM or torchrun gave to this process; (0, 1) without them.

    Raises:
        ArgumentError: A job array whose tasks are not evenly numbered, so that none knows its place.
    """
    if "SLURM_ARRAY_TASK_ID" in environment and "SLURM_ARRAY_TASK_COUNT" in environment:
        task, count = (int(environment[name]) for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"))
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
        index, rest = divmod(task - first, int(environment.get("SLURM_ARRAY_TASK_STEP", "1")))
        if rest or not 0 <= index < count:
            raise argument_error(
                "shard", f"task {task} of a job array of {count} with gaps", "an evenly numbered array, or --shard i/N"
            )
        return index, count
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return parse_shard(f"{environment['RANK']}/{environment['WORLD_SIZE']}")
    # A batch script without srun has these two as well, but is one process.
    if "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        return parse_shard(f"{environment['SLURM_PROCID']}/{environment['SLURM_NTASKS']}")
    return 0, 1
