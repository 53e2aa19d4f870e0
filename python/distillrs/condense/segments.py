"""The derivative of an unrolled training with few steps' graphs at a time.

A first pass without a graph keeps the states at which segments of a few steps begin. Then the segments are gone
through from the last to the first: each is run again with its graph, and the derivative in the state after it becomes
the one in the state before it. With one step to a segment this is the recursion of :mod:`distillrs.condense.unroll`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from distillrs.condense.inner import InnerTraining, State, Target
from distillrs.errors import argument_error

# Networks whose step is all overhead run faster with more steps to a segment; where memory counts, one is best.
MOST_STEPS = 6
GRAPH_BYTES = 64 << 20

Terms = dict[int, Tensor]
Targets = Mapping[int, Target]


@dataclass(frozen=True, slots=True)
class Wanted:
    """In what the derivative is wanted."""

    start: bool
    images: bool
    labels: bool
    rate: bool


@dataclass(frozen=True, slots=True)
class Derivative:
    """What :func:`differentiate` gives.

    Attributes:
        terms: The unweighted distances by step, detached.
        final: [P] theta after the last step.
        gradients: Of the weighted sum of the terms, in start, images, labels and rate; ``None`` where not wanted.
    """

    terms: Terms
    final: Tensor
    gradients: tuple[Tensor | None, ...]


def differentiate(
    inner: InnerTraining,
    start: Tensor,
    rate: Tensor,
    steps: int,
    targets: Targets,
    wanted: Wanted,
    *,
    graph_steps: int | None,
    checkpoint_every: int | None,
) -> Derivative:
    """Runs an inner training and differentiates the weighted sum of its distances to the targets.

    Args:
        inner: The steps, on detached images and labels.
        start: [P] theta_0, detached.
        rate: Scalar, detached.
        steps: T.
        targets: By step, at least one.
        wanted: In what to differentiate.
        graph_steps: Steps to a segment; ``None`` as many as fit into 64 MiB, at most 6.
        checkpoint_every: Steps between two states that are kept, at least; ``None`` keeps all that are needed.

    Raises:
        ArgumentError: A function that makes the steps holds a tensor that requires a gradient of its own.
    """
    last = max(targets)
    state, size = _probe(inner, State(start), rate)
    if graph_steps is None:
        graph_steps = min(MOST_STEPS, max(1, GRAPH_BYTES // max(size, 1)))
    # Counted from the end, so that the last segment, the only one that is not run before, is a whole one.
    firsts = sorted({*range(last - graph_steps, 0, -graph_steps), 0})
    kept = {0: State(start)}
    terms: Terms = {}
    newest = 0
    for i in range(firsts[-1]):
        if i:
            state = inner.run(state, i, i + 1, rate)
        if i + 1 in targets:
            terms[i + 1] = targets[i + 1].distance(state.theta)
        if i + 1 == firsts[-1] or (i + 1 in firsts and i + 1 - newest >= (checkpoint_every or 0)):
            kept[i + 1] = state
            newest = i + 1
    sums = _Sums(inner, wanted)
    pull: State | None = None
    for first, end in zip(reversed(firsts), [last, *reversed(firsts)], strict=False):
        if first not in kept:
            _recompute(inner, kept, firsts, first, rate)
        segment = _Segment(inner, kept.pop(first), rate, first, end, wanted, targets)
        if end == last:
            state = segment.after.leaf(False)
            terms |= {step: term.detach() for step, term in segment.terms.items()}
        pull = segment.pull_back(pull, sums)
    final = inner.run(state, last, steps, rate).theta
    start_gradient = pull.theta if wanted.start and pull is not None else None
    return Derivative(terms, final, (start_gradient, sums.images, sums.labels, sums.rate))


class _Sums:
    """The gradients of what all segments share, added up in place."""

    def __init__(self, inner: InnerTraining, wanted: Wanted) -> None:
        self.batches = inner.batches
        self.images = torch.zeros_like(inner.images) if wanted.images else None
        self.labels = torch.zeros_like(inner.labels) if wanted.labels else None
        self.rate: Tensor | None = None

    def add(self, into: Tensor | None, i: int, rows: Tensor | None) -> None:
        if into is None or rows is None:
            return
        if self.batches is None:
            into += rows
        else:
            into.index_add_(0, self.batches[i], rows)


class _Segment:
    """The steps first .. end - 1 with their graph, between leaves of their own."""

    def __init__(
        self,
        inner: InnerTraining,
        begin: State,
        rate: Tensor,
        first: int,
        end: int,
        wanted: Wanted,
        targets: Targets,
    ) -> None:
        self.inner = inner
        self.first = first
        self.through = first > 0 or wanted.start
        self.before = begin.leaf(self.through)
        self.rate = rate.detach().requires_grad_(wanted.rate)
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.terms: Terms = {}
        self.targets = targets
        state = self.before
        with torch.enable_grad():
            for i in range(first, end):
                if inner.batches is not None or not self.batches:
                    x, y = inner.batch(i)
                    x, y = x.detach().requires_grad_(wanted.images), y.detach().requires_grad_(wanted.labels)
                    self.batches.append((x, y))
                state = inner.step(i, state, *self.batches[-1], self.rate, graph=True)
                if i + 1 in targets:
                    self.terms[i + 1] = targets[i + 1].distance(state.theta)
        self.after = state

    def pull_back(self, pull: State | None, sums: _Sums) -> State:
        """The derivative in the state before, from the one in the state after; the rest is added to the sums."""
        outputs, factors = [], []
        if pull is not None:
            outputs, factors = [self.after.theta], [pull.theta]
            if self.after.velocity is not None and pull.velocity is not None:
                outputs, factors = [*outputs, self.after.velocity], [*factors, pull.velocity]
        for step, term in self.terms.items():
            outputs, factors = [*outputs, term], [*factors, torch.full_like(term, self.targets[step].weight)]
        leaves = [self.before.theta, self.before.velocity, self.rate, *(each for pair in self.batches for each in pair)]
        sources = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        with self.inner.outside_autocast():
            if self.through and not self.inner.fixed:
                # All leaves of the graph are asked for. Torch is then quicker when it is not told so.
                torch.autograd.backward(outputs, factors)
                found = {id(leaf): leaf.grad for leaf in sources}
            else:
                gradients = torch.autograd.grad(outputs, sources, factors, allow_unused=True)
                found = {id(leaf): each for leaf, each in zip(sources, gradients, strict=True)}
        for place, (x, y) in enumerate(self.batches):
            sums.add(sums.images, self.first + place, found.get(id(x)))
            sums.add(sums.labels, self.first + place, found.get(id(y)))
        if self.rate.requires_grad:
            share = found[id(self.rate)]
            sums.rate = share if sums.rate is None or share is None else sums.rate + share
        theta = found.get(id(self.before.theta))
        velocity = None if self.before.velocity is None else found.get(id(self.before.velocity))
        return State(torch.zeros_like(self.before.theta) if theta is None else theta, velocity)


def _recompute(inner: InnerTraining, kept: dict[int, State], firsts: list[int], first: int, rate: Tensor) -> None:
    """Fills in a state that was not kept, and those on the way to it."""
    near = max(each for each in kept if each < first)
    state = kept[near]
    way = [each for each in firsts if near <= each <= first]
    for here, there in pairwise(way):
        state = inner.run(state, here, there, rate)
        kept[there] = state


def _probe(inner: InnerTraining, begin: State, rate: Tensor) -> tuple[State, int]:
    """Takes the first step with its graph, to see what the graph holds: the state after it, and bytes.

    Raises:
        ArgumentError: A function that makes the step holds a tensor that requires a gradient of its own.
    """
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    x, y = inner.batch(0)
    leaves = begin.leaf(True), x.detach().requires_grad_()
    hooks: Any = torch.autograd.graph.saved_tensors_hooks(pack, unpack)
    with torch.enable_grad(), hooks:
        after = inner.step(0, leaves[0], leaves[1], y, rate, graph=True)
    if not inner.fixed and _leaves(after.theta) - {id(leaves[0].theta), id(leaves[1])}:
        raise argument_error(
            "network, transform or loss",
            "a tensor inside that requires a gradient",
            "functions of their arguments alone; detach what they hold, or use gradient='full'",
        )
    return after.leaf(False), sum(held.values())


def _leaves(tensor: Tensor) -> set[int]:
    """The ids of the tensors that a backward pass from here would give a gradient to."""
    found: set[int] = set()
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found.add(id(variable))
        stack.extend(following for following, _ in node.next_functions)
    return found
