"""What a low-rank change of a network's layers is, for engines that put it on."""

from __future__ import annotations

from dataclasses import dataclass

from distillrs.checks import check_number, check_size, check_whole
from distillrs.errors import argument_error


@dataclass(frozen=True, slots=True)
class LowRank:
    """``W x + alpha / rank B A x`` with ``A`` of the given rank and ``B`` at first 0: Hu et al., "LoRA" (2022).

    Attributes:
        rank: Of the adapter.
        alpha: ``None`` for the rank: a factor of 1.
        targets: Endings of the names of the layers that are adapted; ``None`` for every linear layer and convolution.
        seed: Of ``A``.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_size("rank", self.rank, "a positive integer")
        if self.alpha is not None:
            check_number("alpha", self.alpha, "a finite number or None")
        if self.targets is not None and not (
            isinstance(self.targets, tuple)
            and self.targets
            and all(isinstance(target, str) and target for target in self.targets)
        ):
            raise argument_error("targets", self.targets, "endings of layers' names, or None")
        check_whole("seed", self.seed, "a whole number from 0 to 2**64 - 1", least=0, most=2**64 - 1)

    @property
    def factor(self) -> float:
        """``alpha / rank``."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def fits(self, path: str) -> bool:
        """Whether a layer is among the targets.

        Args:
            path: The layer's name.
        """
        return self.targets is None or any(path == each or path.endswith(f".{each}") for each in self.targets)
