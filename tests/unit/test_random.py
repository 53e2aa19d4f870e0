import math
import os
import pickle
import subprocess
import sys

import pytest
import torch

import distillrs as dr
from distillrs import _core, random

STEP = dr.Step(5, seed=3)


@pytest.fixture
def thread_count():
    before = _core.threads()
    yield _core.set_threads
    _core.set_threads(before)


def test_draws_are_pinned_forever():
    # A change here changes every run that was ever recorded.
    assert (random.uniform(2, 3, step=STEP, name="pin").flatten() * 2**24).tolist() == [
        7041810, 7651628, 160006, 15947776, 7874539, 139045,
    ]  # fmt: skip
    wide = random.uniform(2, 2, step=STEP, name="pin", dtype=torch.float64)
    assert (wide.flatten() * 2**53).tolist() == [
        4107936627256930, 5137734087757344, 4227611376904960, 349704416150500,
    ]  # fmt: skip
    normals = random.normal(2, 2, step=STEP, name="pin", dtype=torch.float64).flatten().tolist()
    assert [value.hex() for value in normals] == [
        "-0x1.bb52d10f96860p+0", "0x1.ae3655c51685fp+0", "-0x1.b93ddecf7343cp-3", "-0x1.481607f74cab3p-1",
    ]  # fmt: skip
    assert random.integers(6, 1000, step=STEP, name="pin").tolist() == [843, 629, 95, 816, 158, 723]
    assert random.permutation(8, step=STEP, name="pin").tolist() == [4, 7, 1, 2, 0, 3, 6, 5]
    assert random.generator_seed(STEP, "pin") == 11660689413104397488


def test_normals_come_in_pairs_of_uniform_radius_and_angle():
    pairs = random.normal(1000, 2, step=STEP, name="pair", dtype=torch.float64)
    radius, angle = pairs.norm(dim=1), torch.atan2(pairs[:, 1], pairs[:, 0]) / (2 * math.pi) % 1
    # Radius and angle of a pair are independent, and both are uniform after their distribution functions.
    for values in (1 - torch.exp(-radius.square() / 2), angle):
        grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        assert float((values.sort().values - grid).abs().max()) < 1.95 / math.sqrt(1000)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_change_nothing(thread_count, count):
    thread_count(1)
    expected = [draw(70_000) for draw in DRAWS]
    thread_count(count)
    for draw, alone in zip(DRAWS, expected, strict=True):
        assert torch.equal(draw(70_000), alone)


DRAWS = [
    lambda units: random.uniform(units, 3, step=STEP, name="t"),
    lambda units: random.uniform(units, 3, step=STEP, name="t", dtype=torch.float64),
    lambda units: random.normal(units, 3, step=STEP, name="t"),
    lambda units: random.integers(units, 10, 3, step=STEP, name="t"),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_no_units_and_empty_shapes_are_empty_draws(draw):
    assert draw(0).shape == (0, 3)
    assert draw(range(7, 7)).shape == (0, 3)
    assert draw(torch.empty(0, dtype=torch.int64)).shape == (0, 3)
    assert random.uniform(4, 0, 2, step=STEP, name="t").shape == (4, 0, 2)
    assert random.uniform(4, step=STEP, name="t").shape == (4,)
    assert random.permutation(0, step=STEP, name="t").shape == (0,)
    assert random.choice(5, 0, step=STEP, name="t").shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_uniforms_stay_below_one_in_every_dtype(dtype):
    draw = random.uniform(1, 200_000, step=STEP, name="u", dtype=dtype)
    assert draw.dtype == dtype
    assert 0 <= float(draw.min()) < float(draw.max()) < 1


def test_narrow_normals_are_the_wide_ones_rounded():
    wide = random.normal(9, 5, step=STEP, name="n", dtype=torch.float64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        narrow = random.normal(9, 5, step=STEP, name="n", dtype=dtype)
        assert torch.equal(narrow, wide.float().to(dtype))


def test_steps_beyond_32_bits_and_large_ids_are_streams_of_their_own():
    far = [
        random.uniform(1, 4, step=dr.Step(index, first_unit=unit), name="t")
        for index in (0, 2**32, 2**40)
        for unit in (0, 2**32, 2**62)
    ]
    assert len({tuple(draw.flatten().tolist()) for draw in far}) == 9


def test_the_result_can_be_written_to():
    draw = random.uniform(3, step=STEP, name="w")
    draw.add_(1)
    again = random.uniform(3, step=STEP, name="w")
    assert torch.equal(draw, again + 1)


FORK = """
import os, signal, sys, torch
from distillrs import _core, random

torch.set_num_threads(1)               # torch's own threads do not survive a fork
_core.set_threads(2)
draw = lambda: random.normal(50_000, 4, step=1, name="fork")
expected = draw()                        # the pool is warm now
for generation in range(3):
    child = os.fork()
    if child:                            # the parent waits; the child goes on and forks again
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.alarm(60)
    if not torch.equal(draw(), expected):
        os._exit(3)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_with_a_warm_pool_draws_on():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], timeout=200, check=False)
    assert done.returncode == 0


def test_another_process_draws_the_same():
    code = (
        "import sys, pickle, distillrs as dr; from distillrs import random;"
        "sys.stdout.buffer.write(pickle.dumps(random.normal(4, 3, step=dr.Step(5, seed=3), name='p').tolist()))"
    )
    environment = {**os.environ, "DISTILLRS_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert pickle.loads(done.stdout) == random.normal(4, 3, step=STEP, name="p").tolist()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: random.uniform(-1, step=0, name="t"), "units"),
        (lambda: random.uniform(1.5, step=0, name="t"), "units"),
        (lambda: random.uniform(True, step=0, name="t"), "units"),
        (lambda: random.uniform(range(-1, 3), step=0, name="t"), "units"),
        (lambda: random.uniform(torch.tensor([1, -1]), step=0, name="t"), "units"),
        (lambda: random.uniform(torch.tensor([1.0]), step=0, name="t"), "units"),
        (lambda: random.uniform(torch.tensor([[1]]), step=0, name="t"), "units"),
        (lambda: random.uniform(1, -2, step=0, name="t"), "shape"),
        (lambda: random.uniform(1, step=0, name="t", dtype=torch.int64), "dtype"),
        (lambda: random.integers(1, 0, step=0, name="t"), "high"),
        (lambda: random.integers(1, 2**63 + 1, step=0, name="t"), "high"),
        (lambda: random.permutation(-1, step=0, name="t"), "n"),
        (lambda: random.choice(3, 4, step=0, name="t"), "k"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(call, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        call()


@pytest.mark.parametrize("count", [0, 1025])
def test_a_senseless_thread_count_is_refused(count):
    with pytest.raises(dr.errors.ArgumentError, match=r"^threads: got"):
        _core.set_threads(count)
