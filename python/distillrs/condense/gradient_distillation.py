"""The objective: a head should be moved by weak data as it is moved by reliable data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distillrs.checks import check_floating, check_instance, check_number, check_turn, check_whole
from distillrs.condense.gradient_statistics import Moments, RunningMoments, Subspace, head_gradients, moments
from distillrs.errors import argument_error
from distillrs.step import Loss, Step

IGNORED = -100
TURN = "student"


class DomainBatch(NamedTuple):
    """What a step sees of two domains.

    Attributes:
        source: Examples [n, ...] and classes int64 [n], all of them known.
        few: The few labelled examples [m, ...] of the target domain, int64 [m].
        mixed: Examples [k, ...] of the target domain, int64 [k]: labels of the few, pseudo-labels of the others, -100
            for those without one; see :func:`mixed_target`.
    """

    source: tuple[Tensor, Tensor]
    few: tuple[Tensor, Tensor]
    mixed: tuple[Tensor, Tensor]


def mixed_target(
    few: tuple[Tensor, Tensor], unlabelled: Tensor, logits: Tensor, threshold: float = 0.4
) -> tuple[Tensor, Tensor]:
    """The few labelled examples and the unlabelled ones, these with what a network is sure of.

    Args:
        few: Examples [m, ...] and classes int64 [m].
        unlabelled: [k, ...].
        logits: [k, C] The network's.
        threshold: Probability below which an example has no label.

    Returns:
        Examples [m + k, ...], and labels int64 [m + k], -100 where there is none. Without a graph.

    Raises:
        ArgumentError: Tensors that do not fit each other, or a threshold out of range.
    """
    if not isinstance(few, tuple | list) or len(few) != 2 or not all(isinstance(each, Tensor) for each in few):
        raise argument_error("few", type(few).__name__, "examples [m, ...] and classes int64 [m]")
    check_floating("unlabelled", unlabelled, "floating [k, ...]", least_axes=2)
    check_floating("logits", logits, f"floating [{len(unlabelled)}, C]", axes=2)
    if unlabelled.shape[1:] != few[0].shape[1:]:
        raise argument_error("unlabelled", tuple(unlabelled.shape), f"examples of shape {tuple(few[0].shape[1:])}")
    if len(logits) != len(unlabelled) or not logits.shape[1]:
        raise argument_error("logits", tuple(logits.shape), f"[{len(unlabelled)}, C], C >= 1")
    check_number("threshold", threshold, "a number from 0 to 1", least=0, most=1)
    probability, guess = logits.detach().softmax(1).max(1)
    labels = torch.where(probability < threshold, torch.full_like(guess, IGNORED), guess)
    return torch.cat([few[0], unlabelled.to(few[0])]), torch.cat([few[1], labels.to(few[1])])


class GradientDistillation(nn.Module):
    """Classification of two domains, with the statistics of the head's gradients distilled from strong to weak streams.

    With mu and v mean and variance, over examples, of the gradient of the cross-entropy in the head, as moving averages
    (:class:`~distillrs.condense.gradient_statistics.RunningMoments`), and U the projection onto the directions of the
    strong stream's last values (:class:`~distillrs.condense.gradient_statistics.Subspace`)::

        L = CE(source) + few CE(few) + mix CE(mixed)
            + weight [MSE(U mu_s, U mu_m) + MSE(U v_s, U v_m)]                            known classes, both domains
            + weight sum_new [(avg U mu_known - avg U mu_c)^2 + the same of v]            rows of the head, mixed

    The first bracket is of the head's rows of known classes, with a softmax over these, and of examples of known
    classes; neither side is a constant. In the second U mu_known, the mean over the known classes' rows, is a constant;
    avg is the mean over a row's entries; U is of U mu_known's past.

    The averages and subspaces are the objective's state. A call looks ahead and changes nothing;
    :meth:`after_step` takes in what the last call saw, and must be called once after each step of the optimiser, as
    :func:`distillrs.fit` does.

    Args:
        body: From examples to features [n, D]; trained, not owned.
        head: From features to logits [n, C]; trained, not owned.
        known: Class numbers that the source domain has.
        new: Class numbers of which there are few labels alone.
        weight: Of both brackets.
        few: Weight of the few examples' cross-entropy.
        mix: Weight of the mixed examples' cross-entropy.
        decay: Of the moving averages.
        warmup: Steps without either bracket.
        held: Vectors in each subspace's ring; ``None`` for 0.8 of their length, at most 300.
        every: Vectors from one decomposition to the next; ``None`` for a whole ring.
        energy: Share of the squares that a subspace holds.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Linear,
        *,
        known: Sequence[int],
        new: Sequence[int],
        weight: float = 1000.0,
        few: float = 0.1,
        mix: float = 0.1,
        decay: float = 0.95,
        warmup: int = 0,
        held: int | None = None,
        every: int | None = None,
        energy: float = 0.98,
    ) -> None:
        super().__init__()
        check_instance("body", body, nn.Module, "a module from examples to features [n, D]")
        check_instance("head", head, nn.Linear, "an nn.Linear, of which gradients are formed")
        allowed = f"different class numbers from 0 to {head.out_features - 1}, at least one, and two of them known"
        for side, given in (("known", known), ("new", new)):
            if not isinstance(given, Sequence):
                raise argument_error(side, given, allowed)
            for each in given:
                check_whole(side, each, allowed, least=0)
        classes = [*known, *new]
        if len(set(classes)) != len(classes) or not all(0 <= each < head.out_features for each in classes):
            raise argument_error("known", (tuple(known), tuple(new)), allowed)
        if len(known) < 2 or not new:
            raise argument_error("known" if len(known) < 2 else "new", (tuple(known), tuple(new)), allowed)
        for name, value in (("weight", weight), ("few", few), ("mix", mix)):
            check_number(name, value, "a number from 0", least=0)
        check_whole("warmup", warmup, "a whole number from 0", least=0)
        # Outside torch's registry: they are neither owned nor saved here.
        self._networks = (body, head)
        self.known, self.new = tuple(known), tuple(new)
        self.weight, self.few, self.mix, self.warmup = weight, few, mix, warmup
        width = head.in_features
        shape = (len(self.known), width + 1)
        self.source = RunningMoments(shape, decay=decay)
        self.target = RunningMoments(shape, decay=decay)
        self.rows = RunningMoments((head.out_features, width), decay=decay)
        spaces = {"held": held, "every": every}
        size = shape[0] * shape[1]
        self.domain_spaces = nn.ModuleList(Subspace(size, energy=energy, **spaces) for _ in range(2))
        self.class_spaces = nn.ModuleList(Subspace(width, energy=energy, **spaces) for _ in range(2))
        self.to(head.weight)
        places = torch.full((head.out_features,), IGNORED)
        places[list(self.known)] = torch.arange(len(self.known))
        self.register_buffer("places", places.to(head.weight.device), persistent=False)
        self._seen: dict[str, Moments] = {}

    def forward(self, batch: DomainBatch, step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: Both domains.
            step: Step of the run.
            turn: ``None`` or "student".

        Returns:
            ``total`` is the loss, times the share of source examples in ``step.items`` if that is given, so that the
            micro-batches of a step are averaged; ``terms`` are "source", "few", "mixed", and after the warm-up "domain"
            and "class", before their weights.

        Raises:
            ArgumentError: A batch that is not allowed; the few and the mixed may be none.
        """
        check_turn(turn, TURN)
        step, (body, head) = Step.of(step), self._networks
        (x, y), (few_x, few_y), (mixed_x, mixed_y) = _checked(batch, head.out_features)
        features = body(torch.cat([x, mixed_x]))
        logits = head(features)
        terms = {
            "source": nn.functional.cross_entropy(logits[: len(x)], y),
            "few": _cross_entropy(head(body(few_x)), few_y),
            "mixed": _cross_entropy(logits[len(x) :], mixed_y),
        }
        total = terms["source"] + self.few * terms["few"] + self.mix * terms["mixed"]
        self._seen = {}
        if step.index >= self.warmup:
            terms["domain"] = self._domain(logits, features, y, mixed_y)
            terms["class"] = self._class(logits[len(x) :], features[len(x) :], mixed_y)
            total = total + self.weight * (terms["domain"] + terms["class"])
        share = 1.0 if step.items is None else len(x) / step.items
        return Loss(total * share, {name: value.detach() for name, value in terms.items()})

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "student"."""
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Body and head, as "student"."""
        parameters = {id(each): each for network in self._networks for each in network.parameters()}
        return {"student": list(parameters.values())}

    @torch.no_grad()
    def after_step(self) -> None:
        """Takes the last call's statistics in."""
        for name, value in self._seen.items():
            running = getattr(self, name)
            running.keep(value)
            held = Moments(
                *(each / (1 - running.decay ** int(running.count)) for each in (running.mean, running.variance))
            )
            spaces = {"source": self.domain_spaces, "rows": self.class_spaces}.get(name)
            for space, each in zip(spaces or (), held, strict=False):
                assert isinstance(space, Subspace)
                space.keep((each if name == "source" else each[list(self.known)].mean(0)).flatten())
        self._seen = {}

    def _domain(self, logits: Tensor, features: Tensor, y: Tensor, mixed_y: Tensor) -> Tensor:
        labels = torch.cat([y, mixed_y])
        labels = torch.where(labels < 0, IGNORED, self.get_buffer("places")[labels.clamp_min(0)])
        if bool((labels[: len(y)] == IGNORED).any()):
            raise argument_error("batch", "a source example of a class that is not known", f"classes {self.known}")
        there = labels != IGNORED
        sides = (slice(0, len(y)), slice(len(y), None))
        if not bool(there[sides[1]].any()):
            return logits.new_zeros(())
        found = []
        for name, rows in zip(("source", "target"), sides, strict=True):
            own = there[rows]
            gradients = head_gradients(logits[rows][own][:, list(self.known)], features[rows][own], labels[rows][own])
            found.append(self._ahead(name, moments(gradients)))
        gap = logits.new_zeros(())
        for space, strong, weak in zip(self.domain_spaces, *found, strict=True):
            assert isinstance(space, Subspace)
            gap = gap + nn.functional.mse_loss(space.project(strong.flatten()), space.project(weak.flatten()))
        return gap

    def _class(self, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        own = labels != IGNORED
        if not bool(own.any()):
            return logits.new_zeros(())
        # Of the weights alone, as a row's entries are averaged.
        gradients = head_gradients(logits[own], features[own], labels[own])[:, :, :-1]
        gap = logits.new_zeros(())
        for space, rows in zip(self.class_spaces, self._ahead("rows", moments(gradients)), strict=True):
            assert isinstance(space, Subspace)
            strong = space.project(rows[list(self.known)].mean(0)).mean().detach()
            weak = space.project(rows[list(self.new)]).mean(1)
            gap = gap + (strong - weak).square().sum()
        return gap

    def _ahead(self, name: str, new: Moments) -> Moments:
        self._seen[name] = Moments(*(each.detach() for each in new))
        running = getattr(self, name)
        assert isinstance(running, RunningMoments)
        return running.ahead(new)


class GradientAmplifier(nn.Module):
    """Adds to each weight's gradient a share of its projection onto the directions of the past ones.

    ``g <- g + amount P P' g``, P of the last gradients of this weight (:class:`Subspace`). It acts at the end of each
    backward pass, before the optimiser's step, on all parameters with two axes or more; there must be one backward pass
    for a step. Its state is what it has seen.

    Args:
        module: Whose gradients.
        amount: From 0.
        held: Past gradients of each weight; ``None`` for 0.8 of its size, at most 300.
        every: Gradients from one decomposition to the next; ``None`` for a whole ring.

    Raises:
        ArgumentError: A value that is not allowed, or a module without such parameters.
    """

    def __init__(
        self, module: nn.Module, *, amount: float = 0.1, held: int | None = None, every: int | None = None
    ) -> None:
        super().__init__()
        check_number("amount", amount, "a number from 0", least=0)
        check_instance("module", module, nn.Module, "one with trained parameters of two axes or more")
        chosen = [each for each in module.parameters() if each.ndim > 1 and each.requires_grad]
        if not chosen:
            raise argument_error("module", type(module).__name__, "one with trained parameters of two axes or more")
        self.amount = amount
        self.spaces = nn.ModuleList(Subspace(each.numel(), held=held, every=every).to(each) for each in chosen)
        self._handles = [
            each.register_post_accumulate_grad_hook(self._amplify(space))  # type: ignore[no-untyped-call]  # untyped in torch
            for each, space in zip(chosen, self.spaces, strict=True)
        ]

    def remove(self) -> None:
        """Leaves gradients as they are from now on."""
        for handle in self._handles:
            handle.remove()

    def _amplify(self, space: nn.Module) -> Callable[[Tensor], None]:
        assert isinstance(space, Subspace)

        @torch.no_grad()
        def amplify(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            flat = gradient.flatten()
            space.keep(flat)
            if int(space.rank):
                gradient += self.amount * space.project(flat).reshape(gradient.shape)

        return amplify


def _checked(batch: DomainBatch, classes: int) -> DomainBatch:
    parts = tuple(batch) if isinstance(batch, tuple | list) else ()
    if len(parts) != 3 or not all(isinstance(part, tuple | list) and len(part) == 2 for part in parts):
        raise argument_error("batch", type(batch).__name__, "a DomainBatch: three pairs of examples and classes")
    for name, (x, y), least in zip(DomainBatch._fields, parts, (0, 0, IGNORED), strict=True):
        if not x.is_floating_point() or y.dtype != torch.int64 or y.shape != x.shape[:1]:
            got = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
            raise argument_error(f"batch.{name}", got, "floating examples [n, ...] and int64 [n]")
        wrong = (y < 0) & (y != least) | (y >= classes)
        if bool(wrong.any()):
            allowed = f"class numbers from 0 to {classes - 1}" + (", or -100" if least else "")
            raise argument_error(f"batch.{name}", int(y[wrong][0]), allowed)
    if not len(parts[0][0]):
        raise argument_error("batch.source", "no example", "at least 1")
    return DomainBatch(*parts)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over those that have a label, 0 if none has."""
    count = (labels != IGNORED).sum().clamp_min(1)
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / count
