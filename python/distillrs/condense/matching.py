"""The objective: training on the synthetic set should walk where experts on the real set walked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from distillrs.augment import Augmentation
from distillrs.checks import (
    check_callable,
    check_choice,
    check_instance,
    check_text,
    check_turn,
    check_whole,
)
from distillrs.condense.functional import FunctionalNetwork, require_layout
from distillrs.condense.guard import Gate, Guard
from distillrs.condense.inner import Target
from distillrs.condense.labels import SoftLabels
from distillrs.condense.synthetic import Synthetic
from distillrs.condense.unroll import Unroll
from distillrs.condense.windows import TrajectoryStore, Windows, check_store, inner_batches, to_device
from distillrs.errors import DataError, argument_error
from distillrs.step import Loss, Step
from distillrs.training import LossFunction, classification_loss
from distillrs.trajectory import ParameterLayout

TURN = "synthetic"


class Perturbation(Protocol):
    """Moves the point from which the inner training starts."""

    def __call__(self, vector: Tensor, layout: ParameterLayout, *, step: Step) -> Tensor:
        """A new vector [P]; ``vector`` stays as it is."""
        ...


class TrajectoryMatching(nn.Module):
    """Distance between where inner training on the synthetic set ends and where an expert went.

    At each call an expert and a start s are drawn, ``theta_0 = theta*_s``, the network is trained for T steps on the
    synthetic examples (:class:`~distillrs.condense.Unroll`), and::

        L = |theta_T - theta*_{s+M}|^2 / |theta*_s - theta*_{s+M}|^2

    (Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022). Everything that is drawn
    is a pure function of the step. ``terms`` of the returned loss: "matching" (L before any factor), "inner_lr",
    "start" (s), "skipped" (1 if the guard closed), and "matching/j" for each target at inner step j when there are
    several.

    A call reads nothing back from the device. The objective owns the synthetic set alone; the network and the
    store are used and left as they are, and neither is in :meth:`state_dict`.

    Args:
        store: Experts' trajectories, with a column of parameters.
        network: Gives the architecture; copied, its own parameters are never touched.
        synthetic: What is trained.
        unroll: The inner training and how it is differentiated.
        windows: M and the starts.
        augmentation: Of the synthetic examples in each inner step, with a draw of its own; replayed where a step is
            computed twice. ``None`` for none, and for examples that are no images.
        batch: Examples of an inner minibatch; ``None`` takes all.
        labels: "own", or "expert": the probabilities that the network at the window's end gives to the present
            examples, anew at each call and without a gradient. They are also written into the synthetic set's
            ``SoftLabels``, which must not be learned then.
        targets: For inner steps from 1 to T which record after s to pass and the weight of its distance; ``None`` is
            ``{T: (M, 1.0)}``. See :func:`~distillrs.condense.intermediate_targets`.
        guard: Which calls give no gradient; ``None`` skips those whose loss is not finite.
        perturbation: Applied to theta_0 alone; the normalisers stay those of the unmoved start.
        inner_scale: Factor of the inner loss as a function of s.
        loss: Inner loss of (logits, labels).
        column: The store's column.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
        SchemaMismatch: The store's trajectories belong to another architecture.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        network: nn.Module,
        synthetic: Synthetic,
        *,
        unroll: Unroll,
        windows: Windows,
        augmentation: Augmentation | None = None,
        batch: int | None = None,
        labels: Literal["own", "expert"] = "own",
        targets: Mapping[int, tuple[int, float]] | None = None,
        guard: Guard | None = None,
        perturbation: Perturbation | None = None,
        inner_scale: Callable[[int], float] | None = None,
        loss: LossFunction = classification_loss,
        column: str = "theta",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_store(store)
        for name, value, kind in (
            ("synthetic", synthetic, Synthetic),
            ("unroll", unroll, Unroll),
            ("windows", windows, Windows),
        ):
            check_instance(name, value, kind, f"a {kind.__name__}")
        if augmentation is not None:
            check_instance("augmentation", augmentation, Augmentation, "None or an Augmentation")
        if targets is not None:
            check_instance("targets", targets, Mapping, "None or a mapping from inner step to (record, weight)")
        for name, function in (("perturbation", perturbation), ("inner_scale", inner_scale)):
            if function is not None:
                check_callable(name, function, "None or a function")
        check_callable("loss", loss, "a function of logits and labels")
        check_text("column", column)
        if batch is not None:
            check_whole("batch", batch, "None or a positive integer", least=1)
        if guard is not None:
            check_instance("guard", guard, Guard, "None or a Guard")
        check_choice("labels", labels, ("own", "expert"))
        self.synthetic = synthetic
        self.network = FunctionalNetwork(network)
        require_layout(store.metadata.get("layout"), self.network.layout)
        if isinstance(windows.start, range):
            windows.require(store, windows.start)
        if labels == "expert" and (not isinstance(synthetic.labels, SoftLabels) or synthetic.labels.learn):
            raise argument_error(
                "labels", labels, "'expert' with a synthetic set whose labels are SoftLabels(logits, learn=False)"
            )
        if augmentation is not None and len(synthetic.example_shape) != 3:
            raise argument_error(
                "augmentation", f"{augmentation.strategy!r} for examples of shape {synthetic.example_shape}", "None"
            )
        self.targets = dict(targets) if targets is not None else {unroll.steps: (windows.span, 1.0)}
        for inner, (record, _) in self.targets.items():
            if not 1 <= inner <= unroll.steps or not 1 <= record <= windows.span:
                raise argument_error(
                    "targets",
                    {inner: self.targets[inner]},
                    f"inner steps from 1 to {unroll.steps}, records from 1 to {windows.span} after the start",
                )
        self.store = store
        self.unroll = unroll
        self.windows = windows
        self.augmentation = augmentation
        self.batch = batch
        self.label_source = labels
        self.guard = guard or Guard()
        self.perturbation = perturbation
        self.inner_scale = inner_scale
        self.loss = loss
        self.column = column
        self.seed = seed
        self._buffers_of_window: tuple[Tensor, Tensor] | None = None
        with torch.no_grad():
            self._require_logits(synthetic)

    def forward(self, batch: Any = None, step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: Not used: the real data are in the experts. ``None``.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "synthetic".

        Returns:
            ``total`` is the weighted matching loss divided by ``step.items`` if that is given, 0 if the guard skips.

        Raises:
            DataError: The expert does not move in this window, so there is nothing to match.
        """
        check_turn(turn, TURN)
        step = Step.of(step, self.seed)
        self.synthetic.project()
        images, rate = self.synthetic.examples(), self.synthetic.inner_lr
        key, s = self.windows.draw(self.store, step)
        start, targets = self._window(key, s, images)
        labels = self.synthetic.targets()
        if self.label_source == "expert":
            labels = self._expert_labels(images, targets[max(targets)].vector)
        if self.perturbation is not None:
            start = self.perturbation(start, self.network.layout, step=step)
        gate = Gate()
        images, labels, rate = gate((images, labels, rate))
        rows = to_device(inner_batches(len(images), self.batch, self.unroll.steps, step), images.device)
        unrolled = self.unroll(
            self.network,
            start,
            images,
            labels,
            rate,
            targets,
            batches=rows,
            transform=self._transform(step, rows, len(images)),
            loss=self.loss,
            scale=1.0 if self.inner_scale is None else self.inner_scale(s),
        )
        gate.closed = self.guard.skips(unrolled.loss)
        value = unrolled.loss.detach()
        total = torch.where(gate.closed, torch.zeros_like(unrolled.loss), unrolled.loss) / (step.items or 1)
        terms = {
            "matching": value,
            "inner_lr": rate.detach().clone(),
            "start": torch.tensor(s),
            "skipped": gate.closed.to(value.dtype),
        }
        if len(unrolled.distances) > 1:
            terms |= {f"matching/{inner}": distance for inner, distance in unrolled.distances.items()}
        return Loss(total, terms)

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "synthetic", steps all groups."""
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """See :meth:`Synthetic.parameter_groups`."""
        return self.synthetic.parameter_groups()

    def after_step(self) -> None:
        """See :meth:`Synthetic.after_step`; :func:`distillrs.fit` calls it after each step of the optimiser."""
        self.synthetic.after_step()

    def _window(self, key: str, s: int, like: Tensor) -> tuple[Tensor, dict[int, Target]]:
        span = self.windows.span
        self._buffers_of_window = self.store.window(
            key, column=self.column, start=s, span=span, out=self._buffers_of_window
        )
        read: dict[int, Tensor] = dict(zip((0, span), self._buffers_of_window, strict=True))
        if read[0].shape != (self.network.size,):
            got = f"column {self.column!r} of shape {tuple(read[0].shape)}"
            raise argument_error("store", got, f"one of the network's size, [{self.network.size}]")
        for record, _ in self.targets.values():
            if record not in read:
                read[record] = self.store.read(key, s + record, column=self.column)
        # Copied even where type and device agree: the buffers are filled anew at the next call, and a graph may then
        # still hold this one's values.
        moved = {record: vector.to(like.device, like.dtype, copy=True) for record, vector in read.items()}
        targets = {}
        for inner, (record, weight) in self.targets.items():
            normaliser = float((read[record].double() - read[0].double()).square().sum())
            if not 0 < normaliser < float("inf"):
                raise DataError(
                    f"store: expert {key!r} has |theta_{s} - theta_{s + record}|^2 = {normaliser}; allowed is a "
                    "positive finite number (snapshots that share memory with the model are all alike: store copies)"
                )
            targets[inner] = Target(moved[record], normaliser, weight)
        return moved[0], targets

    @torch.no_grad()
    def _expert_labels(self, images: Tensor, end: Tensor) -> Tensor:
        logits = self.network(end, images)
        self.synthetic.labels.get_buffer("logits").copy_(logits)
        probabilities: Tensor = logits.softmax(1)
        return probabilities

    def _transform(self, step: Step, rows: list[Tensor] | None, count: int) -> Callable[[Tensor, int], Tensor] | None:
        augmentation = self.augmentation
        if augmentation is None:
            return None

        def apply(examples: Tensor, i: int) -> Tensor:
            # Drawn again when a step is replayed: a plan is a function of the step, so none is kept.
            units = count if rows is None else rows[i]
            unit = replace(step, first_unit=0)
            plan = augmentation.plan(
                units,
                step=unit,
                name=f"inner augmentation/{step.first_unit}/{i}",
                shape=tuple(examples.shape[1:]),
                device=examples.device,
            )
            transformed: Tensor = augmentation.apply(examples, plan)
            return transformed

        return apply

    def _require_logits(self, synthetic: Synthetic) -> None:
        """Calls the network once, so that what does not fit is named here and not inside the first step."""
        example = synthetic.examples()[:1]
        vector = self.network.layout.flatten(self.network.skeleton.module).to(example)
        logits = self.network(vector, example)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, synthetic.classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise argument_error("network", f"an output {got} for one example", f"logits [1, {synthetic.classes}]")
