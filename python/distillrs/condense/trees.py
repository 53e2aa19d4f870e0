"""Graphs condensed to the computation trees that occur together often, without training and without gradients."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distillrs import random, select
from distillrs.checks import check_choice, check_flag, check_whole
from distillrs.errors import DataError, argument_error
from distillrs.files import write_whole
from distillrs.graphs import Graphs, width
from distillrs.select._frequent_trees import Level, expand, nodes_of, only
from distillrs.step import Step

FORMAT = "distillrs.tree_sets"
FILE_NAME = "condensed.safetensors"
VERSION = 1
_DTYPES = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.int64}
_PARTS = ("labels", "offsets", "children", "edge_labels")
_SETS = ("offsets", "members", "counts", "y", "class_counts")
_DEEPEST = 64
_UNSOUND = (DataError, ValueError, KeyError, TypeError, OverflowError, RuntimeError, safetensors.SafetensorError)


@dataclass(frozen=True, slots=True, eq=False)
class TreeSets:
    """Condensed graphs: sets of computation trees with their classes, as a multiset.

    Every tree is stored once, by its root's label and the numbers of the smaller trees below it.

    Attributes:
        levels: The distinct trees of each depth, from 0 to the full one.
        offsets: int64 ``[sets + 1]``: where each set's trees begin, and where the last one's end.
        members: int64 ``[members]``: numbers of trees, rising within a set.
        counts: int64 ``[sets]``: how many graphs of its class have all the set's trees.
        y: int64 ``[sets]``: class of each set.
        class_counts: int64 ``[classes]``: graphs of each class that the sets were found in.
        edge_labels: Whether edges have labels.
    """

    levels: tuple[Level, ...]
    offsets: Tensor
    members: Tensor
    counts: Tensor
    y: Tensor
    class_counts: Tensor
    edge_labels: bool

    def __len__(self) -> int:
        return len(self.y)

    def graphs(self, *, most: int = 2**24) -> Graphs:
        """Each set as one graph: its trees side by side, edges from child to parent, the roots pooled.

        A sum-aggregating network of as many layers as the trees are deep gives a root the embedding that the node has
        in the graph it comes from.

        Args:
            most: Most nodes of all graphs together.

        Raises:
            ArgumentError: For more nodes.
        """
        # Before a tree is written out: a small file can hold trees of more nodes than any memory.
        check_whole("most", most, "a positive integer", least=1)
        wanted = float(nodes_of(self.levels)[self.members].sum())
        if wanted > most:
            raise argument_error("most", most, f"at least the nodes of all sets, {wanted:.4g}")
        trees = {number: expand(self.levels, number, most) for number in torch.unique(self.members).tolist()}
        labels, edges, edge_labels, owners, roots = [], [], [], [], []
        nodes = 0
        for row in range(len(self)):
            for tree in self.members[int(self.offsets[row]) : int(self.offsets[row + 1])].tolist():
                own, links, kinds = trees[tree]
                labels.append(own)
                edges.append(links + nodes)
                edge_labels.append(kinds)
                owners.append(torch.full_like(own, row))
                roots.append(torch.arange(len(own)) == 0)
                nodes += len(own)
        return Graphs(
            _joined(labels),
            torch.cat(edges, 1) if edges else torch.zeros(2, 0, dtype=torch.int64),
            _joined(owners),
            self.y,
            _joined(edge_labels) if self.edge_labels else None,
            torch.cat(roots) if roots else torch.zeros(0, dtype=torch.bool),
        )

    def draw(self, units: int, *, step: Step | int, by: Literal["count", "class"] = "count") -> Tensor:
        """Draws sets for training, with replacement.

        Args:
            units: How many.
            step: Where in the run.
            by: "count": each set as likely as it is frequent. "class": first a class, as likely as its graphs are
                among those that the sets were found in, then one of its sets by count; a class that has many
                subsets of the same trees is then not drawn more often for it.

        Returns:
            int64 ``[units]``: numbers of sets.

        Raises:
            ArgumentError: For another ``by``, or where there is no set.
        """
        check_choice("by", by, ("count", "class"))
        if not len(self):
            raise argument_error("draw", "no set to draw from", "sets that are not empty; lower the support")
        weights = self.counts.double()
        if by == "class":
            # [sets] in numbers whose sums by class are in the ratio of the classes.
            sums = torch.zeros(len(self.class_counts), dtype=torch.float64).index_add_(0, self.y, weights)
            weights = weights * (self.class_counts.double() / sums)[self.y]
        ends = weights.cumsum(0)
        at = random.uniform(units, step=step, name="tree sets", dtype=torch.float64) * ends[-1]
        return torch.searchsorted(ends, at, right=True).clamp(max=len(self) - 1)

    def stored_bytes(self) -> int:
        """Bytes of all numbers, each in as few whole bytes as the largest of its kind needs; offsets as lengths."""
        total = 0
        for level in self.levels:
            parts = [level.labels, level.offsets.diff(), level.children]
            if self.edge_labels:
                parts.append(level.edge_labels)
            total += sum(len(part) * width(part) for part in parts)
        parts = [self.offsets.diff(), self.members, self.counts, self.y, self.class_counts]
        return total + sum(len(part) * width(part) for part in parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the sets, whole or not at all.

        The file is safetensors: ``offsets``, ``members``, ``counts``, ``y``, ``class_counts``, and ``levels.<depth>.*``
        with ``labels``, ``offsets``, ``children`` and ``edge_labels``, unsigned integers; the metadata have under
        ``distillrs`` the format's version and the depth as JSON.

        Args:
            path: The file.
        """
        tensors = {name: getattr(self, name) for name in _SETS}
        for depth, level in enumerate(self.levels):
            tensors |= {f"levels.{depth}.{name}": getattr(level, name) for name in _PARTS}
        narrow = {name: tensor.cpu().to(_DTYPES[width(tensor)]).contiguous() for name, tensor in tensors.items()}
        page = {
            "format": FORMAT,
            "version": VERSION,
            "depth": len(self.levels) - 1,
            "edge_labels": self.edge_labels,
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, safetensors.torch.save(narrow, {"distillrs": json.dumps(page, sort_keys=True)}))


def load_tree_sets(path: str | os.PathLike[str], *, max_bytes: int = 1 << 30) -> TreeSets:
    """Reads what :meth:`TreeSets.save` wrote.

    Args:
        path: The file, or the folder of a condensation of graphs.
        max_bytes: Largest file that is accepted.

    Raises:
        DataError: There is no such file, or it is no sound one; the message says what is wrong.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file; allowed is what TreeSets.save wrote")
    if path.stat().st_size > max_bytes:
        raise DataError(f"{path}: {path.stat().st_size} bytes, allowed are {max_bytes}")
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            page = json.loads((opened.metadata() or {})["distillrs"])
            tensors = {name: opened.get_tensor(name).to(torch.int64) for name in opened.keys()}  # noqa: SIM118  # not a dict
        return _assemble(page, tensors)
    except _UNSOUND as failure:
        raise DataError(f"{path}: not tree sets that this version reads ({failure})") from failure


@dataclass(frozen=True, slots=True)
class FrequentTreeSets:
    """Turns graphs into the sets of computation trees that occur together in many graphs of a class.

    A graph becomes the set of its nodes' trees (:func:`distillrs.select.frequent_trees`); of each class the sets of
    trees that enough of its graphs contain (:func:`distillrs.select.frequent_sets`) are kept, with their counts.

    Attributes:
        depth: Layers of the networks that will be trained, from 0 to 64.
        support: Least graphs of its class that a set must be contained in: a number of graphs (int), a share of the
            class (float, above 0 to 1, rounded up), or a mapping from class to either.
        edge_labels: Whether edges' labels tell trees apart, where there are any.
        exclusive: Drops sets of trees that are frequent in more than one class.
        largest: Most trees of a set; ``None`` sets no limit.
        most: Most sets of one class.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    depth: int = 2
    support: int | float | Mapping[int, int | float] = 0.2
    edge_labels: bool = True
    exclusive: bool = False
    largest: int | None = None
    most: int = 2**16

    def __post_init__(self) -> None:
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or not 0 <= self.depth <= _DEEPEST:
            raise argument_error("depth", self.depth, f"an integer from 0 to {_DEEPEST}")
        check_flag("edge_labels", self.edge_labels)
        check_flag("exclusive", self.exclusive)
        if self.largest is not None:
            check_whole("largest", self.largest, "None or a whole number from 0", least=0)
        check_whole("most", self.most, "a whole number from 0", least=0)
        for value in self.support.values() if isinstance(self.support, Mapping) else (self.support,):
            _check_support(value)

    def __call__(self, graphs: Graphs) -> TreeSets:
        """The frequent sets of each class, on the CPU.

        Args:
            graphs: What is condensed.

        Raises:
            ArgumentError: For a class without a support, or more sets than ``most``.
        """
        if not isinstance(graphs, Graphs):
            raise argument_error("graphs", type(graphs).__name__, "Graphs")
        graphs = graphs.to("cpu")
        classes = int(graphs.y.max()) + 1 if len(graphs) else 0
        class_counts = graphs.y.bincount(minlength=classes)
        labelled = self.edge_labels and graphs.edge_labels is not None
        trees = select.frequent_trees(
            graphs.labels,
            graphs.edges,
            graphs.owners,
            depth=self.depth,
            edge_labels=graphs.edge_labels if labelled else None,
        )
        of: list[set[int]] = [set() for _ in range(len(graphs))]
        for graph, tree in zip(graphs.owners.tolist(), trees.nodes.tolist(), strict=True):
            of[graph].add(tree)
        # A plain list of (class, count, trees), because sets of different classes are told apart here.
        found: list[tuple[int, int, tuple[int, ...]]] = []
        for label in range(classes):
            rows = [of[row] for row in (graphs.y == label).nonzero()[:, 0].tolist()]
            if not rows:
                continue
            sets = select.frequent_sets(rows, self._least(label, len(rows)), largest=self.largest, most=self.most)
            found += [(label, count, sets[row]) for row, count in enumerate(sets.supports.tolist())]
        if self.exclusive:
            times: dict[tuple[int, ...], int] = {}
            for *_, one in found:
                times[one] = times.get(one, 0) + 1
            found = [each for each in found if times[each[2]] == 1]
        members = torch.tensor([tree for *_, one in found for tree in one], dtype=torch.int64)
        used, members = torch.unique(members, return_inverse=True)
        lengths = torch.tensor([0, *(len(one) for *_, one in found)])
        return TreeSets(
            only(trees.levels, used),
            lengths.cumsum(0),
            members,
            torch.tensor([count for _, count, _ in found], dtype=torch.int64),
            torch.tensor([label for label, *_ in found], dtype=torch.int64),
            class_counts,
            labelled,
        )

    def _least(self, label: int, graphs: int) -> int:
        value = self.support
        if isinstance(value, Mapping):
            if label not in value:
                raise argument_error("support", f"none for class {label}", "one for every class")
            value = value[label]
        # Exact where a product of floats is not: 0.07 of 100 is 7, not 8.
        return value if isinstance(value, int) else max(1, -int(-round(value * graphs, 9) // 1))


def _check_support(value: Any) -> None:
    allowed = "a number of graphs from 1, or a share above 0.0 to 1.0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise argument_error("support", value, allowed)
    if not (value >= 1 if isinstance(value, int) else 0 < value <= 1):
        raise argument_error("support", value, allowed)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


def _assemble(page: Any, tensors: dict[str, Tensor]) -> TreeSets:
    if not isinstance(page, dict) or page.get("format") != FORMAT:
        raise DataError(f"its format is not {FORMAT!r}")
    if page.get("version") != VERSION:
        raise DataError(f"format version {page.get('version')!r}; this one reads {VERSION}")
    depth, edge_labels = page.get("depth"), page.get("edge_labels")
    if isinstance(depth, bool) or not isinstance(depth, int) or not 0 <= depth <= _DEEPEST:
        raise DataError(f"depth {depth!r}, allowed is an integer from 0 to {_DEEPEST}")
    if not isinstance(edge_labels, bool):
        raise DataError(f"edge_labels {edge_labels!r}, allowed is true or false")
    names = [*_SETS, *(f"levels.{number}.{part}" for number in range(depth + 1) for part in _PARTS)]
    for name in names:
        if name not in tensors:
            raise DataError(f"there is no {name}")
        if tensors[name].dim() != 1 or (tensors[name].numel() and int(tensors[name].min()) < 0):
            raise DataError(f"{name} is not a row of numbers from 0")
    levels: list[Level] = []
    for number in range(depth + 1):
        level = Level(*(tensors[f"levels.{number}.{part}"] for part in _PARTS))
        _check_offsets(f"levels.{number}.offsets", level.offsets, len(level.labels), len(level.children))
        _check_below(f"levels.{number}.children", level.children, len(levels[-1].labels) if levels else 0)
        if len(level.edge_labels) != len(level.children):
            raise DataError(f"levels.{number} has not one edge label for each child")
        levels.append(level)
    offsets, members, counts, y, class_counts = (tensors[name] for name in _SETS)
    _check_offsets("offsets", offsets, len(y), len(members))
    _check_below("members", members, len(levels[-1].labels))
    _check_below("y", y, len(class_counts))
    if len(counts) != len(y) or (len(counts) and int(counts.min()) < 1):
        raise DataError("counts are not one for each set, from 1")
    return TreeSets(tuple(levels), offsets, members, counts, y, class_counts, edge_labels)


def _check_offsets(name: str, offsets: Tensor, count: int, end: int) -> None:
    fits = len(offsets) == count + 1 and int(offsets[0]) == 0 and int(offsets[-1]) == end
    if not fits or bool((offsets.diff() < 0).any()):
        raise DataError(f"{name} do not rise from 0 to {end} in {count} parts")


def _check_below(name: str, values: Tensor, end: int) -> None:
    if values.numel() and int(values.max()) >= end:
        raise DataError(f"{name} has {int(values.max())}, allowed are numbers below {end}")
