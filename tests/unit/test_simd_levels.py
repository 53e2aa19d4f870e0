"""The bound on vector instructions: every level gives the same, to the bit or to rounding as the loop promises."""

import os
import subprocess
import sys

import pytest
import torch

from distillrs import _core

# The same work at any level: what is equal bit by bit, and what may differ by rounding.
WORK = """
import sys
import tempfile

import torch

from distillrs import _core, ops, random, select
from distillrs.trajectory import UNCHECKED, TeacherCache

exact, rounded = {}, {}
normal = lambda *shape, name: random.normal(*shape, step=0, name=name)
exact["normals"] = normal(7, 1001, name="normals")
exact["integers"] = random.integers(1000, 77, step=0, name="integers")

student, teacher = (3 * normal(5, 2500, name=name) for name in ("student", "teacher"))
student[0, 3] = teacher[0, 3] = -torch.inf
labels = torch.arange(5)
divergences = [
    ops.ForwardKL(), ops.ReverseKL(), ops.JensenShannon(0.3), ops.SkewKL(0.1), ops.SkewReverseKL(0.1),
    ops.TotalVariation(), ops.Alpha(0.4), ops.Mixture({ops.ForwardKL(): 0.5, ops.JensenShannon(0.5): 0.5}),
]
for divergence in divergences:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        leaf = student.to(dtype, copy=True).requires_grad_()
        loss = ops.row_divergence(
            leaf, teacher.to(dtype), divergence, temperature=2.0, labels=labels, label_weight=0.1, reduction="none",
            backend="rust",
        )
        loss.sum().backward()
        rounded[f"{divergence} {dtype}"] = loss.detach()
        rounded[f"{divergence} {dtype}, gradient"] = 1000 * leaf.grad.float()
found = ops.row_statistics(student, index=labels, top_k=9, backend="rust")
exact["top"] = found.top_ids
rounded["entropy"] = found.entropy
leaf = teacher.clone().requires_grad_()
loss = ops.sparse_row_divergence(leaf, ops.TopK.from_logits(student, 9), ops.ReverseKL(), backend="rust")
loss.backward()
rounded["top-k divergence"], rounded["its gradient"] = loss.detach(), 1000 * leaf.grad
data, x = normal(400, 37, name="data"), normal(33, 37, name="x")
rounded["denoiser"] = ops.mixture_denoiser(x, data, 1.0, 0.7, backend="rust")

points = normal(3000, 19, name="points")
exact["centres"] = select.k_center(points, 40).ids
exact["medoids"] = select.k_means(points, 20, seed=1).medoids
with tempfile.TemporaryDirectory() as folder:
    with TeacherCache.create(f"{folder}/cache", 2500, 17, UNCHECKED) as cache:
        cache.append("a", teacher)
    with TeacherCache.open(f"{folder}/cache", UNCHECKED) as cache:
        top = cache.gather(cache.index(["a"]) + torch.arange(5))
exact["stored ids"], exact["stored log-probabilities"] = top.ids, top.log_probs
torch.save({"level": _core.simd_level(), "exact": exact, "rounded": rounded}, sys.argv[1])
"""


def at(level, *arguments):
    environment = {**os.environ, "DISTILLRS_SIMD": level}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def test_levels_agree(tmp_path):
    found = {}
    for level in ("avx512", "avx2", "portable"):
        path = tmp_path / f"{level}.pt"
        done = at(level, "-c", WORK, str(path))
        assert done.returncode == 0, done.stderr
        found[level] = torch.load(path)
    widest = found["avx512"]
    # A bound above the machine's own level is none.
    if "DISTILLRS_SIMD" not in os.environ:
        assert widest["level"] == _core.simd_level()
    assert found["avx2"]["level"] == ("avx2" if widest["level"] == "avx512" else widest["level"])
    assert found["portable"]["level"] in ("sse2", "neon", "portable")
    for level in ("avx2", "portable"):
        for name, value in widest["exact"].items():
            assert torch.equal(found[level]["exact"][name], value), (level, name)
        for name, value in widest["rounded"].items():
            other = found[level]["rounded"][name]
            # Gradients are times 1000, at most about 100. A narrow type's rounding may fall on either side of a step,
            # which is a fixed one for the least numbers of float16.
            steps = {"bfloat16, gradient": (2**-7, 1e-5), "float16, gradient": (2**-10, 1000 * 2**-24)}
            # The denoiser's weights have exponents of 100 or so, of which the error is a share.
            usual = (2e-6, 2e-5 if name == "denoiser" else 1e-5 if "gradient" in name else 2e-6)
            relative, absolute = next((step for end, step in steps.items() if name.endswith(f".{end}")), usual)
            torch.testing.assert_close(other, value, rtol=relative, atol=absolute)


@pytest.mark.parametrize("level", ["avx3", "", "AVX2"])
def test_a_level_that_is_none_is_refused_at_the_import(level):
    done = at(level, "-c", "import distillrs")
    assert done.returncode != 0
    assert f'DISTILLRS_SIMD: got "{level}", allowed is avx512, avx2 or portable' in done.stderr
