"""Networks trained on few graphs, and real graphs of equal bytes to hold condensed ones against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distillrs import random, select
from distillrs.errors import TrainingDivergedError, argument_error
from distillrs.evaluate.measure import area_under_curve
from distillrs.graphs import Graphs
from distillrs.step import Step
from distillrs.training import module_randomness

Draw = Callable[[int, Step], Tensor]
"""From a number of graphs and a step to the rows of a minibatch, int64 [graphs]."""
SELECTIONS = ("k_center", "herding", "facility_location")
_BATCH = 512
# Graphs are told apart well enough by so many numbers, and their distances fit any memory.
_MOST_TREES = 4096


@dataclass(frozen=True, slots=True)
class GraphTraining:
    """How a network is trained on graphs: AdamW, its rate falling to 0 along half a cosine.

    Attributes:
        steps: Of the optimiser, the same whatever the set's size.
        batch_size: Graphs at each step, drawn with replacement.
        learning_rate: At the first step.
        weight_decay: Of AdamW.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "a positive integer")
        for name, allowed in (("learning_rate", "a finite number above 0"), ("weight_decay", "a finite number from 0")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise argument_error(name, value, allowed)
            if value < 0 or (value == 0 and name == "learning_rate"):
                raise argument_error(name, value, allowed)


@dataclass(frozen=True, slots=True)
class GraphScores:
    """How well a network tells the classes of graphs apart.

    Attributes:
        accuracy: Share of the graphs whose class has the highest logit.
        area: Under the ROC curve of class 1 against class 0; ``None`` unless there are two classes, and graphs of both.
    """

    accuracy: float
    area: float | None


def train_on_graphs(
    network: nn.Module, graphs: Graphs, settings: GraphTraining, *, draw: Draw | None = None, seed: int = 0
) -> list[float]:
    """Trains a network in place; all that is drawn is a pure function of (seed, step).

    Args:
        network: From graphs to logits [graphs, classes]; it is left in evaluation mode.
        graphs: What it learns.
        settings: How.
        draw: Which graphs a step sees; ``None`` takes each as likely. Condensed sets have frequencies of their own.
        seed: Of the draws and of dropout.

    Returns:
        Loss of each step.

    Raises:
        ArgumentError: There is no graph.
        TrainingDivergedError: A loss that is not finite.
    """
    if not isinstance(graphs, Graphs) or not len(graphs):
        raise argument_error(
            "graphs", "none" if isinstance(graphs, Graphs) else type(graphs).__name__, "Graphs, from 1"
        )
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    device = graphs.y.device
    losses = []
    network.train()
    with module_randomness(Step(0, seed=seed), "dropout", device):
        for index in range(settings.steps):
            step = Step(index, seed=seed)
            if draw is None:
                rows = random.integers(settings.batch_size, len(graphs), step=step, name="graphs")
            else:
                rows = draw(settings.batch_size, step)
            batch = graphs.take(rows.to(device))
            optimiser.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(network(batch), batch.y)
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
    network.eval()
    found: list[float] = torch.stack(losses).tolist()
    for index, value in enumerate(found):
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"training on graphs diverged: the loss is {value} at step {index}; a smaller learning rate usually "
                "helps",
                epoch=0,
                step=index,
            )
    return found


@torch.inference_mode()
def score_graphs(network: nn.Module, graphs: Graphs) -> GraphScores:
    """Asks a network for the classes of graphs.

    Args:
        network: From graphs to logits [graphs, classes], in the mode in which it is to be asked.
        graphs: At least one.

    Raises:
        ArgumentError: There is no graph.
    """
    if not len(graphs):
        raise argument_error("graphs", "none", "at least 1")
    rows = torch.arange(len(graphs), device=graphs.y.device)
    logits = torch.cat([network(graphs.take(part)) for part in torch.split(rows, _BATCH)])
    accuracy = float((logits.argmax(1) == graphs.y).double().mean())
    positive = graphs.y == 1
    if logits.shape[1] != 2 or not 0 < int(positive.sum()) < len(positive):
        return GraphScores(accuracy, None)
    return GraphScores(accuracy, area_under_curve((logits[:, 1] - logits[:, 0]).cpu(), positive.cpu()))


def random_graphs(graphs: Graphs, size: int, *, seed: int = 0) -> Graphs:
    """Real graphs drawn at random, as many as take at most so many bytes, classes in the proportion of the whole.

    One of each class comes first, also where these take more bytes than are allowed.

    Args:
        graphs: Where to draw from; classes without a graph are left out.
        size: Bytes, counted as :meth:`~distillrs.graphs.Graphs.stored_bytes` counts them.
        seed: Of the draw.

    Returns:
        The graphs.

    Raises:
        ArgumentError: A size below 0, or no graph.
    """
    orders = []
    for label, rows in enumerate(_by_class(graphs)):
        drawn = random.permutation(len(rows), step=Step(label, seed=seed), name="random graphs")
        orders.append(rows[drawn.to(rows.device)])
    return _fill(graphs, orders, size)


def selected_graphs(graphs: Graphs, size: int, how: str, *, depth: int = 2, seed: int = 0) -> Graphs:
    """Real graphs that selection takes, as :func:`random_graphs` takes random ones.

    A graph is the vector of how often each computation tree occurs in it, of unit length: the features of Weisfeiler
    and Lehman, by which their kernel compares graphs (Shervashidze et al., JMLR 2011).

    Args:
        graphs: Where to select from.
        size: Bytes.
        how: "k_center", "herding" or "facility_location", within each class.
        depth: Of the trees; less where there would be more than 4096 different ones.
        seed: Of selection.

    Raises:
        ArgumentError: A value that is not allowed, or no graph.
    """
    if how not in SELECTIONS:
        raise argument_error("how", how, ", ".join(SELECTIONS))
    points = _tree_counts(graphs, depth)
    orders = []
    for rows in _by_class(graphs):
        own, most = points[rows.cpu()], _at_most(graphs.take(rows), size)
        if how == "k_center":
            picks = select.k_center(own, most, seed=seed)
        elif how == "herding":
            picks = select.herding(own, most)
        else:
            picks = select.facility_location(own, most)
        orders.append(rows[picks.ids.to(rows.device)])
    return _fill(graphs, orders, size)


def _by_class(graphs: Graphs) -> list[Tensor]:
    if not len(graphs):
        raise argument_error("graphs", "none", "at least 1")
    found = [(graphs.y == label).nonzero()[:, 0] for label in range(int(graphs.y.max()) + 1)]
    return [rows for rows in found if len(rows)]


def _at_most(graphs: Graphs, size: int) -> int:
    """A bound for how many graphs so many bytes can hold: a node takes a byte at least."""
    smallest = graphs.sizes.sort().values.cumsum(0)
    return max(1, int((smallest <= size).sum()))


def _fill(graphs: Graphs, orders: list[Tensor], size: int) -> Graphs:
    """The first graphs of each class's order, as many as fit."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise argument_error("size", size, "a whole number of bytes from 0")
    rows = _interleaved(
        orders, torch.tensor([float((graphs.y == graphs.y[each[0]]).double().mean()) for each in orders])
    )
    # More graphs never take fewer bytes, so the longest beginning that fits is found by halving.
    fits, too_many = len(orders), len(rows) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if graphs.take(rows[:middle]).stored_bytes() <= size:
            fits = middle
        else:
            too_many = middle
    return graphs.take(rows[:fits])


def _interleaved(orders: list[Tensor], shares: Tensor) -> Tensor:
    """All rows in one order: one of each class, then always the class that lacks most of its share."""
    taken, lengths = torch.ones(len(orders)), torch.tensor([len(rows) for rows in orders])
    found = [rows[0] for rows in orders]
    while len(found) < int(lengths.sum()):
        lack = shares * (len(found) + 1) - taken
        label = int(lack.masked_fill(taken >= lengths, -math.inf).argmax())
        found.append(orders[label][int(taken[label])])
        taken[label] += 1
    return torch.stack(found)


def _tree_counts(graphs: Graphs, depth: int) -> Tensor:
    """[graphs, trees] of unit length, on the CPU."""
    graphs = graphs.to("cpu")
    kinds = graphs.edge_labels
    trees = select.frequent_trees(graphs.labels, graphs.edges, graphs.owners, depth=depth, edge_labels=kinds)
    while len(trees) > _MOST_TREES and depth:
        depth -= 1
        trees = select.frequent_trees(graphs.labels, graphs.edges, graphs.owners, depth=depth, edge_labels=kinds)
    counts = torch.zeros(len(graphs), len(trees))
    counts.index_put_((graphs.owners, trees.nodes), torch.ones(len(trees.nodes)), accumulate=True)
    return nn.functional.normalize(counts, dim=1)
