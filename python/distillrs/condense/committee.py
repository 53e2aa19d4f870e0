"""Several frozen teachers that speak with one voice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_choice, check_floating, check_number, check_text, check_whole, described, numbers
from distillrs.condense.statistics import normalising_by_batch
from distillrs.errors import argument_error
from distillrs.frozen import Frozen
from distillrs.step import Step

Statistics = Literal["running", "batch"]


class Committee(nn.Module):
    """Frozen networks with weights, from whom members are drawn and a common answer is taken.

    ``w = softmax(prior / temperature)`` (Cui et al., "Dataset Distillation via Committee Voting", 2025, where the prior
    is the accuracy in percent that data distilled with a member alone reaches, and the temperature 5 for recovering and
    10 for labels). Members follow ``.to()``, stay in evaluation mode, require no gradient, and are no part of
    parameters or state.

    Args:
        members: The networks; each gives logits [n, C].
        prior: One number for each, higher is better; ``None`` weighs all alike.
        temperature: Above 0; a high one evens the weights out.

    Raises:
        ArgumentError: No member, or values that do not fit.
    """

    def __init__(
        self, members: Sequence[nn.Module], *, prior: Sequence[float] | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        # A network that is itself a sequence of modules is one member, and not as many as it has layers.
        given: object = members
        if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList):
            raise argument_error("members", type(given).__name__, "a list of modules, such as [network]")
        if not isinstance(given, list | tuple | nn.ModuleList):
            raise argument_error("members", described(given), "a list of modules, such as [network]")
        if not len(members) or not all(isinstance(each, nn.Module) for each in members):
            raise argument_error("members", [type(each).__name__ for each in members], "one or more modules")
        values = (0.0,) * len(members) if prior is None else numbers("prior", prior)
        if len(values) != len(members):
            raise argument_error("prior", prior, f"None or {len(members)} finite numbers")
        check_number("temperature", temperature, "a finite number above 0", above=0)
        self.members = nn.ModuleList(Frozen(each) for each in members)
        self.prior = values
        self.temperature = temperature
        self.train(False)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> nn.Module:
        held = self.members[number]
        assert isinstance(held, Frozen)
        return held.module

    def weights(self, members: Sequence[int] | None = None, *, temperature: float | None = None) -> tuple[float, ...]:
        """Weights that add up to 1.

        Args:
            members: Among whom; ``None`` for all.
            temperature: Instead of the committee's own.

        Raises:
            ArgumentError: A number that is no member's, or none.
        """
        chosen = self._chosen(members)
        scale = self.temperature if temperature is None else temperature
        check_number("temperature", scale, "None or a finite number above 0", above=0)
        prior = torch.tensor([self.prior[each] for each in chosen], dtype=torch.float64)
        return tuple((prior / float(scale)).softmax(0).tolist())

    def draw(self, count: int, *, step: Step | int, name: str = "members", unit: int = 0) -> tuple[int, ...]:
        """Different members drawn at random, each as likely: a pure function of (seed, name, step, unit).

        Args:
            count: How many, from 1 to all.
            step: Step of the run.
            name: Of the draw.
            unit: For whom.

        Returns:
            Their numbers, rising.

        Raises:
            ArgumentError: ``count`` is not allowed.
        """
        check_whole("count", count, f"a whole number from 1 to {len(self)}", least=1, most=len(self))
        check_text("name", name)
        check_whole("unit", unit, "a whole number from 0", least=0)
        drawn = random.choice(len(self), count, step=step, name=f"{name}/{unit}")
        return tuple(sorted(drawn.tolist()))

    @torch.no_grad()
    def vote(
        self,
        images: Tensor,
        *,
        members: Sequence[int] | None = None,
        statistics: Statistics = "running",
        temperature: float | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """The weighted mean of the members' logits.

        Args:
            images: [n, ...].
            members: Who votes; ``None`` for all.
            statistics: "running": evaluation mode; "batch": normalised by the statistics of the batch at hand, so that
                a label depends on its batch. Either way nothing that a member keeps is changed, and dropout is off.
            temperature: Of the weights, instead of the committee's own.
            batch: Images in one pass; ``None`` takes all of them.

        Returns:
            [n, C], without a graph.

        Raises:
            ArgumentError: A value that is not allowed.
        """
        check_floating("images", images, "floating images [n, ...], n >= 1", least_axes=2, rows=1)
        check_choice("statistics", statistics, ("running", "batch"))
        if batch is not None:
            check_whole("batch", batch, "None or a positive number", least=1, most=2**63 - 1)
        chosen = self._chosen(members)
        weights = self.weights(chosen, temperature=temperature)
        pieces = [images] if batch is None else list(torch.split(images, batch))
        votes = []
        for piece in pieces:
            total: Tensor | None = None
            for number, weight in zip(chosen, weights, strict=True):
                member = self[number]
                with normalising_by_batch(member) if statistics == "batch" else nullcontext():
                    answer = weight * member(piece)
                total = answer if total is None else total + answer
            assert total is not None
            votes.append(total)
        return torch.cat(votes)

    def forward(self, images: Tensor) -> Tensor:
        """The weighted mean of all members' logits [n, C], with a graph to the images [n, ...]."""
        answers = [weight * self[number](images) for number, weight in enumerate(self.weights())]
        return torch.stack(answers).sum(0)

    def _chosen(self, members: Sequence[int] | None) -> tuple[int, ...]:
        if members is None:
            return tuple(range(len(self)))
        allowed = f"None, or one or more numbers from 0 to {len(self) - 1}"
        if not isinstance(members, list | tuple | range) or not members:
            raise argument_error("members", described(members), allowed)
        chosen = tuple(members)
        for each in chosen:
            check_whole("members", each, allowed, least=0, most=len(self) - 1)
        return chosen
