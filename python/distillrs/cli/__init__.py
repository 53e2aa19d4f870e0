"""The ``distillrs`` command.

Each command is a frozen dataclass in a module of its own, with a ``run`` method that returns the exit code. Nothing
here computes: the phases call the library as anybody's script could.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import tyro
from rich.console import Console

from distillrs.cli import exit_codes, interrupt, running
from distillrs.cli.condense import Condense
from distillrs.cli.data import Data
from distillrs.cli.doctor import Doctor
from distillrs.cli.experts import Experts
from distillrs.cli.recipes import Recipes
from distillrs.cli.sampler.command import DistillSampler
from distillrs.cli.schedule import Schedule
from distillrs.cli.select import Select
from distillrs.cli.store import Store
from distillrs.cli.teach import Teach

DESCRIPTION = "Distil anything: fewer examples, fewer steps, smaller models."


class Command(Protocol):
    """What every subcommand is."""

    def run(self, output: Console, messages: Console) -> int:
        """Does the work.

        Args:
            output: Where results go (standard output).
            messages: Where progress and remarks go (standard error).

        Returns:
            The exit code.
        """
        ...


def _commands() -> Any:
    return (
        Annotated[Condense, tyro.conf.subcommand("condense")]
        | Annotated[Experts, tyro.conf.subcommand("experts")]
        | Annotated[Teach, tyro.conf.subcommand("teach")]
        | Annotated[DistillSampler, tyro.conf.subcommand("distill-sampler")]
        | Annotated[Schedule, tyro.conf.subcommand("schedule")]
        | Annotated[Select, tyro.conf.subcommand("select")]
        | Annotated[Store, tyro.conf.subcommand("store")]
        | Annotated[Data, tyro.conf.subcommand("data")]
        | Annotated[Recipes, tyro.conf.subcommand("recipes")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    )


def _description() -> str:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in exit_codes.MEANINGS.items())
    return f"{DESCRIPTION}\n\nExit codes:\n{codes}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        The exit code; :data:`distillrs.cli.exit_codes.MEANINGS` says what each means.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        from distillrs import __version__

        print(f"distillrs {__version__}")
        return exit_codes.SUCCESS
    try:
        command: Command = tyro.cli(
            _commands(),
            prog="distillrs",
            description=_description(),
            args=words,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    except SystemExit as leaving:  # tyro leaves by itself after --help and after an unknown option
        return leaving.code if isinstance(leaving.code, int) else exit_codes.USAGE
    with running.typed(words):
        return _run(command)


def _run(command: Command) -> int:
    output, messages = Console(), Console(stderr=True)
    try:
        code = command.run(output, messages)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        # An interrupt that passed through exec() or eval(), as it does while a module with dataclasses is imported, is
        # remembered by CPython, which then ends the process by SIGINT whatever its code is. Another exec() forgets it.
        exec("")
        words = "; ".join(["interrupted", *getattr(stop, "__notes__", [])])
        messages.print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return exit_codes.TERMINATED if isinstance(stop, interrupt.Terminated) else exit_codes.INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.SUCCESS
    except Exception as failure:
        code_of_failure = exit_codes.of(failure)
        if code_of_failure is None:
            raise
        messages.print(f"distillrs: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
        return code_of_failure
    return code
