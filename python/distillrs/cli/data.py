"""``distillrs data``: makes the files that data sets are loaded from, and looks at them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from distillrs.cli import exit_codes
from distillrs.errors import argument_error


@dataclass(frozen=True)
class Prepare:
    """Make mnist.npz, fashion.npz or cifar10.npz from the usual downloads.

    SOURCE is the folder of the downloads: the four *-ubyte files (plain or .gz) of MNIST or Fashion-MNIST, or the
    archive or folder of CIFAR-10 (cifar-10-batches-py or cifar-10-batches-bin). No file of theirs is executed.

    Example: distillrs data prepare mnist --source ~/Downloads --out ~/data
    """

    name: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="NAME", help="mnist, fashion or cifar10.", help_behavior_hint=""),
    ]
    source: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="Where the downloads are.")]
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FOLDER", help="Where the file goes.", help_behavior_hint="(default: $DISTILLRS_DATA)"),
    ] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs.", help_behavior_hint="")] = False

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        from distillrs.evaluate import data

        out = self.out or os.environ.get(data.FOLDER_VARIABLE)
        if not out:
            raise argument_error("out", "nothing", f"a folder, here or in the environment as {data.FOLDER_VARIABLE}")
        path = data.prepare(self.name, self.source, out)
        if self.json:
            output.out(
                json.dumps({"name": self.name, "path": str(path), "bytes": path.stat().st_size}), highlight=False
            )
            return exit_codes.SUCCESS
        output.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
        if Path(os.environ.get(data.FOLDER_VARIABLE, "")).resolve() != path.parent.resolve():
            word = f"export {data.FOLDER_VARIABLE}={path.parent.resolve()}"
            output.print(f"to use it: {word}", highlight=False, markup=False, soft_wrap=True)
        return exit_codes.SUCCESS


@dataclass(frozen=True)
class Show:
    """Load a data set, check it, and show its sizes, classes and fingerprint.

    Example: distillrs data show digits
    """

    name: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="NAME|PATH", help="As --data of condense takes it.", help_behavior_hint=""),
    ]
    limit: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Use at most N training examples.", help_behavior_hint="(default: all)"),
    ] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs.", help_behavior_hint="")] = False

    def run(self, output: Console, messages: Console) -> int:
        """Prints the facts."""
        from distillrs.cli.results import describe_data
        from distillrs.evaluate import data

        found = describe_data(data.load(self.name, limit=self.limit))
        if self.json:
            output.out(json.dumps(found, indent=2), highlight=False)
            return exit_codes.SUCCESS
        for key, value in found.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,}" if key in _COUNTS else value
            output.print(f"{key.replace('_', ' '):<19} {shown}", highlight=False, markup=False, soft_wrap=True)
        return exit_codes.SUCCESS


_COUNTS = ("train", "validation", "test", "dropped_duplicates")


@dataclass(frozen=True)
class Data:
    """Make the files that data sets are loaded from, or look at one."""

    action: Annotated[
        Annotated[Prepare, tyro.conf.subcommand("prepare")] | Annotated[Show, tyro.conf.subcommand("show")],
        tyro.conf.arg(name=""),
    ]

    def run(self, output: Console, messages: Console) -> int:
        """Runs the chosen action."""
        return self.action.run(output, messages)
