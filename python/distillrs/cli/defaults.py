"""What stands in for the parts that a recipe leaves to the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from distillrs.condense import Synthetic
from distillrs.condense.experts import ExpertTraining

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distillrs.training import TrainingSettings


def plain_experts(network: nn.Module, training: TrainingSettings) -> ExpertTraining:
    """Experts trained by plain gradient descent.

    Args:
        network: The architecture; not needed here.
        training: Settings of each expert.
    """
    return ExpertTraining(training)


def nothing() -> None:
    """What a recipe without a part has in its place."""


def random_real(
    x: Tensor,
    y: Tensor,
    per_class: int,
    *,
    seed: int,
    labels: Literal["hard", "soft"] = "hard",
    confidence: float = 0.9,
    inner_lr: float = 0.01,
    learn_inner_lr: bool = True,
    average: float | None = None,
) -> Synthetic:
    """Real examples drawn at random.

    Args:
        x: [n, ...] Real examples in the network's input space.
        y: int64 [n].
        per_class: Examples of each class.
        seed: Of the draw.
        labels: "hard", or "soft": logits that are learned.
        confidence: Of soft labels at the start.
        inner_lr: Start value of the inner learning rate.
        learn_inner_lr: Whether it is learned.
        average: Decay of a moving average of the images, which is then what is kept.
    """
    return Synthetic.from_real(
        x,
        y,
        per_class,
        labels,
        seed,
        confidence=confidence,
        inner_lr=inner_lr,
        learn_inner_lr=learn_inner_lr,
        average=average,
    )
