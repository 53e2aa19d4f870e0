"""k-center where the points are: the kernel, on the CPU, against plain loops and the core."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillrs import select
from distillrs.errors import ArgumentError
from distillrs.ops._cuda import _farthest, _launcher, _module

pytestmark = pytest.mark.parametrize("backend", ["cuda"])


def on_the_core(*arguments, **options):
    with _launcher.serving(_launcher.Launcher(_module.CupyLoader())):
        return select.k_center(*arguments, **options)


@given(
    rows=st.integers(1, 20) | st.sampled_from([8, 9, 70]),
    columns=st.sampled_from([1, 3, 31, 33, 70]),
    offset=st.sampled_from([0.0, 4096.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    data=st.data(),
)
@settings(max_examples=25)
def test_the_picks_are_those_of_the_core(backend, rows, columns, offset, dtype, data):
    """Whole numbers, so that ties are ties and sums exact."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    points = torch.randint(-2, 3, (rows, columns), generator=generator).float()
    points = (points + (offset if dtype == torch.float32 else 0.0)).to(dtype)
    chosen = data.draw(st.lists(st.integers(0, rows - 1), unique=True, max_size=min(rows - 1, 5)))
    k = data.draw(st.integers(0, min(rows - len(chosen), 12)))
    free = sorted(set(range(rows)) - set(chosen))
    options = {
        "chosen": torch.tensor(chosen, dtype=torch.int64),
        "start": data.draw(st.none() | st.sampled_from(free)),
        "seed": data.draw(st.integers(0, 9)),
    }
    given_points = points if data.draw(st.booleans()) else points.mT.contiguous().mT
    found, exact = select.k_center(given_points, k, **options), on_the_core(points, k, **options)
    assert torch.equal(found.ids, exact.ids)
    assert torch.equal(found.gains, exact.gains)
    assert found.groups is None


def test_more_points_than_blocks_take_at_once(backend, monkeypatch):
    monkeypatch.setattr(_farthest, "_BLOCKS", 3)
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    found, exact = select.k_center(points, 6, start=5), on_the_core(points, 6, start=5)
    assert torch.equal(found.ids, exact.ids)
    np.testing.assert_allclose(found.gains, exact.gains, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 6}, "k: got 6"),
        ({"k": 4, "chosen": torch.tensor([0, 1])}, "k: got 4"),
        ({"start": 0, "chosen": torch.tensor([0])}, "start: got 0"),
        ({"start": 5}, "start: got 5"),
        (
            {"points": torch.tensor([[0.0, 1.0], [2.0, float("nan")], [float("inf"), 1.0]])},
            "points: got .*row 1, column 1",
        ),
        ({"memory_budget": 10}, "memory_budget: got '10 bytes'"),
        ({"fraction": 0.5}, "k: got 'k and fraction'"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(backend, change, message):
    arguments = {"points": torch.arange(10.0).reshape(5, 2), "k": 2, **change}
    with pytest.raises(ArgumentError, match=message):
        select.k_center(**arguments)


def test_what_the_kernel_does_not_serve_goes_to_the_core(backend):
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(12) % 2
    for options in ({"metric": "cosine"}, {"groups": groups}):
        assert torch.equal(select.k_center(points, 3, **options).ids, on_the_core(points, 3, **options).ids)
    assert torch.equal(select.k_center(points.double(), 3).ids, on_the_core(points.double(), 3).ids)
