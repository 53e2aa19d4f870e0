"""The flags that say what to work on, shared by the commands that need them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

_CHOSEN = "(default: chosen for the data)"


@dataclass(frozen=True)
class Common:
    """Flags of every command that runs by a configuration."""

    data: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME|PATH",
            help="digits, mnist, fashion, cifar10; or a .npz or .safetensors file with x_train, y_train[, x_val, "
            "y_val], x_test, y_test; or a folder of images with one sub-folder per class under train/ and test/.",
            help_behavior_hint="(needed, here or in --config)",
        ),
    ] = None
    limit: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="Use at most N training examples, stratified by class.",
            help_behavior_hint="(default: all)",
        ),
    ] = None
    seed: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Seed of everything that is drawn.", help_behavior_hint="(default: 0)"),
    ] = None
    device: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1.", help_behavior_hint="(default: cpu)"),
    ] = None
    threads: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="N",
            help="Threads to compute with. Results are the same bit for bit at the same number.",
            help_behavior_hint="(default: 1 for a perceptron, else all that may be used)",
        ),
    ] = None
    config: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help="A TOML file of settings, such as OUT/config.toml of an earlier run; flags win over it.",
            help_behavior_hint="",
        ),
    ] = None
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            metavar="KEY=VALUE",
            help="Change a setting: an option of the method by its name (inner_steps=30 of tesla) or any key of "
            "config.toml (evaluation.seeds=[0,1]). --dry-run shows them all.",
        ),
    ] = ()

    def flags(self) -> dict[str, Any]:
        """What was said on the command line, as a partial configuration."""
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _NO_SETTINGS}
        return {
            name: value.as_posix() if isinstance(value, Path) else value
            for name, value in given.items()
            if value is not None
        }


# What says how to run, and not what is to come out.
_NO_SETTINGS = ("config", "set", "overwrite", "dry_run", "json", "shard")


@dataclass(frozen=True)
class Choices(Common):
    """Flags of ``condense`` and ``experts``. Whatever is not given is chosen for the data and the method."""

    per_class: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Examples per class to condense to.", help_behavior_hint="(default: 1)"),
    ] = None
    method: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="The recipe: see `distillrs recipes`, or package.module:function.",
            help_behavior_hint="(default: tesla)",
        ),
    ] = None
    network: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="mlp, convnet, linear, or package.module:function(shape, classes).",
            help_behavior_hint=_CHOSEN,
        ),
    ] = None
    store: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FOLDER",
            help="Where experts are recorded and looked up, each kind under its fingerprint.",
            help_behavior_hint="(default: OUT/experts)",
        ),
    ] = None


@dataclass(frozen=True)
class Running:
    """Flags of commands that fill a folder OUT with results."""

    overwrite: Annotated[
        bool,
        tyro.conf.arg(help="Throw away results of another configuration in OUT.", help_behavior_hint=""),
    ] = False
    dry_run: Annotated[
        bool,
        tyro.conf.arg(help="Print the whole plan, sizes and settings, and write nothing.", help_behavior_hint=""),
    ] = False
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs, without progress.", help_behavior_hint="")] = (
        False
    )
