"""How well the things of one modality find their partners in another."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs.checks import check_instance, check_whole
from distillrs.errors import argument_error


@torch.no_grad()
def recall(queries: Tensor, keys: Tensor, k: int, *, batch: int = 1024) -> float:
    """Share of queries whose own key is among the k with the largest product: recall at k.

    Of equal products those of other keys come first, so that a network that cannot tell keys apart finds nothing.

    Args:
        queries: [n, d] Embeddings; of unit length, where products are to be cosines.
        keys: [n, d]; key i is query i's own.
        k: From 1 to n.
        batch: Queries compared at once.

    Raises:
        ArgumentError: Arguments that do not fit each other.
    """
    for name, value in (("queries", queries), ("keys", keys)):
        check_instance(name, value, Tensor, "a tensor [n, d]")
    if queries.ndim != 2 or not len(queries) or queries.shape != keys.shape:
        raise argument_error("keys", tuple(keys.shape), f"the shape of queries, {tuple(queries.shape)}, [n, d], n >= 1")
    check_whole("k", k, f"a whole number from 1 to {len(queries)}", least=1, most=len(queries))
    check_whole("batch", batch, "a whole number from 1", least=1)
    found = 0
    for first in range(0, len(queries), batch):
        products = queries[first : first + batch] @ keys.T
        rows = torch.arange(len(products), device=products.device)
        own = products[rows, rows + first]
        # The own key is at least itself; the negation makes a NaN find nothing.
        better = (~(products < own[:, None])).sum(1) - 1
        found += int((better < k).sum())
    return found / len(queries)
