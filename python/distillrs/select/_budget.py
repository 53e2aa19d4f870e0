"""Choice within a budget."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._points import Integers, Points, as_tensor, integers, whole


def budget(values: Points, costs: Integers, budget: int) -> Tensor:
    """Chooses the items with the largest sum of values whose costs sum to at most a budget, each at most once.

    Exact, by Bellman's dynamic programme over the costs: time in proportion to ``n`` times the budget, and one bit of
    memory for each pair of the two, after the costs are divided by their greatest common divisor. Of equally valuable
    choices the one is taken that has the lowest items; items without value are not taken.

    Args:
        values: Floating point ``[n]``, finite; those of at most 0 are never chosen.
        costs: Integers ``[n]``, at least 0, in any unit (bytes, tokens).
        budget: Most that the chosen items may cost together, in the same unit.

    Returns:
        int64 ``[m]``: the chosen rows, rising, on the values' device.

    Raises:
        ArgumentError: For values that are not finite (the message has the row), costs below 0 or of another length, or
            a budget so fine that the table would exceed 4 GiB.
    """
    gains = as_tensor("values", values, axes=1)
    prices = integers("costs", costs, (len(gains),), f"integers of shape ({len(gains)},)")
    if prices.size and int(prices.min()) < 0:
        row = int(np.flatnonzero(prices < 0)[0])
        raise argument_error("costs", f"{int(prices[row])} in row {row}", "costs of at least 0")
    limit = whole("budget", budget, 0, 2**63 - 1)
    worth = np.ascontiguousarray(gains.to(device="cpu", dtype=torch.float64).numpy())
    chosen = _core.budget(worth.data, prices.view(np.uint64).data, limit)
    return torch.tensor(chosen, dtype=torch.int64, device=gains.device)
