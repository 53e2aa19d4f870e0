"""One of two processes of a run over gloo: what they remember together, and what each does alone.

Run as ``python two_ranks.py FOLDER`` with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT or a file store in FOLDER.
"""

import os
import sys

import torch
from torch import nn

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import schedule
from distillrs.knowledge import Objective, Output, Term

EXAMPLES = 13
ORDER = torch.tensor([5, 0, 7, 2, 12, 1, 3, 6, 4, 9, 8, 10, 11, 9])


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, 5, generator=generator, dtype=torch.float64)
    return x, torch.arange(EXAMPLES) % 3


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def objective(kind, group=None):
    """An objective with a memory; ``group`` gathers it."""
    teacher = dr.Frozen(network(1))
    if kind == "table":
        table = kn.SnapshotTable(EXAMPLES, 3, process_group=group).double()
        return Objective(network(0), table, [Term(Output(), target=kn.Arithmetic(schedule.Constant(0.7)))])
    if kind == "queue":
        divergence = kn.InfoNCE(0.3, queue=9, width=4, process_group=group).double()
    else:
        divergence = kn.NoiseContrast(EXAMPLES, 4, negatives=6, process_group=group).double()
    return Objective(network(0), teacher, [Term("0", divergence=divergence)])


KINDS = ["table", "queue", "memory"]


def batches(rows):
    """Three steps of unequal parts of the order; the last has one example twice."""
    x, y = data()
    for at, length in ((0, 5), (5, 4), (9, 5)):
        chosen = ORDER[at : at + length][rows]
        yield x[chosen], y[chosen], chosen


def values(kind, rows, group=None):
    made = objective(kind, group)
    losses = []
    for index, batch in enumerate(batches(rows)):
        losses.append(made(batch, index).total.detach())
        with torch.no_grad():
            for parameter in made.student.parameters():
                parameter.mul_(0.9)
    return made, torch.stack(losses)


def main(folder):
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(None, 3) if rank == 0 else slice(3, None)
    found = {}
    for kind in KINDS:
        made, losses = values(kind, rows, torch.distributed.group.WORLD)
        found[kind] = {"losses": losses, "state": made.state_dict()}
        made, losses = values(kind, rows)
        found[f"{kind} alone"] = {"losses": losses, "state": made.state_dict()}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
