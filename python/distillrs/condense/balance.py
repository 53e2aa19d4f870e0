"""How strongly the inner loss counts, by where on an expert's path the inner training starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distillrs.errors import argument_error


@dataclass(frozen=True, slots=True)
class BalancedScale:
    """Factor of the inner loss for a start s: small for early starts, where gradients are large, and larger later.

    With S = ``latest``: ``log_5(s - S/2 + 8)`` from s = S/2 on, and ``1 / log_5(S/2 - s + 8)`` before. It jumps at S/2,
    from 1 / log_5 8 = .77 to log_5 8 = 1.29 (code of J. Shen et al., "Efficient Dataset Distillation through Alignment
    with Smooth and High-Quality Expert Trajectories", 2023).

    Attributes:
        latest: S, the upper end of the starts (exclusive, as in ``range``), from 1.
    """

    latest: int

    def __post_init__(self) -> None:
        if isinstance(self.latest, bool) or not isinstance(self.latest, int) or self.latest < 1:
            raise argument_error("latest", self.latest, "a positive integer")

    def __call__(self, start: int) -> float:
        """The factor for a start.

        Args:
            start: s, from 0.

        Raises:
            ArgumentError: ``start`` is below 0.
        """
        if start < 0:
            raise argument_error("start", start, "a start from 0")
        beyond = start - self.latest / 2
        return math.log(beyond + 8, 5) if beyond >= 0 else 1 / math.log(8 - beyond, 5)
