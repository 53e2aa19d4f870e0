"""``distillrs store``: looks into stores of trajectories, checks, mends and copies them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from distillrs.cli import exit_codes
from distillrs.cli.progress import choose
from distillrs.cli.report import size
from distillrs.errors import DistillrsError, StoreCorrupt, argument_error

if TYPE_CHECKING:
    from distillrs import trajectory

_SHOWN = 20

StorePath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH", help="The store's folder.")]
Json = Annotated[bool, tyro.conf.arg(help="Print JSON for programs.", help_behavior_hint="")]


@dataclass(frozen=True)
class Info:
    """Show what a store or a cache holds: columns, trajectories, bytes, the codec's measured error."""

    path: StorePath
    json: Json = False

    def run(self, output: Console, messages: Console) -> int:
        """Prints the facts."""
        from distillrs.trajectory import Store

        with Store.open(self.path) as store:
            found = describe(store)
        if self.json:
            output.out(json.dumps(found, indent=2), highlight=False)
        else:
            show(found, output)
        return exit_codes.SUCCESS


def describe(store: trajectory.Store) -> dict[str, Any]:
    """What is known of a store without reading its records, as JSON values."""
    complete = store.lengths()
    everything = store.lengths(incomplete=True)
    errors: dict[str, Any] = {}
    for name in store.schema:
        measured = [error for key in complete if (error := store.codec_error(key, name)) is not None]
        errors[name] = {"maximum": max(one.maximum for one in measured)} if measured else None
    missing: dict[str, list[int]] = {}
    unreadable: dict[str, str] = {}
    for key in complete:
        try:
            if steps := store.missing(key):
                missing[key] = steps
        except StoreCorrupt as damage:
            unreadable[key] = str(damage)
    return {
        "path": str(store.path),
        **store.info(),
        "trajectory_lengths": complete,
        "incomplete": {key: length for key, length in everything.items() if key not in complete},
        "missing": missing,
        "unreadable": unreadable,
        "codec_error": errors,
        "cache": _cache(store),
    }


def _cache(store: trajectory.Store) -> dict[str, Any] | None:
    """What is known of a cache of a teacher's answers or of labels; nothing of another store."""
    from distillrs.trajectory import UNCHECKED, LabelCache, TeacherCache

    for kind, name in ((TeacherCache, "teacher_cache"), (LabelCache, "label_cache")):
        form = store.metadata.get(name)
        if not isinstance(form, dict):
            continue
        try:
            with kind.open(store.path, UNCHECKED) as cache:
                rows = cache.tokens if isinstance(cache, TeacherCache) else len(cache)
                counts = {"documents": len(cache)} if isinstance(cache, TeacherCache) else {"views": len(cache.views())}
                sizes = {"rows": rows, "row_bytes": cache.row_bytes, "payload_bytes": rows * cache.row_bytes}
                return {"kind": name, **counts, **sizes, "settings": form, "conflicts": len(cache.conflicts)}
        except DistillrsError as failure:
            return {"kind": name, "settings": form, "unreadable": str(failure)}
    return None


def show(found: Mapping[str, Any], output: Console) -> None:
    """The facts for people."""
    lengths = found["trajectory_lengths"]
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("store", found["path"])
    facts.add_row("format", f"version {found['format_version']}")
    facts.add_row("complete", f"{len(lengths)} trajectories, {sum(lengths.values()):,} records")
    facts.add_row("incomplete", ", ".join(f"{key} ({count})" for key, count in found["incomplete"].items()) or "none")
    facts.add_row("bytes", size(found["bytes"]))
    if found["cache"] is not None:
        _show_cache(found["cache"], found["bytes"], facts)
    if found["missing"]:
        facts.add_row("missing", f"{sum(map(len, found['missing'].values()))} records dropped by a repair")
    if found["unreadable"]:
        facts.add_row("unreadable", f"{', '.join(found['unreadable'])}: see `distillrs store verify {found['path']}`")
    output.print(facts, highlight=False, markup=False)
    output.print()
    table = Table("column", "type", "shape", "codec", "largest error", box=None, pad_edge=False, header_style="bold")
    for column in found["schema"]["columns"]:
        error = found["codec_error"][column["name"]]
        shape = "[rows, " if column["ragged"] else "["
        shape += ", ".join(map(str, column["shape"])) + "]"
        worst = "" if error is None else f"{error['maximum']:.2%} of a step"
        table.add_row(column["name"], column["dtype"], shape, column["codec"]["name"], worst)
    output.print(table, highlight=False, markup=False)


def _show_cache(cache: Mapping[str, Any], stored: int, facts: Table) -> None:
    settings, is_teacher = cache["settings"], cache["kind"] == "teacher_cache"
    if "unreadable" in cache:
        facts.add_row(cache["kind"].replace("_", " "), f"cannot be read: {cache['unreadable']}")
        return
    unit = "token" if is_teacher else "label"
    counts = f"{cache['documents']:,} documents" if is_teacher else f"{cache['views']:,} views"
    facts.add_row(cache["kind"].replace("_", " "), f"{counts}, {cache['rows']:,} {unit}s")
    if cache["rows"]:
        each = f"{stored / cache['rows']:.1f} bytes a {unit}, {cache['row_bytes']} of them payload"
        facts.add_row("", f"{each}; framing {stored / max(1, cache['payload_bytes']) - 1:.1%}")
    chosen_by = {"student": "the student's", "union": "the teacher's and the student's,"}
    whose = chosen_by.get(settings.get("support", "teacher"), "the likeliest")
    kept = f"{whose} {settings['k']} of {settings['vocabulary']:,}" if settings["k"] else "sampled tokens only"
    if settings.get("dense"):
        kept = f"all {settings['vocabulary']:,} classes"
    facts.add_row("keeps", f"{kept}, code {settings['code']}" + (", sampled tokens" if settings["sampled"] else ""))
    facts.add_row("temperatures", ", ".join(map(str, settings["temperatures"])))
    fingerprint = settings["fingerprint"]
    words = "UNCHECKED" if fingerprint is None else ", ".join(f"{name} {value}" for name, value in fingerprint.items())
    facts.add_row("fingerprint", words)
    if cache["conflicts"]:
        facts.add_row("conflicts", f"{cache['conflicts']:,}: two writers differ; the lower-numbered one's count")


@dataclass(frozen=True)
class Verify:
    """Read everything and name every damaged place. Exit code 1 if there is one."""

    path: StorePath
    json: Json = False

    def run(self, output: Console, messages: Console) -> int:
        """Prints the findings."""
        from distillrs.trajectory import Store

        with Store.open(self.path) as store:
            report = store.verify()
        if self.json:
            output.out(json.dumps({"sound": report.sound, **asdict(report)}, indent=2), highlight=False)
        else:
            for damage in report.damage:
                output.print(f"damaged: {damage}", style="red", highlight=False, markup=False, soft_wrap=True)
            output.print(
                f"{report.records:,} sound records, {size(report.bytes)} read, {len(report.damage)} damaged places, "
                f"{len(report.tails)} torn ends of killed writers (harmless)",
                highlight=False,
            )
            if not report.sound:
                output.print(
                    f"`distillrs store repair {self.path}` drops what is damaged", highlight=False, markup=False
                )
        return exit_codes.SUCCESS if report.sound else exit_codes.FAILED


@dataclass(frozen=True)
class Repair:
    """Drop damaged records, and only those. Nobody may be writing to the store."""

    path: StorePath
    json: Json = False

    def run(self, output: Console, messages: Console) -> int:
        """Prints what was done."""
        from distillrs.trajectory import Store

        report = Store.repair(self.path)
        if self.json:
            output.out(json.dumps(asdict(report), indent=2), highlight=False)
            return exit_codes.SUCCESS
        for kind, records in (("dropped", report.dropped), ("lost with one before it", report.dependants)):
            for key, step in records[:_SHOWN]:
                output.print(f"{kind}: {key}, step {step}", highlight=False, markup=False)
            if len(records) > _SHOWN:
                output.print(f"{kind}: {len(records) - _SHOWN} more", highlight=False)
        for key in report.lost:
            output.print(f"lost: {key}, all of it", style="red", highlight=False, markup=False)
        for name in report.set_aside:
            output.print(f"set aside: {name}", highlight=False, markup=False)
        words = f"{len(report.dropped)} damaged records dropped, {len(report.dependants)} lost with them"
        rebuilt = ", manifest rebuilt" if report.manifest_rebuilt else ""
        output.print(f"{words}, {report.kept:,} kept{rebuilt}", highlight=False)
        return exit_codes.SUCCESS


@dataclass(frozen=True)
class Export:
    """Write each complete trajectory as one plain safetensors file."""

    path: StorePath
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="Where the files go.")]
    key: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="NAME", help="A trajectory to export. Without any: all."),
    ] = ()
    json: Json = False

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        from distillrs.trajectory import Store, export_safetensors

        with Store.open(self.path) as store:
            keys = list(self.key) or store.keys()
            done = 0
            with choose(messages, quiet=self.json).phase("export", len(keys), "trajectories") as phase:

                def count(key: str) -> None:
                    nonlocal done
                    done += 1
                    phase.update(done)

                files = export_safetensors(store, self.out, keys=keys, on_trajectory=count)
        if self.json:
            output.out(json.dumps({"files": [str(file) for file in files]}, indent=2), highlight=False)
        else:
            output.print(f"wrote {len(files)} files into {self.out}", highlight=False, markup=False)
        return exit_codes.SUCCESS


@dataclass(frozen=True)
class Import:
    """Copy trajectories into a store: replay_buffer_*.pt files of other code, or exported safetensors files.

    Replay buffers hold bare tensors, so --network and --data say what they belong to, unless the store is there
    already. Nothing in the files is executed. An interrupted import goes on where it stopped.

    Example: distillrs store import farm --source buffers/replay_buffer_0.pt --network convnet --data cifar10
    """

    path: StorePath
    source: Annotated[
        tyro.conf.UseAppendAction[tuple[Path, ...]],
        tyro.conf.arg(metavar="FILE", help="A file to copy from, or a folder of such files."),
    ]
    network: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME", help="Architecture of the experts.", help_behavior_hint="(for a new store)"),
    ] = None
    data: Annotated[
        str | None,
        tyro.conf.arg(metavar="NAME|PATH", help="Data set of the experts.", help_behavior_hint="(for a new store)"),
    ] = None
    option: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="KEY=VALUE", help="An option of the network, such as width=128."),
    ] = ()
    codec: Annotated[
        str, tyro.conf.arg(metavar="NAME", help="How a new store keeps them: raw, lossless, half-delta, delta-int8.")
    ] = "raw"
    json: Json = False

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        from distillrs.trajectory import import_replay_buffers, import_safetensors

        files = source_files(self.source)
        kinds = {file.suffix for file in files}
        if kinds not in ({".pt"}, {".safetensors"}):
            raise argument_error("source", ", ".join(sorted(kinds)) or "no file", "all .pt, or all .safetensors")
        progress = choose(messages, quiet=self.json)
        with self._store() as store:
            layout = store.metadata.get("layout")
            if kinds == {".safetensors"}:
                keys = import_safetensors(files, store, on_trajectory=progress.note)
            else:
                if layout is None:
                    allowed = "a store with a layout in its metadata; import replay buffers into a new store"
                    raise argument_error("path", str(self.path), allowed)
                from distillrs.trajectory import ParameterLayout

                keys = import_replay_buffers(files, store, ParameterLayout.from_dict(layout), on_expert=progress.note)
        if self.json:
            output.out(json.dumps({"store": str(self.path), "trajectories": keys}, indent=2), highlight=False)
        else:
            output.print(f"{len(keys)} trajectories of these files are in {self.path}", highlight=False, markup=False)
        return exit_codes.SUCCESS

    def _store(self) -> trajectory.Store:
        """The store that is there, joined for writing; else a new one for the network that was named."""
        from distillrs.errors import StoreMissing
        from distillrs.trajectory import ParameterLayout, Schema, Store

        try:
            there = Store.open(self.path)
        except StoreMissing:
            there = None
        if there is not None:
            schema = there.schema
            there.close()
            return Store.create(self.path, schema, exist_ok=True)
        if self.network is None or self.data is None:
            raise argument_error("network and data", "nothing", f"both: {self.path} is no store yet, so they shape it")
        from distillrs.configuration import parse_assignment
        from distillrs.evaluate import data, networks

        bundle = data.load(self.data)
        options = dict(parse_assignment(text) for text in self.option)
        layout = ParameterLayout.of(networks.build(self.network, bundle.shape, len(bundle.classes), **options))
        return Store.create(self.path, Schema(theta=layout.column(codec=self.codec)), {"layout": layout.to_dict()})


def source_files(sources: tuple[Path, ...]) -> list[Path]:
    """The files that were named, and those in folders that were named, by name."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            files += sorted(file for file in source.iterdir() if file.suffix in (".pt", ".safetensors"))
        elif source.exists():
            files.append(source)
        else:
            raise argument_error("source", str(source), "files and folders that exist")
    return files


@dataclass(frozen=True)
class Store:
    """Look into a store of trajectories, check, mend, export or fill it."""

    action: Annotated[
        Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Repair, tyro.conf.subcommand("repair")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Import, tyro.conf.subcommand("import")],
        tyro.conf.arg(name=""),
    ]

    def run(self, output: Console, messages: Console) -> int:
        """Runs the chosen action."""
        return self.action.run(output, messages)
