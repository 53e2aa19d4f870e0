"""Scores that separate what the examples carry from what their labels carry.

The definitions are those of DD-Ranking (Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation",
2025, arXiv 2505.13300). Accuracies are shares from 0 to 1 everywhere: the formula of the label-robust score means them
so, and percentages in its exponentials would give another ranking. Percentages are therefore refused.
"""

from __future__ import annotations

import math

from distillrs.errors import argument_error


def hard_label_recovery(full_hard: float, distilled_hard: float) -> float:
    """How much accuracy the distilled set lacks when both are trained with hard labels; lower is better.

    ``HLR = accuracy(full data, hard labels) - accuracy(distilled, hard labels)``

    Args:
        full_hard: In [0, 1].
        distilled_hard: In [0, 1].

    Returns:
        In [-1, 1].
    """
    return _share("full_hard", full_hard) - _share("distilled_hard", distilled_hard)


def improvement_over_random(distilled: float, random_real: float) -> float:
    """What the distilled set gains over random real examples of the same count, with labels of the same kind.

    ``IOR = accuracy(distilled) - accuracy(random real)``

    Args:
        distilled: In [0, 1].
        random_real: In [0, 1].

    Returns:
        In [-1, 1]; higher is better.
    """
    return _share("distilled", distilled) - _share("random_real", random_real)


def label_robust_score(improvement: float, recovery: float, weight: float = 0.5) -> float:
    """One number from 0 to 1 for both.

    ``LRS = (exp(alpha) - exp(-1)) / (e - exp(-1))`` with ``alpha = weight * IOR - (1 - weight) * HLR``

    Args:
        improvement: IOR, in [-1, 1].
        recovery: HLR, in [-1, 1].
        weight: Of IOR, in [0, 1].

    Returns:
        0 at alpha = -1, 1 at alpha = 1, about 0.269 at alpha = 0.
    """
    for name, value in (("improvement", improvement), ("recovery", recovery)):
        if not -1 <= value <= 1:
            raise argument_error(name, value, "a difference of accuracies in [-1, 1]; divide percentages by 100")
    if not 0 <= weight <= 1:
        raise argument_error("weight", weight, "a number from 0 to 1")
    alpha = weight * improvement - (1 - weight) * recovery
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise argument_error(name, value, "an accuracy from 0 to 1; divide percentages by 100")
    return value
