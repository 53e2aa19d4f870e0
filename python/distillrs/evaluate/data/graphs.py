"""Data sets of graphs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillrs import random
from distillrs.errors import ArgumentError, DataError, argument_error, unknown_name_error
from distillrs.evaluate.data.sources import FOLDER_VARIABLE, Array
from distillrs.graphs import Graphs
from distillrs.step import Step

GRAPH_NAMES = ("mutag",)
_ARRAYS = ("edges", "graph", "node_labels", "y")


@dataclass(frozen=True, slots=True, eq=False)
class GraphBundle:
    """One data set of graphs with its three parts.

    Attributes:
        name: Of the data set.
        train: Graphs to learn from.
        validation: Graphs that choices are made on.
        test: Graphs that are looked at last.
        classes: How many there are.
        node_labels: How many labels of nodes there are in all parts together.
        edge_labels: How many labels of edges; 0 if edges have none.
    """

    name: str
    train: Graphs
    validation: Graphs
    test: Graphs
    classes: int
    node_labels: int
    edge_labels: int


def load_graphs(
    name: str | os.PathLike[str], *, test_share: float = 0.2, validation_share: float = 0.1, seed: int = 0
) -> GraphBundle:
    """Loads a data set of graphs and splits it, each class in the same shares.

    Small sets of graphs have no test set of their own; figures are averages over splits, which the seed draws. Graphs
    of one form may stand in several parts: many molecules share theirs.

    Args:
        name: "mutag" (188 molecules, two classes), looked up in the folder that ``DISTILLRS_DATA`` names; or the path
            of an ``.npz`` file with ``edges`` [m, 2] (both directions, nodes counted over all graphs), ``graph`` [n]
            (of each node, never falling), ``node_labels`` [n], ``y`` [graphs] and, or not, ``edge_labels`` [m].
        test_share: Share of each class for the test part, rounded, above 0.
        validation_share: Share of each class that validates.
        seed: Of the split.

    Raises:
        DataError: Missing or unfit data; the message has the remedy.
        ArgumentError: Shares out of range.
    """
    for part_name, share in (("test_share", test_share), ("validation_share", validation_share)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise argument_error(part_name, share, "a number above 0 and below 1")
    if test_share + validation_share >= 1:
        raise argument_error("validation_share", validation_share, f"less than the {1 - test_share:g} that is left")
    graphs, title = _read(name)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    classes = int(graphs.y.max()) + 1 if len(graphs) else 0
    for label in range(classes):
        rows = (graphs.y == label).nonzero()[:, 0]
        order = rows[random.permutation(len(rows), step=Step(label, seed=seed), name="split of graphs")]
        ends = (round(test_share * len(rows)), round((test_share + validation_share) * len(rows)))
        if not 0 < ends[0] < ends[1] < len(rows):
            raise DataError(f"data set {title!r}: class {label} has {len(rows)} graphs, too few for three parts")
        for part, own in zip(parts, (order[ends[1] :], order[ends[0] : ends[1]], order[: ends[0]]), strict=True):
            part.append(own)
    if classes < 2:
        raise DataError(f"data set {title!r}: it has {classes} classes, allowed are at least 2")
    train, validation, test = (graphs.take(torch.cat(part).sort().values) for part in parts)
    kinds = 0 if graphs.edge_labels is None else int(graphs.edge_labels.max()) + 1 if graphs.edge_labels.numel() else 1
    return GraphBundle(title, train, validation, test, classes, int(graphs.labels.max()) + 1, kinds)


def _read(name: str | os.PathLike[str]) -> tuple[Graphs, str]:
    path = Path(name)
    if isinstance(name, str) and name in GRAPH_NAMES:
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder:
            raise DataError(f"data set {name!r}: set {FOLDER_VARIABLE} to the folder that holds {name}.npz")
        path = Path(folder) / f"{name}.npz"
    elif isinstance(name, str) and os.sep not in name and not path.suffix:
        raise unknown_name_error("data set of graphs", name, [*GRAPH_NAMES, "a path"])
    if not path.is_file():
        raise DataError(f"data set {str(name)!r}: there is no {path}")
    try:
        # Opened here, because numpy leaves the file open when it fails.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return _assembled({key: file[key] for key in (*_ARRAYS, "edge_labels") if key in file.files}), path.stem
    except ArgumentError as failure:
        raise DataError(f"{path}: {failure}") from failure
    except Exception as failure:  # A damaged archive makes zipfile, zlib and numpy raise many kinds of error.
        raise DataError(f"{path}: not a readable .npz file ({failure})") from failure


def _assembled(found: dict[str, Array]) -> Graphs:
    arrays: dict[str, Tensor] = {}
    for key in _ARRAYS:
        if key not in found:
            raise argument_error(key, "no such array", "edges, graph, node_labels, y")
    for key, array in found.items():
        if array.dtype.kind not in "iu":
            raise argument_error(key, array.dtype.name, "integers")
        arrays[key] = torch.from_numpy(array.astype(np.int64))
    edges = arrays["edges"]
    if edges.dim() != 2 or edges.shape[1] != 2:
        raise argument_error("edges", f"shape {tuple(edges.shape)}", "[m, 2]")
    return Graphs(arrays["node_labels"], edges.T.contiguous(), arrays["graph"], arrays["y"], arrays.get("edge_labels"))
