"""What several processes remember together: rows of all of them, in the same order everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from distillrs.errors import argument_error


class Ranks:
    """The processes that share a memory; without a group each keeps its own, and nothing is sent.

    What a group's processes remember is then the same in all of them, so one of them saves it for all. Every one must
    make the same training calls, with any number of rows.

    Args:
        process_group: A group of ``torch.distributed`` (``torch.distributed.group.WORLD`` for all processes), or
            ``None``.

    Raises:
        ArgumentError: Something else, or a group that this process does not belong to.
    """

    def __init__(self, process_group: Any = None) -> None:
        if process_group is not None and not (
            distributed.is_available() and isinstance(process_group, distributed.ProcessGroup)
        ):
            got = type(process_group).__name__
            raise argument_error("process_group", got, "None or a group of torch.distributed with this process")
        self.process_group = process_group

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        # A group is a connection, which a copy of an objective shares.
        return self

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.process_group is None else distributed.get_world_size(self.process_group)

    def gathered(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The rows of every process, first those of rank 0; the processes may have different numbers of them.

        Args:
            *tensors: ``[rows, ...]``, all with the same number of rows.
        """
        if self.size == 1:
            return tensors
        count = torch.tensor([len(tensors[0])], device=tensors[0].device)
        counts = [torch.zeros_like(count) for _ in range(self.size)]
        distributed.all_gather(counts, count, group=self.process_group)
        sizes = [int(each) for each in counts]
        found = []
        for tensor in tensors:
            padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
            padded[: len(tensor)] = tensor.detach()
            parts = [torch.empty_like(padded) for _ in sizes]
            distributed.all_gather(parts, padded, group=self.process_group)
            found.append(torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]))
        return tuple(found)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of the entries of every process, float64 [].

        Args:
            values: Any shape.
        """
        sums = torch.stack([values.detach().sum(dtype=torch.float64), values.new_tensor(values.numel()).double()])
        if self.size > 1:
            distributed.all_reduce(sums, group=self.process_group)
        return sums[0] / sums[1]


def latest(ids: Tensor) -> Tensor:
    """Where each id comes last: writing these rows alone is the same on every device, which a repeated index is not.

    Args:
        ids: int64 ``[n]``.

    Returns:
        int64 ``[distinct ids]``, positions in ``ids``.
    """
    distinct, which = torch.unique(ids, return_inverse=True)
    places = torch.arange(len(ids), device=ids.device)
    return torch.zeros_like(distinct).scatter_reduce(0, which, places, "amax")
