"""The objective: heads trained on a synthetic set of pairs should walk where experts on the real pairs walked."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import (
    check_choice,
    check_flag,
    check_instance,
    check_number,
    check_text,
    check_turn,
    check_whole,
)
from distillrs.condense.functional import FunctionalNetwork, require_layout
from distillrs.condense.guard import Gate, Guard
from distillrs.condense.inner import Target
from distillrs.condense.matching import TURN
from distillrs.condense.pair_targets import PairTargets, balanced_similarity_loss
from distillrs.condense.pairs import PairedSynthetic, PairNetwork, Pairs
from distillrs.condense.unroll import Unroll
from distillrs.condense.windows import TrajectoryStore, Windows, check_store, inner_batches, to_device
from distillrs.errors import DataError, argument_error
from distillrs.step import Loss, Step

Sides = Literal["both", "images", "texts"]


def blend(features: Pairs, step: Step | int, *, name: str = "blend") -> Pairs:
    """Mixes each pair's features with those of another pair, both modalities alike.

    ``e <- lambda e + (1 - lambda) e_pi`` with one lambda, uniform on [0, 1] (which is Beta(1, 1)), and one permutation
    pi for both (Zhang et al., "Beyond Modality Collapse: Representations Blending for Multimodal Dataset Distillation",
    2025). Both are pure functions of (step, name), so that a second pass sees the same.

    Args:
        features: [n, d] of each modality, with their graph.
        step: Of the run.
        name: Of the draw.
    """
    share = float(random.uniform(1, step=step, name=f"{name}/share", dtype=torch.float64)[0])
    order = random.permutation(features.rows, step=step, name=f"{name}/order")
    others = features.at(order)
    return Pairs(*(share * own + (1 - share) * other for own, other in zip(features, others, strict=True)))


class PairTrajectoryMatching(nn.Module):
    """Distances of both heads to an expert's, after training on the synthetic pairs.

    At each call an expert and a start s are drawn, both heads begin at its record s, take T steps on the synthetic
    pairs with the loss of their targets, each head with its rate, and::

        L = |theta_v - theta*_v|^2 / D_v + |theta_t - theta*_t|^2 / D_t,   D = |theta*_s - theta*_{s+M}|^2

    or, with ``normalise="together"``, both over ``D_v + D_t``. Before the heads features are blended
    (:func:`blend`), anew at each inner step; targets stay. Everything that is drawn is a pure function of the step.

    Args:
        store: Trajectories of the heads.
        network: Gives encoders and the heads' architecture; copied, and never trained.
        synthetic: What is trained; with :class:`~distillrs.condense.pair_targets.PairTargets`.
        unroll: The inner training and how it is differentiated.
        windows: M and the starts.
        batch: Pairs of an inner minibatch; ``None`` takes all.
        blended: Whether features are blended.
        sides: Whose distances count.
        normalise: "apart" or "together".
        temperature: Of the loss of the inner steps.
        guard: Which calls give no gradient; ``None`` skips those whose loss is not finite.
        column: Of the store.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
        SchemaMismatch: The store's trajectories belong to other heads.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        network: PairNetwork,
        synthetic: PairedSynthetic,
        *,
        unroll: Unroll,
        windows: Windows,
        batch: int | None = 20,
        blended: bool = True,
        sides: Sides = "both",
        normalise: Literal["apart", "together"] = "apart",
        temperature: float = 0.07,
        guard: Guard | None = None,
        column: str = "theta",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_store(store)
        for name, value, kind in (
            ("network", network, PairNetwork),
            ("synthetic", synthetic, PairedSynthetic),
            ("unroll", unroll, Unroll),
            ("windows", windows, Windows),
        ):
            check_instance(name, value, kind, f"a {kind.__name__}")
        if guard is not None:
            check_instance("guard", guard, Guard, "None or a Guard")
        check_flag("blended", blended)
        check_text("column", column)
        if synthetic.targets is None:
            raise argument_error("synthetic", "no targets", "PairTargets: which image belongs to which text")
        check_choice("sides", sides, ("both", "images", "texts"))
        check_choice("normalise", normalise, ("apart", "together"))
        if batch is not None:
            check_whole("batch", batch, "None or a whole number from 2", least=2)
        check_number("temperature", temperature, "a number above 0", above=0)
        self.network = FunctionalNetwork(network)
        require_layout(store.metadata.get("layout"), self.network.layout)
        if isinstance(windows.start, range):
            windows.require(store, windows.start)
        slots = self.network.layout.slots
        of_images = [torch.full((slot.size,), slot.name.startswith("image_head")) for slot in slots]
        # Given by the architecture, so no part of the state.
        self.register_buffer("of_images", torch.cat(of_images), persistent=False)
        with torch.no_grad():
            self._width = network.encode(synthetic.pairs().at(torch.zeros(1, dtype=torch.int64))).images.shape[1]
        self.store = store
        self.synthetic = synthetic
        self.unroll = unroll
        self.windows = windows
        self.batch = batch
        self.blended = blended
        self.sides = sides
        self.normalise = normalise
        self.temperature = float(temperature)
        self.guard = guard or Guard()
        self.column = column
        self.seed = Step(0, seed=seed).seed

    def forward(self, batch: Any = None, step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: Not used: the real pairs are in the experts. ``None``.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "synthetic".

        Returns:
            ``total`` is the loss divided by ``step.items`` if that is given, 0 if the guard skips; ``terms`` are
            "matching", "matching/images" and "matching/texts" (each over its own D), "start" and "skipped".

        Raises:
            DataError: A head of the expert does not move in this window.
        """
        check_turn(turn, TURN)
        step = Step.of(step, self.seed)
        self.synthetic.project()
        assert isinstance(self.synthetic.targets, PairTargets)
        key, s = self.windows.draw(self.store, step)
        start, end, apart = self._window(key, s)
        gate = Gate()
        images, texts, packed, rates = gate(
            (self.synthetic.images, self.synthetic.texts, self.synthetic.targets.packed(), self.synthetic.rates)
        )
        flat = torch.cat([images.flatten(1), texts.flatten(1)], 1)
        unrolled = self.unroll(
            self._similarities,
            start,
            flat,
            packed,
            torch.where(self.get_buffer("of_images"), rates[0], rates[1]),
            {self.unroll.steps: Target(end, self._normaliser(apart))},
            batches=to_device(inner_batches(len(flat), self.batch, self.unroll.steps, step), flat.device),
            transform=lambda rows, i: self._features(rows, step, i),
            loss=self._loss,
        )
        gate.closed = self.guard.skips(unrolled.loss)
        value = unrolled.loss.detach()
        total = torch.where(gate.closed, torch.zeros_like(unrolled.loss), unrolled.loss) / (step.items or 1)
        left = (unrolled.final - end).square()
        mask = self.get_buffer("of_images")
        terms = {
            "matching": value,
            "matching/images": left[mask].sum() / apart[0],
            "matching/texts": left[~mask].sum() / apart[1],
            "start": torch.tensor(s),
            "skipped": gate.closed.to(value.dtype),
        }
        return Loss(total, terms)

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "synthetic", steps all groups."""
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See :meth:`PairedSynthetic.parameter_groups`."""
        return self.synthetic.parameter_groups()

    def after_step(self) -> None:
        """See :meth:`PairedSynthetic.project`; :func:`distillrs.fit` calls it after each step of the optimiser."""
        self.synthetic.project()

    def _window(self, key: str, s: int) -> tuple[Tensor, Tensor, tuple[float, float]]:
        span = self.windows.span
        read = self.store.window(key, column=self.column, start=s, span=span)
        if read[0].shape != (self.network.size,):
            got = f"column {self.column!r} of shape {tuple(read[0].shape)}"
            raise argument_error("store", got, f"one of the heads' size, [{self.network.size}]")
        # Copied, because a store may hand out the same memory again while a graph still holds it.
        start, end = (each.to(self.synthetic.images, copy=True) for each in read)
        mask, moved = self.get_buffer("of_images"), (end.double() - start.double()).square()
        apart = float(moved[mask].sum()), float(moved[~mask].sum())
        if not all(0 < each < float("inf") for each in apart):
            raise DataError(
                f"store: the heads of expert {key!r} move by {apart} (squared) from record {s} to {s + span}; allowed "
                "are positive finite numbers"
            )
        return start, end, apart

    def _normaliser(self, apart: tuple[float, float]) -> Tensor:
        by_side = [sum(apart), sum(apart)] if self.normalise == "together" else list(apart)
        # A square over infinity counts nothing.
        counted = [self.sides in ("both", side) for side in ("images", "texts")]
        values = self.synthetic.images.new_tensor(
            [each if own else float("inf") for each, own in zip(by_side, counted, strict=True)]
        )
        return torch.where(self.get_buffer("of_images"), values[0], values[1])

    def _features(self, rows: Tensor, step: Step, i: int) -> Tensor:
        """Features of a minibatch of flat pairs, blended, side by side."""
        network = self.network.skeleton.module
        assert isinstance(network, PairNetwork)
        shape = self.synthetic.images.shape[1:]
        images, texts = torch.split(rows, [shape.numel(), rows.shape[1] - shape.numel()], dim=1)
        images, texts = images.reshape(-1, *shape), texts.reshape(-1, *self.synthetic.texts.shape[1:])
        encoded = network.encode(Pairs(images, texts))
        if self.blended:
            encoded = blend(encoded, step, name=f"blend/{step.first_unit}/{i}")
        return torch.cat(list(encoded), 1)

    def _similarities(self, vector: Tensor, features: Tensor) -> Tensor:
        images, texts = features[:, : self._width], features[:, self._width :]
        embedded = self.network(vector, Pairs(images, texts))
        similarities: Tensor = embedded.images @ embedded.texts.T / self.temperature
        return similarities

    def _loss(self, logits: Tensor, packed: Tensor) -> Tensor:
        assert isinstance(self.synthetic.targets, PairTargets)
        return balanced_similarity_loss(logits, self.synthetic.targets.matrix(packed))
