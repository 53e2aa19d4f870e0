"""The objective: images that a trained network classifies, with the statistics that it saw in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.augment import Augmentation
from distillrs.checks import check_flag, check_instance, check_number, check_turn, check_whole
from distillrs.condense.committee import Committee
from distillrs.condense.labels import HardLabels
from distillrs.condense.matching import TURN
from distillrs.condense.statistics import BatchNormStatistics, normalising_layers
from distillrs.condense.synthetic import Synthetic
from distillrs.errors import argument_error
from distillrs.step import Loss, Step

AugmentationAt = Callable[[Step], Augmentation]


class Recovery(nn.Module):
    """Cross-entropy of each image's class and the gap to the running statistics, under a committee of teachers.

    The images are cut into groups with one image of each class, the j-th of each; a group is a batch of its own, whose
    statistics are measured. For each group ``members`` teachers are drawn at each step::

        L = sum_groups sum_k w_k (loss(f_k(A(s)), y) + strength sum_l w_l (|mu_l - mu*_l| + |sigma^2_l - sigma^2*_l|))

    (Yin, Xing and Shen, "Squeeze, Recover and Relabel", NeurIPS 2023). Groups share nothing, so their sum under an
    optimiser that works value by value is as many separate runs. Teachers stay in evaluation mode and as they are.

    Args:
        teachers: Networks with batch normalisation, trained on the real data.
        synthetic: What is trained; its labels must be :class:`HardLabels`.
        strength: Factor of the statistics.
        statistics: How the gap is measured.
        augmentation: Of images; or a function of the step that gives one. ``None`` for none.
        members: Teachers for each group and step; ``None`` for all; or the numbers of teachers of whom each group has
            one, the first group the first of them, and so on, over and over.
        redraw: Whether they are drawn anew at each step; else each group keeps those of the run's first.
        temperature: Of the teachers' weights; ``None`` takes the committee's own.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: Arguments that are not allowed or do not fit each other.
    """

    def __init__(
        self,
        teachers: Committee,
        synthetic: Synthetic,
        *,
        strength: float = 0.01,
        statistics: BatchNormStatistics | None = None,
        augmentation: Augmentation | AugmentationAt | None = None,
        members: int | Sequence[int] | None = None,
        redraw: bool = True,
        temperature: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(teachers, Committee):
            raise argument_error("teachers", type(teachers).__name__, "a Committee")
        check_instance("synthetic", synthetic, Synthetic, "a Synthetic")
        if not isinstance(synthetic.labels, HardLabels):
            raise argument_error("synthetic", "soft labels", "HardLabels: each image is recovered for its class")
        check_number("strength", strength, "a number from 0", least=0)
        if statistics is not None:
            check_instance("statistics", statistics, BatchNormStatistics, "None or BatchNormStatistics")
        if isinstance(members, list | tuple | range):
            teachers.weights(members)
        elif members is not None:
            allowed = f"None, a whole number from 1 to {len(teachers)}, or a list of numbers of teachers"
            check_whole("members", members, allowed, least=1, most=len(teachers))
        if augmentation is not None and not callable(augmentation):
            check_instance("augmentation", augmentation, Augmentation, "None, an Augmentation, or a function of a Step")
        check_flag("redraw", redraw)
        if augmentation is not None and len(synthetic.example_shape) != 3:
            raise argument_error("augmentation", f"one for examples of shape {synthetic.example_shape}", "None")
        teachers.weights(temperature=temperature)
        for number in range(len(teachers)):
            normalising_layers(teachers[number])
        self.teachers = teachers
        self.synthetic = synthetic
        self.strength = float(strength)
        self.statistics = statistics or BatchNormStatistics()
        self.augmentation = augmentation
        self.members = len(teachers) if members is None else members
        self.redraw = redraw
        self.temperature = temperature
        self.seed = Step(0, seed=seed).seed
        self._groups = one_of_each_class(synthetic.labels.indices)

    def forward(self, batch: Any = None, step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: Not used: what is known of the real data is in the teachers. ``None``.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "synthetic".

        Returns:
            ``total`` is the sum over the groups, divided by ``step.items`` if that is given; ``terms`` are, as means
            over the groups, "matching" (all of it), "classification" and "statistics" (the gap before its factor).
        """
        check_turn(turn, TURN)
        step = Step.of(step, self.seed)
        self.synthetic.project()
        images, labels = self._seen(self.synthetic.examples(), step), self.synthetic.targets()
        errors: list[Tensor] = []
        gaps: list[Tensor] = []
        for number, rows in enumerate(self._groups):
            chosen = self._members_of(number, step)
            weights = self.teachers.weights(chosen, temperature=self.temperature)
            for member, weight in zip(chosen, weights, strict=True):
                reading = self.statistics(self.teachers[member], images[rows])
                if reading.output.ndim != 2 or reading.output.shape[1] < self.synthetic.classes:
                    got = f"logits {tuple(reading.output.shape)} of member {member}"
                    raise argument_error("teachers", got, f"[n, classes] of {self.synthetic.classes} classes")
                errors.append(weight * nn.functional.cross_entropy(reading.output, labels[rows]))
                gaps.append(weight * reading.gap)
        error, gap, count = torch.stack(errors).sum(), torch.stack(gaps).sum(), len(self._groups)
        total = error + self.strength * gap
        terms = {"matching": total, "classification": error, "statistics": gap}
        return Loss(total / (step.items or 1), {name: value.detach() / count for name, value in terms.items()})

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "synthetic", steps all groups."""
        return (TURN,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The images alone."""
        return {"images": self.synthetic.parameter_groups()["images"]}

    def after_step(self) -> None:
        """See :meth:`Synthetic.after_step`; :func:`distillrs.fit` calls it after each step of the optimiser."""
        self.synthetic.after_step()

    def _members_of(self, group: int, step: Step) -> tuple[int, ...]:
        if isinstance(self.members, Sequence):
            return (self.members[group % len(self.members)],)
        drawn_at = step if self.redraw else step.at(0)
        return self.teachers.draw(self.members, step=drawn_at, name="recovering members", unit=group)

    def _seen(self, images: Tensor, step: Step) -> Tensor:
        if self.augmentation is None:
            return images
        augmentation = self.augmentation
        if not isinstance(augmentation, Augmentation):
            augmentation = augmentation(step)
        plan = augmentation.plan(
            len(images),
            step=replace(step, first_unit=0),
            name="recovery",
            shape=tuple(images.shape[1:]),
            device=images.device,
        )
        return augmentation.apply(images, plan)


def one_of_each_class(labels: Tensor) -> list[Tensor]:
    """Rows in groups: the first of each class, the second of each, and so on.

    Args:
        labels: int64 [n].

    Returns:
        Tensors of rows int64, each row in one of them; the last groups lack the classes that have fewer.
    """
    rank = torch.zeros_like(labels)
    for label in range(int(labels.max()) + 1):
        rows = labels == label
        rank[rows] = torch.arange(int(rows.sum()), device=labels.device)
    return [(rank == number).nonzero()[:, 0] for number in range(int(rank.max()) + 1)]
