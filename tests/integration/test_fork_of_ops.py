"""Operations of the core in a forked child whose parent has used the pool of threads."""

import os
import subprocess
import sys

import pytest

FORK = """
import os, signal, torch
from distillrs import _core, ops

torch.set_num_threads(1)               # torch's own threads do not survive a fork
_core.set_threads(2)
generator = torch.Generator().manual_seed(0)
student, teacher = 3 * torch.randn(2, 64, 700, generator=generator)
hidden, weight = torch.randn(64, 16, generator=generator), torch.randn(700, 16, generator=generator)
labels = torch.arange(64)
top = ops.TopK.from_logits(teacher, 20)


def run():
    results = []
    for loss in (
        lambda x: ops.row_divergence(x, teacher, ops.JensenShannon(0.5), backend="rust"),
        lambda x: ops.sparse_row_divergence(x, top, ops.ReverseKL(), backend="rust"),
        lambda x: ops.plackett_luce(x, teacher, labels, backend="rust"),
    ):
        leaf = student.clone().requires_grad_()
        value = loss(leaf)
        results += [value.detach(), *torch.autograd.grad(value, leaf)]
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    # So few bytes that there are many chunks.
    value = ops.linear_row_divergence(
        *leaves, hidden.flip(0), weight.flip(0), ops.ForwardKL(), chunk_bytes=1 << 16, backend="rust"
    )
    return [*results, value.detach(), *torch.autograd.grad(value, leaves)]


expected = run()                         # the pool is warm now
assert all(value.isfinite().all() and value.abs().sum() > 0 for value in expected)
for generation in range(2):
    child = os.fork()
    if child:                            # the parent waits; the child goes on and forks again
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.alarm(60)
    if not all(torch.equal(*pair) for pair in zip(run(), expected, strict=True)):
        os._exit(3)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_children_have_the_parent_s_results():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=200, check=False)
    assert done.returncode == 0
