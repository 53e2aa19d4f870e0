"""A bound on mutual information as a divergence, between low variance and low bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distillrs.checks import check_instance, check_size, check_text
from distillrs.errors import argument_error
from distillrs.knowledge.contrast import keys_of, same_examples
from distillrs.knowledge.divergences import Divergence
from distillrs.knowledge.numerics import is_number, products
from distillrs.knowledge.view import View
from distillrs.ops._top_k import log1mexp


class MutualInformation(nn.Module, Divergence):
    """Minus a lower bound, in nats, on what the student's rows x say of the teacher's rows y.

    The critic is ``f(x, y) = <x, y>``, so the rows come from a trained embedding of each side (``Through``). With m the
    mean over rows of the batch, b a trained positive baseline, and k, j over the n rows of other examples than i::

        r(x, y_i; m) = exp f(x, y_i) / (alpha m_i + (1 - alpha) b(y_i))
        I = mean_i [1 + mean_j log r(x_i, y_i; without j) - mean_k r(x_k, y_i; without i)]

    Both means of exponentials are over n rows, which keeps it a bound. alpha = 1 is InfoNCE, at most log n: of low
    variance, and a value near log n says that the batch is too small, not that all is learned. Towards alpha = 0 the
    bound of Nguyen, Wainwright and Jordan is approached, of low bias and a variance that grows with the exponential of
    the information. An example that comes twice would be its own negative: rows with the same id (without ids in the
    batch: with the same teacher features) are left out. A row without any other example gives 0.

    Source: Poole et al., On Variational Bounds of Mutual Information, ICML 2019; in distillation: He et al., Distiller,
    2021.

    Args:
        width: Features of both sides after their embeddings.
        alpha: From 0 to 1.
        baseline: log b, a module from ``[B, width]`` to ``[B]`` or ``[B, 1]``; ``None`` for a linear one that starts
            at 0.
        key: The batch entry that tells examples apart.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    rowwise = False
    reads_temperature = False

    def __init__(self, width: int, alpha: float = 0.9, *, baseline: nn.Module | None = None, key: str = "ids") -> None:
        super().__init__()
        check_size("width", width, "a positive integer")
        check_text("key", key, "the name of an entry of the batch")
        if not (is_number(alpha) and 0 <= alpha <= 1):
            raise argument_error("alpha", alpha, "a number from 0 to 1")
        if baseline is not None and not isinstance(baseline, nn.Module):
            raise argument_error("baseline", type(baseline).__name__, "None or a module")
        self.width = width
        self.alpha = alpha
        self.key = key
        if baseline is None:
            baseline = nn.utils.skip_init(nn.Linear, width, 1)  # type: ignore[no-untyped-call]  # untyped in torch
            assert baseline is not None
            for parameter in baseline.parameters():
                nn.init.zeros_(parameter)
        self.baseline = baseline

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`~distillrs.knowledge.Divergence`; both sides ``[B, width]``."""
        for name, side in (("student", student), ("teacher", teacher)):
            check_instance(name, side, Tensor, f"[batch, {self.width}], after an embedding")
        if student.ndim != 2 or student.shape != teacher.shape or student.shape[1] != self.width:
            got = f"shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
            raise argument_error("student", got, f"[batch, {self.width}] on both sides, after an embedding")
        dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
        own, other = student.to(dtype), teacher.to(dtype)
        keys = keys_of(view, self.key, len(own))
        # A row for each of the teacher's: its critic with every student row.
        scores = products(other, own.T)
        if len(own) < 2:
            return 0.0 * scores.sum(1)
        others = ~same_examples(teacher, keys)
        counts = others.sum(1)
        alone = counts == 0
        bound = self._bound(scores, others, counts.clamp(min=1), self._log_baseline(other))
        return torch.where(alone, 0.0 * scores.sum(1), -bound)

    def _log_baseline(self, teacher: Tensor) -> Tensor:
        weight = next(self.baseline.parameters(), None)
        given = teacher if weight is None else teacher.to(weight.dtype)
        with torch.autocast(teacher.device.type, enabled=False):
            found: Tensor = self.baseline(given)
        if found.shape not in ((len(teacher),), (len(teacher), 1)):
            raise argument_error("baseline", f"shape {tuple(found.shape)}", f"[{len(teacher)}] or [{len(teacher)}, 1]")
        return found.reshape(-1).to(teacher.dtype)

    def _bound(self, scores: Tensor, others: Tensor, counts: Tensor, log_baseline: Tensor) -> Tensor:
        """The bound of each row; [B]."""
        logs = counts.to(scores.dtype).log()
        eye = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        # Rows that are alone have no value, but a slope that must be a number.
        there = others | eye | ~others.any(1, keepdim=True)
        left = self._mixed(_without_each(scores.masked_fill(~there, -torch.inf)) - logs[:, None], log_baseline[:, None])
        joint = scores.diagonal() - torch.where(others, left, 0.0).sum(1) / counts
        apart = others | ~others.any(1, keepdim=True)
        mean = scores.masked_fill(~apart, -torch.inf).logsumexp(1) - logs
        return 1 + joint - (mean - self._mixed(mean, log_baseline)).exp()

    def _mixed(self, log_mean: Tensor, log_baseline: Tensor) -> Tensor:
        """``log(alpha exp(log_mean) + (1 - alpha) exp(log_baseline))``."""
        shares = [math.log(share) if share else -math.inf for share in (self.alpha, 1 - self.alpha)]
        return torch.logaddexp(log_mean + shares[0], log_baseline + shares[1])


def _without_each(scores: Tensor) -> Tensor:
    """``log sum_{k != j} exp(scores_ik)`` for every j, [B, B]; each row has two finite entries at least."""
    largest = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.argmax(1, keepdim=True), True)
    total = scores.logsumexp(1, keepdim=True)
    # All but the largest are at most half of the sum and can be taken off it; without that one it is made anew.
    share = torch.where(largest | (scores == -torch.inf), -1.0, scores - total)
    rest = scores.masked_fill(largest, -torch.inf).logsumexp(1, keepdim=True)
    return torch.where(largest, rest, total + log1mexp(share))
