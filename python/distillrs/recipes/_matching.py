"""What the recipes of distribution matching share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.diffusion import Adversary, Critic, Guided, Jump, NetworkAdapter, Score, StateMap, Teacher
from distillrs.diffusion.checks import is_number
from distillrs.errors import argument_error
from distillrs.recipes._maps import adapted, check_guidance, frozen
from distillrs.schedule import Kind, Path, TimeLaw

AnyNetwork = nn.Module | NetworkAdapter


def generator(network: AnyNetwork, path: Path, kind: Kind) -> StateMap:
    """A network that predicts a kind, as a map to the data."""
    return StateMap(adapted(network, times="t"), path, Jump(kind))


def real_score(teacher: AnyNetwork | Score, kind: Kind, guidance: float | None) -> Score:
    """A frozen teacher, or a score as it is; guided by ``u + w (c - u)`` unless ``w`` is ``None``."""
    is_network = isinstance(teacher, nn.Module) or hasattr(teacher, "module")
    score = Teacher(adapted(frozen(teacher), "teacher", times="t"), kind) if is_network else teacher  # type: ignore[arg-type]  # a network
    if not isinstance(score, Score):
        raise argument_error("teacher", type(teacher).__name__, "a network, one in its adapter, or a score")
    check_guidance(guidance)
    return score if guidance is None else Guided(score, guidance)


def fake_score(network: AnyNetwork, kind: Kind, **settings: Any) -> Critic:
    """A network that predicts a kind, as the critic."""
    return Critic(adapted(network, "critic", times="t"), kind, **settings)


def discriminator(
    head: nn.Module | None, features: str | None, scale: float, critic_scale: float, law: TimeLaw | None = None
) -> list[Adversary]:
    """The head on the critic's features; none without a head."""
    if head is None:
        return []
    return [Adversary(head, features=features, law=law, scale=scale, critic_scale=critic_scale)]


@dataclass(frozen=True, slots=True)
class ElementHuber:
    """The mean of ``sqrt(d^2 + c^2) - c`` over the elements.

    Attributes:
        c: From where on an element's pull stays the same.
    """

    c: float

    def __post_init__(self) -> None:
        if not (is_number(self.c) and self.c > 0):
            raise argument_error("huber", self.c, "a positive number")

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """``[n]``."""
        squares = (prediction - target).square().flatten(1)
        # sqrt(s + c^2) - c without its cancellation.
        value: Tensor = (squares / (torch.sqrt(squares + self.c**2) + self.c)).mean(1)
        return value
