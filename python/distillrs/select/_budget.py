"""Choice within a budget."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distillrs import _core
from distillrs.errors import argument_error
from distillrs.select._points import whole


def budget(values: Tensor, costs: Tensor, budget: int) -> Tensor:
    """Chooses the items with the largest sum of values whose costs sum to at most a budget, each at most once.

    Exact, by Bellman's dynamic programme over the costs: time in proportion to ``n`` times the budget, and one bit of
    memory for each pair of the two, after the costs are divided by their greatest common divisor. Of equally valuable
    choices the one is taken that has the lowest items; items without value are not taken.

    Args:
        values: Floating point ``[n]``, finite; those of at most 0 are never chosen.
        costs: int64 ``[n]``, at least 0, in any unit (bytes, tokens).
        budget: Most that the chosen items may cost together, in the same unit.

    Returns:
        int64 ``[m]``: the chosen rows, rising, on the values' device.

    Raises:
        ArgumentError: For values that are not finite (the message has the row), costs below 0 or of another length, or
            a budget so fine that the table would exceed 4 GiB.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() != 1:
        got = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise argument_error("values", got, "a floating-point tensor [n]")
    if not isinstance(costs, Tensor) or costs.dtype != torch.int64 or costs.shape != values.shape:
        got = f"{costs.dtype} of shape {tuple(costs.shape)}" if isinstance(costs, Tensor) else type(costs).__name__
        raise argument_error("costs", got, f"an int64 tensor of shape {tuple(values.shape)}")
    prices = np.ascontiguousarray(costs.detach().cpu().numpy())
    if prices.size and int(prices.min()) < 0:
        row = int(np.flatnonzero(prices < 0)[0])
        raise argument_error("costs", f"{int(prices[row])} in row {row}", "costs of at least 0")
    limit = whole("budget", budget, 0, 2**63 - 1)
    worth = np.ascontiguousarray(values.detach().to(device="cpu", dtype=torch.float64).numpy())
    chosen = _core.budget(worth.data, prices.view(np.uint64).data, limit)
    return torch.tensor(chosen, dtype=torch.int64, device=values.device)
