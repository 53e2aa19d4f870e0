"""Points whose rows or groups are shared out over processes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from distillrs import _core
from distillrs.errors import DistillrsError, argument_error
from distillrs.select._groups import Members, Rows, counts_of, group_of_each, members_of
from distillrs.select._picks import Picks
from distillrs.select._points import (
    Integers,
    Matrix,
    Points,
    Prepare,
    as_matrix,
    as_tensor,
    check_memory,
    integers,
    prepared_bytes,
    width_of,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")
Gains = np.ndarray[tuple[int], np.dtype[np.float64]]


class Peers:
    """The processes of a group.

    Attributes:
        rank: This one's place among them.
        count: How many they are.
    """

    def __init__(self, group: ProcessGroup) -> None:
        allowed = "None or a torch.distributed process group that this process belongs to"
        if not (distributed.is_available() and distributed.is_initialized()):
            raise argument_error("process_group", f"{type(group).__name__} without torch.distributed", allowed)
        if not isinstance(group, distributed.ProcessGroup):
            raise argument_error("process_group", type(group).__name__, allowed)
        self._group = group
        self.rank = distributed.get_rank(group)
        self.count = distributed.get_world_size(group)
        # NCCL only moves what lies on devices.
        on_device = "nccl" in str(distributed.get_backend(group))
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_device else torch.device("cpu")

    def gather(self, own: bytes) -> bytes:
        """The bytes of all processes, in the order of their ranks; all give equally many."""
        if not own:
            return b""
        message = torch.frombuffer(bytearray(own), dtype=torch.uint8).to(self._device)
        all_messages = [torch.empty_like(message) for _ in range(self.count)]
        distributed.all_gather(all_messages, message, group=self._group)
        return torch.cat(all_messages).cpu().numpy().tobytes()

    def gather_objects(self, own: Any) -> list[Any]:
        """What each process gives, in the order of their ranks."""
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, own, group=self._group)
        return found

    def together(self, work: Callable[[], Result]) -> Result:
        """Runs ``work``; where a process's raises, all raise, so that none waits for ever.

        Raises:
            ArgumentError: This process's own, or with that of another one.
        """
        error, result = None, None
        try:
            result = work()
        except DistillrsError as caught:
            error = caught
        refusals = self.gather_objects(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, refusal in enumerate(refusals):
            if refusal is not None:
                got = f"what process {rank} refuses ({refusal})"
                raise argument_error("process_group", got, "arguments that every process takes")
        return result  # type: ignore[return-value]  # there was no error

    def agree(self, name: str, own: Any) -> None:
        """Refuses what is not the same on every process.

        Raises:
            ArgumentError: On every process alike.
        """
        found = self.gather_objects(own)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise argument_error(name, f"{found[0]} on process 0, {other} on process {rank}", "the same on all")

    def share(self, costs: Mapping[int, float]) -> set[int]:
        """The groups that this process works on: the most costly first, each to whom has the least so far."""
        loads, own = [0.0] * self.count, set()
        for group in sorted(costs, key=lambda group: (-costs[group], group)):
            rank = loads.index(min(loads))
            loads[rank] += costs[group]
            if rank == self.rank:
                own.add(group)
        return own

    def merge(self, ids: Rows, gains: Gains) -> None:
        """Fills in what other processes found: ids of -1 here."""
        every = np.frombuffer(self.gather(ids.tobytes()), np.int64).reshape(self.count, -1)
        worth = np.frombuffer(self.gather(gains.tobytes()), np.float64).reshape(self.count, -1)
        if ids.size:
            owners = every.argmax(0)
            ids[:] = every.max(0)
            gains[:] = worth[owners, np.arange(ids.size)]


def replicas(group: ProcessGroup, points: Points, groups: Integers | None, settings: Any) -> Peers:
    """The processes, after a look whether all have the same points and arguments.

    Raises:
        ArgumentError: They have not, or there are no groups to share out.
    """
    peers = Peers(group)
    if groups is None:
        raise argument_error("replicated", True, "False, or True together with groups, which are then shared out")

    def digest() -> tuple[tuple[int, ...], int, int]:
        tensor = as_tensor("points", points)
        members_of(groups, len(tensor))
        sums = [zlib.crc32(part.data) for part in (as_matrix(tensor), integers("groups", groups, (None,), "integers"))]
        return tuple(tensor.shape), sums[0], sums[1]

    peers.agree("points", "a tensor of {}, checksums {} and {}".format(*peers.together(digest)))
    peers.agree("process_group", settings)
    return peers


class Part(NamedTuple):
    """A process's part of a group.

    Attributes:
        first: Place of its first point among the group's points of all processes.
        total: How many points the group has.
        places: Places of the rows that were named, those of this group.
    """

    first: int
    total: int
    places: Mapping[int, int]


class _Shared(Members):
    """Groups whose members lie with several processes: the rows are this one's, the sizes those of all."""

    def __init__(self, own: Members, sizes: Mapping[int, int]) -> None:
        none = np.empty(0, np.int64)
        super().__init__(own.n, {group: own.get(group, none) for group in sizes})
        self._sizes = sizes

    def size(self, group: int) -> int:
        return self._sizes[group]


class ShardedWork(Protocol):
    """Picks among the points of one group; fills ``ids`` with places among the group's points of all processes."""

    def __call__(self, matrix: Matrix, group: int, part: Part, ids: Rows, gains: Gains) -> None: ...


def greedy_sharded(
    points: Points,
    k: int | Mapping[int, int] | None,
    fraction: float | None,
    groups: Integers | None,
    memory_budget: int | None,
    bytes_needed: Callable[[int, int, int], int],
    work: ShardedWork,
    peers: Peers,
    *,
    settings: Any,
    prepare: Prepare | None = None,
    named: Callable[[int, Members], tuple[Rows, Iterable[int]]] | None = None,
) -> Picks:
    """Runs ``work`` on every group of row-sharded points; all processes get all picks.

    Args:
        points: ``[own n, ...]``: this process's rows.
        k: Number of picks, or of each group's.
        fraction: Share of all points instead.
        groups: Integers ``[own n]`` or ``None``.
        memory_budget: Bytes allowed on each process.
        bytes_needed: Bytes that a group of ``n`` own points with ``d`` columns takes for ``k`` picks.
        work: What picks.
        peers: The processes.
        settings: What must be the same on all of them.
        prepare: Changes the own points first, into float64.
        named: Given the number of all points and the groups, rows that cannot be picked, and further ones whose places
            are needed.
    """

    def own_points() -> tuple[Tensor, Matrix, Members]:
        tensor = as_tensor("points", points)
        members = members_of(groups, len(tensor))
        if memory_budget is not None:
            # The matrix is looked at before it is known what the picks take.
            check_memory(memory_budget, prepared_bytes(tensor, prepare) + 2**16)
        matrix = as_matrix(tensor) if prepare is None else prepare(as_matrix(tensor))
        _core.check_points(matrix.data)
        return tensor, matrix, members

    tensor, matrix, own = peers.together(own_points)
    peers.agree("points", f"rows of shape {tuple(tensor.shape[1:])}")
    peers.agree("groups", "none" if groups is None else "one for each point")
    peers.agree("process_group", settings)
    found = peers.gather_objects((len(matrix), {group: own.size(group) for group in own}))
    offset = sum(rows for rows, _ in found[: peers.rank])
    n = sum(rows for rows, _ in found)
    firsts, sizes = {}, {}
    for group in sorted({group for _, counts in found for group in counts}):
        of_each = [counts.get(group, 0) for _, counts in found]
        firsts[group], sizes[group] = sum(of_each[: peers.rank]), sum(of_each)
    members = _Shared(own, sizes)
    taken, others = (np.empty(0, np.int64), ()) if named is None else named(n, members)
    places = _places([*taken.tolist(), *others], offset, len(matrix), own, firsts, peers)
    counts = counts_of(
        k,
        members,
        least=0,
        fraction=fraction,
        taken={group: sum(places[row][0] == group for row in taken.tolist()) for group in members},
    )
    columns = matrix.shape[1]

    def check() -> None:
        needed = [
            bytes_needed(own.size(group) if group in own else 0, columns, count) for group, count in counts.items()
        ]
        largest = max((own.size(group) for group in own), default=0) if members.grouped else 0
        held = members.nbytes + prepared_bytes(tensor, prepare) + largest * columns * width_of(tensor, prepare)
        check_memory(memory_budget, held + max(needed, default=0) + 2**16)

    peers.together(check)
    total = sum(counts.values())
    ids, gains = np.empty(total, np.int64), np.empty(total, np.float64)
    first = 0
    for group, count in counts.items():
        rows = members[group]
        own_matrix = matrix if rows is None else matrix[rows]
        span = slice(first, first + count)
        inside = {row: place for row, (name, place) in places.items() if name == group}
        work(own_matrix, group, Part(firsts[group], sizes[group], inside), ids[span], gains[span])
        local = ids[span] - firsts[group]
        is_own = (local >= 0) & (local < len(own_matrix))
        held = local[is_own] if rows is None else rows[local[is_own]]
        ids[span] = -1
        ids[span][is_own] = offset + held
        first += count
    peers.merge(ids, gains)
    return Picks(
        ids=torch.from_numpy(ids).to(tensor.device),
        gains=torch.from_numpy(gains).to(tensor.device),
        groups=None if groups is None else group_of_each(counts, tensor.device),
    )


def _places(
    rows: list[int], offset: int, count: int, own: Members, firsts: Mapping[int, int], peers: Peers
) -> dict[int, tuple[int, int]]:
    """The group of each row of all, and its place among the group's points of all processes."""
    if not rows:
        return {}
    mine: dict[int, tuple[int, int]] = {}
    inside = {row for row in rows if 0 <= row - offset < count}
    for group, held in own.items():
        if held is None:
            mine.update({row: (group, row) for row in inside})
        else:
            for row in inside:
                place = int(np.searchsorted(held, row - offset))
                if place < len(held) and held[place] == row - offset:
                    mine[row] = (group, firsts[group] + place)
    return {row: place for found in peers.gather_objects(mine) for row, place in found.items()}
