"""Which image of a synthetic set belongs to which text, and how much: a matrix that is learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_floating, check_number, check_whole
from distillrs.condense.pairs import Pairs
from distillrs.condense.signals import wide
from distillrs.errors import argument_error
from distillrs.step import Step

_MOST = 1 << 24


class PairTargets(nn.Module):
    """Target similarities ``S = diag(w) + (strength / r) L R'`` of N images and N texts.

    It begins as the identity: w is 1, L is drawn from the standard normal distribution and R is 0 (Xu et al., "Low-Rank
    Similarity Mining for Multimodal Dataset Distillation", ICML 2024).

    Args:
        count: N.
        rank: r, from 1.
        strength: Factor of the product.
        seed: Of L.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(self, count: int, rank: int = 10, *, strength: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("count", count), ("rank", rank)):
            check_whole(name, value, f"a whole number from 1 to {_MOST}", least=1, most=_MOST)
        check_number("strength", strength, "a finite number")
        self.rank, self.strength = rank, strength
        self.diagonal = nn.Parameter(torch.ones(count))
        self.left = nn.Parameter(random.normal(count, rank, step=Step(0, seed=seed), name="similarities"))
        self.right = nn.Parameter(torch.zeros(count, rank))

    def __len__(self) -> int:
        return len(self.diagonal)

    def packed(self) -> Tensor:
        """All that is learned of each pair in a row, [N, 1 + 2 r], with its graph."""
        return torch.cat([self.diagonal[:, None], self.left, self.right], 1)

    def matrix(self, packed: Tensor | None = None) -> Tensor:
        """S of some pairs.

        Args:
            packed: [n, 1 + 2 r] Rows of :meth:`packed`; ``None`` for all.

        Returns:
            [n, n]: row i, column j says how much image i belongs to text j.
        """
        width = 1 + 2 * self.rank
        if packed is not None:
            check_floating("packed", packed, f"None or floating [n, {width}]", axes=2)
            if packed.shape[1] != width:
                raise argument_error("packed", tuple(packed.shape), f"None or floating [n, {width}]")
        rows = self.packed() if packed is None else packed
        diagonal, left, right = rows[:, 0], rows[:, 1 : 1 + self.rank], rows[:, 1 + self.rank :]
        return torch.diag(diagonal) + self.strength / self.rank * left @ right.T

    def loss(self, temperature: float = 0.07) -> Callable[[Pairs, Tensor], Tensor]:
        """What a network is trained with on the set: for :func:`~distillrs.condense.train_pairs`."""
        check_number("temperature", temperature, "a number above 0", above=0)
        packed = self.packed().detach()

        def balanced(embedded: Pairs, rows: Tensor) -> Tensor:
            wanted = self.matrix(packed[rows.to(packed.device)])
            return balanced_similarity_loss(embedded.images @ embedded.texts.T / temperature, wanted)

        return balanced


def balanced_similarity_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each cell on its own, in which those that belong together weigh as much as all others.

    ``(mean over S > 1/2 + mean over the rest) / 2`` of ``log(1 + exp(x)) - x S``, the binary cross-entropy of
    sigmoid(x) and S. A kind that has no cell counts nothing.

    Args:
        logits: [n, n] x.
        targets: [n, n] S; also beyond 0 and 1.

    Returns:
        Scalar, in 32 bits at least.

    Raises:
        ArgumentError: Tensors that are not such cells.
    """
    for name, value in (("logits", logits), ("targets", targets)):
        check_floating(name, value, "floating [n, n]", axes=2)
    if logits.shape != targets.shape:
        raise argument_error("targets", tuple(targets.shape), f"the shape of logits, {tuple(logits.shape)}")
    # A sum of so many cells leaves the range of 16 bits.
    logits, targets = wide(logits), wide(targets)
    cells = nn.functional.softplus(logits) - logits * targets
    together = targets.detach() > 0.5
    sums = [torch.where(mask, cells, torch.zeros_like(cells)).sum() for mask in (together, ~together)]
    counts = [mask.sum().clamp_min(1) for mask in (together, ~together)]
    return (sums[0] / counts[0] + sums[1] / counts[1]) / 2
