"""Several frozen teachers that speak with one voice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from distillrs import random
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
        if not len(members) or not all(isinstance(each, nn.Module) for each in members):
            raise argument_error("members", [type(each).__name__ for each in members], "one or more modules")
        values = [0.0] * len(members) if prior is None else [float(each) for each in prior]
        if len(values) != len(members) or not all(map(math.isfinite, values)):
            raise argument_error("prior", prior, f"None or {len(members)} finite numbers")
        if not (temperature > 0 and math.isfinite(temperature)):
            raise argument_error("temperature", temperature, "a finite number above 0")
        self.members = nn.ModuleList(Frozen(each) for each in members)
        self.prior = tuple(values)
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
        if not scale > 0:
            raise argument_error("temperature", temperature, "None or a number above 0")
        prior = torch.tensor([self.prior[each] for each in chosen], dtype=torch.float64)
        return tuple((prior / scale).softmax(0).tolist())

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
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(self):
            raise argument_error("count", count, f"a whole number from 1 to {len(self)}")
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
        if statistics not in ("running", "batch"):
            raise argument_error("statistics", statistics, "'running' or 'batch'")
        if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
            raise argument_error("batch", batch, "None or a positive number")
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
        chosen = tuple(range(len(self))) if members is None else tuple(members)
        if not chosen or any(not isinstance(each, int) or not 0 <= each < len(self) for each in chosen):
            raise argument_error("members", members, f"None, or one or more numbers from 0 to {len(self) - 1}")
        return chosen
