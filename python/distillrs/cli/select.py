"""``distillrs select``: picks real examples and writes which."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distillrs import random, select
from distillrs.cli import exit_codes, pictures
from distillrs.cli.progress import Progress, choose
from distillrs.errors import DataError, argument_error
from distillrs.files import write_whole
from distillrs.step import Step

if TYPE_CHECKING:
    from distillrs.select import Picks

FORMAT = "distillrs-picks"
_SHOWN = 10


@dataclass(frozen=True)
class Settings:
    """What decides the picks, with defaults; stands in the file of picks under ``config``."""

    data: str
    method: str
    k: int
    per_class: bool = False
    features: str = "raw"
    components: int = 64
    seed: int = 0
    memory_budget: int | None = None


@dataclass(frozen=True)
class Select:
    """Pick real examples: a coreset, the prototypes of clusters, or a random control.

    Writes the rows of the training part in the order in which they were picked (the first j of them are the picks of
    --k j, but for the clusterings), with what each was worth, and a picture of them where they are images.

    Example: distillrs select --data mnist --method k-center --k 500 --features pca --out picks.json
    """

    data: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME|PATH",
            help="As --data of condense takes it, of which the training part is taken; or a .npy file of points.",
            help_behavior_hint="(needed, here or in --config)",
        ),
    ] = None
    method: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="k-center, facility-location, herding, k-medoids, k-means (the examples nearest to its centres) or "
            "random.",
            help_behavior_hint="(default: k-center)",
        ),
    ] = None
    k: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="How many to pick.", help_behavior_hint="(needed, here or in --config)"),
    ] = None
    per_class: Annotated[
        bool, tyro.conf.arg(help="Pick so many of every class, each class apart.", help_behavior_hint="")
    ] = False
    features: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="raw|pca|FILE",
            help="What distances are measured in: the examples' own values, their principal components, or the rows of "
            "a .npy file, one for each example.",
            help_behavior_hint="(default: raw)",
        ),
    ] = None
    components: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Most principal components of pca.", help_behavior_hint="(default: 64)"),
    ] = None
    seed: Annotated[
        int | None,
        tyro.conf.arg(metavar="N", help="Seed of everything that is drawn.", help_behavior_hint="(default: 0)"),
    ] = None
    memory_budget: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="BYTES", help="Memory that the selection may take beside the features.", help_behavior_hint=""
        ),
    ] = None
    out: Annotated[Path, tyro.conf.arg(metavar="FILE", help="Where the picks go; a picture goes beside it.")] = Path(
        "picks.json"
    )
    config: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE", help="A file of picks whose settings are taken; flags win over it.", help_behavior_hint=""
        ),
    ] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs.", help_behavior_hint="")] = False

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        settings = self._settings()
        _check_out(self.out)
        progress = choose(messages, quiet=self.json)
        method = _method(settings)
        x, y, classes, name = _load(settings.data)
        with progress.phase("features", 1, "sets") as phase:
            points = features_of(settings, x)
            phase.update(1)
        picks = _pick(settings, points, y, method, progress)
        labels = None if y is None else y[picks.ids].tolist()
        found = {
            "format": FORMAT,
            "version": 1,
            "config": asdict(settings),
            "data": {"name": name, "rows": len(x), "sha256": _digest(points)},
            "classes": None if classes is None else list(classes),
            "ids": picks.ids.tolist(),
            # JSON has no infinity: the first pick of k-center is as far as can be from none.
            "gains": [gain if np.isfinite(gain) else None for gain in picks.gains.tolist()],
            "labels": labels,
        }
        content = (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.out, content)
        except OSError as failure:
            raise argument_error("out", str(self.out), f"a file that can be written ({failure.strerror})") from failure
        picture = _draw(settings, x, picks, labels, classes, self.out)
        if self.json:
            output.out(json.dumps({**found, "picture": picture and str(picture)}), highlight=False)
            return exit_codes.SUCCESS
        _show(found, output)
        output.print(f"wrote {self.out}", highlight=False, markup=False, soft_wrap=True)
        if picture:
            output.print(f"wrote {picture}", highlight=False, markup=False, soft_wrap=True)
        elif not pictures.available():
            messages.print(pictures.NEEDS_PLOT, style="dim", highlight=False, markup=False, soft_wrap=True)
        return exit_codes.SUCCESS

    def _settings(self) -> Settings:
        values: dict[str, Any] = {} if self.config is None else _config(self.config)
        given = {field.name: getattr(self, field.name) for field in fields(Settings)}
        # A flag that is not given is False; 0 is a number that was said.
        values |= {name: own for name, own in given.items() if own is not None and own is not False}
        values.setdefault("method", "k-center")
        for name in ("data", "k"):
            if name not in values:
                raise argument_error(name, "nothing", f"a value for --{name}, here or in --config")
        if isinstance(values["k"], bool) or not isinstance(values["k"], int) or values["k"] < 1:
            raise argument_error("k", values["k"], "an integer from 1")
        return Settings(**values)


def _check_out(out: Path) -> None:
    """Refuses what cannot be written, before the picks are made.

    Raises:
        ArgumentError: A folder, a place in what is no folder, or the picture's own name.
    """
    if out.suffix.lower() == ".png":
        raise argument_error("out", str(out), "a file such as picks.json; the picture goes beside it as .png")
    if out.is_dir():
        raise argument_error("out", str(out), "a file, not a folder")
    folder = next(each for each in out.absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise argument_error("out", str(out), f"a file in a folder that can be written, which {folder} is not")


def _config(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_bytes())
    except FileNotFoundError as missing:
        raise DataError(f"config: there is no file {path}") from missing
    except ValueError as failure:
        raise argument_error("config", str(path), f"a file of picks ({failure})") from failure
    values = page.get("config") if isinstance(page, Mapping) and page.get("format") == FORMAT else None
    types = {"data": str, "method": str, "k": int, "per_class": bool, "features": str, "components": int, "seed": int}
    if not isinstance(values, dict):
        raise argument_error("config", str(path), "a file that `distillrs select` wrote")
    for name, value in values.items():
        expected = types.get(name, int) if name in {field.name for field in fields(Settings)} else None
        if expected is None or not (value is None if value is None else type(value) is expected):
            raise argument_error("config", f"{name} = {value!r}", f"the settings {sorted(types)} and memory_budget")
    return {name: value for name, value in values.items() if value is not None}


Pick = Callable[[Tensor, int, Tensor | None], "Picks"]


def _method(settings: Settings) -> Pick:
    """The method as a function of points, number and groups."""
    budget, seed = settings.memory_budget, settings.seed

    def clusters(found: select.Clusters) -> Picks:
        return select.Picks(found.medoids, torch.full((len(found.medoids),), found.inertia, dtype=torch.float64))

    def drawn(points: Tensor, k: int, groups: Tensor | None) -> Picks:
        if k > len(points):
            raise argument_error(
                "k", k, f"at most the {len(points)} examples" + (" of each class" if groups is not None else "")
            )
        name = "select" if groups is None else f"select/{int(groups[0])}"
        ids = random.choice(len(points), k, step=Step(0, seed=seed), name=name)
        return select.Picks(ids, torch.zeros(k, dtype=torch.float64))

    methods: dict[str, Pick] = {
        "k-center": lambda x, k, y: select.k_center(x, k, groups=y, seed=seed, memory_budget=budget),
        "facility-location": lambda x, k, y: select.facility_location(x, k, groups=y, seed=seed, memory_budget=budget),
        "herding": lambda x, k, y: select.herding(x, k, groups=y, memory_budget=budget),
        "k-medoids": lambda x, k, y: clusters(select.k_medoids(x, k, groups=y, seed=seed, memory_budget=budget)),
        "k-means": lambda x, k, y: clusters(select.k_means(x, k, groups=y, seed=seed, memory_budget=budget)),
        "random": drawn,
    }
    if settings.method not in methods:
        raise argument_error("method", settings.method, ", ".join(methods))
    return methods[settings.method]


def _pick(settings: Settings, points: Tensor, y: Tensor | None, method: Pick, progress: Progress) -> Picks:
    if not settings.per_class:
        with progress.phase("select", 1, "sets") as phase:
            picks = method(points, settings.k, None)
            phase.update(1)
        return picks
    if y is None:
        raise argument_error("per_class", True, "data with labels: a .npy file has none")
    names = torch.unique(y).tolist()
    ids, gains = [], []
    with progress.phase("select", len(names), "classes") as phase:
        for done, group in enumerate(names, 1):
            rows = (y == group).nonzero()[:, 0]
            picks = method(points[rows], settings.k, y[rows])
            ids.append(rows[picks.ids])
            gains.append(picks.gains)
            phase.update(done)
    return select.Picks(torch.cat(ids), torch.cat(gains), y[torch.cat(ids)])


def _load(name: str) -> tuple[Tensor, Tensor | None, tuple[str, ...] | None, str]:
    """Examples, labels and names of classes, and the data set's name."""
    from distillrs.evaluate.data.sources import read_source

    if Path(name).suffix == ".npy":
        return torch.from_numpy(_array("data", name)), None, None, Path(name).stem
    source = read_source(name)
    if "x_train" not in source.arrays or "y_train" not in source.arrays:
        raise DataError(f"data set {name!r}: it has no x_train and y_train")
    x, y = source.arrays["x_train"], source.arrays["y_train"]
    values = torch.from_numpy(np.ascontiguousarray(x))
    values = values.float() / 255 if values.dtype == torch.uint8 else values
    if not values.is_floating_point():
        values = values.float()
    labels = torch.from_numpy(np.ascontiguousarray(y)).long()
    classes = source.classes or tuple(str(number) for number in range(int(labels.max()) + 1 if len(labels) else 0))
    return values, labels, classes, source.name


def _array(argument: str, path: str) -> NDArray[np.floating[Any]]:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError as missing:
        raise DataError(f"{argument}: there is no file {path}") from missing
    except (ValueError, EOFError, OSError) as failure:
        raise argument_error(argument, path, f"a .npy file of numbers ({failure})") from failure
    if not isinstance(values, np.ndarray) or values.ndim < 2 or values.dtype.kind not in "fiu":
        got = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "several arrays"
        raise argument_error(argument, f"{got} in {path}", "numbers [n, ...]")
    wide = values if values.dtype.kind == "f" and values.dtype.itemsize <= 8 else values.astype(np.float32)
    # The core and torch know the machine's own byte order alone.
    return np.ascontiguousarray(wide, dtype=wide.dtype.newbyteorder("="))


def features_of(settings: Settings, x: Tensor) -> Tensor:
    """What distances are measured in, ``[n, d]``.

    Args:
        settings: ``features`` and ``components``.
        x: [n, ...] Examples.
    """
    if settings.features == "raw":
        return x.flatten(1)
    if settings.features == "pca":
        return principal_components(x, settings.components)
    if Path(settings.features).suffix != ".npy":
        raise argument_error("features", settings.features, "raw, pca, or a .npy file")
    values = torch.from_numpy(_array("features", settings.features)).flatten(1)
    if len(values) != len(x):
        raise argument_error(
            "features", f"{len(values)} rows in {settings.features}", f"{len(x)}, one for each example"
        )
    return values


def principal_components(x: Tensor, components: int) -> Tensor:
    """Coordinates along the directions of largest variance, float32 ``[n, min(components, d)]``.

    Args:
        x: [n, ...] Examples.
        components: Most directions; each points so that its largest entry is positive.
    """
    if components < 1:
        raise argument_error("components", components, "an integer from 1")
    flat = x.flatten(1).float()
    if not bool(flat.isfinite().all()):
        raise argument_error("data", "values that are not finite", "finite values")
    centred = flat - flat.mean(0)
    _, directions = torch.linalg.eigh((centred.T @ centred).double())
    directions = directions.flip(1)[:, :components]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    found: Tensor = (centred @ (directions * largest.sign()).float()).contiguous()
    return found


def _digest(points: Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(points.numpy()).data).hexdigest()


def _draw(
    settings: Settings, x: Tensor, picks: Picks, labels: list[int] | None, classes: tuple[str, ...] | None, out: Path
) -> Path | None:
    is_image = x.dim() == 4 and x.shape[1] in (1, 3)
    if not is_image or not pictures.available():
        return None
    examples = x[picks.ids]
    grid = pictures.Grid(
        examples=examples.float().numpy(),
        labels=np.zeros(len(picks), np.int64) if labels is None else np.array(labels),
        classes=("picks",) if classes is None else classes,
        title=f"{len(picks)} examples of {Path(settings.data).name}",
        subtitle=f"{settings.method}, features {Path(settings.features).name}",
        bounds=(float(x.min()), max(float(x.max()), float(x.min()) + 1e-6)),
    )
    path = out.with_suffix(".png")
    pictures.save(pictures.draw_grid(grid), path)
    return path


def _show(found: Mapping[str, Any], output: Console) -> None:
    names, labels = found["classes"], found["labels"]
    table = Table("pick", "row", "class", "gain", box=None, pad_edge=False, header_style="bold")
    for place, (row, gain) in enumerate(zip(found["ids"][:_SHOWN], found["gains"], strict=False)):
        shown = "" if labels is None else names[labels[place]]
        table.add_row(str(place + 1), str(row), shown, "" if gain is None else f"{gain:.6g}")
    output.print(table, highlight=False, markup=False)
    if len(found["ids"]) > _SHOWN:
        output.print(f"and {len(found['ids']) - _SHOWN} more", highlight=False, markup=False)
    if labels is not None:
        counts = np.bincount(labels, minlength=len(names))
        shares = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        output.print(f"of each class: {shares}", highlight=False, markup=False, soft_wrap=True)
