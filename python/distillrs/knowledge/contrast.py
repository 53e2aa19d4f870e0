"""Contrastive divergences: the student's row should single out its own teacher row among others."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_choice, check_instance, check_size, check_text
from distillrs.errors import argument_error
from distillrs.knowledge.divergences import Divergence
from distillrs.knowledge.numerics import is_number, products, unit
from distillrs.knowledge.ranks import Ranks, latest
from distillrs.knowledge.view import View
from distillrs.step import Step

_EPSILON = 1e-7


class InfoNCE(nn.Module, Divergence):
    """Cross-entropy of naming the own teacher row among those of the batch and of a queue.

    ``-log softmax_j(cos(s_i, t_j) / tau)_i``. An example that comes twice would be its own negative: rows with the same
    id (without ids in the batch: with the same teacher features) count as positives, of whose terms the mean is taken,
    or are left out. The loss bounds the mutual information from below by ``log K - loss``, K the number of candidates,
    so a loss near 0 says that K is too small, not that all is learned. With a ``process_group`` the queue takes the
    rows of all processes and is the same in each; without, each has its own, of which the trainers' hooks save the
    first one's. Source: van den Oord et al., 2018; the queue is that of He et al., MoCo, CVPR 2020.

    Args:
        temperature: tau, above 0.
        queue: How many teacher rows of earlier batches are candidates too; 0 for none.
        width: Their number of features, with a queue.
        duplicates: "positive" or "excluded".
        key: The batch entry that tells examples apart.
        process_group: The processes that fill the queue together; ``None`` for this one alone.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    rowwise = False
    reads_temperature = False
    rows_held: Tensor
    keys_held: Tensor
    count: Tensor

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        queue: int = 0,
        width: int | None = None,
        duplicates: Literal["positive", "excluded"] = "positive",
        key: str = "ids",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        if not (is_number(temperature) and temperature > 0):
            raise argument_error("temperature", temperature, "a number above 0")
        check_size("queue", queue, "a number of rows from 0", least=0)
        if queue and width is None:
            raise argument_error("width", width, "the number of features, with a queue")
        if width is not None:
            check_size("width", width, "None or the number of features")
        check_choice("duplicates", duplicates, ("positive", "excluded"))
        check_text("key", key, "the name of an entry of the batch")
        self.temperature = temperature
        self.queue = queue
        self.duplicates = duplicates
        self.key = key
        self.ranks = Ranks(process_group)
        self.register_buffer("rows_held", torch.zeros(queue, width or 0))
        self.register_buffer("keys_held", torch.full((queue,), -1, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`~distillrs.knowledge.Divergence`; both sides ``[B, D]``."""
        first, second = _unit_rows(student, teacher)
        keys = keys_of(view, self.key, len(first))
        candidates, same = second, same_examples(second, keys)
        held = min(int(self.count), self.queue)
        if held:
            if second.shape[1] != self.rows_held.shape[1]:
                got = f"{second.shape[1]} features"
                raise argument_error("teacher", got, f"{self.rows_held.shape[1]}, the width of the queue")
            candidates = torch.cat([second, self.rows_held[:held].to(second)])
            # Ids tell a row of the queue from the same example's of today; without ids they are other examples.
            again = same.new_zeros(len(second), held) if keys is None else keys[:, None] == self.keys_held[:held]
            same = torch.cat([same, again], 1)
        logits = products(first, candidates.T) / self.temperature
        own = torch.eye(len(first), len(candidates), dtype=torch.bool, device=first.device)
        losses: Tensor
        if self.duplicates == "excluded":
            logits = logits.masked_fill(same & ~own, -torch.inf)
            losses = -logits.log_softmax(1).diagonal()
        else:
            positives = same | own
            losses = -torch.where(positives, logits.log_softmax(1), 0.0).sum(1) / positives.sum(1)
        if self.queue and torch.is_grad_enabled():
            self._push(second.detach(), keys)
        return losses

    @torch.no_grad()
    def _push(self, rows: Tensor, keys: Tensor | None) -> None:
        rows, *rest = self.ranks.gathered(rows, *(() if keys is None else (keys,)))
        keys = rest[0] if rest else None
        rows = rows[-self.queue :]
        places = (torch.arange(len(rows), device=rows.device) + self.count) % self.queue
        self.rows_held[places] = rows.to(self.rows_held)
        self.keys_held[places] = -1 if keys is None else keys[-self.queue :].to(self.keys_held)
        self.count += len(rows)


def keys_of(view: View, key: str, rows: int) -> Tensor | None:
    """What tells the examples of a batch apart, if it says so: ``[B]``.

    Args:
        view: The term's view.
        key: The batch entry.
        rows: B.

    Raises:
        ArgumentError: Another number of them.
    """
    keys = view.inputs.tensor(key) if view.inputs.has(key) else None
    if keys is not None and tuple(keys.shape) != (rows,):
        raise argument_error(f"batch[{key!r}]", f"shape {tuple(keys.shape)}", f"one id for each of {rows}")
    return keys


def same_examples(teacher: Tensor, keys: Tensor | None) -> Tensor:
    """Which rows of a batch are the same example: by their keys, or without any by equal teacher features.

    Args:
        teacher: ``[B, D]``.
        keys: ``[B]``.

    Returns:
        Booleans ``[B, B]``.
    """
    if keys is None:
        _, keys = torch.unique(teacher.detach(), dim=0, return_inverse=True)
    same: Tensor = keys[:, None] == keys
    return same


class NoiseContrast(nn.Module, Divergence):
    """Contrastive representation distillation: tells the own row from K others in memories of both networks.

    With memories M_s, M_t of unit rows of all N examples, for an example i with negatives j_1 ... j_K::

        x_k   = exp(<s_i, M_t[j_k]> / tau) / Z,   j_0 = i
        loss += -log(x_0 / (x_0 + K / N)) - sum_{k >= 1} log((K / N) / (x_k + K / N))

    and the same of t_i in M_s. Z is N times the mean of the exponentials at the first call and then fixed. The memories
    follow the networks: ``M[i] <- normalise(momentum M[i] + (1 - momentum) row)``, after each training call. Negatives
    are drawn for each example by its id and the step. Memories, Z and nothing else are state. With a ``process_group``
    memories and Z follow the rows of all processes and are the same in each; without, each has its own, of which the
    trainers' hooks save the first one's. Source: Tian et al., Contrastive Representation Distillation, ICLR 2020, and
    its authors' code.

    Args:
        examples: N.
        width: Features of both sides after their embedding heads.
        negatives: K.
        temperature: tau.
        momentum: Of the memories, from 0 to below 1.
        labels: int64 ``[N]``: negatives are then of other classes; ``None`` draws from all other examples.
        key: The batch entry of the examples' ids, from 0 to N - 1.
        seed: Of the memories' first values.
        process_group: The processes that remember together; ``None`` for this one alone.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    rowwise = False
    reads_temperature = False
    student_memory: Tensor
    teacher_memory: Tensor
    constants: Tensor
    order: Tensor
    blocks: Tensor

    def __init__(
        self,
        examples: int,
        width: int,
        *,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        labels: Tensor | None = None,
        key: str = "ids",
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("examples", examples, 2), ("width", width, 1), ("negatives", negatives, 1)):
            check_size(name, value, f"an integer from {least}", least=least)
        if not (is_number(temperature) and temperature > 0):
            raise argument_error("temperature", temperature, "a number above 0")
        if not (is_number(momentum) and 0 <= momentum < 1):
            raise argument_error("momentum", momentum, "a number from 0 to below 1")
        check_text("key", key, "the name of an entry of the batch")
        if labels is not None:
            check_instance("labels", labels, Tensor, f"None or int64 [{examples}] of at least two classes")
        if labels is not None and labels.is_meta:
            raise argument_error("labels", "a tensor on the meta device", "a tensor with data")
        groups = torch.arange(examples) if labels is None else labels.detach().cpu()
        if groups.dtype != torch.int64 or tuple(groups.shape) != (examples,) or int(groups.min()) == int(groups.max()):
            got = f"{groups.dtype} {tuple(groups.shape)}"
            raise argument_error("labels", got, f"None or int64 [{examples}] of at least two classes")
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.key = key
        self.ranks = Ranks(process_group)
        bound = 1 / math.sqrt(width / 3)
        for name in ("student_memory", "teacher_memory"):
            drawn = random.uniform(examples, width, step=Step(0, seed=seed), name=f"noise contrast/{name}")
            self.register_buffer(name, (2 * drawn - 1) * bound)
        self.register_buffer("constants", torch.full((2,), -1.0))
        # Examples class by class, and where each example's class begins and how long it is.
        order = torch.argsort(groups, stable=True)
        _, inverse, counts = torch.unique(groups, return_inverse=True, return_counts=True)
        begins = counts.cumsum(0) - counts
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("blocks", torch.stack([begins[inverse], counts[inverse]], 1), persistent=False)

    def rows(self, student: Tensor, teacher: Tensor, view: View) -> Tensor:
        """See :class:`~distillrs.knowledge.Divergence`; both sides ``[B, width]``."""
        first, second = _unit_rows(student, teacher)
        ids = view.inputs.tensor(self.key)
        examples = len(self.student_memory)
        if ids.dtype != torch.int64 or tuple(ids.shape) != (len(first),):
            got = f"{ids.dtype} {tuple(ids.shape)}"
            raise argument_error(f"batch[{self.key!r}]", got, f"int64 [{len(first)}]: one id for each example")
        if ids.device.type == "cpu" and len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < examples:
            raise argument_error(
                f"batch[{self.key!r}]", f"{int(ids.min())} to {int(ids.max())}", f"ids below {examples}"
            )
        if first.shape[1] != self.student_memory.shape[1]:
            raise argument_error(
                "student", f"{first.shape[1]} features", f"{self.student_memory.shape[1]}, as in memory"
            )
        chosen = torch.cat([ids[:, None], self._draw(ids, view.step)], 1)
        losses = self._loss(first, self.teacher_memory, chosen, 0)
        losses = losses + self._loss(second, self.student_memory, chosen, 1)
        if torch.is_grad_enabled():
            ids, first, second = self.ranks.gathered(ids, first.detach(), second.detach())
            last = latest(ids)
            self._remember(self.student_memory, ids[last], first[last])
            self._remember(self.teacher_memory, ids[last], second[last])
        return losses

    def _draw(self, ids: Tensor, step: Step) -> Tensor:
        """[B, K] Examples of other classes, each equally likely."""
        drawn = random.integers(ids.cpu(), 2**62, self.negatives, step=step, name="noise contrast", device=ids.device)
        begin, length = self.blocks[ids, :1], self.blocks[ids, 1:]
        place = drawn % (len(self.order) - length)
        return self.order[torch.where(place >= begin, place + length, place)]

    def _loss(self, anchors: Tensor, memory: Tensor, chosen: Tensor, side: int) -> Tensor:
        # A copy, because the memory is written before the way back.
        rows = memory[chosen].to(anchors)
        scores = (products(rows, anchors[..., None])[..., 0] / self.temperature).exp()
        examples = len(memory)
        # Only training calls are sure to be made by every process.
        mean = (self.ranks.mean(scores) if torch.is_grad_enabled() else scores.detach().mean()) * examples
        mean = mean.to(scores)
        constant = torch.where(self.constants[side] > 0, self.constants[side].to(mean), mean)
        if torch.is_grad_enabled():
            self.constants[side] = constant.to(self.constants)
        shares = scores / constant
        noise = chosen.shape[1] - 1
        level = noise / examples
        own = (shares[:, 0] / (shares[:, 0] + level + _EPSILON)).log()
        others = (level / (shares[:, 1:] + level + _EPSILON)).log().sum(1)
        return -(own + others)

    @torch.no_grad()
    def _remember(self, memory: Tensor, ids: Tensor, rows: Tensor) -> None:
        moved = self.momentum * memory[ids] + (1 - self.momentum) * rows.to(memory)
        memory[ids] = unit(moved)


def _unit_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides as unit rows; a graph of the teacher's embedding head stays."""
    if student.ndim != 2 or student.shape != teacher.shape:
        got = f"shapes {tuple(student.shape)} and {tuple(teacher.shape)}"
        raise argument_error("student", got, "two tensors [batch, features] of one shape, after an embedding")
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    first, second = (unit(each.to(dtype)) for each in (student, teacher))
    return first, second
