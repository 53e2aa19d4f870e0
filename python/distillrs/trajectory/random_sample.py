"""An unbiased alternative to the largest probabilities: tokens drawn from the teacher, with their shares."""

from __future__ import annotations

import torch
from torch import Tensor

from distillrs import random
from distillrs.checks import check_whole
from distillrs.errors import argument_error
from distillrs.ops import TopK
from distillrs.step import Step

# Rows whose cumulative sums, in float64, are held at once.
_ROWS = 64


def random_sample(logits: Tensor, draws: int, *, key: str, seed: int = 0, first: int = 0) -> TopK:
    """Draws tokens from each row with replacement; a token's probability is its share of the draws.

    The expectation of the shares is the teacher's distribution, so the gradient of the forward KL divergence under them
    is unbiased, which no choice of the largest probabilities gives: those either lose the tail or lump it together. The
    price is variance. There is no tail here: its log-mass is minus infinity. A cache rounds the shares by its code;
    take ``code="f16"``, which keeps eleven bits, where the last bit of bias counts.

    Args:
        logits: [tokens, vocabulary] Floating; -inf for excluded ids.
        draws: Tokens drawn for each row, at least 1: the ``k`` of the cache.
        key: The document's key; documents of different keys are drawn independently.
        seed: Seed of the run.
        first: Position of the first row in its document: a document may be drawn in parts.

    Returns:
        [tokens, draws] The distinct tokens by falling share, then ids of -1 without probability. For
        :meth:`TeacherCache.append`, where the only temperature is 1.

    Raises:
        ArgumentError: An argument is not allowed, or a row has no distribution.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or not logits.is_floating_point():
        raise argument_error("logits", getattr(logits, "shape", logits), "a floating tensor [tokens, vocabulary]")
    if logits.layout != torch.strided or logits.is_meta:
        raise argument_error("logits", f"{logits.layout} on {logits.device}", "a dense tensor with data")
    check_whole("draws", draws, "a whole number from 1", least=1)
    check_whole(
        "first", first, "the position of the first row in its document, a whole number from 0", least=0, most=2**62
    )
    if not isinstance(key, str):
        raise argument_error("key", key, "the document's key, a string")
    tokens = len(logits)
    units = range(first, first + tokens)
    step = Step(0, seed=seed)
    points = random.uniform(units, draws, step=step, name=f"teacher.{key}", dtype=torch.float64).to(logits.device)
    ids = torch.empty(tokens, draws, dtype=torch.int64, device=logits.device)
    for start in range(0, tokens, _ROWS):
        rows = slice(start, start + _ROWS)
        sums = torch.softmax(logits[rows].detach().double(), -1).cumsum(-1)
        if not bool(sums[:, -1].isfinite().all()):
            raise argument_error("logits", "a row with NaN, inf or -inf throughout", "numbers, -inf for excluded ids")
        # The first id whose sum is above the point: an id without probability adds nothing and is never that.
        ids[rows] = torch.searchsorted(sums, points[rows] * sums[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    ids = ids.sort(-1).values
    first_of_kind = torch.ones_like(ids, dtype=torch.bool)
    first_of_kind[:, 1:] = ids[:, 1:] != ids[:, :-1]
    kind = first_of_kind.cumsum(-1) - 1
    counts = torch.zeros_like(ids).scatter_add_(-1, kind, torch.ones_like(ids))
    distinct = torch.full_like(ids, -1).scatter_(-1, kind, ids)
    order = counts.argsort(dim=-1, descending=True, stable=True)
    log_probs = (counts.gather(-1, order).double() / draws).log().float()
    nothing = torch.full((tokens,), -torch.inf, device=logits.device)
    return TopK(distinct.gather(-1, order), log_probs, nothing)
